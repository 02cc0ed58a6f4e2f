"""Datasets beyond one machine: built in parts, by Ray, in many files; the same bytes, the same batches."""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_dataset import (
    CONFIG,
    SPECTROGRAM,
    config_with,
    contents,
    die_at_move,
    spectrogram_with,
    start_build,
    write_music,
)

from Libraries.Dataset import Shards as DatasetShards
from Libraries.Dataset.Build import build_part
from Libraries.Dataset.ClipTable import SPLITS
from Libraries.Dataset.Manifest import clips_of, pieces_of
from Libraries.Dataset.Plan import MusicPlan
from Libraries.Dataset.SpectrogramDataset import (
    DatasetError,
    SpectrogramDataset,
    build_dataset,
    load_manifest,
    make_loaders,
    manifest_hash,
)
from Libraries.Disk import DiskError

REPOSITORY = Path(__file__).parents[1]
IN_SHARDS = config_with(one_file_clips=0, time_shift=True)
NORMALISATIONS = ("per_sample", "dataset")


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Seven files in two folders, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("music")
    for i in range(6):
        write_music(folder / ("a", "b")[i % 2] / f"{i}.wav", 2.5 + 0.5 * i, seed=i)
    (folder / "b" / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module", params=NORMALISATIONS)
def both(request, music, tmp_path_factory):
    """The same dataset in one file and in many."""
    folder = tmp_path_factory.mktemp(request.param)
    spectrogram = spectrogram_with(normalisation=request.param)
    reports = [build_dataset(music, folder / "one", spectrogram, CONFIG)]
    reports.append(build_dataset(music, folder / "many", spectrogram, IN_SHARDS))
    return folder / "one", folder / "many", reports


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != ".lock"}


# ---- parts


@pytest.mark.parametrize("config", [CONFIG, IN_SHARDS], ids=["one file", "many files"])
def test_parts_in_any_order_and_one_twice_make_the_bytes_of_one_build(music, tmp_path, config):
    build_dataset(music, tmp_path / "whole", SPECTROGRAM, config)
    plan = MusicPlan(music, tmp_path / "parts", SPECTROGRAM, config)
    assert [build_part(plan, part, 3) for part in (3, 1, 3, 2)] == [2, 3, 2, 2]
    assert not (tmp_path / "parts" / "manifest.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("Libraries.Dataset.Shards.make_shard", lambda task: pytest.fail(f"{task.file} again"))
        build_dataset(music, tmp_path / "parts", SPECTROGRAM, config)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert build_part(plan, 1, 3) == 0  # it is finished


def test_the_last_call_makes_what_a_lost_part_did_not(music, tmp_path):
    build_dataset(music, tmp_path / "whole", SPECTROGRAM, CONFIG)
    build_part(MusicPlan(music, tmp_path / "parts", SPECTROGRAM, CONFIG), 2, 2)
    build_dataset(music, tmp_path / "parts", SPECTROGRAM, CONFIG)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_the_last_call_waits_for_a_part_that_is_being_built(music, tmp_path, monkeypatch):
    """Or it would take a file that the part reads for one over which a process has died."""
    plan, made, make_shard = (
        MusicPlan(music, tmp_path / "out", SPECTROGRAM, CONFIG),
        [],
        DatasetShards.make_shard,
    )
    begun = threading.Event()

    def slowly(task):
        begun.set()
        time.sleep(0.1)
        made.append(task.file)
        make_shard(task)

    monkeypatch.setattr("Libraries.Dataset.Shards.make_shard", slowly)
    part = threading.Thread(target=build_part, args=(plan, 1, 2))
    part.start()
    assert begun.wait(60)
    build_dataset(music, tmp_path / "out", SPECTROGRAM, CONFIG)
    part.join(60)
    assert sorted(made) == sorted(plan.files)


@pytest.mark.parametrize("part, parts", [(0, 3), (4, 3), (1, 0)])
def test_a_part_that_does_not_exist_is_refused(music, tmp_path, part, parts):
    with pytest.raises(ValueError, match=f"there is no part {part} of {parts}"):
        build_part(MusicPlan(music, tmp_path / "out", SPECTROGRAM, CONFIG), part, parts)
    assert not (tmp_path / "out").exists()


def test_a_part_for_another_dataset_than_the_one_there_is_refused(music, tmp_path):
    build_dataset(music, tmp_path / "out", SPECTROGRAM, CONFIG)
    plan = MusicPlan(music, tmp_path / "out", SPECTROGRAM, config_with(overlap=0.5))
    with pytest.raises(DatasetError, match=r"overlap is 0.25 there and 0.5 here"):
        build_part(plan, 1, 2)
    assert build_part(plan, 1, 2, overwrite=True) == 4


# ---- many files


def test_a_dataset_in_many_files_has_the_clips_of_the_one_in_one_file(both):
    one, many, reports = both
    assert sorted(path.name for path in many.iterdir()) == [".lock", "manifest.json", "shards"]
    fields = [dataclasses.asdict(report) for report in reports]
    assert all(fields[0][name] == fields[1][name] for name in fields[0] if name != "folder")
    theirs, ours = load_manifest(one), load_manifest(many)
    for name in theirs.keys() - {"sha256", "sources", "clips"}:
        assert theirs[name] == ours[name], name
    for split in SPLITS:
        assert list(clips_of(ours, split)) == clips_of(theirs, split)
        assert pieces_of(ours, split) == pieces_of(theirs, split)
    assert sorted(map(str, ours["clips"])) == sorted(map(str, theirs["clips"]))
    assert [{name: s[name] for name in theirs["sources"][0]} for s in ours["sources"]] == theirs["sources"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_batch_of_many_files_is_that_of_one_file(both, split):
    ones, manys = (SpectrogramDataset(folder, split, CONFIG) for folder in both[:2])
    items = [
        (i % len(ones), seed) for seed, i in enumerate(np.random.default_rng(0).permutation(40).tolist())
    ]
    for a, b in zip(ones.__getitems__(items), manys.__getitems__(items), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(ones[len(ones) - 1][0], manys[len(ones) - 1][0])
    assert list(ones.sources) == list(manys.sources) and torch.equal(ones.labels, manys.labels)
    assert ones.gain(0) == manys.gain(0) and ones.num_bytes == manys.num_bytes


def test_workers_and_a_resident_dataset_read_many_files_too(both):
    plain = SpectrogramDataset(both[1], "train", CONFIG)
    items = [(i, i) for i in range(len(plain))]
    travelled = pickle.loads(pickle.dumps(plain))
    resident = SpectrogramDataset(both[1], "train", CONFIG).to("cpu")
    for other in (travelled, resident):
        assert torch.equal(plain.__getitems__(items)[0], other.__getitems__(items)[0])
    assert len(pickle.dumps(plain)) < 5000
    loaders = [make_loaders(folder, 4, seed=0, num_workers=1, augment=CONFIG)[0] for folder in both[:2]]
    for _, ours, theirs in zip(range(3), *loaders, strict=False):
        assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("wanted", [CONFIG, IN_SHARDS], ids=["one file", "many files"])
def test_the_form_changes_with_overwriting_and_nothing_of_the_other_remains(music, tmp_path, wanted):
    first = dataclasses.replace(IN_SHARDS if wanted is CONFIG else CONFIG, overlap=0.5)
    build_dataset(music, tmp_path / "out", SPECTROGRAM, first)
    build_dataset(music, tmp_path / "out", SPECTROGRAM, wanted, overwrite=True)
    build_dataset(music, tmp_path / "fresh", SPECTROGRAM, wanted)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_finished_dataset_of_either_form_is_left_as_it_is(both, music):
    for folder, config in ((both[0], IN_SHARDS), (both[1], CONFIG)):
        normalisation = load_manifest(folder)["settings"]["spectrogram"]["normalisation"]
        report = build_dataset(music, folder, spectrogram_with(normalisation=normalisation), config)
        assert report.already_built


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("moves", range(0, 9, 2))
def test_a_kill_while_many_files_are_moved_is_mended(music, tmp_path, monkeypatch, moves, normalisation):
    spectrogram, out = spectrogram_with(normalisation=normalisation), tmp_path / "out"
    build_dataset(music, tmp_path / "fresh", spectrogram, IN_SHARDS)

    def counts(source, target):
        return ".tmp" not in source.name and (target.parent.name == "shards" or target.parent == out)

    with monkeypatch.context() as patch:
        die_at_move(patch, moves, counts)
        with contextlib.suppress(KeyboardInterrupt):
            build_dataset(music, out, spectrogram, IN_SHARDS)
    moved = {"per_sample": 8, "dataset": 2}[normalisation]  # six shards, their folder, the manifest
    assert (out / "manifest.json").exists() == (moves >= moved)
    build_dataset(music, out, spectrogram, IN_SHARDS)
    assert tree(out) == tree(tmp_path / "fresh")


def change(folder: Path, name: str, action) -> None:
    path = folder / "shards" / name
    action(path if path.exists() else next((folder / "shards").glob(name)))


def _spoil(path: Path, field: str, value: int) -> None:
    records = np.lib.format.open_memmap(path, "r+")
    records[field][:3] = value
    records.flush()


DAMAGED = {
    "short table": ("clips.npy", lambda path: os.truncate(path, 200), "shards cannot be read"),
    "no sources": ("sources.jsonl", lambda path: path.write_bytes(b""), "shards cannot be read"),
    "other sources": ("sources.jsonl", lambda path: os.truncate(path, 99), "shards cannot be read"),
    "no source": ("clips.npy", lambda path: _spoil(path, "source", 99), "source 99 has no shard"),
    "label": ("clips.npy", lambda path: _spoil(path, "label", 7), "a label has no class"),
    "short shard": ("*.rows", lambda path: os.truncate(path, 11), "is cut short: build"),
}


def copied(folder: Path, target: Path) -> Path:
    for path, content in tree(folder).items():
        (target / path).parent.mkdir(exist_ok=True)
        (target / path).write_bytes(content)
    return target


def read_all(folder: Path) -> None:
    for split in SPLITS:
        dataset = SpectrogramDataset(folder, split)
        dataset.__getitems__(list(range(len(dataset))))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tables_and_shards_say_so_in_a_sentence(both, tmp_path, name):
    file, action, sentence = DAMAGED[name]
    change(copied(both[1], tmp_path), file, action)
    with pytest.raises(DatasetError, match=sentence) as caught:
        read_all(tmp_path)
    assert "\n" not in str(caught.value) and "build" in str(caught.value)


@pytest.mark.parametrize("file", ["clips.npy", "sources.npy", "sources.jsonl", "*.rows"])
def test_a_file_of_many_that_has_disappeared_is_not_called_damaged(both, tmp_path, file):
    change(copied(both[1], tmp_path), file, Path.unlink)
    with pytest.raises(DiskError, match=r"shards/\w+\.\w+ could not be read, for it or its folder"):
        read_all(tmp_path)


def test_the_hash_names_the_content_of_many_files(both, music, tmp_path):
    normalisation = load_manifest(both[1])["settings"]["spectrogram"]["normalisation"]
    spectrogram = spectrogram_with(normalisation=normalisation)
    build_dataset(music, tmp_path / "again", spectrogram, IN_SHARDS)
    assert manifest_hash(tmp_path / "again") == manifest_hash(both[1])
    tables = json.loads((both[1] / "manifest.json").read_text())["tables"]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in tables.values()) and len(tables) == 3


# ---- Ray


def test_without_ray_the_sentence_says_what_to_do(music, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="executor='ray' needs Ray: pip install ray, or set executor="):
        build_dataset(music, tmp_path / "out", SPECTROGRAM, config_with(executor="ray"))
    with pytest.raises(ValueError, match="executor='slurm' is unknown; choose one of local, ray"):
        config_with(executor="slurm")


def workers_of(driver: int, function: str) -> list[int]:
    """Return the Ray workers below a process that are running a function, by the titles Ray gives them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            if title.startswith(f"ray::{function}") and driver in ancestors(int(folder.name)):
                found.append(int(folder.name))
    return found


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.slow
def test_ray_builds_the_same_bytes_although_a_worker_is_killed(tmp_path, monkeypatch):
    """On all cores of this machine, as on the machines of a cluster."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    for i in range(6):
        write_music(tmp_path / "audio" / f"{i}.wav", 400.0, seed=i)
    (tmp_path / "audio" / "broken.wav").write_bytes(b"RIFF")
    build_dataset(tmp_path / "audio", tmp_path / "local", SPECTROGRAM, CONFIG)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or its workers get nothing of a machine that is busy
    ray = config_with(executor="ray")
    process = start_build(tmp_path / "b.py", tmp_path / "audio", tmp_path / "ray", SPECTROGRAM, ray)
    building, deadline = tmp_path / "ray" / ".building", time.monotonic() + 120
    try:
        while not (workers := workers_of(process.pid, "make_or_skip")) or not any(building.glob("*.reading")):
            assert process.poll() is None and time.monotonic() < deadline, "no worker of Ray reads a file"
            time.sleep(0.01)
        os.kill(workers[0], signal.SIGKILL)
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
