"""The loss of an autoencoder: its terms, warm-up, the critic's cut gradients, and the journal's sums."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from Conf import ORIGIN, SMOKE
from Libraries.Training.Loop import fit
from Libraries.Training.RunLog import read_metrics
from Libraries.Training.VAELoss import (
    PatchCritic,
    TrainableVAE,
    VAELoss,
    reconstruction_error,
    spectral_error,
)
from Libraries.Utils import SampleNoise, derive_seed
from Libraries.VAE import VAE, Posterior

SHAPE = (1, 16, 24)
CONFIG = replace(SMOKE.vae.network, channels=(8, 16))
CRITICAL = replace(SMOKE.vae.loss, adversarial_weight=0.5, adversarial_start=2, critic_channels=(8, 16))
BATCH = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.zeros(4).long()
TRAIN = replace(
    SMOKE.vae.train, num_steps=6, lr_schedule="constant", mixed_precision="no",
    log_every=1, validate_every=2, save_every=3,
)  # fmt: skip


def trainable(loss=SMOKE.vae.loss):
    torch.manual_seed(0)
    return TrainableVAE(VAE(CONFIG, SHAPE), loss)


def loss_fn(loss=SMOKE.vae.loss, samples_per_step=4):
    return VAELoss(loss, CONFIG.latent_shape(SHAPE), samples_per_step, seed=0)


def test_reconstruction_is_a_mean_over_the_clip():
    x0, y = torch.zeros(2, *SHAPE), torch.full((2, *SHAPE), 0.5)
    assert reconstruction_error(x0, y, "l1").tolist() == pytest.approx([0.5, 0.5])
    assert reconstruction_error(x0, y, "l2").tolist() == pytest.approx([0.25, 0.25])


def test_spectral_error_is_zero_for_a_level_and_not_for_a_blur():
    x0 = BATCH[0]
    assert spectral_error(x0, x0 + 0.3, (1, 2)).max() < 1e-6
    blurred = F.avg_pool2d(x0, 3, stride=1, padding=1)
    assert (spectral_error(x0, blurred, (1, 2)) > 0.1).all()


def test_origin_loss_is_the_journals_over_the_values_of_a_clip():
    model = trainable(ORIGIN.vae.loss)
    found = loss_fn(ORIGIN.vae.loss)(model, BATCH, torch.arange(4))
    noise = SampleNoise([derive_seed(0, position) for position in range(4)])(model.vae.latent_shape)
    reconstruction, posterior = model.vae(BATCH[0], noise)
    summed = (reconstruction - BATCH[0]).square().flatten(1).sum(1)
    journal = 10_000 * summed + posterior.kl().flatten(1).sum(1)
    assert torch.allclose(found, journal / BATCH[0][0].numel(), rtol=1e-5)


def test_kl_warms_up_by_optimiser_steps_and_not_by_batches():
    loss = replace(SMOKE.vae.loss, kl_weight=1.0, kl_warmup_steps=10)
    model = trainable(loss)
    with torch.no_grad():
        kl = model.vae.encode(BATCH[0]).kl().flatten(1).sum(1) / BATCH[0][0].numel()
        for samples_per_step, first, share in (
            (4, 0, 0.1),
            (4, 4, 0.2),
            (4, 400, 1.0),
            (8, 4, 0.1),
            (8, 8, 0.2),
        ):
            positions = torch.arange(first, first + 4)
            full, without = (
                loss_fn(config, samples_per_step)(model, BATCH, positions)
                for config in (loss, replace(loss, kl_weight=0.0))
            )
            assert torch.allclose(full - without, share * kl, atol=1e-5)


def test_noise_depends_on_the_position_alone():
    model = trainable()
    together = loss_fn()(model, BATCH, torch.arange(4))
    alone = loss_fn()(model, tuple(part[2:3] for part in BATCH), torch.tensor([2]))
    assert torch.allclose(together[2], alone[0], atol=1e-5)


def test_every_width_of_the_critic_halves_rows_and_frames():
    assert PatchCritic(1, (8, 16, 16))(torch.zeros(2, 1, 32, 48)).shape == (2, 1, 4, 6)


def test_critic_and_autoencoder_learn_against_each_other_and_not_for():
    model = trainable(CRITICAL)
    result = model(BATCH[0], torch.zeros(4, *model.vae.latent_shape))
    result.judged.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in model.critic.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.vae.parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    (result.real.sum() + result.fake.sum()).backward()
    assert all(p.grad is None for p in model.vae.parameters())
    assert all(p.grad is not None for p in model.critic.parameters())


def test_critic_is_not_listened_to_before_its_step():
    model = trainable(CRITICAL)
    for first, listened in ((0, False), (8, True)):  # steps 0 and 2
        model.zero_grad(set_to_none=True)
        silent = replace(CRITICAL, adversarial_start=10**6)
        positions = torch.arange(first, first + 4)
        with torch.no_grad():
            difference = (
                loss_fn(CRITICAL)(model, BATCH, positions) - loss_fn(silent)(model, BATCH, positions)
            ).abs()
        assert (difference > 1e-4).all() == listened


def test_autoencoder_is_rewarded_for_what_the_critic_takes_for_real():
    model, positions = trainable(CRITICAL), torch.arange(8, 12)  # step 2, where the critic begins to count
    noise = SampleNoise([derive_seed(0, position) for position in positions.tolist()])
    judged = model(BATCH[0], noise(model.vae.latent_shape)).judged.mean((1, 2, 3))
    silent = loss_fn(replace(CRITICAL, adversarial_start=10**6))
    added = loss_fn(CRITICAL)(model, BATCH, positions) - silent(model, BATCH, positions)
    assert torch.allclose(added, -CRITICAL.adversarial_weight * judged, atol=1e-5)


def test_critic_is_trained_by_the_hinge_of_original_and_reconstruction():
    model, positions = trainable(CRITICAL), torch.arange(4)  # step 0, when the autoencoder does not listen
    noise = SampleNoise([derive_seed(0, position) for position in positions.tolist()])
    result = model(BATCH[0], noise(model.vae.latent_shape))
    with_critic = loss_fn(CRITICAL)(model, BATCH, positions)
    model.critic = None
    alone = loss_fn(CRITICAL)(model, BATCH, positions)
    hinge = F.relu(1 - result.real) + F.relu(1 + result.fake)
    assert torch.allclose(with_critic - alone, hinge.mean((1, 2, 3)), atol=1e-5)


def test_critic_learns_to_tell_original_from_reconstruction():
    model = trainable(CRITICAL)
    optimizer = torch.optim.Adam(model.critic.parameters(), lr=3e-3)
    for _ in range(40):
        result = model(BATCH[0], torch.zeros(4, *model.vae.latent_shape))
        loss = F.relu(1 - result.real).mean() + F.relu(1 + result.fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 and result.real.mean() > result.fake.mean()


def test_validation_reports_both_terms_and_does_not_change():
    model, batches = trainable().eval(), [BATCH, tuple(part[:1] for part in BATCH)]
    scores = loss_fn().validate(model, batches)
    assert scores == loss_fn().validate(model, batches)
    assert tuple(scores) == VAELoss.metric_names
    with torch.no_grad():
        kl = torch.cat([model.vae.encode(x0).kl().flatten(1).sum(1) for x0, _ in batches]).mean()
    assert scores["val_kl"] == pytest.approx(kl.item(), rel=1e-4)


def loaders(batch_size, start_step, **_):
    """Batches whose clips depend on their place in the stream alone."""

    def stream():
        for first in itertools.count(start_step * batch_size, batch_size):
            yield SampleNoise(range(first, first + batch_size))(SHAPE), torch.zeros(batch_size)

    return stream(), [BATCH]


def trained(folder, loss, **changes):
    """Train in `folder`, going on with what is there; return the weights."""
    folder.mkdir(exist_ok=True)
    config = replace(TRAIN, **changes)
    network = fit(trainable(loss), loss_fn(loss), loaders, config, folder)
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("loss", [SMOKE.vae.loss, CRITICAL], ids=["plain", "critic"])
def test_resumed_training_is_the_uninterrupted_one(loss, tmp_path):
    whole = trained(tmp_path / "whole", loss)
    trained(tmp_path / "resumed", loss, num_steps=3)
    assert torch.equal(whole, trained(tmp_path / "resumed", loss))
    columns = set().union(*read_metrics(tmp_path / "whole" / "metrics.csv"))
    assert {"loss", "val_reconstruction", "val_kl"} <= columns


def test_accumulated_batches_are_one_large_one(tmp_path):
    whole = trained(tmp_path / "whole", CRITICAL)
    parts = trained(tmp_path / "parts", CRITICAL, batch_size=2, grad_accumulation=2)
    start = torch.cat([parameter.detach().flatten() for parameter in trainable(CRITICAL).parameters()])
    # Adam divides by tiny gradients of rounded sums, so some weights differ a little
    assert (whole - parts).norm() < 0.02 * (whole - start).norm()


def test_training_in_half_precision_stays_finite(tmp_path):
    assert trained(tmp_path / "run", CRITICAL, mixed_precision="bf16").isfinite().all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reconstruction": "l3"}, "choose one of l1, l2"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0 must be 0 or more"),
        ({"spectral_scales": ()}, "spectral_scales"),
        ({"adversarial_weight": 1.0, "critic_channels": ()}, "needs a critic"),
    ],
)
def test_impossible_settings_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(SMOKE.vae.loss, **change)


def test_half_precision_posteriors_are_summed_in_full():
    result = trainable()(BATCH[0], torch.zeros(4, *CONFIG.latent_shape(SHAPE)))
    assert isinstance(result.posterior, Posterior) and result.posterior.mu.dtype == torch.float32
