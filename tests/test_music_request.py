"""Music that is asked for: the lines that make it again, and how it is stopped."""

import shlex
from pathlib import Path

import generate
import pytest
import soundfile
import torch

from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.MusicRequest import REPOSITORY, MusicRequest
from Libraries.Runs.Run import RELEASED, runs_of
from Libraries.Sampling.Stopping import Stopped, Stops

MODEL = RELEASED / "diffusion-cpu"
QUICK = MusicRequest(MODEL, seed=3, seconds=1.5, label="choir", sampler="ddim", steps=2, guidance=1.0)


@pytest.fixture(scope="module")
def model():
    return DiffusionRun.load(MODEL)


@pytest.fixture(scope="module")
def music(model):
    return QUICK.make(model)


def test_the_shell_line_makes_the_same_music(music, tmp_path, monkeypatch):
    words = shlex.split(QUICK.shell_line(".wav"))
    assert words[:2] == ["python", "MainScripts/generate.py"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", words[1:])
    assert generate.main() == 0
    again, rate = soundfile.read(tmp_path / "choir-3.wav", dtype="float32")
    assert len(again) == 1.5 * rate == music.shape[1]
    assert torch.allclose(torch.from_numpy(again), music[0], atol=1e-4)


def test_the_lines_of_python_make_the_same_music(music, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(QUICK.python_lines(".wav"), {})
    again, _ = soundfile.read(tmp_path / "choir-3.wav", dtype="float32")
    assert torch.allclose(torch.from_numpy(again), music[0], atol=1e-4)


def test_what_is_not_asked_for_is_as_the_run_has_it(model):
    settings, plain = model.run.settings, MusicRequest(MODEL, seed=0)
    assert plain.sampler_of(settings) == settings.sampler and plain.guidance_of(settings) == settings.guidance
    assert plain.shell_line() == "python MainScripts/generate.py -o music-0.flac --run diffusion-cpu --seed 0"
    few = MusicRequest(MODEL, seed=0, steps=2).sampler_of(settings)
    assert (few.spacing, few.num_inference_steps) == (settings.sampler.spacing, 2)


def test_the_line_names_a_run_by_its_place_and_quotes_what_a_shell_would_read():
    own = MusicRequest(REPOSITORY / "Models" / "diffusion" / "00000-CPU", seed=1)
    assert "--run Models/diffusion/00000-CPU " in own.shell_line()
    elsewhere = MusicRequest(Path("/my runs/00000-CPU"), seed=1, label="it's; ok")
    words = shlex.split(elsewhere.shell_line())
    assert words[words.index("--run") + 1] == "/my runs/00000-CPU" and words[-1] == "it's; ok"


def test_an_unknown_label_is_refused_before_anything_is_made(model):
    with pytest.raises(ValueError, match="knows no label 'lute'"):
        MusicRequest(MODEL, seed=0, label="lute").make(model)


def test_music_is_stopped_by_who_asked_for_it_and_by_nobody_else(model, music):
    stops = Stops()
    with stops.stoppable("mine") as mine, stops.stoppable("theirs") as theirs:
        stops.stop("mine")
        with pytest.raises(Stopped):
            QUICK.make(model, mine)
        assert torch.equal(QUICK.make(model, theirs), music)
    with stops.stoppable("mine") as mine:  # a stop is over with what it stopped
        assert torch.equal(QUICK.make(model, mine), music)


def test_a_stop_ends_long_music_between_two_of_its_steps(model):
    stops, seen = Stops(), []
    with stops.stoppable("mine") as stop_if_asked:

        def callback(number, t, x_t, x0):
            seen.append(x0.shape[-1])
            if len(seen) == 4:
                stops.stop("mine")
            stop_if_asked(number, t, x_t, x0)

        with pytest.raises(Stopped):
            MusicRequest(MODEL, seed=0, seconds=20.0, steps=2, guidance=1.0).make(model, callback)
    assert len(seen) == 4 and seen[-1] > seen[0]  # two steps of the clip, and two of its continuation


def test_all_runs_with_weights_are_listed_the_released_one_first_then_the_newest(tmp_path):
    for name in ("00000-CPU", "00002-CPU", "00001-BASE"):
        (tmp_path / "diffusion" / name).mkdir(parents=True)
        (tmp_path / "diffusion" / name / "ema-00000001.pth").touch()
    (tmp_path / "diffusion" / "00003-CPU").mkdir()
    found = runs_of(tmp_path, "diffusion")
    assert list(found) == ["diffusion-cpu", "00002-CPU", "00001-BASE", "00000-CPU"]
    assert found["diffusion-cpu"] == MODEL and found["00001-BASE"] == tmp_path / "diffusion" / "00001-BASE"
    assert "upsampler" not in str(runs_of(tmp_path, "upsampler"))
