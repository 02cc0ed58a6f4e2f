"""Diffusion in the latents of an autoencoder: as on spectrograms, and never with another autoencoder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import QUICK

from Conf import STARTS, choose, in_space
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import spread_clips
from Libraries.Evaluation.Samples import bits_of_clips, evaluate, example_input
from Libraries.Runs.Autoencoding import LatentCodec, train_vae
from Libraries.Runs.CodecEditing import LatentEditor
from Libraries.Runs.DiffusionRun import DiffusionRun, find_diffusion
from Libraries.Runs.DiffusionTraining import (
    EncodedLoader,
    diffusion_recipe,
    first_network,
    overfit_one_batch,
    train_diffusion,
)
from Libraries.Runs.Run import RELEASED, Run, latest_run
from Libraries.Runs.Settings import changed
from Libraries.Runs.Sharing import share
from Libraries.Runs.Spaces import open_codec, prepare_space
from Libraries.Sampling.Editing import mask_outside
from Libraries.Training.Checkpoint import CheckpointError, latest_checkpoint
from Libraries.VAE import VAE


@pytest.fixture(scope="module")
def settings(chords):
    train, vae_train = (changed(config, QUICK) for config in (chords.train, chords.vae.train))
    settings = changed(in_space(chords, "latent"), {"train": train, "vae.train": vae_train})
    train_vae(settings)
    return settings


@pytest.fixture(scope="module")
def run_dir(settings):
    return train_diffusion(settings)


@pytest.fixture(scope="module")
def model(run_dir):
    model = DiffusionRun.load(run_dir)
    model.precision = model.codec.precision = "no"
    return model


@pytest.fixture(scope="module")
def clips(settings):
    return spread_clips(SpectrogramDataset(settings.dataset_dir, "train"), 2)


def test_samples_are_spectrograms_and_the_same_in_any_batch(settings, model):
    together = model.generate([5, 6, 7], settings.sampler, 3, progress=False)
    alone = model.generate([6], settings.sampler, 1, progress=False)
    assert together.shape == (3, *settings.spectrogram.shape) and model.shape == model.codec.shape
    assert torch.allclose(together[1:2], alone, atol=1e-3)
    assert model.to_audio(together).isfinite().all()


def test_latents_are_not_clamped_like_spectrograms(settings, model):
    """Unit variance goes beyond ±1, where the settings clamp spectrograms."""
    seen = []
    model.generate(
        [1, 2], settings.sampler, 2, progress=False, callback=lambda step, t, x, x0: seen.append(x0)
    )
    assert settings.sampler.clip_x0 == 1.0 and max(x0.abs().max() for x0 in seen) > 1.0


def test_training_sees_the_codecs_latents(settings, model, clips):
    (z, label), *_ = EncodedLoader([(clips, torch.zeros(2))], model.codec)
    assert torch.equal(z, model.codec.encode(clips)) and len(label) == 2
    assert torch.allclose(model.encode(clips), z)


def test_run_records_its_autoencoder_and_refuses_another(settings, run_dir, tmp_path):
    record = json.loads((run_dir / "conf.json").read_text())["requires"]
    assert record["run"] == "00000-SMOKE" and len(record["weights"]) == 64
    copy = tmp_path / "Models"
    shutil.copytree(settings.root / "Models", copy)
    DiffusionRun.load(copy / "diffusion" / run_dir.name)
    ema = latest_checkpoint(copy / "vae" / record["run"], "ema")
    ema.write_bytes(ema.read_bytes() + b"other")
    with pytest.raises(CheckpointError, match="trained in the latents of 00000-SMOKE, but the weights in"):
        DiffusionRun.load(copy / "diffusion" / run_dir.name)
    shutil.rmtree(copy / "vae")
    with pytest.raises(CheckpointError, match="has no ema"):
        DiffusionRun.load(copy / "diffusion" / run_dir.name)


def test_a_shared_run_plays_alone_and_tells_nothing_of_its_music(settings, model, run_dir, tmp_path):
    shared = share(run_dir, tmp_path / "mine")
    assert shared == tmp_path / "mine" / "Models" / "diffusion" / run_dir.name
    theirs = DiffusionRun.load(shared)
    assert [run.folder.parts[-2:] for run in theirs.runs] == [run.folder.parts[-2:] for run in model.runs]
    assert all(run.folder.is_relative_to(tmp_path) for run in theirs.runs)
    theirs.precision = theirs.codec.precision = "no"
    ours, others = (each.generate([5], settings.sampler, 1, progress=False) for each in (model, theirs))
    torch.testing.assert_close(others, ours, atol=0.05, rtol=0)
    piece = run_dir.parents[2] / "Data" / settings.dataset.name / "manifest.json"
    names = {Path(source["file"]).stem for source in json.loads(piece.read_text())["sources"]}
    written = "".join(
        file.read_text() for file in (tmp_path / "mine").rglob("*.*") if file.suffix in (".json", ".md")
    )
    assert names and not [name for name in names if name in written] and str(settings.root) not in written
    assert "ma-ddpm generate -o music.flac --run Models/diffusion/00000-SMOKE" in written
    with pytest.raises(FileExistsError, match="mine is not empty: name a new folder"):
        share(run_dir, tmp_path / "mine")


def test_what_comes_with_the_repository_is_not_shared_again(tmp_path):
    shared = share(RELEASED / "diffusion-cpu", tmp_path / "mine")
    assert [folder.name for folder in (tmp_path / "mine" / "Models").iterdir()] == ["diffusion"]
    assert DiffusionRun.load(shared).runs[1].folder == RELEASED / "vae-cpu"


def test_run_is_not_resumed_on_spectrograms(settings, run_dir):
    with pytest.raises(ValueError, match="space is latent there and spectrogram here"):
        train_diffusion(replace(settings, space="spectrogram"), run_dir)


def test_run_is_not_resumed_with_another_autoencoder(settings, run_dir, tmp_path):
    conf = json.loads((run_dir / "conf.json").read_text())
    other = {"run": "00007-other", "weights": 64 * "0"}
    for requires, theirs in ((other, r"the autoencoder 00007-other \(0+\)"), ({}, "no autoencoder")):
        (tmp_path / "conf.json").write_text(json.dumps({**conf, "requires": requires}))
        with pytest.raises(ValueError, match=theirs + r", not the autoencoder 00000-SMOKE \(\w{12}\)"):
            train_diffusion(settings, tmp_path)


def test_an_autoencoder_is_trained_for_latents_that_have_none_and_only_then(settings, monkeypatch, tmp_path):
    trained, earlier = [], tmp_path / "Models" / "vae" / "00000-earlier"
    earlier.mkdir(parents=True)
    (earlier / "latent-00000004.pth").touch()
    (earlier / "conf.json").write_text('{"settings": {}}')
    monkeypatch.setattr("Libraries.Runs.Autoencoding.train_vae", lambda own, run: trained.append((own, run)))
    elsewhere = replace(settings, root=tmp_path)
    named = changed(elsewhere, {"vae.run": "00007-none"})
    for own in (settings, named, replace(elsewhere, space="spectrogram")):
        prepare_space(own)
    assert not trained
    shutil.copytree(settings.dataset_dir, elsewhere.dataset_dir)
    prepare_space(elsewhere)
    assert trained == [(elsewhere, None)]


def test_an_unfinished_autoencoder_is_resumed(settings, monkeypatch, tmp_path):
    elsewhere, trained = replace(settings, root=tmp_path), []
    shutil.copytree(settings.dataset_dir, elsewhere.dataset_dir)
    newest = latest_run(settings.models_dir / "vae", "latent-*.pth")
    unfinished = elsewhere.models_dir / "vae" / newest.name
    leave_out = shutil.ignore_patterns("*-00000004.pth")
    shutil.copytree(newest, unfinished, ignore=leave_out)
    other = elsewhere.models_dir / "vae" / "00001-other"
    shutil.copytree(newest, other, ignore=leave_out)
    conf = (other / "conf.json").read_text()
    (other / "conf.json").write_text(conf.replace('"kl_weight": 0.01', '"kl_weight": 0.5'))
    monkeypatch.setattr("Libraries.Runs.Autoencoding.train_vae", lambda own, run: trained.append(run))
    prepare_space(elsewhere)
    assert trained == [unfinished]


def test_the_newest_run_of_a_space_is_found(settings, run_dir):
    assert find_diffusion(settings) == run_dir
    with pytest.raises(FileNotFoundError, match=r"no run with weights and space='small' in .*diffusion"):
        find_diffusion(replace(settings, space="small"))


def test_autoencoder_of_another_spectrogram_or_none_is_refused(settings):
    other = changed(settings, {"spectrogram.db_range": 60.0})
    with pytest.raises(ValueError, match="another spectrogram than that of these settings"):
        open_codec(other)
    with pytest.raises(CheckpointError, match="name a run's own folder"):
        open_codec(changed(settings, {"vae.run": "00007-none"}))
    with pytest.raises(CheckpointError, match="train one first"):
        open_codec(replace(settings, root=settings.root / "elsewhere"))
    with pytest.raises(ValueError, match=r"a spectrogram or latent of .* needs multiples of 64x64"):
        train_diffusion(changed(settings, {"network.patch_size": (32, 32)}))


def test_evaluation_and_checks_work_in_latents(settings, model, clips, tmp_path, few_draws):
    splits = [SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "test")]
    found = evaluate(model, *splits, settings, tmp_path)
    assert found["kernel distance"]["value"] > 0
    assert list(found["stages"]) == [
        "real clips through the spectrogram", "and through the autoencoder", "generated"
    ]  # fmt: skip
    assert bits_of_clips(model, clips, [0, 1]) > -100
    assert model.network(*example_input(model)).shape == (1, *model.shape)
    assert overfit_one_batch(settings, num_steps=2)


def test_edits_keep_what_is_known(settings, model, clips):
    editor = model.editor(settings.sampler, resamplings=1)
    C, F, T = settings.spectrogram.shape
    for box in ({"frames": (T // 3, T // 2)}, {"rows": (5, F // 2)}):
        known = mask_outside((C, F, T), **box)
        made = editor.inpaint(clips, known, [1, 2])
        assert torch.equal(made[:, known], clips[:, known]) and (made[:, ~known] != clips[:, ~known]).any()
        varied = editor.vary(clips, 0.6, [1, 2], known)
        assert torch.equal(varied[:, known], clips[:, known])
        assert (varied[:, ~known] != clips[:, ~known]).any()
    long = editor.extend(clips, 2 * T + 5, T // 2, [1, 2])
    assert long.shape == (2, C, F, 2 * T + 5) and torch.equal(long[..., :T], clips)
    loop = editor.loop(clips, 2 * T, T // 2, [1, 2])
    assert loop.shape == (2, C, F, 2 * T) and torch.equal(loop[..., :T], clips)
    varied = editor.vary(clips, 0.0, [1, 2])
    assert torch.allclose(varied, model.codec.decode(model.codec.encode(clips)), atol=1e-5)
    between = model.interpolate(clips, torch.tensor([0.0, 1.0]), 4, iterations=3)
    assert between.shape == clips.shape


def test_a_latent_is_known_only_if_all_it_stands_for_is(settings, model):
    editor, (rows, frames) = model.editor(settings.sampler, resamplings=0), model.codec.stride
    known = torch.ones(1, *settings.spectrogram.shape, dtype=torch.bool)
    known[..., rows - 1, 2 * frames] = False
    latents = editor._latent_mask(known)
    assert latents.shape == (1, 1, *model.codec.shape[1:])
    assert (~latents).nonzero().tolist() == [[0, 0, 0, 2]]


@pytest.fixture
def odd(settings, model):
    """An editor in latents of clips that the strides divide neither in rows nor in frames."""
    C, F, T = settings.spectrogram.shape
    vae = VAE(settings.vae.network, (C, F - 3, T - 5))
    codec = LatentCodec(vae, torch.zeros(4), torch.ones(4), model.spectrogram, torch.device("cpu"))
    codec.precision = "no"
    return LatentEditor(model.editor(settings.sampler, resamplings=0).editor, codec)


def test_clips_that_the_strides_do_not_divide_are_edited(odd, clips):
    clips = clips[:, :, :-3, :-5]
    (_, F, T), (rows, frames) = clips.shape[1:], odd.codec.stride
    known = torch.ones(1, *clips.shape[1:], dtype=torch.bool)
    assert odd._latent_mask(known).all()
    known[..., -1, -1] = False
    assert (~odd._latent_mask(known)).nonzero().tolist() == [[0, 0, F // rows, T // frames]]
    made = odd.inpaint(clips, known[0], [1, 2])
    assert made.shape == clips.shape and torch.equal(made[:, known[0]], clips[:, known[0]])
    ones = replace(odd, codec=odd.codec)
    ones.codec.decode = lambda z: torch.ones(len(z), *clips.shape[1:])
    for n_frames in (T, T + 1, 2 * T, 2 * T + 3):
        assert (ones.extend(clips, n_frames, T // 2, [1, 2])[..., T:n_frames] == 1).all()


def test_an_extension_to_less_than_a_clip_is_its_beginning(settings, model, clips, odd):
    few = clips.shape[-1] // 2
    for editor, own in ((model.editor(settings.sampler, 0), clips), (odd, clips[:, :, :-3, :-5])):
        assert torch.equal(editor.extend(own, few, 8, [1, 2]), own[..., :few])


def test_edm_in_latents_needs_their_standard_deviation(settings):
    edm = changed(settings, {"diffusion.prediction_type": "edm"})
    with pytest.raises(ValueError, match=r"sigma_data=0.5 of the diffusion must be 1.0 in latents"):
        diffusion_recipe(edm)
    assert diffusion_recipe(changed(edm, {"diffusion.sigma_data": 1.0}))


def test_decoding_in_windows_is_decoding_where_there_is_one(settings, model, clips):
    editor, z = model.editor(settings.sampler, resamplings=0), model.codec.encode(clips)
    assert torch.allclose(editor._decode(z, 4, circular=False), model.codec.decode(z), atol=1e-5)


def test_a_single_latent_cannot_be_kept_in_part(settings, model, clips):
    vae = VAE(replace(settings.vae.network, kind="linear", latent_channels=8), settings.spectrogram.shape)
    codec = LatentCodec(vae, torch.zeros(8), torch.ones(8), model.spectrogram, torch.device("cpu"))
    editor = LatentEditor(model.editor(settings.sampler, resamplings=0).editor, codec)
    with pytest.raises(ValueError, match="a single latent represents the whole clip"):
        editor.inpaint(clips, mask_outside(settings.spectrogram.shape, frames=(2, 4)), [1, 2])


@pytest.mark.parametrize(("preset", "space"), [(name, space) for name in STARTS for space in STARTS[name]])
def test_the_released_diffusion_fits_the_preset_that_begins_with_it(preset, space, tmp_path):
    settings = changed(
        replace(in_space(choose(preset), space), root=tmp_path), {"vae.run": choose(preset).vae.start}
    )
    own = first_network(settings, LatentCodec.open(settings)).state_dict()
    released = Run(RELEASED / STARTS[preset][space])
    assert settings.start == released.name and released.settings.space == space
    weights = released.weights()
    same = [name for name in weights.keys() & own.keys() if torch.equal(weights[name].float(), own[name])]
    assert len(same) >= len(own) - 1  # without classes "no label" goes into one bias
