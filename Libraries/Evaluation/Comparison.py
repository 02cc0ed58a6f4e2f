"""Compare samplers, guidance scales and EMA lengths on the same seeds."""

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Evaluation.Samples import distances
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.Settings import Settings
from Libraries.Sampling.Loop import SamplerConfig, switch_sampler


@dataclass(frozen=True)
class Variant:
    """Clips generated in one of the compared ways, with their cost and quality."""

    name: str
    x0: Tensor  # (N, C, F, T)
    seconds: float  # per clip
    distance: float  # log-mel Frechet distance to the test split


def compare(model: DiffusionRun, makers: dict[str, Callable[[], Tensor]], test: Tensor) -> list[Variant]:
    """Generate clips in every named way and measure each.

    Args:
        model: decodes the clips.
        makers: each returns x0 (N, C, F, T) for the same seeds.
        test: waveforms (N, 1, L) of the test split; at least as many as are generated, or the floor differs.
    """
    variants, rate = [], model.spectrogram.config.sample_rate
    for name, make in tqdm(makers.items(), desc="comparing", unit="variant"):
        start = time.perf_counter()
        x0 = make()
        seconds = (time.perf_counter() - start) / len(x0)
        found = distances({"samples": model.to_audio(x0)}, test, rate)
        variants.append(Variant(name, x0, seconds, found["samples_to_test"]))
    return variants


def compare_samplers(
    model: DiffusionRun, settings: Settings, test: Tensor
) -> list[tuple[SamplerConfig, Variant]]:
    """Sample the same seeds with every sampler and number of steps in `settings.evaluation`.

    Numbers of steps above the schedule's are skipped.
    """
    seeds, batch_size = range(settings.evaluation.compared_clips), settings.evaluation.batch_size
    quick = switch_sampler(settings.sampler, "ddim", 1)
    model.generate(seeds[:batch_size], quick, batch_size, progress=False)  # warm up: the first call is slow
    configs = {
        f"{name}, {steps} steps": switch_sampler(settings.sampler, name, steps)
        for name in settings.evaluation.samplers
        for steps in settings.evaluation.steps
        if steps <= model.schedule.num_train_timesteps
    }
    makers = {
        name: functools.partial(model.generate, seeds, config, batch_size, progress=False)
        for name, config in configs.items()
    }
    return list(zip(configs.values(), compare(model, makers, test), strict=True))


def compare_guidance(model: DiffusionRun, settings: Settings, test: Tensor) -> list[Variant]:
    """Sample the same seeds with every guidance scale in `settings.evaluation`.

    The method is that of the settings. If that is "none", it is classifier-free guidance for a network with
    classes that can do without a label, else autoguidance.
    """
    seeds, guidance = range(settings.evaluation.compared_clips), settings.guidance
    labels = model.labels_in_turn(len(seeds))
    if guidance.method == "none":
        method = "autoguidance" if labels is None or model.needs_labels else "classifier_free"
        guidance = replace(guidance, method=method)
    makers = {
        f"{guidance.method}, scale {scale:g}": functools.partial(
            model.generate, seeds, settings.sampler, settings.evaluation.batch_size,
            labels=labels, guidance=replace(guidance, scale=scale), progress=False,
        )
        for scale in settings.evaluation.guidance_scales
    }  # fmt: skip
    return compare(model, makers, test)


def compare_ema_lengths(run_dir: Path, settings: Settings, test: Tensor) -> list[Variant]:
    """Sample the same seeds with every EMA length in `settings.evaluation` and with the trained EMA."""
    model = DiffusionRun.load(run_dir)
    seeds, batch_size = range(settings.evaluation.compared_clips), settings.evaluation.batch_size

    def make(length: float | None) -> Tensor:
        own = DiffusionRun.load(run_dir, ema_length=length)
        return own.generate(seeds, settings.sampler, batch_size, progress=False)

    lengths = {"as trained": None, **{f"{length:g}": length for length in settings.evaluation.ema_lengths}}
    return compare(model, {name: functools.partial(make, at) for name, at in lengths.items()}, test)


def sampler_curves(found: list[tuple[SamplerConfig, Variant]]) -> dict[str, list[tuple[int, float, float]]]:
    """Return (steps, seconds per clip, distance) by sampler, for `Plots.plot_sampler_curves`."""
    curves = {}
    for config, variant in found:
        point = config.num_inference_steps, variant.seconds, variant.distance
        curves.setdefault(config.name, []).append(point)
    return curves


def variant_table(variants: Iterable[Variant], heading: str) -> str:
    """Return variants as lines of text: name, Frechet distance to the test split, seconds per clip."""
    lines = [f"{heading:28s} {'distance':>9s} {'s/clip':>7s}"]
    lines += [f"{v.name!s:28s} {v.distance:9.2f} {v.seconds:7.2f}" for v in variants]
    return "\n".join(lines)
