"""Audio files: every format, every defect in one sentence, exact excerpts, memory that stays flat."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from Libraries.Sound.Audio import (
    AudioError,
    audio_info,
    find_audio_files,
    load_audio,
    read_blocks,
    save_audio,
)

RATE = 44100
LOSSLESS = [
    ("a.wav", "WAV", "PCM_U8", 1e-2),
    ("a.wav", "WAV", "PCM_16", 1e-4),
    ("a.wav", "WAV", "PCM_24", 1e-6),
    ("a.wav", "WAV", "PCM_32", 1e-6),
    ("a.wav", "WAV", "FLOAT", 1e-7),
    ("a.wav", "WAV", "DOUBLE", 1e-7),
    ("a.wav", "WAVEX", "PCM_16", 1e-4),
    ("a.wav", "WAV", "ULAW", 3e-2),
    ("a.flac", "FLAC", "PCM_16", 1e-4),
    ("a.flac", "FLAC", "PCM_24", 1e-6),
    ("a.aiff", "AIFF", "PCM_16", 1e-4),
    ("a.AIF", "AIFF", "FLOAT", 1e-7),
    ("a.au", "AU", "PCM_16", 1e-4),
    ("a.snd", "AU", "FLOAT", 1e-7),
    ("a.caf", "CAF", "PCM_24", 1e-6),
    ("a.w64", "W64", "PCM_16", 1e-4),
    ("a.rf64", "RF64", "PCM_16", 1e-4),
    ("a.voc", "VOC", "PCM_16", 1e-4),
    ("a.avr", "AVR", "PCM_16", 1e-4),
    ("a.sf", "IRCAM", "PCM_16", 1e-4),
]
LOSSY = [("a.mp3", "MP3", None), ("a.ogg", "OGG", "VORBIS"), ("a.opus", "OGG", "OPUS")]
# What is left of a file after 60 % of its bytes is noticed in every one of these.
CUTTABLE = ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "caf", "w64", "rf64"]


def music(seconds: float, rate: int = RATE, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return `(n, channels)` of decaying notes over a little noise, peak below 0.9."""
    t = np.arange(round(seconds * rate)) / rate
    note = np.exp(-3 * (t % 0.5)) * np.sin(2 * np.pi * 220 * (1 + np.floor(t * 2) % 5) * t)
    noise = np.random.default_rng(seed).standard_normal((len(t), channels))
    return (0.6 * note[:, None] + 0.02 * noise).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, file_format=None, subtype=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", rate, samples.shape[1], subtype, format=file_format) as target:
        for start in range(0, len(samples), 65536):
            target.write(samples[start : start + 65536])
    return path


def write_suffix(folder: Path, suffix: str, seconds: float = 3.0) -> Path:
    """Write music in the usual encoding of a suffix."""
    usual = {"opus": ("OGG", "OPUS"), "ogg": ("OGG", "VORBIS")}
    file_format, subtype = usual.get(suffix, (suffix.upper(), None))
    rate = 48000 if suffix == "opus" else RATE
    return write(folder / f"a.{suffix}", music(seconds, rate), rate, file_format, subtype)


def db(signal: np.ndarray) -> float:
    return 20 * np.log10(np.sqrt(np.mean(np.square(np.asarray(signal), dtype=np.float64))) + 1e-30)


@pytest.mark.parametrize("name, file_format, subtype, tolerance", LOSSLESS)
def test_lossless_formats_read_what_was_written(tmp_path, name, file_format, subtype, tolerance):
    samples = music(1.0, channels=1 if file_format in ("VOC",) else 2)
    path = write(tmp_path / name, samples, RATE, file_format, subtype)
    got = load_audio(path, RATE, mono=False)
    assert got.dtype == torch.float32
    assert got.shape == samples.T.shape
    np.testing.assert_allclose(got.numpy(), samples.T, atol=tolerance)


@pytest.mark.parametrize("name, file_format, subtype", LOSSY)
def test_lossy_formats_read_what_was_written_within_their_loss(tmp_path, name, file_format, subtype):
    rate = 48000
    samples = music(2.0, rate)
    got = load_audio(write(tmp_path / name, samples, rate, file_format, subtype), rate)
    assert got.shape == (1, len(samples))
    assert db(got.numpy() - samples.T) < db(samples) - 10


def test_files_are_found_nested_sorted_in_any_script_and_case(tmp_path):
    names = [
        "Ünïcode/ñandú.wav",
        "b.WAV",
        "音楽/曲 1.flac",
        "музыка/песня.Ogg",
        "موسيقى/أغنية.wav",
        "🎵.aiff",
    ]
    for name in names:
        write(tmp_path / name, music(0.1), file_format=Path(name).suffix[1:].upper())
    for sidecar in ["readme.txt", "cover.jpg", "meta.json", ".hidden.wav", ".trash/old.wav", "._b.WAV"]:
        (tmp_path / sidecar).parent.mkdir(exist_ok=True)
        (tmp_path / sidecar).write_bytes(b"not music")
    found = find_audio_files(tmp_path)
    assert found == sorted(tmp_path / name for name in names)
    assert all(load_audio(path, 8000).shape == (1, 800) for path in found)


def test_a_link_to_a_folder_is_followed_and_a_loop_ends(tmp_path):
    write(tmp_path / "elsewhere" / "x.wav", music(0.1))
    (tmp_path / "music" / "deep").mkdir(parents=True)
    (tmp_path / "music" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "music" / "deep" / "loop").symlink_to(tmp_path / "music")
    assert find_audio_files(tmp_path / "music") == [tmp_path / "music" / "linked" / "x.wav"]


def test_a_missing_or_empty_folder_says_where_it_looked(tmp_path):
    with pytest.raises(AudioError, match=r"nowhere is not a folder"):
        find_audio_files(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no music")
    with pytest.raises(AudioError, match=f"{tmp_path} holds no audio file"):
        find_audio_files(tmp_path)


@pytest.mark.parametrize("suffix", CUTTABLE)
def test_a_truncated_file_is_noticed(tmp_path, suffix):
    path = write_suffix(tmp_path, suffix)
    assert load_audio(path, RATE).shape[1] == 3 * RATE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(AudioError, match=r"truncated|damaged|cut off"):
        load_audio(path, RATE)


def test_a_wav_streamed_through_a_pipe_is_not_called_truncated(tmp_path):
    path = write(tmp_path / "a.wav", music(1.0), subtype="PCM_16")
    whole = bytearray(path.read_bytes())
    for at in (4, whole.index(b"data") + 4):
        whole[at : at + 4] = b"\xff\xff\xff\xff"  # what a writer puts there when it cannot seek back
    path.write_bytes(whole)
    assert load_audio(path, RATE).shape == (1, RATE)


def test_a_flac_that_does_not_say_its_length_is_read_whole(tmp_path):
    path = write(tmp_path / "a.flac", music(1.0), subtype="PCM_16")
    whole = bytearray(path.read_bytes())
    whole[21] &= 0xF0  # STREAMINFO's 36-bit sample count: 0 is "unknown"
    whole[22:26] = bytes(4)
    path.write_bytes(whole)
    assert audio_info(path).frames is None
    assert load_audio(path, RATE).shape == (1, RATE)


def test_an_mp3_whose_length_is_a_guess_is_not_called_truncated(tmp_path):
    path = write(tmp_path / "a.mp3", np.concatenate([np.zeros((RATE, 1), np.float32), music(4.0)]))
    whole = path.read_bytes()
    second_frame = whole.index(b"\xff\xfb", whole.index(b"Xing"))
    path.write_bytes(whole[second_frame:])  # the Xing tag, which counts the frames, is gone
    assert audio_info(path).seconds > 6  # wrong, for the bit rate of silence
    assert load_audio(path, RATE).shape[1] > 4.9 * RATE


BROKEN = {
    "empty.wav": (b"", "is empty: 0 bytes"),
    "empty.au": (b"", "is empty: 0 bytes"),
    "text.mp3": (b"this is no music\n" * 200, "is not audio"),
    "text.wav": (b"this is no music\n" * 200, "is not audio"),
    "noise.flac": (bytes(range(256)) * 64, "is not audio"),
    "header.wav": (b"RIFF", "is not audio"),
    "phone.m4a": (b"\0\0\0\x20ftypM4A ", "is not audio|needs PyAV"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_audio_is_named_in_one_sentence(tmp_path, name):
    content, sentence = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError, match=sentence) as caught:
        audio_info(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav cannot be opened"):
        load_audio(tmp_path / "gone.wav", RATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(tmp_path, bad):
    samples = music(2.0)
    samples[RATE + RATE // 2] = bad
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"NaN or infinity at 1\.50 s"):
        load_audio(path, 32000)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_resampling_keeps_a_tone_and_the_length(tmp_path, rate):
    t = np.arange(2 * rate) / rate
    path = write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * t)[:, None], rate, subtype="FLOAT")
    got = load_audio(path, 32000)[0].numpy()
    want = 0.5 * np.sin(2 * np.pi * 440 * np.arange(64000) / 32000)
    assert len(got) == 64000
    np.testing.assert_allclose(got[3200:-3200], want[3200:-3200], atol=1e-5)


@pytest.mark.parametrize("rate, tone", [(44100, 18000), (48000, 18000), (48000, 23000), (96000, 40000)])
def test_a_tone_above_the_band_does_not_alias(tmp_path, rate, tone):
    samples = 0.9 * np.sin(2 * np.pi * tone * np.arange(2 * rate) / rate)[:, None]
    path = write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    assert db(load_audio(path, 32000)[0, 3200:-3200].numpy()) < -100


@pytest.mark.parametrize("block_seconds", [0.01, 0.3, 7.0])
def test_blocks_join_to_the_resampled_whole_whatever_their_size(tmp_path, block_seconds):
    samples = music(2.0, channels=2)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    blocks = list(read_blocks(path, 32000, block_seconds))
    assert all(block.dtype == np.float32 and block.shape[0] == 2 and block.shape[1] > 0 for block in blocks)
    want = soxr.resample(samples, RATE, 32000, "HQ").T
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), want, atol=1e-6)


def test_mono_is_the_mean_of_the_channels(tmp_path):
    samples = np.concatenate([music(0.5, seed=seed) for seed in range(5)], axis=1)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(path, RATE)[0], samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("offset, duration", [(0.0, 0.5), (0.7, 1.1), (1.23457, 0.001), (2.5, 9.0)])
def test_an_excerpt_equals_that_stretch_of_the_whole(tmp_path, suffix, offset, duration):
    path = write_suffix(tmp_path, suffix)
    whole = load_audio(path, 32000)
    first = round(offset * 32000)
    want = whole[:, first : first + round(duration * 32000)]
    got = load_audio(path, 32000, offset, duration)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_an_excerpt_outside_the_file_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", music(1.0))
    with pytest.raises(AudioError, match="no audio at 7 s"):
        load_audio(path, RATE, offset=7.0)
    with pytest.raises(ValueError, match="offset must be"):
        load_audio(path, RATE, offset=-1.0)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.aif", "曲.ogg", "a.mp3", "a.opus"])
def test_saving_writes_what_was_given(tmp_path, name):
    rate = 48000
    waveform = torch.from_numpy(music(1.0, rate, channels=2).T.copy())
    save_audio(tmp_path / "new" / name, waveform, rate)
    back = load_audio(tmp_path / "new" / name, rate, mono=False)
    exact = Path(name).suffix in (".wav", ".flac", ".aiff", ".aif")
    error = (back - waveform).abs().max().item() if exact else db(back - waveform) - db(waveform)
    assert error < (1e-4 if exact else -10)
    assert [file.name for file in (tmp_path / "new").iterdir()] == [name]


def test_saving_brings_down_only_a_level_that_would_clip(tmp_path):
    for peak, expected in [(0.5, 0.5), (1.0, 1.0), (1.26, 1.0)]:
        save_audio(tmp_path / "a.wav", torch.tensor([[0.0, peak, -peak / 2]]), 8000)
        assert load_audio(tmp_path / "a.wav", 8000)[0, 1].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "waveform, sentence",
    [
        (torch.tensor([[0.0, float("nan")]]), "1 samples are not finite"),
        (torch.zeros(8), r"must be \(C, L\)"),
        (torch.zeros(1, 0), r"must be \(C, L\)"),
    ],
)
def test_saving_refuses_what_is_no_waveform_and_keeps_the_old_file(tmp_path, waveform, sentence):
    save_audio(tmp_path / "a.wav", torch.zeros(1, 8), 8000)
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(ValueError, match=sentence):
        save_audio(tmp_path / "a.wav", waveform, 8000)
    assert (tmp_path / "a.wav").read_bytes() == before


def test_saving_to_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"use the suffix \.wav"):
        save_audio(tmp_path / "a.xyz", torch.zeros(1, 8), 8000)


PEAK = """
import sys
from pathlib import Path
from Libraries.Sound.Audio import read_blocks
total = sum(block.shape[1] for block in read_blocks(sys.argv[1], 32000, 10.0))
peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]  # ru_maxrss inherits
print(total, peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_does_not_grow_with_the_length_of_the_file(tmp_path):
    peaks = []
    for minutes in (1, 15):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as target:
            for minute in range(minutes):
                target.write(music(60.0, 8000, seed=minute))
        run = [sys.executable, "-c", PEAK, str(path)]
        result = subprocess.run(
            run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
        )
        samples, kib = map(int, result.stdout.split())
        assert samples == minutes * 60 * 32000
        peaks.append(kib)
    assert peaks[1] - peaks[0] < 30 * 1024  # the longer file is 115 MB as float32 at 32 kHz
