"""What several test files share."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from Conf import SMOKE, in_space
from Libraries.Dataset.SpectrogramDataset import build_dataset
from Libraries.Measures import Uncertainty
from Libraries.Runs.Preparation import find_music
from Libraries.Runs.Settings import changed
from Libraries.Training.Checkpoint import find_checkpoints, load_checkpoint

QUICK = {"num_steps": 4, "save_every": 2, "validate_every": 2, "preview_every": 4, "snapshot_every": 2}
"""Changes of a TrainConfig: a training of seconds that validates and saves twice and draws once."""


def randomise(module, scale=0.3):
    """Move a module away from its first weights, so that nothing is zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


@pytest.fixture(scope="module")
def chords(tmp_path_factory):
    """SMOKE on a small made-up dataset, chords that change every half second; diffusion on spectrograms."""
    root, rng = tmp_path_factory.mktemp("root"), np.random.default_rng(0)
    (root / "music").mkdir()
    for number in range(6):
        seconds = np.arange(12 * 16_000) / 16_000
        pitches = rng.uniform(100, 900, (24, 3))[(seconds * 2).astype(int)]
        wave = np.sin(2 * np.pi * pitches * seconds[:, None]).mean(1) * np.exp(-4 * (seconds % 0.5))
        soundfile.write(root / "music" / f"piece{number}.wav", 0.5 * wave, 16_000)
    settings = changed(
        in_space(SMOKE, "spectrogram"),
        {"root": root, "music_dir": root / "music", "evaluation.num_samples": 4},
    )
    build_dataset(find_music(settings), settings.dataset_dir, settings.spectrogram, settings.dataset)
    return settings


@pytest.fixture
def few_draws(monkeypatch):
    """Intervals and floors of the measures from a few draws: coarse, and fast."""
    monkeypatch.setattr(Uncertainty, "RESAMPLES", 8)
    monkeypatch.setattr(Uncertainty, "FLOOR_SETS", 3)


@pytest.fixture
def goes_on_to_the_same(monkeypatch):
    """A check that a run of 4 steps, saved at step 2 and stopped at step 3, goes on to another's weights."""

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    def check(train, whole: Path, again: Path, preview: str) -> bool:
        """`train(run_dir)` trained `whole`; `again` is made; `preview` is what draws on the way."""
        again.mkdir(parents=True)
        shutil.copy(whole / "conf.json", again)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(
                "Libraries.Training.RunLog.is_due", lambda step, _, what: what == "preview" and step == 3
            )
            patch.setattr(f"Libraries.{preview}", stop)
            train(again)
        assert [step for step, _ in find_checkpoints(again, "state")] == [2]
        train(again)
        runs = [load_checkpoint(run / "ema-00000004.pth")["weights"] for run in (whole, again)]
        return all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])

    return check


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))
