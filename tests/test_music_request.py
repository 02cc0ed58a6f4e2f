"""Music that is asked for: the lines that make it again, and how it is stopped."""

import shlex
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch

from Commands import Options
from Commands.Generate import Generate
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.MusicRequest import REPOSITORY, MusicRequest
from Libraries.Runs.Run import RELEASED, runs_of
from Libraries.Runs.Settings import changed, differences
from Libraries.Sampling.Stopping import Stopped, Stops
from Libraries.Sound.Audio import save_audio

MODEL = RELEASED / "diffusion-cpu"
MODULE = sys.modules[MusicRequest.__module__]  # whose name in `Libraries.Runs` is the class
QUICK = MusicRequest.of(MODEL, seed=3, seconds=1.5, label="choir", sampler="ddim", steps=2, guidance=1.0)


@pytest.fixture(scope="module")
def model():
    return DiffusionRun.load(MODEL)


@pytest.fixture(scope="module")
def music(model):
    return QUICK.make(model)


@pytest.fixture
def repository(tmp_path):
    """A folder in which all is where it is in the repository, and new files are the test's own."""
    for entry in REPOSITORY.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


@pytest.mark.slow
def test_a_shell_runs_the_line_and_gets_the_same_sound_bit_for_bit(music, repository):
    line = QUICK.shell_line(".wav")
    subprocess.run(line, shell=True, check=True, cwd=repository, capture_output=True)
    save_audio(repository / "own.wav", music, 16_000)
    assert (repository / "choir-3.wav").read_bytes() == (repository / "own.wav").read_bytes()
    assert soundfile.info(repository / "own.wav").frames == 1.5 * 16_000 == music.shape[1]


def test_the_lines_of_python_make_the_same_sound_bit_for_bit(music, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(QUICK.python_lines(".wav"), {})
    save_audio(tmp_path / "own.wav", music, 16_000)
    assert (tmp_path / "choir-3.wav").read_bytes() == (tmp_path / "own.wav").read_bytes()


@pytest.mark.parametrize(
    "request_",
    [
        QUICK,
        MusicRequest.of(MODEL),
        MusicRequest.of(MODEL, 4, sampler="ddpm", changes={"sampler.clip_x0": None}),
        MusicRequest.of(
            MODEL, 5, label="it's; ok", changes={"guidance.method": "none", "edit.resamplings": 0}
        ),
        MusicRequest.of(MODEL, 6, sampler="ddim", steps=7, changes={"sampler.eta": 0.5}),
    ],
    ids=lambda request_: request_.seed,
)
def test_the_lines_ask_for_what_was_asked_for(request_):
    words = shlex.split(request_.shell_line())
    read = Options.read_of_run(Generate, words[words.index("-o") :], None)
    assert {**vars(request_)}.items() <= vars(read).items()
    found = {}
    exec(request_.python_lines().partition("\nmodel = ")[0], found)
    assert found["request"] == request_


def test_differences_are_the_changes_between_two_configs():
    begun, asked = MusicRequest.of(MODEL), MusicRequest.of(MODEL, 3, sampler="ddim", steps=2)
    found = differences(begun, asked)
    assert changed(begun, found) == asked and found["sampler.name"] == "ddim" and "guidance" not in found
    assert differences(begun, begun) == {}


def test_what_is_not_asked_for_is_as_the_run_has_it(model):
    settings, plain = model.run.settings, MusicRequest.of(MODEL)
    assert (plain.sampler, plain.guidance, plain.edit) == (settings.sampler, settings.guidance, settings.edit)
    assert plain.shell_line().endswith(" -o music-0.flac --run diffusion-cpu --seed 0")
    few = MusicRequest.of(MODEL, steps=2).sampler
    assert (few.spacing, few.num_inference_steps) == (settings.sampler.spacing, 2)


def test_the_line_names_a_run_by_its_place_and_quotes_what_a_shell_would_read(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "REPOSITORY", tmp_path / "home")
    own, elsewhere = (
        tmp_path / "home" / "Models" / "diffusion" / "00000-CPU",
        tmp_path / "my runs" / "00000-CPU",
    )
    for folder in (own, elsewhere):
        folder.mkdir(parents=True)
        shutil.copy(MODEL / "conf.json", folder)
    assert "--run Models/diffusion/00000-CPU " in MusicRequest.of(own, 1).shell_line()
    words = shlex.split(MusicRequest.of(elsewhere, 1, label="it's; ok").shell_line())
    assert words[words.index("--run") + 1] == str(elsewhere)
    assert words[words.index("--label") + 1] == "it's; ok"


def test_where_the_program_is_installed_the_line_is_the_command(tmp_path, monkeypatch):
    assert "MainScripts/generate.py -o " in QUICK.shell_line()
    monkeypatch.setattr(MODULE, "REPOSITORY", tmp_path)
    assert QUICK.shell_line().startswith("ma-ddpm generate -o choir-3.flac --run ")


def test_an_unknown_label_is_refused_before_anything_is_made(model):
    with pytest.raises(ValueError, match="knows no label 'lute'"):
        MusicRequest.of(MODEL, label="lute").make(model)


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
            MusicRequest.of(MODEL, seconds=20.0, steps=2, guidance=1.0).make(model, callback)
    assert len(seen) == 4 and seen[-1] > seen[0]  # two steps of the clip, and two of its continuation


def test_all_runs_with_weights_are_listed_the_released_one_first_then_the_newest(tmp_path):
    for name in ("00000-CPU", "00002-CPU", "00001-BASE"):
        (tmp_path / "diffusion" / name).mkdir(parents=True)
        (tmp_path / "diffusion" / name / "ema-00000001.pth").touch()
    (tmp_path / "diffusion" / "00003-CPU").mkdir()
    found = runs_of(tmp_path, "diffusion")
    released = ["diffusion-cpu", "diffusion-base", "diffusion-cpu-two-steps"]
    assert list(found) == [*released, "00002-CPU", "00001-BASE", "00000-CPU"]
    assert found["diffusion-cpu"] == MODEL and found["00001-BASE"] == tmp_path / "diffusion" / "00001-BASE"
    assert "upsampler" not in str(runs_of(tmp_path, "upsampler"))
