"""The loss: continuous time, EDM's preconditioning, learned weights and the hybrid with the bound."""

import math

import diffusers
import pytest
import torch
from test_diffusion import make_schedule
from test_samplers import GaussianNetwork
from torch import nn

from Libraries.Diffusion import PREDICTION_TYPES, SCHEDULES, Parameterisation
from Libraries.Sampling.Likelihood import bound_terms
from Libraries.Training.DiffusionLoss import (
    DiffusionLoss,
    UncertaintyWeighted,
    diffusion_loss,
    log_normal_timesteps,
)


class Affine(nn.Module):
    """A network of `factor` output channels for every channel: one weight and one bias each."""

    def __init__(self, factor=1):
        super().__init__()
        self.out = nn.Conv2d(1, factor, 1)
        self.seen = None

    def forward(self, x, t, cond):
        self.seen = t
        return self.out(x)


def draws(count=4, dtype=torch.float64):
    return torch.randn(2, count, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_whole_timesteps_are_the_same_in_continuous_time(schedule):
    schedule, (x0, noise) = make_schedule(schedule, "edm"), draws()
    t = torch.tensor([0, 1, 500, 999])
    for method in (schedule.add_noise, Parameterisation(schedule).target):
        assert torch.allclose(method(x0, noise, t), method(x0, noise, t.double()), atol=1e-9)


def test_between_two_timesteps_log_sigma_is_linear():
    schedule = make_schedule("edm")
    t = torch.tensor([0.5, 10.25, 998.9], dtype=torch.float64)
    log_sigma = math.log(0.002) + t / 999 * math.log(80 / 0.002)
    assert torch.allclose(schedule.t_of_log_sigma(log_sigma), t, atol=1e-6)
    a, s = schedule.levels(t, torch.zeros(3, 1, dtype=torch.float64))
    assert torch.allclose((s / a)[:, 0].log(), log_sigma, atol=1e-9)


def test_log_normal_timesteps_follow_the_distribution_and_stay_inside():
    schedule = make_schedule("edm")
    t = log_normal_timesteps(torch.arange(20_000), schedule)
    log_sigma = math.log(0.002) + t / 999 * math.log(80 / 0.002)
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.01)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.01)
    assert (log_sigma < -1.2).double().mean().item() == pytest.approx(0.5, abs=0.001)
    narrow = make_schedule("linear")  # starts at σ = 0.01
    assert log_normal_timesteps(torch.arange(20_000), narrow).min() >= 0 and t.max() <= 999


def test_log_normal_training_shows_the_network_times_between_the_timesteps():
    network = Affine().double()
    loss_fn = DiffusionLoss(make_schedule("edm", "edm", timestep_sampling="log_normal"), 0, 0)
    loss = loss_fn(network, (draws()[0], torch.zeros(4)), torch.arange(4))
    assert loss.isfinite().all() and not torch.equal(network.seen, network.seen.round())


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_edm_preconditioning_equals_diffusers(sigma_data):
    """Ours in x = a·x̃, theirs in x̃: what the network sees and the x0 of what it says are the same."""
    ours = make_schedule("edm", "edm", sigma_data=sigma_data)
    theirs = diffusers.EDMEulerScheduler(sigma_data=sigma_data)
    (x0, noise), t = draws(), torch.tensor([0, 300, 700, 999])
    a = ours.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 / a**2 - 1).sqrt()
    x_t, output = ours.add_noise(x0, noise, t), torch.sin(x0 + noise)
    shown, edm = theirs.precondition_inputs(x_t / a, sigma), Parameterisation(ours)
    assert torch.allclose(edm.scale_input(x_t, t), shown, atol=1e-9)
    found = theirs.precondition_outputs(x_t / a, output, sigma)
    assert torch.allclose(edm.to_x0(output, x_t, t), found, atol=1e-9)


def test_edm_shows_and_asks_for_unit_variance_at_every_t():
    schedule, t = make_schedule("edm", "edm"), torch.arange(0, 1000, 111)
    x0, noise = torch.randn(2, len(t), 1, 64, 64, dtype=torch.float64)
    x0 = 0.5 * x0
    edm = Parameterisation(schedule)
    for values in (edm.scale_input(schedule.add_noise(x0, noise, t), t), edm.target(x0, noise, t)):
        assert torch.allclose(values.flatten(1).std(1), torch.ones(len(t), dtype=torch.float64), atol=0.06)


def test_edm_with_sigma_data_one_is_minus_v():
    (x0, noise), t = draws(), torch.tensor([0, 300, 700, 999])
    edm = Parameterisation(make_schedule("cosine", "edm", sigma_data=1.0))
    v = Parameterisation(make_schedule("cosine", "v_prediction"))
    assert torch.allclose(edm.target(x0, noise, t), -v.target(x0, noise, t), atol=1e-9)


def test_edm_of_gaussian_data_has_nothing_to_learn():
    """Their exact denoiser is c_skip·x̃: the best output is 0, and its loss 1 at every t."""
    schedule = make_schedule("edm", "edm")
    edm = Parameterisation(schedule)
    x0, noise = torch.randn(2, 8, 1, 64, 64, dtype=torch.float64)
    t = torch.linspace(0, 999, 8).long()
    network = GaussianNetwork(schedule, 0.0, 0.5)
    shown = edm.scale_input(schedule.add_noise(0.5 * x0, noise, t), t)
    assert network(shown, t).abs().max() < 1e-9
    loss = diffusion_loss(lambda x, t, cond: network(x, t), edm, 0.5 * x0, t, noise)
    assert torch.allclose(loss, torch.ones(8), atol=0.1)


def test_uncertainty_starts_at_the_plain_loss_and_settles_at_its_logarithm():
    parameterisation = Parameterisation(make_schedule(weighting="uncertainty"))
    network, (x0, noise), t = Affine(), draws(64, torch.float32), torch.arange(0, 960, 15)
    model = UncertaintyWeighted(network, 1000)
    plain = diffusion_loss(network, parameterisation, x0, t, noise, weighted=False)
    assert torch.allclose(diffusion_loss(model, parameterisation, x0, t, noise), plain)
    optimizer = torch.optim.Adam(model.log_variance.parameters(), lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        diffusion_loss(model, parameterisation, x0, t, noise).mean().backward()
        optimizer.step()
    _, u = model(x0, t, None)
    assert (u - plain.log()).abs().mean() < 0.2
    weighted = diffusion_loss(model, parameterisation, x0, t, noise, weighted=False) * torch.exp(-u)
    assert weighted.mean().item() == pytest.approx(1, abs=0.1)


def test_validation_of_an_uncertainty_weighted_network_is_the_plain_error():
    network, batch = Affine(), (draws(6, torch.float32)[0], torch.zeros(6, dtype=torch.int64))
    plain = DiffusionLoss(make_schedule(), 0, 0).validate(network, [batch])
    model = UncertaintyWeighted(network, 1000)
    assert DiffusionLoss(make_schedule(weighting="uncertainty"), 0, 0).validate(model, [batch]) == plain


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_hybrid_is_the_simple_loss_and_its_fraction_of_the_bound(prediction_type):
    schedule = make_schedule("cosine", prediction_type, learned_variance=True)
    network, (x0, noise), t = Affine(2).double(), draws(), torch.tensor([0, 1, 500, 990])
    parameterisation = Parameterisation(schedule)
    simple = diffusion_loss(network, parameterisation, x0, t, noise, weighted=False)
    x_t = schedule.add_noise(x0, noise, t)
    denoiser = parameterisation.denoiser(lambda x, t: network(x, t, None), with_variance=True)
    predicted, output = denoiser(x_t, t).chunk(2, dim=1)
    bound = bound_terms(schedule, x0, predicted, output, t, "learned")
    hybrid = diffusion_loss(network, parameterisation, x0, t, noise)
    assert torch.allclose(hybrid, simple + 0.001 * 1000 * bound, rtol=1e-4)


def test_bound_trains_the_variance_and_leaves_the_mean_to_the_simple_loss():
    network, (x0, noise), t = Affine(2).double(), draws(), torch.tensor([1, 100, 500, 900])
    gradients = []
    for weighted in (True, False):
        network.zero_grad()
        learned = Parameterisation(make_schedule("cosine", learned_variance=True))
        diffusion_loss(network, learned, x0, t, noise, weighted=weighted).mean().backward()
        gradients.append(network.out.weight.grad[:, 0, 0, 0].clone())
    assert torch.allclose(gradients[0][0], gradients[1][0])
    assert gradients[0][1] != 0 and gradients[1][1] == 0
