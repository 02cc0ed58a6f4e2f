"""Solvers: equality with diffusers, the order of their error, the exact distribution of what comes out."""

import importlib
import math
from functools import partial
from itertools import pairwise, product
from types import SimpleNamespace

import diffusers
import pytest
import torch
from test_diffusion import DIFFUSERS_TYPES, make_schedule
from test_samplers import DENOISING, SHAPE, Replay, gaussian_denoiser, run, wavy, wavy_denoiser

from Libraries.Diffusion import SCHEDULES
from Libraries.Sampling.Loop import SPACINGS, inference_timesteps
from Libraries.Utils import SampleNoise

# diffusers hands torch tensors to np.array, which NumPy 2 comments on
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

MULTISTEP = {  # ours: theirs, with its options
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
}
# a step knows its timesteps, not the spacing that chose them: from less than all noise, in t, and in σ
COMBINATIONS = list(product(SCHEDULES, DIFFUSERS_TYPES, ("leading", "trailing", "karras"), (1, 7, 20)))


def make_reference(monkeypatch, name, ours, steps, repeat=1, **options):
    """Return diffusers' scheduler at our timesteps and σ, float64 where it would round to float32.

    Left out are its own tables (float32), its own timesteps (rounded otherwise), and ᾱ = 0, which it replaces
    by 2**-24.
    """
    theirs = getattr(diffusers, name)(prediction_type=ours.config.prediction_type, **options)
    in_double = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    monkeypatch.setattr(importlib.import_module(type(theirs).__module__), "torch", in_double)
    theirs.set_timesteps(len(steps))
    sigmas = torch.exp(-ours.log_snr[steps] / 2)
    theirs.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(repeat), sigmas.new_zeros(1)])
    visited = torch.tensor(steps, dtype=torch.float64 if repeat > 1 or "Euler" in name else torch.int64)
    theirs.timesteps = torch.cat([visited[:1], visited[1:].repeat_interleave(repeat)])
    return theirs


@pytest.mark.parametrize(("schedule", "prediction_type", "spacing", "count"), COMBINATIONS)
@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_solver_equals_diffusers(monkeypatch, name, schedule, prediction_type, spacing, count):
    reference, options = MULTISTEP[name]
    ours = make_schedule(schedule, prediction_type)
    steps = inference_timesteps(ours, count, spacing)
    theirs = make_reference(monkeypatch, reference, ours, steps, **options)
    module = importlib.import_module(type(theirs).__module__)
    replay = (
        Replay(monkeypatch, module, [1, 2]).noise
        if name == "dpmpp_2m_sde"
        else SampleNoise([1, 2], dtype=torch.float64)
    )
    x = replay(SHAPE)
    for t in theirs.timesteps:
        x = theirs.step(wavy(x, t.expand(2)), t, x).prev_sample
    noise = SampleNoise([1, 2], dtype=torch.float64)
    result = run(name, wavy_denoiser(ours), ours, noise, SHAPE, steps)
    assert torch.allclose(result, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("schedule", "prediction_type", "spacing", "count"), COMBINATIONS)
@pytest.mark.parametrize(
    ("name", "reference", "clip"),
    [
        ("euler", "EulerDiscreteScheduler", None),  # which does not clip
        ("heun", "HeunDiscreteScheduler", None),
        ("heun", "HeunDiscreteScheduler", 1.0),
    ],
)
def test_sigma_solver_equals_diffusers(
    monkeypatch, name, reference, clip, schedule, prediction_type, spacing, count
):
    ours = make_schedule(schedule, prediction_type)
    steps = inference_timesteps(ours, count, spacing)
    options, repeat = ({"clip_sample": clip is not None}, 2) if name == "heun" else ({}, 1)
    theirs = make_reference(monkeypatch, reference, ours, steps, repeat, **options)
    x = SampleNoise([1, 2], dtype=torch.float64)(SHAPE) * (theirs.sigmas[0] ** 2 + 1) ** 0.5
    for t in theirs.timesteps:
        x = theirs.step(wavy(theirs.scale_model_input(x, t), t.long().expand(2)), t, x).prev_sample
    noise = SampleNoise([1, 2], dtype=torch.float64)
    result = run(name, wavy_denoiser(ours), ours, noise, SHAPE, steps, clip_x0=clip)
    assert torch.allclose(result, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_in_sigma_is_deterministic_ddim(spacing, zero_terminal):
    ours = make_schedule(zero_terminal=zero_terminal)
    steps = inference_timesteps(ours, 9, spacing)
    euler, ddim = (
        run(name, wavy_denoiser(ours), ours, SampleNoise([5], dtype=torch.float64), SHAPE, steps)
        for name in ("euler", "ddim")
    )
    assert torch.allclose(euler, ddim, atol=1e-12)


# The error falls as 1/steps^order. UniPC's corrector gains one order over its predictor (Zhao et al. 2023).
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}


def fine_schedule():
    """Return 6401 timesteps, even in log-SNR from 24 (so that the last step is from σ = 6e-6 to 0) to -8."""
    schedule = make_schedule(num_train_timesteps=6401)
    schedule.alphas_cumprod = torch.sigmoid(torch.linspace(24, -8, 6401, dtype=torch.float64))
    return schedule


def gaussian_flow(schedule, x_t, t, mean, std):
    """Return where the ODE takes x_t for data N(mean, std²); (x - a·mean)/sqrt(a²std² + s²) is constant."""
    abar = schedule.alphas_cumprod[t]
    return mean + std * (x_t - abar.sqrt() * mean) / (abar * std**2 + 1 - abar).sqrt()


@pytest.mark.parametrize("name", ORDERS)
def test_error_falls_with_the_order_of_the_method(name):
    schedule, counts, errors = fine_schedule(), (40, 80, 160, 320), []
    for count in counts:
        steps = inference_timesteps(schedule, count + 1, "log_snr")
        noise = SampleNoise([0], dtype=torch.float64)
        x = run(name, gaussian_denoiser(schedule, 0.7, 0.4), schedule, noise, SHAPE, steps)
        start = SampleNoise([0], dtype=torch.float64)(SHAPE)
        errors.append((x - gaussian_flow(schedule, start, steps[0], 0.7, 0.4)).abs().max().item())
    orders = [math.log2(before / after) for before, after in pairwise(errors)]
    print(f"\n{name:9}", *(f"{count}: {error:.1e}" for count, error in zip(counts, errors, strict=True)),
          " order", *(f"{order:.2f}" for order in orders))  # fmt: skip
    assert all(abs(order - ORDERS[name]) < 0.15 for order in orders[1:])


WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.6], [0.8, -0.4]], dtype=torch.float64)
STDS = torch.tensor([0.2, 0.3], dtype=torch.float64)


class MixtureDenoiser:
    """The exact denoiser of points (..., 2) from a mixture of two Gaussians of std STDS about MEANS."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x_t, t):
        abar = self.schedule.alphas_cumprod[t[0]]
        variances = abar * STDS**2 + 1 - abar
        offsets = x_t[..., None, :] - abar.sqrt() * MEANS  # (..., component, 2)
        logits = WEIGHTS.log() - variances.log() - offsets.square().sum(-1) / (2 * variances)
        x0 = MEANS + (abar.sqrt() * STDS**2 / variances)[:, None] * offsets
        return (logits.softmax(-1)[..., None] * x0).sum(-2)


STATISTICAL = {  # every sampler of a denoiser, the noisy ones with their noise
    **{name: partial(run, name) for name in DENOISING},
    "ddim eta=1": partial(run, "ddim", eta=1.0),
    "heun churn=10": partial(run, "heun", churn=10.0),
}


def steps_for_statistics(schedule):
    """Return 200 timesteps, even in log-SNR; the least exact sampler, DDPM, is then 4 % off in std."""
    return inference_timesteps(schedule, 200, "log_snr")


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("name", STATISTICAL)
def test_mixture_comes_out_with_its_weights_means_and_variances(name, zero_terminal):
    schedule, points = make_schedule(zero_terminal=zero_terminal), 4000
    noise, steps = SampleNoise([0], dtype=torch.float64), steps_for_statistics(schedule)
    x = STATISTICAL[name](MixtureDenoiser(schedule), schedule, noise, (points, 2), steps)[0]
    component = (x[:, None] - MEANS).square().sum(-1).argmin(-1)
    for k in range(2):
        own = x[component == k]
        assert abs(len(own) / points - WEIGHTS[k]) < 4 * (WEIGHTS[k] * (1 - WEIGHTS[k]) / points).sqrt()
        assert ((own.mean(0) - MEANS[k]).abs() < 4 * STDS[k] / len(own) ** 0.5 + 0.005).all()
        assert ((own.std(0) / STDS[k] - 1).abs() < 4 / (2 * len(own)) ** 0.5 + 0.04).all()


@pytest.mark.parametrize(
    ("schedule", "prediction_type", "zero_terminal"),
    [
        ("linear", "epsilon", False),
        ("cosine", "epsilon", False),
        ("cosine", "v_prediction", True),
        ("sigmoid", "v_prediction", False),
        ("sigmoid", "sample", True),
    ],
)
@pytest.mark.parametrize("name", STATISTICAL)
def test_gaussian_comes_out_with_its_mean_and_variance(name, schedule, prediction_type, zero_terminal):
    ours = make_schedule(schedule, prediction_type, zero_terminal=zero_terminal)
    mean, std, values = 0.7, 0.4, 6400
    noise, steps = SampleNoise([1], dtype=torch.float64), steps_for_statistics(ours)
    x = STATISTICAL[name](gaussian_denoiser(ours, mean, std), ours, noise, (1, 80, 80), steps)
    assert abs(x.mean().item() - mean) < 4 * std / values**0.5 + 0.005
    assert abs(x.std().item() / std - 1) < 4 / (2 * values) ** 0.5 + 0.04
