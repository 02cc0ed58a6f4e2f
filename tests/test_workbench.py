"""What the page does, without the page: files made, opened, changed, restored and looked at."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import QUICK
from PIL import Image

from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset
from Libraries.Evaluation.Workbench import ANEW, CHANGES, CONTINUED, LOOP, VARIED, Workbench
from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.FileEditing import Stretch
from Libraries.Runs.MusicRequest import MusicRequest
from Libraries.Runs.Run import RELEASED
from Libraries.Runs.Settings import changed
from Libraries.Runs.Upsampling import train_upsampler
from Libraries.Sound.Audio import AudioError

MODEL = RELEASED / "diffusion-cpu"
QUICKLY = MusicRequest.of(MODEL, seed=1, label="choir", sampler="ddim", steps=2, guidance=1.0)


@pytest.fixture(scope="module")
def bench(chords, tmp_path_factory):
    """With the released run, and an untrained one of each kind whose dataset is here."""
    train_diffusion(replace(chords, train=changed(chords.train, QUICK)))
    upsampler = changed(chords.upsampler.train, QUICK)
    train_upsampler(changed(chords, {"upsampler.train": upsampler}))
    return Workbench(chords.models_dir, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    """Five seconds of stereo at 44.1 kHz."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("song") / "song.wav"
    soundfile.write(path, 0.1 * rng.normal(size=(5 * 44_100, 2)), 44_100)
    return path


def sound(path):
    return soundfile.read(path, always_2d=True)


def test_music_comes_in_every_format_with_a_picture(bench):
    made = bench.make(replace(QUICKLY, seconds=1.5))
    assert [file.name for file in made.files] == ["choir-1.wav", "choir-1.flac", "choir-1.mp3"]
    for file in made.files:
        waveform, rate = sound(file)
        assert abs(len(waveform) / rate - 1.5) < 0.1 and 0.01 < np.abs(waveform).max() <= 1
    assert Image.open(made.picture).size[0] > 500 and made.before is None


def test_two_results_are_never_one_file(bench):
    first, again = (bench.make(replace(QUICKLY, seconds=0.5)) for _ in range(2))
    assert not {*first.files, first.picture} & {*again.files, again.picture}
    assert np.array_equal(sound(first.files[0])[0], sound(again.files[0])[0])


def test_all_runs_are_there_with_their_labels(bench):
    released = ["diffusion-cpu", "diffusion-base", "diffusion-cpu-two-steps"]
    assert list(bench.runs()) == [*released, "00000-SMOKE"]
    assert "choir" in bench.labels(MODEL) and bench.labels(bench.runs()["00000-SMOKE"]) == []
    assert list(bench.runs("upsampler")) == ["00000-SMOKE"]


def test_a_file_is_opened_as_the_model_hears_it(bench, song):
    opened = bench.open(MODEL, song)
    assert opened.seconds == pytest.approx(5.0, abs=0.01) and opened.sample_rate == 16_000
    assert 0 < opened.stretch.first < 2.5 < opened.stretch.end < 5


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_keeps_what_is_not_asked_for(bench, song, how):
    stretch = Stretch(1.0, 1.5)
    changed = bench.change(replace(QUICKLY, seconds=3.0), song, how, stretch, 0.5)
    (before, rate), (after, _) = sound(changed.before), sound(changed.files[0])
    assert changed.files[0].name == "song-changed.wav"
    if how in (ANEW, VARIED):
        assert len(after) == len(before) and not np.array_equal(after, before)
        assert np.array_equal(after[:rate], before[:rate])
        assert np.array_equal(after[round(1.5 * rate) :], before[round(1.5 * rate) :])
    elif how == CONTINUED:
        assert len(after) == len(before) + 3 * rate
        assert np.array_equal(after[: 4 * rate], before[: 4 * rate])
    else:
        assert how == LOOP and abs(len(after) / rate - 3) < 0.1
        assert np.array_equal(after[rate // 10 : rate], before[rate + rate // 10 : 2 * rate])


def test_a_lost_band_is_restored_by_the_newest_upsampler_or_the_named_one(bench, song, tmp_path):
    rate, path = 16_000, tmp_path / "lost.wav"
    noise = torch.fft.rfft(torch.randn(4 * rate, generator=torch.Generator().manual_seed(0)))
    noise[torch.fft.rfftfreq(4 * rate, 1 / rate) > 3_000] = 0
    soundfile.write(path, 0.1 * torch.fft.irfft(noise).numpy(), rate)
    newest, named = bench.restore(None, path, 0), bench.restore("00000-SMOKE", path, 0)
    (before, _), (after, _) = sound(newest.before), sound(newest.files[0])
    high = np.fft.rfftfreq(len(before), 1 / rate) > 3_500
    assert np.abs(np.fft.rfft(after[:, 0])[high]).mean() > 10 * np.abs(np.fft.rfft(before[:, 0])[high]).mean()
    assert np.array_equal(after, sound(named.files[0])[0])


def test_without_an_upsampler_restoring_is_refused(song, tmp_path):
    with pytest.raises(FileNotFoundError, match="train a model first"):
        Workbench(tmp_path, tmp_path).restore(None, song, 0)


def test_a_look_shows_the_film_the_table_and_the_nearest_training_clip(bench):
    request = MusicRequest.of(bench.runs()["00000-SMOKE"], seed=1)
    look = bench.look(request, bench.make(request).files[0])
    train = SpectrogramDataset(bench.model(request.run).run.settings.dataset_dir, "train")
    with Image.open(look.film) as film:
        assert film.n_frames == bench.model(request.run).run.settings.sampler.num_inference_steps
    assert "note length" in look.table and "real clips" in look.table
    assert any(source in look.remark for source in train.sources) and look.nearest.files[0].exists()


def test_a_look_at_a_run_whose_dataset_is_elsewhere_says_so(bench):
    look = bench.look(QUICKLY, bench.make(QUICKLY).files[0])
    assert "No real clips to compare with" in look.remark and look.nearest is None
    assert "note length" in look.table and "real clips" not in look.table


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"", "is empty: 0 bytes"), (b"PK\x03\x04" + 500 * b"z", "is not audio")]
)
def test_a_file_that_is_no_music_is_refused(bench, tmp_path, content, sentence):
    path = tmp_path / "zip.wav"
    path.write_bytes(content)
    for work in (
        lambda: bench.open(MODEL, path),
        lambda: bench.change(QUICKLY, path, ANEW, Stretch(0, 1), 1.0),
        lambda: bench.restore(None, path, 0),
    ):
        with pytest.raises(AudioError, match=sentence):
            work()


def test_numbers_without_end_are_refused(bench, song):
    with pytest.raises(ValueError, match=r"seconds=1000000000.0 must be within \(0, 600\]"):
        bench.make(replace(QUICKLY, seconds=1e9))
    with pytest.raises(ValueError, match="seconds=0 must be"):
        bench.change(replace(QUICKLY, seconds=0), song, CONTINUED, Stretch(0, 1), 1.0)
    with pytest.raises(ValueError, match="change='turned' is unknown"):
        bench.change(QUICKLY, song, "turned", Stretch(0, 1), 1.0)


def test_a_model_is_loaded_once(bench):
    assert bench.model(MODEL) is bench.model(MODEL)
