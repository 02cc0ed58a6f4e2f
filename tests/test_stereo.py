"""Two channels through the representations: exact, of one size, silent where a file is mono."""

from dataclasses import asdict, replace

import pytest
import soundfile
import torch
from test_spectrogram import ALL_SMALL, SMALL, tones

from Libraries.Sound.Metrics import round_trip, round_trip_table, spectral_convergence
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Sound.Stereo import (
    channel_correlation,
    downmix,
    left_right,
    load_channels,
    mid_side,
    stereo_width,
    to_channels,
    width_by_octave,
    width_error,
)

STEREO = {name: replace(config, channels=2) for name, config in ALL_SMALL.items()}
EXACT = ("complex", "mdct")


def panned(config: SpectrogramConfig, clips: int = 2) -> torch.Tensor:
    """Two melodies, one a little to the left and one far to the right: (clips, 2, clip_samples)."""
    first, second = tones(config, clips), tones(config, clips + 1)[1:]
    gains = torch.tensor([[0.8, 0.6], [0.1, 0.9]])[:, None, :, None]
    return 0.6 * (gains[0] * first + gains[1] * second)


def test_mid_and_side_come_back_as_left_and_right():
    waveform = torch.rand(3, 2, 1000) * 2 - 1
    torch.testing.assert_close(left_right(mid_side(waveform)), waveform, atol=1e-6, rtol=0)
    assert mid_side(waveform).abs().max() <= 1


def test_mono_passes_through_every_conversion_untouched():
    waveform = torch.rand(3, 1, 1000)
    for convert in (mid_side, left_right, downmix):
        assert convert(waveform) is waveform


@pytest.mark.parametrize("config", STEREO.values(), ids=STEREO)
def test_mid_of_a_mono_file_is_bit_for_bit_its_mono_tensor_and_side_is_at_the_floor(config):
    waveform = tones(config)
    mono, own = Spectrogram(replace(config, channels=1)).encode_with_gain(waveform)
    stereo, gain = Spectrogram(config).encode_with_gain(waveform.expand(-1, 2, -1))
    C = mono.shape[1]
    assert stereo.shape == (2, 2 * C, *mono.shape[2:])
    assert torch.equal(stereo[:, :C], mono)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gain, own, strict=True))
    floor = 0 if config.representation in EXACT else -1
    assert torch.equal(stereo[:, C:], torch.full_like(mono, floor))


@pytest.mark.parametrize("config", STEREO.values(), ids=STEREO)
def test_a_silent_side_decodes_to_two_equal_channels(config):
    spectrogram = Spectrogram(config)
    decoded = spectrogram.decode(*spectrogram.encode_with_gain(tones(config).expand(-1, 2, -1)))
    assert torch.equal(decoded[:, 0], decoded[:, 1]) and decoded.abs().max() > 0.1


@pytest.mark.parametrize("value_range", ["minus_one_to_one", "zero_to_one", "unit_variance"])
@pytest.mark.parametrize("config", STEREO.values(), ids=STEREO)
def test_stereo_silence_gives_no_nan_and_stays_silent(config, value_range):
    spectrogram = Spectrogram(replace(config, value_range=value_range))
    x0, gain = spectrogram.encode_with_gain(torch.zeros(1, 2, config.clip_samples))
    assert x0.isfinite().all()
    assert spectrogram.decode(x0, gain).abs().max() < 1e-5


@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_in_mono_is_exact_in_stereo(name):
    config = STEREO[name]
    waveform, spectrogram = panned(config), Spectrogram(config)
    decoded = spectrogram.decode(*spectrogram.encode_with_gain(waveform))
    inside = slice(512, config.kept_samples - 512)
    error = (decoded - waveform[..., : config.kept_samples])[..., inside]
    assert error.square().mean() < 1e-5 * waveform.square().mean()


@pytest.mark.parametrize("config", STEREO.values(), ids=STEREO)
def test_one_gain_keeps_the_size_of_side_against_mid(config):
    waveform, spectrogram = panned(config), Spectrogram(config)
    decoded = spectrogram.decode(*spectrogram.encode_with_gain(waveform))
    width = stereo_width(waveform[..., : config.kept_samples])
    assert (stereo_width(decoded) - width).abs().max() < (0.1 if config.representation in EXACT else 1.5)


@pytest.mark.parametrize("name", ["bands", "magnitude", "mel"])
def test_side_loud_alone_sets_the_floor_of_both(name):
    config = STEREO[name]
    waveform = tones(config) * torch.tensor([1.0, -1.0])[:, None]  # side alone
    x0 = Spectrogram(config).encode(waveform)
    assert x0[:, 1].max() == 1 and (x0[:, 0] == -1).all()


def test_a_magnitude_does_not_know_left_from_right_and_a_signed_one_does():
    for name, config in STEREO.items():
        waveform, spectrogram = panned(config), Spectrogram(config)
        x0, swapped = spectrogram.encode(waveform), spectrogram.encode(waveform.flip(1))
        C = x0.shape[1] // 2
        torch.testing.assert_close(swapped[:, :C], x0[:, :C])
        torch.testing.assert_close(swapped[:, C:], -x0[:, C:] if name in EXACT else x0[:, C:])


@pytest.mark.parametrize("phase", ["pghi", "griffin_lim"])
def test_one_sound_on_the_right_is_not_heard_on_the_left(phase):
    config = replace(STEREO["bands"], phase=phase, griffin_lim_iterations=30)
    spectrogram = Spectrogram(config)
    waveform = tones(config, 1) * torch.tensor([0.2, 1.0])[:, None]
    left, right = spectrogram.decode(*spectrogram.encode_with_gain(waveform)).square().mean(2)[0]
    assert abs(10 * (left / right).log10()) < 3  # 14 dB to the right before, as much to the left else


def test_a_waveform_of_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"expected \(B, 2, 16000\): left and right of 1 s"):
        Spectrogram(replace(SMALL, channels=2)).encode(tones(SMALL))
    with pytest.raises(ValueError, match=r"expected \(B, 1, 16000\): one channel of 1 s"):
        Spectrogram(SMALL).encode(panned(SMALL))


def test_three_channels_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"channels=3 is unknown; choose one of 1, 2"):
        replace(SMALL, channels=3)


def test_settings_older_than_channels_are_mono():
    older = asdict(SMALL)
    del older["channels"]
    assert SpectrogramConfig(**older) == SMALL and SMALL.channels == 1


# Files


@pytest.mark.parametrize(("there", "wanted"), [(1, 1), (1, 2), (2, 1), (2, 2), (6, 2), (6, 1)])
def test_a_file_of_any_number_of_channels_becomes_those_wanted(tmp_path, there, wanted):
    samples = torch.rand(there, 2000) - 0.5
    soundfile.write(tmp_path / "a.wav", samples.T.numpy(), 8000, subtype="FLOAT")
    found = load_channels(tmp_path / "a.wav", wanted, 8000)
    expected = samples if there == wanted == 2 else samples.mean(0, keepdim=True).expand(wanted, -1)
    torch.testing.assert_close(found, expected)


def test_mono_in_two_channels_and_back_is_what_it_was():
    waveform = torch.rand(1, 100)
    assert torch.equal(to_channels(to_channels(waveform, 2), 1), waveform)


# Width and correlation


@pytest.mark.parametrize(
    ("right", "width", "correlation"),
    [(1.0, -40, 1), (-1.0, 40, -1), (0.0, 0, 0), (0.5, 20 * torch.tensor(1 / 3).log10().item(), 1)],
    ids=["mono", "out of phase", "left alone", "half as loud"],
)
def test_width_and_correlation_of_a_panned_sound_have_closed_forms(right, width, correlation):
    left = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    waveform = torch.stack([left, right * left], dim=1)
    assert stereo_width(waveform).item() == pytest.approx(width, abs=1e-4)
    assert channel_correlation(waveform).item() == pytest.approx(correlation, abs=1e-6)
    assert width_by_octave(waveform, 16_000).numpy() == pytest.approx(width, abs=1e-3)


def test_unrelated_channels_have_side_as_loud_as_mid_and_no_correlation():
    waveform = torch.randn(1, 2, 100_000, generator=torch.Generator().manual_seed(0))
    assert abs(stereo_width(waveform).item()) < 0.2 and abs(channel_correlation(waveform).item()) < 0.02


def test_width_is_measured_in_each_octave():
    time = torch.arange(32_000) / 16_000
    low, high = torch.sin(2 * torch.pi * 250 * time), torch.sin(2 * torch.pi * 2_000 * time)
    widths = width_by_octave(torch.stack([low + high, low - high])[None], 16_000)[0]
    assert len(widths) == 7 and widths[2] < -25 and widths[5] > 25  # 250 Hz in mid, 2 kHz in side


def test_the_error_of_the_width_is_that_of_side_in_the_octaves_that_are_heard():
    waveform = panned(SMALL)
    narrower = left_right(mid_side(waveform) * torch.tensor([1.0, 0.5])[:, None])
    error = width_error(waveform, narrower, SMALL.sample_rate, 8_000.0)
    torch.testing.assert_close(error, torch.full((2,), 6.0206, dtype=torch.float64), atol=0.01, rtol=0)


def test_two_channels_are_compared_as_their_mean():
    waveform = panned(SMALL)
    assert spectral_convergence(waveform, waveform.flip(1)).max() < 1e-6
    with pytest.raises(ValueError, match="expected"):
        spectral_convergence(waveform.repeat(1, 2, 1), waveform.repeat(1, 2, 1))


def test_round_trips_of_stereo_say_what_becomes_of_width_and_correlation():
    rows = {name: round_trip(Spectrogram(STEREO[name]), panned(STEREO[name])) for name in EXACT}
    rows["mono"] = round_trip(Spectrogram(ALL_SMALL["mdct"]), tones(SMALL))
    assert all(rows[name].width_error < 0.2 for name in EXACT)
    assert rows["mdct"].correlation[1] == pytest.approx(rows["mdct"].correlation[0], abs=0.01)
    assert rows["mono"].width_error is rows["mono"].correlation is None
    lines = round_trip_table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and lines[-1].endswith(" – | – |")


def test_silence_is_mono_and_not_nan():
    silence = torch.zeros(1, 2, 4096)
    assert stereo_width(silence) == -40 and (width_by_octave(silence, 16_000) == -40).all()
    assert width_error(silence, silence, 16_000, 8_000.0) == 0
    assert channel_correlation(silence) == 0
