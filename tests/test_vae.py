"""Autoencoders: the posterior's formulas, shapes at odd sizes, gradients, sizes, and what they can learn."""

import math
from dataclasses import replace

import pytest
import torch

from Conf import BASE, SMOKE
from Journal import VAES
from Libraries.Networks.Catalogue import count_parameters
from Libraries.VAE import KINDS, VAE, Posterior, VAEConfig

ORIGIN_SHAPE = (1, 224, 416)
SMALL = VAEConfig(
    kind="residual", channels=(8, 16), row_strides=(2, 4), frame_strides=(2, 1), latent_channels=3,
    blocks_per_level=1, frequency_features=2, norm_groups=4, activation="silu",
)  # fmt: skip


def small(kind):
    return replace(SMALL, kind=kind)


def posterior(seed=0, shape=(2, 3, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    return Posterior(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))


def test_kl_is_that_of_torch_distributions():
    q = posterior()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mu, (q.logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(q.kl(), expected, atol=1e-6)


def test_kl_is_zero_for_the_prior_and_half_a_square_for_a_shifted_one():
    zero = torch.zeros(1, 1, 1, 1)
    assert Posterior(zero, zero).kl().item() == 0
    assert Posterior(zero + 3, zero).kl().item() == pytest.approx(4.5)


def test_samples_have_the_posteriors_mean_and_variance():
    q = Posterior(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), math.log(9.0)))
    z = q.sample(torch.randn(100_000, 1, 1, 1, generator=torch.Generator().manual_seed(0)))
    assert z.mean().item() == pytest.approx(2.0, abs=0.05)
    assert z.std().item() == pytest.approx(3.0, abs=0.05)


def test_gradients_flow_through_a_sample_to_mean_and_variance():
    q = posterior()
    for part in q:
        part.requires_grad_()
    noise = torch.randn(q.mu.shape)
    q.sample(noise).sum().backward()
    assert torch.equal(q.mu.grad, torch.ones_like(q.mu))
    assert torch.allclose(q.logvar.grad, 0.5 * noise * (0.5 * q.logvar).exp())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 16, 32), (2, 17, 33), (1, 23, 7)])
def test_any_size_comes_back(kind, shape):
    vae = VAE(small(kind), shape)
    x0 = torch.randn(3, *shape)
    q = vae.encode(x0)
    assert q.mu.shape == q.logvar.shape == (3, *vae.latent_shape)
    assert vae.decode(q.mu).shape == x0.shape
    assert vae(x0, torch.randn(q.mu.shape))[0].shape == x0.shape


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_has_its_own_stride(kind):
    config = replace(small(kind), channels=(4, 8, 12), row_strides=(1, 2, 4), frame_strides=(4, 2, 1))
    vae = VAE(config, (1, 16, 32))
    q = vae.encode(torch.randn(1, 1, 16, 32))
    assert kind == "linear" or q.mu.shape[2:] == (2, 4)
    assert vae.decode(q.mu).shape == (1, 1, 16, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    torch.manual_seed(0)
    vae = VAE(small(kind), (1, 16, 12))
    with torch.no_grad():  # layers that start at zero hide those before them
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    reconstruction, q = vae(torch.randn(2, 1, 16, 12), torch.randn(2, *vae.latent_shape))
    (reconstruction.square().mean() + q.kl().mean()).backward()
    missing = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_overfits(kind):
    torch.manual_seed(0)
    vae = VAE(replace(small(kind), latent_channels=16, row_strides=(2, 2)), (1, 8, 8))
    phases = torch.linspace(0, 3, 4)[:, None] + 0.4 * torch.arange(64)
    x0, noise = phases.sin().reshape(4, 1, 8, 8), torch.zeros(4, *vae.latent_shape)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(200):
        loss = (vae(x0, noise)[0] - x0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("kind", "parameters", "latent", "compression"),
    [
        ("linear", 143_502_721, (256, 1, 1), 364),
        ("conv", 406_657, (64, 28, 52), 1),
        ("conv_v2", 3_228_353, (128, 14, 26), 2),
    ],
)
def test_the_origins_three_show_what_the_journal_found(kind, parameters, latent, compression):
    with torch.device("meta"):
        vae = VAE(VAES[kind], ORIGIN_SHAPE)
    assert count_parameters(vae) == parameters
    assert vae.latent_shape == latent
    assert VAES[kind].compression(ORIGIN_SHAPE) == compression


def test_linear_layers_at_a_low_compression_hold_billions():
    with torch.device("meta"):
        vae = VAE(replace(VAES["linear"], latent_channels=224 * 416 // 16), ORIGIN_SHAPE)
    assert count_parameters(vae) > 3e9


@pytest.mark.parametrize("name", [name for name in VAES if name.startswith("residual")])
def test_the_working_one_compresses_as_its_name_says(name):
    config = VAES[name]
    assert config.compression(SMOKE.spectrogram.shape) == int(name.removeprefix("residual_"))
    assert 8 <= config.compression(BASE.spectrogram.shape) <= 64


def test_shapes_that_do_not_fit_say_what_was_expected():
    vae = VAE(SMALL, (1, 16, 32))
    with pytest.raises(ValueError, match=r"x0 has shape \(1, 1, 16, 30\); expected \(B, 1, 16, 32\)"):
        vae.encode(torch.zeros(1, 1, 16, 30))
    with pytest.raises(ValueError, match=r"z has shape \(1, 3, 2, 2\); expected \(B, 3, 2, 16\)"):
        vae.decode(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "vq"}, "choose one of linear, conv, conv_v2, residual"),
        ({"activation": "relu"}, "choose one of silu, gelu"),
        ({"row_strides": (2,)}, "need one value per level"),
        ({"latent_channels": 0}, "must be 1 or more"),
        ({"blocks_per_level": 0}, "blocks_per_level=0 must be 1 or more"),
        ({"channels": (6, 16)}, "multiples of norm_groups=4"),
    ],
)
def test_impossible_settings_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMALL, **change)


def test_precision_of_the_posterior_is_full_under_autocast():
    vae = VAE(SMALL, (1, 16, 32))
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, q = vae(torch.randn(1, 1, 16, 32), torch.zeros(1, *vae.latent_shape))
    assert {reconstruction.dtype, q.mu.dtype, q.logvar.dtype} == {torch.float32}
