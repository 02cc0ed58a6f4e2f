"""Reconstruction metrics in closed form, the Frechet distance between known Gaussians, the round trip."""

import math
from dataclasses import replace

import pytest
import torch

from Conf import BASE
from Libraries.Sound.Metrics import (
    frechet_distance,
    log_mel_statistics,
    log_spectral_distance,
    mean_interval,
    mel_error,
    round_trip,
    round_trip_table,
    spectral_convergence,
)
from Libraries.Sound.Spectrogram import Spectrogram

SETTINGS = replace(
    BASE.spectrogram,
    phase="pghi",
    sample_rate=16_000,
    clip_seconds=1.0,
    n_fft=512,
    win_length=512,
    hop_length=128,
    n_bands=64,
    narrow_frequency=1_000.0,
    max_frequency=7_500.0,
    band_inverse="pinv",
    griffin_lim_iterations=5,
)
BAND = 16_000, 7_500.0  # Hz: sample rate, highest frequency compared


def noise_bursts(clips: int = 2, seed: int = 0) -> torch.Tensor:
    """Decaying noise, four beats a clip: (clips, 1, 16000)."""
    noise = torch.randn(clips, 1, 16_000, generator=torch.Generator().manual_seed(seed))
    return 0.1 * noise * torch.exp(-8 * (torch.arange(16_000) % 4_000) / 4_000)


def test_equal_waveforms_have_no_error():
    wave = noise_bursts()
    for error in (
        spectral_convergence(wave, wave),
        log_spectral_distance(wave, wave, *BAND),
        mel_error(wave, wave, *BAND),
    ):
        assert error.tolist() == [0, 0]


def test_level_error_is_measured_in_decibels():
    wave = noise_bursts()
    halved = torch.full((2,), 6.0206)
    torch.testing.assert_close(spectral_convergence(wave, wave / 2), torch.full((2,), 0.5))
    torch.testing.assert_close(log_spectral_distance(wave, wave / 2, *BAND), halved, atol=0.2, rtol=0)
    torch.testing.assert_close(mel_error(wave, wave / 2, *BAND), halved, atol=0.01, rtol=0)


def test_silence_is_all_wrong_and_flipped_sign_is_not_wrong():
    wave = noise_bursts()
    torch.testing.assert_close(spectral_convergence(wave, torch.zeros_like(wave)), torch.ones(2))
    assert spectral_convergence(wave, -wave).max() == 0
    assert mel_error(wave, torch.zeros_like(wave), *BAND).max() < 80


def test_silent_reference_gives_no_nan():
    silence = torch.zeros(1, 1, 16_000)
    assert spectral_convergence(silence, silence).item() == 0
    assert log_spectral_distance(silence, silence, *BAND).item() == 0
    assert log_mel_statistics(silence, 16_000).isfinite().all()


def test_errors_above_the_compared_band_do_not_count():
    wave = noise_bursts()
    whistle = 1e-2 * torch.sin(2 * torch.pi * 7_000 * torch.arange(16_000) / 16_000)
    for error in (mel_error, log_spectral_distance):
        above, below = error(wave, wave + whistle, *BAND), error(wave, wave + whistle, 16_000, 5_000.0)
        assert above.min() > 3 * below.max()


def test_errors_below_the_compared_band_do_not_count():
    wave = noise_bursts()
    hum = 1e-2 * torch.sin(2 * torch.pi * 1_000 * torch.arange(16_000) / 16_000)
    whole = log_spectral_distance(wave, wave + hum, *BAND)
    upper = log_spectral_distance(wave, wave + hum, *BAND, min_frequency=3_000.0)
    assert whole.min() > 3 * upper.max()


def test_frechet_distance_of_a_set_to_itself_is_zero():
    rows = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)
    singular = torch.cat([rows, rows], dim=1)  # rank 16 of 32
    assert frechet_distance(singular, singular) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_between_gaussians_has_its_closed_form():
    rows = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = (rows - rows.mean(0)) @ torch.linalg.inv(
        torch.linalg.cholesky(torch.cov(rows.T))
    ).T  # exactly N(0, 1)
    shift, spread = torch.tensor([1.0, 0, 2, 0]).double(), torch.tensor([1.0, 2, 3, 0.5]).double()
    expected = shift.square().sum() + (spread - 1).square().sum()  # commuting covariances
    assert frechet_distance(rows, rows * spread + shift) == pytest.approx(expected.item(), rel=1e-6)


def test_frechet_distance_of_covariances_that_do_not_commute():
    rows = torch.randn(5_000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mix = torch.tensor([[1.0, 0.5, 0], [0, 2, -0.3], [0.7, 0, 1]]).double()
    other = rows.flip(0) @ mix.T + 1
    cov_a, cov_b = torch.cov(rows.T), torch.cov(other.T)
    trace_root = torch.linalg.eigvals(cov_a @ cov_b).real.sqrt().sum()
    expected = (rows.mean(0) - other.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_root
    assert frechet_distance(rows, other) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(other, rows) == pytest.approx(expected.item(), rel=1e-9)


def test_statistics_ignore_loudness_and_notice_timbre_and_timing():
    wave = noise_bursts(8)
    rows = log_mel_statistics(wave, 16_000)
    assert rows.shape == (8 * 31, 64)
    same_source = frechet_distance(rows, log_mel_statistics(noise_bursts(8, seed=1), 16_000))
    assert frechet_distance(rows, log_mel_statistics(0.1 * wave, 16_000)) < 1e-6
    dull = wave + 0.9 * wave.roll(1, dims=-1)
    assert frechet_distance(rows, log_mel_statistics(dull, 16_000)) > 4 * same_source
    shuffled = wave.unflatten(-1, (20, 800))[
        :, :, torch.randperm(20, generator=torch.Generator().manual_seed(0))
    ]
    assert frechet_distance(rows, log_mel_statistics(shuffled.flatten(2), 16_000)) > 4 * same_source


def test_half_of_the_statistics_are_the_changes_of_the_other_half():
    wave = noise_bursts(2)
    rows = log_mel_statistics(wave, 16_000).unflatten(0, (2, 31))
    level, change = rows.chunk(2, dim=-1)
    torch.testing.assert_close(change[:, 1:], level.diff(dim=1).abs())
    assert (change.flatten(0, 1).mean(0) > 0).all()


def test_wrong_shapes_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="they must be equal"):
        spectral_convergence(torch.zeros(1, 1, 8_000), torch.zeros(1, 1, 8_001))
    with pytest.raises(ValueError, match=r"expected \(B, 1, L\) with at least 1025 samples"):
        log_mel_statistics(torch.zeros(1, 1, 500), 16_000)
    with pytest.raises(ValueError, match=r"expected \(N, D\) and \(M, D\)"):
        frechet_distance(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least two rows"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(5, 2))


def test_the_interval_of_a_mean_is_students_from_two_values_on():
    assert mean_interval([5.0]) == (5.0, math.inf)
    mean, half = mean_interval([1.0, 3.0])
    assert mean == 2 and half == pytest.approx(12.706, abs=1e-3)  # t of one degree of freedom times 2/2
    assert mean_interval([1.0, 2.0, 3.0], 0.9)[1] == pytest.approx(2.92 / math.sqrt(3), abs=1e-3)


def test_round_trip_of_an_exact_representation_loses_nothing():
    config = replace(SETTINGS, representation="mdct", max_frequency=8_000.0, compression=0.5)
    row = round_trip(Spectrogram(config), noise_bursts(3), batch_size=2)
    assert row.tensor == config.shape == (1, 128, 96)
    assert row.band_khz == pytest.approx(7.97, abs=0.01)
    assert row.spectral_convergence < 1e-4
    assert row.mel_error < 1e-2
    assert row.frechet_distance < 1e-4
    assert "| exact | 1x128x96 | 8.0 | 0.000 |" in round_trip_table({"exact": row})


def test_round_trip_gets_worse_with_noise_and_repeats():
    spectrogram, wave = Spectrogram(SETTINGS), noise_bursts(3)
    rows = [round_trip(spectrogram, wave, noise=noise) for noise in (0.0, 0.03, 0.1)]
    assert rows[0].mel_error < rows[1].mel_error < rows[2].mel_error
    again = round_trip(spectrogram, wave, noise=0.03, batch_size=1)
    assert again.mel_error == pytest.approx(rows[1].mel_error, rel=1e-3)
