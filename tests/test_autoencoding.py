"""From settings to a trained autoencoder and its codec: statistics, shapes, refusals, evaluation."""

import functools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import QUICK

from Conf import CPU
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import make_yardstick
from Libraries.Evaluation.VAEEvaluation import evaluate_vae, from_prior, reconstruct, walk
from Libraries.Plots.CurvePlots import plot_band_errors, plot_latents, plot_vae_metrics
from Libraries.Plots.SpectrogramPlots import plot_reconstructions
from Libraries.Runs.Autoencoding import (
    LatentCodec,
    find_vae,
    first_network,
    measure_latents,
    release_vae,
    train_vae,
    vae_recipe,
)
from Libraries.Runs.Run import RELEASED, named_run
from Libraries.Runs.Settings import changed
from Libraries.Sound.Audio import load_audio
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import CheckpointError
from Libraries.Training.RunLog import read_metrics


@pytest.fixture(scope="module")
def settings(chords):
    return changed(chords, {"vae.train": changed(chords.vae.train, QUICK)})


@pytest.fixture(scope="module")
def run_dir(settings):
    return train_vae(settings)


@pytest.fixture
def codec(run_dir):
    codec = LatentCodec.load(run_dir)
    codec.precision = "no"
    return codec


@pytest.fixture(scope="module")
def train_split(settings):
    return SpectrogramDataset(settings.dataset_dir, "train")


def clips(split, count=4):
    return split.__getitems__(list(range(count)))[0]


def test_run_records_what_it_was_made_of(settings, run_dir):
    conf = json.loads((run_dir / "conf.json").read_text())
    assert run_dir.parent == settings.models_dir / "vae"
    assert conf["settings"]["vae"]["network"]["kind"] == "residual"
    results = settings.results_dir / "vae" / run_dir.name
    assert sorted(path.name for path in results.iterdir()) == ["loss.png", "reconstructions-00000004.png"]
    columns = set().union(*read_metrics(run_dir / "metrics.csv"))
    assert {"loss", "val_reconstruction", "val_spectral", "val_kl"} <= columns


def test_a_released_run_makes_the_same_latents_and_is_found_by_name(
    settings, run_dir, train_split, tmp_path, monkeypatch
):
    release_vae(run_dir, tmp_path / "released" / "vae-test")
    files = {path.name for path in (tmp_path / "released" / "vae-test").iterdir()}
    assert files == {"conf.json", "metrics.csv", "ema-00000004.safetensors", "latent-00000004.pth"}
    assert str(settings.root) not in (tmp_path / "released" / "vae-test" / "conf.json").read_text()
    monkeypatch.setattr(sys.modules["Libraries.Runs.Run"], "RELEASED", tmp_path / "released")
    elsewhere = changed(settings, {"root": tmp_path, "vae.run": "vae-test"})
    assert find_vae(settings) == run_dir
    released = LatentCodec.open(elsewhere)
    x0 = clips(train_split)
    torch.testing.assert_close(released.encode(x0), LatentCodec.load(run_dir).encode(x0), atol=0.05, rtol=0)
    assert LatentCodec.open(elsewhere, requires=released.requires).run_dir == released.run_dir
    with pytest.raises(CheckpointError, match="there is no autoencoder in"):
        find_vae(changed(elsewhere, {"vae.run": "latest"}))


def test_training_begins_with_the_weights_of_another_run(settings, run_dir):
    start = changed(settings, {"vae.start": run_dir.name})
    begun, trained = first_network(start).vae.state_dict(), LatentCodec.load(run_dir).vae.state_dict()
    assert all(torch.equal(begun[name], trained[name]) for name in trained)
    with_critic = {"vae.loss.adversarial_weight": 0.1, "vae.loss.critic_channels": (8,)}
    critic = first_network(changed(start, with_critic)).critic  # one that the run has not
    assert critic is not None and all(value.isfinite().all() for value in critic.state_dict().values())


def test_a_frozen_encoder_keeps_the_latents_of_the_run_that_training_began_with(
    settings, run_dir, train_split
):
    own = changed(
        settings, {"vae.start": run_dir.name, "vae.freeze_encoder": True, "dataset.random_gain_db": 3.0}
    )
    before, after = LatentCodec.load(run_dir), LatentCodec.load(train_vae(own))
    x0 = clips(train_split)
    assert torch.equal(before.posterior(x0).mu, after.posterior(x0).mu)
    z = before.encode(x0)
    assert not torch.equal(before.decode(z), after.decode(z))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vae.network.latent_channels": 2}, "latent_channels is 4 there and 2 here"),
        ({"spectrogram.db_range": 60.0}, "db_range is 80.0 there and 60.0 here"),
    ],
)
def test_a_run_that_does_not_fit_cannot_be_begun_with(settings, run_dir, change, sentence):
    with pytest.raises(ValueError, match=f"{run_dir.name}, with which vae.start begins, .*{sentence}"):
        first_network(changed(settings, {"vae.start": run_dir.name, **change}))


def test_the_released_autoencoder_fits_the_preset_of_the_demo(tmp_path):
    conf = replace(CPU, root=tmp_path)
    assert named_run(conf.models_dir, "vae", conf.vae.start).parent == RELEASED
    vae = first_network(conf).vae.eval()
    clip = load_audio(RELEASED.parents[1] / "Data" / "music_file.wav", CPU.spectrogram.sample_rate)
    x0 = Spectrogram(CPU.spectrogram).encode(clip[None, :, : CPU.spectrogram.clip_samples])
    with torch.no_grad():
        error = (vae.decode(vae.encode(x0).mu) - x0).abs().mean()  # 1 is 40 dB
    assert error < 0.08


def test_latents_of_the_training_split_are_standard(codec, train_split):
    z = codec.encode(clips(train_split, len(train_split)))
    assert z.mean((0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(codec.shape[0]), atol=1e-2)


def test_decode_undoes_the_normalisation(codec, train_split):
    x0 = clips(train_split)
    with torch.no_grad():
        expected = codec.vae.decode(codec.vae.encode(x0).mu)
    assert torch.allclose(codec.decode(codec.encode(x0)), expected, atol=1e-4)


def test_codec_does_not_depend_on_the_batch(codec, train_split):
    x0 = clips(train_split, 20)  # more than the codec takes at a time
    assert torch.allclose(codec.encode(x0)[19:], codec.encode(x0[19:]), atol=1e-4)


def test_codec_says_its_shape_and_what_a_latent_position_covers(settings, codec):
    assert codec.shape == (4, 12, 16) and codec.compression == 16 and codec.stride == (8, 8)
    _, rows, frames = settings.spectrogram.shape
    assert (codec.shape[1] * codec.stride[0], codec.shape[2] * codec.stride[1]) == (rows, frames)
    with pytest.raises(ValueError, match=r"z has shape .*; expected \(B, 4, 12, 16\)"):
        codec.decode(torch.zeros(1, 4, 12, 17))
    with pytest.raises(ValueError, match=r"x0 has shape .*; expected \(B, 1, 96, 128\)"):
        codec.encode(torch.zeros(1, 1, 96, 64))


def test_measured_statistics_are_those_of_all_means_at_once(settings, train_split):
    vae = vae_recipe(settings).network().vae.eval()
    mean, std = measure_latents(vae, train_split)
    with torch.no_grad():
        mu = vae.encode(clips(train_split, len(train_split))).mu
    assert torch.allclose(mean, mu.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(std, mu.std((0, 2, 3), correction=0), atol=1e-5)


def test_a_run_without_statistics_says_so(settings, run_dir, tmp_path):
    for name in ("conf.json", "ema-00000004.pth"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"no latent-00000004.pth: its latents were never measured"):
        LatentCodec.load(tmp_path)


def test_an_interrupted_run_goes_on_to_the_same_weights(settings, run_dir, tmp_path, goes_on_to_the_same):
    again = tmp_path / "Models" / "vae" / "00000-again"
    assert goes_on_to_the_same(
        functools.partial(train_vae, settings), run_dir, again, "Runs.Autoencoding.save_vae_preview"
    )


def test_resuming_with_other_settings_is_refused(settings, run_dir):
    for change, sentence in (
        ({"vae.loss.kl_weight": 0.5}, r"kl_weight is 0\.\d+ there and 0.5 here"),
        ({"vae.network.latent_channels": 7}, "latent_channels is 4 there and 7 here"),
        ({"vae.train.batch_size": 5}, "batch_size is 4 there and 5 here"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train_vae(changed(settings, change), run_dir)


def test_a_folder_that_is_no_run_is_refused(settings, tmp_path):
    for use in (LatentCodec.load, lambda folder: train_vae(settings, folder)):
        with pytest.raises(CheckpointError, match=r"name a run's own folder"):
            use(tmp_path)


def test_a_walk_starts_and_ends_at_its_clips(codec, train_split):
    first, last = clips(train_split, 2)
    steps = walk(codec, first, last, count=5)
    ends = reconstruct(codec, torch.stack([first, last]))
    assert len(steps) == 5 and torch.allclose(steps[[0, -1]], ends, atol=1e-3)


def test_random_latents_depend_on_their_seed_alone(codec):
    assert torch.allclose(from_prior(codec, [3, 4])[1:], from_prior(codec, [4]), atol=1e-4)


def test_evaluation_writes_sound_and_pictures(settings, codec, train_split, tmp_path, few_draws):
    test = SpectrogramDataset(settings.dataset_dir, "test")
    yardstick = make_yardstick(codec.to_audio, train_split, test, 4)
    metrics = evaluate_vae(codec, yardstick, test, tmp_path)
    assert len(list((tmp_path / "audio").glob("*.wav"))) == 2 * metrics["clips"] > 0
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {"reconstructions", "latents", "bands", "walk", "prior", "measures"}
    checks = metrics.pop("checks")
    assert len(checks) == 4 and all(isinstance(sentence, str) for sentence in checks)
    measured = {name: row for name, row in metrics.items() if isinstance(row, dict)}
    assert {"kernel distance", "note length", "log-mel distance"} <= measured.keys()
    assert all(np.isfinite(value) for name, value in metrics.items() if name not in measured)
    assert {"log_spectral_distance", "encode_seconds"} <= metrics.keys()


def test_originals_and_reconstructions_share_colours_and_differences_are_symmetric(settings, train_split):
    x0 = clips(train_split, 3)
    figure = plot_reconstructions(x0, x0 + 0.1 * torch.randn(x0.shape), settings.spectrogram, "title")
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 9 and len({image.get_clim() for image in images[:6]}) == 1
    low, high = images[8].get_clim()
    assert low == -high and {image.get_clim() for image in images[6:]} == {(low, high)}
    axes = [axis for axis in figure.axes if axis.images]
    assert all("(s)" in axis.get_xlabel() and "Hz" in axis.get_ylabel() for axis in axes)


def test_curves_of_an_autoencoder_are_labelled():
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "val_loss": 0.9, "val_reconstruction": 0.5, "val_kl": 9.0}]
    z = torch.randn(3, 4, 5, 6)
    figures = (
        plot_vae_metrics(rows, "run"),
        plot_latents(z, torch.rand(4), "latents"),
        plot_band_errors([0, 100, 200], [0.1, 0.2], "bands"),
    )
    for figure in figures:
        assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in figure.axes)
