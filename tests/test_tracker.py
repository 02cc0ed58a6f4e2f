"""Trackers show what metrics.csv says, and what previews draw and sound like; a missing one is named."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import QUICK
from matplotlib.figure import Figure
from test_training import CONFIG, Regression, loaders, network, train

from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.Settings import changed
from Libraries.Training.Loop import fit
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.Tracker import Shown
from Libraries.Training.TrainConfig import TrainConfig

GROUPS = {"loss": "training", "lr": "training", "grad_norm": "training", "samples_per_second": "training"}
RATE = 8_000  # Hz


def tracked(**changes) -> TrainConfig:
    return replace(CONFIG, preview_every=6, **changes)


def preview(step, model):
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, step])
    wave = 0.5 * torch.sin(torch.arange(800) * 0.1).expand(2, 2, -1)
    return Shown("drawn", figure, lambda: (wave, RATE))


def numbers_of(run_dir):
    """(step, name in the tracker) -> value, of metrics.csv."""
    rows = read_metrics(run_dir / "metrics.csv")
    return {
        (row["step"], f"{GROUPS.get(name, 'validation')}/{name}"): value
        for row in rows
        for name, value in row.items()
        if name != "step"
    }


def tensorboard_of(run_dir):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "audio": 0})
    return events.Reload()


def assert_same_numbers(found, run_dir):
    expected = numbers_of(run_dir)
    assert found.keys() == expected.keys() and len(found) > 10
    assert all(np.isclose(found[key], expected[key], rtol=1e-5) for key in expected)


def scalars(events):
    return {
        (event.step, tag): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
    }


def test_tensorboard_says_what_metrics_csv_says_and_shows_previews(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    train(tmp_path / "run", tracked(tracker="tensorboard"), preview=preview)
    events = tensorboard_of(tmp_path / "run")
    assert_same_numbers(scalars(events), tmp_path / "run")
    pictures = events.Images("drawn")
    assert [picture.step for picture in pictures] == [6, 12]
    assert (pictures[0].width, pictures[0].height) == (200, 100)
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string
    sounds = events.Audio("drawn/1")
    assert [sound.step for sound in sounds] == [6, 12]
    assert (sounds[0].sample_rate, sounds[0].length_frames) == (RATE, 800)


def test_a_resumed_run_goes_on_in_tensorboard_without_what_was_lost(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")

    class Stop(Regression):
        calls = 0

        def __call__(self, model, batch, positions):
            Stop.calls += 1
            if Stop.calls == 8:
                raise InterruptedError
            return super().__call__(model, batch, positions)

    config = tracked(tracker="tensorboard")
    with pytest.raises(InterruptedError):  # after the numbers of step 6, but with the state of step 4
        train(tmp_path / "run", config, Stop())
    train(tmp_path / "run", config)
    assert_same_numbers(scalars(tensorboard_of(tmp_path / "run")), tmp_path / "run")


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_says_what_metrics_csv_says_and_keeps_previews(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    run_dir = tmp_path / "regression" / "00000-a"
    run_dir.mkdir(parents=True)
    fit(network(), Regression(), loaders, tracked(tracker="trackio"), run_dir, preview=preview)
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("MA_DDPM", "regression-00000-a")
    numbers = {
        (row["step"], name): value
        for row in rows
        for name, value in row.items()
        if "/" in name and isinstance(value, float)
    }
    assert_same_numbers(numbers, run_dir)
    media = [path.suffix for path in (tmp_path / "trackio").rglob("*") if "media" in path.parts]
    assert media.count(".png") == 2 and media.count(".wav") == 4


def test_without_a_tracker_nothing_is_written_for_one_and_no_sound_is_made(tmp_path):
    def silent(step, model):
        return Shown("drawn", Figure(), lambda: pytest.fail("nobody hears this"))

    train(tmp_path / "run", tracked(), preview=silent)
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_before_the_run(tracker, chords, monkeypatch, tmp_path):
    monkeypatch.setattr("Libraries.Training.Tracker.find_spec", {}.get)
    sentence = rf"tracker='{tracker}' is not installed: `pip install {tracker}`, or set tracker='none'"
    with pytest.raises(ValueError, match=sentence):
        train_diffusion(changed(chords, {"train.tracker": tracker}))
    assert not (chords.models_dir / "diffusion").exists()
    with pytest.raises(ValueError, match=sentence):
        train(tmp_path / "run", tracked(tracker=tracker))


def test_an_unknown_tracker_is_refused():
    with pytest.raises(
        ValueError, match="tracker='wandb' is unknown; choose one of none, tensorboard, trackio"
    ):
        tracked(tracker="wandb")


def test_a_run_may_go_on_with_another_tracker_and_its_samples_are_heard(chords):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    quick = changed(chords, {"train": changed(chords.train, {**QUICK, "lr_schedule": "constant"})})
    run_dir = train_diffusion(quick)
    longer = changed(quick, {"train.num_steps": 8, "train.tracker": "tensorboard"})
    assert train_diffusion(longer, run_dir) == run_dir
    events = tensorboard_of(run_dir)
    assert {step for step, _ in scalars(events)} >= {6, 8} and min(step for step, _ in scalars(events)) > 4
    heard = events.Audio("samples/0")[-1]
    assert (heard.step, heard.sample_rate) == (8, quick.spectrogram.sample_rate)
    assert heard.length_frames == quick.spectrogram.kept_samples
    buckets = {tag for tag in events.Tags()["scalars"] if tag.startswith("validation/val_loss_t")}
    assert len(buckets) > 1
