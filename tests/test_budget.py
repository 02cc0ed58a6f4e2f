"""A training that ends in time: fewer steps on a slow machine, in proportion; the same run after a stop."""

import time
from dataclasses import replace

import pytest

from Libraries.Runs import Budget
from Libraries.Runs.Budget import in_time, seconds_per_step, with_steps
from Libraries.Runs.DiffusionTraining import diffusion_recipe, train_diffusion
from Libraries.Runs.Settings import changed


@pytest.fixture
def a_step_takes(monkeypatch):
    """Make every step take so many seconds."""
    return lambda seconds: monkeypatch.setattr(Budget, "seconds_per_step", lambda recipe: seconds)


def test_another_number_of_steps_keeps_the_shares_of_what_happens_on_the_way(chords):
    config = replace(
        chords.train, num_steps=1000, warmup_steps=50, log_every=10, validate_every=100, save_every=200,
        preview_every=500, snapshot_every=100,
    )  # fmt: skip
    shorter = with_steps(config, 300)
    assert shorter == replace(
        config, num_steps=300, warmup_steps=15, log_every=3, validate_every=30, save_every=60,
        preview_every=150, snapshot_every=30,
    )  # fmt: skip
    assert with_steps(config, 1).log_every == 1


def test_a_slow_machine_takes_as_many_steps_as_fit_and_a_fast_one_all(chords, a_step_takes):
    settings = changed(chords, {"train.num_steps": 20})
    a_step_takes(2.0)
    assert in_time(settings, diffusion_recipe, "train", 19.0).train.num_steps == 9
    assert in_time(settings, diffusion_recipe, "train", 0.0).train.num_steps == 2
    assert in_time(settings, diffusion_recipe, "train", 40.0) == settings


def test_a_run_that_was_begun_keeps_its_steps(chords, a_step_takes):
    settings = changed(chords, {"train.seed": 7, "train.num_steps": 4, "evaluation.num_samples": 3})
    a_step_takes(2.0)
    shorter = in_time(settings, diffusion_recipe, "train", 5.0)
    run_dir = train_diffusion(shorter)
    a_step_takes(1.0)
    assert shorter.train.num_steps == 2
    assert in_time(settings, diffusion_recipe, "train", 5.0) == shorter
    other = changed(settings, {"train.seed": 8})
    assert in_time(other, diffusion_recipe, "train", 3.0).train.num_steps == 3
    assert train_diffusion(shorter, run_dir) == run_dir


def test_a_step_is_timed_with_all_that_it_does(chords):
    recipe = diffusion_recipe(chords)

    def slow(*arguments):
        time.sleep(0.05)
        return recipe.loss(*arguments)

    slow.metric_names, slow.validate = recipe.loss.metric_names, recipe.loss.validate
    before = list(recipe.parent.glob("*"))
    assert seconds_per_step(replace(recipe, loss=slow)) > 0.05
    assert list(recipe.parent.glob("*")) == before  # the training that was timed leaves no run
