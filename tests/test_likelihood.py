"""The variational bound: its analytic value for Gaussian data, learned variances, what is refused."""

import math
from dataclasses import replace

import diffusers
import pytest
import torch
from test_diffusion import make_schedule
from test_samplers import SHAPE, GaussianNetwork, Replay, gaussian_denoiser, run, wavy, wavy_denoiser

from Libraries.Diffusion import PREDICTION_TYPES, SCHEDULES, NoiseSchedule, Parameterisation
from Libraries.Sampling.Likelihood import bits_per_dimension, interpolated_log_variance
from Libraries.Sampling.Loop import inference_timesteps
from Libraries.Utils import SampleNoise

STD = 0.7


def coefficients(schedule):
    """β, β̃ (of t = 1 at t = 0), c² and Var(x0|x_t) of data N(0, STD²), by the formulas, over all t."""
    abar = schedule.alphas_cumprod
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    beta = 1 - abar / before
    small = beta * (1 - before) / (1 - abar)
    small[0] = small[1]
    weight = before * beta**2 / (1 - abar) ** 2
    return beta, small, weight, STD**2 * (1 - abar) / (abar * STD**2 + 1 - abar)


class ExactNetwork(GaussianNetwork):
    """The network of E[x0 | x_t] and of the exact variance of x_(t-1) given x_t."""

    def __call__(self, x_t, t):
        beta, small, weight, posterior = (table[t] for table in coefficients(self.schedule))
        exact = torch.log(small + weight * posterior)
        exact = torch.where(t == 0, torch.log(posterior), exact)
        v = (exact - small.log()) / (beta.log() - small.log())
        output = (2 * v - 1).view(-1, 1, 1, 1).expand_as(x_t).to(x_t.dtype)
        return torch.cat([super().__call__(x_t, t), output], dim=1)


def exact_denoiser(schedule):
    return Parameterisation(schedule).denoiser(ExactNetwork(schedule, 0.0, STD), with_variance=True)


def gaussian_clips(count, shape=(1, 96, 96)):
    return STD * SampleNoise(range(100, 100 + count), dtype=torch.float64)(shape)


def bits_of(x0):
    """-log2 of the density N(0, STD²), the mean over each clip's dimensions."""
    nats = 0.5 * math.log(2 * math.pi * STD**2) + 0.5 * (x0 / STD) ** 2
    return nats.flatten(1).mean(1) / math.log(2)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_exact_model_needs_exactly_the_bits_of_the_data(schedule, prediction_type):
    """With the true mean and the true variance the bound is tight: clip by clip it is -log2 p(x0)."""
    schedule = make_schedule(schedule, prediction_type, 400, learned_variance=True)
    x0 = gaussian_clips(4)
    bits = bits_per_dimension(exact_denoiser(schedule), schedule, x0, range(4), variance="learned")
    assert torch.allclose(bits, bits_of(x0), atol=0.1)
    assert bits.mean().item() == pytest.approx(bits_of(x0).mean().item(), abs=0.03)


@pytest.mark.parametrize("steps", [50, 400])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_bound_of_a_fixed_variance_is_the_closed_form(variance, steps):
    schedule = make_schedule("cosine", num_train_timesteps=steps)
    beta, small, weight, posterior = coefficients(schedule)
    p = small if variance == "fixed_small" else beta
    nats = 0.5 * (torch.log(p / small) + (small + weight * posterior) / p - 1)
    nats[0] = 0.5 * (math.log(2 * math.pi) + p[0].log() + posterior[0] / p[0])
    abar = schedule.alphas_cumprod[-1].item()
    prior = 0.5 * (abar * STD**2 - abar - math.log1p(-abar))
    wanted = (nats.sum().item() + prior) / math.log(2)
    found = bits_per_dimension(
        gaussian_denoiser(schedule, 0.0, STD), schedule, gaussian_clips(8), range(8), variance=variance
    )
    assert found.mean().item() == pytest.approx(wanted, abs=0.02)
    assert wanted > 0.5 * math.log2(2 * math.pi * math.e * STD**2)


def test_more_timesteps_bring_the_bound_down_to_the_entropy():
    gaps = []
    for steps in (10, 40, 160):
        schedule = make_schedule("cosine", num_train_timesteps=steps, learned_variance=True)
        model = exact_denoiser(schedule)
        fixed, exact = (
            bits_per_dimension(model, schedule, gaussian_clips(2), range(2), variance=variance)
            for variance in ("fixed_large", "learned")
        )
        gaps.append((fixed - exact).mean().item())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_a_clips_bound_does_not_depend_on_its_batch():
    schedule, x0 = make_schedule(num_train_timesteps=20), gaussian_clips(3)
    denoiser = wavy_denoiser(schedule)
    together = bits_per_dimension(denoiser, schedule, x0, [4, 5, 6], variance="fixed_small")
    alone = bits_per_dimension(denoiser, schedule, x0[1:2], [5], variance="fixed_small")
    assert torch.allclose(together[1:2], alone)


def test_a_worse_model_needs_more_bits():
    schedule, x0 = make_schedule(num_train_timesteps=50), gaussian_clips(4)
    right, wrong = (
        bits_per_dimension(
            gaussian_denoiser(schedule, mean, STD), schedule, x0, range(4), variance="fixed_large"
        )
        for mean in (0.0, 0.5)
    )
    assert (wrong > right + 0.1).all()


def test_bound_says_what_it_cannot_do():
    schedule, x0 = make_schedule(num_train_timesteps=20), gaussian_clips(1)
    for options, says in (
        ({"variance": "beta"}, "fixed_small, fixed_large, learned"),
        ({"variance": "learned"}, "trained with learned_variance=True"),
    ):
        with pytest.raises(ValueError, match=says):
            bits_per_dimension(wavy_denoiser(schedule), schedule, x0, [0], **options)


def test_learned_variance_goes_from_the_lower_to_the_upper_bound():
    beta, small = torch.tensor([0.02]), torch.tensor([0.01])
    for output, wanted in ((-1.0, small), (1.0, beta), (0.0, (beta * small).sqrt())):
        assert torch.allclose(
            interpolated_log_variance(torch.tensor([output]), beta.log(), small.log()).exp(), wanted
        )


def two_outputs(x_t, t):
    return torch.cat([wavy(x_t, t), torch.cos(5 * x_t)], dim=1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddpm_with_learned_variance_equals_diffusers(monkeypatch, schedule, prediction_type):
    ours = make_schedule(schedule, prediction_type, learned_variance=True)
    theirs = diffusers.DDPMScheduler(
        prediction_type=prediction_type, clip_sample=True, variance_type="learned_range"
    )
    steps = inference_timesteps(ours, 10, "leading")
    theirs.set_timesteps(timesteps=steps)
    theirs.betas, theirs.alphas_cumprod = ours.betas, ours.alphas_cumprod
    replay = Replay(monkeypatch, __import__("diffusers.schedulers.scheduling_ddpm", fromlist=["_"]), [1, 2])
    x = replay.noise(SHAPE)
    for t in theirs.timesteps:
        x = theirs.step(two_outputs(x, t.expand(2)), t, x).prev_sample
    noise = SampleNoise([1, 2], dtype=torch.float64)
    denoiser = Parameterisation(ours).denoiser(two_outputs, with_variance=True)
    result = run("ddpm", denoiser, ours, noise, SHAPE, steps, variance="learned", clip_x0=1.0)
    assert torch.allclose(result, x, atol=1e-5, rtol=1e-5)


def test_the_exact_variance_makes_few_steps_exact_and_the_fixed_ones_do_not():
    """Twelve timesteps in all: only with the variance learned have the samples that of the data."""
    schedule = make_schedule("cosine", num_train_timesteps=12, learned_variance=True)
    denoiser, found = exact_denoiser(schedule), {}
    for variance in ("learned", "fixed_small", "fixed_large"):
        noise = SampleNoise(range(8), dtype=torch.float64)
        steps = inference_timesteps(schedule, 12, "leading")
        x0 = run("ddpm", denoiser, schedule, noise, (1, 64, 64), steps, variance=variance)
        found[variance] = (x0.var() + posterior_of_the_last_step(schedule)).item()
    assert found["learned"] == pytest.approx(STD**2, rel=0.03)
    assert found["fixed_small"] < STD**2 - 0.03 and found["fixed_large"] > STD**2 + 0.03


def posterior_of_the_last_step(schedule):
    """The last step returns the mean of x0 without noise: this is the variance it leaves out."""
    return coefficients(schedule)[3][0]


def test_learned_variance_asks_for_a_network_and_a_schedule_that_have_it():
    plain, learned = make_schedule(), make_schedule(learned_variance=True)

    def sampled(denoiser, schedule):
        return run("ddpm", denoiser, schedule, SampleNoise([0]), SHAPE, [10, 0], variance="learned")

    with pytest.raises(ValueError, match="trained with learned_variance=True"):
        sampled(wavy_denoiser(plain), plain)
    with pytest.raises(ValueError, match="trained with learned_variance=True"):
        Parameterisation(plain).denoiser(wavy, with_variance=True)
    with pytest.raises(ValueError, match="needs a network of 2 output channels for 1 of data"):
        sampled(Parameterisation(learned).denoiser(wavy, with_variance=True), learned)


def test_learned_variance_needs_whole_timesteps():
    config = make_schedule(learned_variance=True).config
    with pytest.raises(ValueError, match="timestep_sampling='uniform'"):
        NoiseSchedule(replace(config, timestep_sampling="log_normal"))
