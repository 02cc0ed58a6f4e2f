"""Audio folder -> dataset on disk; a killed build resumes where it stopped.

Every source file becomes a shard below `.building/`, named by a hash of everything that decides its content,
so that no build ever picks up a stale shard. Shards can be made in parts, on any machine that sees the
folders. Once all exist, they are joined (Join.py).
"""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from Libraries.Dataset.ClipTable import ClipTable
from Libraries.Dataset.Join import BUILDING, Join, finish_commit
from Libraries.Dataset.Manifest import (
    FORMAT,
    MANIFEST,
    SPLITS,
    DatasetConfig,
    DatasetError,
    differences,
    load_manifest,
)
from Libraries.Dataset.Plan import MusicPlan, Plan
from Libraries.Dataset.Shards import ENTRIES, ShardTask, make_shards
from Libraries.Disk import disk_errors, hold
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Utils import get_logger, printable

log = get_logger("DatasetBuild")

PARTS = "part-*"  # folders in `.building` that are held while a part is built


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
    lists its keys); above `config.one_file_clips`, the folder `shards` in place of the one file. Unreadable
    files are skipped and reported. A finished dataset with the same settings and files is left as it is. The
    result does not depend on `num_workers`, `executor`, parts or interruptions. While another process builds
    there, this one waits.

    Args:
        out_dir: the dataset's own folder, such as `Data/<config.name>`; other files in it are left alone.
        overwrite: replace a dataset with other settings or files, once the new one is complete.

    Raises:
        AudioError: `audio_dir` holds no audio, or none that can be used.
        DatasetError: `out_dir` holds another dataset and `overwrite` is False; or a worker process died that
            read no file.
        ImportError: `executor` is "ray", which is not installed.
        DiskError: the disk is full, forbidden, gone or broken; call again to resume.
    """
    return build(MusicPlan(Path(audio_dir), Path(out_dir), spectrogram, config), overwrite)


def build(plan: Plan, overwrite: bool = False) -> BuildReport:
    """Make a dataset by its plan, as `build_dataset` does."""
    folder, sources = plan.folder, [plan.source(file) for file in plan.files]
    committed = not (folder / BUILDING / MANIFEST).exists()
    if committed and (manifest := _existing(plan, sources, overwrite)):
        return _report(manifest, folder, already_built=True)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with hold(folder, wait=-1):
        finish_commit(folder)
        if manifest := _existing(plan, sources, overwrite):  # another process may have built it
            return _report(manifest, folder, already_built=True)
        for part in (folder / BUILDING).glob(PARTS):
            with hold(part, wait=-1):  # no other begins while this process holds the folder
                pass
        tasks = _tasks(plan, sources)
        make_shards(tasks, plan.config.num_workers, plan.config.executor)
        Join(plan, tasks, sources).commit()
    report = _report(load_manifest(folder), folder, already_built=False)
    _warn_of_empty_splits(report, plan.config)
    return report


def build_part(plan: Plan, part: int, parts: int, overwrite: bool = False) -> int:
    """Make one of several parts of a dataset's shards, and return of how many files.

    The parts can be built by any processes that see the same folders, at the same time or not, again after
    a failure. A last `build`, when they are done, makes what is still missing and joins all; the dataset is
    the same, byte for byte, as one from `build` alone.

    Args:
        part: 1 to `parts`: of the sources, every `parts`-th from this on.
        overwrite: as for `build`.

    Raises:
        ValueError: there is no such part.
        DatasetError, ImportError, DiskError: as `build_dataset`.
    """
    if not 1 <= part <= parts:
        raise ValueError(f"there is no part {part} of {parts}: parts are 1/{parts} to {parts}/{parts}")
    own = plan.folder / BUILDING / f"part-{part}-of-{parts}"
    sources = [plan.source(file) for file in plan.files[part - 1 :: parts]]
    with ExitStack() as held:
        with disk_errors(plan.folder):
            plan.folder.mkdir(parents=True, exist_ok=True)
        with hold(plan.folder, wait=-1):  # while a dataset is joined, none of its shards is made
            finish_commit(plan.folder)
            if _existing(plan, sources, overwrite, others_too=True):
                return 0
            with disk_errors(own):
                own.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold(own, wait=-1))
        make_shards(_tasks(plan, sources), plan.config.num_workers, plan.config.executor)
    return len(sources)


def _existing(plan: Plan, sources: list[dict], overwrite: bool, others_too: bool = False) -> dict | None:
    """Return the manifest of a finished dataset if it is the wanted one; None if one must be built.

    Args:
        others_too: whether the dataset may have other sources besides these.
    """
    folder = plan.folder
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = load_manifest(folder)
        if others_too:
            files = {source["file"] for source in sources}
            manifest["sources"] = [source for source in manifest["sources"] if source["file"] in files]
        found = "; ".join(differences(manifest, plan.settings, sources))
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


def _tasks(plan: Plan, sources: list[dict]) -> list[ShardTask]:
    building = (plan.folder / BUILDING).absolute()  # a worker may have another working directory
    with disk_errors(building):
        building.mkdir(parents=True, exist_ok=True)
    tasks = []
    for source in sources:
        decides = json.dumps([FORMAT, ENTRIES, *plan.decides(source)])
        shard = building / hashlib.sha256(decides.encode()).hexdigest()[:32]
        tasks.append(plan.task(source, shard))
    return tasks


def _report(manifest: dict, folder: Path, already_built: bool) -> BuildReport:
    sources, clips = manifest["sources"], manifest["clips"]
    splits = [] if isinstance(clips, ClipTable) else [clip["split"] for clip in clips]
    return BuildReport(
        folder=folder,
        already_built=already_built,
        files_read=sum(source["skipped"] is None for source in sources),
        skipped=tuple((source["file"], source["skipped"]) for source in sources if source["skipped"]),
        clips=clips.counts if isinstance(clips, ClipTable) else {s: splits.count(s) for s in SPLITS},
        silent_clips=sum(source["silent_clips"] for source in sources),
        seconds=sum(source["seconds"] for source in sources),
        classes=tuple(manifest["classes"]),
    )
