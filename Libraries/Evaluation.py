"""How good generated clips are, measured against the dataset they should resemble.

Real and generated clips pass through the same decoder at the same level, so that the figures judge the
model and neither the inverse transform nor the loudness.
"""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Audio import save_audio
from Libraries.Dataset import SpectrogramDataset
from Libraries.Generator import Generator
from Libraries.Likelihood import bits_per_dimension
from Libraries.Metrics import frechet_distance, log_mel_statistics
from Libraries.Plots import plot_comparison, plot_trajectory, save_figure
from Libraries.Samplers import SamplerConfig, switch_sampler
from Libraries.Settings import Settings
from Libraries.Utils import SampleNoise, spread_indices


def spread_clips(dataset: SpectrogramDataset, count: int) -> Tensor:
    """Return `count` clips spread evenly over a split (all where there are fewer): x0 (N, C, F, T)."""
    return dataset.__getitems__(spread_indices(len(dataset), count))[0]


def evaluate(
    generator: Generator,
    train: SpectrogramDataset,
    test: SpectrogramDataset,
    settings: Settings,
    folder: Path,
) -> dict:
    """Sample `settings.num_samples` clips, write their sound and pictures to `folder`, return the figures.

    The keys are those of `distances` and `copying`, and `seconds_per_clip` of sampling and decoding.
    """
    rate = generator.spectrogram.config.sample_rate
    seeds = range(settings.num_samples)
    start = time.perf_counter()
    x0 = generator.generate(
        seeds, settings.sampler, settings.sample_batch_size,
        labels=generator.labels_in_turn(len(seeds)), guidance=settings.guidance,
    )  # fmt: skip
    samples = generator.to_audio(x0)
    seconds = (time.perf_counter() - start) / len(seeds)
    real = {"train": spread_clips(train, len(seeds)), "test": spread_clips(test, len(seeds))}
    sound = {name: generator.to_audio(clips) for name, clips in real.items()}
    save_clips(samples, [f"sample-{seed:04d}" for seed in seeds], folder / "audio", rate)
    save_figure(
        plot_comparison(samples, sound["test"], rate, "Generated and real clips"), folder / "samples.png"
    )
    states = record_trajectory(generator, settings.sampler, seed=0)
    save_figure(
        plot_trajectory(states, generator.spectrogram.config, "From noise to music"),
        folder / "trajectory.png",
    )
    noise = generator.to_audio(SampleNoise(seeds)(x0.shape[1:]).clamp(-1, 1))
    return {
        **distances({"samples": samples, "train": sound["train"], "noise": noise}, sound["test"], rate),
        **copying(x0, real["test"], train),
        "seconds_per_clip": seconds,
    }


def distances(sets: dict[str, Tensor], test: Tensor, sample_rate: int) -> dict[str, float]:
    """Return the log-mel Frechet distance of each set of clips to the test split.

    The distance between finite sets falls with their number, so all are cut to the size of the smallest.

    Args:
        sets: waveforms (N, 1, L) by name, decoded as `test` was: "samples", "train" for the floor (two
            sets of real music), "noise" for what an untrained model would give.
        test: waveforms (N, 1, L) of the test split.
        sample_rate: Hz.

    Returns:
        `<name>_to_test` of each set, and `clips`, how many of each were compared.
    """
    count = min(len(test), *(len(waveforms) for waveforms in sets.values()))
    reference = log_mel_statistics(test[:count], sample_rate)
    found = {
        f"{name}_to_test": frechet_distance(log_mel_statistics(waveforms[:count], sample_rate), reference)
        for name, waveforms in sets.items()
    }
    return {**found, "clips": count}


def copying(samples: Tensor, test: Tensor, train: SpectrogramDataset) -> dict[str, float]:
    """Return the median distance to the nearest training clip, of samples and of test clips (both x0).

    Samples much nearer than test clips are copies.
    """
    nearest = {"samples": samples, "test": test}
    return {
        f"{name}_to_nearest_train": nearest_in_training(x0, train)[0].median().item()
        for name, x0 in nearest.items()
    }


def nearest_in_training(
    x0: Tensor, dataset: SpectrogramDataset, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Return each x0's distance to its nearest training clip and that clip's index, both (N,).

    The distance is the root mean square of the difference of the normalised tensors. A sample that is much
    nearer to a training clip than a test clip is has been copied.
    """
    best, index = torch.full((len(x0),), float("inf")), torch.zeros(len(x0), dtype=torch.int64)
    flat = x0.flatten(1)
    for start in range(0, len(dataset), batch_size):
        clips = dataset.__getitems__(list(range(start, min(start + batch_size, len(dataset)))))[0].flatten(1)
        distances = torch.cdist(flat, clips) / flat.shape[1] ** 0.5
        closest, where = distances.min(dim=1)
        index = torch.where(closest < best, where + start, index)
        best = torch.minimum(best, closest)
    return best, index


@dataclass(frozen=True)
class Variant:
    """Clips of the same seeds made in one of several ways, and what they cost and are worth."""

    name: str
    x0: Tensor  # (N, C, F, T)
    seconds: float  # a clip
    distance: float  # log-mel Frechet distance to the test split


def compare(generator: Generator, makers: dict[str, Callable[[], Tensor]], test: Tensor) -> list[Variant]:
    """Make clips in every named way and measure each.

    Args:
        generator: decodes them.
        makers: each returns x0 (N, C, F, T), of the same seeds.
        test: waveforms (N, 1, L) of the test split; at least as many as are made, or the floor differs.
    """
    variants, rate = [], generator.spectrogram.config.sample_rate
    for name, make in tqdm(makers.items(), desc="comparing", unit="variant"):
        start = time.perf_counter()
        x0 = make()
        seconds = (time.perf_counter() - start) / len(x0)
        found = distances({"samples": generator.to_audio(x0)}, test, rate)
        variants.append(Variant(name, x0, seconds, found["samples_to_test"]))
    return variants


def compare_samplers(
    generator: Generator, settings: Settings, test: Tensor
) -> list[tuple[SamplerConfig, Variant]]:
    """Sample the same seeds with every sampler and number of steps of `settings.comparison`.

    A number of steps above the schedule's is left out.
    """
    seeds, batch_size = range(settings.comparison.clips), settings.sample_batch_size
    quick = switch_sampler(settings.sampler, "ddim", 1)
    generator.generate(seeds[:batch_size], quick, batch_size, progress=False)  # warm up: the first is slow
    configs = {
        f"{name}, {steps} steps": switch_sampler(settings.sampler, name, steps)
        for name in settings.comparison.samplers
        for steps in settings.comparison.steps
        if steps <= generator.schedule.num_train_timesteps
    }
    makers = {
        name: functools.partial(generator.generate, seeds, config, batch_size, progress=False)
        for name, config in configs.items()
    }
    return list(zip(configs.values(), compare(generator, makers, test), strict=True))


def compare_guidance(generator: Generator, settings: Settings, test: Tensor) -> list[Variant]:
    """Sample the same seeds with every guidance scale of `settings.comparison`.

    The method is the settings', or where they choose none: by labels if the network knows any, else
    autoguidance.
    """
    seeds, guidance = range(settings.comparison.clips), settings.guidance
    labels = generator.labels_in_turn(len(seeds))
    if guidance.method == "none":
        method = "autoguidance" if labels is None else "classifier_free"
        guidance = replace(guidance, method=method)
    makers = {
        f"{guidance.method}, scale {scale:g}": functools.partial(
            generator.generate, seeds, settings.sampler, settings.sample_batch_size,
            labels=labels, guidance=replace(guidance, scale=scale), progress=False,
        )
        for scale in settings.comparison.guidance_scales
    }  # fmt: skip
    return compare(generator, makers, test)


def compare_ema_lengths(run_dir: Path, settings: Settings, test: Tensor) -> list[Variant]:
    """Sample the same seeds with averages of every length of `settings.comparison`, and the one trained."""
    generator = Generator.load(run_dir)
    seeds, batch_size = range(settings.comparison.clips), settings.sample_batch_size

    def make(length: float | None) -> Tensor:
        own = Generator.load(run_dir, ema_length=length)
        return own.generate(seeds, settings.sampler, batch_size, progress=False)

    lengths = {"as trained": None, **{f"{length:g}": length for length in settings.comparison.ema_lengths}}
    return compare(generator, {name: functools.partial(make, at) for name, at in lengths.items()}, test)


def sampler_curves(found: list[tuple[SamplerConfig, Variant]]) -> dict[str, list[tuple[int, float, float]]]:
    """Return (steps, seconds a clip, distance) by sampler, for `Plots.plot_sampler_curves`."""
    curves = {}
    for config, variant in found:
        point = config.num_inference_steps, variant.seconds, variant.distance
        curves.setdefault(config.name, []).append(point)
    return curves


def variant_table(variants: Iterable[Variant], heading: str) -> str:
    """Return variants as lines of text: name, Frechet distance to the test split, seconds a clip."""
    lines = [f"{heading:28s} {'distance':>9s} {'s/clip':>7s}"]
    lines += [f"{v.name!s:28s} {v.distance:9.2f} {v.seconds:7.2f}" for v in variants]
    return "\n".join(lines)


def bits_of_clips(generator: Generator, test: Tensor, seeds: Iterable[int]) -> float:
    """Return the mean variational bound of test clips x0 (N, C, F, T), in bits a dimension.

    The variance is the learned one where there is one, else β, which is the better of the two fixed ones.
    """
    variance = "learned" if generator.schedule.learned_variance else "fixed_large"
    bits = bits_per_dimension(
        generator.denoiser(), generator.schedule, test.to(generator.device), seeds,
        variance=variance, progress=True,
    )  # fmt: skip
    return bits.mean().item()


def record_trajectory(
    generator: Generator, config: SamplerConfig, seed: int, count: int = 6
) -> list[tuple[int, Tensor, Tensor]]:
    """Sample one seed and return (t, x_t, predicted x0) at `count` steps spread over the way."""
    kept = set(spread_indices(config.num_inference_steps, count))
    states = []

    def keep(step: int, t: int, x_t: Tensor, x0: Tensor) -> None:
        if step in kept:
            states.append((t, x_t.cpu(), x0.cpu()))

    generator.generate([seed], config, 1, callback=keep, progress=False)
    return states


def save_clips(waveforms: Tensor, names: Sequence[str], folder: Path, sample_rate: int) -> list[Path]:
    """Write waveforms (N, 1, L) as `folder/<name>.wav`; returns the paths."""
    paths = [folder / f"{name}.wav" for name in names]
    for waveform, path in zip(waveforms, paths, strict=True):
        save_audio(path, waveform, sample_rate)
    return paths


def example_input(generator: Generator) -> tuple[Tensor, Tensor]:
    """Return a batch of one to trace the network with: x_t and t."""
    return torch.zeros(1, *generator.spectrogram.config.shape), torch.tensor([0])
