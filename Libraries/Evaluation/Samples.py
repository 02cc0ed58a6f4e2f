"""Generate clips of a trained run, measure them, and write what can be seen and heard of them."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Disk import remove_leftovers, write_whole
from Libraries.Evaluation.Reference import (
    against_recordings,
    make_yardstick,
    recordings_table,
    spread_clips,
)
from Libraries.Evaluation.Seams import SeamReport, measure_seams
from Libraries.Measures import Measures, plot_measures
from Libraries.Plots.SpectrogramPlots import plot_comparison, plot_trajectory, save_figure
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.Settings import Settings
from Libraries.Sampling.Editing import EditConfig, Editor, seams
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Likelihood import bits_per_dimension
from Libraries.Sampling.Loop import Callback, SamplerConfig
from Libraries.Sound.Audio import save_audio
from Libraries.Utils import spread_indices

PICTURED = 4  # generated and real clips in samples.png


def spread_labels(dataset: SpectrogramDataset, count: int) -> Tensor:
    """Return the labels of these clips, int64 (N,)."""
    return dataset.labels[spread_indices(len(dataset), count)]


def evaluate(
    model: DiffusionRun,
    train: SpectrogramDataset,
    test: SpectrogramDataset,
    settings: Settings,
    folder: Path,
) -> dict:
    """Sample clips, write their audio and pictures to `folder`, and return the figures.

    The keys are those of `Measures.summary` and of `copying`, `stages` (against the recordings, by stage) and
    `seconds_per_clip` for sampling and decoding. All measures are in measures.md, measures.json and
    measures.png (`save_measures`).

    Raises:
        LeakageError: the model was trained on test pieces.
    """
    model.require_unheard(test.folder)
    if model.run is not None:
        remove_leftovers(model.run.results_dir)
    rate = model.spectrogram.config.sample_rate
    seeds = range(settings.evaluation.num_samples)
    start = time.perf_counter()
    x0 = model.generate(
        seeds, settings.sampler, settings.evaluation.batch_size,
        labels=model.labels_in_turn(len(seeds)), guidance=settings.guidance,
    )  # fmt: skip
    samples = model.to_audio(x0)
    seconds = (time.perf_counter() - start) / len(seeds)
    save_clips(samples, [f"sample-{seed:04d}" for seed in seeds], folder / "audio", rate)
    real = spread_clips(test, len(seeds))
    beside = model.to_audio(real[spread_indices(len(real), PICTURED)])
    figure = plot_comparison(samples, beside, rate, "Generated and real clips", PICTURED)
    save_figure(figure, folder / "samples.png")
    states = record_trajectory(model, settings.sampler, seed=0)
    save_figure(
        plot_trajectory(states, model.spectrogram.config, "From noise to music"),
        folder / "trajectory.png",
    )
    yardstick = make_yardstick(model.to_audio, train, test, len(seeds))
    generated = yardstick.describe(samples)
    measures = yardstick.compare(generated)
    stages = against_recordings(model, settings, yardstick, generated, test)
    save_measures(measures, folder, below=recordings_table(stages, settings, test))
    return {
        **measures.summary(),
        "stages": {name: found.summary() for name, found in stages.items()},
        **copying(x0, real, train),
        "seconds_per_clip": seconds,
    }


def save_measures(
    measures: Measures, folder: Path, title: str = "Generated clips against real ones", below: str = ""
) -> Figure:
    """Write measures.md (with a text below the table), measures.json and measures.png; return the picture."""
    table = f"{measures.table()}\n\n{below}".rstrip()
    for suffix, text in (("md", table), ("json", measures.to_json())):
        write_whole(folder / f"measures.{suffix}", f"{text}\n".encode())
    figure = plot_measures(measures, title)
    save_figure(figure, folder / "measures.png")
    return figure


def copying(samples: Tensor, test: Tensor, train: SpectrogramDataset) -> dict[str, float]:
    """Return the median distance of samples and of test clips (both x0) to the nearest training clip.

    Samples that are much nearer than test clips are copies.
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

    The distance is the root mean square of the difference between normalised tensors. A sample that is much
    nearer to a training clip than test clips are is a copy.
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


def bits_of_clips(
    model: DiffusionRun, test: Tensor, seeds: Iterable[int], labels: Tensor | None = None
) -> float:
    """Return the mean variational bound in bits per dimension of test clips x0 (N, C, F, T) or their latents.

    The variance is the learned one if there is one, else β, the better of the two fixed variances. `labels`
    are int64 (N,), as in `DiffusionRun.denoiser`.
    """
    learned = model.schedule.config.learned_variance
    bits = bits_per_dimension(
        model.denoiser(labels, with_variance=learned), model.schedule, model.encode(test), seeds,
        variance="learned" if learned else "fixed_large", progress=True,
    )  # fmt: skip
    return bits.mean().item()


def continue_clip(
    model: DiffusionRun, editor: Editor, x0: Tensor, edit: EditConfig
) -> tuple[Tensor, SeamReport]:
    """Continue a clip x0 (1, C, F, T) to `edit.continue_seconds`, with seed 0.

    Returns:
        The waveform (channels, L), and the steps at the clip's end and at the seams between windows.
    """
    spectrogram = model.spectrogram.config
    n_frames, overlap = map(spectrogram.frames_in, (edit.continue_seconds, edit.overlap_seconds))
    long = editor.extend(x0.to(model.device), n_frames, overlap, [0])
    waveform = model.to_audio(long, any_length=True)[0]
    seconds = spectrogram.hop_length / spectrogram.sample_rate
    places = [frame * seconds for frame in seams(spectrogram.n_frames, n_frames, overlap)]
    return waveform, measure_seams(waveform, places, spectrogram.sample_rate)


def loop_clip(model: DiffusionRun, editor: Editor, x0: Tensor, edit: EditConfig) -> Tensor:
    """Make a loop that begins with x0 (1, C, F, T), of `edit.loop_seconds` or one clip, with seed 0.

    Returns:
        The waveform (channels, L) of the loop played twice, so that its seam can be heard.
    """
    spectrogram = model.spectrogram.config
    n_frames = max(spectrogram.frames_in(edit.loop_seconds), spectrogram.n_frames)
    overlap = spectrogram.frames_in(edit.overlap_seconds)
    loop = editor.loop(x0.to(model.device), n_frames, overlap, [0])
    return model.to_audio(loop.repeat(1, 1, 1, 2), any_length=True)[0]


def record_trajectory(
    model: DiffusionRun,
    config: SamplerConfig,
    seed: int,
    count: int = 6,
    *,
    labels: Tensor | None = None,
    guidance: GuidanceConfig | None = None,
    callback: Callback | None = None,
) -> list[tuple[int, Tensor, Tensor]]:
    """Sample one seed; return (t, x_t, predicted x0) at `count` evenly spread steps, latents decoded.

    `labels` is int64 (1,); it, `guidance` and `callback` are as in `DiffusionRun.generate`.
    """
    kept = set(spread_indices(config.num_inference_steps, count))
    states = []

    def keep(step: int, t: int, x_t: Tensor, x0: Tensor) -> None:
        if callback is not None:
            callback(step, t, x_t, x0)
        if step in kept:
            states.append((t, model.decode(x_t), model.decode(x0)))

    model.generate([seed], config, 1, labels=labels, guidance=guidance, callback=keep)
    return states


def save_clips(waveforms: Tensor, names: Sequence[str], folder: Path, sample_rate: int) -> list[Path]:
    """Write waveforms (N, channels, L) as `folder/<name>.wav`; return the paths."""
    paths = [folder / f"{name}.wav" for name in names]
    for waveform, path in zip(waveforms, paths, strict=True):
        save_audio(path, waveform, sample_rate)
    return paths


def example_input(model: DiffusionRun) -> tuple[Tensor, Tensor]:
    """Return a batch of one, x_t and t, to trace the network with."""
    return torch.zeros(1, *model.shape), torch.tensor([0])
