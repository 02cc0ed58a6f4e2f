"""Learning the phase: music of a dataset -> levels and true phases -> trained run."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from Libraries.Dataset.Batches import loaders_of
from Libraries.Dataset.Manifest import DatasetError, load_manifest
from Libraries.Dataset.SpectrogramDataset import read_clip
from Libraries.Phase import LEVEL_RANGE, LearnedPhase, PhaseLoss, PhaseNet, relative_level
from Libraries.Plots.CurvePlots import plot_phase_metrics
from Libraries.Plots.SpectrogramPlots import plot_inverses, save_figure
from Libraries.Runs.PhaseRuns import inverse_by, with_inverse_of
from Libraries.Runs.Run import open_run, results_of
from Libraries.Runs.Settings import Settings, from_dict
from Libraries.Sound.PhaseRetrieval import heap_edges, stft
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Loop import fit
from Libraries.Training.RunLog import read_metrics
from Libraries.Utils import resolve_precision, spread_indices

MIX_DB = (-20.0, 10.0)  # level of an added clip
PREVIEW_CLIPS = 2


class PhaseDataset(TorchDataset):
    """One split of a dataset as levels and true phases, from the music that the dataset was built from.

    The dataset on disk keeps no phase, so its clips are read again from their files, and pass through the
    representation as they would before decoding: that is what the network will see.

    `dataset[i]` is the whole clip: level in dB and phase in radians, float32 (n_freqs, T) each, and which of
    its differences the heap will use, bool (n_freqs, T - 1) and (n_freqs - 1, T). An item may
    also be a pair (i, seed), as `StepSampler` yields them: then the clip begins at any sample (it goes
    round), another may be added, and `crop_frames` of it are taken, all as the seed decides.

    Args:
        settings: whose dataset it is, and by whose inverse the magnitudes are found that the network sees.
        music_dir: the folder that the dataset was built from.
        split: train | validation | test.

    Raises:
        DatasetError: there is no finished dataset, this split of it is empty, or a file of it is not in
            `music_dir`.
    """

    def __init__(self, settings: Settings, music_dir: Path, split: str):
        folder, self.music_dir, self.config = settings.dataset_dir, Path(music_dir), settings.phase_net
        manifest = load_manifest(folder)
        gain = Gain(*(torch.tensor([value]) for value in manifest["gain"]))
        encoding = from_dict(SpectrogramConfig, manifest["settings"]["spectrogram"])
        self.spectrogram = Spectrogram(with_inverse_of(encoding, settings.spectrogram), gain)
        self.clips = [clip for clip in manifest["clips"] if clip["split"] == split]
        if not self.clips:
            raise DatasetError(
                f"{folder} has no {split} clips: give it more music, or a larger share in dataset.split"
            )
        files = sorted({clip["source"] for clip in self.clips})
        gone = [file for file in files if not (self.music_dir / file).is_file()]
        if gone:
            raise DatasetError(
                f"{len(gone)} of {len(files)} audio files of {folder} are not in {self.music_dir} "
                f"({gone[0]}{', ...' if len(gone) > 1 else ''}): the phase is learned from the music itself; "
                "bring it back, or build the dataset again from what is there"
            )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.__getitems__([item]))

    def __getitems__(self, items: list[int] | list[tuple[int, int]]) -> tuple[Tensor, ...]:
        """Return level, phase and the edges of some items, each with the batch in front."""
        if not isinstance(items[0], tuple):
            return _with_edges(*self._analyse(torch.stack([self.waveform(i) for i in items])))
        parts = [self._varied(i, np.random.default_rng(seed)) for i, seed in items]
        return _with_edges(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def waveform(self, i: int) -> Tensor:
        """Return clip i as the dataset was given it (`read_clip`): (1, clip_samples) float32."""
        return read_clip(self.clips[i], self.music_dir, self.spectrogram.config)

    def _varied(self, i: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a crop of clip i, moved in time and perhaps mixed with another; a batch of one."""
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
        """Return clip i from another sample on, its beginning behind its end: frames fall elsewhere."""
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

    Both give what `PhaseDataset` does. `options` are those of `Batches.loaders_of` but for `device`: clips
    are read from the music, so there is nothing to keep there.
    """
    train, validation = (PhaseDataset(settings, music_dir, split) for split in ("train", "validation"))
    spread = spread_indices(len(validation), settings.num_validation_clips)
    return loaders_of(train, Subset(validation, spread), **options)


def _with_edges(level: Tensor, phase: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return level, phase, *heap_edges(torch.where(level > -LEVEL_RANGE, 10 ** (level / 20), 0))


def build_phase_net(settings: Settings) -> PhaseNet:
    """Return a freshly initialised network of these settings: the same weights for the same seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.phase_train.seed)
        return PhaseNet(settings.phase_net, settings.spectrogram)


def train_phase(settings: Settings, music_dir: Path, run_dir: Path | None = None) -> Path:
    """Train a network of the phase on the dataset of these settings; return its run folder.

    Args:
        settings: of the whole; they are written to the run's conf.json.
        music_dir: the folder that the dataset was built from (`find_music`).
        run_dir: an interrupted run to go on with; None starts a new one.

    Raises:
        DatasetError: the music is not there any more.
        ValueError: the dataset was built with another spectrogram, the run with other settings, or the
            representation carries its phase.
        CheckpointError: `run_dir` is no run.
    """
    network = build_phase_net(settings)
    loaders = functools.partial(phase_loaders, settings, music_dir)
    loaders(batch_size=1, seed=0)  # raises before there is a run
    run_dir = open_run(settings, settings.phase_dir, run_dir, ("spectrogram", "phase_net", "phase_train"))
    preview = functools.partial(save_phase_preview, settings, music_dir, run_dir)
    fit(network, PhaseLoss(settings.phase_net), loaders, settings.phase_train, run_dir, preview=preview)
    return run_dir


def save_phase_preview(
    settings: Settings, music_dir: Path, run_dir: Path, step: int, network: PhaseNet
) -> None:
    """Write the same validation clips decoded, and the loss curves, to the run's results folder."""
    dataset = PhaseDataset(settings, music_dir, "validation")
    clips = torch.stack([dataset.waveform(i) for i in spread_indices(len(dataset), PREVIEW_CLIPS)])
    learned = LearnedPhase(network, resolve_precision("auto"))
    sound = compare_inverses(dataset.spectrogram.config, clips, learned)
    title, results = f"{run_dir.name}: inverses after {step} steps", results_of(settings, run_dir)
    figure = plot_inverses(sound, settings.spectrogram.sample_rate, title)
    save_figure(figure, results / f"inverses-{step:08d}.png")
    save_figure(plot_phase_metrics(read_metrics(run_dir / "metrics.csv"), run_dir.name), results / "loss.png")


@torch.no_grad()
def compare_inverses(
    config: SpectrogramConfig, waveforms: Tensor, learned: LearnedPhase
) -> dict[str, Tensor]:
    """Return waveforms (B, 1, clip_samples) cut to what is kept, and decoded with PGHI and learned phase."""
    sound = {"original": waveforms[..., : config.kept_samples]}
    for name, phase in (("PGHI", "pghi"), ("learned", "learned")):
        spectrogram = inverse_by(config, phase, learned)
        sound[name] = spectrogram.decode(*spectrogram.encode_with_gain(waveforms))
    return sound
