"""The command line: every setting is an option, and a shell learns by exit code and stderr what happened."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import generate
import numpy as np
import pytest
import soundfile
import tyro

import ma_ddpm
from Commands import Options
from Commands.Train import Train
from Conf import BASE, CPU, PRESETS, SMOKE, STEREO
from Libraries.Networks import JOURNAL, journal_network
from Libraries.Runs.Run import RELEASED
from Libraries.Runs.Settings import to_dict
from Libraries.Training.Checkpoint import find_checkpoints
from Libraries.Training.RunLog import read_metrics

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / "MainScripts"


def start(root, *arguments, script="ma_ddpm.py"):
    environment = {**os.environ, "CONF_PRESET": "SMOKE", "CONF_ROOT": str(root)}
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    )


def finish(*arguments, **options):
    """Run a script to its end; return the exit code, stdout and stderr."""
    process = start(*arguments, **options)
    return (*process.communicate(timeout=1200), process.returncode)


def as_options(values, prefix=""):
    """Return `to_dict`'s values as a person would type them."""
    for name, value in values.items():
        option = f"{prefix}{name.replace('_', '-')}"
        if isinstance(value, dict):
            yield from as_options(value, f"{option}.")
        elif isinstance(value, bool):
            yield (
                f"--{option}"
                if value
                else f"--{'.'.join([*option.split('.')[:-1], ''])}no-{option.split('.')[-1]}"
            )
        elif name != "type" and option != "demo-music.playing":  # a group that is off stays off
            yield f"--{option}"
            yield from map(str, value if isinstance(value, tuple | list) else [value])


@pytest.mark.parametrize(("there", "here"), [(STEREO, BASE), (BASE, STEREO), (SMOKE, CPU)])
def test_every_setting_is_an_option(there, here):
    typed = [f"--preset={here.preset}", *list(as_options(to_dict(there)))[2:]]
    found = Options.read_settings(Train, typed, None).settings
    assert replace(found, preset=there.preset) == there


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_says_what_it_is(preset, capsys):
    with pytest.raises(SystemExit) as ended:
        Options.read_settings(Train, ["--preset", preset, "--help"], None)
    options = re.split(r"^[│ ] +(?=--?\w)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    helps = [" ".join(re.findall(r"^[│ ] {5,}(\S.*?) *│?$", option, re.MULTILINE)) for option in options]
    bare = [o.split()[0] for o, text in zip(options, helps, strict=True) if text.startswith("(")]
    assert ended.value.code == 0 and len(options) > 150 and not bare


@pytest.mark.parametrize("name", JOURNAL)
def test_a_network_is_chosen_by_its_name_and_its_own_settings_are_options(name):
    typed = ["--preset", "BASE", "--network", name, "--network.embedding-dim", "128"]
    found = Options.read_settings(Train, typed, None).settings.network
    assert found == replace(journal_network(name, 0), embedding_dim=128)


def test_a_space_brings_its_network():
    found = Options.read_settings(Train, ["--preset", "SMOKE", "--space", "spectrogram"], None).settings
    assert found.space == "spectrogram" and found.network != SMOKE.network


def test_a_run_s_own_settings_are_where_the_options_begin(monkeypatch, tmp_path):
    from Commands.Generate import Generate

    monkeypatch.setattr(Options, "conf", replace(SMOKE, root=tmp_path))
    typed = ["-o", "a.wav", "--sampler", "ddim", "--steps=7", "--guidance", "1"]
    found = Options.read_of_run(Generate, typed, None)
    assert (found.sampler.name, found.sampler.eta, found.sampler.num_inference_steps) == ("ddim", 0.0, 7)
    assert (found.guidance.scale, found.guidance.method) == (1.0, CPU.guidance.method)
    assert found.edit == CPU.edit and found.output == Path("a.wav")


def examples():
    """Return the lines that the commands' files give as examples, as (command, options)."""
    for name in ma_ddpm.COMMANDS:
        text = importlib.import_module(f"Commands.{name.capitalize()}").__doc__
        for line in re.findall(r"^ +(?:.*ma_ddpm\.py|ma-ddpm) (.*)$", text, re.MULTILINE):
            yield tuple(shlex.split(line, comments=True))


@pytest.mark.parametrize("line", sorted(set(examples())), ids=" ".join)
def test_the_examples_are_options_that_there_are(line, monkeypatch):
    class Read(Exception):
        pass

    def read(*arguments, **options):
        cli(*arguments, **options)
        raise Read

    cli = tyro.cli
    monkeypatch.setattr(tyro, "cli", read)
    monkeypatch.setattr(Options, "folder_of", lambda run: RELEASED / "diffusion-cpu")
    command, *options = line
    if command == "app":
        return  # has options of its own
    with pytest.raises(Read):
        importlib.import_module(f"Commands.{command.capitalize()}").main(options)


def test_the_help_names_every_command_without_importing_torch():
    heavy = "sorted({'torch', 'numpy', 'tyro'} & {*sys.modules})"
    code = f"import sys, ma_ddpm; print(ma_ddpm.main([])); print({heavy})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    named = [line.split()[0] for line in lines[lines.index("commands:") + 1 : -2]]
    assert named == [*ma_ddpm.COMMANDS] and lines[-2:] == ["0", "[]"]
    assert max(map(len, lines)) <= 110
    files = {path.stem.lower() for path in (SCRIPTS / "Commands").glob("*.py")} - {"__init__", "options"}
    assert files == {*named}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compose"], "there is no command 'compose'; there are prepare, train, "),
        (["train", "--train.batchsize", "8"], "Unrecognized options: --train.batchsize"),
        (["train", "--train.batch-size", "many"], "invalid literal for int"),
        (["train", "--train.batch-size", "0"], "batch_size=0 must be 1 or more"),
        (["train", "--sampler.num-inference-steps", "2000"], "must be at most num_train_timesteps=1000"),
        (["train", "--preset", "LARGE"], "preset='LARGE' is unknown; choose one of STEREO, "),
        (["train", "--network", "transformer"], "network='transformer' is unknown; choose one of "),
        (["prepare", "--shard", "3/2"], "'3/2' is no part: of sixteen they are 1/16 to 16/16"),
        (["tune", ".", "--start", "None"], "name a run in --start, or use `train`"),
        (["edit", "loop", "a.wav", "-o", "b.wav", "--cut-frequency", "9"], "--cut-frequency is for restore"),
        (["experiments", "--only", "99-none"], "no experiment 99-none; there are "),
        (["doctor", "."], "name a run's own folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_with_exit_code_2(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ma-ddpm"])
    try:
        code = ma_ddpm.main(arguments)
    except SystemExit as ended:
        code = ended.code
    output = capsys.readouterr()
    assert code == 2 and not output.out and "Traceback" not in output.err
    words = re.sub(r"[│╭╮╰╯─\s]+", " ", output.err)
    assert sentence in words, words


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("-o tune.doc", "cannot write tune.doc: use the suffix"),
        ("-o a.wav --run newest", "train a model first"),
        ("-o a.wav --run nowhere", "name a run's own folder"),
        ("-o a.wav --label lute", "diffusion-cpu knows no label 'lute'"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_a_sentence(options, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Options, "conf", replace(SMOKE, root=tmp_path))
    monkeypatch.setattr("sys.argv", ["generate.py", *options.split()])
    assert generate.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("ma-ddpm generate: ") and said.count("\n") == 1 and sentence in said
    assert not list(tmp_path.iterdir())


def test_an_error_that_nobody_expected_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("Commands.Doctor.doctor", lambda run: {}["nothing"])
    with pytest.raises(KeyError):
        ma_ddpm.main(["doctor", "."])


def test_ctrl_c_and_a_closed_pipe_end_as_shells_expect(monkeypatch, tmp_path):
    def interrupted(run):
        raise KeyboardInterrupt

    monkeypatch.setattr("Commands.Doctor.doctor", interrupted)
    assert ma_ddpm.main(["doctor", str(tmp_path)]) == 130
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(SCRIPTS / 'ma_ddpm.py'))} train --help"
    result = subprocess.run(
        ["bash", "-c", f"{line} | head -n 1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    first, code = result.stdout.splitlines()
    assert first.startswith("usage: ma-ddpm train") and code in ("0", "141") and not result.stderr


@pytest.mark.slow
def test_demo_says_where_everything_is_and_it_is_there(tmp_path):
    output, errors, code = finish(tmp_path, "--steps", 10, script="demo.py")
    paths = [Path(path) for path in re.findall(rf"{re.escape(str(tmp_path))}/Results[^\s,]*", output)]
    assert code == 0 and "Done in" in output and len(paths) >= 4, errors[-3000:]
    assert all(path.exists() for path in paths)
    assert "the floor" in output
    for kind in ("vae", "diffusion"):  # 20 in the preset
        assert find_checkpoints(tmp_path / "Models" / kind / "00000-SMOKE", "ema")[-1][0] == 10


@pytest.mark.slow
def test_a_demo_without_time_trains_a_tenth_and_measures_fewer_clips(tmp_path):
    output, errors, code = finish(tmp_path, "--minutes", 0, script="demo.py")
    assert code == 0 and "8 clips: " in output, errors[-3000:]
    for kind in ("vae", "diffusion"):
        assert find_checkpoints(tmp_path / "Models" / kind / "00000-SMOKE", "ema")[-1][0] == 2


@pytest.mark.slow
def test_a_dataset_is_built_in_parts_from_a_terminal(tmp_path):
    build = tmp_path, "prepare", "--preset", "SMOKE"
    for part in ("1/2", "2/2"):
        output, errors, code = finish(*build, "--shard", part)
        assert code == 0 and f"part {part[0]} of 2:" in output, errors[-3000:]
    output, errors, _ = finish(*build)
    assert "already built" not in output and re.search(r"clips made +[1-9]", output), errors[-3000:]


@pytest.mark.slow
def test_a_run_has_the_settings_that_were_typed_stops_on_ctrl_c_goes_on_and_is_measured(tmp_path):
    typed = tmp_path, "train", "--preset", "SMOKE", "--train.learning-rate", "0.002"
    process = start(*typed)
    run = tmp_path / "Models" / "diffusion" / "00000-SMOKE"
    deadline = time.monotonic() + 300
    while not (run / "metrics.csv").exists() or len(read_metrics(run / "metrics.csv")) < 1:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    stopped_at = find_checkpoints(run, "state")[-1][0]
    if stopped_at < 20:  # a fast machine may have finished first
        assert process.returncode == 130 and "run again to resume" in output, errors[-3000:]
        output, errors, _ = finish(*typed, "--resume", "newest")
    assert f"trained: {run}" in output, errors[-3000:]
    assert find_checkpoints(run, "state")[-1][0] == 20
    assert json.loads((run / "conf.json").read_text())["settings"]["train"]["learning_rate"] == 0.002
    output, errors, code = finish(tmp_path, "evaluate", "--evaluation.num-samples", "6")
    assert code == 0 and "the floor" in output, errors[-3000:]
    output, errors, code = finish(tmp_path, "export", "--run", "00000-SMOKE")
    assert code == 0 and Path(output.strip()).stat().st_size > 100_000, errors[-3000:]
    output, errors, code = finish(tmp_path, "export", "--format", "model", "-o", "mine")
    assert code == 0 and output.strip() == "mine/Models/diffusion/00000-SMOKE", errors[-3000:]
    assert (tmp_path / "mine" / "README.md").is_file()


@pytest.mark.slow
def test_a_folder_of_music_tunes_the_released_model(tmp_path, chords):
    few = [f"--{part}train.{name}={n}" for part in ("", "vae.") for name, n in
           (("num-steps", 4), ("save-every", 2), ("validate-every", 4), ("preview-every", 4))]  # fmt: skip
    output, errors, code = finish(tmp_path, "tune", chords.music_dir, *few, "--train.snapshot-every", 2)
    run = tmp_path / "Models" / "diffusion" / "00000-CPU"
    assert code == 0 and f"trained: {run}" in output, errors[-3000:]
    conf = json.loads((run / "conf.json").read_text())["settings"]
    assert (conf["start"], conf["dataset"]["name"], conf["music_dir"]) == (
        "diffusion-cpu", "music", str(chords.music_dir)
    )  # fmt: skip


@pytest.mark.slow
def test_music_is_generated_from_a_terminal_with_the_released_model(tmp_path):
    quick = ["--steps", "2", "--guidance", "1", "--seconds", "3", "--picture"]
    _, errors, code = finish(tmp_path, "-o", "two/tune.flac", *quick, script="generate.py")
    waveform, rate = soundfile.read(tmp_path / "two" / "tune.flac")
    assert code == 0 and len(waveform) == 3 * rate and 0.01 < abs(waveform).max() <= 1, errors[-3000:]
    assert (tmp_path / "two" / "tune.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kept", "length"),
    [
        (["inpaint", "--start", "1", "--stop", "1.5", "--band", "500", "2000"], 1.0, 3.0),
        (["vary", "--start", "2", "--edit.gap-seconds", "0.5"], 2.0, 3.0),
        (["continue", "--edit.continue-seconds", "1.5"], 2.5, 4.5),
        (["loop"], 0.0, 5.008),
    ],
    ids=lambda change: change[0] if isinstance(change, list) else "",
)
def test_a_file_is_changed_where_it_is_asked_for_and_nowhere_else(change, kept, length, tmp_path):
    rate, rng = 16_000, np.random.default_rng(0)
    before = 0.1 * rng.standard_normal(3 * rate)
    soundfile.write(tmp_path / "a.flac", before, rate, "PCM_24")
    quick = ["--steps=2", "--guidance=1", "--edit.resamplings=0", "--edit.loop-seconds=5"]
    what, *rest = change
    _, errors, code = finish(tmp_path, "edit", what, "a.flac", "-o", "b.wav", *rest, *quick, "--picture")
    after, rate = soundfile.read(tmp_path / "b.wav")
    assert code == 0 and len(after) / rate == pytest.approx(length, abs=0.02), errors[-3000:]
    first = round(kept * rate)
    assert np.allclose(after[:first], before[:first], atol=1e-4)
    assert (tmp_path / "b.png").stat().st_size > 10_000


@pytest.mark.slow
def test_restoring_without_an_upsampler_says_what_to_do(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    output, errors, code = finish(tmp_path, "edit", "restore", "a.wav", "-o", "b.wav")
    assert code == 1 and "train one first (Train Upsampler.ipynb)" in errors and not output
