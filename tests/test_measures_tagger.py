"""The tagger equals a forward pass in NumPy, its checkpoint is read byte by byte, it knows a piano."""

import struct

import librosa
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from benchmarks.convert_tagger import read_checkpoint
from Libraries.DemoMusic.Fonts import BUILT_IN, open_soundfont
from Libraries.DemoMusic.SoundFont import Note
from Libraries.Measures.Tagger import TAGS, WEIGHTS, hear, load_tagger, log_mel, patches

RATE = 16_000
PIANO, FLUTE = 1, 73  # General MIDI programs


@pytest.fixture(scope="module")
def tagger():
    return load_tagger()


def noise(seconds=3.0, clips=1):
    return 0.1 * torch.randn(clips, 1, int(seconds * RATE), generator=torch.Generator().manual_seed(0))


def play(program, bass=(60, 64, 65, 60)):
    """A melody of eight notes, over a bass if there is one, 3 s."""
    keys = (72, 76, 79, 77, 76, 74, 71, 72)
    notes = [Note(0.37 * i, 0.36, program, key, 90) for i, key in enumerate(keys)]
    notes += [Note(0.74 * i, 0.7, program, key, 70) for i, key in enumerate(bass)]
    wave = open_soundfont(BUILT_IN).play(notes, 3 * RATE, RATE)
    return torch.from_numpy(0.5 * wave / abs(wave).max())[None, None]


def numpy_tagger(mel, state):
    """The network as musicnn's own code states it, in NumPy and float64: mel (time, band)."""

    def norm(x, name):  # over the last axis
        mean, variance, gain, shift = (
            state[f"{name}.{part}"].astype(np.float64)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * gain + shift

    def conv(x, name, before, after):  # (time, band) -> (time, band, filter)
        kernel = state[f"{name}.conv.weight"].astype(np.float64)[:, 0]  # (filter, band, time)
        padded = np.pad(x, ((before, after), (0, 0)))
        views = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:0:-1])
        return np.maximum(
            np.einsum("tbij,fji->tbf", views, kernel, optimize=True) + state[f"{name}.conv.bias"], 0
        )

    def over_time(x, name):  # (time, channel) -> (time, 64)
        kernel = state[f"{name}.conv.weight"].astype(np.float64)  # (filter, channel, time)
        views = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((3, 3), (0, 0))), 7, axis=0)
        total = np.einsum("tcj,fcj->tf", views, kernel, optimize=True) + state[f"{name}.conv.bias"]
        return norm(np.maximum(total, 0), f"{name}.norm")

    x = norm(mel[..., None].astype(np.float64), "norm")[..., 0]
    padding = ((3, 3), (3, 3), (63, 64), (31, 32), (15, 16))  # "same" in TensorFlow
    front = [norm(conv(x, f"front.{i}", *padding[i]), f"front.{i}.norm").max(axis=1) for i in range(5)]
    front = np.concatenate(front, axis=1)
    first = over_time(front, "middle.0")
    second = over_time(first, "middle.1") + first
    third = over_time(second, "middle.2") + second
    layers = np.concatenate([front, first, second, third], axis=1)
    pooled = np.stack([layers.max(0), layers.mean(0)], axis=1).ravel()
    dense = norm(pooled[None], "pool_norm") @ state["dense.weight"].T.astype(np.float64) + state["dense.bias"]
    embedding = norm(np.maximum(dense, 0), "dense_norm")
    logits = embedding @ state["output.weight"].T.astype(np.float64) + state["output.bias"]
    return 1 / (1 + np.exp(-logits[0])), embedding[0], layers.mean(0)


def test_the_network_equals_a_forward_pass_in_numpy(tagger):
    mel = log_mel(play(PIANO))[..., :187]
    ours = [part[0].detach().numpy() for part in tagger(mel)]
    theirs = numpy_tagger(mel[0, 0].numpy().T, load_file(WEIGHTS))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_mel_spectrogram_is_librosas():
    wave = noise()
    power = librosa.feature.melspectrogram(
        y=wave[0, 0].numpy(), sr=RATE, n_fft=512, hop_length=256, n_mels=96, pad_mode="reflect"
    )
    np.testing.assert_allclose(log_mel(wave)[0, 0].numpy(), np.log10(1 + 1e4 * power), rtol=1e-4, atol=1e-4)


def test_an_instrument_is_tagged_as_itself(tagger):
    for wave, name in ((play(PIANO), "piano"), (play(FLUTE, bass=()), "flute")):
        assert TAGS[hear(tagger, wave, RATE).tags[0].argmax()] == name


def test_a_clip_is_heard_the_same_in_any_batch_and_nearly_at_another_rate(tagger):
    waves = torch.cat([play(PIANO), play(FLUTE)])
    heard = hear(tagger, waves, RATE, batch_size=1)
    torch.testing.assert_close(hear(tagger, waves, RATE), heard, rtol=1e-4, atol=1e-4)
    finer = torch.from_numpy(
        librosa.resample(waves.numpy(), orig_sr=RATE, target_sr=32_000, res_type="soxr_hq")
    )
    there = hear(tagger, finer, 32_000)
    assert torch.cosine_similarity(there.embedding, heard.embedding).min() > 0.99
    assert [part.shape[1] for part in heard] == [50, 200, 753]


def test_patches_go_from_the_start_to_the_end_and_short_clips_go_round():
    mel = torch.arange(400.0).expand(1, 1, 96, 400)
    cut = patches(mel)
    assert cut.shape == (1, 3, 1, 96, 187)
    assert (cut[0, 0, 0, 0, 0], cut[0, -1, 0, 0, -1]) == (0, 399)
    assert patches(mel[..., :100])[0, 0, 0, 0].tolist() == [*range(100), *range(87)]


@pytest.mark.parametrize("shape", [(1, RATE), (1, 2, RATE), (1, 1, 100)])
def test_what_is_no_batch_of_mono_clips_is_refused(tagger, shape):
    with pytest.raises(ValueError, match=r"expected \(B, 1, L\)"):
        hear(tagger, torch.zeros(shape), RATE)


def test_missing_weights_say_what_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"convert_tagger\.py"):
        load_tagger(tmp_path / "none.safetensors")


def varint(value):
    head, rest = value & 127, value >> 7
    return bytes([head | 128]) + varint(rest) if rest else bytes([head])


def block(entries):
    """A LevelDB block whose keys leave out what they share with the key before."""
    body, before = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b),
            min(len(key), len(before)),
        )
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return body + struct.pack("<II", 0, 1)


def bundle(tensors, compressed=0):
    """A checkpoint of TensorFlow: index and data."""
    data, entries = b"", [(b"", b"\x08\x01")]
    for name, array in sorted(tensors.items()):
        sizes = b"".join(b"\x12" + varint(len(s)) + s for s in (b"\x08" + varint(n) for n in array.shape))
        raw = array.astype("<f4").tobytes()
        place = b"\x20" + varint(len(data)) + b"\x28" + varint(len(raw))
        entries.append((name.encode(), b"\x08\x01\x12" + varint(len(sizes)) + sizes + place + b"\x35abcd"))
        data += raw
    index, handles = b"", []
    for content in (block(entries), block([])):
        handles.append(varint(len(index)) + varint(len(content)))
        index += content + bytes([compressed]) + b"crc!"
    top = block([(b"z", handles[0])])
    footer = handles[1] + varint(len(index)) + varint(len(top))
    index += top + b"\0crc!" + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    return index, data


def test_a_checkpoint_is_read_with_keys_that_share_prefixes():
    rng = np.random.default_rng(0)
    tensors = {
        "dense/kernel": rng.normal(size=(30, 5)), "dense/bias": rng.normal(size=5),
        "dense/bias/Adam": rng.normal(size=5), "beta1_power": np.array(0.9),
    }  # fmt: skip
    found = read_checkpoint(*bundle(tensors))
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32))


def test_a_compressed_or_foreign_checkpoint_is_refused():
    index, data = bundle({"a": np.zeros(2)}, compressed=1)
    with pytest.raises(ValueError, match="compressed"):
        read_checkpoint(index, data)
    with pytest.raises(ValueError, match="LevelDB"):
        read_checkpoint(index[:-1] + b"x", data)
