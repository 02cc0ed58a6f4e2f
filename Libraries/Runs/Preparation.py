"""Prepare a training: find the music, load examples, and measure what a representation loses."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from Libraries.Dataset.Build import BuildReport, build
from Libraries.Dataset.Manifest import MANIFEST, clips_of, load_manifest, pads_short
from Libraries.Dataset.Plan import MusicPlan
from Libraries.Dataset.SpectrogramDataset import read_clip
from Libraries.DemoMusic.Corpus import render_demo_music
from Libraries.Runs.Recipe import require_dataset
from Libraries.Runs.Settings import Settings, music_folder
from Libraries.Sound.Audio import AudioError, audio_info
from Libraries.Sound.Metrics import RoundTrip, round_trip
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Sound.Stereo import load_channels
from Libraries.Utils import get_logger, spread_indices

logger = get_logger("Preparation")


def own_music(settings: Settings) -> Path | None:
    """Return the folder of the user's own music; None: there is only the demo music.

    Raises:
        AudioError: `music_dir` is set but is not a folder.
    """
    folder = music_folder(settings)
    if settings.music_dir is None and folder == settings.demo_music_dir:
        return None
    if not folder.is_dir():
        raise AudioError(folder, "is not a folder: correct CONF_MUSIC, or unset it for the demo music")
    return folder


def find_music(settings: Settings) -> Path:
    """Return the folder of the user's own music, or else of the demo music, rendered now if needed.

    The choice is logged.

    Raises:
        AudioError: as `own_music`.
    """
    if own := own_music(settings):
        logger.info("music: your own, in %s", own)
        return own
    logger.info("music: the demo corpus, since there is no folder %s", settings.root / "Data" / "music")
    render_demo(settings)
    return settings.demo_music_dir


def render_demo(settings: Settings) -> None:
    """Render the demo corpus of these settings, with the channels of the spectrogram, if it is missing."""
    folder, channels = settings.demo_music_dir, settings.spectrogram.channels
    render_demo_music(folder, settings.demo_music, settings.score_cache_dir, channels)


def ensure_dataset(settings: Settings) -> BuildReport | None:
    """Build the dataset of these settings from `find_music` if it is missing; return the report, if built.

    A dataset that is there has to be the one that would be built. If its music is not on this machine, only
    the settings are compared.

    Raises:
        DatasetError: the dataset there has other settings or was built from other music.
        ValueError: the dataset there has other settings, or the demo music was made with others.
    """
    is_built = (settings.dataset_dir / MANIFEST).exists()
    if is_built and own_music(settings) is None and not settings.demo_music_dir.is_dir():
        require_dataset(settings)
        logger.info("the music of %s is not here: whether it has changed is unknown", settings.dataset_dir)
        return None
    report = build(music_plan(settings))
    return None if report.already_built else report


def music_plan(settings: Settings) -> MusicPlan:
    """Return the plan of the dataset of these settings, of the music that `find_music` finds."""
    return MusicPlan(find_music(settings), settings.dataset_dir, settings.spectrogram, settings.dataset)


def load_example_clips(
    config: SpectrogramConfig, files: list[Path], count: int, pad_short: bool = False
) -> Tensor:
    """Return up to `count` clips (B, channels, clip_samples) from the middles of files spread over `files`.

    Args:
        pad_short: take files that are shorter than a clip, too, with silence at their end.

    Raises:
        AudioError: no file is readable and long enough.
    """
    clips = []
    for path in files[:: max(1, len(files) // count)]:
        try:
            seconds = audio_info(path).seconds or config.clip_seconds
            offset = max(0.0, (seconds - config.clip_seconds) / 2)
            clip = load_channels(path, config.channels, config.sample_rate, offset, config.clip_seconds)
        except AudioError as error:
            logger.info("no example from a file: %s", error)
            continue
        if pad_short:
            clip = F.pad(clip, (0, config.clip_samples - clip.shape[1]))
        if clip.shape[1] == config.clip_samples and clip.abs().max() > 0:
            clips.append(clip)
        if len(clips) == count:
            break
    if not clips:
        raise AudioError(
            files[0].parent, f"has no readable file of {config.clip_seconds:g} s among the {len(files)} tried"
        )
    return torch.stack(clips)


def load_split_clips(settings: Settings, split: str, count: int) -> Tensor:
    """Return `count` recordings spread evenly over a split of the dataset (all if there are fewer).

    Returns:
        (N, channels, clip_samples) float32, read again from the music that the dataset was built from.

    Raises:
        DatasetError: the music is missing or has changed.
    """
    manifest, folder = load_manifest(settings.dataset_dir), find_music(settings)
    clips = clips_of(manifest, split)
    chosen = [clips[i] for i in spread_indices(len(clips), count)]
    pad_short = pads_short(manifest)
    return torch.stack([read_clip(clip, folder, settings.spectrogram, pad_short) for clip in chosen])


def compare_representations(spectrogram: Spectrogram, clips: Tensor) -> dict[str, RoundTrip]:
    """Return what the chosen representation (first) and the others lose on these clips.

    The others use the chosen transform, or the nearest with about as many values per clip. They use PGHI in
    place of a learned phase, which fits only the chosen magnitudes.
    """
    config = spectrogram.config
    chosen = replace(config, phase="pghi") if config.phase == "learned" else config
    others = {
        "bands, PGHI": replace(chosen, representation="bands"),
        "magnitude, PGHI": _short_windows(chosen, representation="magnitude", griffin_lim_iterations=0),
        "magnitude, Griffin-Lim": _short_windows(
            chosen, representation="magnitude", phase="griffin_lim", griffin_lim_iterations=60
        ),
        "mel, NNLS, PGHI": replace(chosen, representation="mel", band_inverse="nnls"),
        "complex": _short_windows(chosen, representation="complex"),
        "mdct": replace(chosen, representation="mdct", compression=0.5),
    }
    rows = {f"chosen: {config.representation}": round_trip(spectrogram, clips)}
    others = {name: other for name, other in others.items() if other != config}
    return rows | {name: round_trip(Spectrogram(other), clips) for name, other in others.items()}


def _short_windows(chosen: SpectrogramConfig, **changes) -> SpectrogramConfig:
    """Return the origin's settings for a small tensor: a window of 5/3 hops, such as 480/288."""
    n_fft = 2 * round(chosen.hop_length * 5 / 6)
    return replace(chosen, n_fft=n_fft, win_length=n_fft, max_frequency=chosen.sample_rate / 2, **changes)
