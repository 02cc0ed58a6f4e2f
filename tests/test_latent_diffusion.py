"""Diffusion in the latents of an autoencoder: as on spectrograms, and never with another autoencoder."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from Conf import SMOKE
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Samples import bits_of_clips, evaluate, example_input, spread_clips
from Libraries.Runs.Autoencoding import LatentCodec, train_vae
from Libraries.Runs.Generator import Generator
from Libraries.Runs.LatentEditing import LatentEditor
from Libraries.Runs.Pipeline import EncodedLoader, open_codec, overfit_one_batch, train_diffusion
from Libraries.Sampling.Editing import mask_outside
from Libraries.Training.Checkpoint import CheckpointError, latest_checkpoint
from Libraries.VAE import VAE


@pytest.fixture(scope="module")
def settings(chords):
    quick = {"num_steps": 4, "save_every": 2, "validate_every": 2, "preview_every": 4, "snapshot_every": 2}
    settings = replace(
        chords, latent_train=replace(SMOKE.latent_train, **quick),
        vae_train=replace(SMOKE.vae_train, **quick), vae_run="latest", num_samples=4,
    )  # fmt: skip
    train_vae(settings)
    return settings


@pytest.fixture(scope="module")
def run_dir(settings):
    return train_diffusion(settings)


@pytest.fixture(scope="module")
def generator(run_dir):
    generator = Generator.load(run_dir)
    generator.precision = generator.codec.precision = "no"
    return generator


@pytest.fixture(scope="module")
def clips(settings):
    return spread_clips(SpectrogramDataset(settings.dataset_dir, "train"), 2)


def test_samples_are_spectrograms_and_the_same_in_any_batch(settings, generator):
    together = generator.generate([5, 6, 7], settings.sampler, 3, progress=False)
    alone = generator.generate([6], settings.sampler, 1, progress=False)
    assert together.shape == (3, *settings.spectrogram.shape) and generator.shape == generator.codec.shape
    assert torch.allclose(together[1:2], alone, atol=1e-3)
    assert generator.to_audio(together).isfinite().all()


def test_latents_are_not_clamped_like_spectrograms(settings, generator):
    """Unit variance goes beyond ±1, where the settings clamp spectrograms."""
    seen = []
    generator.generate(
        [1, 2], settings.sampler, 2, progress=False, callback=lambda step, t, x, x0: seen.append(x0)
    )
    assert settings.sampler.clip_x0 == 1.0 and max(x0.abs().max() for x0 in seen) > 1.0


def test_training_sees_the_codecs_latents(settings, generator, clips):
    (z, label), *_ = EncodedLoader([(clips, torch.zeros(2))], generator.codec)
    assert torch.equal(z, generator.codec.encode(clips)) and len(label) == 2
    assert torch.allclose(generator.encode(clips), z)


def test_run_records_its_autoencoder_and_refuses_another(settings, run_dir, tmp_path):
    record = json.loads((run_dir / "conf.json").read_text())["vae"]
    assert record["run"] == "00000-SMOKE" and len(record["weights"]) == 64
    copy = tmp_path / "Models"
    shutil.copytree(settings.root / "Models", copy)
    Generator.load(copy / "diffusion" / run_dir.name)
    ema = latest_checkpoint(copy / "vae" / record["run"], "ema")
    ema.write_bytes(ema.read_bytes() + b"other")
    with pytest.raises(CheckpointError, match="trained in the latents of 00000-SMOKE, and the weights in"):
        Generator.load(copy / "diffusion" / run_dir.name)
    shutil.rmtree(copy / "vae")
    with pytest.raises(CheckpointError, match="has no ema"):
        Generator.load(copy / "diffusion" / run_dir.name)


def test_run_is_not_resumed_on_spectrograms(settings, run_dir):
    with pytest.raises(ValueError, match=r"in the latents of 00000-SMOKE \(.*\), not on spectrograms"):
        train_diffusion(replace(settings, vae_run=None), run_dir)


def test_autoencoder_of_another_spectrogram_or_none_is_refused(settings):
    other = replace(settings, spectrogram=replace(settings.spectrogram, db_range=60.0))
    with pytest.raises(ValueError, match="another spectrogram than these settings'"):
        open_codec(other)
    with pytest.raises(CheckpointError, match="name a run's own folder"):
        open_codec(replace(settings, vae_run="00007-none"))
    with pytest.raises(CheckpointError, match="train one first"):
        open_codec(replace(settings, root=settings.root / "elsewhere"))
    with pytest.raises(ValueError, match=r"a spectrogram or latent of .* needs multiples of 64x64"):
        train_diffusion(replace(settings, latent_unet=replace(settings.latent_unet, patch_size=(32, 32))))


def test_evaluation_and_checks_work_in_latents(settings, generator, clips, tmp_path):
    splits = [SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test")]
    assert evaluate(generator, *splits, settings, tmp_path)["samples_to_test"] > 0
    assert bits_of_clips(generator, clips, [0, 1]) > -100
    assert generator.network(*example_input(generator)).shape == (1, *generator.shape)
    assert overfit_one_batch(settings, num_steps=2)


def test_edits_keep_what_is_known(settings, generator, clips):
    editor = generator.editor(settings.sampler, resamplings=1)
    C, F, T = settings.spectrogram.shape
    for box in ({"frames": (T // 3, T // 2)}, {"rows": (5, F // 2)}):
        known = mask_outside((C, F, T), **box)
        made = editor.inpaint(clips, known, [1, 2])
        assert torch.equal(made[:, known], clips[:, known]) and (made[:, ~known] != clips[:, ~known]).any()
    long = editor.extend(clips, 2 * T + 5, T // 2, [1, 2])
    assert long.shape == (2, C, F, 2 * T + 5) and torch.equal(long[..., :T], clips)
    loop = editor.loop(clips, 2 * T, T // 2, [1, 2])
    assert loop.shape == (2, C, F, 2 * T) and torch.equal(loop[..., :T], clips)
    varied = editor.vary(clips, 0.0, [1, 2])
    assert torch.allclose(varied, generator.codec.decode(generator.codec.encode(clips)), atol=1e-5)
    between = generator.interpolate(clips, torch.tensor([0.0, 1.0]), 4, iterations=3)
    assert between.shape == clips.shape


def test_a_latent_is_known_only_if_all_it_stands_for_is(settings, generator):
    editor, (rows, frames) = generator.editor(settings.sampler, resamplings=0), generator.codec.stride
    known = torch.ones(1, *settings.spectrogram.shape, dtype=torch.bool)
    known[..., rows - 1, 2 * frames] = False
    latents = editor._known_latents(known)
    assert latents.shape == (1, 1, *generator.codec.shape[1:])
    assert (~latents).nonzero().tolist() == [[0, 0, 0, 2]]


def test_decoding_in_windows_is_decoding_where_there_is_one(settings, generator, clips):
    editor, z = generator.editor(settings.sampler, resamplings=0), generator.codec.encode(clips)
    assert torch.allclose(editor._decode(z, 4, circular=False), generator.codec.decode(z), atol=1e-5)


def test_a_single_latent_cannot_be_kept_in_part(settings, generator, clips):
    vae = VAE(replace(settings.vae, kind="linear", latent_channels=8), settings.spectrogram.shape)
    codec = LatentCodec(vae, torch.zeros(8), torch.ones(8), generator.spectrogram, torch.device("cpu"))
    editor = LatentEditor(generator.editor(settings.sampler, resamplings=0).editor, codec)
    with pytest.raises(ValueError, match="a single latent stands for all of the clip"):
        editor.inpaint(clips, mask_outside(settings.spectrogram.shape, frames=(2, 4)), [1, 2])
