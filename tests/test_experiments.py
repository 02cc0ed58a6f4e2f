"""Experiments: settings changed by name, equal budgets, what is done is kept, and what the figures say."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import ttest_1samp

from Conf import BASE, SMOKE, in_space
from Journal import TRIAL, choose_experiments, journal_experiments
from Libraries.Measures import Row
from Libraries.Networks import as_journal, parameters_of, scale_widths
from Libraries.Runs.Run import Run
from Libraries.Runs.Settings import changed
from Libraries.Sound.Metrics import mean_interval, power_fraction_above
from Libraries.Studies import Experiments
from Libraries.Studies.ExperimentReport import (
    conclusion,
    differences,
    report_folder,
    table,
    verdict,
    write_index,
    write_report,
)
from Libraries.Studies.Experiments import Change, Experiment, Outcome, Trials, plan, run_experiment
from Libraries.Training.Loop import TrainingDiverged


def outcome(variant, seed, distance):
    row = Row("", "", 0.0, 0.0, 0.0, floor=5.0, floor_deviation=1.0, generated=0.1, reference=0.2)
    names = ("note length", "note steadiness", "log-mel distance")
    measures = {"kernel distance": replace(row, name="kernel distance", value=distance).content()}
    measures |= {name: replace(row, name=name, value=0.5).content() for name in names}
    return Outcome(
        variant, seed, {}, 0.1, 1000, 20, distance is None, None if distance is None else measures, 0.0,
        {"0-9": 0.5}, [(8, 1.0)], None,
    )  # fmt: skip


def parameters(settings):
    return parameters_of(settings.network, settings.spectrogram.shape[0])


def test_settings_change_by_name_together():
    changes = {"network.norm": "batch", "network.dropout": 0.5, "log_level": "DEBUG", "vae.train.seed": 7}
    vae = replace(TRIAL.vae, train=replace(TRIAL.vae.train, seed=7))
    network = replace(TRIAL.network, norm="batch", dropout=0.5)
    assert changed(TRIAL, changes) == replace(TRIAL, network=network, log_level="DEBUG", vae=vae)
    assert changed(TRIAL, {}) == TRIAL


@pytest.mark.parametrize("name", ("network.colour", "colour", "colour.network", "vae.train.colour"))
def test_an_unknown_setting_is_refused_with_the_known(name):
    with pytest.raises(ValueError, match=f"no setting '{name}'; choose one of"):
        changed(TRIAL, {name: 1})


@pytest.mark.parametrize("preset", ("TRIAL", "BASE", "SMOKE"))
def test_every_variant_of_the_journal_is_possible_in_every_preset_for_it(preset):
    settings, _ = choose_experiments(preset)
    experiments = journal_experiments(settings)
    assert len(experiments) == 14
    for experiment in experiments.values():
        for change in experiment.variants.values():
            assert changed(settings, change.settings).network.multiple


def test_variants_differ_and_the_first_changes_nothing_or_what_all_change():
    for experiment in journal_experiments(TRIAL).values():
        made = [(changed(TRIAL, change.settings), change.equal) for change in experiment.variants.values()]
        assert all(made.count(one) == 1 for one in made)


def test_all_networks_of_equal_parameters_have_about_as_many(tmp_path, monkeypatch):
    settings = replace(TRIAL, root=tmp_path)
    monkeypatch.setattr(Experiments, "_seconds_per_step", lambda variants: dict.fromkeys(variants, 1.0))
    for name in ("05-blocks", "14-unet-v0"):
        experiment = journal_experiments(settings)[name]
        sizes = [
            parameters(changed(settings, planned.changes)) for planned in plan(experiment, settings).values()
        ]
        assert max(sizes) / min(sizes) < 1.15


def test_equal_time_gives_the_slower_variant_fewer_steps_once_and_for_all(tmp_path, monkeypatch):
    settings = replace(TRIAL, root=tmp_path)
    variants = {"a": Change({}), "b": Change({"network.dropout": 0.5}, ("time",))}
    experiment = Experiment("x", "X", "x.", variants)
    monkeypatch.setattr(Experiments, "_seconds_per_step", lambda variants: {"a": 1.0, "b": 3.0})
    assert plan(experiment, settings)["b"].changes["train.num_steps"] == TRIAL.train.num_steps // 3
    monkeypatch.setattr(Experiments, "_seconds_per_step", lambda variants: {"a": 1.0, "b": 1.0})
    assert plan(experiment, settings)["b"].changes["train.num_steps"] == TRIAL.train.num_steps // 3


def test_measured_steps_are_slower_for_a_network_with_more_to_do():
    settings = in_space(SMOKE, "spectrogram")
    wide = replace(settings, network=scale_widths(settings.network, 6.0))
    seconds = Experiments._seconds_per_step({"narrow": settings, "wide": wide})
    assert seconds["wide"] > seconds["narrow"] > 0


def test_what_can_not_be_made_equal_is_refused():
    with pytest.raises(ValueError, match="choose one of parameters, time"):
        Change({}, ("memory",))


def test_difference_is_a_finding_only_where_the_t_test_says_so():
    better = [outcome("a", s, d) for s, d in enumerate((10.0, 11.0, 12.0))]
    better += [outcome("b", s, d) for s, d in enumerate((8.0, 9.2, 9.9))]
    found = differences(better, "b")
    mean, half = mean_interval(found)
    test = ttest_1samp(found, 0)
    assert test.confidence_interval().low == pytest.approx(mean - half)
    assert test.pvalue < 0.05 and verdict(better, "b").startswith("better (-2.0")
    chance = better[:3] + [outcome("b", s, d) for s, d in enumerate((8.0, 13.0, 12.0))]
    assert ttest_1samp(differences(chance, "b"), 0).pvalue > 0.05
    assert verdict(chance, "b").startswith("no difference shown")
    assert "which shows nothing" in verdict([better[0], better[3]], "b")


def test_a_training_that_diverged_is_said_and_not_averaged():
    outcomes = [outcome("a", s, 10.0 + s) for s in range(3)]
    outcomes += [outcome("b", 0, None), outcome("b", 1, 21.0), outcome("b", 2, 22.0)]
    assert differences(outcomes, "b") == [10.0, 10.0]
    assert verdict(outcomes, "b").startswith("diverged with 1 of 3 seeds, worse")
    lost = [outcome("b", s, None) for s in range(3)]
    assert verdict(outcomes[:3] + lost, "b") == "diverged with 3 of 3 seeds"
    assert "| - |" in table(outcomes[:3] + lost)
    experiment = Experiment("x", "X", "it would.", {"a": Change({}), "b": Change({"network.dropout": 0.5})})
    assert "The journal: it would. Measured with 3 seeds" in conclusion(experiment, outcomes)


def test_the_table_has_the_means_over_the_seeds_and_the_floor():
    lines = table([outcome("a", 0, 10.0), outcome("a", 1, 12.0), outcome("b", 0, None)]).splitlines()
    assert "| 11.0 ± 12.7 | 0.5 (0.1) | 0.5 (0.1) |" in lines[2]
    assert "| - | - | - | - |" in lines[3]
    assert lines[4].startswith("| training recordings: the floor |") and "| 5 ± 1 (0.2) |" in lines[4]


def test_one_value_has_no_interval():
    assert mean_interval([3.0]) == (3.0, math.inf)


def test_power_share_is_that_of_the_sines():
    seconds = torch.arange(8000) / 8000
    low, high = (torch.sin(2 * torch.pi * f * seconds) for f in (500, 3000))
    share = power_fraction_above((low + 0.1 * high)[None, None], 8000, 2000.0)
    assert share == pytest.approx(10 * math.log10(0.01 / 1.01), abs=0.01)
    assert power_fraction_above(0.001 * (low + 0.1 * high)[None, None], 8000, 2000.0) == pytest.approx(share)


@pytest.fixture
def tiny(chords):
    """An experiment of seconds on made-up chords."""
    variants = {"group": Change({}), "batch": Change({"network.norm": "batch"})}
    experiment = Experiment("tiny", "Batch or group", "it differs.", variants)
    settings = replace(chords, preset="TINY", network=as_journal(chords.network))
    return experiment, settings, Trials(seeds=(0, 1), clips=4, names=())


def test_an_experiment_is_trained_once_and_its_page_says_all(tiny, monkeypatch, few_draws):
    experiment, settings, trials = tiny
    outcomes = run_experiment(experiment, settings, trials)
    assert [(o.variant, o.seed) for o in outcomes] == [("group", 0), ("group", 1), ("batch", 0), ("batch", 1)]
    assert len({o.distance for o in outcomes}) == 4 and all(o.losses and o.curve for o in outcomes)
    assert {Run(Path(o.clips).parent).models_dir for o in outcomes} == {settings.models_dir}  # of its phase
    text, figure = write_report(experiment, outcomes, settings, trials)
    folder = report_folder(settings)
    saved = json.loads((folder / "tiny.json").read_text())
    assert [o["measures"] for o in saved["outcomes"]] == [o.measures for o in outcomes]
    assert "| training recordings: the floor |" in text
    assert (folder / "tiny.png").stat().st_size > 10_000 and text.strip() in (folder / "tiny.md").read_text()
    titles = {axis.get_title() for sub in figure.subfigs for axis in sub.axes}
    assert {"group\ntraining 0, noise 0", "recordings", "Validation loss"} <= titles
    index = write_index([experiment, replace(experiment, name="not-run")], settings)
    assert "[Batch or group](tiny.md)" in index and "not-run" not in index

    monkeypatch.setattr(Experiments, "train", None)  # nothing is trained again
    monkeypatch.setattr(Experiments, "load_reference", lambda *_: pytest.fail("nothing is to be measured"))
    assert run_experiment(experiment, settings, trials) == outcomes


def test_another_space_is_refused(tiny):
    experiment, settings, trials = tiny
    with pytest.raises(ValueError, match="space='latent' is unknown; choose one of spectrogram"):
        run_experiment(experiment, replace(settings, space="latent"), trials)


def test_another_setting_or_seed_is_another_training(tiny):
    _, settings, trials = tiny
    folders = {
        Experiments._folder(changed(settings, changes), 0, trials.clips)
        for changes in ({}, {"train.num_steps": 21}, {"sampler.num_inference_steps": 3}, {"train.seed": 5})
    }
    assert len(folders) == 4


def test_what_decides_the_data_is_another_dataset(tiny):
    _, settings, _ = tiny
    same = (
        {},
        {"spectrogram.phase": "griffin_lim"},
        {"dataset.time_shift": False},
        {"dataset.num_workers": 2},
    )
    for changes in same:
        wanted = changed(settings, changes)
        assert Experiments.with_own_dataset(settings, wanted) == wanted
    other = ({"spectrogram.scale": "linear"}, {"dataset.overlap": 0.5}, {"dataset.seed": 1})
    names = {
        Experiments.with_own_dataset(settings, changed(settings, changes)).dataset.name for changes in other
    }
    assert len(names | {settings.dataset.name}) == 4


def test_other_demo_music_is_another_corpus_and_own_music_has_none(tiny, tmp_path):
    _, settings, _ = tiny
    demo = replace(settings, root=tmp_path, music_dir=None)
    wanted = Experiments.with_own_dataset(demo, changed(demo, {"demo_music.seed": 7}))
    assert wanted.demo_music_dir != demo.demo_music_dir and wanted.dataset_dir != demo.dataset_dir
    with pytest.raises(ValueError, match="a variant changes demo_music, but the music is your own"):
        Experiments.with_own_dataset(settings, changed(settings, {"demo_music.seed": 7}))


def test_a_divergence_is_an_outcome(tiny, monkeypatch, few_draws):
    experiment, settings, trials = tiny

    def diverge(recipe, run_dir):
        (run_dir / "metrics.csv").write_text("step,loss,lr,grad_norm,samples_per_second,val_loss\n")
        raise TrainingDiverged("the loss is nan")

    monkeypatch.setattr(Experiments, "train", diverge)
    settings = changed(settings, {"train.num_steps": 7})
    outcomes = run_experiment(experiment, settings, trials)
    assert all(o.diverged and o.distance is None for o in outcomes)
    text, _ = write_report(experiment, outcomes, settings, trials)
    assert "diverged with 2 of 2 seeds" in text


def test_an_interrupted_experiment_goes_on(tiny, monkeypatch, few_draws):
    experiment, settings, trials = tiny
    settings = changed(settings, {"train.num_steps": 9})
    real, calls = Experiments.train, []

    def stop_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(Experiments, "train", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, settings, trials)
    assert len(run_experiment(experiment, settings, trials)) == 4
    assert len(calls) == 5  # two at first, three more


def test_full_scale_is_the_same_experiments_with_another_preset():
    assert journal_experiments(BASE).keys() == journal_experiments(TRIAL).keys()
