"""Finished shards -> a dataset that can be read: in one file, or above a size as the shards are, with tables.

The entries of the shards are read one at a time, twice: for what they are together, then for their clips.
"""

import hashlib
import json
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
from Libraries.Dataset.Shards import ShardTask, read_rows
from Libraries.Sound.Spectrogram import Gain, Spectrogram, typical_gain
from Libraries.Sound.SpectrogramConfig import RANGES
from Libraries.Utils import write_then_rename

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
        text = manifest_bytes(manifest)
        write_then_rename(self.building / MANIFEST, lambda path: path.write_bytes(text))
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
        gain = self._gain([clip["gain"] for clip in clips if clip["split"] == "train"])
        rows = (batch for number in self.used for batch in self._final_rows(number, gain))
        digest = _write_npy(self.building / SPECTROGRAMS, (self.N, *self.plan.shape), rows)
        clips = [clip if clip["gain"] else clip | {"gain": gain} for clip in clips]
        return self._manifest(digest, gain) | {"sources": self.sources, "clips": clips}

    def _in_shards(self) -> dict:
        """Write the tables; the rows stay where they are until the commit."""
        folder, places = self.building / SHARDS, self.places
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        counts = dict.fromkeys(SPLITS, 0)
        for number in self.used:
            counts[places[number]["split"]] += self.entries[number]["N"]
        records = np.lib.format.open_memmap(folder / CLIPS, "w+", CLIP, (self.N,))
        self._fill(records, counts)
        train = records["gain"][: counts["train"]][:: max(1, counts["train"] // TYPICAL)]
        gain = self._gain(train)
        if self.plan.normalised_together:
            self._normalise_shards(folder, gain)
            records["gain"] = gain
        records.flush()
        write_sources(folder, (
            source | {"split": places[number]["split"], "shard": self.tasks[number].shard.name}
            if number in places else source | {"split": None, "shard": None}
            for number, source in enumerate(self.sources)
        ), len(self.sources))  # fmt: skip
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

    def _fill(self, records: np.ndarray, counts: dict[str, int]) -> None:
        """Write the record of every clip, split by split."""
        ends = np.cumsum([counts[split] for split in SPLITS])
        at = {split: int(end) - counts[split] for split, end in zip(SPLITS, ends, strict=True)}
        for number in tqdm(self.used, unit=" sources", desc="Indexing"):
            clips, place = self._clips_of(number), self.places[number]
            rows = records[at[place["split"]] :][: len(clips)]
            rows["source"], rows["row"], rows["label"] = number, np.arange(len(clips)), place["label"]
            rows["offset"] = [clip["offset"] for clip in clips]
            if not self.plan.normalised_together:
                rows["gain"] = [clip["gain"] for clip in clips]
            at[place["split"]] += len(clips)

    def _gain(self, gains: list | np.ndarray) -> list[float]:
        """Return [offset, scale] of the training split: of all its features, or the median of its clips'."""
        if self.plan.normalised_together:
            training = (number for number in self.used if self.places[number]["split"] == "train")
            features = (batch for number in training for batch in self._rows_of(number))
            gain = Spectrogram(self.plan.spectrogram).dataset_gain(features)
        else:
            gain = typical_gain(Gain(*torch.from_numpy(np.array(gains, np.float32)).T))
        return [gain.offset.item(), gain.scale.item()]

    def _normalise_shards(self, folder: Path, gain: list[float]) -> None:
        """Write the rows of every shard, normalised, to `folder`; its features stay for a second attempt."""
        for number in tqdm(self.used, unit=" sources", desc="Normalising"):
            with open(folder / (self.tasks[number].shard.name + ROWS), "wb") as file:
                self.entries[number]["sha256"] = _write_hashed(file, self._final_rows(number, gain))

    def _clips_of(self, number: int) -> list[dict]:
        return json.loads(self.tasks[number].entry_path.read_text())["clips"]

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
    entry = json.loads(task.entry_path.read_text())
    return entry | {"N": len(entry.pop("clips"))}


def _write_npy(path: Path, shape: tuple[int, ...], batches: Iterator[np.ndarray]) -> str:
    """Write float16 batches as one .npy file without holding them all; return the sha256 of its data."""
    header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
    with open(path, "wb") as file, tqdm(total=shape[0], unit=" clips", desc="Joining") as bar:
        np.lib.format.write_array_header_1_0(file, header)
        return _write_hashed(file, batches, bar)


def _write_hashed(file: BinaryIO, batches: Iterator[np.ndarray], bar: tqdm | None = None) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        file.write(batch.data)
        digest.update(batch.data)
        if bar is not None:
            bar.update(len(batch))
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish_commit(folder: Path) -> None:
    """Move a complete dataset from `.building` into place; safe to repeat after a kill at any line.

    The old manifest goes first and the new one comes last: in between there is no dataset, never a mixed one.
    """
    building = folder / BUILDING
    if not (building / MANIFEST).exists():
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    if (building / SPECTROGRAMS).exists():
        os.replace(building / SPECTROGRAMS, folder / SPECTROGRAMS)
    if (building / SHARDS).exists():
        _gather_shards(building)
        shutil.rmtree(folder / SHARDS, ignore_errors=True)
        os.replace(building / SHARDS, folder / SHARDS)
    text = (building / MANIFEST).read_text("utf-8", "surrogateescape")
    _remove_other_form(folder, "splits" in json.loads(text))
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
