"""What a disk refuses: a sentence, the last good state whole, and afterwards on to the same bits."""

import contextlib
import errno
import functools
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from test_bad_input import CONFIG as DATASET
from test_bad_input import SPECTROGRAM, write_music
from test_training import CONFIG, Regression, assert_same, network, train, weights

from benchmarks.faulty_disk import FaultyDisk
from Libraries.Dataset import Shards
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset, build_dataset, load_manifest
from Libraries.Disk import DiskError, disk_errors, exit_with_the_sentence, remove_leftovers, write_array
from Libraries.Plots.SpectrogramPlots import save_figure
from Libraries.Runs.Run import Run, claim_run, find_run
from Libraries.Sound.Audio import save_audio
from Libraries.Training import DiskSpace
from Libraries.Training.Checkpoint import (
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_json,
)
from Libraries.Training.Graphs import export_graph
from Libraries.Training.RunLog import MetricsFile, read_metrics

SHORT = replace(CONFIG, num_steps=4, save_every=2, snapshot_every=2, log_every=2, validate_every=2)
WAVE = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 16_000)).astype(np.float32)


def contents(folder):
    """Name -> what is in it, without locks, logs and speeds."""
    read = {".pth": load_checkpoint, ".csv": metric_steps}
    return {
        path.relative_to(folder).as_posix(): read.get(path.suffix, Path.read_bytes)(path)
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in (".lock", "log.txt")
    }


def metric_steps(path):
    return [(row["step"], *sorted(row)) for row in read_metrics(path)]


def sentence_of(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text


# ---- a full disk


def test_a_training_on_a_full_disk_says_so_and_goes_on_to_the_same_bits(tmp_path):
    def train_on(disk, name):
        (tmp_path / name).mkdir()
        with disk():
            train(tmp_path / name, SHORT)

    train_on(counted := FaultyDisk(tmp_path), "whole")
    whole = contents(tmp_path / "whole")
    assert counted.count > 25
    for after in range(counted.count):
        with pytest.raises(DiskError) as caught:
            train_on(FaultyDisk(tmp_path, after), "full")
        sentence_of(caught, "full/", "could not be written, for the disk is full", "make room")
        for _, path in find_checkpoints(tmp_path / "full", "state"):
            load_checkpoint(path)
        assert not list((tmp_path / "full").glob(".*.tmp*"))
        train(tmp_path / "full", SHORT)
        assert_same(contents(tmp_path / "full"), whole)
        shutil.rmtree(tmp_path / "full")


@pytest.mark.parametrize("one_file_clips", [None, 0], ids=["one file", "many files"])
def test_a_build_on_a_full_disk_says_so_and_goes_on_to_the_same_bits(tmp_path, one_file_clips):
    config = replace(DATASET, one_file_clips=one_file_clips)
    for name in "abc":
        write_music(tmp_path / "music" / f"{name}.wav", 2.0, seed=ord(name))

    def build(name, disk=contextlib.nullcontext):
        with disk():
            build_dataset(tmp_path / "music", tmp_path / name, SPECTROGRAM, config)

    build("whole", counted := FaultyDisk(tmp_path))
    whole = contents(tmp_path / "whole")
    assert counted.count > 20
    for after in range(counted.count):
        with pytest.raises(DiskError) as caught:
            build("full", FaultyDisk(tmp_path, after))
        sentence_of(caught, "could not be written, for the disk is full", "make room")
        assert not list((tmp_path / "full").rglob(".*.tmp*"))
        build("full")
        assert contents(tmp_path / "full") == whole, after
        shutil.rmtree(tmp_path / "full")


WRITERS = {
    "a.pth": lambda path: save_checkpoint(path, {"weights": torch.ones(10_000)}),
    "a.json": lambda path: save_json(path, {"a": list(range(3000))}),
    "a.npy": lambda path: write_array(path, WAVE),
    "a.pt": lambda path: export_graph(torch.nn.Linear(50, 50), (torch.zeros(1, 50),), path),
    "a.pt2": lambda path: export_graph(torch.nn.Linear(50, 50), (torch.zeros(1, 50),), path),
    "a.png": lambda path: save_figure(Figure(figsize=(2, 2)), path),
    **{
        f"a.{suffix}": lambda path: save_audio(path, WAVE, 16_000) for suffix in ("wav", "flac", "ogg", "mp3")
    },
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_whatever_is_written_is_whole_or_refused_in_a_sentence(tmp_path, name, error, capfd):
    write, path = WRITERS[name], tmp_path / name
    with FaultyDisk(tmp_path)() as counted:
        write(path)
    before = path.read_bytes()
    for after in range(counted.count):
        with pytest.raises(DiskError) as caught, FaultyDisk(tmp_path, after, error)():
            write(path)
        sentence_of(caught, f"{path} could not be written, for", "what was saved before is whole")
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert "Error" not in capfd.readouterr().err  # of a callback in C


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 100 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


BIG_WRITERS = WRITERS | {
    "a.pth": lambda path: save_checkpoint(path, {"weights": torch.ones(100_000)}),
    "a.pt": lambda path: export_graph(torch.nn.Linear(300, 300), (torch.zeros(1, 300),), path),
    **{
        f"a.{suffix}": lambda path: save_audio(path, np.tile(WAVE, 40), 16_000)
        for suffix in ("wav", "flac", "ogg", "mp3")
    },
}


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_a_disk_that_is_really_full_is_named_with_what_is_needed_and_what_is_free(small_disk, name):
    with pytest.raises(DiskError) as caught:
        BIG_WRITERS[name](small_disk / name)
    sentence_of(caught, "the disk is full (it needs at least", f"and 102 kB are free in {small_disk})")
    assert list(small_disk.iterdir()) == []


def test_a_run_without_settings_is_not_left_behind(tmp_path):
    with FaultyDisk(tmp_path)() as counted:
        claim_run(tmp_path / "runs", "a", {})
    shutil.rmtree(tmp_path / "runs")
    for after in range(counted.count):
        with pytest.raises(DiskError), FaultyDisk(tmp_path, after)():
            claim_run(tmp_path / "runs", "a", {})
        assert not list((tmp_path / "runs").glob("*"))
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert claim_run(tmp_path / "runs", "a", {}).name == "00000-a"


def test_a_training_says_how_much_it_will_write_and_warns_if_that_does_not_fit(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("MA_DDPM"), "propagate", True)
    caplog.set_level("INFO")
    wide = torch.nn.Sequential(torch.nn.Linear(5, 30_000), torch.nn.Linear(30_000, 1))
    said = []
    for free in (10**9, 4_000_000):
        monkeypatch.setattr(DiskSpace, "free_bytes", lambda _, free=free: free)
        train(tmp_path / str(free), SHORT, model=wide)
        messages = {record.message: None for record in caplog.records}  # pytest may collect one twice
        said.append([message for message in messages if "this training writes" in message])
        caplog.clear()
    assert [len(messages) for messages in said] == [1, 2] and "has 4 MB free" in said[1][1]
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "4000000").glob("*.pth")}
    # the state counts twice: the next is written before the last is deleted
    whole = (sum(sizes.values()) + sizes["state-00000004.pth"]) / 1e6
    assert float(said[0][0].split()[3]) == pytest.approx(whole, rel=0.02)


# ---- other answers


def test_a_run_folder_that_disappears_is_named_and_not_made_again(tmp_path):
    class Removing(Regression):
        def __call__(self, *arguments):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            return super().__call__(*arguments)

    with pytest.raises(DiskError) as caught:
        train(tmp_path / "run", SHORT, loss_fn=Removing(), model=network())
    sentence_of(caught, "metrics.csv", "it or its folder has disappeared", "bring it back")
    assert not (tmp_path / "run").exists()


def test_music_that_disappears_during_a_build_is_not_skipped(tmp_path, monkeypatch):
    for name in "abc":
        write_music(tmp_path / "music" / f"{name}.wav", 2.0, seed=ord(name))
    build = functools.partial(build_dataset, tmp_path / "music", spectrogram=SPECTROGRAM, config=DATASET)
    build(out_dir=tmp_path / "whole")
    make = Shards.make_shard

    def make_after_the_disk_is_gone(task):
        if task.file == "b.wav":
            (tmp_path / "music").rename(tmp_path / "elsewhere")
        make(task)

    with monkeypatch.context() as patch, pytest.raises(DiskError) as caught:
        patch.setattr(Shards, "make_shard", make_after_the_disk_is_gone)
        build(out_dir=tmp_path / "out")
    sentence_of(caught, "music could not be read, for it or its folder has disappeared")
    (tmp_path / "elsewhere").rename(tmp_path / "music")
    assert build(out_dir=tmp_path / "out").files_read == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_the_disk_does_not_give_is_not_called_damaged(tmp_path):
    """Or its user would delete it, or build it again."""
    write_music(tmp_path / "music" / "a.wav", 2.0)
    folder = tmp_path / "out"
    build_dataset(tmp_path / "music", folder, SPECTROGRAM, DATASET)
    run_dir = claim_run(tmp_path / "runs", "a", {"settings": {}})
    save_checkpoint(run_dir / "ema-00000001.pth", {"weights": {}})
    MetricsFile(run_dir / "metrics.csv", 0, ())
    clips = SpectrogramDataset(folder, "train")
    readers = {
        "spectrograms.npy": lambda: clips[0],
        "manifest.json": lambda: load_manifest(folder),
        "conf.json": lambda: Run(run_dir).conf,
        "ema-00000001.pth": lambda: Run(run_dir).weights(),
        "metrics.csv": lambda: read_metrics(run_dir / "metrics.csv"),
    }
    for name, read in readers.items():
        with pytest.raises(DiskError) as caught, FaultyDisk(tmp_path, 0, errno.EIO, reading=True)():
            read()
        sentence_of(caught, f"{name} could not be read, for its disk fails (Input/output error)")
        read()


def test_rows_that_are_cut_short_while_a_training_reads_them_are_a_sentence(tmp_path):
    write_music(tmp_path / "music" / "a.wav", 3.0)
    build_dataset(tmp_path / "music", tmp_path / "out", SPECTROGRAM, DATASET)
    clips = SpectrogramDataset(tmp_path / "out", "train")
    clips[0]
    os.truncate(tmp_path / "out" / "spectrograms.npy", 200)
    with pytest.raises(ValueError, match=r"spectrograms\.npy is cut short: build the dataset again"):
        clips[len(clips) - 1]


@pytest.mark.parametrize(
    "error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EIO, errno.ESTALE]
)
def test_every_refusal_has_its_reason_and_advice_and_other_errors_pass(tmp_path, error):
    with pytest.raises(DiskError) as caught, disk_errors(tmp_path / "a"):
        raise OSError(error, os.strerror(error))
    sentence_of(caught, f"{tmp_path / 'a'} could not be written, for", ", then run this again")
    for other in (
        ConnectionResetError(errno.ECONNRESET, "reset"),
        FileNotFoundError("no run"),
        DiskError("said"),
    ):
        with pytest.raises(type(other), match=str(other.args[-1])), disk_errors(tmp_path / "a"):
            raise other
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # from a worker process


def test_a_script_ends_with_the_sentence_alone(tmp_path):
    with pytest.raises(SystemExit) as caught, exit_with_the_sentence(), disk_errors(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "no space")
    assert caught.value.code.startswith(f"{tmp_path / 'a'} could not be written")


# ---- kills


def test_what_a_killed_process_left_is_deleted_and_what_a_running_one_writes_is_not(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as other:
        names = (
            ".state-00000002.tmp4194305.pth",
            f".a.tmp{os.getpid()}.json",
            f".b.tmp{other.pid}.pth",
            "c.tmp1.pth",
        )
        (tmp_path / "audio").mkdir()
        for name in (*names, "audio/.b.tmp4194305.wav"):
            (tmp_path / name).touch()
        remove_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.rglob("*.*")) == sorted(names[2:])
        other.kill()
    train(tmp_path, SHORT)
    assert not list(tmp_path.glob(".*.tmp*"))


def test_a_training_killed_while_it_validates_goes_on_with_nothing_missing(tmp_path):
    class Stopped(Regression):
        def validate(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", SHORT, loss_fn=Stopped())
    whole, again = (train(tmp_path / name, SHORT) for name in ("whole", "cut"))
    assert torch.equal(weights(whole), weights(again))
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "cut"))


def test_a_training_that_is_asked_to_stop_saves_before_it_validates(tmp_path):
    class Stopped(Regression):
        calls = 0

        def __call__(self, *arguments):
            self.calls += 1
            if self.calls == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(*arguments)

        def validate(self, *_):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "run", SHORT, loss_fn=Stopped())
    assert [step for step, _ in find_checkpoints(tmp_path / "run", "state")] == [2]


def test_half_a_line_of_a_killed_training_is_no_row(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsFile(path, 0, ()).write(10, loss=0.125)
    whole = path.read_bytes()
    path.write_bytes(whole + b"2")  # of step 20
    assert [row["step"] for row in read_metrics(path)] == [10]
    MetricsFile(path, 10, ())
    assert path.read_bytes() == whole


# ---- the clock


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, monkeypatch):
    train(tmp_path / "whole", SHORT)
    now = iter(range(10**9, 0, -1000))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(now))
        patch.setattr("tqdm.std.time", lambda: next(now))
        train(tmp_path / "back", SHORT)
    assert_same(contents(tmp_path / "back"), contents(tmp_path / "whole"))
    for row in read_metrics(tmp_path / "back" / "metrics.csv"):
        assert row.get("samples_per_second", 1) > 0


def test_the_newest_is_the_one_of_the_highest_number_whatever_the_clock_said(tmp_path):
    for year in (2030, 1980):
        run_dir = claim_run(tmp_path, "a", {"settings": {}})
        for step in (1, 2):
            save_checkpoint(run_dir / f"ema-{step:08d}.pth", {"step": step})
            os.utime(run_dir / f"ema-{step:08d}.pth", ((year - 1970 - step) * 3.15e7,) * 2)
        os.utime(run_dir, ((year - 1970) * 3.15e7,) * 2)
    assert find_run([tmp_path]).name == "00001-a"
    assert find_run([tmp_path]).weights_path().name == "ema-00000002.pth"


# ---- the benchmark


def test_one_changed_bit_of_the_newest_run_is_noticed_and_a_speed_is_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from fault_tasks import TASKS, digest

    def left(weight, speed=1.0):
        run_dir = claim_run(tmp_path / "Models" / "diffusion", "a", {"settings": {}})
        save_checkpoint(run_dir / "ema-00000001.pth", {"weights": {"w": torch.tensor([weight])}})
        MetricsFile(run_dir / "metrics.csv", 0, ()).write(1, loss=0.5, samples_per_second=speed)
        return digest(TASKS["diffusion"], tmp_path)

    assert left(1.0) == left(1.0, speed=2.0) != left(1.0 + 2**-23)


@pytest.mark.slow
def test_the_benchmark_kills_and_finds_the_same_bits(tmp_path):
    script = Path(__file__).parent.parent / "benchmarks" / "faults.py"
    command = [sys.executable, str(script), "--kills", "3", "--only", "build", "diffusion"]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    kills, _, resumed, ends, equal, left = (
        int(cell) for cell in result.stdout.splitlines()[-1].split("|")[3:9]
    )
    assert (kills, resumed, left) == (3, 3, 0) and ends == equal > 0
