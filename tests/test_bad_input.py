"""Files from outside that are broken, absurd or oddly named: one sentence each, and the build goes on."""

import contextlib
import json
import logging
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_audio import RATE, music, write
from test_dataset import CONFIG, REPOSITORY, SPECTROGRAM, config_with, start_build, write_music

from Conf import SMOKE
from Libraries.Dataset import Shards
from Libraries.Dataset.Manifest import DatasetError, differences
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset, build_dataset, load_manifest
from Libraries.Measures.Tagger import load_tagger
from Libraries.Runs.Run import FORMAT, Run
from Libraries.Runs.Settings import to_dict, value_at
from Libraries.Sound import Decoding
from Libraries.Sound.Audio import AudioError, audio_info, load_audio, read_blocks
from Libraries.Training.Checkpoint import CheckpointError, load_checkpoint, load_weights, save_json
from Libraries.Training.RunLog import read_metrics
from Libraries.Utils import printable

# ---- what a file claims


def claim(path: Path, at: int, content: bytes) -> Path:
    """Write a second of music as WAV, and something else over its header."""
    whole = bytearray(write(path, music(1.0), subtype="PCM_16").read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
def test_rates_that_no_music_has_are_refused(tmp_path, rate):
    path = claim(tmp_path / "a.wav", 24, struct.pack("<I", rate))
    for read in (audio_info, lambda path: next(read_blocks(path, 32_000))):
        with pytest.raises(AudioError, match=f"claims a sample rate of {rate} Hz: its header is damaged"):
            read(path)


@pytest.mark.parametrize("rate", [1000, 768_000])
def test_the_lowest_and_the_highest_rate_are_read(tmp_path, rate):
    path = write(tmp_path / "a.wav", music(1.0, rate), rate)
    assert load_audio(path, 8000).shape == (1, 8000)


def test_channel_counts_that_no_music_has_are_refused(tmp_path):
    for channels in (64, 65):
        path = write(tmp_path / f"{channels}.wav", np.zeros((100, channels), np.float32) + 0.1)
    assert audio_info(tmp_path / "64.wav").channels == 64
    with pytest.raises(AudioError, match="claims 65 channels: its header is damaged, or mix it down to 64"):
        audio_info(path)


def test_memory_per_block_does_not_grow_with_rate_and_channels(tmp_path, monkeypatch):
    asked, read = [], Decoding.Stream.read

    def count(self, frames, **options):
        asked.append(frames)
        return read(self, frames, **options)

    monkeypatch.setattr(Decoding.Stream, "read", count)
    path = write(tmp_path / "a.wav", np.full((500, 32), 0.1, np.float32), 768_000)
    assert sum(block.shape[1] for block in read_blocks(path, 768_000)) == 500
    assert max(asked) * 32 <= Decoding.BLOCK_VALUES < 768_000 * 10 * 32


def test_a_file_that_never_ends_is_cut_off_and_says_so(tmp_path, monkeypatch):
    """A few megabytes of compressed silence are days of music."""
    path = write(tmp_path / "a.flac", music(3.0))
    monkeypatch.setattr(Decoding, "LONGEST_SECONDS", 2.0)
    with pytest.raises(AudioError, match=r"is longer than .* hours: cut it into parts"):
        list(read_blocks(path, RATE, block_seconds=0.5))


@pytest.mark.parametrize("level", [1e30, -3e38])
def test_samples_near_the_largest_float_are_refused_with_their_place(tmp_path, level):
    samples = music(1.0)
    samples[RATE // 2] = level
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"is damaged: it holds 3?1?\.?0e\+3[08] at 0\.50 s, where full sc"):
        load_audio(path, 32_000)


def test_floats_on_the_scale_of_integers_have_a_finite_spectrogram(tmp_path):
    (tmp_path / "audio").mkdir()
    write(tmp_path / "audio" / "a.wav", music(2.0, 8000) * 2.0**31, 8000, subtype="FLOAT")
    build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, CONFIG)
    assert np.isfinite(np.load(tmp_path / "out" / "spectrograms.npy")).all()


def test_a_pipe_is_skipped_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"a\.wav is not a file"):
        audio_info(tmp_path / "a.wav")
    write_music(tmp_path / "b.wav", 2.0)
    report = build_dataset(tmp_path, tmp_path / "out", SPECTROGRAM, CONFIG)
    assert report.skipped == (("a.wav", "is not a file"),)


def test_decoders_say_nothing_on_stderr(tmp_path, capfd):
    whole = bytearray(write(tmp_path / "a.mp3", music(3.0)).read_bytes())
    for at in range(2000, len(whole), 400):
        whole[at : at + 40] = bytes(np.random.default_rng(at).integers(0, 256, 40, np.uint8))
    (tmp_path / "a.mp3").write_bytes(whole)
    with contextlib.suppress(AudioError):
        load_audio(tmp_path / "a.mp3", 32_000, offset=0.5)
    os.write(2, b"seen")  # and stderr is there again
    assert capfd.readouterr().err == "seen"


# ---- no single file ends a build


@pytest.mark.parametrize("error", [MemoryError("160 GiB"), RuntimeError("odd\nand more"), OSError(5, "EIO")])
def test_an_error_of_any_type_is_the_files_and_named_with_its_type(tmp_path, monkeypatch, error):
    for name in ("bad.wav", "good.wav"):
        write_music(tmp_path / name, 2.0)

    def read(path, *arguments, **options):
        if path.name == "bad.wav":
            raise error
        yield from read_blocks(path, *arguments, **options)

    monkeypatch.setattr(Shards, "read_blocks", read)
    report = build_dataset(tmp_path, tmp_path / "out", SPECTROGRAM, CONFIG)
    ((file, reason),) = report.skipped
    message = str(error).splitlines()[0]
    assert (file, reason) == ("bad.wav", f"cannot be read: {type(error).__name__}: {message}")


def test_a_full_disk_is_not_the_files_fault(tmp_path, monkeypatch):
    write_music(tmp_path / "a.wav", 2.0)

    def full(path, write, **_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Shards, "write_then_rename", full)
        build_dataset(tmp_path, tmp_path / "out", SPECTROGRAM, CONFIG)
    assert build_dataset(tmp_path, tmp_path / "out", SPECTROGRAM, CONFIG).files_read == 1


@pytest.mark.parametrize("size", [0, 9000, 60_000])
def test_a_file_that_changes_or_vanishes_while_it_is_read_is_skipped(tmp_path, monkeypatch, size):
    for name in ("a.wav", "b.wav"):
        write_music(tmp_path / name, 3.0)
    other = (tmp_path / "b.wav").read_bytes()

    def read(path, *arguments, **options):
        for block in read_blocks(path, *arguments, **options):
            if path.name == "a.wav":
                path.write_bytes((other * 2)[:size]) if size else path.unlink()
            yield block

    monkeypatch.setattr(Shards, "read_blocks", read)
    report = build_dataset(tmp_path, tmp_path / "out", SPECTROGRAM, CONFIG)
    ((file, reason),) = report.skipped
    assert (file == "a.wav" and "has changed while it was read" in reason) or "truncated" in reason


KILLER = """
import os, soundfile
opened = soundfile.SoundFile.__init__
def opens(self, file, *arguments, **options):
    if "killer" in str(file) and os.getpid() != int(os.environ["SPARED"]):
        os.kill(os.getpid(), 9)
    opened(self, file, *arguments, **options)
soundfile.SoundFile.__init__ = opens
"""


@pytest.fixture
def killer(tmp_path, monkeypatch):
    """Make the decoder crash on some files, in every process but this one."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)]))
    monkeypatch.setenv("SPARED", str(os.getpid()))
    for name in ("a", "killer", "z"):
        write_music(tmp_path / "audio" / f"{name}.wav", 3.0, seed=ord(name[0]))
    return tmp_path / "audio"


@pytest.mark.slow
def test_what_kills_a_worker_is_read_alone_and_skipped_by_name(tmp_path, killer, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("MA_DDPM"), "propagate", True)
    monkeypatch.setattr(Shards, "WORTH_A_WORKER", 0.1)
    report = build_dataset(killer, tmp_path / "out", SPECTROGRAM, config_with(num_workers=2))
    ((file, reason),) = report.skipped
    assert file == "killer.wav" and "ends the process that reads it (signal 9)" in reason
    assert "a process died while it read killer.wav: reading it alone" in caplog.text
    (killer / "killer.wav").unlink()
    build_dataset(killer, tmp_path / "without", SPECTROGRAM, CONFIG)
    same = (tmp_path / folder / "spectrograms.npy" for folder in ("out", "without"))
    assert next(same).read_bytes() == next(same).read_bytes()


@pytest.mark.slow
def test_what_ended_the_build_itself_is_skipped_by_the_next(tmp_path, killer, monkeypatch):
    monkeypatch.setenv("SPARED", "0")
    ended = [
        start_build(tmp_path / "b.py", killer, tmp_path / "out", SPECTROGRAM, CONFIG).wait() for _ in range(2)
    ]
    assert ended == [-9, 0]
    ((file, reason),) = build_dataset(killer, tmp_path / "out", SPECTROGRAM, CONFIG).skipped
    assert file == "killer.wav" and "signal 9" in reason


# ---- names


def test_names_print_on_one_line_whatever_they_hold():
    name = "a\nb\x1b[31m\udcff é 音.wav"
    assert printable(name) == "a\\nb\\x1b[31m\\udcff é 音.wav"
    assert str(AudioError(Path(name), "is empty")).encode() and "\n" not in str(AudioError(name, "is"))


def test_odd_names_are_built_reported_and_found_again(tmp_path):
    audio = os.fsencode(tmp_path / "audio")
    os.mkdir(audio)
    write_music(tmp_path / "whole.wav", 2.0)
    whole = (tmp_path / "whole.wav").read_bytes()
    names = b"new\nline.wav", b"not \xff utf-8.wav", b"x" * 251 + b".wav", b"-rf.wav"
    for number, name in enumerate(names):
        with open(audio + b"/" + name, "wb") as file:
            file.write(whole + bytes(number))  # trailing bytes, so that they differ
        with open(audio + b"/bad " + name[-200:], "wb") as file:
            file.write(b"no music")
    (tmp_path / "audio" / "up.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "audio" / "parent").symlink_to(tmp_path / "audio")
    report = build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, CONFIG)
    assert report.files_read == 4 and len(report.skipped) == 5
    text = str(report)
    text.encode()  # no lone surrogates
    assert len([line for line in text.splitlines() if line.startswith("  skipped: ")]) == 5
    assert build_dataset(tmp_path / "audio", tmp_path / "out", SPECTROGRAM, CONFIG).already_built
    manifest = load_manifest(tmp_path / "out")
    assert not differences(manifest, manifest["settings"], manifest["sources"])
    assert "\n" not in "".join(differences(manifest, manifest["settings"], []))
    clips = SpectrogramDataset(tmp_path / "out", "train", CONFIG)
    assert clips.__getitems__([(0, 1)])[0].isfinite().all()


def test_a_file_that_is_gone_before_it_is_read_is_skipped(tmp_path, monkeypatch):
    for name in ("a.wav", "b.wav"):
        write_music(tmp_path / name, 2.0)
    make = Shards.make_shard

    def make_after_it_is_gone(task):
        (tmp_path / "a.wav").unlink(missing_ok=True)
        make(task)

    monkeypatch.setattr(Shards, "make_shard", make_after_it_is_gone)
    report = build_dataset(tmp_path, tmp_path / "out", SPECTROGRAM, CONFIG)
    assert report.skipped == (("a.wav", "cannot be opened: No such file or directory"),)


# ---- what else comes from outside


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    for number in range(3):
        write_music(folder / "music" / f"{number}.wav", 3.0, seed=number)
    build_dataset(folder / "music", folder / "out", SPECTROGRAM, CONFIG)
    return folder / "out"


def changed_manifest(change):
    def write(folder):
        manifest = load_manifest(folder)
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return write


DAMAGED = {
    "no json": (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
    "deep": (lambda folder: (folder / "manifest.json").write_text("[" * 99_999), "cannot be read"),
    "a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "of format None"),
    "no gain": (changed_manifest(lambda m: m.pop("gain")), "'gain' is missing or wrong"),
    "no clip": (changed_manifest(lambda m: m["clips"].pop()), "is not that of"),
    "shape": (changed_manifest(lambda m: m.update(shape=[10**12, 1, 1, 1])), "is not that of"),
    "offset": (changed_manifest(lambda m: m["clips"][1].update(offset=1e300)), "'offset' .* in number 1 of"),
    "label": (changed_manifest(lambda m: m["clips"][1].update(label=7)), "a label has no class"),
    "split": (changed_manifest(lambda m: m["clips"][1].update(split=[])), "'split' is missing or wrong"),
    "scale": (changed_manifest(lambda m: m["clips"][0].update(gain=[0.0, float("nan")])), "'gain' is"),
    "settings": (changed_manifest(lambda m: m["settings"]["spectrogram"].update(n_fft="x")), "settings are"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_manifest_says_what_is_wrong(dataset, tmp_path, name):
    write, sentence = DAMAGED[name]
    for file in dataset.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write(tmp_path)
    with pytest.raises(DatasetError, match=sentence) as caught:
        SpectrogramDataset(tmp_path, "train")
    assert "\n" not in str(caught.value) and "build" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, object, np.float16])
def test_rows_of_another_type_or_shape_are_refused(dataset, tmp_path, dtype):
    for file in dataset.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    size = (tmp_path / "spectrograms.npy").stat().st_size
    rows = np.zeros(64, dtype)
    np.save(tmp_path / "spectrograms.npy", rows, allow_pickle=True)
    with open(tmp_path / "spectrograms.npy", "ab") as file:
        file.truncate(size)
    clips = SpectrogramDataset(tmp_path, "train")
    with pytest.raises(DatasetError, match=r"npy (cannot be read|holds (float|object))"):
        clips[0]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', "[" * 99_999, '{"format": 2, "settings": 3}']
)
def test_a_damaged_conf_json_is_one_sentence(tmp_path, text):
    (tmp_path / "conf.json").write_text(text)
    for part in (lambda run: run.settings, lambda run: run.config("vae.network")):
        with pytest.raises(CheckpointError) as caught:
            part(Run(tmp_path))
        assert "\n" not in str(caught.value)


ABSURD = {
    "vae.network.channels": (10**9, 8), "vae.network.latent_channels": 10**9,
    "vae.loss.critic_channels": (10**9,), "upsampler.network.blocks_per_level": 10**9,
    "upsampler.network.num_classes": 10**9, "phase.network.channels": (10**9,),
    "network.embedding_dim": 10**9, "network.patch_size": (10**9, 1),
}  # fmt: skip


@pytest.mark.parametrize("path", ABSURD)
def test_networks_beyond_all_memory_are_refused_before_any_is_asked_for(tmp_path, path):
    settings, (part, name) = to_dict(SMOKE), path.rsplit(".", 1)
    value_at(part, settings)[name] = ABSURD[path]
    save_json(tmp_path / "conf.json", {"format": FORMAT, "settings": settings})
    with pytest.raises(CheckpointError, match=rf"conf\.json .*: {name}=1000000000 must be (at most|within)"):
        Run(tmp_path).config(part)


@pytest.mark.parametrize("row", ["x,1", "nan,2", "inf,2", "\0,\0", "3,4,5", "4," + "9" * 200_000])
def test_a_damaged_metrics_csv_says_where(tmp_path, row):
    (tmp_path / "metrics.csv").write_text(f"step,loss\n1,0.5\n{row}\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged after 1 rows"):
        read_metrics(tmp_path / "metrics.csv")


def test_a_checkpoint_that_claims_more_than_its_size_is_refused(tmp_path):
    """As a compressed archive, which torch can read, a small file would fill the memory."""
    path, bomb = tmp_path / "a.pth", tmp_path / "bomb.pth"
    torch.save({"weights": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="claims to hold 400"):
        load_checkpoint(bomb)


def test_what_is_no_checkpoint_or_no_weights_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no checkpoint but list"):
        load_checkpoint(tmp_path / "a.pth")
    for weights in ([1], {"weight": 3}, None):
        with pytest.raises(CheckpointError, match="holds no weights"):
            load_weights(torch.nn.Linear(2, 2), weights, tmp_path)


def test_other_weights_for_the_tagger_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(ValueError, match="does not hold the tagger"):
        load_tagger(tmp_path / "a.safetensors")


# ---- mutated files


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


def test_mutated_audio_is_read_or_skipped_with_a_reason(tmp_path, benchmarks):
    import fuzz

    findings = fuzz.Findings()
    whole = fuzz.write_files(tmp_path / "music", fuzz.whole_files(), range(100), seed=11)
    fuzz.count(fuzz.build(tmp_path / "music", tmp_path / "out"), whole, findings)
    assert findings.others == [] and len(whole) == 5
    assert findings.read + sum(findings.skipped.values()) == 100 and findings.read > 20


def test_mutated_documents_are_read_or_refused_in_a_sentence(tmp_path, benchmarks):
    import fuzz_documents

    counts, others, _ = fuzz_documents.fuzz(140, seed=12, folder=tmp_path)
    assert others == [] and sum(counts.values()) == 140


def test_a_mutated_file_is_a_function_of_its_seed(benchmarks):
    from mutated_bytes import mutate, mutate_text

    for way in (mutate, mutate_text):
        made = [way(b'{"a": 1, "b": 2}' * 9, [b"x" * 50], np.random.default_rng(seed)) for seed in (1, 1, 2)]
        assert made[0] == made[1] != made[2]
