"""Upsampler runs: settings and dataset -> trained run -> codec of small spectrograms."""

import functools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from Libraries.Dataset.Manifest import INVERSE_ONLY
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Diffusion import NoiseSchedule
from Libraries.Plots.CurvePlots import plot_metrics
from Libraries.Plots.SpectrogramPlots import plot_tensors
from Libraries.Runs.CodecEditing import CascadeEditor
from Libraries.Runs.Leakage import find_unheard
from Libraries.Runs.Recipe import (
    AUGMENTATION,
    Recipe,
    clip_loaders,
    music_record,
    resumable,
    save_preview_figures,
    train,
)
from Libraries.Runs.Run import Run, find_run
from Libraries.Runs.Settings import Settings, to_dict
from Libraries.Sampling.Editing import Editor
from Libraries.Sound.LowResolution import LowResolution
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import WEIGHTS
from Libraries.Training.Loop import decided_once
from Libraries.Training.Tracker import Shown
from Libraries.Upsampler import Upsampler, UpsamplerLoss, make_upsampler_network
from Libraries.Utils import get_logger, pick_device, spread_indices

logger = get_logger("Upsampling")

PREVIEW_CLIPS = 4


class LowResolutionCodec:
    """The codec of small spectrograms: encodes by downsampling, decodes with the upsampler.

    Args:
        low: the low resolution.
        upsampler: for this low resolution; None interpolates instead.
    """

    bounded = True
    made_of = ("upsampler.low_resolution",)
    requires: dict[str, str] = {}  # noqa: RUF012 - any upsampler of the low resolution will do

    def __init__(self, low: LowResolution, upsampler: Upsampler | None):
        self.low, self.upsampler = low, upsampler
        self.run_dir = upsampler and upsampler.run_dir

    @classmethod
    def open(
        cls, settings: Settings, device: torch.device | None = None, requires: dict[str, str] | None = None
    ) -> "LowResolutionCodec":
        """Return the codec of the newest finished upsampler for the settings' low resolution.

        Without an upsampler, which the first model of a cascade does not need to train, the codec
        interpolates and logs a warning.
        """
        run = find_upsampler(settings)
        if run is None:
            parent = settings.models_dir / "upsampler"
            logger.warning(
                "no finished upsampler that fits in %s: small spectrograms are interpolated", parent
            )
            return cls(LowResolution(settings.upsampler.low_resolution, settings.spectrogram), None)
        upsampler = load_upsampler(run.folder, device)
        return cls(upsampler.low, upsampler)

    @staticmethod
    def prepare(settings: Settings) -> None:
        """Train an upsampler to its end if none for the settings' low resolution is finished."""
        if decided_once(lambda: find_upsampler(settings, unheard=True) is None):
            train_upsampler(settings, resumable(upsampler_recipe(settings)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, f, t) of a small spectrogram."""
        return self.low.shape

    @property
    def stride(self) -> tuple[int, int]:
        """Spectrogram rows per small row, and frames per small frame."""
        return self.low.stride

    def encode(self, x0: Tensor) -> Tensor:
        """Return small spectrograms (B, C, f, t) of x0 (B, C, F, T)."""
        return self.low.downsample(x0)

    def decode(
        self,
        view: Tensor,
        seeds: Iterable[int] | None = None,
        *,
        kept: tuple[Tensor, Tensor] | None = None,
        overlap: int | None = None,
        circular: bool = False,
    ) -> Tensor:
        """Return full spectrograms (B, C, F, T) of small ones (B, C, f, t), on their device.

        Args:
            seeds: one per clip; None: seed 0 for each, so that decoding draws the same noise for all.
            kept, overlap, circular: as in `Upsampler.upsample`.
        """
        seeds = [0] * len(view) if seeds is None else list(seeds)
        if self.upsampler is not None:
            return self.upsampler.upsample(view, seeds, kept=kept, overlap=overlap, circular=circular)
        full = self.low.interpolate(view)
        return full if kept is None else torch.where(kept[1], kept[0], full)

    def editor(self, editor: Editor) -> CascadeEditor:
        """Return the editor of spectrograms that works by one of small spectrograms."""
        return CascadeEditor(editor, self)


def load_upsampler(run_dir: Path, device: torch.device | None = None) -> Upsampler:
    """Load the newest EMA weights of a run into the network that its conf.json describes.

    Raises:
        CheckpointError: the folder is not a run, has no weights, or they do not fit its settings.
    """
    run, device = Run(run_dir), device or pick_device()
    spectrogram, diffusion = run.config("spectrogram"), run.config("diffusion")
    network = make_upsampler_network(run.config("upsampler.network"), diffusion, spectrogram)
    upsampler = Upsampler(
        run.load_into(network),
        NoiseSchedule(diffusion),
        LowResolution(run.config("upsampler.low_resolution"), spectrogram),
        run.config("upsampler.conditioning"),
        run.config("upsampler.sampler"),
        run.spectrogram(device=device),
        device,
    )
    upsampler.run_dir = run.folder
    return upsampler


def upsampler_recipe(settings: Settings) -> Recipe:
    """Return the training recipe of an upsampler.

    Raises:
        ValueError: the low resolution does not fit the spectrogram.
    """
    upsampler, spectrogram = settings.upsampler, settings.spectrogram
    schedule, low = NoiseSchedule(settings.diffusion), LowResolution(upsampler.low_resolution, spectrogram)
    parts = ("network", "train", "low_resolution", "conditioning")
    return Recipe(
        parent=settings.models_dir / "upsampler",
        name=settings.preset,
        settings=settings,
        made_of=("spectrogram", *AUGMENTATION, "diffusion", *(f"upsampler.{part}" for part in parts)),
        train=upsampler.train,
        build=lambda: make_upsampler_network(upsampler.network, settings.diffusion, spectrogram),
        loss=UpsamplerLoss(schedule, upsampler.train.seed, low, upsampler.conditioning),
        loaders=functools.partial(clip_loaders, settings, upsampler.train),
        dataset=functools.partial(music_record, settings),
        preview=functools.partial(save_upsampler_preview, settings),
    )


def train_upsampler(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train an upsampler on the dataset of these settings; return its run folder.

    Arguments and errors are those of `Recipe.train` and `upsampler_recipe`.
    """
    return train(upsampler_recipe(settings), run_dir)


def save_upsampler_preview(settings: Settings, run: Run, step: int, network: nn.Module) -> Shown:
    """Write the same validation clips, interpolated and upsampled, and the loss curves to the results."""
    dataset = SpectrogramDataset(settings.dataset_dir, "validation")
    x0 = dataset.__getitems__(spread_indices(len(dataset), PREVIEW_CLIPS))[0]
    low = LowResolution(settings.upsampler.low_resolution, settings.spectrogram)
    upsampler = Upsampler(
        network, NoiseSchedule(settings.diffusion), low,
        settings.upsampler.conditioning, settings.upsampler.sampler, Spectrogram(settings.spectrogram),
        next(network.parameters()).device,
    )  # fmt: skip
    y = upsampler.low.downsample(x0)
    rows = {
        "small": upsampler.low.enlarge(y),
        "interpolated": upsampler.low.interpolate(y),
        "upsampled": upsampler.upsample(y, range(len(x0)), augmentation=0.0),
        "real": x0,
    }
    titles = [f"{name} {i}" for name in rows for i in range(len(x0))]
    title = f"{run.name}: upsampled after {step} steps"
    figure = plot_tensors(
        torch.cat(list(rows.values())), titles, settings.spectrogram, title, columns=len(x0)
    )
    return save_preview_figures(run, "upsampled", step, figure, plot_metrics, rows["upsampled"])


def find_upsampler(settings: Settings, *, unheard: bool = False) -> Run | None:
    """Return the newest finished upsampler for the low resolution of these settings.

    One that was trained on no test piece of the dataset comes first; with `unheard` no other will do.
    """

    def fits(run: Run) -> bool:
        if not run.is_finished("upsampler.train"):
            return False
        theirs, ours = (to_dict(config) for config in (run.config("spectrogram"), settings.spectrogram))
        same = all(theirs[name] == ours[name] for name in ours.keys() - set(INVERSE_ONLY))
        return same and run.config("upsampler.low_resolution") == settings.upsampler.low_resolution

    parent = settings.models_dir / "upsampler"
    run = find_unheard(settings.dataset_dir, parent, WEIGHTS, fits)
    return run if run or unheard else find_run([parent], fits=fits)
