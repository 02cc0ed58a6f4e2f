"""One piece of music: its table beside real clips, its nearest training clip."""

from dataclasses import replace

import pytest
import torch
from conftest import QUICK

from Libraries.Dataset.Manifest import DatasetError
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.OneClip import describe_music, describe_real, music_table, nearest_clip
from Libraries.Evaluation.Samples import record_trajectory
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.MusicRequest import MusicRequest
from Libraries.Runs.Run import RELEASED
from Libraries.Runs.Settings import changed


@pytest.fixture(scope="module")
def model(chords):
    return DiffusionRun.load(train_diffusion(replace(chords, train=changed(chords.train, QUICK))))


def test_the_nearest_clip_of_a_training_clip_is_itself(model):
    train = SpectrogramDataset(model.run.settings.dataset_dir, "train")
    found = nearest_clip(model, train[3][0][None])
    assert found.distance < 1e-3 and torch.equal(found.x0, train[3][0])
    assert found.source == train.sources[3]


def test_the_table_has_a_tone_of_one_second_beside_real_clips(model):
    rate = model.spectrogram.config.sample_rate
    seconds = torch.arange(3 * rate) / rate
    tone = torch.sin(2 * torch.pi * 440 * seconds) * ((seconds > 1) & (seconds < 2))
    tone = describe_music(0.3 * tone[None], rate)
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in music_table(tone).splitlines()}
    assert 0.8 < float(rows["note length (s)"][0]) < 1.2 and len(rows["note length (s)"]) == 1
    assert 50 < float(rows["silence (% of frames)"][0]) < 75
    beside = music_table(tone, describe_real(model)).splitlines()
    assert "real clips" in beside[0] and all(line.count("|") == 4 for line in beside)
    assert " to " in next(line for line in beside if "spectral tilt" in line)


def test_a_run_whose_dataset_is_elsewhere_says_so():
    with pytest.raises(DatasetError):
        describe_real(DiffusionRun.load(RELEASED / "diffusion-cpu"))


def test_a_film_ends_with_the_clip_that_was_asked_for():
    model = DiffusionRun.load(RELEASED / "diffusion-cpu")
    request = MusicRequest.of(RELEASED / "diffusion-cpu", seed=5, label="choir", steps=3, guidance=1.5)
    options = {"labels": model.label_of("choir"), "guidance": request.guidance}
    steps = record_trajectory(model, request.sampler, 5, 3, **options)
    assert [t for t, _, _ in steps] == sorted((t for t, _, _ in steps), reverse=True) and len(steps) == 3
    assert torch.equal(model.to_audio(steps[-1][2])[0], request.make(model))
