"""Check what can be wrong with an autoencoder whose loss looks fine; each check reports a sentence."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.VAE import Posterior

SILENT_KL = 0.01  # nats per value; a channel below this carries nothing
ACTIVE_VARIANCE = 0.01  # of the posterior mean over the data (Burda et al. 2016, section 5.1)
COLLAPSED_FRACTION = 0.5  # of channels that carry nothing
LARGEST_MEAN, STD_RANGE = 0.3, (0.7, 1.4)  # of a channel of a standard latent
IGNORED_RATIO = 1.2  # error with another clip's latent relative to the error with its own
UNEVEN_RATIO = 2.5  # error of the worst band relative to the mean


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    failed: bool
    sentence: str  # names the failure, if any, and states what was measured
    values: tuple[float, ...]


def kl_per_channel(posterior: Posterior) -> Tensor:
    """Return the mean KL of each latent channel in nats per value, (channels,)."""
    return posterior.kl().mean((0, 2, 3))


def check_collapse(posterior: Posterior) -> Check:
    """Count the latent channels that carry information.

    A channel is active if its posterior mean varies over the data (variance above 0.01) and its KL is above
    0.01 nats per value. `values` are the KLs of all channels.
    """
    kl, variance = kl_per_channel(posterior), posterior.mu.transpose(0, 1).flatten(1).var(1)
    active = int(((kl > SILENT_KL) & (variance > ACTIVE_VARIANCE)).sum())
    silent, total = len(kl) - active, len(kl)
    failed = silent > COLLAPSED_FRACTION * total
    sentence = f"{active} of {total} latent channels are active, {kl.mean():.2f} nats per value"
    if failed:
        sentence = (
            f"posterior collapse: {silent} of {total} latent channels carry nothing (KL below "
            f"{SILENT_KL} nats per value, or a mean that hardly varies): lower kl_weight or raise "
            "kl_warmup_steps"
        )
    return Check(failed, sentence, tuple(kl.tolist()))


def check_standard(z: Tensor) -> Check:
    """Compare the mean and standard deviation of every channel of z (N, channels, rows, frames) with N(0, 1).

    `values` are the largest absolute mean, and the smallest and largest standard deviation.
    """
    values = z.transpose(0, 1).flatten(1)
    mean, std = values.mean(1).abs().max().item(), values.std(1)
    low, high = std.min().item(), std.max().item()
    failed = mean > LARGEST_MEAN or low < STD_RANGE[0] or high > STD_RANGE[1]
    found = f"channel means within ±{mean:.2f}, deviations {low:.2f} to {high:.2f}"
    sentence = f"the latent is standard: {found}"
    if failed:
        sentence = (
            f"the latent is not standard: {found}, but the prior expects 0 and 1: measure it on the training "
            "split and normalise, as LatentCodec does"
        )
    return Check(failed, sentence, (mean, low, high))


@torch.no_grad()
def check_decoder(decode: Callable[[Tensor], Tensor], z: Tensor, x0: Tensor) -> Check:
    """Decode every clip from the next clip's latent: if the error hardly grows, the latent is ignored.

    Args:
        decode: latents -> spectrograms.
        z: (N, channels, rows, frames) of x0 (N, C, F, T), two clips or more.

    Raises:
        ValueError: there is only one clip.
    """
    if len(z) < 2:
        raise ValueError("checking whether the decoder uses its latent needs two clips or more")
    own, other = ((decode(latent) - x0).abs().mean().item() for latent in (z, z.roll(1, dims=0)))
    failed = other < IGNORED_RATIO * own
    found = f"mean absolute error {own:.3f} with a clip's own latent, {other:.3f} with another's"
    sentence = (
        f"the decoder ignores the latent: {found}" if failed else f"the decoder uses the latent: {found}"
    )
    return Check(failed, sentence, (own, other))


def band_errors(
    x0: Tensor, reconstruction: Tensor, config: SpectrogramConfig, count: int = 8
) -> tuple[list[float], list[float]]:
    """Return the edges in Hz of `count` bands with equally many rows, and the mean absolute error of each."""
    rows = torch.linspace(0, config.n_rows, count + 1).round().long().tolist()
    error = (reconstruction - x0).abs().mean((0, 1, 3))
    edges = [*(float(config.row_frequencies[row]) for row in rows[:-1]), config.kept_frequency]
    errors = [error[low:high].mean().item() for low, high in pairwise(rows)]
    return edges, errors


def check_bands(x0: Tensor, reconstruction: Tensor, config: SpectrogramConfig) -> Check:
    """Find a frequency band that is reconstructed much worse than the rest; `values` are the errors."""
    edges, errors = band_errors(x0, reconstruction, config)
    worst, mean = max(range(len(errors)), key=errors.__getitem__), sum(errors) / len(errors)
    where = f"{edges[worst]:.0f} to {edges[worst + 1]:.0f} Hz"
    failed = errors[worst] > UNEVEN_RATIO * mean
    found = f"{errors[worst]:.3f} from {where}, {mean:.3f} on average"
    sentence = f"the error is even over frequency, at most {found}"
    if failed:
        sentence = f"one frequency band is lost: the error is {found}"
    return Check(failed, sentence, tuple(errors))
