"""Samplers: equality with diffusers, the exact answer for Gaussian data, one seed a sample."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from test_diffusion import DIFFUSERS_TYPES, make_schedule

from Libraries.Diffusion import SCHEDULES, Parameterisation
from Libraries.Sampling.Loop import (
    SPACINGS,
    SamplerConfig,
    dynamic_threshold,
    inference_timesteps,
    run_sampler,
    sample,
)
from Libraries.Sampling.Steps import SAMPLERS
from Libraries.Utils import SampleNoise

SHAPE = (1, 4, 6)
# Those that need E[x0 | x_t]; `consistency` needs the end of the flow (test_consistency.py).
DENOISING = [name for name in SAMPLERS if name != "consistency"]
OWN_OPTIONS = {"ddim": {"eta": 1.0}, "ddpm": {"variance": "fixed_small"}, "heun": {"churn": 4.0}}
QUIET_OPTIONS = {"ddim": {"eta": 0.0}, "ddpm": {"variance": "fixed_small"}, "heun": {"churn": 0.0}}


def make_config(name, num_inference_steps=5, spacing="trailing", clip_x0=1.0):
    return SamplerConfig(name, num_inference_steps, spacing, clip_x0, **OWN_OPTIONS.get(name, {}))


def run(name, denoiser, schedule, noise, shape, steps, *, clip_x0=None, callback=None, **options):
    """Sample one batch at these timesteps; without options with as little noise as the sampler can."""
    options = {**QUIET_OPTIONS.get(name, {}), **options}
    config = SamplerConfig(name, len(steps), "trailing", clip_x0, **options)
    return run_sampler(denoiser, schedule, config, noise, shape, steps, callback=callback)


class GaussianNetwork:
    """The network of the exact denoiser E[x0 | x_t] of data N(mean, std²), in the schedule's terms."""

    def __init__(self, schedule, mean, std):
        self.schedule, self.mean, self.std = schedule, mean, std
        self.parameterisation = Parameterisation(schedule)

    def __call__(self, x_t, t):
        x_t = x_t / self.parameterisation.scale_input(torch.ones_like(x_t), t)
        a2 = self.schedule.alphas_cumprod[t].view(-1, 1, 1, 1).to(x_t.dtype)
        gain = a2.sqrt() * self.std**2 / (a2 * self.std**2 + 1 - a2)
        x0 = self.mean + gain * (x_t - a2.sqrt() * self.mean)
        return self.parameterisation.target(x0, self.schedule.to_eps(x0, x_t, t), t)


def gaussian_denoiser(schedule, mean, std):
    """The exact denoiser of data N(mean, std²), made of its network."""
    return Parameterisation(schedule).denoiser(GaussianNetwork(schedule, mean, std))


def wavy(x_t, t):
    """Some smooth network: it makes no good denoiser, but one that tells trajectories apart."""
    return torch.sin(3 * x_t) * 0.5 + 0.001 * t.view(-1, 1, 1, 1)


def wavy_denoiser(schedule):
    """What the schedule's parameterisation makes of `wavy`."""
    return Parameterisation(schedule).denoiser(wavy)


class Replay:
    """Hands the noise of one SampleNoise to diffusers, which asks for it by its own function."""

    def __init__(self, monkeypatch, module, seeds):
        self.noise = SampleNoise(seeds, dtype=torch.float64)
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: self.noise(shape[1:]))


COMBINATIONS = list(product(SCHEDULES, DIFFUSERS_TYPES, ("leading", "trailing", "linspace"), (None, 1.0)))


# Left out is `trailing` with fixed_large: diffusers adds noise after its last step there, not being at t = 0.
DDPM_COMBINATIONS = [
    (*combination, variance)
    for combination, variance in product(COMBINATIONS, ("fixed_small", "fixed_large"))
    if (combination[2], variance) != ("trailing", "fixed_large")
]


@pytest.mark.parametrize(("schedule", "prediction_type", "spacing", "clip", "variance"), DDPM_COMBINATIONS)
def test_ddpm_equals_diffusers(monkeypatch, schedule, prediction_type, spacing, clip, variance):
    ours = make_schedule(schedule, prediction_type)
    theirs = DDPMScheduler(
        prediction_type=prediction_type, timestep_spacing=spacing,
        clip_sample=clip is not None, variance_type=variance,
    )  # fmt: skip
    theirs.set_timesteps(timesteps=inference_timesteps(ours, 10, spacing))
    theirs.betas, theirs.alphas_cumprod = ours.betas, ours.alphas_cumprod
    replay = Replay(monkeypatch, __import__("diffusers.schedulers.scheduling_ddpm", fromlist=["_"]), [1, 2])
    x = replay.noise(SHAPE)
    for t in theirs.timesteps:
        x = theirs.step(wavy(x, t.expand(2)), t, x).prev_sample
    steps = inference_timesteps(ours, 10, spacing)
    noise = SampleNoise([1, 2], dtype=torch.float64)
    result = run("ddpm", wavy_denoiser(ours), ours, noise, SHAPE, steps, variance=variance, clip_x0=clip)
    assert torch.allclose(result, x, atol=1e-5, rtol=1e-5)


# Song et al.'s step goes to the timestep that is visited next; diffusers goes T//n down, which is the same
# for `leading`, and for `trailing` where n divides T, but not for `linspace`.
@pytest.mark.parametrize(("schedule", "prediction_type", "spacing", "clip"),
                         [c for c in COMBINATIONS if c[2] != "linspace"])  # fmt: skip
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_ddim_equals_diffusers(monkeypatch, schedule, prediction_type, spacing, clip, eta, steps):
    ours = make_schedule(schedule, prediction_type)
    theirs = DDIMScheduler(
        prediction_type=prediction_type, timestep_spacing=spacing,
        clip_sample=clip is not None,
    )  # fmt: skip
    theirs.set_timesteps(steps)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = ours.alphas_cumprod, torch.tensor(1.0)
    replay = Replay(monkeypatch, __import__("diffusers.schedulers.scheduling_ddim", fromlist=["_"]), [1, 2])
    x = replay.noise(SHAPE)
    for t in theirs.timesteps:
        # ours keeps eps and the clipped x0 consistent, as theirs does on request
        x = theirs.step(
            wavy(x, t.expand(2)), t, x, eta=eta, use_clipped_model_output=clip is not None
        ).prev_sample
    visited = inference_timesteps(ours, steps, spacing)
    assert visited == theirs.timesteps.tolist()
    noise = SampleNoise([1, 2], dtype=torch.float64)
    result = run("ddim", wavy_denoiser(ours), ours, noise, SHAPE, visited, eta=eta, clip_x0=clip)
    assert torch.allclose(result, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("schedule", "prediction_type"), list(product(SCHEDULES, DIFFUSERS_TYPES)))
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "ddim eta=1"])
def test_gaussian_data_come_out_with_their_mean_and_variance(schedule, prediction_type, sampler):
    ours = make_schedule(schedule, prediction_type)
    mean, std, count = 0.7, 0.4, 400
    denoiser, steps = gaussian_denoiser(ours, mean, std), inference_timesteps(ours, 250, "trailing")
    noise = SampleNoise(range(count), dtype=torch.float64)
    options = {} if sampler == "ddpm" else {"eta": float(sampler.endswith("1"))}
    x = run(sampler.split()[0], denoiser, ours, noise, SHAPE, steps, **options)
    values = count * 24
    assert abs(x.mean().item() - mean) < 4 * std / values**0.5 + 0.005
    assert abs(x.std().item() / std - 1) < 4 / (2 * values) ** 0.5 + 0.02  # 250 steps leave below 2 %


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_last_step_adds_no_noise_and_returns_x0(name, zero_terminal):
    ours = make_schedule(zero_terminal=zero_terminal)
    seen = []
    result = run(
        name, wavy_denoiser(ours), ours, SampleNoise([0]), SHAPE, inference_timesteps(ours, 7, "trailing"),
        callback=lambda step, t, x_t, x0: seen.append((step, t, x0)),
    )  # fmt: skip
    assert [step for step, *_ in seen] == list(range(7))
    assert torch.equal(result, seen[-1][2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_seven_is_the_same_alone_or_among_sixty_four(name):
    config, options = make_config(name), {"progress": False, "batch_size": 64}
    schedule = make_schedule()
    denoiser = wavy_denoiser(schedule)
    among = sample(denoiser, schedule, config, range(64), SHAPE, **options)
    alone = sample(denoiser, schedule, config, [7], SHAPE, **options)
    chunked = sample(denoiser, schedule, config, range(64), SHAPE, progress=False, batch_size=5)
    assert torch.equal(among[7], alone[0]) and torch.equal(among, chunked)


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 50, 333, 999, 1000])
def test_timesteps_fall_without_repeats(spacing, count, zero_terminal):
    steps = inference_timesteps(make_schedule(zero_terminal=zero_terminal), count, spacing)
    assert len(steps) == count and steps[-1] >= 0 and steps[0] <= 999
    assert all(a > b for a, b in pairwise(steps))


def test_all_spacings_with_all_steps_visit_every_timestep():
    for spacing in SPACINGS:
        assert inference_timesteps(make_schedule(), 1000, spacing) == list(range(999, -1, -1))


def test_karras_and_log_snr_spacing_are_the_nearest_timesteps_to_their_formulas():
    schedule = make_schedule("linear")
    sigmas = torch.exp(-schedule.log_snr / 2)
    high, low, i = 80.0, sigmas[0].item(), torch.arange(10) / 9
    karras = (high ** (1 / 7) + i * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    for spacing, wanted in (("karras", karras), ("log_snr", high * (low / high) ** i)):
        visited = sigmas[inference_timesteps(schedule, 10, spacing)]
        assert ((visited / wanted).log().abs()[:-2] < 0.02).all()  # at the end the timesteps are far apart
        assert math.isclose(visited[-1], low)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_karras_trailing_is_karras_without_its_last_step(count):
    whole = inference_timesteps(make_schedule(), count + 1, "karras")
    assert inference_timesteps(make_schedule(), count, "karras_trailing") == whole[:-1]


@pytest.mark.parametrize("spacing", [spacing for spacing in SPACINGS if spacing != "leading"])
def test_where_no_signal_is_left_sampling_starts_there(spacing):
    assert inference_timesteps(make_schedule(zero_terminal=True), 10, spacing)[0] == 999


def test_more_steps_than_the_schedule_has_are_refused():
    with pytest.raises(ValueError, match="between 1 and num_train_timesteps=1000"):
        inference_timesteps(make_schedule(), 1001, "trailing")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"name": "plms"},
            "choose one of ddpm, ddim, consistency, euler, heun, dpmpp_2m, dpmpp_2m_sde, unipc",
        ),
        ({"spacing": "even"}, "choose one of leading, trailing, linspace, karras, karras_trailing, log_snr"),
        ({"variance": "fixed_small"}, "for ddpm alone; set it to None for ddim"),
        ({"churn": 1.0}, "for heun alone"),
        ({"eta": 1.5}, r"choose a number within \[0, 1\]"),
        ({"eta": None}, "not for ddim"),
        (
            {"name": "ddpm", "eta": None, "variance": "beta"},
            "choose one of fixed_small, fixed_large, learned",
        ),
        ({"dynamic_threshold": 0.995}, "with a clip_x0 to scale to"),
        ({"clip_x0": 1.0, "dynamic_threshold": 1.5}, r"fraction within \(0, 1\]"),
        ({"name": "ddpm", "variance": "fixed_small"}, "eta=0.0 is for ddim alone"),
        ({"name": "heun", "eta": None, "churn": -1.0}, "0 or more"),
        ({"name": "unipc"}, "set it to None for unipc"),
        ({"num_inference_steps": 0}, "1 or more"),
    ],
)
def test_settings_without_use_are_refused(change, says):
    good = {"name": "ddim", "num_inference_steps": 5, "spacing": "trailing", "clip_x0": None}
    with pytest.raises(ValueError, match=says):
        SamplerConfig(**{**good, "eta": 0.0, **change})


def test_dynamic_threshold_scales_what_is_out_of_range_and_leaves_the_rest():
    x0 = torch.stack([torch.linspace(-0.9, 0.9, 101), torch.linspace(-4, 4, 101)]).view(2, 1, 1, 101)
    found = dynamic_threshold(x0, 1.0, limit=1.0)
    assert torch.equal(found[0], x0[0]) and torch.allclose(found[1], x0[1] / 4)
    found = dynamic_threshold(x0, 0.5, limit=1.0)  # half of |x0| is within 2
    assert torch.allclose(found[1], (x0[1] / 2).clamp(-1, 1), atol=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_dynamic_threshold_keeps_every_sampler_in_range_without_piling_up_at_its_end(name):
    plain = make_config(name, spacing="log_snr")
    x0, at_end = {}, {}
    for fraction in (None, 0.9):
        config, schedule = replace(plain, dynamic_threshold=fraction), make_schedule()
        wide = gaussian_denoiser(schedule, 0.0, 2.0)
        x0[fraction] = sample(wide, schedule, config, range(4), (1, 32, 32), batch_size=4, progress=False)
        at_end[fraction] = (x0[fraction].abs() > 0.999).float().mean()
        assert x0[fraction].abs().max() <= 1.001
    assert at_end[0.9] < 0.12 and at_end[0.9] < 0.7 * at_end[None]
