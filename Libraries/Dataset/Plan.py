"""What a dataset is built of: `MusicPlan` of audio files, `Runs/LatentDataset.py` of another dataset."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from Libraries.Dataset.Manifest import INVERSE_ONLY, DatasetConfig, content_settings
from Libraries.Dataset.Shards import AudioTask, ShardTask, fingerprint
from Libraries.Sound.Audio import AudioError, audio_info, find_audio_files
from Libraries.Sound.Decoding import LONGEST_SECONDS
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Utils import printable


class Plan(Protocol):
    """The interface of all plans."""

    folder: Path  # of the dataset
    spectrogram: SpectrogramConfig
    config: DatasetConfig
    shape: tuple[int, int, int]  # (C, F, T) of a row
    normalised_together: bool  # whether shards hold float32 features that await the dataset's gain

    @property
    def files(self) -> list[str]:
        """The names of the sources, in the order of the rows."""

    @property
    def settings(self) -> dict:
        """All settings that decide the content, for the manifest."""

    @property
    def stride_frames(self) -> int:
        """Frames from one clip's start to the next."""

    def source(self, file: str) -> dict:
        """Return `file` and `fingerprint` of a source."""

    def decides(self, source: dict) -> list:
        """Return all that decides the content of a source's shard, as JSON values."""

    def task(self, source: dict, shard: Path) -> ShardTask:
        """Return the task that makes a source's shard."""

    def check_usable(self, tasks: list[ShardTask], entries: list[dict]) -> None:
        """Raise an error if no source has a clip."""


@dataclass(frozen=True)
class MusicPlan:
    """A dataset of the audio files below a folder.

    Raises:
        AudioError: there is none.
    """

    audio_dir: Path
    folder: Path
    spectrogram: SpectrogramConfig
    config: DatasetConfig
    files: list[str] = field(init=False)

    def __post_init__(self):
        found = find_audio_files(self.audio_dir)
        files = [file.relative_to(self.audio_dir).as_posix() for file in found]
        object.__setattr__(self, "files", files)

    @property
    def settings(self) -> dict:
        """All settings that decide the content, for the manifest."""
        return content_settings(self.spectrogram, self.config)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, F, T) of a row."""
        return self.spectrogram.shape

    @property
    def normalised_together(self) -> bool:
        """Whether rows are float32 features that await the dataset's gain."""
        return self.spectrogram.normalisation == "dataset"

    @property
    def stride_frames(self) -> int:
        """Frames from one clip's start to the next."""
        return self.config.stride_frames(self.spectrogram)

    def source(self, file: str) -> dict:
        """Return `file` and `fingerprint` of a source."""
        return {"file": file, "fingerprint": fingerprint(self.audio_dir / file)}

    def decides(self, source: dict) -> list:
        """Return all that decides the content of a source's shard, as JSON values."""
        spectrogram = self.settings["spectrogram"]
        settings = {name: value for name, value in spectrogram.items() if name not in INVERSE_ONLY}
        padded = ["pad_short"] if self.config.pad_short else []
        return [settings, self._stride, self.config.silence_db, source, *padded]

    def task(self, source: dict, shard: Path) -> AudioTask:
        """Return the task that makes a source's shard."""
        file, path = source["file"], (self.audio_dir / source["file"]).absolute()
        task = AudioTask(
            file,
            source["fingerprint"],
            shard,
            0.0,
            path,
            self.spectrogram,
            self._stride,
            self.config.silence_db,
            self.config.pad_short,
        )
        return replace(task, seconds=_seconds(task))

    @property
    def _stride(self) -> int:
        return self.stride_frames * self.spectrogram.hop_length  # samples

    def check_usable(self, tasks: list[ShardTask], entries: list[dict]) -> None:
        """Raise an AudioError if no file has a clip."""
        if any(entry["N"] for entry in entries):
            return
        pairs = zip(tasks, entries, strict=True)
        reasons = [f"{printable(task.file)} {entry['skipped']}" for task, entry in pairs]
        first = "; ".join(reasons[:5]) + ("; ..." if len(reasons) > 5 else "")
        sentence = f"holds no audio file that can be used, of {len(tasks)}: {first}"
        raise AudioError(self.audio_dir, sentence)


def _seconds(task: AudioTask) -> float:
    """Return the length that the header gives, 0 where there is none or where it will not be read."""
    if task.entry_path.exists() or task.reading_path.exists():
        return 0.0
    try:
        with task.reading():
            return min(audio_info(task.path).seconds or 0.0, LONGEST_SECONDS)
    except Exception:  # of any type: reading the file will fail again, and say so
        return 0.0
