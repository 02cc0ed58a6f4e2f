"""Consistency tuning on closed forms: Gaussian data, whose probability flow is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_diffusion import make_schedule
from torch import nn

from Libraries.Diffusion import NoiseSchedule, Parameterisation
from Libraries.Sampling.Editing import Editor, mask_outside
from Libraries.Sampling.Loop import SamplerConfig, inference_timesteps, run_sampler
from Libraries.Training.ConsistencyLoss import ConsistencyLoss, consistency_loss, lower_sigma
from Libraries.Utils import SampleNoise

MEAN, STD = 0.3, 0.7
SHAPE = (1, 8, 8)


def tuning_schedule(schedule="edm", prediction_type="sample", **changes):
    config = make_schedule(schedule, prediction_type, timestep_sampling="log_normal").config
    settings = {"log_normal_mean": -0.41, "log_normal_std": 2.0, "objective": "consistency", **changes}
    return NoiseSchedule(replace(config, **settings))


def consistency_function(schedule):
    """The end of the probability flow of N(MEAN, STD²): MEAN + (x̃ - MEAN)·STD/sqrt(STD² + σ²)."""

    def x0(x_t, t, cond=None):
        a, s = schedule.levels(t, x_t)
        return MEAN + (x_t / a - MEAN) * STD / (STD**2 + (s / a) ** 2).sqrt()

    return x0


def exact_denoiser(schedule):
    """E[x0 | x] of N(MEAN, STD²)."""

    def x0(x_t, t, cond=None):
        a, s = schedule.levels(t, x_t)
        return MEAN + (x_t / a - MEAN) * STD**2 / (STD**2 + (s / a) ** 2)

    return x0


class Scaled(nn.Module):
    """A network of "sample" that says `slope` times what `function` says about the distance from MEAN."""

    def __init__(self, function, dropout=0.0):
        super().__init__()
        self.function, self.dropout = function, nn.Dropout(dropout)
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x_t, t, cond=None):
        return self.dropout(MEAN + self.slope * (self.function(x_t, t) - MEAN))


def data(count):
    x0, noise = torch.randn(2, count, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind()
    return MEAN + STD * x0, noise


def loss_of(network, schedule, count=4096, log_sigma=0.0, stage=0):
    x0, noise = data(count)
    t = schedule.t_of_log_sigma(torch.full((count,), log_sigma, dtype=torch.float64))
    stage = torch.full((count,), stage)
    return consistency_loss(network, Parameterisation(schedule), x0, t, noise, stage=stage, data_std=1.0)


def slope_gradient(function, ratio, log_sigma):
    """The gradient of the expected loss by the slope, the expectation by Gauss-Hermite quadrature."""
    schedule, network = tuning_schedule(consistency_ratio=ratio), Scaled(function)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(24))
    x0, noise = (part.reshape(-1, 1, 1, 1) for part in torch.meshgrid(nodes, nodes, indexing="ij"))
    weights = torch.outer(weights, weights).flatten() / weights.sum() ** 2
    t = schedule.t_of_log_sigma(torch.full((len(x0),), log_sigma, dtype=torch.float64))
    stage = torch.zeros(len(x0))
    losses = consistency_loss(network, Parameterisation(schedule), MEAN + STD * x0, t, noise, stage=stage)
    (losses * weights).sum().backward()
    return abs(network.slope.grad.item())


def test_lower_level_is_the_formula():
    sigma, stage = torch.tensor([0.01, 1.0, 80.0], dtype=torch.float64), torch.tensor([0, 0, 1])
    expected = [
        max(0, s * (1 - 2 ** -(n + 1) * (1 + 8 / (1 + math.exp(0.5 * s)))))
        for s, n in zip(sigma.tolist(), stage.tolist(), strict=True)
    ]
    assert lower_sigma(sigma, 2.0, stage).tolist() == pytest.approx(expected)
    assert expected[0] == 0 and expected[2] > 0
    nearer = [lower_sigma(sigma, 256.0, torch.full((3,), n)) for n in (0, 1)]
    assert (nearer[0] < nearer[1]).all() and (nearer[1] < sigma).all()


@pytest.mark.parametrize("log_sigma", [-1.0, 0.0, 1.5])
def test_gradient_vanishes_at_the_consistency_function_as_the_levels_meet(log_sigma):
    """With σ - r, where the gradient at the denoiser E[x0 | x], the diffusion's optimum, stays."""
    function = consistency_function(make_schedule("edm", "sample"))
    at = {ratio: slope_gradient(function, ratio, log_sigma) for ratio in (1e4, 1e5, 1e6)}
    assert at[1e5] == pytest.approx(at[1e4] / 10, rel=0.1) and at[1e6] == pytest.approx(at[1e5] / 10, rel=0.1)
    assert slope_gradient(exact_denoiser(make_schedule("edm", "sample")), 1e6, log_sigma) > 1000 * at[1e6]


def test_one_step_has_the_variance_of_the_data_and_the_denoiser_has_not():
    schedule = make_schedule("edm", "sample")
    x0, noise = data(4096)
    t = torch.full((4096,), 999)
    x_t = schedule.add_noise(x0, noise, t)
    assert consistency_function(schedule)(x_t, t).std().item() == pytest.approx(STD, rel=0.01)
    assert exact_denoiser(schedule)(x_t, t).std().item() < 0.1 * STD


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampler_keeps_the_distribution(steps):
    schedule = make_schedule("edm", "sample")
    denoiser = Parameterisation(schedule).denoiser(consistency_function(schedule))
    config = SamplerConfig("consistency", steps, "trailing", clip_x0=None)
    timesteps = inference_timesteps(schedule, steps, "trailing")
    found = run_sampler(denoiser, schedule, config, SampleNoise(range(512)), SHAPE, timesteps)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_inpainting_of_independent_values_is_exact(steps):
    schedule = make_schedule("edm", "sample")
    denoiser = Parameterisation(schedule).denoiser(consistency_function(schedule))
    config = SamplerConfig("consistency", steps, "trailing", clip_x0=None)
    x0, mask = MEAN + STD * SampleNoise(range(512))(SHAPE), mask_outside(SHAPE, frames=(2, 8))
    found = Editor(denoiser, schedule, config).inpaint(x0, mask, range(1000, 1512))
    assert torch.equal(found[..., :2], x0[..., :2])
    made = found[..., 2:]
    assert made.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert made.std().item() == pytest.approx(STD, rel=0.02)


def test_both_levels_see_the_same_dropout_mask():
    """With the same mask a constant network agrees with itself everywhere."""
    schedule = tuning_schedule()
    network = Scaled(lambda x_t, t: torch.full_like(x_t, 2.0), dropout=0.5)
    assert loss_of(network.train(), schedule, count=16).abs().max() == 0
    assert loss_of(network.eval(), schedule, count=16).abs().max() == 0


def test_below_the_least_noise_the_target_is_the_clip_itself():
    schedule = tuning_schedule()
    least = math.log(0.002)
    network = Scaled(lambda x_t, t: torch.zeros_like(x_t))
    x0, _ = data(64)
    c = 0.00054 * math.sqrt(64)
    distance = (x0 + network.slope * MEAN - MEAN).flatten(1).norm(dim=1)
    expected = ((distance**2 + c**2).sqrt() - c) / 0.002
    assert torch.allclose(loss_of(network, schedule, count=64, log_sigma=least), expected, rtol=1e-3)


def test_a_step_depends_on_the_position_alone():
    schedule = tuning_schedule(consistency_ratio=2.0, consistency_stage_clips=10)
    loss = ConsistencyLoss(schedule, seed=3, num_classes=0, data_std=1.0)
    network, (x0, _) = Scaled(consistency_function(schedule)), data(8)
    labels, positions = torch.zeros(8), torch.arange(6, 14)
    whole = loss(network, (x0, labels), positions)
    halves = [loss(network, (x0[part], labels[part]), positions[part]) for part in (slice(3), slice(3, 8))]
    assert torch.allclose(whole, torch.cat(halves), rtol=1e-5)
    report = loss.validate(network, [(x0, labels)])
    assert report["val_loss"] > 0 and report == loss.validate(network, [(x0, labels)])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prediction_type": "epsilon"}, "needs x0 and σ at every level"),
        ({"loss_weighting": "min_snr"}, "has a weight of its own"),
        ({"timestep_sampling": "uniform"}, "set timestep_sampling='log_normal'"),
        ({"consistency_ratio": 1.0}, "consistency_ratio=1.0 must be above 1"),
        ({"objective": "distillation"}, "choose one of denoising, consistency"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        tuning_schedule(**changes)
