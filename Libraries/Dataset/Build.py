"""Audio folder -> dataset on disk; a killed build resumes where it stopped.

Every source file becomes a shard below `.building/`, named by a hash of everything that decides its content,
so that no build ever picks up a stale shard. Once all exist, they are joined into one file, which is moved
into place.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm.auto import tqdm

from Libraries.Dataset.Manifest import (
    FORMAT,
    INVERSE_ONLY,
    MANIFEST,
    SPECTROGRAMS,
    SPLITS,
    DatasetConfig,
    DatasetError,
    class_of,
    content_settings,
    differences,
    load_manifest,
    manifest_bytes,
    piece_of,
    split_pieces,
)
from Libraries.Dataset.Shards import ShardTask, fingerprint, make_shards, read_entry, read_rows
from Libraries.Disk import disk_errors, hold, write_then_rename, write_whole
from Libraries.Sound.Audio import AudioError, audio_info, find_audio_files
from Libraries.Sound.Decoding import LONGEST_SECONDS
from Libraries.Sound.Spectrogram import Gain, Spectrogram, typical_gain
from Libraries.Sound.SpectrogramConfig import RANGES, SpectrogramConfig
from Libraries.Utils import get_logger, printable

log = get_logger("DatasetBuild")

BUILDING = ".building"


@dataclass(frozen=True)
class BuildReport:
    """What a build read, left out and made; `print` shows it as a table."""

    folder: Path
    already_built: bool
    files_read: int
    skipped: tuple[tuple[str, str], ...]  # file, reason
    clips: dict[str, int]  # by split
    silent_clips: int  # dropped from files that were read
    seconds: float  # of music read
    classes: tuple[str, ...]

    def __str__(self) -> str:
        splits = ", ".join(f"{count} {split}" for split, count in self.clips.items())
        rows = [
            ("dataset", f"{self.folder}{' (already built)' if self.already_built else ''}"),
            ("files read", str(self.files_read)),
            ("files skipped", str(len(self.skipped))),
            ("clips made", f"{sum(self.clips.values())} ({splits})"),
            ("silent clips dropped", str(self.silent_clips)),
            ("seconds of music", f"{self.seconds:.1f}"),
            ("classes", ", ".join(self.classes)),
        ]
        lines = [f"{name:<22}{value}" for name, value in rows]
        return "\n".join(lines + [f"  skipped: {printable(file)} {reason}" for file, reason in self.skipped])


def build_dataset(
    audio_dir: Path,
    out_dir: Path,
    spectrogram: SpectrogramConfig,
    config: DatasetConfig,
    overwrite: bool = False,
) -> BuildReport:
    """Make a dataset in `out_dir` from every audio file below `audio_dir`; call again to resume.

    Writes `spectrograms.npy`, float16 (N, C, F, T), one row per clip, and `manifest.json` (`load_manifest`
    lists its keys). Unreadable files are skipped and reported. A finished dataset with the same settings
    and files is left as it is. The result does not depend on `num_workers` or on interruptions. While another
    process builds there, this one waits.

    Args:
        out_dir: the dataset's own folder, such as `Data/<config.name>`; other files in it are left alone.
        overwrite: replace a dataset with other settings or files, once the new one is complete.

    Raises:
        AudioError: `audio_dir` holds no audio, or none that can be used.
        DatasetError: `out_dir` holds another dataset and `overwrite` is False; or a worker process died that
            read no file.
        DiskError: the disk is full, forbidden, gone or broken; call again to resume.
    """
    audio_dir, folder = Path(audio_dir), Path(out_dir)
    files = find_audio_files(audio_dir)
    sources = [
        {"file": file.relative_to(audio_dir).as_posix(), "fingerprint": fingerprint(file)} for file in files
    ]
    settings = content_settings(spectrogram, config)
    committed = not (folder / BUILDING / MANIFEST).exists()
    if committed and (manifest := _existing(folder, settings, sources, overwrite)):
        return _report(manifest, folder, already_built=True)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with hold(folder, wait=-1):
        _finish_commit(folder)
        if manifest := _existing(folder, settings, sources, overwrite):  # another process may have built it
            return _report(manifest, folder, already_built=True)
        tasks = _tasks(files, sources, folder, spectrogram, config)
        make_shards(tasks, config.num_workers)
        manifest = _join(tasks, sources, audio_dir, spectrogram, config)
        write_whole(folder / BUILDING / MANIFEST, manifest_bytes(manifest))
        _finish_commit(folder)
    report = _report(manifest, folder, already_built=False)
    _warn_of_empty_splits(report, config)
    return report


def _existing(folder: Path, settings: dict, sources: list[dict], overwrite: bool) -> dict | None:
    """Return the manifest of a finished dataset if it is the wanted one; None if one must be built."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = load_manifest(folder)
        found = "; ".join(differences(manifest, settings, sources))
    except DatasetError as error:
        found = str(error)
    if not found:
        return manifest
    if not overwrite:
        raise DatasetError(
            f"{folder} already holds another dataset: {found}. "
            "Choose another dataset.name, or replace it: build_dataset(..., overwrite=True)"
        )
    return None


def _warn_of_empty_splits(report: BuildReport, config: DatasetConfig) -> None:
    for (split, count), fraction in zip(report.clips.items(), config.split, strict=True):
        if count == 0 and fraction > 0:
            log.warning("the %s split is empty: there are too few pieces, and none is in two splits", split)


def _finish_commit(folder: Path) -> None:
    """Move a complete dataset from `.building` into place; safe to repeat after a kill at any line.

    The old manifest goes first and the new one comes last: in between there is no dataset, never a mixed one.
    """
    building = folder / BUILDING
    if not (building / MANIFEST).exists():
        return
    with disk_errors(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        if (building / SPECTROGRAMS).exists():
            os.replace(building / SPECTROGRAMS, folder / SPECTROGRAMS)
        os.replace(building / MANIFEST, folder / MANIFEST)
        shutil.rmtree(building)


def _tasks(
    files: list[Path],
    sources: list[dict],
    folder: Path,
    spectrogram: SpectrogramConfig,
    config: DatasetConfig,
) -> list[ShardTask]:
    building = folder / BUILDING
    with disk_errors(building):
        building.mkdir(parents=True, exist_ok=True)
    stride = config.stride_frames(spectrogram) * spectrogram.hop_length
    settings = content_settings(spectrogram, config)["spectrogram"]
    settings = {name: value for name, value in settings.items() if name not in INVERSE_ONLY}
    tasks = []
    for path, source in zip(files, sources, strict=True):
        decides = json.dumps([FORMAT, settings, stride, config.silence_db, source])
        shard = building / hashlib.sha256(decides.encode()).hexdigest()[:32]
        task = ShardTask(
            path, source["file"], source["fingerprint"], shard, 0.0, spectrogram, stride, config.silence_db
        )
        tasks.append(replace(task, seconds=_seconds(task)))
    return tasks


def _seconds(task: ShardTask) -> float:
    """Return the length that the header gives, 0 where there is none or where it will not be read."""
    if task.entry_path.exists() or task.reading_path.exists():
        return 0.0
    try:
        with task.reading():
            return min(audio_info(task.path).seconds or 0.0, LONGEST_SECONDS)
    except Exception:  # of any type: reading the file will fail again, and say so
        return 0.0


def _join(
    tasks: list[ShardTask],
    sources: list[dict],
    audio_dir: Path,
    spectrogram: SpectrogramConfig,
    config: DatasetConfig,
) -> dict:
    """Write all rows into one file in the order of the sources; return the manifest."""
    entries = [read_entry(task) for task in tasks]
    _check_usable(tasks, entries, audio_dir)
    about = ("seconds", "silent_clips", "skipped")
    sources = [
        source | {name: entry[name] for name in about} for source, entry in zip(sources, entries, strict=True)
    ]
    classes, clips = _describe_clips(sources, entries, config)
    shards = [(task, len(entry["clips"])) for task, entry in zip(tasks, entries, strict=True)]
    gain = _gain(shards, clips, spectrogram)
    shape = (len(clips), *spectrogram.shape)
    digest = _write_npy(tasks[0].shard.parent / SPECTROGRAMS, shape, _final_rows(shards, spectrogram, gain))
    return {
        "format": FORMAT,
        "settings": content_settings(spectrogram, config),
        "stride_frames": config.stride_frames(spectrogram),
        "shape": shape,
        "sha256": digest,
        "classes": classes,
        "gain": gain,
        "sources": sources,
        "clips": [clip if clip["gain"] else clip | {"gain": gain} for clip in clips],
    }


def _check_usable(tasks: list[ShardTask], entries: list[dict], audio_dir: Path) -> None:
    if any(entry["clips"] for entry in entries):
        return
    reasons = [
        f"{printable(task.file)} {entry['skipped']}" for task, entry in zip(tasks, entries, strict=True)
    ]
    first = "; ".join(reasons[:5]) + ("; ..." if len(reasons) > 5 else "")
    raise AudioError(audio_dir, f"holds no audio file that can be used, of {len(tasks)}: {first}")


def _describe_clips(
    sources: list[dict], entries: list[dict], config: DatasetConfig
) -> tuple[list[str], list[dict]]:
    """Return the classes, and for every row its source, split, label, offset and gain."""
    used = [source["file"] for source, entry in zip(sources, entries, strict=True) if entry["clips"]]
    splits = split_pieces(map(piece_of, used), config.split, config.seed)
    has_folders = any("/" in file for file in used)
    classes = sorted({class_of(file, has_folders) for file in used})
    clips = []
    for source, entry in zip(sources, entries, strict=True):
        if entry["clips"]:
            file = source["file"]
            label = classes.index(class_of(file, has_folders))
            about = {"source": file, "split": splits[piece_of(file)], "label": label}
            clips.extend(about | clip for clip in entry["clips"])
    return classes, clips


def _gain(shards: list[tuple[ShardTask, int]], clips: list[dict], config: SpectrogramConfig) -> list[float]:
    """Return [offset, scale] of the training split: of all its features, or the median of its clips'."""
    training = [clip for clip in clips if clip["split"] == "train"]
    if config.normalisation == "dataset":
        files = {clip["source"] for clip in training}
        features = (batch for task, n in shards if task.file in files for batch in read_rows(task, n))
        gain = Spectrogram(config).dataset_gain(features)
    else:
        gain = typical_gain(Gain(*torch.tensor([clip["gain"] for clip in training]).T))
    return [gain.offset.item(), gain.scale.item()]


def _final_rows(
    shards: list[tuple[ShardTask, int]], config: SpectrogramConfig, gain: list[float]
) -> Iterator[np.ndarray]:
    """Yield all rows as float16 (b, C, F, T), normalised."""
    offset, scale = torch.tensor(gain)
    for task, n in shards:
        for batch in read_rows(task, n) if n else ():
            if config.normalisation == "dataset":
                batch = ((batch - offset) / scale).clamp(*RANGES[config.value_range])
            yield batch.numpy().astype(np.float16)


def _write_npy(path: Path, shape: tuple[int, ...], batches: Iterator[np.ndarray]) -> str:
    """Write float16 batches as one .npy file without holding them all; return the sha256 of its data."""
    digest = hashlib.sha256()
    header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        with tqdm(total=shape[0], unit=" clips", desc="Joining") as bar:
            for batch in batches:
                file.write(batch.data)
                digest.update(batch.data)
                bar.update(len(batch))

    write_then_rename(path, write, size=2 * math.prod(shape))
    return digest.hexdigest()


def _report(manifest: dict, folder: Path, already_built: bool) -> BuildReport:
    sources = manifest["sources"]
    splits = [clip["split"] for clip in manifest["clips"]]
    return BuildReport(
        folder=folder,
        already_built=already_built,
        files_read=sum(source["skipped"] is None for source in sources),
        skipped=tuple((source["file"], source["skipped"]) for source in sources if source["skipped"]),
        clips={split: splits.count(split) for split in SPLITS},
        silent_clips=sum(source["silent_clips"] for source in sources),
        seconds=sum(source["seconds"] for source in sources),
        classes=tuple(manifest["classes"]),
    )
