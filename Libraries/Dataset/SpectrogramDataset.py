"""Dataset on disk -> batches; the batch of a step is a function of (seed, step), resumed or not.

`build_dataset` makes the dataset (see Build.py); all that a caller needs can be imported from here.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from Libraries.Dataset.Augmentation import Augmentation, Draw
from Libraries.Dataset.Batches import StepSampler, loaders_of
from Libraries.Dataset.Build import BuildReport, build_dataset
from Libraries.Dataset.ClipTable import ClipTable
from Libraries.Dataset.Manifest import (
    SHARDS,
    SPECTROGRAMS,
    SPLITS,
    DatasetConfig,
    DatasetError,
    load_manifest,
    manifest_hash,
)
from Libraries.Dataset.RowFiles import OneFile, ShardRows
from Libraries.Sound.Audio import AudioError
from Libraries.Sound.Spectrogram import Gain
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Sound.Stereo import load_channels
from Libraries.Utils import require

__all__ = [
    "BuildReport",
    "DatasetConfig",
    "DatasetError",
    "SpectrogramDataset",
    "StepSampler",
    "build_dataset",
    "load_manifest",
    "make_loaders",
    "manifest_hash",
    "read_clip",
]


class SpectrogramDataset(TorchDataset):
    """One split of a dataset, read row by row from disk, or from a device after `.to(device)`.

    `dataset[i]` is the clip as stored: x0 float32 (C, F, T) and its label, int64 (). An item may also be a
    pair (i, seed), as `StepSampler` yields them; then `augment` varies the clip as the seed decides. A
    dataset of latents is read in the same way, without augmentation.

    Args:
        folder: of the dataset.
        split: train | validation | test; a small dataset may have an empty one.
        augment: the settings that say how (`Augmentation`); None: not at all.

    Raises:
        DatasetError: there is no finished dataset in `folder`.
        ValueError: the split is unknown, or `augment` is given for latents.
        TypeError: `augment` is neither None nor a `DatasetConfig`.
    """

    def __init__(self, folder: Path, split: str, augment: DatasetConfig | None = None):
        require(SPLITS, split=split)
        if augment is not None and not isinstance(augment, DatasetConfig):
            raise TypeError(f"augment={augment!r} must be None or the DatasetConfig whose settings apply")
        self.folder, self.split = Path(folder), split
        self.manifest = load_manifest(folder)
        self.spectrogram_config = SpectrogramConfig(**self.manifest["settings"]["spectrogram"])
        if augment and "codec" in self.manifest["settings"]:
            raise ValueError(f"{folder} holds latents, which cannot be augmented: pass augment=None")
        self.classes = tuple(self.manifest["classes"])
        clips, shape = self.manifest["clips"], tuple(self.manifest["shape"])
        in_shards = isinstance(clips, ClipTable)
        self._clips = clips.of(split) if in_shards else ClipTable.of_manifest(self.manifest, split)
        self._rows = (
            ShardRows(self.folder / SHARDS, clips.sources, shape[1:])
            if in_shards
            else OneFile(self.folder / SPECTROGRAMS, shape)
        )
        self.shape = shape[1:]  # of a clip
        self._stride = self.manifest["stride_frames"]
        self._augmentation = augment and Augmentation(augment, self.spectrogram_config, self._stride)
        self._resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        x0, labels = self.__getitems__([item])
        return x0[0], labels[0]

    def __getitems__(self, items: list[int] | list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return x0 float32 (B, C, F, T) and labels int64 (B,), read at once."""
        seeded = isinstance(items[0], tuple)
        positions = np.array([item[0] for item in items] if seeded else items, dtype=np.int64)
        x0 = self._read(positions)
        if seeded and self._augmentation:
            draw = self._augmentation.draw([seed for _, seed in items])
            x0 = self._mixed(self._augmented(x0, positions, draw), draw)
        return x0, self._labels_at(positions).to(x0.device)

    @property
    def records(self) -> np.ndarray:
        """What is known of each clip, (N,) of `ClipTable.CLIP`."""
        return self._clips.records

    @property
    def labels(self) -> Tensor:
        """The label of each clip, int64 (N,)."""
        return self._labels_at(slice(None))

    @property
    def sources(self) -> Sequence[str]:
        """The file of each clip."""
        return self._clips.files

    @property
    def num_bytes(self) -> int:
        """Size of the split on a device, in bytes."""
        return len(self) * math.prod(self.shape) * 2

    @property
    def typical_gain(self) -> Gain:
        """Gain for tensors without their own, (1,) each: the dataset's, or the training split's median."""
        offset, scale = self.manifest["gain"]
        return Gain(torch.tensor([offset]), torch.tensor([scale]))

    def gain(self, i: int) -> Gain:
        """Return clip i's gain, (1,) each."""
        return self._gains_at(np.array([range(len(self))[i]]))

    def to(self, device: torch.device | str) -> "SpectrogramDataset":
        """Load the split onto `device` as float16; from then on every batch is made there."""
        resident = torch.empty((len(self), *self.shape), dtype=torch.float16, device=device)
        for start in range(0, len(self), 64):  # so that the host never holds all of it
            resident[start : start + 64] = torch.from_numpy(
                self._rows.read(self._clips.records[start : start + 64])
            )
        self._resident = resident
        return self

    def _read(self, positions: np.ndarray) -> Tensor:
        if self._resident is not None:
            return self._resident[torch.from_numpy(positions).to(self._resident.device)].float()
        return torch.from_numpy(self._rows.read(self._clips.records[positions]).astype(np.float32))

    def _augmented(self, x0: Tensor, positions: np.ndarray, draw: Draw) -> Tensor:
        gain = self._gains_at(positions)
        config = self.spectrogram_config
        samples = self._stride * config.hop_length
        continued = self._clips.continued(positions, samples, config.sample_rate)
        moved = np.flatnonzero(continued & (draw.shift > 0))
        if self._augmentation.seam is not None and len(moved):
            shifted, common = self._shifted(x0[moved], positions[moved], draw.shift[moved])
            x0[moved] = shifted
            for values, of_both in zip(gain, common, strict=True):
                values[moved] = of_both
        return self._augmentation.vary(x0, gain, draw)

    def _mixed(self, x0: Tensor, draw: Draw) -> Tensor:
        """Return the clips, those that were drawn with another clip of the split on top."""
        rows = np.flatnonzero(draw.mixed)
        if len(rows):
            others = self._read((draw.partner[rows] * len(self)).astype(np.int64))
            x0[rows] = self._augmentation.add(x0[rows], others, draw.partner_level[rows])
        return x0

    def _shifted(self, x0: Tensor, positions: np.ndarray, shifts: np.ndarray) -> tuple[Tensor, Gain]:
        """Return the clips begun `shifts` frames later, and the gain of the louder half."""
        ours, theirs = self._gains_at(positions), self._gains_at(positions + 1)
        common = self._augmentation.louder(ours, theirs)
        first = self._augmentation.regain(x0, ours, common)
        second = self._augmentation.regain(self._read(positions + 1), theirs, common)
        return self._augmentation.join(first, second, shifts), common

    def _gains_at(self, positions: np.ndarray) -> Gain:
        """Return the gains of clips, (B,) each, where the rows are read."""
        gains = torch.from_numpy(self._clips.records["gain"][positions].astype(np.float32))
        device = "cpu" if self._resident is None else self._resident.device
        return Gain(*(values.contiguous().to(device) for values in gains.T))

    def _labels_at(self, positions: np.ndarray | slice) -> Tensor:
        labels = self._clips.records["label"][positions].astype(np.int64)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise DatasetError(f"{self.folder} is damaged, a label has no class: build the dataset again")
        return torch.from_numpy(labels)


def make_loaders(
    folder: Path,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    augment: DatasetConfig | None = None,
    device: torch.device | str | None = None,
) -> tuple[DataLoader, DataLoader]:
    """Return an endless training loader and a finite validation loader, in order.

    Both yield (x0 float32 (B, C, F, T), label int64 (B,)). Iterate the training loader once: a second
    iteration begins at `start_step` again. Every process gets the whole validation split. The loaders leave
    torch's global random state alone.

    Args:
        batch_size: clips per process and step; `start_step`, `rank`, `world_size` as in `StepSampler`.
        num_workers: processes that read training batches; unused where the data lie on a device.
        augment: as in `SpectrogramDataset`, for training alone.
        device: keep the data there if they fit into half of its free memory; None reads from disk.

    Raises:
        DatasetError: there is no finished dataset in `folder`.
        ValueError: an argument is out of range.
    """
    splits = SpectrogramDataset(folder, "train", augment), SpectrogramDataset(folder, "validation")
    return loaders_of(*splits, batch_size, seed, start_step, rank, world_size, num_workers, device)


def read_clip(clip: dict, music_dir: Path, config: SpectrogramConfig, pad_short: bool = False) -> Tensor:
    """Return the audio of one of a manifest's `clips`, read from the music: (channels, clip_samples) float32.

    Args:
        pad_short: as the dataset was built (`Manifest.pads_short`).

    Raises:
        DatasetError: its file can no longer be read, or has become shorter.
    """
    path = Path(music_dir) / clip["source"]
    try:
        waveform = load_channels(
            path, config.channels, config.sample_rate, clip["offset"], config.clip_seconds
        )
    except AudioError as error:
        raise DatasetError(f"{error}: it was readable when the dataset was built") from None
    if pad_short and clip["offset"] == 0:
        waveform = F.pad(waveform, (0, config.clip_samples - waveform.shape[1]))
    if waveform.shape[1] != config.clip_samples:
        raise DatasetError(
            f"{path} is shorter than when the dataset was built: clear the dataset and build it again"
        )
    return waveform
