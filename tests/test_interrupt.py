"""Signals while a training reads with worker processes: to all at once, and to one that is stuck."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from Libraries.Dataset import Batches
from Libraries.Training import Interrupt
from Libraries.Training.Checkpoint import find_checkpoints

SCRIPT = """
import sys, time
from dataclasses import replace
from pathlib import Path
sys.path[:0] = {paths!r}
import test_interrupt, test_training
from Libraries.Dataset.Batches import loaders_of
from Libraries.Training import Interrupt
from Libraries.Training.Loop import fit

class Announced(test_training.Regression):
    calls = 0
    def __call__(self, *arguments):
        Announced.calls += 1
        if Announced.calls == 3:
            print("reading", flush=True)
        time.sleep(0.05)
        return super().__call__(*arguments)

Interrupt.ONE_REQUEST = 0.2
def loaders(device, **options):
    clips = test_interrupt.Clips(stuck_after={stuck_after})
    return loaders_of(clips, clips, device=device, **options)
config = replace(test_training.CONFIG, num_steps=400, num_workers=2, save_every=400, validate_every=400)
fit(test_training.network(), Announced(), loaders, config, Path(sys.argv[1]))
"""


class Clips:
    """Data whose readers are stuck for ever after a number of batches."""

    num_bytes = 0

    def __init__(self, stuck_after):
        self.stuck_after = stuck_after

    def __len__(self):
        return 23

    def __getitems__(self, items):
        self.stuck_after -= 1
        if self.stuck_after < 0:
            time.sleep(1000)
        return torch.ones(len(items), 5), torch.ones(len(items), 1)


def start(run_dir, stuck_after):
    """A training in a process group of its own that has read its first batches."""
    run_dir.mkdir()
    tests = Path(__file__).parent
    paths = [str(tests), str(tests.parent), str(tests.parent / "MainScripts")]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(paths=paths, stuck_after=stuck_after), str(run_dir)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while process.stdout.readline().strip() != "reading":
        assert process.poll() is None, process.stderr.read()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_the_training(tmp_path, number):
    process = start(tmp_path / "run", stuck_after=1000)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert errors.rstrip().endswith("KeyboardInterrupt") and "DataLoader worker" not in errors
    assert 3 <= find_checkpoints(tmp_path / "run", "state")[-1][0] < 400


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_training_whose_workers_are_stuck(tmp_path, number):
    process = start(tmp_path / "run", stuck_after=4)
    time.sleep(3)
    for _ in range(2):
        os.killpg(process.pid, number)
        time.sleep(1)
    process.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):  # nothing of the group is left
        os.killpg(process.pid, 0)


def test_a_worker_lets_ctrl_c_pass_where_nobody_tells_who_sent_it(monkeypatch):
    monkeypatch.delattr(signal, "sigwaitinfo")
    before = signal.getsignal(signal.SIGINT)
    try:
        Batches._heed_the_parent_alone(0)
        os.kill(os.getpid(), signal.SIGINT)  # raises KeyboardInterrupt unless it is ignored
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_a_launcher_repeats_is_one_request(monkeypatch):
    with Interrupt.DeferredInterrupt() as interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert interrupt.requested
        monkeypatch.setattr(Interrupt, "ONE_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
