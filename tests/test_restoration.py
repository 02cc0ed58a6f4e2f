"""Lost bands: what is kept of a file, what is made, where it is cut, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from conftest import QUICK

from Conf import SMOKE
from Libraries.Evaluation.Restoration import cross_over, find_cut, restore, restore_file, rows_below
from Libraries.Runs.Settings import changed
from Libraries.Runs.Upsampling import load_upsampler, train_upsampler
from Libraries.Sampling.Stopping import Stopped, Stops
from Libraries.Sound.Audio import AudioError

RATE = SMOKE.spectrogram.sample_rate


@pytest.fixture(scope="module")
def upsampler(chords):
    train = changed(chords.upsampler.train, QUICK)
    return load_upsampler(train_upsampler(changed(chords, {"upsampler.train": train})))


@pytest.fixture(scope="module")
def music():
    """Five seconds with something at every frequency: (1, L)."""
    noise = np.random.default_rng(0).normal(size=(1, 5 * RATE)) * (
        1 - 0.5 * np.sin(np.arange(5 * RATE) / 3000)
    )
    return torch.from_numpy(0.1 * noise).float()


def low_passed(music, hertz):
    spectrum = torch.fft.rfft(music)
    spectrum[:, torch.fft.rfftfreq(music.shape[1], 1 / RATE) > hertz] = 0
    return torch.fft.irfft(spectrum, n=music.shape[1])


def band(waveform, low, high):
    hertz = torch.fft.rfftfreq(waveform.shape[1], 1 / RATE)
    return torch.fft.rfft(waveform)[:, (hertz >= low) & (hertz < high)].abs()


def test_below_the_cut_the_result_is_the_file_itself(upsampler, music):
    lost = low_passed(music, 3_000)
    result = restore(upsampler, lost)
    below = 0, result.cut_frequency
    assert result.waveform.shape == lost.shape and 2_500 < result.cut_frequency < 3_000
    assert (band(result.waveform - lost, *below)).max() < 1e-3 * band(lost, *below).max()
    assert band(result.waveform, 3_500, 6_000).mean() > 100 * band(lost, 3_500, 6_000).mean()
    assert torch.equal(result.inpainted[:, :, : result.rows], result.lost[:, :, : result.rows])
    assert (result.lost[:, :, result.rows :] == -1).all()


def test_a_file_of_a_low_rate_of_any_length_is_restored(upsampler, music, tmp_path):
    for samples in (900, RATE, 5 * RATE):
        path = tmp_path / f"{samples}.wav"
        stereo = np.stack([soxr.resample(music[0, :samples].numpy(), RATE, 8_000)] * 2, axis=1)
        soundfile.write(path, stereo, 8_000)
        result = restore_file(upsampler, path)
        assert abs(result.waveform.shape[1] - samples) <= 2 and result.waveform.isfinite().all()
        assert result.cut_frequency < 3_600


def test_a_seed_makes_the_same_band_again(upsampler, music):
    lost = low_passed(music, 3_000)
    first, again, other = (restore(upsampler, lost, seed=seed).waveform for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_restoration_can_be_stopped(upsampler, music):
    stops = Stops()
    with stops.stoppable("me") as callback, pytest.raises(Stopped):
        stops.stop("me")
        restore(upsampler, low_passed(music, 3_000), callback=callback)


@pytest.mark.parametrize("hertz", [1_000, 3_000, 4_000])
def test_the_cut_is_found_to_a_few_rows(upsampler, music, hertz):
    config = upsampler.spectrogram.config
    found = find_cut(upsampler, low_passed(music, hertz))
    rows = rows_below(config, hertz)
    assert config.row_frequencies[rows - 3] <= found <= config.row_frequencies[rows + 1]
    assert find_cut(upsampler, music) == config.kept_frequency
    assert find_cut(upsampler, torch.zeros(1, RATE)) <= config.row_frequencies[0]


def test_shares_of_the_crossover_add_up_to_one(music):
    assert torch.allclose(cross_over(music, music, 3_000, RATE), music, atol=1e-6)
    only_high = cross_over(torch.zeros_like(music), music, 3_000, RATE)
    assert band(only_high, 0, 2_850).max() < 1e-3 < band(only_high, 3_000, 8_000).mean()


def test_what_cannot_be_restored_is_refused_in_a_sentence(upsampler, music, tmp_path):
    with pytest.raises(ValueError, match="nothing is missing: the music reaches 6000 Hz"):
        restore(upsampler, music)
    with pytest.raises(ValueError, match="too much is missing: the music ends at 300 Hz, below 500 Hz"):
        restore(upsampler, music, cut_frequency=300)
    with pytest.raises(ValueError, match=r"shape \(2, 80000\); expected \(1, L\)"):
        restore(upsampler, music.expand(2, -1))
    with pytest.raises(ValueError, match="restored_fraction=0"):
        own = load_upsampler(upsampler.run_dir)
        own.config = replace(own.config, restored_fraction=0.0)
        restore(own, low_passed(music, 3_000))
    (tmp_path / "none.wav").touch()
    with pytest.raises(AudioError, match="is empty"):
        restore_file(upsampler, tmp_path / "none.wav")
