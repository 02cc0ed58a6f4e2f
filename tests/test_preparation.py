"""Music and dataset before a training: what is there is used only if it is what the settings ask for."""

import shutil
from dataclasses import replace

import pytest

from Libraries.Dataset.Manifest import DatasetError
from Libraries.Runs.Preparation import ensure_dataset
from Libraries.Runs.Recipe import music_record
from Libraries.Runs.Settings import changed
from Libraries.Training.Checkpoint import save_json

OTHER = {"overlap": 0.5, "split": (0.6, 0.2, 0.2), "seed": 1, "silence_db": -20.0}


def test_the_dataset_of_these_settings_is_not_built_again(chords):
    assert ensure_dataset(chords) is None


@pytest.mark.parametrize("name", OTHER)
def test_a_dataset_of_another_setting_is_refused(chords, name):
    other = changed(chords, {f"dataset.{name}": OTHER[name]})
    for use, error in ((ensure_dataset, DatasetError), (music_record, ValueError)):
        with pytest.raises(error, match=rf"{name} is .* there and .* here"):
            use(other)


def test_a_dataset_of_other_music_is_refused(chords, tmp_path):
    shutil.copytree(chords.music_dir, tmp_path / "music")
    (tmp_path / "music" / "piece0.wav").unlink()
    with pytest.raises(DatasetError, match=r"1 audio files are gone \(piece0.wav\)"):
        ensure_dataset(replace(chords, music_dir=tmp_path / "music"))


def test_a_dataset_without_its_music_is_compared_by_its_settings(chords, tmp_path):
    shutil.copytree(chords.dataset_dir, tmp_path / "Data" / chords.dataset.name)
    alone = replace(chords, root=tmp_path, music_dir=None)
    assert ensure_dataset(alone) is None and not alone.demo_music_dir.exists()
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        ensure_dataset(changed(alone, {"dataset.seed": 1}))


def test_a_run_on_demo_music_records_which_soundfont_played_it(chords, tmp_path):
    shutil.copytree(chords.dataset_dir, tmp_path / "Data" / chords.dataset.name)
    demo = replace(chords, root=tmp_path, music_dir=None)
    assert "soundfont" not in music_record(chords) and "soundfont" not in music_record(demo)
    demo.demo_music_dir.mkdir()
    played = {"name": "Some.sf2", "sha256": "0"}
    save_json(demo.demo_music_dir / "manifest.json", {"settings": {}, "soundfont": played, "pieces": []})
    assert music_record(demo)["soundfont"] == played
    assert "soundfont" not in music_record(replace(demo, music_dir=chords.music_dir))
