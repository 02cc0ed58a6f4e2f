"""The loss of a diffusion model: the t to train, their weights, and the validation loss."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from Libraries.Diffusion import NoiseSchedule, Parameterisation
from Libraries.Sampling.Likelihood import bound_terms
from Libraries.Utils import SampleNoise, derive_seed

LABEL_STREAM = 1  # separates the draws that drop labels from those of the noise
GOLDEN = (math.sqrt(5) - 1) / 2

# (scaled x_t, t, cond) -> output, and u(t) from `UncertaintyWeighted`
TrainedNetwork = Callable[[Tensor, Tensor, Tensor | None], Tensor | tuple[Tensor, Tensor]]
# network, parameterisation, x0, t, noise, cond: the arguments of `diffusion_loss`
Noised = tuple[TrainedNetwork, Parameterisation, Tensor, Tensor, Tensor, Tensor | None]


def stream_timesteps(positions: Tensor, num_timesteps: int) -> Tensor:
    """Return the timestep of each sample of the training stream, (B,) int64, evenly over all timesteps.

    u_p = frac(p/φ), with φ the golden ratio, is a low-discrepancy sequence: any stretch of the stream covers
    all timesteps evenly, which gives less variance in the loss than independent draws (the idea of Kingma et
    al. 2021, appendix I.1). u_p depends on the position alone, not on the batch size, accumulation or the
    number of processes.
    """
    u = torch.frac(positions.double() * GOLDEN)
    return (u * num_timesteps).long().clamp_(max=num_timesteps - 1)


def log_normal_timesteps(positions: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return a continuous t for each sample of the training stream, (B,) float64 on the CPU.

    ln σ ~ N(log_normal_mean, log_normal_std²) (Karras et al. 2022, table 1), cut at the schedule's ends; the
    normal variable is the quantile at the uniform u_p of `stream_timesteps`.
    """
    u = torch.frac(positions.double() * GOLDEN)
    normal = math.sqrt(2) * torch.erfinv(2 * u - 1)
    config = schedule.config
    return schedule.t_of_log_sigma(config.log_normal_mean + config.log_normal_std * normal)


class UncertaintyWeighted(nn.Module):
    """A network with a learned log-variance u(t) of its error (Karras et al. 2024, EDM2, section 2.2).

    loss·e^-u + u is smallest where u = log(loss), so every t comes to count alike, however hard it is. u is a
    linear function of sinusoids of t and starts at 0; it is trained with the network and not used after.
    """

    def __init__(self, network: nn.Module, num_train_timesteps: int, frequencies: int = 64):
        super().__init__()
        self.network = network
        k = torch.arange(frequencies) / 2
        self.register_buffer("angular", math.pi * k / num_train_timesteps, persistent=False)
        self.log_variance = nn.Linear(frequencies, 1)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.zeros_(self.log_variance.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the network's output and u(t) (B,)."""
        features = torch.cos(t.to(self.angular.dtype)[:, None] * self.angular)
        return self.network(x, t, cond), self.log_variance(features)[:, 0]


def diffusion_loss(
    network: TrainedNetwork,
    parameterisation: Parameterisation,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    cond: Tensor | None = None,
    *,
    weighted: bool = True,
) -> Tensor:
    """Return the loss of each sample, (B,) float32.

    This is the mean squared error of the network's output (Ho et al. 2020, eq. 14). If `weighted`, the
    settings apply: it is multiplied by the min-SNR weight, or by e^-u of the uncertainty with u added, and
    `vlb_weight`·T·L_t is added for a learned variance (Nichol and Dhariwal 2021, eq. 16).

    Args:
        network: predicts `parameterisation.target`; `UncertaintyWeighted` for that loss weighting.
        x0: (B, C, F, T) data; noise: the same shape, N(0, I).
        t: (B,) int64, or float for continuous time.
        cond: (B,) class labels or None.
    """
    schedule = parameterisation.schedule
    config, x_t = schedule.config, schedule.add_noise(x0, noise, t)
    output = network(parameterisation.scale_input(x_t, t), t.to(x0.device), cond)
    output, log_variance = output if isinstance(output, tuple) else (output, None)
    prediction, variance_output = output.float().tensor_split([x0.shape[1]], dim=1)
    target = parameterisation.target(x0, noise, t).float()
    error = (prediction - target).square().flatten(1).mean(dim=1)
    if not weighted:
        return error
    if config.loss_weighting == "min_snr":
        loss = min_snr_weight(parameterisation, t).to(error.device) * error
    elif config.loss_weighting == "uncertainty":
        loss = error * torch.exp(-log_variance.float()) + log_variance.float()
    else:
        loss = error
    if config.learned_variance:
        # the mean is trained by the error alone, so the bound sends no gradient through it
        predicted = parameterisation.to_x0(prediction.detach(), x_t, t)
        bound = bound_terms(schedule, x0, predicted, variance_output, t, "learned")
        loss = loss + config.vlb_weight * schedule.num_train_timesteps * bound
    return loss


def min_snr_weight(parameterisation: Parameterisation, t: Tensor) -> Tensor:
    """Return the weight of the squared error of the network's output at t (B,), float32 (B,).

    The squared error of x0 has the weight min(snr, γ) (Hang et al. 2023), that of the output slope² times
    that: min(snr, γ)/snr for epsilon and min(snr, γ)/(snr + 1) for v. Where ᾱ = 0 the weight is 0: with
    `zero_terminal_snr` the last timestep is learned from its neighbours alone.
    """
    schedule = parameterisation.schedule
    a, s = schedule.levels(t, schedule.signal)
    snr = (a / s).square()
    return snr.clamp(max=schedule.config.min_snr_gamma) * parameterisation.slope(t).square()


class DiffusionLoss:
    """What `Training.fit` minimises and reports for a diffusion model.

    The timestep and noise of a training sample, and whether its label is dropped, depend only on the seed and
    the sample's position in the stream.

    Args:
        schedule: the noise schedule, with the settings of the loss.
        seed: of the noise.
        num_classes: that of the network, which gets the batch's labels; 0: it gets none. A dropped label
            (`label_dropout`, Ho and Salimans 2022, algorithm 1) is `num_classes`.
        num_buckets: the validation loss is reported for this many equal ranges of t.
    """

    def __init__(self, schedule: NoiseSchedule, seed: int, num_classes: int, num_buckets: int = 4):
        self.schedule, self.seed, self.num_classes = schedule, seed, num_classes
        self.parameterisation = Parameterisation(schedule)
        edges = torch.linspace(0, schedule.num_train_timesteps, num_buckets + 1).long().tolist()
        self.buckets = list(pairwise(edges))
        self.metric_names = ("val_loss", *(f"val_loss_t{low}-{high - 1}" for low, high in self.buckets))

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor], positions: Tensor) -> Tensor:
        """Return the loss of each sample, (B,); batch is (x0 (B, C, F, T), label (B,)), positions (B,)."""
        if self.schedule.config.timestep_sampling == "log_normal":
            t = log_normal_timesteps(positions, self.schedule)
        else:
            t = stream_timesteps(positions, self.schedule.num_train_timesteps)
        batch = batch[0], self._drop_labels(batch[1], positions)
        return self._loss_at(model, batch, t, positions, self.seed, weighted=True)

    @torch.no_grad()
    def validate(self, model: nn.Module, batches) -> dict[str, float]:
        """Return the mean squared error for each bucket of t and overall, with the same noise at every call.

        The error is unweighted and at the same timesteps whatever the settings of the loss, so that runs with
        the same `prediction_type` and schedule can be compared.
        """
        sums, first = torch.zeros(len(self.buckets), dtype=torch.float64), 0
        for batch in batches:
            positions = torch.arange(first, first + len(batch[0]))
            for bucket, (low, high) in enumerate(self.buckets):
                t = low + stream_timesteps(positions, high - low)
                losses = self._loss_at(model, batch, t, positions, self.seed + 1, weighted=False)
                sums[bucket] += losses.sum().item()
            first += len(batch[0])
        means = (sums / first).tolist()
        return dict(zip(self.metric_names, [sum(means) / len(means), *means], strict=True))

    def _drop_labels(self, label: Tensor, positions: Tensor) -> Tensor:
        fraction = self.schedule.config.label_dropout
        if not (fraction and self.num_classes):
            return label
        draws = [derive_seed(self.seed, position, LABEL_STREAM) / 2**32 for position in positions.tolist()]
        dropped = torch.tensor([draw < fraction for draw in draws], device=label.device)
        return label.masked_fill(dropped, self.num_classes)

    def _loss_at(self, model, batch, t: Tensor, positions: Tensor, seed: int, weighted: bool) -> Tensor:
        return diffusion_loss(*self._noised(model, batch, t, positions, seed), weighted=weighted)

    def _noised(self, model, batch, t: Tensor, positions: Tensor, seed: int) -> Noised:
        """Return the network and its samples at t (B,), as a loss takes them."""
        device = next(model.parameters()).device
        x0, label = (part.to(device) for part in batch)
        seeds = [derive_seed(seed, position) for position in positions.tolist()]
        noise = SampleNoise(seeds, device, draw_on=device)(x0.shape[1:])
        cond = label if self.num_classes else None
        self.schedule.to(device)  # reading a table on the CPU is slow from a GPU
        network, x0 = self._network_and_data(model, x0, seeds)
        return network, self.parameterisation, x0, t, noise, cond

    def _network_and_data(
        self, model: nn.Module, x0: Tensor, seeds: list[int]
    ) -> tuple[TrainedNetwork, Tensor]:
        """Return the network to train and its data, made from x0 (B, C, F, T) and the seeds of its noise."""
        return model, x0
