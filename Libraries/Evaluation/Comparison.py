"""Compare samplers, guidance scales and EMA lengths on the same seeds, judged on the validation split.

The test split is for the one report of what was chosen (`Samples.evaluate`).
"""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Reference import make_yardstick
from Libraries.Measures import Measures, Yardstick, number, sets_table
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.Settings import Settings
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Loop import SamplerConfig, switch_sampler

CHOSEN_BY = "kernel distance"
KEPT_CLIPS = 4  # of every variant, to look at


@dataclass(frozen=True)
class Variant:
    """Clips generated in one of the compared ways, with their cost and quality."""

    name: str
    x0: Tensor  # (4, C, F, T), the first of them
    seconds: float  # per clip
    measures: Measures  # of all

    def figures(self) -> dict:
        """Return seconds per clip and all measures, for JSON."""
        return {"seconds_per_clip": self.seconds, **self.measures.summary()}


def validation_yardstick(model: DiffusionRun, settings: Settings) -> Yardstick:
    """Describe the validation split, to measure sets of `settings.evaluation.compared_clips`.

    Real clips pass through the model's own decoder, as generated ones do.
    """
    splits = (SpectrogramDataset(settings.dataset_dir, split) for split in ("train", "validation"))
    return make_yardstick(model.to_audio, *splits, settings.evaluation.compared_clips)


def compare(
    model: DiffusionRun, makers: dict[str, Callable[[], Tensor]], yardstick: Yardstick
) -> list[Variant]:
    """Generate clips in every named way and measure each.

    Args:
        model: decodes the clips.
        makers: each returns x0 (N, C, F, T) for the same seeds.
        yardstick: measures all of them.
    """
    variants = []
    for name, make in tqdm(makers.items(), desc="comparing", unit="variant"):
        start = time.perf_counter()
        x0 = make()
        seconds = (time.perf_counter() - start) / len(x0)
        measures = yardstick.measure(model.to_audio(x0))
        variants.append(Variant(name, x0[:KEPT_CLIPS].clone(), seconds, measures))
    return variants


def compare_samplers(
    model: DiffusionRun, settings: Settings, yardstick: Yardstick
) -> list[tuple[SamplerConfig, Variant]]:
    """Sample the same seeds with every sampler and number of steps in `settings.evaluation`.

    Numbers of steps above the schedule's are skipped.
    """
    quick = switch_sampler(settings.sampler, "ddim", 1)
    batch_size = settings.evaluation.batch_size
    model.generate(range(batch_size), quick, batch_size, progress=False)  # warm up: the first call is slow
    configs = {
        f"{name}, {steps} step{'s' * (steps > 1)}": switch_sampler(settings.sampler, name, steps)
        for name in settings.evaluation.samplers
        for steps in settings.evaluation.steps
        if steps <= model.schedule.num_train_timesteps
    }
    makers = {name: _maker(model, settings, config, settings.guidance) for name, config in configs.items()}
    return list(zip(configs.values(), compare(model, makers, yardstick), strict=True))


def compare_guidance(model: DiffusionRun, settings: Settings, yardstick: Yardstick) -> list[Variant]:
    """Sample the same seeds with every guidance scale in `settings.evaluation`.

    The method is that of the settings. If that is "none", it is classifier-free guidance for a network with
    classes that can do without a label, else autoguidance.
    """
    guidance = settings.guidance
    if guidance.method == "none":
        without = model.network.config.num_classes and not model.needs_labels
        method = "classifier_free" if without else "autoguidance"
        guidance = replace(guidance, method=method)
    makers = {
        f"{guidance.method}, scale {scale:g}": _maker(
            model, settings, settings.sampler, replace(guidance, scale=scale)
        )
        for scale in settings.evaluation.guidance_scales
    }
    return compare(model, makers, yardstick)


def compare_ema_lengths(run_dir: Path, settings: Settings, yardstick: Yardstick) -> list[Variant]:
    """Sample the same seeds with every EMA length in `settings.evaluation` and with the trained EMA."""
    lengths = {"as trained": None, **{f"{length:g}": length for length in settings.evaluation.ema_lengths}}

    def make(length: float | None) -> Tensor:
        own = DiffusionRun.load(run_dir, ema_length=length)
        return _maker(own, settings, settings.sampler, settings.guidance)()

    makers = {name: functools.partial(make, length) for name, length in lengths.items()}
    return compare(DiffusionRun.load(run_dir), makers, yardstick)


def sampler_curves(
    found: list[tuple[SamplerConfig, Variant]],
) -> dict[str, list[tuple[int, float, float, float, float]]]:
    """Return (steps, seconds per clip, kernel distance, low, high) by sampler: `plot_sampler_curves`."""
    curves = {}
    for config, variant in found:
        row = variant.measures[CHOSEN_BY]
        point = config.num_inference_steps, variant.seconds, row.value, row.low, row.high
        curves.setdefault(config.name, []).append(point)
    return curves


def variant_table(
    variants: Iterable[Variant], heading: str, extra: dict[str, Sequence[str]] | None = None
) -> str:
    """Return variants as a Markdown table: the measures, how far behind the nearest, seconds per clip.

    Where the interval of a variant's distance behind the nearest contains 0, no difference was shown.

    Args:
        extra: more columns, by heading: a cell for each variant.
    """
    variants = list(variants)
    rows = [variant.measures[CHOSEN_BY] for variant in variants]
    best = min(rows, key=lambda row: row.value)
    behind = ["" if row is best else "{} [{}, {}]".format(*map(number, row.minus(best))) for row in rows]
    seconds = [f"{variant.seconds:.3f}" for variant in variants]
    columns = {**(extra or {}), "behind the nearest": behind, "s/clip": seconds}
    return sets_table(heading, {variant.name: variant.measures for variant in variants}, extra=columns)


def _maker(
    model: DiffusionRun, settings: Settings, sampler: SamplerConfig, guidance: GuidanceConfig
) -> Callable[[], Tensor]:
    """Return what samples the compared seeds in this way, the classes in turn."""
    count = settings.evaluation.compared_clips
    return functools.partial(
        model.generate, range(count), sampler, settings.evaluation.batch_size,
        labels=model.labels_in_turn(count), guidance=guidance, progress=False,
    )  # fmt: skip
