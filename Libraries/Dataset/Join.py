"""Finished shards -> a dataset that can be read: in one file, or above a size as the shards are, with tables.

The entries of the shards are read one at a time, twice: for what they are together, then for their clips.
"""

import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm.auto import tqdm

from Libraries.Dataset.ClipTable import CLIP, CLIPS, ENDS, SOURCES, SPLITS, SourceTable, write_sources
from Libraries.Dataset.Manifest import (
    FORMAT,
    MANIFEST,
    SHARDS,
    SPECTROGRAMS,
    class_of,
    manifest_bytes,
    piece_of,
    split_pieces,
)
from Libraries.Dataset.Plan import Plan
from Libraries.Dataset.RowFiles import ROWS
from Libraries.Dataset.Shards import ShardTask, read_entry, read_rows
from Libraries.Disk import disk_errors, write_then_rename, write_whole
from Libraries.Sound.Spectrogram import Gain, Spectrogram, typical_gain
from Libraries.Sound.SpectrogramConfig import RANGES

BUILDING = ".building"
TYPICAL = 1_000_000  # clips whose median gain is typical enough


class Join:
    """The shards of a dataset on the way to being one.

    Args:
        tasks: whose shards are all finished, in the order of the rows.
        sources: `file` and `fingerprint` of each.
    """

    def __init__(self, plan: Plan, tasks: list[ShardTask], sources: list[dict]):
        self.plan, self.tasks, self.building = plan, tasks, plan.folder / BUILDING
        entries = [_entry(task) for task in tasks]
        plan.check_usable(tasks, entries)
        self.used = [number for number, entry in enumerate(entries) if entry["N"]]
        self.entries, self.N = entries, sum(entry["N"] for entry in entries)
        about = ("seconds", "silent_clips", "skipped")
        self.sources = [
            source | {name: entry[name] for name in about}
            for source, entry in zip(sources, entries, strict=True)
        ]
        self.classes, self.places = self._describe()

    def commit(self) -> None:
        """Write the dataset into `.building`, its manifest last, and move it into place."""
        most = self.plan.config.one_file_clips
        manifest = self._in_shards() if most is not None and most < self.N else self._in_one_file()
        write_whole(self.building / MANIFEST, manifest_bytes(manifest))
        finish_commit(self.plan.folder)

    def _describe(self) -> tuple[list[str], dict[int, dict]]:
        """Return the classes; and of every source with clips, by its number, file, split and label."""
        files = {number: self.sources[number]["file"] for number in self.used}
        splits = split_pieces(map(piece_of, files.values()), self.plan.config.split, self.plan.config.seed)
        has_folders = any("/" in file for file in files.values())
        classes = sorted({class_of(file, has_folders) for file in files.values()})
        labels, places = {name: label for label, name in enumerate(classes)}, {}
        for number, file in files.items():
            label = labels[class_of(file, has_folders)]
            places[number] = {"source": file, "split": splits[piece_of(file)], "label": label}
        return classes, places

    def _in_one_file(self) -> dict:
        clips = [self.places[number] | clip for number in self.used for clip in self._clips_of(number)]
        gain = self._common_gain() or _median([clip["gain"] for clip in clips if clip["split"] == "train"])
        rows = (batch for number in self.used for batch in self._final_rows(number, gain))
        digest = _write_npy(self.building / SPECTROGRAMS, (self.N, *self.plan.shape), np.float16, rows)
        clips = [clip if clip["gain"] else clip | {"gain": gain} for clip in clips]
        return self._manifest(digest, gain) | {"sources": self.sources, "clips": clips}

    def _in_shards(self) -> dict:
        """Write the tables; the rows stay where they are until the commit."""
        folder, counts = self.building / SHARDS, dict.fromkeys(SPLITS, 0)
        with disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for number in self.used:
            counts[self.places[number]["split"]] += self.entries[number]["N"]
        common = self._common_gain()
        _write_npy(folder / CLIPS, (self.N,), CLIP, self._records(common), "Indexing")
        gain = common or _median(_some_gains(folder / CLIPS, counts["train"]))
        if common:
            self._normalise_shards(folder, common)
        write_sources(folder, self._placed_sources(), len(self.sources))
        digests = "".join(self.entries[number]["sha256"] for number in self.used)
        tables = {name: _sha256(folder / name) for name in (CLIPS, SOURCES, ENDS)}
        digest = hashlib.sha256(digests.encode()).hexdigest()
        return self._manifest(digest, gain) | {"splits": counts, "tables": tables}

    def _manifest(self, digest: str, gain: list[float]) -> dict:
        plan = self.plan
        return {
            "format": FORMAT,
            "settings": plan.settings,
            "stride_frames": plan.stride_frames,
            "shape": (self.N, *plan.shape),
            "sha256": digest,
            "classes": self.classes,
            "gain": gain,
        }

    def _records(self, gain: list[float] | None) -> Iterator[np.ndarray]:
        """Yield the records of each source's clips, split by split; None: each clip has its own gain."""
        for split in SPLITS:
            for number in self.used:
                if self.places[number]["split"] == split:
                    clips = self._clips_of(number)
                    records = np.empty(len(clips), CLIP)
                    records["source"], records["row"] = number, np.arange(len(clips))
                    records["label"] = self.places[number]["label"]
                    records["offset"] = [clip["offset"] for clip in clips]
                    records["gain"] = gain or [clip["gain"] for clip in clips]
                    yield records

    def _placed_sources(self) -> Iterator[dict]:
        """Yield the sources, each with its split and shard; None: it has no clips."""
        for number, source in enumerate(self.sources):
            if number in self.places:
                shard = self.tasks[number].shard.name
                yield source | {"split": self.places[number]["split"], "shard": shard}
            else:
                yield source | {"split": None, "shard": None}

    def _common_gain(self) -> list[float] | None:
        """Return [offset, scale] of all features of the training split; None if each clip has its own."""
        if not self.plan.normalised_together:
            return None
        training = (number for number in self.used if self.places[number]["split"] == "train")
        features = (batch for number in training for batch in self._rows_of(number))
        gain = Spectrogram(self.plan.spectrogram).dataset_gain(features)
        return [gain.offset.item(), gain.scale.item()]

    def _normalise_shards(self, folder: Path, gain: list[float]) -> None:
        """Write the rows of every shard, normalised, to `folder`; its features stay for a second attempt."""
        for number in tqdm(self.used, unit=" sources", desc="Normalising"):
            path, entry = folder / (self.tasks[number].shard.name + ROWS), self.entries[number]
            size = 2 * entry["N"] * math.prod(self.plan.shape)
            entry["sha256"] = _write_hashed(path, self._final_rows(number, gain), size)

    def _clips_of(self, number: int) -> list[dict]:
        return read_entry(self.tasks[number])["clips"]

    def _rows_of(self, number: int) -> Iterator[torch.Tensor]:
        dtype = np.float32 if self.plan.normalised_together else np.float16
        return read_rows(self.tasks[number].rows_path, self.entries[number]["N"], self.plan.shape, dtype)

    def _final_rows(self, number: int, gain: list[float]) -> Iterator[np.ndarray]:
        """Yield the rows of a shard as float16 (b, C, F, T), normalised."""
        offset, scale = torch.tensor(gain)
        for batch in self._rows_of(number):
            if self.plan.normalised_together:
                batch = ((batch - offset) / scale).clamp(*RANGES[self.plan.spectrogram.value_range])
            yield batch.numpy().astype(np.float16)


def _entry(task: ShardTask) -> dict:
    """Return a shard's entry, with the number of its clips in their place."""
    entry = read_entry(task)
    return entry | {"N": len(entry.pop("clips"))}


def _median(gains: list | np.ndarray) -> list[float]:
    gain = typical_gain(Gain(*torch.from_numpy(np.array(gains, np.float32)).T))
    return [gain.offset.item(), gain.scale.item()]


def _some_gains(path: Path, count: int) -> np.ndarray:
    """Return about `TYPICAL` of the first `count` gains in a table of clips."""
    with disk_errors(path, "read"):
        records = np.load(path, mmap_mode="r", allow_pickle=False)
        return records["gain"][:count][:: max(1, count // TYPICAL)].copy()


def _write_npy(
    path: Path, shape: tuple[int, ...], dtype: type, batches: Iterator[np.ndarray], doing: str = "Joining"
) -> str:
    """Write batches as one .npy file; return the sha256 of its data."""
    descr, header = np.lib.format.dtype_to_descr(np.dtype(dtype)), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    with tqdm(total=shape[0], unit=" clips", desc=doing) as bar:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return _write_hashed(path, _counted(batches, bar), size, header.getvalue())


def _counted(batches: Iterator[np.ndarray], bar: tqdm) -> Iterator[np.ndarray]:
    for batch in batches:
        yield batch
        bar.update(len(batch))


def _write_hashed(path: Path, batches: Iterator[np.ndarray], size: int, header: bytes = b"") -> str:
    """Write batches of `size` bytes without holding them all; return the sha256 of their data."""
    digest = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        file.write(header)
        for batch in batches:
            file.write(batch.data)
            digest.update(batch.data)

    write_then_rename(path, write, size=len(header) + size)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with disk_errors(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish_commit(folder: Path) -> None:
    """Move a complete dataset from `.building` into place; safe to repeat after a kill at any line.

    The old manifest goes first and the new one comes last: in between there is no dataset, never a mixed one.
    """
    building = folder / BUILDING
    if not (building / MANIFEST).exists():
        return
    with disk_errors(building / MANIFEST, "read"):
        in_shards = "splits" in json.loads((building / MANIFEST).read_text("utf-8", "surrogateescape"))
    with disk_errors(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        if (building / SPECTROGRAMS).exists():
            os.replace(building / SPECTROGRAMS, folder / SPECTROGRAMS)
        if (building / SHARDS).exists():
            _gather_shards(building)
            shutil.rmtree(folder / SHARDS, ignore_errors=True)
            os.replace(building / SHARDS, folder / SHARDS)
        _remove_other_form(folder, in_shards)
        os.replace(building / MANIFEST, folder / MANIFEST)
        shutil.rmtree(building)


def _gather_shards(building: Path) -> None:
    """Move the rows of a dataset in many files beside its tables, except those that were written there."""
    for source in SourceTable(building / SHARDS):
        if source["shard"] and not (target := building / SHARDS / (source["shard"] + ROWS)).exists():
            os.replace(building / (source["shard"] + ROWS), target)


def _remove_other_form(folder: Path, in_shards: bool) -> None:
    if in_shards:
        (folder / SPECTROGRAMS).unlink(missing_ok=True)
    elif (folder / SHARDS).exists():
        shutil.rmtree(folder / SHARDS)
