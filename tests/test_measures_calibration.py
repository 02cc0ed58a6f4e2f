"""Real music made worse in known steps, on a few clips: each measure rises with what it is there for."""

import numpy as np
import pytest
import torch
from scipy.signal import hilbert

from benchmarks.calibration import (
    RATE,
    SPECTROGRAM,
    Clips,
    Piece,
    coded,
    copied,
    duplicated,
    low_pass,
    render,
    shuffled,
    vibrato,
)
from Libraries.DemoMusic.SoundFont import Note
from Libraries.Measures import (
    find_notes,
    hear,
    level_pictures,
    load_tagger,
    nearest_pictures,
    note_measures,
    precision_recall,
    rhythm_measures,
    sound_measures,
    transcribe,
    wasserstein_distance,
)
from Libraries.Measures.Copies import nearer_than_most, nearest_within

PROGRAMS = {"organ": 19, "flute": 73}


def pieces(count, seed):
    """Even melodies of four notes a second, in turn on each instrument."""
    rng = np.random.default_rng(seed)
    names = [list(PROGRAMS)[i % len(PROGRAMS)] for i in range(count)]
    scale = 60 + np.array([0, 2, 4, 5, 7, 9, 11, 12])
    return [
        Piece(
            f"{name} {i}",
            name,
            [Note(0.25 * n, 0.24, PROGRAMS[name], int(rng.choice(scale)), 90) for n in range(44)],
        )
        for i, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def real():
    return render(pieces(4, seed=0))  # 16 clips


@pytest.fixture(scope="module")
def other():
    return render(pieces(4, seed=1))


def heard(waveforms):
    posteriors = transcribe(waveforms, RATE)
    notes = find_notes(posteriors)
    return note_measures(notes) | rhythm_measures(notes, posteriors)


@pytest.fixture(scope="module")
def reference(other):
    return heard(other.waveforms)


def distances(sets, reference, name):
    return [wasserstein_distance(heard(waveforms)[name], reference[name]) for waveforms in sets]


def test_vibrato_moves_the_pitch_by_its_cents_and_keeps_the_tone_pure():
    wave = torch.sin(2 * torch.pi * 500 * torch.arange(2 * RATE, dtype=torch.float64) / RATE).float()
    for cents in (20, 50):
        moved = vibrato(wave[None, None], cents, RATE)[0, 0].numpy()
        phase = np.unwrap(np.angle(hilbert(moved)))[RATE // 2 : -RATE // 2]
        pitch = 1200 * np.log2(np.diff(phase) * RATE / (2 * np.pi) / 500)
        smooth = np.convolve(pitch, np.ones(64) / 64, "valid")  # 4 ms
        assert abs(smooth).max() == pytest.approx(cents, rel=0.05)
        assert abs(hilbert(moved))[RATE // 2 : -RATE // 2].std() < 0.002


def test_steadiness_hears_vibrato(real, reference):
    sets = [real.waveforms, *(vibrato(real.waveforms, cents, RATE) for cents in (20, 50))]
    found = distances(sets, reference, "note steadiness")
    assert found[0] < 0.5 * found[1] < 0.4 * found[2], found


def test_grain_shortens_notes_and_unsettles_them(real, reference):
    sets = [heard(coded(real.waveforms, error)) for error in (0, 0.1, 0.3)]
    lengths = [wasserstein_distance(own["note length"], reference["note length"]) for own in sets]
    spreads = [own["note steadiness"].median() for own in sets]
    assert np.all(np.diff(lengths) > 0), lengths
    assert np.all(np.diff(spreads) > 0), spreads


def test_length_hears_notes_that_are_cut_to_half(real):
    whole = heard(real.waveforms)["note length"].median()
    halved = heard(render(pieces(4, seed=0), held=0.5).waveforms)["note length"].median()
    assert halved < 0.8 * whole


def test_rhythm_hears_pieces_that_are_shuffled(real):
    straight, mixed = (
        heard(w) for w in (real.waveforms, shuffled(real.waveforms[..., 1_500:], RATE, seed=0))
    )
    assert mixed["pulse clarity"].median() < straight["pulse clarity"].median()
    assert mixed["spread of intervals"].median() > straight["spread of intervals"].median()


def test_balance_hears_a_low_pass(real):
    sets = [real.waveforms, *(low_pass(real.waveforms, hertz, RATE) for hertz in (4_000, 2_000))]
    found = [sound_measures(waveforms, RATE) for waveforms in sets]
    tilts = [own["spectral tilt"].median() for own in found]
    highs = [own["level above 5 kHz"].median() for own in found]
    assert np.all(np.diff(tilts) < -0.3), tilts
    assert highs[1] < highs[0] - 15


def test_recall_hears_that_an_instrument_is_missing(real, other):
    tagger = load_tagger()
    there = hear(tagger, other.waveforms, RATE).embedding.numpy()
    own = hear(tagger, real.waveforms, RATE).embedding.numpy()
    whole, part = precision_recall(own, there), precision_recall(own[real.ensembles == "flute"], there)
    assert part[1] < whole[1] - 0.3
    assert part[0] > 0.8


def test_copies_hear_training_music_that_starts_later(real, other):
    training = render(pieces(6, seed=2))
    known = level_pictures(training.waveforms, RATE)
    with_copies = copied(real, training.waveforms, 8 * SPECTROGRAM.hop_length)
    near, honest = (
        nearest_pictures(level_pictures(own.waveforms, RATE), known) for own in (with_copies, other)
    )
    assert nearer_than_most(near, honest)[3::4].all()


def test_repeats_hear_duplicates(real):
    near, honest = (nearest_within(level_pictures(own.waveforms, RATE)) for own in (duplicated(real), real))
    found = nearer_than_most(near, honest)
    assert found[2::4].all()
    assert found[3::4].all()


def test_shuffling_keeps_every_sample_and_duplicates_keep_the_number(real):
    mixed = shuffled(real.waveforms, RATE, seed=0)
    assert torch.equal(mixed.sort().values, real.waveforms.sort().values)
    twice = duplicated(real)
    assert isinstance(twice, Clips)
    assert torch.equal(twice.waveforms[3], real.waveforms[2])
    assert twice.waveforms.shape == real.waveforms.shape
