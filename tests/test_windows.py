"""One denoiser of many windows: what it leaves alone, how it blends, how near long samples are to exact."""

import pytest
import torch
from test_diffusion import make_schedule
from test_editing import Correlated, autoregressive
from test_samplers import gaussian_denoiser, make_config, wavy_denoiser

from Libraries.Diffusion import PREDICTION_TYPES, Parameterisation
from Libraries.Sampling.Guidance import with_labels
from Libraries.Sampling.Loop import sample
from Libraries.Sampling.Windows import over_windows, window_starts
from Libraries.Utils import SampleNoise


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("window", "n_frames", "overlap"), [(6, 6, 1), (6, 7, 5), (6, 20, 2), (16, 100, 8)])
def test_windows_cover_every_frame_and_share_at_least_the_overlap(window, n_frames, overlap, circular):
    starts = window_starts(window, n_frames, overlap, circular=circular)
    covered = {(start + i) % n_frames for start in starts for i in range(window)}
    assert covered == set(range(n_frames)) and starts == sorted(starts)
    ends = [*starts[1:], n_frames] if circular else starts[1:]
    assert all(after - before <= window - overlap for before, after in zip(starts, ends, strict=False))
    assert circular or starts[-1] == n_frames - window


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_windows_of_a_denoiser_that_looks_at_one_place_change_nothing(prediction_type):
    schedule, x_t = make_schedule(prediction_type=prediction_type), SampleNoise([1, 2])((1, 4, 21))
    denoiser, t = gaussian_denoiser(schedule, 0.3, 0.4), torch.tensor([100, 600])
    wanted = denoiser(x_t, t)
    for circular in (False, True):
        long = over_windows(denoiser, 6, 21, 2, circular=circular)
        assert torch.allclose(long(x_t, t), wanted, atol=1e-5)


def test_one_window_is_the_denoiser_itself():
    denoiser, x_t = wavy_denoiser(make_schedule()), SampleNoise([1, 2])((1, 4, 6))
    t = torch.tensor([100, 600])
    long = over_windows(denoiser, 6, 6, 2, circular=False)
    assert torch.allclose(long(x_t, t), denoiser(x_t, t), atol=1e-6)


def test_windows_of_a_loop_go_round():
    """Turning the data turns the result, if by a window's step."""
    schedule, x_t, t = make_schedule(), SampleNoise([1])((1, 4, 24)), torch.tensor([500])
    long = over_windows(Correlated(schedule, autoregressive(8)), 8, 24, 2, circular=True)
    assert torch.allclose(long(x_t.roll(6, -1), t), long(x_t, t).roll(6, -1), atol=1e-5)


def test_every_clip_keeps_its_own_label_in_all_its_windows():
    schedule, x_t, t = make_schedule(prediction_type="sample"), torch.zeros(2, 1, 4, 20), torch.tensor([5, 5])

    def network(x, t, cond):
        return cond.view(-1, 1, 1, 1).float().expand_as(x)

    denoiser = Parameterisation(schedule).denoiser(network)
    labelled = with_labels(denoiser, torch.tensor([3, 1]), num_classes=4)
    long = over_windows(labelled, 6, 20, 2, circular=False)
    assert torch.allclose(long(x_t, t)[:, 0, 0, 0], torch.tensor([3.0, 1.0]))


def test_more_windows_than_fit_into_one_batch_are_the_same(monkeypatch):
    schedule, x_t, t = make_schedule(), SampleNoise([1, 2])((1, 4, 40)), torch.tensor([100, 600])
    results = []
    for at_once in (32, 3):
        monkeypatch.setattr("Libraries.Sampling.Windows.AT_ONCE", at_once)
        results.append(over_windows(wavy_denoiser(schedule), 6, 40, 2, circular=True)(x_t, t))
    assert torch.allclose(*results, atol=1e-6)


def test_long_samples_of_a_stationary_process_have_its_correlation():
    """Frames of correlation .8 each with the next; windows see 16 of 64 at a time."""
    schedule = make_schedule()
    long = over_windows(Correlated(schedule, autoregressive(16)), 16, 64, 8, circular=False)
    config = make_config("ddpm", 100, clip_x0=None)
    x0 = sample(long, schedule, config, [1], (1, 600, 64), batch_size=1, progress=False)[0, 0]
    variance = x0.square().mean(0)
    correlation = (x0[:, 1:] * x0[:, :-1]).mean(0) / (variance[1:] * variance[:-1]).sqrt()
    print(f"\nvariance {variance.min():.2f} to {variance.max():.2f}, correlation {correlation.mean():.3f}")
    assert abs(correlation.mean() - 0.8) < 0.03 and correlation.min() > 0.7
    assert variance.min() > 0.7 and variance.max() < 1.2


@pytest.mark.parametrize(("overlap", "n_frames"), [(0, 20), (6, 20), (2, 5)])
def test_windows_that_do_not_fit_say_so(overlap, n_frames):
    with pytest.raises(ValueError, match=r"overlap=\d must be 1 to 5, and n_frames=\d+ at least 6"):
        window_starts(6, n_frames, overlap, circular=False)


@pytest.mark.parametrize("circular", [False, True])
def test_conditioning_is_cut_into_the_windows_of_what_it_belongs_to(circular):
    schedule, (x_t, conditioning) = make_schedule(), SampleNoise([1, 2])((2, 2, 4, 21)).unbind(1)
    t, seen = torch.tensor([100, 600]), []

    def network(x_t, t, conditioning):
        seen.append(conditioning.shape)
        return 0.5 * x_t + conditioning

    parameterisation = Parameterisation(schedule)
    denoiser = parameterisation.denoiser(network)
    long = over_windows(denoiser, 6, 21, 2, circular=circular, conditioning=conditioning)
    wanted = parameterisation.denoiser(lambda x_t, t: 0.5 * x_t + conditioning)(x_t, t)
    assert torch.allclose(long(x_t, t), wanted, atol=1e-5)
    assert all(shape[1:] == (2, 4, 6) for shape in seen)
