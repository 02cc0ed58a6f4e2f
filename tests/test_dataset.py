"""Datasets: built whole or resumed, split by piece, read as encoded, batches a function of (seed, step)."""

import dataclasses
import functools
import json
import logging
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from Conf import BASE
from Libraries.Dataset import Build as DatasetBuild
from Libraries.Dataset import Join as DatasetJoin
from Libraries.Dataset import Shards as DatasetShards
from Libraries.Dataset.Augmentation import Augmentation, seam_frame
from Libraries.Dataset.Batches import loaders_of
from Libraries.Dataset.Manifest import pads_short, split_pieces
from Libraries.Dataset.SpectrogramDataset import (
    DatasetConfig,
    DatasetError,
    SpectrogramDataset,
    StepSampler,
    build_dataset,
    load_manifest,
    make_loaders,
    manifest_hash,
    read_clip,
)
from Libraries.Sound.Audio import AudioError, load_audio
from Libraries.Sound.Spectrogram import Gain, Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig

REPOSITORY = Path(__file__).parents[1]
SPECTROGRAM = dataclasses.replace(
    BASE.spectrogram,
    phase="pghi",
    sample_rate=8000,
    clip_seconds=1.0,
    n_fft=256,
    win_length=256,
    hop_length=64,
    n_bands=48,
    narrow_frequency=500.0,
    max_frequency=3900.0,
    size_multiple=8,
    band_inverse="pinv",
    griffin_lim_iterations=2,
)
CONFIG = DatasetConfig(
    name="tiny",
    overlap=0.25,
    split=(0.6, 0.2, 0.2),
    seed=0,
    num_workers=0,
    silence_db=-60.0,
    random_gain_db=6.0,
    random_polarity=True,
    time_shift=True,
)
NORMALISATIONS = ("per_sample", "dataset")
WHOLE = "[!.]*.json"  # entries of finished shards, not those being written


def spectrogram_with(**changes) -> SpectrogramConfig:
    return dataclasses.replace(SPECTROGRAM, **changes)


def config_with(**changes) -> DatasetConfig:
    return dataclasses.replace(CONFIG, **changes)


def write_music(path: Path, seconds: float, rate: int = 8000, seed: int = 0, level: float = 0.1, **options):
    """Write noise whose loudness wanders, so that clips differ in level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = round(seconds * rate)
    noise = np.random.default_rng(seed).standard_normal(n) * (1 + 0.8 * np.sin(np.arange(n) / rate))
    soundfile.write(path, (level * noise).clip(-1, 1).astype(np.float32), rate, **options)


@pytest.fixture(scope="session")
def music(tmp_path_factory) -> Path:
    """Eleven files of ten pieces in two folders; one piece twice, in two formats."""
    folder = tmp_path_factory.mktemp("music")
    for i in range(10):
        write_music(folder / ("strings" if i % 2 else "wind") / f"piece {i}.wav", 3.5, 8000, seed=i)
    write_music(folder / "wind" / "PIECE 1.flac", 3.5, 44100, seed=1)
    return folder


@pytest.fixture(scope="session", params=NORMALISATIONS)
def built(request, music, tmp_path_factory):
    """A finished dataset of each normalisation: its folder and what `build_dataset` returned."""
    folder = tmp_path_factory.mktemp(request.param) / "tiny"
    return folder, build_dataset(music, folder, spectrogram_with(normalisation=request.param), CONFIG)


@pytest.fixture
def logged(caplog, monkeypatch):
    """What is logged, also after a test has switched the repository's own handler on."""
    monkeypatch.setattr(logging.getLogger("MA_DDPM"), "propagate", True)
    return caplog


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- building


def test_the_report_counts_what_was_made(built):
    folder, report = built
    shape = np.load(folder / "spectrograms.npy", mmap_mode="r").shape
    assert (report.files_read, report.skipped, report.silent_clips) == (11, (), 0)
    assert sum(report.clips.values()) == shape[0] == len(load_manifest(folder)["clips"])
    assert report.seconds == pytest.approx(11 * 3.5, abs=0.01)
    assert report.classes == ("strings", "wind")
    assert f"{shape[0]} ({report.clips['train']} train" in str(report)


def test_every_row_equals_the_direct_encoding_of_its_clip(built, music):
    folder, _ = built
    manifest = load_manifest(folder)
    rows = np.load(folder / "spectrograms.npy", allow_pickle=False)
    assert rows.dtype == np.float16
    config = SpectrogramConfig(**manifest["settings"]["spectrogram"])
    gain = Gain(*(torch.tensor([value]) for value in manifest["gain"]))
    spectrogram = Spectrogram(config, gain)
    for row, clip in list(zip(rows, manifest["clips"], strict=True))[::3]:
        waveform = load_audio(music / clip["source"], 8000, clip["offset"], config.clip_seconds)
        x0, gain = spectrogram.encode_with_gain(waveform[None])
        np.testing.assert_allclose(row, x0[0].numpy(), atol=1e-3)
        np.testing.assert_allclose(clip["gain"], [gain.offset.item(), gain.scale.item()], rtol=1e-4)


def test_the_dataset_gain_is_that_of_the_training_split_alone(music, tmp_path):
    config = spectrogram_with(normalisation="dataset", value_range="unit_variance")
    build_dataset(music, tmp_path / "tiny", config, CONFIG)
    train = torch.stack([x0 for x0, _ in SpectrogramDataset(tmp_path / "tiny", "train")])
    assert train.mean().item() == pytest.approx(0, abs=1e-3)
    assert train.std().item() == pytest.approx(1, abs=1e-3)


def test_the_typical_gain_is_the_median_of_the_training_split(music, tmp_path):
    build_dataset(music, tmp_path / "tiny", SPECTROGRAM, CONFIG)
    manifest = load_manifest(tmp_path / "tiny")
    offsets = torch.tensor([clip["gain"][0] for clip in manifest["clips"] if clip["split"] == "train"])
    dataset = SpectrogramDataset(tmp_path / "tiny", "test")
    assert dataset.typical_gain.offset.item() == offsets.median().item()
    assert dataset.gain(0).scale.shape == (1,)


def test_labels_are_the_first_folder(built):
    folder, _ = built
    manifest = load_manifest(folder)
    for clip in manifest["clips"]:
        assert manifest["classes"][clip["label"]] == clip["source"].split("/")[0]


def test_without_folders_there_is_one_class_and_beside_folders_a_file_has_its_own(tmp_path):
    for i in range(3):
        write_music(tmp_path / "flat" / f"{i}.wav", 1.5, seed=i)
    assert build_dataset(tmp_path / "flat", tmp_path / "a", SPECTROGRAM, CONFIG).classes == ("all",)
    write_music(tmp_path / "flat" / "deep" / "er" / "9.wav", 1.5, seed=9)
    report = build_dataset(tmp_path / "flat", tmp_path / "b", SPECTROGRAM, CONFIG)
    assert report.classes == ("(no folder)", "deep")


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9, 0.995])
def test_clips_lie_whole_hops_apart(tmp_path, overlap):
    write_music(tmp_path / "audio" / "a.wav", 5.0)
    config = config_with(overlap=overlap)
    build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, config)
    offsets = [clip["offset"] * 8000 for clip in load_manifest(tmp_path / "out")["clips"]]
    stride = config.stride_frames(SPECTROGRAM) * 64
    np.testing.assert_allclose(offsets, np.arange(len(offsets)) * stride)
    assert len(offsets) == 1 + (5 * 8000 - 8000) // stride
    assert stride / 64 / SPECTROGRAM.n_frames == pytest.approx(1 - overlap, abs=0.01)


def test_a_stride_beyond_the_clip_loses_no_sample(tmp_path):
    config = spectrogram_with(size_multiple=1)  # 126 frames of 64 are more than the clip's 8000 samples
    assert config.n_frames * 64 > config.clip_samples
    write_music(tmp_path / "audio" / "a.wav", 35.0)
    build_dataset(tmp_path / "audio", tmp_path / "out", config, config_with(overlap=0.0))
    offsets = [clip["offset"] * 8000 for clip in load_manifest(tmp_path / "out")["clips"]]
    np.testing.assert_allclose(offsets, np.arange(len(offsets)) * 126 * 64)
    rows = np.load(tmp_path / "out" / "spectrograms.npy")
    last = load_audio(tmp_path / "audio" / "a.wav", 8000, offsets[-1] / 8000, 1.0)
    np.testing.assert_allclose(rows[-1], Spectrogram(config).encode(last[None])[0], atol=1e-3)


def test_what_cannot_be_read_is_skipped_with_its_reason_and_the_rest_is_built(tmp_path):
    audio = tmp_path / "audio"
    for name in ("good.wav", "좋은 노래.ogg", "cut.mp3", "cut.wav", "cut.flac"):
        write_music(audio / name, 3.0)
    for name in ("cut.mp3", "cut.wav", "cut.flac"):
        (audio / name).write_bytes((audio / name).read_bytes()[: (audio / name).stat().st_size * 6 // 10])
    (audio / "empty.wav").touch()
    (audio / "text.mp3").write_text("no music here " * 99)
    (audio / "notes.txt").write_text("ignored")
    write_music(audio / "short.wav", 0.5)
    write_music(audio / "silent.wav", 3.0, level=0)
    soundfile.write(audio / "nan.wav", np.full(16000, np.nan, np.float32), 8000, subtype="FLOAT")
    report = build_dataset(audio, tmp_path / "out", SPECTROGRAM, CONFIG)
    reasons = dict(report.skipped)
    expected = {
        "cut.flac": "damaged or truncated",
        "cut.mp3": "truncated",
        "cut.wav": "truncated",
        "empty.wav": "is empty",
        "nan.wav": "is not finite",
        "short.wav": "is shorter than one clip: 0.50 of 1 s",
        "silent.wav": "is silent: no clip is louder than -60 dB",
        "text.mp3": "is not audio",
    }
    assert reasons.keys() == expected.keys()
    assert all(sentence in reasons[name] for name, sentence in expected.items())
    assert all(f"{name} {reason}" in str(report) for name, reason in reasons.items())
    assert report.files_read == 2
    assert {clip["source"] for clip in load_manifest(tmp_path / "out")["clips"]} == {
        "good.wav",
        "좋은 노래.ogg",
    }
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_silent_clips_are_dropped_from_a_file_that_sounds(tmp_path):
    samples = np.random.default_rng(0).standard_normal(8 * 8000).astype(np.float32) * 0.1
    samples[2 * 8000 : 6 * 8000] = 0
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", samples, 8000)
    report = build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, CONFIG)
    assert report.silent_clips == 4  # those that begin at 2.16, 2.88, 3.60 and 4.32 s
    assert np.isfinite(np.load(tmp_path / "out" / "spectrograms.npy")).all()


def test_one_shots_become_clips_with_silence_at_their_end(tmp_path):
    for name, seconds, level in (("kick.wav", 0.3, 0.1), ("hush.wav", 0.3, 0.0), ("long.wav", 2.5, 0.1)):
        write_music(tmp_path / "audio" / name, seconds, level=level)
    plain = build_dataset(tmp_path / "audio", tmp_path / "plain", SPECTROGRAM, CONFIG)
    reasons = dict(plain.skipped)
    assert "is shorter than one clip: 0.30 of 1 s (dataset.pad_short would pad it)" in reasons["kick.wav"]
    padded = config_with(pad_short=True)
    report = build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, padded)
    assert [file for file, _ in report.skipped] == ["hush.wav"] and "is silent" in report.skipped[0][1]
    manifest = load_manifest(tmp_path / "out")
    (row,) = (i for i, clip in enumerate(manifest["clips"]) if clip["source"] == "kick.wav")
    waveform = read_clip(manifest["clips"][row], tmp_path / "audio", SPECTROGRAM, pads_short(manifest))
    assert waveform.shape == (1, 8000) and not waveform[:, 2400:].any() and waveform[:, 2399].any()
    x0 = Spectrogram(SPECTROGRAM).encode_with_gain(waveform[None])[0]
    rows = np.load(tmp_path / "out" / "spectrograms.npy")
    np.testing.assert_allclose(rows[row], x0[0].numpy(), atol=2e-3)
    others = [i for i, clip in enumerate(manifest["clips"]) if clip["source"] == "long.wav"]
    assert np.array_equal(rows[others], np.load(tmp_path / "plain" / "spectrograms.npy"))


def test_datasets_from_before_one_shots_could_be_padded_stay_what_they_are(built, music):
    folder, _ = built
    settings = load_manifest(folder)["settings"]["dataset"]
    assert set(settings) == {"overlap", "split", "seed", "silence_db"}
    config = spectrogram_with(normalisation=load_manifest(folder)["settings"]["spectrogram"]["normalisation"])
    with pytest.raises(DatasetError, match=r"pad_short is None there and True here"):
        build_dataset(music, folder, config, config_with(pad_short=True))


def test_a_folder_of_which_nothing_can_be_used_says_so(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").write_text("no music")
    with pytest.raises(
        AudioError, match=r"audio holds no audio file that can be used, of 1: a\.wav is not audio"
    ):
        build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, CONFIG)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"overlap": 1.0},
        {"split": (0.5, 0.1, 0.1)},
        {"split": (0, 0.5, 0.5)},
        {"silence_db": 3.0},
        {"name": "a/b"},
    ],
)
def test_an_impossible_setting_names_itself(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.* must be"):
        config_with(**change)


# ---- built once, resumed, replaced


def test_a_finished_dataset_is_not_built_again(built, music, monkeypatch):
    folder, _ = built
    before = contents(folder)
    monkeypatch.setattr(DatasetBuild, "make_shards", lambda *_: pytest.fail("built again"))
    config = SpectrogramConfig(**load_manifest(folder)["settings"]["spectrogram"])
    inverse_only = dataclasses.replace(config, griffin_lim_iterations=99, phase="griffin_lim")
    for wanted in (config, inverse_only):
        report = build_dataset(music, folder, wanted, config_with(num_workers=2, random_gain_db=0.0))
        assert report.already_built
        assert "already built" in str(report)
    assert contents(folder) == before


def test_other_settings_or_files_are_an_error_that_names_the_difference(built, music, tmp_path):
    folder, _ = built
    config = SpectrogramConfig(**load_manifest(folder)["settings"]["spectrogram"])
    with pytest.raises(DatasetError, match=r"hop_length is 64 there and 32 here.*overwrite=True"):
        build_dataset(music, folder, dataclasses.replace(config, hop_length=32), CONFIG)
    with pytest.raises(DatasetError, match=r"overlap is 0.25 there and 0.5 here"):
        build_dataset(music, folder, config, config_with(overlap=0.5))
    shutil.copytree(music, tmp_path / "more")
    write_music(tmp_path / "more" / "new.wav", 2.0)
    write_music(tmp_path / "more" / "wind" / "piece 0.wav", 3.5, seed=77)
    (tmp_path / "more" / "wind" / "piece 2.wav").unlink()
    with pytest.raises(DatasetError, match=r"new \(new.wav\).*gone \(wind/piece 2.*changed \(wind/piece 0"):
        build_dataset(tmp_path / "more", folder, config, CONFIG)


def test_overwriting_keeps_the_old_dataset_until_the_new_one_is_whole(music, tmp_path, monkeypatch):
    build_dataset(music, tmp_path / "out", SPECTROGRAM, CONFIG)
    (tmp_path / "out" / "mine.txt").write_text("kept")
    before = manifest_hash(tmp_path / "out")
    other = config_with(overlap=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(DatasetJoin, "_write_npy", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(music, tmp_path / "out", SPECTROGRAM, other, overwrite=True)
    assert manifest_hash(tmp_path / "out") == before
    assert len(SpectrogramDataset(tmp_path / "out", "train")) > 0
    build_dataset(music, tmp_path / "out", SPECTROGRAM, other, overwrite=True)
    build_dataset(music, tmp_path / "fresh", SPECTROGRAM, other)
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    (tmp_path / "out" / "mine.txt").unlink()
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def _interrupt(*_):
    raise KeyboardInterrupt


def die_at_move(patch: pytest.MonkeyPatch, moves: int, counts) -> None:
    """Interrupt the move after `moves` of those that `counts(source, target)`."""
    left, replace = [moves], os.replace

    def replace_or_die(source, target):
        left[0] -= counts(Path(source), Path(target))
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(source, target)

    patch.setattr(os, "replace", replace_or_die)


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_while_the_dataset_is_moved_into_place_is_mended(music, tmp_path, monkeypatch, moves):
    build_dataset(music, tmp_path / "fresh", SPECTROGRAM, config_with(overlap=0.5))
    build_dataset(music, tmp_path / "out", SPECTROGRAM, CONFIG)

    def counts(source, target):
        return source.parent.name == ".building" and target.parent.name == "out"

    with monkeypatch.context() as patch:
        die_at_move(patch, moves, counts)
        patch.setattr(shutil, "rmtree", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(music, tmp_path / "out", SPECTROGRAM, config_with(overlap=0.5), overwrite=True)
    if moves < 2:
        with pytest.raises(DatasetError, match="holds no finished dataset"):
            load_manifest(tmp_path / "out")
    report = build_dataset(music, tmp_path / "out", SPECTROGRAM, config_with(overlap=0.5))
    assert report.already_built
    shutil.rmtree(tmp_path / "out" / ".building", ignore_errors=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


BUILD = """
import json, sys
from pathlib import Path
from Libraries.Dataset.SpectrogramDataset import DatasetConfig, build_dataset
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Dataset import Shards as DatasetShards
DatasetShards.WORTH_A_WORKER = 0.1
if __name__ == "__main__":
    spectrogram, config = json.loads(sys.argv[3])
    spectrogram, config = SpectrogramConfig(**spectrogram), DatasetConfig(**config)
    build_dataset(Path(sys.argv[1]), Path(sys.argv[2]), spectrogram, config)
"""


def start_build(
    script: Path, audio: Path, out: Path, spectrogram, config, code: str = BUILD, stderr=subprocess.DEVNULL
) -> subprocess.Popen:
    script.write_text(code)
    settings = json.dumps([dataclasses.asdict(spectrogram), dataclasses.asdict(config)])
    own = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), own]))}
    command = [sys.executable, script, audio, out, settings]
    return subprocess.Popen(command, env=environment, stderr=stderr, text=True)


def test_a_second_build_waits_for_the_first_and_finds_it_done(music, tmp_path, monkeypatch):
    """Or the clean-up of the first would take the shards of the second away."""
    build, reports = functools.partial(build_dataset, music, tmp_path / "out", SPECTROGRAM, CONFIG), []
    second = threading.Thread(target=lambda: reports.append(build()))
    make_shards = DatasetBuild.make_shards

    def make_shards_as_another_begins(*arguments):
        make_shards(*arguments)
        if second.ident is None:
            second.start()
            time.sleep(0.3)

    monkeypatch.setattr(DatasetBuild, "make_shards", make_shards_as_another_begins)
    assert not build().already_built
    second.join(timeout=60)
    assert [report.already_built for report in reports] == [True]


@pytest.mark.slow
def test_a_script_without_a_guard_ends_with_a_sentence_and_does_not_wait_for_itself(tmp_path):
    for i in range(4):
        write_music(tmp_path / "audio" / f"{i}.wav", 20.0, seed=i)
    code = BUILD.replace('if __name__ == "__main__":', "if True:")
    process = start_build(
        tmp_path / "b.py",
        tmp_path / "audio",
        tmp_path / "out",
        SPECTROGRAM,
        config_with(num_workers=2),
        code,
        subprocess.PIPE,
    )
    _, printed = process.communicate(timeout=120)
    assert process.returncode and "a worker imports the script that builds" in printed
    assert "must stand under `if __name__ == '__main__':`" in printed


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_build_killed_at_any_moment_resumes_to_the_same_bytes(tmp_path, normalisation):
    for i in range(12):
        write_music(tmp_path / "audio" / f"{i}.wav", 20.0, seed=i)
    spectrogram = spectrogram_with(normalisation=normalisation)
    build_dataset(tmp_path / "audio", tmp_path / "whole", spectrogram, CONFIG)
    building = tmp_path / "killed" / ".building"
    process = start_build(tmp_path / "b.py", tmp_path / "audio", tmp_path / "killed", spectrogram, CONFIG)
    while process.poll() is None and len(list(building.glob(WHOLE))) < 3:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shards = len(list(building.glob(WHOLE)))
    assert 3 <= shards < 12
    assert not (tmp_path / "killed" / "manifest.json").exists()
    made = []
    original = DatasetShards.make_shard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetShards, "make_shard", lambda task: (made.append(task), original(task)))
        build_dataset(tmp_path / "audio", tmp_path / "killed", spectrogram, CONFIG)
    assert 11 - shards <= len(made) <= 12 - shards  # the one that was being read is read in its own process
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_workers_make_the_same_bytes_and_end_when_their_parent_is_killed(built, music, tmp_path):
    folder, _ = built
    config = SpectrogramConfig(**load_manifest(folder)["settings"]["spectrogram"])
    script, two = tmp_path / "b.py", config_with(num_workers=2)
    for i in range(40):
        write_music(tmp_path / "audio" / f"{i}.wav", 20.0, seed=i)
    process = start_build(script, tmp_path / "audio", tmp_path / "killed", config, two)
    while process.poll() is None and not list((tmp_path / "killed" / ".building").glob(WHOLE)):
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(_runs(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.1)
    assert start_build(script, music, tmp_path / "two", config, two).wait() == 0
    assert contents(tmp_path / "two") == contents(folder)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- split


@pytest.mark.parametrize("seed", range(20))
def test_a_piece_never_stands_in_two_splits(built, seed):
    folder, _ = built
    splits = {}
    for clip in load_manifest(folder)["clips"]:
        splits.setdefault(Path(clip["source"]).stem.casefold(), set()).add(clip["split"])
    assert len(splits) == 10
    assert all(len(found) == 1 for found in splits.values())
    names = [f"piece {i}" for i in np.random.default_rng(seed).integers(0, 1000, 50)]
    assigned = split_pieces(names, (0.8, 0.1, 0.1), seed)
    assert assigned == split_pieces(reversed(names), (0.8, 0.1, 0.1), seed)


@pytest.mark.parametrize("pieces", range(1, 40))
def test_no_split_is_empty_from_three_pieces_on(pieces):
    counts = {split: 0 for split in ("train", "validation", "test")}
    for split in split_pieces(map(str, range(pieces)), (0.98, 0.01, 0.01), seed=pieces).values():
        counts[split] += 1
    assert counts["train"] >= 1
    assert counts["validation"] >= (pieces >= 2)
    assert counts["test"] >= (pieces >= 3)


def test_splits_have_their_fractions_of_the_pieces():
    assigned = list(split_pieces(map(str, range(50)), (0.7, 0.1, 0.2), seed=0).values())
    assert [assigned.count(split) for split in ("train", "validation", "test")] == [35, 5, 10]


def test_a_split_with_fraction_zero_stays_empty():
    assert set(split_pieces(map(str, range(50)), (0.9, 0.1, 0.0), seed=0).values()) == {"train", "validation"}


def test_another_piece_moves_few_others():
    names = [f"piece {i}" for i in range(200)]
    before = split_pieces(names, (0.8, 0.1, 0.1), seed=3)
    after = split_pieces([*names, "one more"], (0.8, 0.1, 0.1), seed=3)
    assert sum(before[name] != after[name] for name in names) <= 2


def test_a_single_piece_trains_and_says_that_the_other_splits_are_empty(tmp_path, logged):
    write_music(tmp_path / "audio" / "a.wav", 3.0)
    report = build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, CONFIG)
    assert report.clips["validation"] == 0
    assert "validation split is empty" in logged.text
    train, validation = make_loaders(tmp_path / "out", 4, seed=0)
    assert next(iter(train))[0].shape == (4, *SPECTROGRAM.shape)
    assert list(validation) == []


# ---- reading


def test_reading_many_equals_reading_one_by_one(built):
    folder, report = built
    dataset = SpectrogramDataset(folder, "train")
    assert len(dataset) == report.clips["train"]
    x0, labels = dataset.__getitems__([3, 0, 5])
    assert x0.dtype == torch.float32
    assert labels.dtype == torch.int64
    for i, place in enumerate((3, 0, 5)):
        torch.testing.assert_close(x0[i], dataset[place][0], rtol=0, atol=0)
        assert labels[i] == dataset[place][1]


def test_a_resident_dataset_gives_the_same_batches(built):
    folder, _ = built
    disk = SpectrogramDataset(folder, "train", CONFIG)
    resident = SpectrogramDataset(folder, "train", CONFIG).to("cpu")
    assert disk.num_bytes == len(disk) * 48 * 120 * 2
    items = [(i, i + 100) for i in range(len(disk))]
    for ours, theirs in zip(disk.__getitems__(items), resident.__getitems__(items), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_dataset_travels_to_another_process_without_its_rows(built):
    folder, _ = built
    dataset = SpectrogramDataset(folder, "train")
    first, _ = dataset[0]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < dataset.num_bytes / 4
    torch.testing.assert_close(pickle.loads(pickled)[0][0], first, rtol=0, atol=0)


def test_what_is_no_dataset_or_split_says_so(tmp_path, built):
    folder, _ = built
    with pytest.raises(DatasetError, match="holds no finished dataset"):
        SpectrogramDataset(tmp_path, "train")
    with pytest.raises(ValueError, match="choose one of train, validation, test"):
        SpectrogramDataset(folder, "dev")
    with pytest.raises(TypeError, match="augment=True must be None or the DatasetConfig"):
        SpectrogramDataset(folder, "train", augment=True)
    shutil.copytree(folder, tmp_path / "cut")
    with open(tmp_path / "cut" / "spectrograms.npy", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(DatasetError, match="is not as long as"):
        SpectrogramDataset(tmp_path / "cut", "train")


def test_the_manifest_hash_names_the_content(built, tmp_path):
    folder, _ = built
    shutil.copytree(folder, tmp_path / "copy")
    assert manifest_hash(tmp_path / "copy") == manifest_hash(folder)
    path = tmp_path / "copy" / "manifest.json"
    path.write_text(path.read_text().replace('"train"', '"test"', 1))
    assert manifest_hash(tmp_path / "copy") != manifest_hash(folder)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_gives_bit_identical_batches_and_leaves_the_global_random_state(built, num_workers):
    folder, _ = built
    state = torch.get_rng_state()
    whole, _ = make_loaders(folder, 4, seed=7, augment=CONFIG)
    resumed, _ = make_loaders(folder, 4, seed=7, start_step=5, augment=CONFIG, num_workers=num_workers)
    batches = [batch for batch, _ in zip(whole, range(9), strict=False)]
    for (x0, labels), (again, same) in zip(batches[5:], resumed, strict=False):
        torch.testing.assert_close(x0, again, rtol=0, atol=0)
        assert labels.equal(same)
    assert torch.get_rng_state().equal(state)


def test_the_validation_loader_is_finite_in_order_and_as_stored(built):
    folder, _ = built
    _, loader = make_loaders(folder, 3, seed=0, augment=CONFIG)
    dataset = SpectrogramDataset(folder, "validation")
    for _ in range(2):
        x0 = torch.cat([x0 for x0, _ in loader])
        torch.testing.assert_close(x0, torch.stack([x0 for x0, _ in dataset]), rtol=0, atol=0)


class Split:
    """A split of four clips that only says how large it is and whether it was moved."""

    def __init__(self, num_bytes):
        self.num_bytes, self.device = num_bytes, "disk"

    def __len__(self):
        return 4

    def to(self, device):
        self.device = device
        return self


def test_data_go_to_a_gpu_while_both_splits_take_half_of_its_free_memory_at_most(monkeypatch, logged):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    for num_bytes, device in ((25, "cuda"), (26, "disk")):
        splits = Split(25), Split(num_bytes)
        loaders_of(*splits, batch_size=2, seed=0, device="cuda")
        assert [split.device for split in splits] == [device] * 2
        assert ("are read from disk" in logged.text) == (device == "disk")


# ---- the stream


@pytest.mark.parametrize("size, batch_size, world_size", [(10, 3, 1), (64, 4, 4), (5, 8, 2), (1, 2, 3)])
def test_ranks_see_together_what_one_process_sees_with_the_whole_batch(size, batch_size, world_size):
    one = StepSampler(size, batch_size * world_size, seed=1)
    many = [StepSampler(size, batch_size, 1, 0, rank, world_size) for rank in range(world_size)]
    for step in range(20):
        assert one.batch(step) == [item for sampler in many for item in sampler.batch(step)]


def test_a_resumed_sampler_goes_on_where_it_was():
    stream = iter(StepSampler(37, 5, seed=3))
    whole = [next(stream) for _ in range(50)]
    resumed = iter(StepSampler(37, 5, seed=3, start_step=23))
    assert [next(resumed) for _ in range(27)] == whole[23:]


def test_every_epoch_covers_every_clip_once_in_another_order():
    stream = iter(StepSampler(21, 4, seed=0))
    indices = [index for _ in range(21) for index, _ in next(stream)]
    epochs = [indices[start : start + 21] for start in range(0, 84, 21)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_no_two_places_share_an_augmentation_seed():
    stream = iter(StepSampler(10, 4, seed=0))
    seeds = [seed for _ in range(1000) for _, seed in next(stream)]
    assert len(set(seeds)) == 4000


@pytest.mark.parametrize("change", [{"size": 0}, {"batch_size": 0}, {"start_step": -1}, {"rank": 2}])
def test_an_impossible_sampler_is_refused(change):
    arguments = {"size": 5, "batch_size": 2, "seed": 0, "start_step": 0, "rank": 0, "world_size": 2} | change
    with pytest.raises(ValueError, match=f"{next(iter(change))}="):
        StepSampler(**arguments)


# ---- augmentation


def test_an_augmented_clip_is_a_function_of_its_seed_alone(built):
    folder, _ = built
    dataset = SpectrogramDataset(folder, "train", CONFIG)
    x0, _ = dataset.__getitems__([(0, 11), (1, 12), (0, 13)])
    torch.testing.assert_close(dataset[(1, 12)][0], x0[1], rtol=0, atol=0)
    assert not x0[0].equal(x0[2])
    plain = SpectrogramDataset(folder, "train")
    torch.testing.assert_close(plain[(0, 11)][0], plain[0][0], rtol=0, atol=0)


def build_one_file(tmp_path: Path, config: SpectrogramConfig, **changes) -> SpectrogramDataset:
    write_music(tmp_path / "audio" / "a.wav", 6.0)
    settings = config_with(**{"random_gain_db": 0.0, "random_polarity": False, "time_shift": False} | changes)
    build_dataset(tmp_path / "audio", tmp_path / "out", config, settings)
    return SpectrogramDataset(tmp_path / "out", "train", settings)


@pytest.mark.parametrize("representation", ["magnitude", "bands", "complex", "mdct"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_shifted_clip_is_the_encoding_of_the_music_from_there_on(tmp_path, representation, normalisation):
    config = spectrogram_with(representation=representation, normalisation=normalisation)
    dataset = build_one_file(tmp_path, config, time_shift=True, overlap=0.1)
    gain = dataset.typical_gain
    stride, spectrogram = dataset.manifest["stride_frames"], Spectrogram(config, gain)
    shifted = 0
    for seed in range(6):
        shift = int(dataset._augmentation.draw([seed]).shift[0])
        x0, _ = dataset[(1, seed)]
        waveform = load_audio(tmp_path / "audio" / "a.wav", 8000, (stride + shift) * 64 / 8000, 1.0)
        own = spectrogram.encode_with_gain(waveform[None])[1]
        louder = dataset._augmentation.louder(dataset.gain(1), dataset.gain(2)) if shift else dataset.gain(1)
        direct = dataset._augmentation.regain(spectrogram.encode(waveform[None]), own, louder)[0]
        inner = slice(4, -4)  # at a clip's own ends the direct encoding sees mirrored audio
        difference = (x0 - direct)[..., inner].abs()
        assert difference.quantile(0.999) < 4e-3  # float16, and floors of clips of unlike level
        shifted += shift > 0
    assert shifted > 3


def test_the_last_clip_of_a_file_is_never_joined_with_another_file(tmp_path):
    for i in range(3):
        write_music(tmp_path / "audio" / f"{i}.wav", 2.2, seed=i)
    settings = config_with(split=(1.0, 0.0, 0.0), random_polarity=False, random_gain_db=0.0)
    build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, settings)
    dataset = SpectrogramDataset(tmp_path / "out", "train", settings)
    assert len(dataset) == 6
    for last in (1, 3, 5):
        torch.testing.assert_close(dataset[(last, 5)][0], dataset[last][0], rtol=0, atol=0)


@pytest.mark.parametrize("stride", [100, 118])
def test_joined_clips_have_no_gap_and_no_frame_twice(stride):
    augmentation, T = Augmentation(CONFIG, SPECTROGRAM, stride), SPECTROGRAM.n_frames
    frames, shifts = torch.arange(T), np.arange(stride + 1)
    first = frames.expand(len(shifts), 1, 1, T)
    joined = augmentation.join(first, first + stride, shifts)
    assert torch.equal(joined[:, 0, 0], frames + torch.from_numpy(shifts)[:, None])


def test_shifts_reach_every_frame_of_the_stride():
    shifts = Augmentation(CONFIG, SPECTROGRAM, 100).draw(list(range(2000))).shift
    assert set(shifts) == set(range(100))


def test_a_clip_before_a_silence_that_was_dropped_is_not_joined_with_what_follows_it(tmp_path):
    samples = np.random.default_rng(0).standard_normal(9 * 8000).astype(np.float32) * 0.1
    samples[3 * 8000 : 6 * 8000] = 0
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", samples, 8000)
    settings = config_with(split=(1.0, 0.0, 0.0), random_polarity=False, random_gain_db=0.0)
    build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, settings)
    dataset = SpectrogramDataset(tmp_path / "out", "train", settings)
    offsets = np.array([clip["offset"] for clip in dataset.manifest["clips"]])
    (before,) = np.flatnonzero(np.diff(offsets) > 1)  # the one whose successor is gone
    moved = [not torch.equal(dataset[(i, 5)][0], dataset[i][0]) for i in range(len(dataset))]
    assert moved == [i not in (before, len(dataset) - 1) for i in range(len(dataset))]


def test_time_shift_needs_an_overlap_for_a_clean_seam_and_says_so(tmp_path, logged):
    assert seam_frame(SPECTROGRAM, 120) is None
    assert seam_frame(SPECTROGRAM, 118) == 120
    dataset = build_one_file(tmp_path, SPECTROGRAM, time_shift=True, overlap=0.0)
    assert "time_shift is off" in logged.text
    torch.testing.assert_close(dataset[(0, 3)][0], dataset[0][0], rtol=0, atol=0)


def test_random_gain_shifts_decibels_within_the_range_and_keeps_the_floor(tmp_path):
    config = spectrogram_with(normalisation="dataset")
    dataset = build_one_file(tmp_path, config, random_gain_db=6.0)
    scale = dataset.typical_gain.scale.item()
    stored, _ = dataset[0]
    levels = []
    for seed in range(20):
        x0, _ = dataset[(0, seed)]
        level = dataset._augmentation.draw([seed]).level.item()
        inside = (stored > -0.9) & (x0 < 1)
        change = ((x0 - stored) * scale)[inside]
        assert change.std() < 1e-3
        assert change.mean().item() <= level + 1e-3
        assert x0.max() <= 1
        assert (x0[stored <= -1] == -1).all()
        levels.append(level)
    assert min(levels) < -3
    assert max(levels) > 3


def test_random_gain_is_off_where_normalisation_undoes_it(tmp_path, logged):
    dataset = build_one_file(tmp_path, SPECTROGRAM, random_gain_db=6.0)
    assert "random_gain_db=6 is off" in logged.text
    torch.testing.assert_close(dataset[(0, 1)][0], dataset[0][0], rtol=0, atol=0)


@pytest.mark.parametrize("value_range", ["minus_one_to_one", "zero_to_one", "unit_variance"])
def test_polarity_flips_the_signed_feature_and_nothing_without_a_sign(tmp_path, value_range):
    config = spectrogram_with(representation="mdct", value_range=value_range)
    dataset = build_one_file(tmp_path, config, random_polarity=True)
    offset, scale = (value.item() for value in dataset.gain(0))
    stored = dataset[0][0] * scale + offset
    signs = set()
    for seed in range(10):
        features = dataset[(0, seed)][0] * scale + offset
        sign = torch.sign((features * stored).sum()).item()
        torch.testing.assert_close(features, sign * stored, atol=1e-5, rtol=1e-3)
        signs.add(sign)
    assert signs == {1.0, -1.0}
    assert not Augmentation(CONFIG, SPECTROGRAM, 90).flips


def tone_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    """Two clips (1, 8000) of a second at 8 kHz that share hardly any band."""
    seconds = torch.arange(8000) / 8000
    low = 0.5 * torch.sin(2 * torch.pi * 300 * seconds)
    high = 0.1 * torch.sin(2 * torch.pi * 2500 * seconds)
    return low[None], high[None]


def test_a_mixed_clip_is_the_encoding_of_both_sounds_together():
    spectrogram, augmentation = Spectrogram(SPECTROGRAM), Augmentation(config_with(mix=1.0), SPECTROGRAM, 90)
    low, high = tone_and_noise()
    x0 = [spectrogram.encode(sound[None]) for sound in (low, high, low + high)]
    difference = x0[1].new_tensor([20 * np.log10(0.1 / 0.5)])  # dB between the two peaks
    mixed = augmentation.add(x0[0], x0[1], difference)
    assert (mixed - x0[2]).abs().mean() < 0.02 < (x0[0] - x0[2]).abs().mean()


def test_mixing_adds_powers_and_leaves_the_floor():
    augmentation = Augmentation(config_with(mix=1.0), SPECTROGRAM, 90)
    x0 = torch.rand(2, 1, 48, 120) * 2 - 1
    x0[..., :10, :] = -1
    x0[:, 0, 20, 0] = 1
    same, silence = augmentation.add(x0, x0, torch.zeros(2)), torch.full_like(x0, -1.0)
    torch.testing.assert_close(same, x0, atol=2e-3, rtol=0)  # everything 3 dB up, normalised away
    torch.testing.assert_close(augmentation.add(x0, silence, torch.zeros(2)), x0, atol=2e-3, rtol=0)


def test_the_fraction_of_mixed_clips_is_that_of_the_setting(tmp_path):
    dataset = build_one_file(tmp_path, SPECTROGRAM, mix=0.3)
    stored = dataset[0][0]
    changed = [not torch.equal(dataset[(0, seed)][0], stored) for seed in range(200)]
    assert 0.2 < np.mean(changed) < 0.4
    torch.testing.assert_close(dataset[(0, 3)][0], dataset[(0, 3)][0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "change", [{"normalisation": "dataset"}, {"representation": "mdct"}, {"scale": "linear"}]
)
def test_mixing_is_off_where_powers_cannot_be_added_and_says_so(tmp_path, logged, change):
    dataset = build_one_file(tmp_path, spectrogram_with(**change), mix=1.0)
    assert "mix=1 is off" in logged.text
    torch.testing.assert_close(dataset[(0, 1)][0], dataset[0][0], rtol=0, atol=0)


# ---- memory


MEASURE = """
import json, sys
from pathlib import Path
from Libraries.Dataset.SpectrogramDataset import DatasetConfig, build_dataset
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
spectrogram, config = json.loads(sys.argv[3])
spectrogram, config = SpectrogramConfig(**spectrogram), DatasetConfig(**config)
report = build_dataset(Path(sys.argv[1]), Path(sys.argv[2]), spectrogram, config)
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]  # ru_maxrss inherits
print(sum(report.clips.values()), peak)
"""


def write_mostly_silent(path: Path, minutes: int) -> None:
    """Write noise of 20 s at the end of a WAV file of 8 kHz that takes no more than that on disk."""
    path.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 3000, 20 * 8000).astype("<i2").tobytes()
    size = 2 * 8000 * 60 * minutes
    with open(path, "wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt ")
        file.write(struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16) + b"data" + struct.pack("<I", size))
        file.seek(44 + size - len(noise))
        file.write(noise)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_file_of_ten_hours_is_read_in_flat_memory(tmp_path):
    peaks, settings = [], json.dumps([dataclasses.asdict(SPECTROGRAM), dataclasses.asdict(CONFIG)])
    for minutes in (2, 600):
        write_mostly_silent(tmp_path / str(minutes) / "a.wav", minutes)
        folders = tmp_path / str(minutes), tmp_path / f"out{minutes}"
        command = [sys.executable, "-c", MEASURE, *folders, settings]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        clips, kib = map(int, result.stdout.split())
        assert 20 <= clips < 30  # those of the noise
        peaks.append(kib)
    assert load_manifest(tmp_path / "out600")["sources"][0]["seconds"] == 36_000
    assert peaks[1] - peaks[0] < 25 * 1024  # the file is 1.1 GB as float32


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path, normalisation):
    peaks = []
    spectrogram = spectrogram_with(normalisation=normalisation)
    settings = json.dumps([dataclasses.asdict(spectrogram), dataclasses.asdict(CONFIG)])
    for minutes in (2, 60):
        write_music(tmp_path / str(minutes) / "a.wav", minutes * 60)
        command = [
            sys.executable,
            "-c",
            MEASURE,
            tmp_path / str(minutes),
            tmp_path / f"out{minutes}",
            settings,
        ]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        clips, kib = map(int, result.stdout.split())
        peaks.append(kib)
    assert clips > 4000
    assert peaks[1] - peaks[0] < 25 * 1024  # the rows alone are 50 MB


# ---- two channels


def test_a_dataset_older_than_channels_is_the_mono_one_that_it_was(built, music, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "older")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    config = SpectrogramConfig(**manifest["settings"]["spectrogram"])
    del manifest["settings"]["spectrogram"]["channels"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert SpectrogramDataset(folder, "train").spectrogram_config == config
    assert build_dataset(music, folder, config, CONFIG).already_built
    with pytest.raises(DatasetError, match="channels is 1 there and 2 here"):
        build_dataset(music, folder, dataclasses.replace(config, channels=2), CONFIG)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory):
    """A stereo dataset of complex spectrograms of three pieces: mono, two channels alike, two unrelated."""
    root, rng = tmp_path_factory.mktemp("stereo"), np.random.default_rng(0)
    (root / "music").mkdir()
    first, second = rng.uniform(-0.5, 0.5, (2, 20_000))
    for name, samples in {"mono": first, "alike": [first, first], "wide": [first, second]}.items():
        soundfile.write(root / "music" / f"{name}.wav", np.transpose(samples), 8000, subtype="FLOAT")
    config = spectrogram_with(representation="complex", channels=2, phase="pghi")
    build_dataset(root / "music", root / "data", config, config_with(split=(1.0, 0.0, 0.0)))
    return root


def test_rows_of_stereo_are_what_encode_makes_of_its_clips(stereo):
    dataset = SpectrogramDataset(stereo / "data", "train")
    spectrogram = Spectrogram(dataset.spectrogram_config)
    assert dataset.shape[0] == 4 and len(dataset) == 9
    for i, clip in enumerate(dataset.manifest["clips"]):
        waveform = read_clip(clip, stereo / "music", dataset.spectrogram_config)
        assert waveform.shape == (2, 8000)
        np.testing.assert_allclose(dataset[i][0], spectrogram.encode(waveform[None])[0], atol=1e-3)


def test_a_mono_file_in_a_stereo_dataset_has_a_silent_side(stereo):
    dataset = SpectrogramDataset(stereo / "data", "train")
    sides = {name: [] for name in ("mono.wav", "alike.wav", "wide.wav")}
    for i, file in enumerate(dataset.sources):
        sides[file].append(dataset[i][0][2:].abs().max().item())
    assert max(sides["mono.wav"] + sides["alike.wav"]) == 0 and min(sides["wide.wav"]) > 0.5


def test_swapped_sides_and_polarity_are_those_of_the_waveform(stereo):
    config = config_with(random_swap=True, random_polarity=True, time_shift=False)
    dataset = SpectrogramDataset(stereo / "data", "train", config)
    spectrogram = Spectrogram(dataset.spectrogram_config)
    waveform = read_clip(dataset.manifest["clips"][-1], stereo / "music", dataset.spectrogram_config)
    seen = set()
    for seed in range(20):
        draw = dataset._augmentation.draw([seed])
        swap, flip = bool(draw.swap), bool(draw.flip)
        expected = (-1) ** flip * (waveform.flip(0) if swap else waveform)
        found = dataset[len(dataset) - 1, seed][0]
        np.testing.assert_allclose(found, spectrogram.encode(expected[None])[0], atol=1e-3)
        seen.add((swap, flip))
    assert len(seen) == 4


def test_magnitudes_and_mono_have_no_sides_to_swap():
    for changes in ({"channels": 2}, {"representation": "complex"}):
        assert not Augmentation(config_with(random_swap=True), spectrogram_with(**changes), 90).swaps
