"""Phase runs: music and its dataset -> trained run -> inverses to compare."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from Libraries.Dataset.Batches import loaders_of
from Libraries.Dataset.Manifest import DatasetError, clips_of, load_manifest, pads_short
from Libraries.Dataset.SpectrogramDataset import read_clip
from Libraries.Phase import LEVEL_RANGE, LearnedPhase, PhaseLoss, PhaseNet, relative_level
from Libraries.Plots.CurvePlots import plot_phase_metrics
from Libraries.Plots.SpectrogramPlots import plot_inverses
from Libraries.Runs.Recipe import Recipe, music_record, save_preview_figures, train
from Libraries.Runs.Release import release
from Libraries.Runs.Run import Run, with_inverse_of
from Libraries.Runs.Settings import Settings, from_dict
from Libraries.Sound.PhaseRetrieval import heap_edges, stft
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Tracker import Shown
from Libraries.Utils import resolve_precision, spread_indices

MIX_DB = (-20.0, 10.0)  # level of an added clip, relative to the first
PREVIEW_CLIPS = 2


class PhaseDataset(TorchDataset):
    """One split of a dataset as levels and true phases, from the music that the dataset was built from.

    The dataset on disk holds no phase, so clips are read again from their files and pass through the
    representation: the network sees the same magnitudes as in decoding. It works on one channel at a time, so
    it learns from the mono form of stereo, and decodes mid and side alike.

    `dataset[i]` is the whole clip: level in dB and phase in radians, float32 (n_freqs, T) each, and which of
    the differences the heap will use, bool (n_freqs, T - 1) and (n_freqs - 1, T). An item may also be a pair
    (i, seed) from `StepSampler`. Then the seed decides at which sample the clip begins (it wraps around),
    whether another clip is added, and which `crop_frames` frames are taken.

    Args:
        settings: give the dataset, and the inverse that computes the magnitudes for the network.
        music_dir: the folder that the dataset was built from.
        split: train | validation | test.

    Raises:
        DatasetError: there is no finished dataset, its split is empty, or one of its files is not in
            `music_dir`.
    """

    def __init__(self, settings: Settings, music_dir: Path, split: str):
        folder, self.music_dir, self.config = settings.dataset_dir, Path(music_dir), settings.phase.network
        manifest = load_manifest(folder)
        gain = Gain(*(torch.tensor([value]) for value in manifest["gain"]))
        encoding = from_dict(SpectrogramConfig, manifest["settings"]["spectrogram"])
        mono = replace(with_inverse_of(encoding, settings.spectrogram), channels=1)
        self.spectrogram = Spectrogram(mono, gain)
        self.clips, self.pad_short = clips_of(manifest, split), pads_short(manifest)
        if not self.clips:
            raise DatasetError(
                f"{folder} has no {split} clips: give it more music, or a larger fraction in dataset.split"
            )
        files = sorted({clip["source"] for clip in self.clips})
        gone = [file for file in files if not (self.music_dir / file).is_file()]
        if gone:
            raise DatasetError(
                f"{len(gone)} of {len(files)} audio files of {folder} are not in {self.music_dir} "
                f"({gone[0]}{', ...' if len(gone) > 1 else ''}): the phase is learned from the music itself; "
                "restore it, or build the dataset again from what is there"
            )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.__getitems__([item]))

    def __getitems__(self, items: list[int] | list[tuple[int, int]]) -> tuple[Tensor, ...]:
        """Return level, phase and the edges of some items, each with the batch dimension first."""
        if not isinstance(items[0], tuple):
            return _with_edges(*self._analyse(torch.stack([self.waveform(i) for i in items])))
        parts = [self._varied(i, np.random.default_rng(seed)) for i, seed in items]
        return _with_edges(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def waveform(self, i: int) -> Tensor:
        """Return clip i as the dataset was built from it (`read_clip`), in mono: (1, clip_samples)."""
        return read_clip(self.clips[i], self.music_dir, self.spectrogram.config, self.pad_short)

    def _varied(self, i: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a crop of clip i, shifted in time and perhaps mixed with another; a batch of one."""
        waveform = self._moved(i, rng)
        if rng.random() < self.config.mix:
            other = self._moved(int(rng.integers(len(self))), rng)
            level = waveform.square().mean() / other.square().mean().clamp(min=1e-12)
            waveform = waveform + other * level.sqrt() * 10 ** (rng.uniform(*MIX_DB) / 20)
            waveform = waveform / waveform.abs().max().clamp(min=1)
        level, phase = self._analyse(waveform[None])
        first = int(rng.integers(max(1, level.shape[2] - self.config.crop_frames + 1)))
        crop = slice(first, first + self.config.crop_frames)
        return level[:, :, crop], phase[:, :, crop]

    def _moved(self, i: int, rng: np.random.Generator) -> Tensor:
        """Return clip i rotated by a random number of samples, so that frames fall elsewhere."""
        waveform = self.waveform(i)
        return waveform.roll(int(rng.integers(waveform.shape[1])), dims=1)

    @torch.no_grad()
    def _analyse(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Return level and true phase (B, n_freqs, T) of waveforms (B, 1, clip_samples)."""
        spectrogram, config = self.spectrogram, self.spectrogram.config
        magnitude = spectrogram.magnitude(*spectrogram.encode_with_gain(waveform))
        spectrum = stft(waveform[:, 0], spectrogram.window, config.n_fft, config.hop_length)
        return relative_level(magnitude), spectrum[..., : config.n_frames].angle()


def phase_loaders(
    settings: Settings, music_dir: Path, device: torch.device | None = None, **options
) -> tuple[DataLoader, DataLoader]:
    """Return the endless training loader and `num_validation_clips` whole clips of the validation split.

    Both yield the items of `PhaseDataset`. `options` are those of `Batches.loaders_of` except `device`:
    clips are read from the music, so there is nothing to keep on a device.
    """
    train, validation = (PhaseDataset(settings, music_dir, split) for split in ("train", "validation"))
    spread = spread_indices(len(validation), settings.phase.train.num_validation_clips)
    return loaders_of(train, Subset(validation, spread), **options)


def _with_edges(level: Tensor, phase: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return level, phase, *heap_edges(torch.where(level > -LEVEL_RANGE, 10 ** (level / 20), 0))


def phase_recipe(settings: Settings, music_dir: Path) -> Recipe:
    """Return the training recipe of a phase network.

    Args:
        music_dir: the folder that the dataset was built from (`find_music`).

    Raises:
        ValueError: the representation carries its phase.
    """
    network = settings.phase.network
    return Recipe(
        parent=settings.models_dir / "phase",
        name=settings.preset,
        settings=settings,
        made_of=("spectrogram", "phase.network", "phase.train"),
        train=settings.phase.train,
        build=lambda: PhaseNet(network, settings.spectrogram),
        loss=PhaseLoss(network),
        loaders=functools.partial(phase_loaders, settings, music_dir),
        dataset=functools.partial(music_record, settings),
        preview=functools.partial(save_phase_preview, settings, music_dir),
    )


def train_phase(settings: Settings, music_dir: Path, run_dir: Path | None = None) -> Path:
    """Train a phase network on the dataset of these settings; return its run folder.

    Args:
        music_dir: the folder that the dataset was built from (`find_music`).

    Raises:
        DatasetError: the music is missing.
        ValueError: the representation carries its phase, or as `Recipe.train`.
        CheckpointError: `run_dir` is not a run.
    """
    recipe = phase_recipe(settings, music_dir)
    recipe.loaders(batch_size=1, seed=0)  # raises before a run is created
    return train(recipe, run_dir)


def save_phase_preview(settings: Settings, music_dir: Path, run: Run, step: int, network: PhaseNet) -> Shown:
    """Write the same validation clips as decoded, and the loss curves, to the run's results."""
    dataset = PhaseDataset(settings, music_dir, "validation")
    clips = torch.stack([dataset.waveform(i) for i in spread_indices(len(dataset), PREVIEW_CLIPS)])
    learned = LearnedPhase(network, resolve_precision("auto"))
    sound = compare_inverses(dataset.spectrogram.config, clips, learned)
    title = f"{run.name}: inverses after {step} steps"
    figure = plot_inverses(sound, settings.spectrogram.sample_rate, title)
    return save_preview_figures(run, "inverses", step, figure, plot_phase_metrics)


@torch.no_grad()
def compare_inverses(
    config: SpectrogramConfig, waveforms: Tensor, learned: LearnedPhase
) -> dict[str, Tensor]:
    """Return waveforms (B, C, clip_samples) cut to `kept_samples`, and decoded by PGHI and learned phase."""
    config = replace(config, channels=waveforms.shape[1])  # a network learns from the mono form of stereo
    sound = {"original": waveforms[..., : config.kept_samples]}
    for name, phase in (("PGHI", "pghi"), ("learned", "learned")):
        spectrogram = inverse_by(config, phase, learned)
        sound[name] = spectrogram.decode(*spectrogram.encode_with_gain(waveforms))
    return sound


def inverse_by(config: SpectrogramConfig, phase: str, learned: LearnedPhase | None) -> Spectrogram:
    """Return the `Spectrogram` of these settings with another `phase`."""
    return Spectrogram(replace(config, phase=phase), phase_model=learned)


def release_phase(run_dir: Path, folder: Path) -> None:
    """Write a run's newest weights to `folder`, as `Release.release` does."""
    release(run_dir, folder, ("spectrogram", "phase.network", "phase.train"))
