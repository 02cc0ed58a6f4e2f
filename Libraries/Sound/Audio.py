"""Find, decode, resample and write audio files; say in one sentence what is wrong with a broken one."""

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from Libraries.Utils import LIGHT_DEBUG, get_logger, printable, write_then_rename

log = get_logger("Audio")

# What libsndfile decodes. Headerless formats (raw, vox) are left out: their sample rate is unknown.
# fmt: off
READABLE_SUFFIXES = frozenset((
    ".wav", ".wave", ".bwf", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2",
    ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".avr", ".paf", ".pvf", ".sf", ".ircam",
    ".voc", ".nist", ".sph", ".svx", ".8svx", ".iff",
))
# Formats that libsndfile cannot decode: found all the same, so that they are reported, not overlooked.
UNREADABLE_SUFFIXES = frozenset((
    ".m4a", ".m4b", ".aac", ".wma", ".ape", ".wv", ".mpc", ".dsf", ".dff", ".ra", ".amr", ".mka", ".weba",
))
# fmt: on

# What a file may claim; beyond this its header is damaged, or it would fill memory or disk.
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz
MOST_CHANNELS = 64
LONGEST_SECONDS = 24 * 3600.0
LOUDEST = 2.0**32  # full scale is 1; floats that hold 32-bit integers are half as loud

BLOCK_SECONDS = 10.0
BLOCK_VALUES = 2**22  # decoded at a time at most, 16 MiB: 10 s of two channels at 192 kHz
_RESAMPLER_REACH = 0.1  # s; more than soxr's filter sees on either side of a sample
_SHORTFALL = 0.5  # s; MP3 and Ogg encoders pad, so a header may promise frames that never come
_LENGTH_UNKNOWN = 0x7FFFF000  # WAV writers that stream into a pipe claim this many bytes or more
_CLAIMED_BYTES = re.compile(r"^\s*(?:data|data size|ssnd)\s*:\s*(\d+)", re.MULTILINE | re.IGNORECASE)
_LOG_SAYS_CUT = re.compile(r"lacks an end-of-stream bit|without an End-Of-Stream flag")


class AudioError(Exception):
    """An audio file or folder that cannot be used; the message is `path`, then `reason`."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{printable(self.path)} {self.reason}"


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says."""

    sample_rate: int  # Hz
    channels: int
    frames: int | None  # samples per channel; None where the header does not say (streamed FLAC)
    encoding: str  # such as "WAV PCM_16"

    @property
    def seconds(self) -> float | None:
        """Length in seconds; None where the header does not say."""
        return None if self.frames is None else self.frames / self.sample_rate


def find_audio_files(folder: Path) -> list[Path]:
    """Return the audio files below `folder`, by suffix and sorted; hidden files and folders are skipped.

    Links to folders are followed, each folder once. Files that are not audio (.txt, .jpg) are not listed.

    Raises:
        AudioError: the folder does not exist, or holds no audio file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioError(folder, "is not a folder: put your music there, or name the folder that holds it")
    suffixes = READABLE_SUFFIXES | UNREADABLE_SUFFIXES
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
    with _open(path) as source:
        return _info(source)


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
    file_format, subtype = _format_for(Path(path))

    def write(temporary: Path) -> None:
        C, L = samples.shape
        with soundfile.SoundFile(temporary, "w", sample_rate, C, subtype, format=file_format) as target:
            for start in range(0, L, 65536):  # libsndfile's Vorbis encoder overflows its stack on long writes
                target.write(samples[:, start : start + 65536].T)

    write_then_rename(Path(path), write)


def _walk(folder: Path) -> Iterator[Path]:
    visited = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _open(path: Path) -> "_Stream":
    """Open a file for reading, or raise an AudioError that says why not."""
    path = Path(path)
    size = _size(path)
    if size == 0:
        raise AudioError(path, "is empty: 0 bytes")
    if path.suffix.lower() in UNREADABLE_SUFFIXES:
        raise AudioError(path, "is in a format that is not decoded here: convert it to wav or flac")
    try:
        with _decoders_silenced():
            source = _Stream(path)
    except soundfile.LibsndfileError as error:
        raise AudioError(path, "is not audio, or its header is damaged or cut off") from error
    try:
        _check_header(source, path, size)
    except AudioError:
        source.close()
        raise
    return source


def _size(path: Path) -> int:
    """Return the size of a file that can be read, in bytes, or raise an AudioError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for its writer
            raise AudioError(path, "is not a file")
        with open(path, "rb"):  # libsndfile calls a missing file and a forbidden one alike a "system error"
            return path.stat().st_size
    except OSError as error:
        raise AudioError(path, f"cannot be opened: {error.strerror}") from error


def _check_header(source: "_Stream", path: Path, size: int) -> None:
    rate, channels = source.samplerate, source.channels
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(
            path,
            f"claims a sample rate of {rate} Hz: its header is damaged, for rates go from {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz",
        )
    if channels > MOST_CHANNELS:
        raise AudioError(
            path, f"claims {channels} channels: its header is damaged, or mix it down to {MOST_CHANNELS}"
        )
    if _visibly_cut(source.extra_info, size):
        raise AudioError(path, "is truncated: its header promises more audio than the file holds")


_silencing = threading.Lock()


@contextlib.contextmanager
def _decoders_silenced():
    """Send what decoders write to stderr themselves, a line per broken frame, nowhere.

    They write to file descriptor 2, which all threads share: only one may put another in its place at a time.
    """
    with _silencing, open(os.devnull, "wb") as nowhere:
        try:
            kept = os.dup(2)
        except OSError:  # there is no stderr
            yield
            return
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class _Stream(soundfile.SoundFile):
    """A file that is only read forwards.

    `soundfile` seeks after every read of a file that it takes to be seekable. libsndfile can seek neither in
    a FLAC that was streamed without its length nor past the last whole frame of a truncated one.
    """

    def seekable(self) -> bool:
        return False


def _visibly_cut(decoder_log: str, file_size: int) -> bool:
    """Return whether the header claims more than the file holds; libsndfile corrects and merely logs that."""
    claims = (int(claim) for claim in _CLAIMED_BYTES.findall(decoder_log))
    cut = any(file_size < claim < _LENGTH_UNKNOWN for claim in claims)
    return cut or bool(_LOG_SAYS_CUT.search(decoder_log))


def _info(source: soundfile.SoundFile) -> AudioInfo:
    frames = source.frames if source.frames < 2**62 else None  # libsndfile's "unknown" is the largest int64
    return AudioInfo(source.samplerate, source.channels, frames, f"{source.format} {source.subtype}")


def _read_from(path: Path, sample_rate: int, block_seconds: float, mono: bool, start: int):
    """Yield the blocks of `read_blocks`, starting at frame `start` of the file."""
    with _open(path) as source:
        channels = 1 if mono else source.channels
        block_frames = min(round(block_seconds * source.samplerate), BLOCK_VALUES // source.channels)
        blocks = _decode(source, path, max(1, block_frames), start)
        if mono:
            # channel by channel: .mean() is slow over so short an axis, and a matrix product wakes all BLAS
            # threads, which then spin in each of several processes
            blocks = (sum(block.T)[:, None] / source.channels for block in blocks)
        if source.samplerate != sample_rate:
            blocks = _resample(blocks, source.samplerate, sample_rate, channels)
        yield from (np.ascontiguousarray(block.T) for block in blocks if len(block))


def _decode(source: _Stream, path: Path, block_frames: int, start: int) -> Iterator[np.ndarray]:
    """Yield checked float32 blocks `(n, C)` at the file's own rate, from frame `start` on."""
    position = start
    try:
        if start:
            with _decoders_silenced():
                source.seek(min(start, source.frames))
        while len(block := _read_silently(source, block_frames)):
            _check_values(block, path, position, source.samplerate)
            position += len(block)
            if position > LONGEST_SECONDS * source.samplerate:
                raise AudioError(path, f"is longer than {LONGEST_SECONDS / 3600:g} hours: cut it into parts")
            yield block
    except soundfile.LibsndfileError as error:
        seconds = position / source.samplerate
        raise AudioError(path, f"is damaged or truncated: decoding fails after {seconds:.2f} s") from error
    promised, got = _info(source).seconds, position / source.samplerate
    if promised is not None and promised - got > _SHORTFALL and _length_is_known(source, path):
        raise AudioError(path, f"is truncated: {got:.2f} of {promised:.2f} s could be decoded")


def _read_silently(source: _Stream, frames: int) -> np.ndarray:
    with _decoders_silenced():
        return source.read(frames, dtype="float32", always_2d=True)


def _check_values(block: np.ndarray, path: Path, position: int, sample_rate: int) -> None:
    # written so that NaN fails too
    if (np.abs(block.min()) <= LOUDEST) and (np.abs(block.max()) <= LOUDEST):
        return
    bad = ~(np.abs(block) <= LOUDEST).all(axis=1)
    first = int(np.argmax(bad))
    seconds, worst = (position + first) / sample_rate, np.abs(block[first]).max()
    if np.isfinite(worst):
        raise AudioError(path, f"is damaged: it holds {worst:.1e} at {seconds:.2f} s, where full scale is 1")
    raise AudioError(path, f"is not finite: it holds NaN or infinity at {seconds:.2f} s")


def _length_is_known(source: _Stream, path: Path) -> bool:
    """Return whether the header gives the length; that of an MP3 without a Xing or VBRI tag is a guess."""
    if source.format != "MP3":
        return True
    with open(path, "rb") as file:
        head = file.read(10)
        if head.startswith(b"ID3"):  # the tag's size is four bytes of seven bits each
            size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            file.seek(10 + size)
        first_frame = file.read(4096)
    return any(tag in first_frame for tag in (b"Xing", b"Info", b"VBRI"))


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


def _format_for(path: Path) -> tuple[str, str]:
    """Return libsndfile's container and encoding for a suffix."""
    name = path.suffix[1:].upper()
    if name == "OPUS":
        return "OGG", "OPUS"
    name = {"AIF": "AIFF", "OGA": "OGG", "WAVE": "WAV", "SND": "AU"}.get(name, name)
    if name not in soundfile.available_formats():
        raise ValueError(f"cannot write {path}: use the suffix .wav, .flac, .ogg, .mp3 or .aiff")
    pcm = soundfile.check_format(name, "PCM_16")
    return name, "PCM_16" if pcm else soundfile.default_subtype(name)
