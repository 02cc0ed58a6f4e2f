"""Each check names its failure on a network built to fail that way, and passes one that does not."""

from dataclasses import replace

import pytest
import torch

from Conf import SMOKE
from Libraries.Evaluation.VAEChecks import (
    band_errors,
    check_bands,
    check_collapse,
    check_decoder,
    check_standard,
    kl_per_channel,
)
from Libraries.VAE import VAE, Posterior

CONFIG = SMOKE.spectrogram
X0 = torch.rand(6, *CONFIG.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def vae():
    torch.manual_seed(0)
    network = VAE(replace(SMOKE.vae.network, latent_channels=8), CONFIG.shape).eval()
    with torch.no_grad():
        head = network.encoder.layers[-1]
        head.weight.mul_(10)
        head.bias[8:] = -4.0  # logvar of a posterior that knows its latent
        network.decoder.layers[-1].weight.mul_(10)
    return network


def test_posterior_collapse_is_named(vae):
    with torch.no_grad():
        assert not check_collapse(vae.encode(X0)).failed
        head = vae.encoder.layers[-1]
        for first in (0, 8):  # mu and logvar of six channels of eight: the prior, whatever comes in
            head.weight[first : first + 6] = 0
            head.bias[first : first + 6] = 0
        check = check_collapse(vae.encode(X0))
    assert check.failed and check.sentence.startswith(
        "posterior collapse: 6 of 8 latent channels carry nothing"
    )
    assert check.values[0] == pytest.approx(0, abs=1e-6) and check.values[7] > 0.1


def test_a_channel_that_never_varies_is_not_active():
    mu = torch.full((4, 2, 3, 3), 5.0)  # far from the prior, so that its KL is large
    mu[:, 1] = torch.randn(4, 3, 3)
    check = check_collapse(Posterior(mu, torch.full_like(mu, -6.0)))
    assert "1 of 2 latent channels are active" in check.sentence


def test_kl_per_channel_is_the_closed_forms_mean():
    mu = torch.zeros(5, 3, 2, 2)
    mu[:, 2] = 2.0
    assert kl_per_channel(Posterior(mu, torch.zeros_like(mu))).tolist() == [0, 0, 2]


def test_a_latent_that_is_not_standard_is_named():
    z = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not check_standard(z).failed
    for wrong in (z * torch.tensor([1, 1, 1, 5.0])[:, None, None], z + 1, z * 0.2):
        assert check_standard(wrong).sentence.startswith("the latent is not standard")


@torch.no_grad()
def test_a_decoder_that_ignores_its_latent_is_named(vae):
    z = torch.randn(6, *vae.latent_shape)
    x0 = vae.decode(z)
    assert not check_decoder(vae.decode, z, x0 + 0.01).failed
    first = vae.decoder.layers[0]
    first.weight[:, : vae.latent_shape[0]] = 0  # sees the frequencies alone
    check = check_decoder(vae.decode, z, x0)
    assert check.failed and check.sentence.startswith("the decoder ignores the latent")
    assert check.values[0] == pytest.approx(check.values[1])
    with pytest.raises(ValueError, match="two clips or more"):
        check_decoder(vae.decode, z[:1], x0[:1])


def test_the_band_that_is_lost_is_named():
    assert not check_bands(X0, X0 + 0.1, CONFIG).failed
    muffled = X0 + 0.01
    muffled[:, :, -12:] = -1.0  # the highest of eight bands
    check = check_bands(X0, muffled, CONFIG)
    edges, errors = band_errors(X0, muffled, CONFIG)
    assert check.failed and f"{edges[-2]:.0f} to {edges[-1]:.0f} Hz" in check.sentence
    assert max(errors) == errors[-1] and edges == sorted(edges) and edges[-1] == CONFIG.kept_frequency
