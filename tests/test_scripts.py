"""The scripts that people start from a terminal."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import generate
import pytest
import soundfile

from Conf import SMOKE
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


@pytest.mark.slow
def test_music_is_generated_from_a_terminal_with_the_released_model(tmp_path):
    quick = ["--steps", "2", "--guidance", "1"]
    output = start("generate.py", tmp_path, "-o", "two/tune.flac", "--seconds", "3", "--picture", *quick)
    output = output.communicate(timeout=300)[0]
    waveform, rate = soundfile.read(tmp_path / "two" / "tune.flac")
    assert len(waveform) == 3 * rate and 0.01 < abs(waveform).max() <= 1, output[-3000:]
    assert (tmp_path / "two" / "tune.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("-o tune.doc", "cannot write tune.doc: use the suffix"),
        ("-o a.wav --run newest", "train a model first"),
        ("-o a.wav --run nowhere", "name a run's own folder"),
        ("-o a.wav --label lute", "diffusion-cpu knows no label 'lute'"),
        ("-o a.wav --steps 0", "num_inference_steps must be 1 or more"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_a_sentence(options, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("generate.conf", replace(SMOKE, root=tmp_path))
    monkeypatch.setattr("sys.argv", ["generate.py", *options.split()])
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        generate.main()
    assert not list(tmp_path.iterdir())
