"""What several test files share."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from Conf import SMOKE
from Libraries.Dataset import build_dataset
from Libraries.Preparation import find_music


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
    settings = replace(SMOKE, root=root, music_dir=root / "music", num_samples=4, vae_run=None)
    build_dataset(find_music(settings), settings.dataset_dir, settings.spectrogram, settings.dataset)
    return settings


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none here"))
