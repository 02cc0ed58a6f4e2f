"""STFT against librosa, and phase from magnitude."""

import librosa
import numpy as np
import pytest
import torch

from Libraries.Sound.Metrics import spectral_convergence
from Libraries.Sound.PhaseRetrieval import (
    griffin_lim,
    heap_edges,
    integrate_differences,
    istft,
    pghi,
    random_phase,
    stft,
)

N_FFT, HOP = 512, 128
WINDOW = torch.hann_window(N_FFT)


def music(seconds: float = 1.0) -> torch.Tensor:
    """A decaying chord with an onset and a click: (1, L) at 16 kHz, L a multiple of the hop."""
    time = torch.arange(int(seconds * 16_000) // HOP * HOP) / 16_000
    since = time - 0.2
    chord = sum(torch.sin(2 * torch.pi * pitch * since) for pitch in (220, 277, 330, 660, 1_320))
    wave = torch.where(since > 0, torch.exp(-3 * since), 0) * chord / 5
    wave[int(0.6 * seconds * 16_000)] += 0.5
    return wave[None]


def magnitude_error(waveform: torch.Tensor, magnitude: torch.Tensor) -> float:
    """Inconsistency (Le Roux et al. 2010): how far the waveform's own magnitude is from the wanted one."""
    found = stft(waveform, WINDOW, N_FFT, HOP).abs()
    return ((found - magnitude).norm() / magnitude.norm()).item()


@pytest.mark.parametrize("win_length", [512, 400])
def test_stft_equals_librosa(win_length):
    ours = stft(music(), torch.hann_window(win_length), N_FFT, HOP)[0]
    theirs = librosa.stft(
        music()[0].numpy(), n_fft=N_FFT, hop_length=HOP, win_length=win_length, pad_mode="reflect"
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("win_length", "hop"), [(512, 128), (480, 288), (400, 300)])
def test_istft_undoes_stft(win_length, hop):
    waveform = music()[:, : 40 * hop]
    window = torch.hann_window(win_length)
    torch.testing.assert_close(
        istft(stft(waveform, window, 512, hop), window, hop), waveform, atol=1e-5, rtol=0
    )


def test_true_phase_is_a_fixed_point_of_griffin_lim():
    spectrum = stft(music(), WINDOW, N_FFT, HOP)
    for iterations in (0, 5):
        rebuilt = griffin_lim(spectrum.abs(), WINDOW, HOP, iterations, init_phase=spectrum.angle())
        torch.testing.assert_close(rebuilt, music(), atol=1e-4, rtol=0)


def test_griffin_lim_improves_with_iterations():
    magnitude = stft(music(), WINDOW, N_FFT, HOP).abs()
    errors = [magnitude_error(griffin_lim(magnitude, WINDOW, HOP, n), magnitude) for n in (0, 5, 50)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("iterations", [0, 3])
def test_pghi_beats_a_random_start(iterations):
    window = torch.hann_window(240)  # the origin's 15 ms windows every 9 ms
    magnitude = stft(music(), window, 240, 144).abs()
    random = griffin_lim(magnitude, window, 144, iterations)
    integrated = griffin_lim(magnitude, window, 144, iterations, init_phase=pghi(magnitude, 240, 144))
    wanted = stft(music()[:, : random.shape[1]], WINDOW, N_FFT, HOP).abs()  # a window that neither has seen
    assert magnitude_error(integrated, wanted) < 0.6 * magnitude_error(random, wanted)


def test_pghi_finds_the_frequency_of_a_sine():
    sine = torch.sin(2 * torch.pi * 1_010 * torch.arange(16_000) / 16_000)[None]
    phase = pghi(stft(sine, WINDOW, N_FFT, HOP).abs(), N_FFT, HOP)
    advance = phase[0, 31:34, 8:-8].diff(dim=-1)  # the sine's main lobe, away from the reflected ends
    error = torch.polar(torch.ones_like(advance), advance - 2 * torch.pi * 1_010 * HOP / 16_000).angle()
    assert error.abs().max() < 0.05  # radians a frame: 1 Hz; bins are 31 Hz apart


def test_pghi_places_a_click_where_it_was():
    click = torch.zeros(1, 16_000)
    click[0, 8_050] = 1
    magnitude = stft(click, WINDOW, N_FFT, HOP).abs()
    rebuilt = griffin_lim(magnitude, WINDOW, HOP, 0, init_phase=pghi(magnitude, N_FFT, HOP))
    assert abs(rebuilt.abs().argmax().item() - 8_050) <= 2
    assert rebuilt.abs().max() > 0.7


def noise(seconds: float = 1.0) -> torch.Tensor:
    return 0.1 * torch.randn(1, int(seconds * 16_000), generator=torch.Generator().manual_seed(3))


def glide(seconds: float = 1.0) -> torch.Tensor:
    time = torch.arange(int(seconds * 16_000)) / 16_000
    return torch.sin(2 * torch.pi * (200 * time + 3_000 * time**2))[None]


@pytest.mark.parametrize("make", [music, noise, glide], ids=lambda make: make.__name__)
@pytest.mark.parametrize(("win_length", "hop"), [(480, 288), (1024, 288), (512, 128)])
def test_true_differences_give_the_spectrogram_back(make, win_length, hop):
    waveform, window = make(), torch.hann_window(win_length)
    spectrum = stft(waveform, window, win_length, hop)
    true = spectrum.angle()
    turns = 2 * torch.pi * torch.randint(-3, 4, true.shape, generator=torch.Generator().manual_seed(0))
    d_time, d_freq = true.diff(dim=2) + turns[..., 1:], true.diff(dim=1) + turns[:, 1:]
    phase = integrate_differences(spectrum.abs(), d_time, d_freq)
    rebuilt = griffin_lim(spectrum.abs(), window, hop, 0, init_phase=phase)
    wanted = waveform[:, : rebuilt.shape[1]]
    assert spectral_convergence(wanted[None], rebuilt[None]).max() < 0.02


def test_differences_of_pghi_are_integrated_to_the_phase_of_pghi():
    magnitude = stft(music(), WINDOW, N_FFT, HOP).abs()
    log = magnitude.clamp(min=1e-5 * magnitude.max()).double().log()
    gamma = 0.25645 * N_FFT**2
    per_bin, per_frame = torch.gradient(log, dim=(1, 2))
    carrier = 2 * torch.pi * HOP / N_FFT * torch.arange(N_FFT // 2 + 1)[:, None]
    d_time = carrier + HOP * N_FFT / gamma * per_bin
    d_freq = -gamma / (HOP * N_FFT) * per_frame - torch.pi
    phase = integrate_differences(
        magnitude, (d_time[..., 1:] + d_time[..., :-1]) / 2, (d_freq[:, 1:] + d_freq[:, :-1]) / 2
    )
    turned = torch.polar(magnitude.square(), phase - pghi(magnitude, N_FFT, HOP)).sum()  # one constant
    assert turned.abs() > 0.9999 * magnitude.square().sum()


def test_the_heap_reaches_every_bin_of_a_connected_clip_over_one_difference():
    magnitude = stft(noise(), WINDOW, N_FFT, HOP).abs()
    along_time, along_freq = heap_edges(magnitude)
    assert along_time.sum() + along_freq.sum() == magnitude.numel() - 1
    apart = magnitude.clone()
    apart[:, :, 20] = 0  # two regions, each with a first bin of its own, and silence between them
    assert sum(edges.sum() for edges in heap_edges(apart)) == (apart > 0).sum() - 2


def test_differences_that_the_heap_does_not_use_do_not_matter():
    spectrum = stft(noise(), WINDOW, N_FFT, HOP)
    true = spectrum.angle().diff(dim=2), spectrum.angle().diff(dim=1)
    edges = heap_edges(spectrum.abs())
    wrong = [torch.where(used, part, 1.0) for part, used in zip(true, edges, strict=True)]
    assert torch.equal(
        integrate_differences(spectrum.abs(), *wrong), integrate_differences(spectrum.abs(), *true)
    )


def test_differences_that_do_not_belong_to_the_magnitude_are_refused():
    magnitude = torch.ones(1, 5, 7)
    with pytest.raises(ValueError, match=r"expected \(1, 5, 6\) along time and \(1, 4, 7\) along frequency"):
        integrate_differences(magnitude, torch.zeros(1, 5, 7), torch.zeros(1, 4, 7))


def test_clip_does_not_depend_on_its_batch_and_repeats():
    magnitude = stft(torch.cat([music(), 0.1 * music().flip(1)]), WINDOW, N_FFT, HOP).abs()
    both = pghi(magnitude, N_FFT, HOP)
    assert torch.equal(both[1:], pghi(magnitude[1:], N_FFT, HOP))
    assert torch.equal(both, pghi(magnitude, N_FFT, HOP))
    start = random_phase(257, 10, torch.Generator().manual_seed(1))
    assert not torch.equal(start, random_phase(257, 10))


def test_silence_has_a_phase():
    phase = pghi(torch.zeros(1, 257, 20), N_FFT, HOP)
    assert phase.isfinite().all() and phase.abs().max() <= torch.pi
    assert griffin_lim(torch.zeros(1, 257, 20), WINDOW, HOP, 3).abs().max() == 0
