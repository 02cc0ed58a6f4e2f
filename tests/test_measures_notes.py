"""Notes heard in sound that was made of notes: how long, how steady, in tune or not, how many."""

import numpy as np
import pytest
import torch

from Libraries.Measures.Notes import (
    Notes,
    distance_to_grid,
    find_notes,
    note_measures,
    onsets_per_second,
    polyphony,
    share_in_best_key,
    transcribe,
)

RATE = 22_050


def tone(key, start, seconds, cents=0.0, vibrato=0.0, total=2.0):
    """A harmonic tone (L,) at a MIDI key, off by `cents`, with a vibrato of 5.5 Hz and +- `vibrato` cents."""
    time = np.arange(round(total * RATE)) / RATE
    inside = (time >= start) & (time < start + seconds)
    local = time[inside] - start
    offset = cents + vibrato * np.sin(2 * np.pi * 5.5 * local)
    phase = 2 * np.pi * np.cumsum(440 * 2 ** ((key - 69) / 12 + offset / 1200)) / RATE
    level = np.minimum(1, local / 0.01) * np.minimum(1, (seconds - local) / 0.02) * np.exp(-local)
    wave = np.zeros(len(time), np.float32)
    wave[inside] = level * sum(0.15 / h**1.5 * np.sin(h * phase) for h in range(1, 7))
    return wave


def heard(*clips):
    """The notes of clips, each a sequence of tones."""
    waves = torch.from_numpy(np.stack([sum(tones) for tones in clips]))[:, None]
    return find_notes(transcribe(waves, RATE))


def made_up(clip, key, seconds, cents):
    columns = (np.asarray(column) for column in (clip, key, np.zeros(len(clip)), seconds))
    return Notes(
        *columns, np.ones(len(clip), bool), np.asarray(cents, float), np.zeros(len(clip)), 1 + max(clip), 2.0
    )


def test_notes_are_heard_at_their_keys_and_as_long_as_they_are():
    lengths = (0.15, 0.3, 0.6)
    notes = heard(
        [tone(key, start, s) for key, start, s in zip((60, 64, 55), (0.1, 0.5, 1.1), lengths, strict=True)]
    )
    longest = {key: notes.seconds[notes.key == key].max() for key in (60, 64, 55)}
    assert list(longest.values()) == pytest.approx(lengths, abs=0.06)
    starts = [notes.start[(notes.key == key) & notes.struck].min() for key in (60, 64, 55)]
    assert starts == pytest.approx([0.1, 0.5, 1.1], abs=0.05)


def test_a_note_struck_again_is_two_notes():
    notes = heard([tone(60, 0.2, 0.4), tone(60, 0.6, 0.4)])
    assert (notes.key == 60).sum() == 2
    assert notes.seconds[notes.key == 60] == pytest.approx([0.4, 0.4], abs=0.06)


@pytest.mark.parametrize("key", [57, 69])
def test_spread_within_a_note_rises_with_vibrato(key):
    spreads = []
    for vibrato in (0, 5, 20, 50):
        notes = heard([tone(key, 0.2, 1.5, vibrato=vibrato)])
        spreads.append(np.nanmedian(notes.spread[notes.key == key]))
    assert np.all(np.diff(spreads) > 0.5), spreads
    assert spreads[2] == pytest.approx(20 / 2**0.5, rel=0.4)


@pytest.mark.parametrize("cents", [-30, -10, 10, 30])
def test_pitch_is_heard_to_a_few_cents(cents):
    notes = heard([tone(64, 0.2, 1.0, cents=cents)])
    assert np.nanmean(notes.cents[notes.key == 64]) == pytest.approx(cents, abs=6)


def test_a_clip_that_is_tuned_high_as_a_whole_is_in_tune():
    in_tune = made_up([0] * 5, [60, 62, 64, 65, 67], [0.3] * 5, [30] * 5)
    assert distance_to_grid(in_tune).values == pytest.approx(0, abs=1e-6)
    around_the_edge = made_up([0] * 4, [60, 62, 63, 65], [0.3] * 4, [49, 49, -49, -49])  # 2 cents apart
    assert distance_to_grid(around_the_edge).values == pytest.approx(1, abs=1e-6)
    off = made_up([0] * 6, [60, 62, 64, 65, 67, 69], [0.3] * 6, [0, 0, 0, 0, 0, 40])
    assert distance_to_grid(off).values.max() > 30
    assert len(distance_to_grid(made_up([0] * 2, [60, 62], [0.3] * 2, [0, 40])).values) == 0  # too few to say


def test_onsets_and_polyphony_of_chords():
    chords = [tone(key, start, 0.45) for start in (0.1, 0.6, 1.1) for key in (60, 64, 67)]
    notes = heard(chords, [tone(60, 0.1, 0.4), tone(62, 0.6, 0.4)])
    rates, voices = onsets_per_second(notes), polyphony(notes)
    assert rates == pytest.approx([4.5, 1], rel=0.35)
    assert voices == pytest.approx([3, 1], rel=0.25)


def test_a_scale_is_in_its_key_and_the_chromatic_one_in_none():
    major, chromatic = [60, 62, 64, 65, 67, 69, 71], list(range(60, 72))
    clip = [0] * 7 + [1] * 12
    notes = made_up(clip, major + chromatic, [0.2] * 19, [0] * 19)
    assert share_in_best_key(notes) == pytest.approx([100, 100 * 7 / 12])


def test_silence_has_no_notes_and_breaks_nothing():
    measures = note_measures(find_notes(transcribe(torch.zeros(2, 1, RATE), RATE)))
    assert len(measures["note length"].values) == 0
    assert measures["onsets"].values.tolist() == [0, 0]
    assert len(measures["polyphony"].values) == len(measures["notes in the best key"].values) == 0


def test_noise_on_a_note_makes_it_shorter():
    wave = tone(60, 0.2, 1.5)
    generator = np.random.default_rng(0)
    lengths = []
    for level in (0, 0.1, 0.3):
        noisy = wave + level * generator.normal(size=len(wave)).astype(np.float32)
        notes = find_notes(transcribe(torch.from_numpy(noisy)[None, None].float(), RATE))
        lengths.append(notes.seconds[notes.key == 60].max(initial=0))
    assert lengths[0] > lengths[1] > lengths[2]


def test_frames_do_not_depend_on_where_windows_meet():
    long = sum(tone(60, start, 0.3, total=5.0) for start in np.arange(0.2, 4.6, 0.5))
    notes = find_notes(transcribe(torch.from_numpy(long)[None, None], RATE))
    starts = notes.start[(notes.key == 60) & notes.struck]
    assert starts == pytest.approx(np.arange(0.2, 4.6, 0.5), abs=0.05)
    assert notes.seconds[notes.key == 60] == pytest.approx(0.3, abs=0.07)
