"""Open and decode one audio file of any kind, and say in one sentence what is wrong with a broken one.

What a file claims is checked before it is believed: headers are damaged, or made to do harm.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from Libraries.Sound.Containers import CONTAINER_SUFFIXES, NOT_AUDIO, ContainerError, ContainerStream
from Libraries.Utils import printable

# What a file may claim; beyond this its header is damaged, or it would fill memory or disk.
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz
MOST_CHANNELS = 64
LONGEST_SECONDS = 24 * 3600.0
LOUDEST = 2.0**32  # full scale is 1; floats that hold 32-bit integers are half as loud

BLOCK_VALUES = 2**22  # decoded at a time at most, 16 MiB: 10 s of two channels at 192 kHz
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


def open_audio(path: Path) -> "Stream | ContainerStream":
    """Open a file for reading.

    Raises:
        AudioError: it cannot be opened, is empty, is not audio, claims what no music has, or is visibly cut
            short.
    """
    path = Path(path)
    size = _size(path)
    if size == 0:
        raise AudioError(path, "is empty: 0 bytes")
    try:
        with _decoders_silenced():
            source = _opened(path)
    except soundfile.LibsndfileError as error:
        raise AudioError(path, NOT_AUDIO) from error
    except ContainerError as error:
        raise AudioError(path, str(error)) from error
    try:
        _check_header(source, path, size)
    except AudioError:
        source.close()
        raise
    return source


def _opened(path: Path) -> "Stream | ContainerStream":
    if path.suffix.lower() in CONTAINER_SUFFIXES:
        return ContainerStream(path)
    # as bytes, which need not be UTF-8; Windows has its names as text
    return Stream(path if os.name == "nt" else os.fsencode(path))


def _size(path: Path) -> int:
    """Return the size of a file that can be read, in bytes, or raise an AudioError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for its writer
            raise AudioError(path, "is not a file")
        with open(path, "rb"):  # libsndfile calls a missing file and a forbidden one alike a "system error"
            return path.stat().st_size
    except OSError as error:
        raise AudioError(path, f"cannot be opened: {error.strerror}") from error


def _check_header(source: "Stream | ContainerStream", path: Path, size: int) -> None:
    rate, channels = source.samplerate, source.channels
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(
            path,
            f"claims a sample rate of {rate} Hz: its header is damaged, for rates go from {LOWEST_RATE} to "
            f"{HIGHEST_RATE} Hz",
        )
    if not 1 <= channels <= MOST_CHANNELS:
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


class Stream(soundfile.SoundFile):
    """A file that is only read forwards.

    `soundfile` seeks after every read of a file that it takes to be seekable. libsndfile can seek neither in
    a FLAC that was streamed without its length nor past the last whole frame of a truncated one.
    """

    def seekable(self) -> bool:
        return False

    def go_to(self, frame: int) -> None:
        """Go to a frame, or to the end if there is none."""
        self.seek(min(frame, self.frames))

    def read_block(self, frames: int) -> np.ndarray:
        """Return the next frames, float32 (n, C); fewer at the end."""
        return self.read(frames, dtype="float32", always_2d=True)


def _visibly_cut(decoder_log: str, file_size: int) -> bool:
    """Return whether the header claims more than the file holds; libsndfile corrects and merely logs that."""
    claims = (int(claim) for claim in _CLAIMED_BYTES.findall(decoder_log))
    cut = any(file_size < claim < _LENGTH_UNKNOWN for claim in claims)
    return cut or bool(_LOG_SAYS_CUT.search(decoder_log))


def info_of(source: Stream | ContainerStream) -> AudioInfo:
    """Return what the header of an open file says."""
    frames = source.frames if source.frames < 2**62 else None  # libsndfile's "unknown" is the largest int64
    return AudioInfo(source.samplerate, source.channels, frames, f"{source.format} {source.subtype}")


def decode(
    source: Stream | ContainerStream, path: Path, block_frames: int, start: int
) -> Iterator[np.ndarray]:
    """Yield checked float32 blocks `(n, C)` at the file's own rate, from frame `start` on.

    Raises:
        AudioError: the file is damaged, shorter than its header says or longer than a day, or holds values
            that are not finite or beyond all loudness.
    """
    position = start
    try:
        if start:
            with _decoders_silenced():
                source.go_to(start)
        while len(block := _read_silently(source, block_frames)):
            _check_values(block, path, position, source.samplerate)
            position += len(block)
            if position > LONGEST_SECONDS * source.samplerate:
                raise AudioError(path, f"is longer than {LONGEST_SECONDS / 3600:g} hours: cut it into parts")
            yield block
    except (soundfile.LibsndfileError, ContainerError) as error:
        seconds = position / source.samplerate
        raise AudioError(path, f"is damaged or truncated: decoding fails after {seconds:.2f} s") from error
    promised, got = info_of(source).seconds, position / source.samplerate
    if promised is not None and promised - got > _SHORTFALL and _length_is_known(source, path):
        raise AudioError(path, f"is truncated: {got:.2f} of {promised:.2f} s could be decoded")


def _read_silently(source: Stream | ContainerStream, frames: int) -> np.ndarray:
    with _decoders_silenced():
        return source.read_block(frames)


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


def _length_is_known(source: Stream | ContainerStream, path: Path) -> bool:
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
