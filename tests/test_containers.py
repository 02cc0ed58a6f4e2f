"""Containers and video files, by PyAV where it is installed: the whole track, any excerpt, what is wrong."""

import contextlib
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_audio import RATE, music
from test_dataset import CONFIG, SPECTROGRAM

from Libraries.Dataset.SpectrogramDataset import build_dataset
from Libraries.Sound.Audio import AudioError, audio_info, find_audio_files, load_audio
from Libraries.Sound.Containers import CONTAINER_SUFFIXES

try:
    import av
except ImportError:
    av = None
with_av = pytest.mark.skipif(av is None, reason="needs PyAV: pip install av")

TRACKS = {  # encoder, and the error that it may make
    "a.m4a": ("aac", 0.1), "b.m4a": ("alac", 1e-4), "a.aac": ("aac", 0.1), "a.wma": ("wmav2", 0.1),
    "a.wv": ("wavpack", 1e-4), "a.mka": ("libopus", 0.1), "a.webm": ("libopus", 0.1), "a.mp4": ("aac", 0.1),
    "a.MKV": ("flac", 1e-4), "a.mov": ("pcm_s16le", 1e-4), "a.avi": ("mp2", 0.1), "a.mpg": ("mp2", 0.1),
}  # fmt: skip
CUTTABLE = ("a.mov", "a.MKV", "a.wma", "a.wv", "fast.m4a")


def write_track(path: Path, samples: np.ndarray, encoder: str, picture: bool = False, **options) -> Path:
    """Encode (n, channels) as the sound of a container, with a picture track before it if wanted."""
    layout, rate = ("mono", "stereo")[samples.shape[1] - 1], 48_000 if encoder == "libopus" else RATE
    with av.open(str(path), "w", options=options) as container:
        if picture:
            video = container.add_stream("mpeg4", rate=10)
            video.width = video.height = 32
        track = container.add_stream(encoder, rate=rate, layout=layout)
        track.bit_rate = 192_000
        if encoder == "wavpack":
            track.format = "s16p"  # its first choice has 8 bits
        if picture:
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux([*video.encode(frame), *video.encode(None)])
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1).astype(np.float32), "flt", layout)
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for packet in (*track.encode(frame), *track.encode(None)):
            container.mux(packet)
    return path


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, at the delay between both that an encoder may have made, but for the end."""
    best = np.inf
    for delay in range(-2048, 2049) if len(got) != len(want) else (0,):
        pair = got[max(0, delay) :][:3000], want[max(0, -delay) :][:3000]
        if (mean := np.abs(pair[0] - pair[1]).mean()) < best:
            best, found = mean, delay
    ours, theirs = got[max(0, found) :], want[max(0, -found) :]
    size = min(len(ours), len(theirs)) - 4000
    return np.abs(ours[:size] - theirs[:size]).max()


@with_av
@pytest.mark.parametrize("name", TRACKS)
def test_the_sound_of_a_container_is_read_whole(tmp_path, name):
    encoder, error = TRACKS[name]
    samples = music(1.5, channels=2)
    path = write_track(tmp_path / name, samples, encoder)
    info = audio_info(path)
    assert (info.channels, info.sample_rate) == (2, 48_000 if encoder == "libopus" else RATE)
    assert info.seconds is None or info.seconds == pytest.approx(1.5, abs=0.15)
    got = load_audio(path, RATE, mono=False).numpy().T
    assert (
        abs(len(got) - len(samples)) < 4000
    )  # FFmpeg's encoders begin a block early, or leave the last one out
    assert distance(got, samples) < error


@with_av
@pytest.mark.parametrize("name", ["a.m4a", "b.m4a", "a.mka", "a.wma", "a.aac"])
@pytest.mark.parametrize("offset, duration", [(0.3, 0.5), (2.23457, 0.3), (3.5, 9.0)])
def test_an_excerpt_equals_that_stretch_of_the_whole(tmp_path, name, offset, duration):
    path = write_track(tmp_path / name, music(4.0), TRACKS[name][0])
    whole, first = load_audio(path, 32000), round(offset * 32000)
    got = load_audio(path, 32000, offset, duration)
    torch.testing.assert_close(got, whole[:, first : first + round(duration * 32000)], atol=1e-5, rtol=0)


@with_av
def test_of_a_video_the_sound_is_read_and_without_any_it_says_so(tmp_path):
    samples = music(1.0)
    path = write_track(tmp_path / "a.mp4", samples, "alac", picture=True)
    np.testing.assert_allclose(load_audio(path, RATE)[0, : len(samples)], samples[:, 0], atol=1e-4)
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*video.encode(frame), *video.encode(None)])
    with pytest.raises(AudioError, match=r"silent\.mp4 has no sound$"):
        audio_info(tmp_path / "silent.mp4")


@with_av
@pytest.mark.parametrize("name", CUTTABLE)
def test_a_container_that_is_cut_short_is_noticed(tmp_path, name):
    encoder = {**TRACKS, "fast.m4a": ("aac", 0)}[name][0]
    options = {"movflags": "faststart"} if name.startswith("fast") else {}
    path = write_track(tmp_path / name, music(4.0), encoder, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(AudioError, match=r"is truncated|is damaged|not audio, or its header"):
        load_audio(path, RATE)


@with_av
def test_a_mutated_container_is_read_or_refused_in_a_sentence(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from mutated_bytes import mutate

    contents = {}
    for name in ("a.m4a", "a.wma", "a.mka", "a.wv", "a.aac"):
        contents[name] = write_track(tmp_path / name, music(0.3), TRACKS[name][0]).read_bytes()
    for number in range(100):
        name = list(contents)[number % len(contents)]
        (tmp_path / name).write_bytes(
            mutate(contents[name], list(contents.values()), np.random.default_rng(number))
        )
        with contextlib.suppress(AudioError):
            load_audio(tmp_path / name, RATE)
    assert capfd.readouterr().err == ""


@with_av
def test_a_playlist_under_another_name_is_not_followed(tmp_path):
    write_track(tmp_path / "secret.aac", music(1.0), "aac")
    (tmp_path / "a.m4a").write_text("#EXTM3U\n#EXTINF:1,\nsecret.aac\n#EXT-X-ENDLIST\n")
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile '{tmp_path / 'secret.aac'}'\n")
    for name in ("a.m4a", "b.mp4"):
        with pytest.raises(AudioError, match="is not audio"):
            audio_info(tmp_path / name)


@with_av
def test_names_that_are_not_utf8_are_read(tmp_path):
    path = write_track(tmp_path / "a.m4a", music(0.5), "aac").rename(tmp_path / "odd\udcff.m4a")
    assert load_audio(path, RATE).shape[1] >= RATE // 2


@with_av
def test_a_dataset_is_built_of_a_folder_of_containers(tmp_path):
    (tmp_path / "music").mkdir()
    for name in ("a.m4a", "a.wma", "a.mka"):
        write_track(tmp_path / "music" / f"{name[2:]}{name}", music(3.0), TRACKS[name][0])
    report = build_dataset(tmp_path / "music", tmp_path / "out", SPECTROGRAM, CONFIG)
    assert report.files_read == 3 and not report.skipped


def test_without_pyav_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for suffix in sorted(CONTAINER_SUFFIXES):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"something")
        with pytest.raises(AudioError, match=rf"a\{suffix} needs PyAV, .* `pip install av`, or convert it"):
            audio_info(path)
    assert len(find_audio_files(tmp_path)) == len(CONTAINER_SUFFIXES)  # found, so that they are reported
