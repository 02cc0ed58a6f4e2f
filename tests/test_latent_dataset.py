"""A dataset of latents: built and read as any other, and training on it is training on encoded clips."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import QUICK
from test_scale import tree

from Conf import in_space
from Libraries.Dataset.Build import build, build_part
from Libraries.Dataset.Manifest import SPLITS, DatasetError, load_manifest
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Runs.Autoencoding import LatentCodec, train_vae
from Libraries.Runs.DiffusionTraining import diffusion_loaders, diffusion_recipe, train_diffusion
from Libraries.Runs.LatentDataset import build_latents, latent_plan
from Libraries.Runs.Run import Run
from Libraries.Runs.Settings import changed

PLAIN = {  # clips as they are stored
    f"dataset.{name}": value
    for name, value in {
        "random_gain_db": 0.0,
        "random_polarity": False,
        "time_shift": False,
        "mix": 0.0,
    }.items()
}


@pytest.fixture(scope="module")
def settings(chords):
    train, vae_train = (changed(config, QUICK) for config in (chords.train, chords.vae.train))
    settings = changed(in_space(chords, "latent"), {"train": train, "vae.train": vae_train, **PLAIN})
    train_vae(settings)
    return replace(settings, encode_once=True)


@pytest.fixture(scope="module")
def codec(settings):
    return LatentCodec.open(settings)


@pytest.fixture(scope="module")
def latents(settings, codec):
    return build_latents(settings, codec).folder


def test_every_row_is_the_latent_of_its_clip(settings, codec, latents):
    for split in SPLITS:
        clips, encoded = (SpectrogramDataset(folder, split) for folder in (settings.dataset_dir, latents))
        assert list(clips.sources) == list(encoded.sources) and torch.equal(clips.labels, encoded.labels)
        for i in range(0, len(clips), 7):
            assert clips.gain(i) == encoded.gain(i)
            torch.testing.assert_close(
                encoded[i][0], codec.encode(clips[i][0][None])[0], atol=2e-3, rtol=2e-3
            )
    theirs, ours = load_manifest(settings.dataset_dir), load_manifest(latents)
    assert ours["shape"] == [theirs["shape"][0], *codec.shape] and ours["gain"] == theirs["gain"]
    assert [clip for clip in ours["clips"]] == theirs["clips"]


def test_parts_and_many_files_make_the_same_latents(settings, codec, latents, tmp_path):
    plan = latent_plan(settings, codec)
    plans = [replace(plan, folder=tmp_path / "parts")]
    plans.append(replace(plan, folder=tmp_path / "many", config=replace(plan.config, one_file_clips=0)))
    assert sum(build_part(plans[0], part, 2) for part in (1, 2)) == len(plan.files)
    for one in plans:
        build(one)
    assert tree(tmp_path / "parts") == tree(latents)
    every = [SpectrogramDataset(folder, "train") for folder in (latents, tmp_path / "many")]
    assert all(torch.equal(every[0][i][0], every[1][i][0]) for i in range(len(every[0])))


def test_latents_of_other_weights_are_other_latents(settings, codec, latents, monkeypatch):
    plan = latent_plan(settings, codec)
    assert build(plan).already_built
    other = codec.requires | {"weights": "f" * 64}
    monkeypatch.setattr(LatentCodec, "requires", property(lambda _: other))
    assert latent_plan(settings, codec).folder != latents
    with pytest.raises(DatasetError, match=r"weights is '\w+' there and 'ffff.* here"):
        build(replace(latent_plan(settings, codec), folder=latents))


def test_training_on_latents_has_the_loss_of_encoding_in_every_step(settings, codec):
    """But for the rounding to float16."""
    losses = []
    for one in (settings, replace(settings, encode_once=False)):
        recipe = diffusion_recipe(one, codec)
        network = recipe.network().eval()
        train, validation = diffusion_loaders(one, codec, batch_size=4, seed=3)
        batches = [batch for batch, _ in zip(train, range(3), strict=False)]
        with torch.no_grad():
            each = [recipe.loss(network, batch, torch.arange(4)) for batch in batches]
            losses.append(
                torch.cat([*each, recipe.loss(network, next(iter(validation)), torch.arange(4))[:4]])
            )
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-3)


def test_a_run_on_latents_encodes_nothing_and_goes_on_with_those_alone(settings, codec, latents, monkeypatch):
    monkeypatch.setattr(LatentCodec, "encode", lambda *_: pytest.fail("encoded again"))
    run = train_diffusion(settings)
    assert len(Run(run).conf["dataset"]["latents"]) == 64
    assert train_diffusion(settings, run) == run
    with pytest.raises(ValueError, match="was trained on another dataset"):
        train_diffusion(replace(settings, encode_once=False), run)


def test_latents_are_not_augmented_and_spectrograms_not_encoded_once(settings, latents):
    with pytest.raises(ValueError, match="holds latents, which cannot be augmented"):
        SpectrogramDataset(latents, "train", settings.dataset)
    with pytest.raises(ValueError, match="encode_once=True needs space='latent', not 'spectrogram'"):
        in_space(settings, "spectrogram")


def test_a_source_that_cannot_be_encoded_is_no_source_left_out(settings, codec, tmp_path, monkeypatch):
    plan = replace(latent_plan(settings, codec), folder=tmp_path)
    build_part(plan, 1, 1)
    entry = next(tmp_path.glob(".building/*.json"))
    skipped = json.loads(entry.read_text()) | {"skipped": "ends the process that reads it", "clips": []}
    entry.write_text(json.dumps(skipped))
    with pytest.raises(DatasetError, match="cannot be encoded, it ends the process that reads it: run this"):
        build(plan)
    assert sum(build(plan).clips.values()) == load_manifest(settings.dataset_dir)["shape"][0]


def test_a_shift_of_the_time_commutes_with_the_encoder_in_its_strides_alone(settings, codec):
    """Why latents are not shifted: between strides the latent is another, and near the ends always."""
    stride = codec.stride[1]
    x0 = SpectrogramDataset(settings.dataset_dir, "train")[0][0][None]
    errors = []
    for shift in (stride, stride // 2):
        shifted = codec.encode(x0.roll(-shift, dims=-1))
        moved = codec.encode(x0).roll(-round(shift / stride), dims=-1)
        errors.append((shifted - moved)[..., 2:-4].square().mean().item())
    assert stride > 1 and errors[0] < 0.2 * errors[1] and not np.isclose(errors[1], 0)
