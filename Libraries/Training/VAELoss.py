"""The loss of an autoencoder: reconstruction, spectral terms, KL, and a critic for detail."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from Libraries.Layers import LARGEST, FrequencyFeatures
from Libraries.Utils import SampleNoise, derive_seed, require
from Libraries.VAE import VAE, Posterior

RECONSTRUCTIONS = ("l1", "l2")
CRITIC_FREQUENCY_FEATURES = 4  # channels


@dataclass(frozen=True, kw_only=True)
class VAELossConfig:
    """The weights of the loss; the values live in `Conf.py`.

    Every term is a mean over the values of a clip. So is the KL, its sum in nats divided by the number of the
    clip's values: the loss is the negative evidence lower bound per value, and a weight means the same at
    every size.

    Raises:
        ValueError: a name is unknown or a number is impossible.
    """

    reconstruction: str  # l1 | l2
    reconstruction_weight: float  # of the error of values
    spectral_weight: float  # of the error of differences between neighbouring rows and frames
    spectral_scales: tuple[int, ...]  # rows and frames averaged before the differences
    kl_weight: float  # of the posterior's distance from N(0, I)
    kl_warmup_steps: int  # optimiser steps of linear rise
    adversarial_weight: float = 0.0  # 0: no critic
    adversarial_start: int = 0  # optimiser step from which the critic counts
    critic_channels: tuple[int, ...] = ()  # width of each halving of the patch critic

    def __post_init__(self):
        require(RECONSTRUCTIONS, reconstruction=self.reconstruction)
        weights = ("reconstruction_weight", "spectral_weight", "kl_weight", "adversarial_weight")
        for name in (*weights, "kl_warmup_steps", "adversarial_start"):
            require("[0, inf)", **{name: getattr(self, name)})
        if not self.spectral_scales or min(self.spectral_scales) < 1:
            raise ValueError(f"spectral_scales={self.spectral_scales} must be one or more numbers from 1 up")
        for width in self.critic_channels:
            require(f"[1, {LARGEST}]", critic_channels=width)
        if self.adversarial_weight and not self.critic_channels:
            raise ValueError("adversarial_weight needs a critic: give critic_channels at least one width")


def reconstruction_error(x0: Tensor, reconstruction: Tensor, kind: str) -> Tensor:
    """Return the mean absolute (l1) or squared (l2) error of each clip: (B, C, F, T) twice -> (B,)."""
    error = (x0 - reconstruction).flatten(1)
    return (error.abs() if kind == "l1" else error.square()).mean(1)


def spectral_error(x0: Tensor, reconstruction: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Return the error of the contrasts: the mean absolute error of differences between neighbours, (B,).

    Differences along time are onsets, those along frequency partials and the gaps between them; averaging
    over `scale` rows and frames first finds the broad ones. A blurred spectrogram is close to the original
    value by value but has lost these differences.
    """
    errors = []
    for scale in scales:
        error = F.avg_pool2d(x0 - reconstruction, scale)  # averaging and differences are linear
        errors += [error.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3)]
    return torch.stack(errors).mean(0)


class PatchCritic(nn.Module):
    """Judge patches (Isola et al. 2017): (B, C, F, T) -> logits (B, 1, f, t), one per patch.

    Every width of `channels` halves both axes. Rows carry their frequency, as in the autoencoder.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...]):
        super().__init__()
        layers = [FrequencyFeatures(CRITIC_FREQUENCY_FEATURES)]
        width = in_channels + CRITIC_FREQUENCY_FEATURES
        for wider in channels:
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x0: Tensor) -> Tensor:
        return self.layers(x0)


class Pass(NamedTuple):
    """One pass of `TrainableVAE`; the logits are None without a critic."""

    reconstruction: Tensor  # (B, C, F, T)
    posterior: Posterior
    judged: Tensor | None  # logits of the reconstruction, with gradients for the autoencoder alone
    real: Tensor | None  # logits of the original, and
    fake: Tensor | None  # of the reconstruction, with gradients for the critic alone


class TrainableVAE(nn.Module):
    """An autoencoder and its critic as one network, so that one optimiser and one checkpoint hold both."""

    def __init__(self, vae: VAE, config: VAELossConfig):
        super().__init__()
        self.vae = vae
        self.critic = PatchCritic(vae.shape[0], config.critic_channels) if config.adversarial_weight else None

    def forward(self, x0: Tensor, noise: Tensor) -> Pass:
        """Reconstruct x0 (B, C, F, T) through one sample of the posterior, and judge the result."""
        reconstruction, posterior = self.vae(x0, noise)
        if self.critic is None:
            return Pass(reconstruction, posterior, None, None, None)
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        judged = functional_call(self.critic, frozen, reconstruction)
        return Pass(reconstruction, posterior, judged, self.critic(x0), self.critic(reconstruction.detach()))


class VAELoss:
    """What `Training.fit` minimises and reports for an autoencoder.

    Per value of a clip, with the weights of the settings:
    reconstruction + spectral + warm-up·KL + critic (hinge, Lim and Ye 2017).
    The noise of a training sample depends only on the seed and the sample's position in the stream. The
    optimiser step, which warm-up and critic need, is the position divided by the samples per step.

    The origin's loss, 10,000·reproduction + KL, is l2 with `reconstruction_weight` 10,000 and `kl_weight` 1.
    In the journal's "reprod loss (*weight) = 1.9e5" the squared error must be summed over the clip: a mean of
    19 is impossible for data in [0, 1]. 1.9e5 is then an RMS error of 1.4 % of the range, and KL = 4e4,
    summed over the latent, is 0.9 nats per value in conv_v2. Divided by the number of values of a clip, both
    give this loss, with the same minimum.

    Args:
        config: the weights.
        latent_shape: of the autoencoder.
        samples_per_step: clips per optimiser step, over all batches and processes.
        seed: of the noise.
    """

    metric_names = ("val_loss", "val_reconstruction", "val_spectral", "val_kl")

    def __init__(
        self, config: VAELossConfig, latent_shape: tuple[int, int, int], samples_per_step: int, seed: int
    ):
        self.config, self.latent_shape = config, latent_shape
        self.samples_per_step, self.seed = samples_per_step, seed

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor], positions: Tensor) -> Tensor:
        """Return the loss of each sample, (B,); batch is (x0 (B, C, F, T), label (B,)), positions (B,)."""
        x0 = batch[0]
        step = (positions // self.samples_per_step).to(x0.device)
        result = model(x0, self._noise(positions, self.seed, x0.device))
        warmup = ((step + 1) / max(self.config.kl_warmup_steps, 1)).clamp(max=1)
        loss = self._weighted(self._terms(x0, result), warmup)
        if result.judged is None:
            return loss
        adversarial_weight = (step >= self.config.adversarial_start) * self.config.adversarial_weight
        critic = F.relu(1 - result.real).mean((1, 2, 3)) + F.relu(1 + result.fake).mean((1, 2, 3))
        return loss - adversarial_weight * result.judged.mean((1, 2, 3)) + critic

    @torch.no_grad()
    def validate(self, model: nn.Module, batches) -> dict[str, float]:
        """Return the mean loss (full KL, no critic) and its terms, with the same noise at every call.

        `val_kl` is the sum over a clip in nats; the others are means over its values.
        """
        device = next(model.parameters()).device
        rows, first = [], 0
        for x0, _ in batches:
            positions = torch.arange(first, first + len(x0))
            x0, noise = x0.to(device), self._noise(positions, self.seed + 1, device)
            terms = self._terms(x0, model(x0, noise))
            values = x0[0].numel()
            rows.append(torch.stack([self._weighted(terms), *terms[:2], terms[2] * values]).cpu())
            first += len(x0)
        means = torch.cat(rows, dim=1).double().mean(1).tolist()
        return dict(zip(self.metric_names, means, strict=True))

    def _terms(self, x0: Tensor, result: Pass) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstruction, spectral error and KL of each clip per value, (B,) each, in float32."""
        reconstruction, (mu, logvar) = result.reconstruction.float(), result.posterior
        kl = Posterior(mu.float(), logvar.float()).kl().flatten(1).sum(1)
        return (
            reconstruction_error(x0, reconstruction, self.config.reconstruction),
            spectral_error(x0, reconstruction, self.config.spectral_scales),
            kl / x0[0].numel(),
        )

    def _weighted(self, terms: tuple[Tensor, Tensor, Tensor], warmup: Tensor | float = 1.0) -> Tensor:
        reconstruction, spectral, kl = terms
        config = self.config
        weighted = config.reconstruction_weight * reconstruction + config.spectral_weight * spectral
        return weighted + config.kl_weight * warmup * kl

    def _noise(self, positions: Tensor, seed: int, device: torch.device) -> Tensor:
        seeds = [derive_seed(seed, position) for position in positions.tolist()]
        return SampleNoise(seeds, device, draw_on=device)(self.latent_shape)
