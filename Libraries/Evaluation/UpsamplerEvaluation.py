"""Measure an upsampler and its cascade against interpolation and generation at full size."""

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Comparison import Variant, compare, variant_table
from Libraries.Evaluation.Reference import spread_clips
from Libraries.Evaluation.Restoration import Restored
from Libraries.Evaluation.Samples import save_clips
from Libraries.Measures import Yardstick
from Libraries.Plots.SpectrogramPlots import plot_tensors, plot_waveform_spectrograms, save_figure
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.Settings import Settings
from Libraries.Runs.Upsampling import LowResolutionCodec
from Libraries.Sound.LowResolution import LowResolution
from Libraries.Sound.Metrics import COMPARED_HZ, log_spectral_distance
from Libraries.Upsampler import Upsampler


@dataclass(frozen=True)
class CascadeRow:
    """One way to a full spectrogram with its figures; a row of the table."""

    variant: Variant  # seconds per clip include the first model's sampling
    spectral_distance: float | None  # dB, of upsampled real clips, above the cut; None: no upsampling

    def figures(self) -> dict:
        """Return all figures, for JSON."""
        return {"log_spectral_distance": self.spectral_distance, **self.variant.figures()}


def with_steps(upsampler: Upsampler, num_inference_steps: int) -> Upsampler:
    """Return the upsampler with another number of steps and the same network."""
    other = copy.copy(upsampler)
    other.sampler = replace(upsampler.sampler, num_inference_steps=num_inference_steps)
    return other


def with_codec(model: DiffusionRun, codec: LowResolutionCodec) -> DiffusionRun:
    """Return the first model of a cascade with another codec for its small spectrograms."""
    other = copy.copy(model)
    other.codec = codec
    return other


def ways(upsampler: Upsampler | None, steps: Iterable[int]) -> dict[str, LowResolutionCodec]:
    """Return the compared ways from small to full spectrograms, by name."""
    if upsampler is None:
        raise ValueError(
            "this cascade has no upsampler of its low resolution yet: train one (Train Upsampler)"
        )
    codecs = {"interpolation": LowResolutionCodec(upsampler.low, None)}
    for count in steps:
        name = f"upsampler, {count} step{'s' * (count > 1)}"
        codecs[name] = LowResolutionCodec(upsampler.low, with_steps(upsampler, count))
    return codecs


def compare_cascade(
    model: DiffusionRun,
    settings: Settings,
    yardstick: Yardstick,
    beside: dict[str, DiffusionRun] | None = None,
) -> list[CascadeRow]:
    """Measure every way in `settings.evaluation` on the same seeds and the same validation clips.

    Args:
        model: the first model of a cascade, with its upsampler.
        yardstick: measures the generated clips (`validation_yardstick`).
        beside: other models of full spectrograms by name, each for a row of its own.

    Raises:
        ValueError: the cascade has no upsampler.
        LeakageError: a model was trained on test pieces of the settings' dataset.
    """
    for own in (model, *(beside or {}).values()):
        own.require_unheard(settings.dataset_dir)
    upsampler, count = model.codec.upsampler, settings.evaluation.compared_clips
    codecs = ways(upsampler, settings.evaluation.upsampler_steps)
    models = {name: with_codec(model, codec) for name, codec in codecs.items()}
    models |= beside or {}
    makers = {
        name: functools.partial(
            own.generate, range(count), settings.sampler,
            settings.evaluation.batch_size, labels=own.labels_in_turn(count), progress=False,
        )
        for name, own in models.items()
    }  # fmt: skip
    real = spread_clips(SpectrogramDataset(settings.dataset_dir, "validation"), count)
    sound = model.to_audio(real)
    distances = {
        name: spectral_distance(codec.low, sound, model.to_audio(upsampled_real(codec, real)))
        for name, codec in codecs.items()
    }
    variants = compare(model, makers, yardstick)
    return [CascadeRow(variant, distances.get(variant.name)) for variant in variants]


def upsampled_real(codec: LowResolutionCodec, x0: Tensor) -> Tensor:
    """Return real clips x0 (N, C, F, T) upsampled from their low resolution, without augmentation."""
    y = codec.low.downsample(x0)
    if codec.upsampler is None:
        return codec.low.interpolate(y)
    return codec.upsampler.upsample(y, range(len(x0)), augmentation=0.0)


def spectral_distance(low: LowResolution, real: Tensor, made: Tensor) -> float:
    """Return the mean log-spectral distance in dB, above the cut, between waveforms (N, channels, L)."""
    config = low.spectrogram
    compared = config.sample_rate, min(COMPARED_HZ, config.kept_frequency)
    return log_spectral_distance(real, made, *compared, low.compared_from).mean().item()


def low_resolution_error(low: LowResolution, y: Tensor, x0: Tensor) -> float:
    """Return the largest error of the low resolution of x0 (N, C, F, T) against y, in normalised values."""
    return (low.downsample(x0) - y).abs().max().item()


def errors_by_augmentation(upsampler: Upsampler, x0: Tensor, levels: Iterable[float]) -> dict[float, float]:
    """Return the mean error of the low resolution of upsampled clips x0, by augmentation level.

    Data consistency is off: at level 0 the network has to copy its conditioning; at level 1 it cannot see
    the conditioning, and the error is that between unrelated clips.
    """
    free = copy.copy(upsampler)
    free.config = replace(upsampler.config, data_consistency=False)
    y, seeds = upsampler.low.downsample(x0), range(len(x0))
    upsampled = {level: free.upsample(y, seeds, augmentation=level) for level in levels}
    return {level: (upsampler.low.downsample(x) - y).abs().mean().item() for level, x in upsampled.items()}


def same_seeds(model: DiffusionRun, settings: Settings, seeds: Iterable[int]) -> dict[str, Tensor]:
    """Return a cascade's x0 for each seed, by name: small (enlarged), interpolated, upsampled."""
    seeds, low = list(seeds), model.codec.low
    plain = with_codec(model, LowResolutionCodec(low, None))
    interpolated = plain.generate(seeds, settings.sampler, settings.evaluation.batch_size, progress=False)
    y = low.downsample(interpolated)  # exactly as generated
    return {
        "small": low.enlarge(y),
        "interpolated": interpolated,
        "upsampled": model.codec.decode(y, seeds),
    }


def save_three_ways(
    model: DiffusionRun, settings: Settings, seeds: Iterable[int], folder: Path
) -> tuple[Figure, dict[str, Tensor]]:
    """Write `folder/cascade.png` and the audio of `same_seeds`; return picture and waveforms (N, C, L)."""
    seeds = list(seeds)
    versions = same_seeds(model, settings, seeds)
    titles = [f"{name}, seed {seed}" for name in versions for seed in seeds]
    clips, title = torch.cat(list(versions.values())), "The same seeds, three ways"
    figure = plot_tensors(clips, titles, settings.spectrogram, title, columns=len(seeds))
    save_figure(figure, folder / "cascade.png")
    sound = {name: model.to_audio(x0) for name, x0 in versions.items()}
    for name, waveforms in sound.items():
        names = [f"{name}-{seed:04d}" for seed in seeds]
        save_clips(waveforms, names, folder / "audio", settings.spectrogram.sample_rate)
    return figure, sound


def save_restored(
    restored: Restored, original: Tensor, sample_rate: int, folder: Path
) -> tuple[Figure, dict[str, Tensor]]:
    """Write `folder/restored.png` and the lost, restored and original audio; return picture and waveforms.

    Args:
        original: float32 (channels, L), the file before its upper band was lost.
    """
    sound = {"lost": restored.original, "restored": restored.waveform, "original": original}
    save_clips(sound.values(), sound, folder / "audio", sample_rate)
    title = f"Inpainted above {restored.cut_frequency / 1000:.1f} kHz"
    figure = plot_waveform_spectrograms(sound.values(), sound, sample_rate, title, columns=3)
    save_figure(figure, folder / "restored.png")
    return figure, sound


def cascade_table(rows: Iterable[CascadeRow], heading: str) -> str:
    """Return rows as a Markdown table: `variant_table` with the log-spectral distance of real clips."""
    rows = list(rows)
    lsd = ["–" if row.spectral_distance is None else f"{row.spectral_distance:.2f}" for row in rows]
    return variant_table([row.variant for row in rows], heading, {"LSD of real clips (dB)": lsd})
