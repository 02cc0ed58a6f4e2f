"""The variational bound: how many bits the model needs for the data, and the loss of a learned variance.

L = L_T + sum over t of L_t (Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5), in nats per dimension:
L_T = KL(q(x_T|x0) || N(0, I)), L_t = KL(q(x_(t-1)|x_t, x0) || p(x_(t-1)|x_t)), and at t = 0 -log p(x0|x_0),
a Gaussian density. With ᾱ' that of t - 1 (1 before t = 0) and β = 1 - ᾱ/ᾱ'

    q(x_(t-1)|x_t, x0) = N(c·x0 + ..., β̃),   c = sqrt(ᾱ')·β/(1 - ᾱ),   β̃ = β·(1 - ᾱ')/(1 - ᾱ)

and p is the same with the predicted x0, and a variance that is β̃, β or between them.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Diffusion import Denoiser, NoiseSchedule
from Libraries.Utils import SampleNoise, require

VARIANCES = ("fixed_small", "fixed_large", "learned")


def interpolated_log_variance(output: Tensor, log_beta: Tensor | float, log_small: Tensor | float) -> Tensor:
    """Return the learned log-variance of a step, like `output` (Nichol and Dhariwal 2021, eq. 15).

    v·log β + (1 - v)·log β̃ with v = (output + 1)/2, so that an output of -1 is the lower and of 1 the upper
    bound of the true one.

    Args:
        output: the variance output of the network, (B, C, ...).
        log_beta, log_small: log β and log β̃, numbers or broadcastable to it.

    Raises:
        ValueError: the output is empty: the denoiser has none.
    """
    if output.numel() == 0:
        raise ValueError("variance='learned' needs a model trained with learned_variance=True")
    v = (output + 1) / 2
    return v * log_beta + (1 - v) * log_small


def bound_terms(
    schedule: NoiseSchedule, x0: Tensor, predicted: Tensor, variance_output: Tensor, t: Tensor, variance: str
) -> Tensor:
    """Return L_t of each sample, (B,) in nats per dimension.

    β̃ is 0 at t = 0, where it is taken from t = 1, as Nichol and Dhariwal do.

    Args:
        x0, predicted: data and the x0 that the network makes of x_t, (B, C, ...).
        variance_output: like x0, used by variance="learned" alone.
        t: int64 (B,).
        variance: fixed_small (β̃) | fixed_large (β) | learned.
    """
    beta, small, weight = _step_coefficients(schedule, t, x0)
    if variance == "learned":
        log_variance = interpolated_log_variance(variance_output, beta.log(), small.log())
    else:
        log_variance = torch.log({"fixed_small": small, "fixed_large": beta}[variance])
    error = weight * (x0 - predicted)
    divergence = (log_variance - small.log() + (small + error**2) * torch.exp(-log_variance) - 1) / 2
    log_loss = (math.log(2 * math.pi) + log_variance + error**2 * torch.exp(-log_variance)) / 2
    first = (t == 0).view(-1, *[1] * (x0.ndim - 1))
    return torch.where(first.to(x0.device), log_loss, divergence).flatten(1).mean(dim=1)


def prior_term(schedule: NoiseSchedule, x0: Tensor) -> Tensor:
    """Return L_T of each sample of x0 (B, ...), (B,) in nats per dimension: what is left of x0 at the end."""
    abar = schedule.alphas_cumprod[-1].item()
    divergence = (abar * x0**2 + (1 - abar) - 1 - math.log1p(-abar)) / 2
    return divergence.flatten(1).mean(dim=1)


@torch.no_grad()
def bits_per_dimension(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x0: Tensor,
    seeds: Iterable[int],
    *,
    variance: str,
    progress: bool = False,
) -> Tensor:
    """Return the variational bound of each clip in bits per dimension, (B,): L/ln 2, one call per timestep.

    The data are continuous, so the bound is a differential one: it can be below 0, it compares models of the
    same representation and nothing else, and one bit less means that values could be twice as precise.

    Args:
        denoiser: (x_t (B, C, F, T), t (B,)) -> x0; for variance="learned" with the variance output behind it
            (`Parameterisation.denoiser`).
        x0: (B, C, F, T) float, clips the model has not seen, on the model's device.
        seeds: one per clip, of the noise.
        variance: fixed_small | fixed_large | learned; that of the sampler whose bound it is.

    Raises:
        ValueError: an unknown variance, or "learned" from a denoiser without variance output.
    """
    require(VARIANCES, variance=variance)
    noise = SampleNoise(seeds, x0.device, dtype=x0.dtype)
    total = prior_term(schedule, x0)
    steps = range(schedule.num_train_timesteps)
    for step in tqdm(steps, desc="bound", unit="step", leave=False, disable=not progress):
        t = torch.full((len(x0),), step, device=x0.device)
        x_t = schedule.add_noise(x0, noise(tuple(x0.shape[1:])), t)
        predicted, variance_output = denoiser(x_t, t).tensor_split([x0.shape[1]], dim=1)
        total = total + bound_terms(schedule, x0, predicted, variance_output, t, variance)
    return total / math.log(2)


def _step_coefficients(schedule: NoiseSchedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """β, β̃ (that of t = 1 at t = 0) and c at t (B,) as (B, 1, ...), in `like`'s dtype and on its device."""
    abar = schedule.alphas_cumprod
    before = torch.cat([abar.new_ones(1), abar[:-1]])
    beta = 1 - abar / before
    small = beta * (1 - before) / (1 - abar)
    small[0] = small[1]
    weight = before.sqrt() * beta / (1 - abar)
    shape, t = (-1,) + (1,) * (like.ndim - 1), t.cpu()
    beta, small, weight = (
        table[t].to(like.device, like.dtype).view(shape) for table in (beta, small, weight)
    )
    return beta, small, weight
