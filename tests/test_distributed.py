"""Two processes compute what one computes with the larger batch (CPU, gloo)."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import CONFIG, Regression, loaders, state_of

from Libraries.Training.Checkpoint import find_checkpoints

TESTS = Path(__file__).parent

SCRIPT = """
import atexit, os, sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}, {scripts!r}]
import torch
from test_distributed import plain_network, train_plainly
last_words = Path(sys.argv[1] + os.environ["RANK"])
atexit.register(lambda: last_words.write_text(str(torch.distributed.is_initialized())))
train_plainly(Path(sys.argv[1]), batch_size=2)
assert torch.distributed.get_world_size() == 2
"""


def plain_network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1))


def train_plainly(run_dir, batch_size):
    from Libraries.Training.Loop import fit

    run_dir.mkdir(exist_ok=True)
    return fit(plain_network(), Regression(), loaders, replace(CONFIG, batch_size=batch_size), run_dir)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_larger_batch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(tests=str(TESTS), root=str(TESTS.parent), scripts=str(TESTS.parent / "MainScripts"))
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    result = subprocess.run(
        [*command, str(tmp_path / "two")], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    # threads of a group that is left to the interpreter's end abort it now and then
    assert [(tmp_path / f"two{rank}").read_text() for rank in (0, 1)] == ["False", "False"]
    train_plainly(tmp_path / "one", batch_size=4)
    two, one = state_of(tmp_path / "two"), state_of(tmp_path / "one")
    assert two["step"] == one["step"] == CONFIG.num_steps
    for name, weights in one["model"].items():
        assert torch.allclose(two["model"][name], weights, atol=1e-6), name


@pytest.mark.slow
def test_two_processes_build_one_dataset_and_make_one_run(tmp_path):
    script = TESTS.parent / "MainScripts" / "ma_ddpm.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(script), "train", "--preset", "SMOKE"], capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CONF_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    runs = list((tmp_path / "Models" / "diffusion").iterdir())
    assert [run.name for run in runs] == ["00000-SMOKE"] and result.stdout.count("trained:") == 1
    assert [step for step, _ in find_checkpoints(runs[0], "state")] == [20]
