"""The scripts that people start from a terminal."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from Libraries.Training.Checkpoint import find_checkpoints
from Libraries.Training.RunLog import read_metrics

SCRIPTS = Path(__file__).parent.parent / "MainScripts"


def start(script, root, *arguments):
    environment = {**os.environ, "CONF_PRESET": "SMOKE", "CONF_ROOT": str(root)}
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=root
    )


@pytest.mark.slow
def test_demo_says_where_everything_is_and_it_is_there(tmp_path):
    output = start("demo.py", tmp_path).communicate(timeout=600)[0]
    paths = [Path(path) for path in re.findall(rf"{re.escape(str(tmp_path))}/Results[^\s,]*", output)]
    assert "Done in" in output and len(paths) >= 4, output[-3000:]
    assert all(path.exists() for path in paths)
    assert "the floor" in output


@pytest.mark.slow
def test_a_dataset_is_built_in_parts_from_a_terminal(tmp_path):
    build = ["build.py", tmp_path, "--preset", "SMOKE"]
    for part in ("1/2", "2/2"):
        output = start(*build, "--shard", part).communicate(timeout=300)[0]
        assert f"part {part[0]} of 2:" in output, output[-3000:]
    assert "already built" not in (output := start(*build).communicate(timeout=300)[0])
    assert re.search(r"clips made +[1-9]", output), output[-3000:]
    refused = start(*build, "--shard", "3/2").communicate(timeout=300)[0]
    assert "'3/2' is no part: of sixteen they are 1/16 to 16/16" in refused


@pytest.mark.slow
def test_training_from_a_terminal_stops_on_ctrl_c_and_goes_on(tmp_path):
    process = start("train.py", tmp_path, "--preset", "SMOKE")
    run = tmp_path / "Models" / "diffusion" / "00000-SMOKE"
    deadline = time.monotonic() + 300
    while not (run / "metrics.csv").exists() or len(read_metrics(run / "metrics.csv")) < 1:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=300)[0]
    stopped_at = find_checkpoints(run, "state")[-1][0]
    if stopped_at < 20:  # a fast machine may have finished first
        assert "run again to resume" in output
        output = start("train.py", tmp_path, "--preset", "SMOKE", "--resume", str(run)).communicate(
            timeout=300
        )[0]
    assert f"trained: {run}" in output, output[-3000:]
    assert find_checkpoints(run, "state")[-1][0] == 20
