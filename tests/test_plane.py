"""Points in the plane: the exact denoiser, a network that learns it, and pictures of both."""

from itertools import pairwise

import pytest
import torch
from test_diffusion import make_schedule
from test_samplers import run

from Libraries.Diffusion import Parameterisation
from Libraries.Networks.PlaneNetwork import PlaneNetwork
from Libraries.Plots.PlanePlots import plot_denoising, plot_paths, plot_points
from Libraries.Sampling.Loop import inference_timesteps
from Libraries.Studies.Plane import PointMixture, two_moons
from Libraries.Training.DiffusionLoss import diffusion_loss
from Libraries.Utils import SampleNoise


def test_moons_lie_about_zero_with_variances_around_one_and_a_seed_gives_the_same():
    moons = two_moons()
    points = moons.sample(5000, seed=1)
    assert points.shape == (5000, 2) and torch.equal(points, moons.sample(5000, seed=1))
    assert points.mean(0).abs().max() < 0.05 and ((points.std(0) > 0.5) & (points.std(0) < 1.5)).all()


@pytest.mark.parametrize("t", [100, 500, 900])
def test_exact_denoiser_is_the_mean_of_the_data_weighted_by_their_likelihood(t):
    """Bayes' rule over 200,000 points of the data, without any formula for Gaussians."""
    schedule, mixture = make_schedule(), PointMixture(torch.tensor([[-1.0, 0.5], [0.7, -0.3]]), std=0.4)
    data, x_t = mixture.sample(200_000, seed=0), torch.tensor([[0.1, 0.2], [-0.6, 0.4], [1.0, -1.0]])
    a, s = schedule.signal[t], schedule.noise_level[t]
    weight = torch.softmax(-(x_t[:, None] - a * data).square().sum(2) / (2 * s**2), dim=1)
    found = mixture.denoiser(schedule)(x_t, torch.full((3,), t))
    assert torch.allclose(found, weight @ data, atol=0.03)


def test_samples_of_the_exact_denoiser_are_data():
    schedule, moons = make_schedule(), two_moons()
    steps, noise = inference_timesteps(schedule, 100, "log_snr"), SampleNoise(range(500))
    x0 = run("dpmpp_2m", moons.denoiser(schedule), schedule, noise, (2,), steps)
    nearest = torch.cdist(x0, moons.means).amin(dim=1)
    assert (nearest < 4 * moons.std).all()
    assert (x0 - moons.sample(500, seed=0)).mean(0).abs().max() < 0.2


def test_a_network_of_the_plane_comes_nearer_to_the_exact_denoiser():
    torch.manual_seed(0)
    schedule, moons, network = make_schedule(), two_moons(), PlaneNetwork(1000, width=64)
    parameterisation, t = Parameterisation(schedule), torch.full((500,), 600)
    x0 = moons.sample(500, seed=0)
    x_t, errors = schedule.add_noise(x0, torch.randn_like(x0), t), []
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for steps in (0, 50, 500):
        for step in range(steps):
            x0, t_all = moons.sample(256, seed=step), torch.randint(1000, (256,))
            loss = diffusion_loss(network, parameterisation, x0, t_all, torch.randn_like(x0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            error = parameterisation.denoiser(network)(x_t, t) - moons.denoiser(schedule)(x_t, t)
        errors.append(error.square().mean().sqrt().item())
    assert all(after < 0.7 * before for before, after in pairwise(errors)), errors


def test_plots_have_a_panel_for_every_name():
    points = two_moons().sample(30, seed=0)
    for plot, panel in (
        (plot_points, points),
        (plot_denoising, (points, 0.5 * points)),
        (plot_paths, torch.stack([points, 0.5 * points, 0 * points])),
    ):
        figure = plot({f"panel {i}": panel for i in range(4)}, "title", columns=3)
        assert [axis.get_title() for axis in figure.axes] == [f"panel {i}" for i in range(4)]
