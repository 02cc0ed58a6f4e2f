"""A training that ends in time: as many steps as this machine can take until then."""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from Libraries.Runs.Recipe import Recipe, can_resume
from Libraries.Runs.Run import Run, find_run
from Libraries.Runs.Settings import Settings, changed
from Libraries.Training.Loop import fit
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import get_logger

logger = get_logger("Budget")

TIMED_STEPS = 16
SLOW_STEPS = 4  # of a start, which are not counted
PERIODS = tuple(f"{what}_every" for what in ("log", "validate", "save", "preview", "snapshot"))


def in_time(
    settings: Settings, make_recipe: Callable[[Settings], Recipe], part: str, seconds: float
) -> Settings:
    """Return settings whose training ends within `seconds` on this machine: with fewer steps, never more.

    A tenth of the steps is left in any case. What happens on the way, and the learning rate, keep their
    shares of the training. Where a run of these settings was begun before, its number of steps is taken, so
    that it can be resumed.

    Args:
        make_recipe: such as `vae_recipe`.
        part: the settings of that training, such as "vae.train".
    """
    recipe = make_recipe(settings)

    def of(steps: int) -> Settings:
        return changed(settings, {part: with_steps(recipe.train, steps)})

    def begun_so(run: Run) -> bool:
        steps = run.config(part).num_steps
        return steps <= recipe.train.num_steps and can_resume(make_recipe(of(steps)), run)

    if run := find_run([recipe.parent], "conf.json", begun_so):
        return of(run.config(part).num_steps)
    fewest = -(-recipe.train.num_steps // 10)
    steps = max(fewest, int(seconds / seconds_per_step(recipe)))
    if steps >= recipe.train.num_steps:
        return settings
    logger.info("%s: %d of %d steps, to end in %.0f s", part, steps, recipe.train.num_steps, seconds)
    return of(steps)


def with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """Return a training of so many steps, with as many saves, validations and pictures as before."""
    share = steps / config.num_steps
    periods = {name: max(1, round(share * getattr(config, name))) for name in PERIODS}
    return replace(config, num_steps=steps, warmup_steps=round(share * config.warmup_steps), **periods)


def seconds_per_step(recipe: Recipe) -> float:
    """Return the median seconds of a training step, from the start of a training that is thrown away."""
    timed = replace(
        recipe.train, num_steps=SLOW_STEPS + TIMED_STEPS, log_every=2, power_ema=(), validate_every=10**6,
        save_every=10**6, preview_every=10**6, num_validation_clips=1, tracker="none",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(recipe.network(), recipe.loss, recipe.loaders, timed, Path(folder))
        rows = [row for row in read_metrics(Path(folder) / "metrics.csv") if "loss" in row]
    speeds = [row["samples_per_second"] for row in rows[SLOW_STEPS // 2 :]]
    return timed.batch_size * timed.grad_accumulation / statistics.median(speeds)
