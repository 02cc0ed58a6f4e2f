"""Find, read, resample and write audio files."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch

from Libraries.Disk import deferring, write_then_rename
from Libraries.Sound.Containers import CONTAINER_SUFFIXES
from Libraries.Sound.Decoding import (
    BLOCK_VALUES,
    AudioError,
    AudioInfo,
    decode,
    info_of,
    open_audio,
)
from Libraries.Utils import LIGHT_DEBUG, get_logger

__all__ = ["AudioError", "AudioInfo"]

log = get_logger("Audio")

# What libsndfile decodes; Containers.py has what PyAV does. Headerless formats (raw, vox) are left out: their
# sample rate is unknown.
# fmt: off
READABLE_SUFFIXES = frozenset((
    ".wav", ".wave", ".bwf", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2",
    ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".avr", ".paf", ".pvf", ".sf", ".ircam",
    ".voc", ".nist", ".sph", ".svx", ".8svx", ".iff",
))
# fmt: on

BLOCK_SECONDS = 10.0
_RESAMPLER_REACH = 0.1  # s; more than soxr's filter sees on either side of a sample


def find_audio_files(folder: Path) -> list[Path]:
    """Return the audio files below `folder`, by suffix and sorted; hidden files and folders are skipped.

    Links to folders are followed, each folder once. Video files are listed for their sound; files that have
    none (.txt, .jpg) are not.

    Raises:
        AudioError: the folder does not exist, or holds no audio file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioError(folder, "is not a folder: put your music there, or name the folder that holds it")
    suffixes = READABLE_SUFFIXES | CONTAINER_SUFFIXES
    files = sorted(path for path in _walk(folder) if path.suffix.lower() in suffixes)
    if not files:
        known = ", ".join(sorted(READABLE_SUFFIXES))
        raise AudioError(folder, f"holds no audio file, nor do its subfolders: looked for {known}")
    return files


def audio_info(path: Path) -> AudioInfo:
    """Read the header of one file.

    Raises:
        AudioError: the file cannot be opened, is empty, is not audio, or is visibly cut short.
    """
    with open_audio(path) as source:
        return info_of(source)


def read_blocks(
    path: Path, sample_rate: int, block_seconds: float = BLOCK_SECONDS, mono: bool = False
) -> Iterator[np.ndarray]:
    """Decode and resample a file block by block, so that memory use does not depend on its length.

    Args:
        sample_rate: of the blocks, in Hz.
        block_seconds: seconds decoded at a time; the concatenated result does not depend on it.
        mono: average the channels (before resampling, which then costs less).

    Yields:
        float32 `(C, n)`, C = 1 if `mono`; n varies from block to block and is never 0.

    Raises:
        AudioError: on the first block if the file cannot be opened or claims what no music has; later if it
            is damaged, is shorter than its header says, is longer than a day, or holds values that are not
            finite or beyond all loudness.
    """
    yield from _read_from(path, sample_rate, block_seconds, mono, start=0)


def load_audio(
    path: Path, sample_rate: int, offset: float = 0.0, duration: float | None = None, mono: bool = True
) -> torch.Tensor:
    """Load a file, or `duration` seconds of it starting at `offset` seconds.

    An excerpt equals the same stretch of the resampled whole file, to float32 rounding. Nothing before it
    is decoded except what the resampler's filter reaches back to.

    Returns:
        float32 `(C, L)` at `sample_rate` Hz, C = 1 if `mono`; shorter than `duration` where the file ends.

    Raises:
        AudioError: the file is unreadable or damaged, or `offset` is not inside it.
        ValueError: `offset` is negative or `duration` not positive.
    """
    if offset < 0 or (duration is not None and duration <= 0):
        raise ValueError(f"offset must be >= 0 and duration > 0 seconds, got {offset} and {duration}")
    first = round(offset * sample_rate)
    length = math.inf if duration is None else round(duration * sample_rate)
    source_start, skip = _seek_point(audio_info(path).sample_rate, sample_rate, first)
    pieces, total = [], 0
    for block in _read_from(path, sample_rate, BLOCK_SECONDS, mono, source_start):
        skipped = min(skip, block.shape[1])
        skip -= skipped
        piece = block[:, skipped : skipped + int(min(length - total, block.shape[1]))]
        pieces.append(piece)
        total += piece.shape[1]
        if total >= length:
            break
    if total == 0:
        raise AudioError(path, f"has no audio at {offset:g} s: it ends before that")
    return torch.from_numpy(np.concatenate(pieces, axis=1))


def save_audio(path: Path, waveform: torch.Tensor | np.ndarray, sample_rate: int) -> None:
    """Write a waveform in the format of the suffix, as 16-bit PCM where the format has it.

    The file is written whole or not at all. Samples outside [-1, 1] would be clipped (Griffin-Lim overshoots
    by 1.26 in the median), so a waveform that has any is scaled to a peak of 1; others are left as they are.

    Args:
        waveform: float `(C, L)`, in [-1, 1].
        sample_rate: Hz.

    Raises:
        ValueError: `waveform` is not `(C, L)`, is empty or not finite, or the suffix names no known format.
    """
    samples = np.asarray(torch.as_tensor(waveform).detach().cpu().float())
    if samples.ndim != 2 or samples.size == 0:
        raise ValueError(f"a waveform to save must be (C, L) and not empty, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"not saved to {path}: {np.sum(~np.isfinite(samples))} samples are not finite")
    peak = float(np.abs(samples).max())
    if peak > 1:
        log.log(LIGHT_DEBUG, "%s: peak %.2f, scaled down by %.1f dB", path, peak, 20 * math.log10(peak))
        samples = samples / peak
    file_format, subtype = audio_format(Path(path))

    def write(file: BinaryIO) -> None:
        C, L = samples.shape
        with (
            deferring(file) as deferred,
            soundfile.SoundFile(deferred, "w", sample_rate, C, subtype, format=file_format) as target,
        ):
            for start in range(0, L, 65536):  # libsndfile's Vorbis encoder overflows its stack on long writes
                target.write(samples[:, start : start + 65536].T)

    write_then_rename(path, write)


def _walk(folder: Path) -> Iterator[Path]:
    visited = set()

    def warn(error: OSError) -> None:
        log.warning("%s cannot be listed, so its music is left out: %s", error.filename, error.strerror)

    for root, folders, names in os.walk(folder, onerror=warn, followlinks=True):
        if os.path.realpath(root) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _read_from(path: Path, sample_rate: int, block_seconds: float, mono: bool, start: int):
    """Yield the blocks of `read_blocks`, starting at frame `start` of the file."""
    with open_audio(path) as source:
        channels = 1 if mono else source.channels
        block_frames = min(round(block_seconds * source.samplerate), BLOCK_VALUES // source.channels)
        blocks = decode(source, path, max(1, block_frames), start)
        if mono:
            # channel by channel: .mean() is slow over so short an axis, and a matrix product wakes all BLAS
            # threads, which then spin in each of several processes
            blocks = (sum(block.T)[:, None] / source.channels for block in blocks)
        if source.samplerate != sample_rate:
            blocks = _resample(blocks, source.samplerate, sample_rate, channels)
        yield from (np.ascontiguousarray(block.T) for block in blocks if len(block))


def _resample(
    blocks: Iterator[np.ndarray], source_rate: int, target_rate: int, channels: int
) -> Iterator[np.ndarray]:
    """Resample a stream of `(n, C)`; soxr's "HQ" keeps aliases below -140 dB."""
    resampler = soxr.ResampleStream(source_rate, target_rate, channels, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True)


def _seek_point(source_rate: int, target_rate: int, first: int) -> tuple[int, int]:
    """Return the source frame to decode from and the number of resampled samples to drop before `first`.

    The frame lies where the two sample grids meet, so that an excerpt is not off by a fraction of a sample.
    """
    common = math.gcd(source_rate, target_rate)
    source_step, target_step = source_rate // common, target_rate // common
    reach = 0 if source_rate == target_rate else math.ceil(_RESAMPLER_REACH * target_rate)
    steps = max(0, first - reach) // target_step
    return steps * source_step, first - steps * target_step


def audio_format(path: Path) -> tuple[str, str]:
    """Return libsndfile's container and encoding for the suffix of a file to write.

    Raises:
        ValueError: no format has this suffix.
    """
    name = path.suffix[1:].upper()
    if name == "OPUS":
        return "OGG", "OPUS"
    name = {"AIF": "AIFF", "OGA": "OGG", "WAVE": "WAV", "SND": "AU"}.get(name, name)
    if name not in soundfile.available_formats():
        raise ValueError(f"cannot write {path}: use the suffix .wav, .flac, .ogg, .mp3 or .aiff")
    pcm = soundfile.check_format(name, "PCM_16")
    return name, "PCM_16" if pcm else soundfile.default_subtype(name)
