"""The noise schedule, the parameterisations and the loss."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from Libraries.Diffusion import (
    PREDICTION_TYPES,
    SCHEDULES,
    DiffusionConfig,
    NoiseSchedule,
    Parameterisation,
    sigmoid_betas,
)
from Libraries.Training.DiffusionLoss import DiffusionLoss, diffusion_loss, min_snr_weight, stream_timesteps

DIFFUSERS_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
DIFFUSERS_TYPES = ("epsilon", "v_prediction", "sample")  # edm is a scheduler of its own there


def make_schedule(
    schedule="cosine", prediction_type="v_prediction", num_train_timesteps=1000,
    shift=0.0, zero_terminal=False, weighting="uniform", label_dropout=0.0, sigma_data=0.5,
    learned_variance=False, timestep_sampling="uniform",
):  # fmt: skip
    config = DiffusionConfig(
        schedule=schedule, num_train_timesteps=num_train_timesteps,
        beta_start=1e-4, beta_end=0.02, sigma_min=0.002, sigma_max=80.0,
        log_snr_shift=shift, zero_terminal_snr=zero_terminal,
        prediction_type=prediction_type, sigma_data=sigma_data,
        learned_variance=learned_variance, vlb_weight=0.001,
        timestep_sampling=timestep_sampling, log_normal_mean=-1.2, log_normal_std=1.2,
        loss_weighting=weighting, min_snr_gamma=5.0, label_dropout=label_dropout,
    )  # fmt: skip
    return NoiseSchedule(config)


@pytest.mark.parametrize("name", DIFFUSERS_NAMES)
def test_schedule_equals_diffusers(name):
    reference = DDPMScheduler(beta_schedule=DIFFUSERS_NAMES[name])
    assert torch.allclose(make_schedule(name).alphas_cumprod.float(), reference.alphas_cumprod, atol=1e-5)
    assert torch.allclose(make_schedule(name).betas.float(), reference.betas, atol=1e-5)


def test_sigmoid_schedule_is_the_formula_and_antisymmetric():
    alphas_cumprod = torch.cumprod(1 - sigmoid_betas(1000), dim=0)
    for t in (0, 99, 499, 900):
        u = (t + 1) / 1000
        g = [1 / (1 + math.exp(-z)) for z in (-3, -3 + 6 * u, 3)]
        assert math.isclose(alphas_cumprod[t], (g[2] - g[1]) / (g[2] - g[0]), rel_tol=1e-9)
    assert torch.allclose(alphas_cumprod[:999] + alphas_cumprod[:999].flip(0), torch.ones(999).double())


@pytest.mark.parametrize(
    ("name", "shift", "zero_terminal"), list(product(SCHEDULES, (0.0, -3.0, 2.0), (False, True)))
)
def test_signal_falls_from_nearly_one_to_nearly_zero(name, shift, zero_terminal):
    alphas_cumprod = make_schedule(name, shift=shift, zero_terminal=zero_terminal).alphas_cumprod
    assert (alphas_cumprod.diff() < 0).all()
    assert 1 > alphas_cumprod[0] > 0.99 and alphas_cumprod[-1] < 2e-3
    assert (alphas_cumprod[-1] == 0) == zero_terminal


@pytest.mark.parametrize("name", SCHEDULES)
def test_shift_moves_the_log_snr_by_itself(name):
    moved = make_schedule(name, shift=-3.0).log_snr - make_schedule(name).log_snr
    assert torch.allclose(moved, torch.full((1000,), -3.0, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_zero_terminal_rescaling_equals_diffusers(name):
    ours, plain = make_schedule(name, zero_terminal=True), make_schedule(name)
    assert torch.allclose(ours.betas, rescale_zero_terminal_snr(plain.betas), atol=1e-9)
    assert math.isclose(ours.alphas_cumprod[0], plain.alphas_cumprod[0], rel_tol=1e-12)
    assert ours.log_snr[-1] == -math.inf and ours.signal[-1] == 0 and ours.noise_level[-1] == 1


def test_velocity_at_zero_terminal_snr_is_minus_x0_and_gives_it_back():
    schedule = make_schedule(zero_terminal=True)
    x0, noise, t = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.tensor([999, 999])
    assert torch.equal(schedule.add_noise(x0, noise, t), noise)
    velocity = Parameterisation(schedule)
    assert torch.equal(velocity.target(x0, noise, t), -x0)
    assert torch.equal(velocity.to_x0(-x0, noise, t), x0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_unit_variance_stays_unit_variance(name):
    schedule = make_schedule(name)
    assert torch.allclose(schedule.signal**2 + schedule.noise_level**2, torch.ones(1000), atol=1e-6)


@pytest.mark.parametrize(("name", "prediction_type"), list(product(SCHEDULES, PREDICTION_TYPES)))
def test_x0_and_noise_come_back_from_the_target(name, prediction_type):
    schedule = make_schedule(name, prediction_type)
    parameterisation = Parameterisation(schedule)
    x0, noise = torch.randn(2, 10, 1, 4, 4, dtype=torch.float64).unbind()
    t = torch.linspace(0, 999, 10).long()
    x_t = schedule.add_noise(x0, noise, t)
    recovered = parameterisation.to_x0(parameterisation.target(x0, noise, t), x_t, t)
    assert torch.allclose(recovered, x0, atol=1e-9)
    assert torch.allclose(schedule.to_eps(recovered, x_t, t), noise, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_velocity_equals_diffusers(name):
    reference = DDPMScheduler()
    reference.alphas_cumprod = make_schedule(name).alphas_cumprod.float()
    x0, noise, t = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4), torch.tensor([0, 10, 500, 900, 999])
    schedule = make_schedule(name, "v_prediction")
    velocity = Parameterisation(schedule).target(x0, noise, t)
    assert torch.allclose(velocity, reference.get_velocity(x0, noise, t), atol=1e-5)
    assert torch.allclose(schedule.add_noise(x0, noise, t), reference.add_noise(x0, noise, t), atol=1e-5)


def test_loss_of_the_true_target_is_zero_and_of_zero_its_power():
    noise_prediction = Parameterisation(make_schedule(prediction_type="epsilon"))
    x0, noise, t = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([0, 400, 999])
    assert (diffusion_loss(lambda *_: noise, noise_prediction, x0, t, noise) == 0).all()
    loss = diffusion_loss(lambda x, *_: torch.zeros_like(x), noise_prediction, x0, t, noise)
    assert torch.allclose(loss, noise.square().flatten(1).mean(1))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weight_is_the_closed_form(prediction_type):
    schedule = make_schedule(prediction_type=prediction_type, weighting="min_snr")
    for t in (0, 300, 500, 800, 998):
        snr = math.exp(schedule.log_snr[t])
        edm = (1 / snr + 0.25) * snr / 0.25  # 1/c_out² (Karras et al. 2022, table 1) with σ² = 1/snr
        divisor = {"sample": 1, "epsilon": snr, "v_prediction": snr + 1, "edm": edm}[prediction_type]
        weight = min_snr_weight(Parameterisation(schedule), torch.tensor([t])).item()
        assert math.isclose(weight, min(snr, 5) / divisor, rel_tol=1e-5)


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_min_snr_is_one_loss_whatever_the_network_predicts(zero_terminal):
    """An x0 off by some error costs min(snr, γ)·error² as x0, as eps and as v."""
    x0, noise, error = torch.randn(3, 5, 1, 8, 8, dtype=torch.float64).unbind()
    t, losses = torch.tensor([10, 300, 500, 800, 999 if zero_terminal else 950]), []
    for prediction_type in PREDICTION_TYPES[1:] if zero_terminal else PREDICTION_TYPES:
        schedule = make_schedule(
            prediction_type=prediction_type, weighting="min_snr", zero_terminal=zero_terminal
        )
        parameterisation = Parameterisation(schedule)

        def off(x_t, t, cond, p=parameterisation):
            x_t = x_t / p.scale_input(torch.ones_like(x_t), t)
            return p.target(x0 + error, p.schedule.to_eps(x0 + error, x_t, t), t)

        losses.append(diffusion_loss(off, parameterisation, x0, t, noise))
    wanted = schedule.log_snr.exp()[t].clamp(max=5) * error.square().flatten(1).mean(1)
    assert all(torch.allclose(loss, wanted.float(), rtol=1e-4) for loss in losses)


def test_validation_is_unweighted_and_training_is_not():
    model = torch.nn.Conv2d(1, 1, 1)
    model.forward = lambda x, t, cond, f=model.forward: f(x)
    batch, positions = (torch.randn(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)), torch.arange(6)
    uniform, weighted = (
        DiffusionLoss(make_schedule(weighting=weighting), seed=0, num_classes=0)
        for weighting in ("uniform", "min_snr")
    )
    assert uniform.validate(model, [batch]) == weighted.validate(model, [batch])
    weights = min_snr_weight(weighted.parameterisation, stream_timesteps(positions, 1000))
    assert torch.allclose(weighted(model, batch, positions), weights * uniform(model, batch, positions))


def test_stream_timesteps_cover_every_stretch_evenly():
    for first in (0, 12_345, 10**9):
        t = stream_timesteps(torch.arange(first, first + 64), 1000)
        assert t.min() >= 0 and t.max() < 1000
        counts = np.histogram(t.numpy(), bins=8, range=(0, 1000))[0]
        assert counts.min() >= 6 and counts.max() <= 10  # independent draws give 2 to 14


def test_loss_depends_on_positions_not_on_the_batch():
    loss_fn = DiffusionLoss(make_schedule(), seed=3, num_classes=0)
    model = torch.nn.Conv2d(1, 1, 1)
    model.forward = lambda x, t, cond, f=model.forward: f(x)
    x0, label, positions = torch.randn(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64), torch.arange(100, 106)
    whole = loss_fn(model, (x0, label), positions)
    halves = [loss_fn(model, (x0[part], label[part]), positions[part]) for part in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(whole, torch.cat(halves), atol=1e-6)


@pytest.mark.gpu
def test_loss_follows_the_model_to_the_gpu():
    loss_fn = DiffusionLoss(make_schedule(weighting="min_snr"), seed=0, num_classes=0)
    model = torch.nn.Conv2d(1, 1, 1).cuda()
    model.forward = lambda x, t, cond, f=model.forward: f(x)
    batch = torch.randn(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64)
    assert loss_fn(model, batch, torch.arange(6)).isfinite().all()
    assert math.isfinite(loss_fn.validate(model, [batch])["val_loss"])


def test_validation_is_the_same_twice_and_whatever_the_batches():
    loss_fn = DiffusionLoss(make_schedule(), seed=0, num_classes=0)
    model = torch.nn.Conv2d(1, 1, 1)
    model.forward = lambda x, t, cond, f=model.forward: f(x)
    x0, label = torch.randn(7, 1, 8, 8), torch.zeros(7, dtype=torch.int64)
    one = loss_fn.validate(model, [(x0, label)])
    two = loss_fn.validate(model, [(x0[:4], label[:4]), (x0[4:], label[4:])])
    assert tuple(one) == loss_fn.metric_names
    assert all(math.isclose(one[name], two[name], rel_tol=1e-5) for name in one)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("schedule", "quadratic", "linear, cosine, sigmoid, edm"),
        ("prediction_type", "noise", "epsilon, v_prediction, sample, edm"),
        ("timestep_sampling", "cosine", "uniform, log_normal"),
        ("sigma_max", 0.001, "must rise"),
        ("sigma_data", 0.0, "above 0"),
        ("log_normal_std", -1.0, "above 0"),
        ("vlb_weight", -1.0, "0 or more"),
        ("num_train_timesteps", 1, "2 or more"),
        ("beta_end", 1.5, "within"),
        ("log_snr_shift", math.nan, "within ±10"),
        ("loss_weighting", "p2", "uniform, min_snr, uncertainty"),
        ("min_snr_gamma", 0.0, "above 0"),
        ("label_dropout", 1.0, "within"),
        ("zero_terminal_snr", True, "no signal at the last timestep.*use v_prediction, sample or edm"),
    ],
)
def test_impossible_settings_say_what_is_allowed(setting, value, says):
    with pytest.raises(ValueError, match=says):
        replace(make_schedule("linear", "epsilon").config, **{setting: value})
