"""A dataset of latents: another dataset, encoded once by an autoencoder; built and read as any other.

Augmentation comes before the encoder, so it cannot vary what is encoded already. A shift of the time would
commute with a convolutional encoder only in multiples of its stride (8 frames in `BASE`), and even then not
near the ends of a clip; a change of level or polarity does not commute at all. So these datasets are read as
they are. To see more beginnings of clips, build the spectrograms with a larger `overlap`: 0.75 gives four
times the clips, and a latent is small.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from Libraries.Dataset.Build import BuildReport, build
from Libraries.Dataset.Manifest import SPLITS, DatasetConfig, DatasetError, manifest_hash
from Libraries.Dataset.Shards import BATCH, ShardTask, write_batches
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Runs.Autoencoding import LatentCodec
from Libraries.Runs.Settings import Settings
from Libraries.Utils import printable


@dataclass(frozen=True)
class LatentTask(ShardTask):
    """A shard whose rows are the latents of one source's clips."""

    dataset: Path  # the folder of the spectrograms
    split: str
    first: int  # of the source's clips, which lie together in their split
    last: int  # exclusive
    run_dir: Path  # of the autoencoder
    silent_clips: int  # as the spectrograms were built

    def write_rows(self) -> dict:
        """Encode the source's clips a few at a time, as float16."""
        clips, codec = _split(self.dataset, self.split), _codec(self.run_dir)
        digest, entries = write_batches(self.rows_path, self._batches(clips, codec))
        about = {"seconds": self.seconds, "silent_clips": self.silent_clips}
        return {**about, "sha256": digest, "clips": entries}

    def _batches(self, clips: SpectrogramDataset, codec: LatentCodec):
        for start in range(self.first, self.last, BATCH):
            positions = list(range(start, min(start + BATCH, self.last)))
            latents = codec.encode(clips.__getitems__(positions)[0])
            records = clips.records[positions]
            yield records["offset"].tolist(), latents.numpy().astype(np.float16), records["gain"].tolist()


@lru_cache(maxsize=3)
def _split(folder: Path, split: str) -> SpectrogramDataset:
    return SpectrogramDataset(folder, split)


@lru_cache(maxsize=1)
def _codec(run_dir: Path) -> LatentCodec:
    return LatentCodec.load(run_dir)


@dataclass(frozen=True)
class LatentPlan:
    """A dataset of the latents of another dataset.

    Args:
        dataset: the folder of the spectrograms.
        folder: of the latents.
        codec: of a run, whose weights the tasks load by themselves.
    """

    dataset: Path
    folder: Path
    config: DatasetConfig
    codec: LatentCodec
    normalised_together = False

    @cached_property
    def _splits(self) -> dict[str, SpectrogramDataset]:
        return {split: SpectrogramDataset(self.dataset, split) for split in SPLITS}

    @cached_property
    def _sources(self) -> dict[str, tuple[int, dict]]:
        """The sources that have clips, with their numbers, by file."""
        sources = enumerate(self._splits["train"].manifest["sources"])
        return {source["file"]: (number, source) for number, source in sources if not source["skipped"]}

    @property
    def spectrogram(self):
        """What the latents were made of."""
        return self._splits["train"].spectrogram_config

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, rows, frames) of a latent."""
        return self.codec.shape

    @property
    def files(self) -> list[str]:
        """The names of the sources that have clips, in the order of the rows."""
        return list(self._sources)

    @cached_property
    def settings(self) -> dict:
        """Those of the spectrograms, and the record of the autoencoder."""
        record = self.codec.requires | {"dataset": manifest_hash(self.dataset)}
        return self._splits["train"].manifest["settings"] | {"codec": record}

    @property
    def stride_frames(self) -> int:
        """Frames of the spectrogram from one clip's start to the next."""
        return self._splits["train"].manifest["stride_frames"]

    def source(self, file: str) -> dict:
        """Return `file` and `fingerprint` of a source."""
        return {name: self._sources[file][1][name] for name in ("file", "fingerprint")}

    def decides(self, source: dict) -> list:
        """Return all that decides the content of a source's shard, as JSON values."""
        return [self.settings["codec"], source]

    def task(self, source: dict, shard: Path) -> LatentTask:
        """Return the task that encodes a source's clips."""
        number, record = self._sources[source["file"]]
        ranges = {
            split: np.searchsorted(clips.records["source"], [number, number + 1]).tolist()
            for split, clips in self._splits.items()
        }
        split, (first, last) = next(item for item in ranges.items() if item[1][0] < item[1][1])
        return LatentTask(
            source["file"], source["fingerprint"], shard, record["seconds"], self.dataset.absolute(), split,
            first, last, self.codec.run_dir.absolute(), record["silent_clips"],
        )  # fmt: skip

    def check_usable(self, tasks: list[ShardTask], entries: list[dict]) -> None:
        """Raise a DatasetError if a source was skipped: its clips could be read when they were made."""
        skipped = [(t, e) for t, e in zip(tasks, entries, strict=True) if e["skipped"]]
        for task, _ in skipped:
            task.entry_path.unlink()
        if skipped:
            task, entry = skipped[0]
            raise DatasetError(
                f"the clips of {printable(task.file)} cannot be encoded, it {entry['skipped']}: run this "
                "again, with fewer workers if memory is short"
            )


def latent_plan(settings: Settings, codec: LatentCodec) -> LatentPlan:
    """Return the plan of these settings' dataset in the latents of a trained autoencoder.

    Raises:
        DatasetError: there is no finished dataset to encode.
        CheckpointError: the autoencoder's weights are missing.
    """
    name = f"{settings.dataset.name}-{codec.requires['weights'][:12]}"
    return LatentPlan(settings.dataset_dir, settings.dataset_dir.with_name(name), settings.dataset, codec)


def build_latents(settings: Settings, codec: LatentCodec) -> BuildReport:
    """Encode the dataset of these settings, unless that is done; of several processes, one works."""
    return build(latent_plan(settings, codec))
