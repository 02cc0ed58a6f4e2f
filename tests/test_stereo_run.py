"""Stereo the whole way: dataset, autoencoder, diffusion, edits, restoration, wav, measures, pictures."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import QUICK, randomise

from Conf import SMOKE
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset, build_dataset
from Libraries.Diffusion import NoiseSchedule
from Libraries.Evaluation.Restoration import low_pass, restore
from Libraries.Evaluation.Samples import continue_clip, evaluate, spread_clips
from Libraries.Runs.Autoencoding import train_vae
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.Recipe import require_dataset
from Libraries.Runs.Settings import changed
from Libraries.Sampling.Editing import mask_outside
from Libraries.Sound.Audio import load_audio
from Libraries.Sound.LowResolution import LowResolution
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Sound.Stereo import channel_correlation, stereo_width
from Libraries.Upsampler import Upsampler, make_upsampler_network

RATE = SMOKE.spectrogram.sample_rate


def stereo_piece(rng: np.random.Generator, seconds: int = 7) -> np.ndarray:
    """Two voices of plucked tones, panned to either side, in noise of two unrelated channels: (L, 2)."""
    time = np.arange(seconds * RATE) / RATE
    pitches = rng.uniform(100, 900, (2 * seconds, 2))[(time * 2).astype(int)]
    voices = np.sin(2 * np.pi * pitches * time[:, None]) * np.exp(-4 * (time % 0.5))[:, None]
    return 0.3 * voices @ np.array([[0.9, 0.4], [0.3, 0.95]]) + 0.01 * rng.standard_normal((len(time), 2))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """SMOKE with two channels, its dataset built from a folder of made stereo music."""
    root, rng = tmp_path_factory.mktemp("root"), np.random.default_rng(0)
    (root / "music").mkdir()
    for number in range(6):
        soundfile.write(root / "music" / f"piece{number}.wav", stereo_piece(rng), RATE)
    settings = changed(
        SMOKE,
        {
            "root": root, "music_dir": root / "music", "spectrogram.channels": 2,
            "evaluation.num_samples": 4, "train": changed(SMOKE.train, QUICK),
            "vae.train": changed(SMOKE.vae.train, QUICK),
        },
    )  # fmt: skip
    build_dataset(settings.music_dir, settings.dataset_dir, settings.spectrogram, settings.dataset)
    return settings


@pytest.fixture(scope="module")
def model(settings):
    train_vae(settings)
    return DiffusionRun.load(train_diffusion(settings))


def test_generated_clips_are_stereo_and_neither_mono_nor_out_of_phase(settings, model, tmp_path, few_draws):
    train, test = (SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test"))
    assert train.shape == (2, 96, 128)
    figures = evaluate(model, train, test, settings, tmp_path)
    paths = sorted((tmp_path / "audio").glob("*.wav"))
    clips = torch.stack([load_audio(path, RATE, mono=False) for path in paths])
    assert clips.shape == (4, 2, settings.spectrogram.kept_samples)
    width, correlation = stereo_width(clips), channel_correlation(clips)
    assert width.min() > -30 and width.max() < 3, width
    assert correlation.min() > -0.7 and correlation.max() < 0.99, correlation
    assert figures["stereo width"]["generated"] == pytest.approx(width.median().item(), abs=0.5)
    assert figures["channel correlation"]["reference"] is not None
    for name in ("samples.png", "trajectory.png", "measures.png"):
        assert (tmp_path / name).stat().st_size > 5000


def test_edits_keep_both_channels_where_they_are_told_to(settings, model):
    test = SpectrogramDataset(settings.dataset_dir, "test")
    clip, config = spread_clips(test, 1).to(model.device), settings.spectrogram
    mask = mask_outside(config.shape, frames=(40, 80))
    editor = model.editor(settings.sampler, resamplings=0)
    edited = editor.inpaint(clip, mask, [0])
    assert torch.equal(edited[:, mask], clip[:, mask]) and not torch.equal(edited, clip)
    waveform, seams = continue_clip(model, editor, clip, settings.edit)
    assert len(waveform) == 2 and seams.seams > 0


def test_a_restored_file_keeps_both_channels_below_the_cut(settings):
    config, diffusion = settings.spectrogram, settings.diffusion
    gain = Gain(torch.tensor([-50.0]), torch.tensor([40.0]))
    network = randomise(make_upsampler_network(settings.upsampler.network, diffusion, config), 0.01)
    upsampler = Upsampler(
        network, NoiseSchedule(diffusion), LowResolution(settings.upsampler.low_resolution, config),
        settings.upsampler.conditioning, settings.upsampler.sampler, Spectrogram(config, gain),
        torch.device("cpu"),
    )  # fmt: skip
    music = torch.from_numpy(stereo_piece(np.random.default_rng(1), 3).T).float()
    lost = low_pass(music, 4_000.0, RATE)
    restored = restore(upsampler, lost, cut_frequency=3_800.0)
    assert restored.waveform.shape == lost.shape
    hertz = torch.fft.rfftfreq(lost.shape[1], 1 / RATE)
    below = hertz < restored.cut_frequency
    error = torch.fft.rfft(restored.waveform - lost)[:, below].abs()
    assert (error.amax(1) < 1e-3 * torch.fft.rfft(lost)[:, below].abs().amax(1)).all()
    with pytest.raises(ValueError, match=r"expected \(2, L\)"):
        restore(upsampler, lost[:1])


def test_a_stereo_dataset_is_refused_for_mono_in_a_sentence(settings):
    with pytest.raises(ValueError, match="channels is 2 there and 1 here"):
        require_dataset(changed(settings, {"spectrogram.channels": 1}))
