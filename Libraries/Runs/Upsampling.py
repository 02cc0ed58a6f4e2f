"""An upsampler as a whole: settings and dataset -> trained run -> `Upsampler`."""

import functools
from pathlib import Path

import torch
from torch import nn

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Diffusion import DiffusionConfig, NoiseSchedule
from Libraries.Plots.CurvePlots import plot_metrics
from Libraries.Plots.SpectrogramPlots import plot_tensors, save_figure
from Libraries.Runs.PhaseRuns import open_run_spectrogram
from Libraries.Runs.Run import clip_loaders, load_average, open_run, read_conf, results_of
from Libraries.Runs.Settings import Settings, from_dict
from Libraries.Sampling.Loop import SamplerConfig
from Libraries.Sound.LowResolution import ConditioningConfig, LowResolution, LowResolutionConfig
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Loop import fit
from Libraries.Training.RunLog import read_metrics
from Libraries.U_Net import UNetConfig
from Libraries.Upsampler import Upsampler, UpsamplerLoss, make_upsampler_network
from Libraries.Utils import pick_device, spread_indices

PREVIEW_CLIPS = 4


def load_upsampler(run_dir: Path, device: torch.device | None = None) -> Upsampler:
    """Load the newest EMA weights of a run, into the network of the run's own conf.json.

    Raises:
        CheckpointError: the folder is no run, has no weights, or they do not fit its settings.
    """
    conf, device = read_conf(run_dir), device or pick_device()
    settings = conf["settings"]
    spectrogram = from_dict(SpectrogramConfig, settings["spectrogram"])
    diffusion = from_dict(DiffusionConfig, settings["diffusion"])
    network = make_upsampler_network(
        from_dict(UNetConfig, settings["upsampler_unet"]), diffusion, spectrogram
    )
    load_average(network, run_dir)
    upsampler = Upsampler(
        network,
        NoiseSchedule(diffusion),
        LowResolution(from_dict(LowResolutionConfig, settings["view"]), spectrogram),
        from_dict(ConditioningConfig, settings["upsampler"]),
        from_dict(SamplerConfig, settings["upsampler_sampler"]),
        open_run_spectrogram(run_dir, device=device),
        device,
    )
    upsampler.run_dir = Path(run_dir)
    return upsampler


def train_upsampler(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train an upsampler on the dataset of these settings; return its run folder.

    Args:
        settings: of the whole; they are written to the run's conf.json.
        run_dir: an interrupted run to go on with; None starts a new one.

    Raises:
        ValueError: the spectrogram has no such view, the dataset was built with another spectrogram, or the
            run with other settings.
        CheckpointError: `run_dir` is no run.
    """
    low, train = LowResolution(settings.view, settings.spectrogram), settings.upsampler_train
    network = build_upsampler(settings)
    parts = ("spectrogram", "diffusion", "view", "upsampler", "upsampler_unet", "upsampler_train")
    run_dir = open_run(settings, settings.upsampler_dir, run_dir, parts)
    schedule = NoiseSchedule(settings.diffusion)
    fit(
        network,
        UpsamplerLoss(schedule, train.seed, low, settings.upsampler),
        functools.partial(clip_loaders, settings),
        train,
        run_dir,
        preview=functools.partial(save_upsampler_preview, settings, run_dir),
    )
    return run_dir


def build_upsampler(settings: Settings) -> nn.Module:
    """Return a freshly initialised network of these settings: the same weights for the same seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.upsampler_train.seed)
        return make_upsampler_network(settings.upsampler_unet, settings.diffusion, settings.spectrogram)


def save_upsampler_preview(settings: Settings, run_dir: Path, step: int, network: nn.Module) -> None:
    """Write the same validation clips, interpolated and upsampled, and the loss curves to the results."""
    dataset = SpectrogramDataset(settings.dataset_dir, "validation")
    x0 = dataset.__getitems__(spread_indices(len(dataset), PREVIEW_CLIPS))[0]
    upsampler = Upsampler(
        network, NoiseSchedule(settings.diffusion), LowResolution(settings.view, settings.spectrogram),
        settings.upsampler, settings.upsampler_sampler, Spectrogram(settings.spectrogram),
        next(network.parameters()).device,
    )  # fmt: skip
    view = upsampler.low.downsample(x0)
    rows = {
        "small": upsampler.low.enlarge(view),
        "interpolated": upsampler.low.interpolate(view),
        "upsampled": upsampler.upsample(view, range(len(x0)), augmentation=0.0),
        "real": x0,
    }
    titles = [f"{name} {i}" for name in rows for i in range(len(x0))]
    title = f"{run_dir.name}: upsampled after {step} steps"
    results = results_of(settings, run_dir)
    figure = plot_tensors(
        torch.cat(list(rows.values())), titles, settings.spectrogram, title, columns=len(x0)
    )
    save_figure(figure, results / f"upsampled-{step:08d}.png")
    save_figure(plot_metrics(read_metrics(run_dir / "metrics.csv"), run_dir.name), results / "loss.png")
