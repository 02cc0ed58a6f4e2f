"""Decode what libsndfile cannot, from m4a to the sound of video files, by PyAV.

PyAV's wheels carry FFmpeg. It is optional: nothing else needs it, and without it these files are skipped with
a sentence that says what to install.
"""

import contextlib
import errno
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

# fmt: off
CONTAINER_SUFFIXES = frozenset((
    ".m4a", ".m4b", ".aac", ".wma", ".ape", ".wv", ".mpc", ".dsf", ".dff", ".ra", ".amr", ".mka", ".weba",
    ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".mts", ".m2ts",
))
# fmt: on
# FFmpeg's formats of these. It knows playlists too, which could have it read any other file or address.
FORMATS = "mov,matroska,asf,aac,wv,ape,mpc,mpc8,dsf,iff,rm,amr,avi,flv,mpeg,mpegts,ogg,mp3"
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
TIMED = ("matroska,webm", "asf")  # of these the header gives the length, in ms; of others FFmpeg guesses it
PREROLL = 1.0  # s decoded before a place that is sought: a codec's frames overlap
NOT_AUDIO = "is not audio, or its header is damaged or cut off"


class ContainerError(Exception):
    """A container that cannot be decoded; the message continues a sentence that begins with its path."""


class ContainerStream:
    """The first sound track of a container, to be read forwards; its face is that of `Decoding.Stream`.

    Raises:
        ContainerError: PyAV is not installed, the file is not audio, or it has no sound.
        OSError: it cannot be opened.
    """

    extra_info = ""  # where libsndfile says what it found odd

    def __init__(self, path: Path):
        try:
            import av
        except ImportError:
            raise ContainerError(
                f"needs PyAV, as all {path.suffix.lower()} do: `pip install av`, or convert it to wav or flac"
            ) from None
        self._av, self._closing = av, contextlib.ExitStack()
        try:
            with self._named_errors(NOT_AUDIO):
                self._open(path)
        except BaseException:
            self.close()
            raise
        self.go_to(0)

    def _open(self, path: Path) -> None:
        file = open(path, "rb")  # noqa: SIM115 - PyAV wants names in UTF-8; `close` closes it
        self._closing.callback(file.close)
        self._container = self._closing.enter_context(self._av.open(file, options=OPTIONS))
        tracks = self._container.streams
        if not tracks.audio:
            raise ContainerError("has no sound")
        self._track = tracks.audio[0]
        codec = self._track.codec_context
        if codec is None:
            raise ContainerError("has sound in a form that FFmpeg does not decode: convert it to wav or flac")
        self.samplerate, self.channels = codec.sample_rate, codec.layout.nb_channels
        self.format, self.subtype = self._container.format.name.split(",")[0].upper(), codec.name
        self._exact = (self._track.duration or 0) > 0 and self._track.time_base * self.samplerate == 1
        self.frames = 2**63 - 1  # libsndfile's "unknown"
        if self._exact:
            self.frames = self._track.duration
        elif self._container.format.name in TIMED and self._container.duration and not tracks.video:
            self.frames = round(Fraction(self._container.duration, self._av.time_base) * self.samplerate)

    def go_to(self, frame: int) -> None:
        """Go to a frame of the track: at once where its times are in frames, else by decoding all before."""
        near = frame - round(PREROLL * self.samplerate)
        sought = self._exact and near > 0
        if sought:
            with self._named_errors("is damaged"):
                self._container.seek(near + (self._track.start_time or 0), stream=self._track)
        self._blocks, self._rest = self._decoded(frame, sought), np.zeros((0, self.channels), np.float32)

    def read_block(self, frames: int) -> np.ndarray:
        """Return the next frames, float32 (n, C); fewer at the end.

        Raises:
            ContainerError: what follows is damaged.
        """
        blocks, count = [self._rest], len(self._rest)
        while count < frames and (block := next(self._blocks, None)) is not None:
            blocks.append(block)
            count += len(block)
        whole = np.concatenate(blocks)
        self._rest = whole[frames:]
        return whole[:frames]

    def close(self) -> None:
        """Close the file."""
        self._closing.close()

    def __enter__(self) -> "ContainerStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _decoded(self, first: int, sought: bool) -> Iterator[np.ndarray]:
        """Yield float32 (n, C) from frame `first` on.

        Args:
            sought: the container has been sought, and the time of the next frame says where it is.
        """
        resampler = self._av.AudioResampler(format="flt")  # which changes the type of the samples alone
        skip = None if sought else first
        with self._named_errors("is damaged"):
            for frame in self._container.decode(self._track):
                if skip is None:
                    skip = first - (frame.pts - (self._track.start_time or 0))
                    if skip < 0:
                        raise ContainerError(f"cannot be sought at {first / self.samplerate:.2f} s")
                for part in resampler.resample(frame):
                    block = part.to_ndarray().reshape(-1, self.channels)
                    if len(block) > skip:
                        yield block[skip:]
                    skip = max(0, skip - len(block))

    @contextlib.contextmanager
    def _named_errors(self, sentence: str) -> Iterator[None]:
        """Turn every error that damaged bytes lead to into a ContainerError; those of the disk pass."""
        try:
            yield
        except (self._av.error.FFmpegError, ValueError, OverflowError) as error:
            raise ContainerError(sentence) from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the file's start
                raise
            raise ContainerError(sentence) from error
