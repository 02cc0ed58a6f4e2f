"""Processes that come and go: a step stays the same, and a run ends as it would have."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import CONFIG, Regression, loaders, network, state_of, weights

from Libraries.Training.Checkpoint import find_checkpoints
from Libraries.Training.Loop import fit

TESTS = Path(__file__).parent
PATHS = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "MainScripts")]
TWO = replace(
    CONFIG, num_steps=300, batch_size=2, processes=2, log_every=1, save_every=5, validate_every=300
)  # of two processes; 24 epochs

SCRIPT = f"""
import sys
from pathlib import Path
sys.path[:0] = {PATHS!r}
from test_elastic import Watched, train_two
from Libraries.Training.Loop import process_state
with open(Path(sys.argv[1]) / "sizes.txt", "a") as file:
    train_two(Path(sys.argv[1]) / "run", Watched(process_state(), file))
"""


class Watched(Regression):
    """The loss of a slow network, and in a file for every step of the main process how many there were."""

    def __init__(self, state, file):
        self.state, self.file = state, file

    def __call__(self, model, batch, positions):
        if self.state.is_main_process:
            print(int(positions[0]) // 4, self.state.num_processes, file=self.file, flush=True)
        time.sleep(0.1)
        return super().__call__(model, batch, positions)


def train_two(run_dir, loss):
    run_dir.mkdir(exist_ok=True, parents=True)
    return fit(network(), loss, loaders, TWO, run_dir)


def test_one_process_that_accumulates_more_computes_the_same_step():
    assert TWO.on(1) == replace(TWO, grad_accumulation=2, processes=1)
    assert TWO.on(2) == TWO and CONFIG.on(7) == CONFIG
    assert replace(TWO, grad_accumulation=2).on(4) == replace(TWO, processes=4)
    with pytest.raises(ValueError, match="3 processes cannot share the 2 batches of a step"):
        TWO.on(3)
    with pytest.raises(ValueError, match="processes=0 must be 1 or more"):
        replace(TWO, processes=0)


def test_a_plan_for_two_is_in_one_process_an_accumulation_of_two(tmp_path):
    accumulated = replace(TWO, processes=None, grad_accumulation=2, num_steps=6)
    both = [replace(TWO, num_steps=6), accumulated]
    found = []
    for i, config in enumerate(both):
        (tmp_path / str(i)).mkdir()
        found.append(weights(fit(network(), Regression(), loaders, config, tmp_path / str(i))))
    assert torch.equal(*found)


def start_machine(script: Path, port: int, root: Path, log: Path) -> subprocess.Popen:
    """Start torchrun as on one of at most two machines.

    Without its own store for each round, torch 2.13 never tells a machine that comes back where to go.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
        "--max-restarts", "20", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}",
        "--rdzv-id", "elastic", "--rdzv-conf", "last_call_timeout=3,join_timeout=120",
        "--monitor-interval", "0.2", str(script), str(root),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with open(log, "a") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def sizes(root: Path) -> list[tuple[int, int]]:
    """Return (step, processes) as the main processes noted them."""
    text = (root / "sizes.txt").read_text() if (root / "sizes.txt").exists() else ""
    return [tuple(map(int, line.split())) for line in text.splitlines() if line.count(" ") == 1]


def wait_for(happens, machines: list[subprocess.Popen], seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline and all(machine.poll() is None for machine in machines)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_machine_is_killed_and_comes_back_and_the_run_ends_as_it_would_have(tmp_path):
    """Two `torchrun` on loopback: two processes, then one alone, then two again."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script, log = tmp_path / "script.py", tmp_path / "log.txt"
    script.write_text(SCRIPT)
    first = start_machine(script, port, tmp_path, log)
    time.sleep(1)  # the first holds the rendezvous
    second = start_machine(script, port, tmp_path, log)
    try:
        wait_for(lambda: len(sizes(tmp_path)) > 12, [first, second])
        children = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
        for pid in (second.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        assert second.wait() < 0 and children
        wait_for(lambda: [size for _, size in sizes(tmp_path)].count(1) > 24, [first])
        second = start_machine(script, port, tmp_path, log)
        assert first.wait(timeout=400) == 0, log.read_text()[-3000:]
        second.wait(timeout=60)
    finally:
        for machine in (first, second):
            machine.kill()
    noted = [size for _, size in sizes(tmp_path)]
    changes = [size for before, size in zip([0, *noted], noted, strict=False) if size != before]
    assert changes == [2, 1, 2]
    fit_alone = train_two(tmp_path / "alone", Regression())
    assert [step for step, _ in find_checkpoints(tmp_path / "run", "state")] == [TWO.num_steps]
    there = state_of(tmp_path / "run")
    for name, value in state_of(tmp_path / "alone")["model"].items():
        torch.testing.assert_close(there["model"][name], value, atol=1e-6, rtol=1e-5)
    assert weights(fit_alone).isfinite().all()
