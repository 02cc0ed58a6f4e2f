"""Waveform <-> model tensor: shapes, librosa, round trips, normalisation, impossible settings."""

from dataclasses import replace

import librosa
import numpy as np
import pytest
import torch

import Conf as conf
from Libraries.Sound.FilterBanks import (
    band_centres,
    band_matrix,
    mdct_matrix,
    mel_matrix,
    nonnegative_inverse,
)
from Libraries.Sound.Spectrogram import Gain, Spectrogram, typical_gain
from Libraries.Sound.SpectrogramConfig import SIGNED, SpectrogramConfig

ORIGIN = replace(conf.ORIGIN.spectrogram, phase="pghi", band_inverse="pinv", griffin_lim_iterations=0)
BANDS = replace(
    ORIGIN,
    representation="bands",
    n_fft=1024,
    win_length=1024,
    max_frequency=14_900.0,
    griffin_lim_iterations=10,
)
SMALL = replace(
    BANDS,
    sample_rate=16_000,
    clip_seconds=1.0,
    n_fft=512,
    win_length=512,
    hop_length=128,
    n_bands=64,
    narrow_frequency=1_000.0,
    max_frequency=7_500.0,
)
SMALL_MAGNITUDE = replace(SMALL, representation="magnitude", max_frequency=8_000.0)
SMALL_COMPLEX = replace(SMALL_MAGNITUDE, representation="complex")
SMALL_MDCT = replace(SMALL_MAGNITUDE, representation="mdct", compression=0.5)
SMALL_MEL = replace(SMALL, representation="mel", band_inverse="nnls")
ALL_SMALL = {
    "magnitude": SMALL_MAGNITUDE,
    "linear magnitude": replace(SMALL_MAGNITUDE, scale="linear"),
    "bands": SMALL,
    "mel": SMALL_MEL,
    "complex": SMALL_COMPLEX,
    "mdct": SMALL_MDCT,
}


def tones(config: SpectrogramConfig, clips: int = 2) -> torch.Tensor:
    """Plucked harmonic tones, another melody for every clip: (clips, 1, clip_samples)."""
    time = torch.arange(config.clip_samples) / config.sample_rate
    waves = []
    for clip in range(clips):
        wave = torch.zeros_like(time)
        for note in range(4):
            since = time - note * config.clip_seconds / 4
            pluck = torch.where(since > 0, torch.exp(-4 * since), 0) * (since / 0.005).clamp(0, 1)
            pitch = 220 * 2 ** ((3 * clip + 5 * note) / 12)
            harmonics = (torch.sin(2 * torch.pi * pitch * h * since) / h for h in range(1, 9))
            wave += pluck * sum(harmonics)
        waves.append(0.5 * wave / wave.abs().max())
    return torch.stack(waves)[:, None]


def convergence(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    """Relative magnitude error at a window that no transform here uses."""
    spectra = [
        torch.stft(wave[:, 0], 700, 175, window=torch.hann_window(700), return_complex=True).abs()
        for wave in (reference, estimate)
    ]
    return ((spectra[0] - spectra[1]).norm() / spectra[0].norm()).item()


def round_trip(config: SpectrogramConfig, waveform: torch.Tensor) -> torch.Tensor:
    spectrogram = Spectrogram(config)
    return spectrogram.decode(*spectrogram.encode_with_gain(waveform))


# Shapes


def test_origin_keeps_224_bins_and_416_frames():
    assert ORIGIN.n_freqs == 241
    assert ORIGIN.shape == (1, 224, 416)
    assert np.prod(ORIGIN.shape) == 93_184


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (BANDS, (1, 224, 416)),
        (replace(ORIGIN, representation="complex"), (2, 224, 416)),
        (replace(ORIGIN, representation="mdct", max_frequency=12_450.0), (1, 224, 416)),
        (replace(BANDS, representation="mel", n_bands=128), (1, 128, 416)),
        (replace(BANDS, representation="magnitude", hop_length=512, size_multiple=1), (1, 477, 251)),
        (SMALL, (1, 64, 96)),
    ],
)
def test_shape_is_what_encode_returns(config, shape):
    waveform = torch.zeros(1, 1, config.clip_samples)
    assert config.shape == shape
    assert Spectrogram(config).encode(waveform).shape == (1, *shape)


@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_decode_returns_the_kept_samples_in_place(config):
    waveform = tones(config)
    decoded = round_trip(config, waveform)
    assert decoded.shape == (2, 1, config.kept_samples)
    assert decoded.dtype == torch.float32
    envelopes = [
        wave.abs().unfold(-1, 800, 800).mean(-1) for wave in (waveform[..., :11_200], decoded[..., :11_200])
    ]
    assert torch.corrcoef(torch.stack(envelopes).flatten(1))[0, 1] > 0.95


# Agreement with librosa


def test_magnitude_equals_librosa():
    config = replace(SMALL_MAGNITUDE, scale="linear", win_length=400)
    waveform = tones(config, clips=1)
    ours = (
        Spectrogram(config).features(waveform)[0, 0] * 100
    )  # a periodic Hann window sums to half its length
    theirs = np.abs(
        librosa.stft(waveform[0, 0].numpy(), n_fft=512, hop_length=128, win_length=400, pad_mode="reflect")
    )
    np.testing.assert_allclose(ours, theirs[:256, :96], atol=1e-4)


def test_mel_equals_librosa():
    config = replace(SMALL_MEL, scale="linear")
    waveform = tones(config, clips=1)
    ours = Spectrogram(config).features(waveform)[0, 0] * 128
    theirs = librosa.feature.melspectrogram(
        y=waveform[0, 0].numpy(),
        sr=16_000,
        n_fft=512,
        hop_length=128,
        power=1,
        n_mels=64,
        fmax=7_500,
        pad_mode="reflect",
    )
    np.testing.assert_allclose(ours, theirs[:, :96], atol=1e-4)


def test_full_scale_sine_is_zero_decibels():
    sine = torch.sin(2 * torch.pi * 1_000 / 16_000 * torch.arange(16_000))[None, None]
    assert Spectrogram(SMALL_MAGNITUDE).features(sine)[..., 10:-10].max().item() == pytest.approx(0, abs=0.01)


# Round trips


@pytest.mark.parametrize("config", [SMALL_COMPLEX, SMALL_MDCT], ids=["complex", "mdct"])
def test_complex_and_mdct_are_exact_in_the_kept_band(config):
    waveform = tones(config)  # harmonics end at 5 kHz, the kept band at 8 kHz
    assert config.kept_frequency > 7_900
    torch.testing.assert_close(
        round_trip(config, waveform), waveform[..., : config.kept_samples], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "bound"), [("magnitude", 0.15), ("linear magnitude", 0.15), ("bands", 0.3), ("mel", 0.3)]
)
def test_magnitudes_come_back_within_a_bound(name, bound):
    config = ALL_SMALL[name]
    waveform = tones(config)
    assert convergence(waveform[..., : config.kept_samples], round_trip(config, waveform)) < bound


def test_bands_at_full_size_beat_the_origin():
    waveform = tones(BANDS, clips=1)
    kept = waveform[..., : BANDS.kept_samples]
    bands, origin = (convergence(kept, round_trip(config, waveform)) for config in (BANDS, ORIGIN))
    assert bands < 0.2
    assert bands < origin


def test_griffin_lim_decodes_from_a_random_start():
    config = replace(SMALL_MAGNITUDE, phase="griffin_lim", griffin_lim_iterations=30)
    waveform = tones(config)
    assert convergence(waveform[..., : config.kept_samples], round_trip(config, waveform)) < 0.2


@pytest.mark.parametrize("normalisation", ["per_sample", "dataset"])
@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_quiet_clip_comes_back_quiet(config, normalisation):
    config = replace(config, normalisation=normalisation, db_range=100.0)
    loud = tones(config)
    waveform = torch.cat([loud, 0.01 * loud])
    spectrogram = Spectrogram(config)
    spectrogram = Spectrogram(config, spectrogram.dataset_gain([spectrogram.features(waveform)]))
    decoded = spectrogram.decode(*spectrogram.encode_with_gain(waveform))
    ratio = decoded[2:].std() / decoded[:2].std()
    assert ratio.item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("value_range", ["minus_one_to_one", "zero_to_one", "unit_variance"])
@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_silence_gives_no_nan_and_stays_silent(config, value_range):
    config = replace(config, value_range=value_range)
    spectrogram = Spectrogram(config)
    x0, gain = spectrogram.encode_with_gain(torch.zeros(1, 1, config.clip_samples))
    assert x0.isfinite().all() and all(value.isfinite().all() for value in gain)
    assert spectrogram.decode(x0, gain).abs().max() == 0


@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_clip_does_not_depend_on_its_batch(config):
    spectrogram, waveform = Spectrogram(config), tones(config, clips=3)
    x0, gain = spectrogram.encode_with_gain(waveform)
    alone, gain_alone = spectrogram.encode_with_gain(waveform[1:2])
    torch.testing.assert_close(x0[1:2], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(gain.offset[1:2], gain_alone.offset)
    of_one = Gain(*(value[1:2] for value in gain))
    decoded = spectrogram.decode(x0, gain)[1:2]
    torch.testing.assert_close(decoded, spectrogram.decode(x0[1:2], of_one), atol=1e-3, rtol=0)


# Normalisation


@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
@pytest.mark.parametrize(("value_range", "low"), [("minus_one_to_one", -1), ("zero_to_one", 0)])
def test_every_clip_fills_its_value_range(config, value_range, low):
    x0 = Spectrogram(replace(config, value_range=value_range)).encode(tones(config)).flatten(1)
    assert x0.min() >= low and x0.max() <= 1
    if config.representation in SIGNED:  # symmetric, so that zero stays in the middle
        extreme = (x0 - (1 + low) / 2).abs().amax(1)
        torch.testing.assert_close(extreme, torch.full((2,), (1 - low) / 2), atol=1e-6, rtol=0)
    else:
        torch.testing.assert_close(x0.amax(1), torch.ones(2), atol=1e-6, rtol=0)
        torch.testing.assert_close(x0.amin(1), torch.full((2,), float(low)), atol=1e-6, rtol=0)


def test_decibels_span_80_below_the_loudest():
    spectrogram = Spectrogram(SMALL)
    _, gain = spectrogram.encode_with_gain(tones(SMALL))
    torch.testing.assert_close(gain.scale, torch.full((2,), 40.0))
    torch.testing.assert_close(gain.offset, spectrogram.features(tones(SMALL)).amax((1, 2, 3)) - 40)


@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_unit_variance_has_mean_zero_and_variance_one(config):
    x0 = Spectrogram(replace(config, value_range="unit_variance")).encode(tones(config)).flatten(1)
    torch.testing.assert_close(x0.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(x0.std(1), torch.ones(2), atol=1e-4, rtol=0)


def test_dataset_gain_does_not_depend_on_batches_and_holds_for_the_whole_set():
    config = replace(SMALL_COMPLEX, normalisation="dataset", value_range="unit_variance")
    spectrogram, waveform = Spectrogram(config), tones(SMALL_COMPLEX, clips=4)
    features = spectrogram.features(waveform)
    at_once, in_parts = spectrogram.dataset_gain([features]), spectrogram.dataset_gain(features.split(1))
    torch.testing.assert_close(at_once, in_parts)
    x0 = Spectrogram(config, at_once).encode(waveform)
    assert x0.mean().abs() < 1e-4 and abs(x0.std() - 1) < 1e-4


def test_dataset_normalisation_requires_the_gain():
    spectrogram = Spectrogram(replace(SMALL, normalisation="dataset"))
    with pytest.raises(ValueError, match="normalisation='dataset' needs a gain"):
        spectrogram.encode(tones(SMALL))


def test_generated_tensor_gets_the_typical_level():
    spectrogram = Spectrogram(SMALL)
    x0, gain = spectrogram.encode_with_gain(tones(SMALL, clips=3))
    with pytest.raises(ValueError, match="needs a gain"):
        spectrogram.decode(x0)
    typical = typical_gain(gain)
    assert typical.offset.tolist() == [gain.offset.median().item()]
    torch.testing.assert_close(Spectrogram(SMALL, typical).decode(x0), spectrogram.decode(x0, typical))


def test_value_outside_its_range_counts_as_the_range_end():
    spectrogram = Spectrogram(SMALL)
    x0, gain = spectrogram.encode_with_gain(tones(SMALL))
    overshoot = torch.where(x0 > 0, x0 + 0.5, x0 - 0.5)
    torch.testing.assert_close(
        spectrogram.decode(overshoot, gain), spectrogram.decode(overshoot.clamp(-1, 1), gain)
    )


def test_dataset_without_clips_has_no_gain():
    with pytest.raises(ValueError, match="at least one batch"):
        Spectrogram(SMALL).dataset_gain([])


def test_gain_travels_with_the_state():
    spectrogram = Spectrogram(SMALL, Gain(torch.tensor([-50.0]), torch.tensor([40.0])))
    assert set(spectrogram.state_dict()) == {"gain_offset", "gain_scale"}


@pytest.mark.parametrize("value_range", ["minus_one_to_one", "zero_to_one", "unit_variance"])
@pytest.mark.parametrize("normalisation", ["per_sample", "dataset"])
def test_value_at_the_floor_inverts_to_exactly_zero(value_range, normalisation):
    config = replace(SMALL_MAGNITUDE, value_range=value_range, normalisation=normalisation)
    waveform = tones(config)
    waveform[..., 8_000:] = 0
    spectrogram = Spectrogram(config)
    spectrogram = Spectrogram(config, spectrogram.dataset_gain([spectrogram.features(waveform)]))
    x0, gain = spectrogram.encode_with_gain(waveform)
    stored = x0.half()  # as in a dataset on disk
    assert spectrogram.decode(stored, gain)[..., 9_000:].abs().max() == 0


# Rows


@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_rising_sine_climbs_the_rows(config):
    time = torch.arange(config.clip_samples) / config.sample_rate
    pitches = torch.tensor([200.0, 700.0, 1_500.0, 3_000.0, 6_000.0])
    sines = torch.sin(2 * torch.pi * pitches[:, None] * time)[:, None]
    rows = Spectrogram(config).features(sines)
    level = rows.norm(dim=1) if config.representation in SIGNED else rows[:, 0]
    loudest = level[..., 10:-10].mean(-1).argmax(1)
    assert (loudest.diff() > 0).all()
    assert (config.row_frequencies[loudest] / pitches.numpy()).tolist() == pytest.approx([1] * 5, rel=0.1)


def test_rising_sweep_climbs_through_time():
    time = torch.arange(SMALL.clip_samples) / SMALL.sample_rate
    sweep = torch.sin(2 * torch.pi * (200 * time + 3_000 * time**2))[None, None]
    loudest = Spectrogram(SMALL).encode(sweep)[0, 0, :, 2:].argmax(0)
    assert (loudest.diff() >= 0).all() and loudest[-1] > loudest[0] + 30


@pytest.mark.parametrize(
    ("n_bands", "n_freqs", "narrow_bin", "last_bin"),
    [(224, 513, 128, 476), (64, 257, 32, 240), (96, 513, 64, 384)],
)
def test_bands_have_full_rank_and_rows_that_sum_to_one(n_bands, n_freqs, narrow_bin, last_bin):
    matrix = band_matrix(n_bands, n_freqs, narrow_bin, last_bin)
    assert torch.linalg.matrix_rank(matrix) == n_bands
    torch.testing.assert_close(matrix.sum(1), torch.ones(n_bands, dtype=torch.float64))
    torch.testing.assert_close(matrix[:narrow_bin, :narrow_bin], torch.eye(narrow_bin, dtype=torch.float64))
    assert matrix[:, last_bin + 1 :].abs().max() == 0
    widths = np.diff(band_centres(n_bands, narrow_bin, last_bin))
    assert widths.min() == 1 and widths[-1] == widths.max()


@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_row_frequencies_rise_and_end_in_the_kept_band(config):
    frequencies = config.row_frequencies
    assert frequencies.shape == (config.n_rows,)
    assert (np.diff(frequencies) > 0).all()
    assert config.kept_frequency == frequencies[-1] <= config.max_frequency


def test_mel_bank_of_that_size_is_deficient():
    assert torch.linalg.matrix_rank(mel_matrix(224, 1024, 32_000, 14_900.0)) == 184


def test_empty_mel_rows_are_logged_and_stay_finite(caplog):
    config = replace(SMALL_MEL, n_bands=192)
    with caplog.at_level("WARNING", logger="MA_DDPM"):
        spectrogram = Spectrogram(config)
    assert "mel bands are empty at n_fft 512" in caplog.text
    assert spectrogram.encode(tones(config)).isfinite().all()


def test_mdct_is_an_orthogonal_lapped_transform():
    matrix = mdct_matrix(16)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16, dtype=torch.float64))
    overlap = matrix[:, :16] @ matrix[:, 16:].T
    torch.testing.assert_close(overlap, torch.zeros_like(overlap), atol=1e-12, rtol=0)


def test_nonnegative_inverse_is_nearer_than_the_clamped_pseudo_inverse():
    matrix = band_matrix(64, 257, 16, 240).float()
    truth = torch.rand(2, 257, 5, generator=torch.Generator().manual_seed(0)) ** 8
    target = matrix @ truth
    target[:, :4] = 0
    start = (torch.linalg.pinv(matrix) @ target).clamp(min=0)
    found = nonnegative_inverse(matrix, target, start, iterations=20)
    assert found.min() >= 0
    assert found[:, :4].max() == 0 and found[:, 241:].max() == 0
    assert (matrix @ found - target).norm() < 0.1 * (matrix @ start - target).norm()


# What is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"representation": "wavelet"},
            "representation='wavelet' is unknown; choose one of magnitude, bands",
        ),
        ({"scale": "log"}, "scale='log' is unknown"),
        ({"normalisation": "none"}, "normalisation='none' is unknown"),
        ({"value_range": "sigmoid"}, "value_range='sigmoid' is unknown"),
        ({"phase": "vocos"}, "choose one of pghi, griffin_lim, learned"),
        ({"band_inverse": "inverse"}, "band_inverse='inverse' is unknown"),
        ({"griffin_lim_iterations": -1}, "griffin_lim_iterations=-1 must be at least 0"),
        ({"hop_length": 0}, "hop_length=0 must be greater than 0"),
        ({"db_range": float("nan")}, "db_range=nan must be greater than 0"),
        ({"compression": 2.0}, "compression=2.0 must be at most 1"),
        ({"n_fft": 511, "win_length": 511}, "n_fft=511 must be even"),
        ({"win_length": 1024}, "win_length=1024 must be at most n_fft=512"),
        ({"hop_length": 400}, "hop_length=400 must be at most 384"),
        ({"max_frequency": 9_000.0}, "max_frequency=9000.0 must be at most half the sample rate, 8000.0 Hz"),
        (
            {"representation": "magnitude", "max_frequency": 500.0},
            "max_frequency=500.0 must be higher: .* size_multiple=32",
        ),
        ({"n_bands": 65}, "n_bands=65 must be a multiple of size_multiple=32"),
        ({"n_bands": 32}, "n_bands=32 is impossible .* allowed are 34 to 241 bands"),
        ({"n_bands": 224}, "take fewer bands or raise narrow_frequency"),
        ({"clip_seconds": 0.2}, "clip_seconds=0.2 must be at least 0.248 s"),
        (
            {"size_multiple": 1, "clip_seconds": 0.01, "hop_length": 64},
            "clip_seconds=0.01 must be longer than 0.016",
        ),
    ],
)
def test_impossible_setting_is_named_with_what_is_allowed(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, **changes)


@pytest.mark.parametrize("shape", [(1, 15_999), (16_000,), (1, 2, 16_000), (1, 1, 15_999), (1, 1, 16_001)])
def test_waveform_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 1, 16000\): one channel of 1 s at 16000 Hz"):
        Spectrogram(SMALL).encode(torch.zeros(shape))


@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
@pytest.mark.parametrize("seconds", [0.5, 2.1])
def test_tensor_of_any_length_decodes_like_a_clip_of_that_length(config, seconds):
    other = replace(config, clip_seconds=seconds)
    x0, gain = Spectrogram(other).encode_with_gain(tones(other))
    decoded = Spectrogram(config).decode(x0, gain, any_length=True)
    assert decoded.shape == (2, 1, (x0.shape[-1] - 1) * config.hop_length)
    assert torch.equal(decoded, Spectrogram(other).decode(x0, gain))


@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_fewest_frames_decode_and_fewer_are_refused(config):
    fewest = 2 if config.representation == "mdct" else 4
    gain, x0 = Gain(torch.zeros(1), torch.ones(1)), torch.zeros(1, *config.shape)
    decoded = Spectrogram(config).decode(x0[..., :fewest], gain, any_length=True)
    assert decoded.shape == (1, 1, (fewest - 1) * 128)
    with pytest.raises(ValueError, match=f"{fewest - 1} frames; decoding needs {fewest} or more"):
        Spectrogram(config).decode(x0[..., : fewest - 1], gain, any_length=True)


@pytest.mark.parametrize("shape", [(64, 96), (1, 1, 64, 95), (1, 2, 64, 96)])
def test_tensor_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, C, F, T\) with \(1, 64, 96\)"):
        Spectrogram(SMALL).decode(torch.zeros(shape))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("config", ALL_SMALL.values(), ids=ALL_SMALL)
def test_device_does_not_matter(config):
    spectrogram, waveform = Spectrogram(config), tones(config)
    x0 = spectrogram.encode(waveform)
    on_gpu, gain_gpu = spectrogram.cuda().encode_with_gain(waveform.cuda())
    torch.testing.assert_close(on_gpu.cpu(), x0, atol=1e-3, rtol=0)
    decoded = spectrogram.decode(on_gpu, gain_gpu)
    assert decoded.is_cuda
    assert convergence(waveform[..., : config.kept_samples], decoded.cpu()) < 0.4
