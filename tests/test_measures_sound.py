"""Sound, rhythm and copies: each measure on signals whose value is known."""

import numpy as np
import pytest
import torch

from Libraries.Measures.Copies import (
    level_pictures,
    nearer_than_most,
    nearest_embeddings,
    nearest_pictures,
    nearest_within,
    shifted_distances,
    smallest,
)
from Libraries.Measures.Notes import HOP, SAMPLE_RATE, Notes
from Libraries.Measures.Rhythm import event_times, interval_spread, pulse_clarity
from Libraries.Measures.Sound import level_of_highs, silent_fraction, sound_measures, spectral_tilt

RATE = 16_000


def noise(clips=2, seconds=2.0, slope=0.0, seed=0):
    """Noise (clips, 1, L) whose power falls by `slope` dB an octave."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(clips, 1, int(seconds * RATE), generator=generator))
    frequency = torch.arange(spectrum.shape[-1]).clamp(min=1) / spectrum.shape[-1]
    return 0.02 * torch.fft.irfft(spectrum * frequency ** (slope / 20 / np.log10(2)))


def melodies(clips, seed):
    """Eight random tones a second, with their attacks: (clips, 1, 32000)."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(2 * RATE) / RATE
    pitches = 440 * 2 ** (rng.integers(-12, 13, (clips, 16)) / 12)
    pitch = pitches[:, (seconds * 8).astype(int)]
    wave = np.sin(2 * np.pi * pitch * seconds) * np.exp(-6 * (seconds % 0.125)) * 0.3
    return torch.from_numpy(wave).float()[:, None]


@pytest.mark.parametrize("slope", [0.0, -3.0, -6.0])
def test_tilt_is_the_fall_of_the_power_density_in_decibels_an_octave(slope):
    assert spectral_tilt(noise(slope=slope), RATE).numpy() == pytest.approx(slope, abs=0.3)


def test_highs_are_measured_against_the_whole():
    assert level_of_highs(noise(), RATE).numpy() == pytest.approx(10 * np.log10(3 / 8), abs=0.2)
    assert level_of_highs(noise(slope=-12.0), RATE).max() < -25


def test_loudness_clipping_silence_and_dc_are_those_planted():
    seconds = torch.arange(2 * RATE) / RATE
    wave = 0.5 * torch.sin(2 * torch.pi * 250 * seconds)
    wave[: RATE // 2] = 0
    wave[-320:] = 1.0
    found = sound_measures(torch.stack([wave, 0.1 + 0 * wave])[:, None], RATE)
    assert found["clipping"].values == pytest.approx([1, 0])
    assert found["silence"].values == pytest.approx([25, 0], abs=1.1)
    assert found["DC"].values[1] == pytest.approx(10)
    assert found["loudness"].values[1] == pytest.approx(-20)


def test_silence_has_no_balance_and_breaks_nothing():
    found = sound_measures(torch.zeros(2, 1, RATE), RATE)
    assert len(found["spectral tilt"].values) == 0
    assert found["silence"].values.tolist() == [100, 100]
    assert silent_fraction(torch.zeros(1, 1, RATE), RATE).tolist() == [1]


def test_at_low_sample_rates_there_are_no_highs():
    assert "level above 5 kHz" not in sound_measures(noise(), 8_000)


def onsets(times, seconds=2.0):
    strength = np.zeros(int(seconds * SAMPLE_RATE / HOP))
    strength[np.round(np.asarray(times) * SAMPLE_RATE / HOP).astype(int)] = 1
    return strength


def test_an_even_pulse_is_clearer_than_events_anywhere():
    even = np.arange(0.1, 1.9, 0.25)
    rng = np.random.default_rng(0)
    anywhere = [np.sort(rng.uniform(0.05, 1.95, len(even))) for _ in range(20)]
    clarity = pulse_clarity(even, onsets(even))
    assert clarity > 0.5
    assert clarity > 1.2 * np.mean([pulse_clarity(times, onsets(times)) for times in anywhere])
    assert np.isnan(pulse_clarity(even[:3], onsets(even[:3])))


def test_spread_of_intervals_is_zero_for_a_clockwork_and_rises_with_jitter():
    even = np.arange(0.1, 1.9, 0.25)
    rng = np.random.default_rng(0)
    spreads = [interval_spread(even + rng.normal(0, jitter, len(even))) for jitter in (0, 0.01, 0.03, 0.06)]
    assert spreads[0] == pytest.approx(0, abs=1e-9)
    assert np.all(np.diff(spreads) > 0)
    assert interval_spread(np.cumsum([0.2, 0.4] * 5)) == pytest.approx(np.log(2) / 2, rel=0.02)


def test_the_notes_of_a_chord_are_one_event_and_what_fades_in_is_none():
    start = np.array([0.0, 0.01, 0.02, 0.5, 1.0])
    struck = np.array([True, True, True, False, True])
    rest = [np.zeros(5)] * 2
    notes = Notes(np.zeros(5, int), np.full(5, 60), start, np.full(5, 0.1), struck, *rest, 1, 2.0)
    assert event_times(notes, 0).tolist() == [0.0, 1.0]


def test_distance_at_the_best_shift_is_that_of_trying_them_all():
    a, b = level_pictures(melodies(3, 0), RATE), level_pictures(melodies(4, 1), RATE)
    T = a.shape[2]

    def tried(x, y):
        pairs = (
            (x[:, max(0, s) : T + min(0, s)], y[:, max(0, -s) : T + min(0, -s)])
            for s in range(-T // 2 + 1, T // 2)
        )
        return min((p - q).square().mean().sqrt().item() for p, q in pairs)

    expected = [[tried(x, y) for y in b] for x in a]
    np.testing.assert_allclose(shifted_distances(a, b).numpy(), expected, atol=1e-3)


def test_copies_that_start_eight_frames_later_are_found_by_the_smallest_distances():
    training, other = melodies(40, 0), melodies(20, 1)
    shift = 8 * 256  # samples: eight frames
    planted = other.clone()
    planted[:3, :, shift:] = training[10:13, :, :-shift]
    known = level_pictures(training, RATE)
    honest, with_copies = (nearest_pictures(level_pictures(w, RATE), known) for w in (other, planted))
    assert max(smallest(with_copies, 3)) < 0.5 * min(smallest(honest, 1))
    assert nearer_than_most(with_copies, honest)[:3].all()
    assert np.median(with_copies) == pytest.approx(np.median(honest), rel=0.1)  # the median does not see them


def test_a_repeated_clip_is_near_to_its_own_set():
    waves = melodies(12, 0)
    waves[5] = waves[9]
    near = nearest_within(level_pictures(waves, RATE))
    assert set(np.argsort(near)[:2]) == {5, 9}
    assert near[5] < 1e-3 < 10 * near[0]


def test_nearest_embedding_is_the_least_distance():
    rows = np.random.default_rng(0).normal(size=(5, 4))
    assert nearest_embeddings(rows[:2], rows).tolist() == [0, 0]
    assert nearest_embeddings(rows[:1] + np.array([3, 0, 0, 0]), rows[:1]) == pytest.approx(3)


def test_pictures_of_other_lengths_and_silence():
    pictures = level_pictures(torch.zeros(1, 1, RATE), RATE)
    assert (pictures == -1).all()
    with pytest.raises(ValueError, match="must be equal"):
        shifted_distances(pictures, pictures[:, :, :-1])


def test_of_two_channels_the_mean_is_heard_and_their_width_is_measured():
    left, right = noise(seed=0), noise(seed=1)
    found = sound_measures(torch.cat([left, right], dim=1), RATE)
    mono = sound_measures((left + right) / 2, RATE)
    assert found.keys() - mono.keys() == {"stereo width", "channel correlation"}
    for name, values in mono.items():
        np.testing.assert_allclose(found[name].values, values.values)
    assert np.abs(found["stereo width"].values).max() < 0.5
    assert np.abs(found["channel correlation"].values).max() < 0.05
