"""Consistency tuning: from a trained diffusion to a network that needs one or two steps.

Geng et al. 2024 (ECT, arXiv 2406.14548): the network D(x, σ) learns to say the same x0 at two levels of noise
of one clip, σ and a little less, r. What it says is then the end of the probability flow, not the mean of all
clips that x may have come from. There is no teacher: the target is the network itself, without a gradient.
"""

import math

import torch
from torch import Tensor

from Libraries.Diffusion import NoiseSchedule, Parameterisation
from Libraries.Training.DiffusionLoss import DiffusionLoss, TrainedNetwork

NEARNESS, STEEPNESS = 8.0, 0.5  # k and b of r(σ), with σ in standard deviations of the data
HUBER = 0.00054  # c = HUBER·sqrt(values of a clip) (Song and Dhariwal 2023, section 3.3)


def lower_sigma(sigma: Tensor, ratio: float, stage: Tensor) -> Tensor:
    """Return r = max(0, σ·(1 - q^-(stage + 1)·(1 + k·sigmoid(-b·σ)))), the level of the target.

    Geng et al. 2024, appendix A. A larger q or a later stage brings r nearer to σ.

    Args:
        sigma: (B,) float64, in standard deviations of the data.
        ratio: q. stage: (B,), from 0.
    """
    step = ratio ** -(stage.to(sigma.dtype) + 1) * (1 + NEARNESS * torch.sigmoid(-STEEPNESS * sigma))
    return (sigma * (1 - step)).clamp(min=0)


def consistency_loss(
    network: TrainedNetwork,
    parameterisation: Parameterisation,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    cond: Tensor | None = None,
    *,
    stage: Tensor,
    data_std: float = 1.0,
) -> Tensor:
    """Return the loss of each sample, (B,) of x0's dtype: (sqrt(|D(σ) - D(r)|² + c²) - c)/(σ - r).

    D(σ) and D(r) are the network's x0 for the same clip with the same noise at two levels, and with the same
    dropout mask; D(r) has no gradient, and is x0 itself where r is below the schedule's least noise.

    Args:
        x0: (B, C, F, T) data; noise: the same shape, N(0, I).
        t: (B,) where σ is; any number within the schedule.
        cond: (B,) class labels or None.
        stage: (B,) of the tuning, from 0.
        data_std: standard deviation of the data, in which σ and the error are counted.
    """
    schedule = parameterisation.schedule
    t = t.double().cpu()
    sigma, least = (schedule.log_sigma_of_t(level).exp() / data_std for level in (t, torch.zeros_like(t)))
    r = lower_sigma(sigma, schedule.config.consistency_ratio, stage.cpu())
    clean = r < least
    r = r.masked_fill(clean, 0.0)

    def denoise(t: Tensor) -> Tensor:
        x_t = schedule.add_noise(x0, noise, t)
        output = network(parameterisation.scale_input(x_t, t), t.to(x0.device), cond)
        return parameterisation.to_x0(output.to(x0.dtype), x_t, t)  # not at the network's precision

    devices = [x0.device] if x0.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):  # so that both calls draw the same dropout mask
        target = denoise(schedule.t_of_log_sigma((r * data_std).log()))
        target = torch.where(clean.to(x0.device).view(-1, 1, 1, 1), x0, target)
    squared = ((denoise(t) - target) / data_std).square().flatten(1).sum(dim=1)
    c = HUBER * math.sqrt(x0[0].numel())
    return ((squared + c**2).sqrt() - c) / (sigma - r).to(squared)


class ConsistencyLoss(DiffusionLoss):
    """What `Training.fit` minimises and reports in consistency tuning.

    Args:
        data_std: standard deviation of the data.
        Others as `DiffusionLoss`; the settings of the schedule have objective="consistency".
    """

    def __init__(self, schedule: NoiseSchedule, seed: int, num_classes: int, data_std: float):
        super().__init__(schedule, seed, num_classes)
        self.data_std = data_std

    def _loss_at(self, model, batch, t: Tensor, positions: Tensor, seed: int, weighted: bool) -> Tensor:
        clips = self.schedule.config.consistency_stage_clips
        stage = positions // clips if clips else torch.zeros_like(positions)
        noised = self._noised(model, batch, t, positions, seed)
        return consistency_loss(*noised, stage=stage, data_std=self.data_std)
