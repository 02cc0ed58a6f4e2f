"""A dataset is built again with another split: no model that heard its test pieces is measured on them."""

import json
from dataclasses import replace

import pytest
import torch

from Conf import in_space
from Libraries.Dataset.Manifest import load_manifest, pieces_of
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Samples import evaluate
from Libraries.Evaluation.VAEEvaluation import evaluate_vae
from Libraries.Networks import as_journal
from Libraries.Runs.Autoencoding import LatentCodec, vae_recipe
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Runs.Leakage import LeakageError, heard_test_pieces, require_unheard
from Libraries.Runs.Phases import phase_recipe
from Libraries.Runs.Preparation import ensure_dataset
from Libraries.Runs.Recipe import open_run
from Libraries.Runs.Run import Run
from Libraries.Runs.Settings import changed
from Libraries.Runs.Spaces import open_codec, prepare_space
from Libraries.Runs.Upsampling import find_upsampler, upsampler_recipe
from Libraries.Studies import Experiments
from Libraries.Training.Checkpoint import save_checkpoint, save_json


def finished(recipe):
    """A run of a recipe that has reached its last step without learning anything."""
    run = open_run(recipe, None)
    content = {"step": recipe.train.num_steps, "weights": recipe.network().state_dict()}
    save_checkpoint(run.folder / f"ema-{recipe.train.num_steps:08d}.pth", content)
    return run


def finished_vae(settings):
    run, channels = finished(vae_recipe(settings)), settings.vae.network.latent_channels
    statistics = {"mean": torch.zeros(channels), "std": torch.ones(channels), "clips": 1}
    save_checkpoint(run.folder / f"latent-{settings.vae.train.num_steps:08d}.pth", statistics)
    return run


def pieces(settings, split):
    return pieces_of(load_manifest(settings.dataset_dir), split)


@pytest.fixture(scope="module")
def again(chords):
    """The same music, split in another way: the test piece of either was a training piece of the other."""
    for seed in range(1, 100):
        settings = changed(chords, {"dataset.name": f"again{seed}", "dataset.seed": seed})
        ensure_dataset(settings)
        pairs = ((settings, chords), (chords, settings))
        if all(pieces(one, "test") <= pieces(other, "train") for one, other in pairs):
            return settings


@pytest.fixture(scope="module")
def test_piece(again):
    return pieces(again, "test").pop()


@pytest.fixture(scope="module")
def run(chords):
    return finished(diffusion_recipe(chords))


def test_a_run_knows_its_training_pieces(chords, again, run, test_piece):
    split = SpectrogramDataset(chords.dataset_dir, "train")
    assert {f"{piece}.wav" for piece in run.conf["training_pieces"]} == set(split.sources)
    assert heard_test_pieces(chords.dataset_dir, run) == []
    assert heard_test_pieces(again.dataset_dir, run) == [test_piece]
    assert heard_test_pieces(again.root / "nowhere", run) == []


def test_an_old_run_is_not_evaluated_on_what_it_heard(again, run, test_piece, tmp_path):
    splits = [SpectrogramDataset(again.dataset_dir, split) for split in ("train", "test")]
    with pytest.raises(
        LeakageError, match=rf"00000-SMOKE was trained on '{test_piece}', in the test split of"
    ):
        evaluate(DiffusionRun.load(run.folder), *splits, again, tmp_path)


def test_a_run_that_does_not_say_is_passed_with_a_warning(again, run, tmp_path, caplog):
    conf = {key: value for key, value in run.conf.items() if key != "training_pieces"}
    save_json(tmp_path / "conf.json", conf)
    require_unheard(again.dataset_dir, [Run(tmp_path)])
    assert "does not say what it was trained on" in caplog.text


def test_latents_of_an_autoencoder_that_heard_the_test_pieces_are_refused(
    chords, again, test_piece, monkeypatch
):
    first, latent = finished_vae(chords), in_space(again, "latent")
    for own in (latent, changed(latent, {"vae.run": first.name})):
        with pytest.raises(LeakageError, match=rf"was trained on '{test_piece}'"):
            open_codec(own)
    test = SpectrogramDataset(again.dataset_dir, "test")
    with pytest.raises(LeakageError, match=rf"was trained on '{test_piece}'"):
        evaluate_vae(LatentCodec.load(first.folder), None, test, again.root)
    monkeypatch.setattr("Libraries.Runs.Autoencoding.train_vae", lambda own, run: finished_vae(own))
    prepare_space(latent)
    assert open_codec(latent).run_dir.name == "00001-SMOKE"


def test_an_upsampler_that_heard_the_test_pieces_is_not_taken_for_evaluation(chords, again, monkeypatch):
    small = in_space(again, "small")
    first, base = finished(upsampler_recipe(in_space(chords, "small"))), finished(diffusion_recipe(small))
    model = DiffusionRun.load(base.folder)
    assert {own.folder for own in model.runs} == {base.folder, first.folder}
    with pytest.raises(LeakageError, match="upsampler"):
        model.require_unheard(again.dataset_dir)
    monkeypatch.setattr(
        "Libraries.Runs.Upsampling.train_upsampler", lambda own, run: finished(upsampler_recipe(own))
    )
    prepare_space(small)
    assert find_upsampler(small).name == "00001-SMOKE"
    DiffusionRun.load(base.folder).require_unheard(again.dataset_dir)


def test_a_learned_phase_that_heard_the_test_pieces_is_refused(chords, again):
    phase = finished(phase_recipe(chords, chords.music_dir))
    own = changed(again, {"spectrogram.phase": "learned"})
    model = DiffusionRun.load(finished(diffusion_recipe(own)).folder)
    assert phase.folder in {run.folder for run in model.runs}
    with pytest.raises(LeakageError, match=r"phase.00000-SMOKE was trained on"):
        model.require_unheard(again.dataset_dir)


def test_a_variant_with_another_split_does_not_train_on_what_it_is_measured_on(
    chords, again, tmp_path, monkeypatch
):
    monkeypatch.setattr(Experiments, "train", None)
    settings = replace(chords, network=as_journal(chords.network))
    other = changed(settings, {"dataset.seed": again.dataset.seed})
    other = Experiments.with_own_dataset(settings, other)
    reference = Experiments.load_reference(settings, 4)
    with pytest.raises(LeakageError, match=f"the dataset {other.dataset.name} trains on 'piece"):
        Experiments._train_and_measure(other, lambda: reference, 4, tmp_path)


def test_names_that_are_not_utf_8_are_kept(tmp_path):
    name = b"pi\xe8ce".decode("utf-8", "surrogateescape")
    save_json(tmp_path / "conf.json", {"format": 2, "settings": {}, "training_pieces": [name]})
    assert Run(tmp_path).conf["training_pieces"] == [name]
    with pytest.raises(UnicodeDecodeError):
        json.loads((tmp_path / "conf.json").read_text(encoding="utf-8"))
