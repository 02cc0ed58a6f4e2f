"""The diffusion process: noise schedule, parameterisation, loss. Knows no network.

Forward process (Ho et al. 2020, eq. 4): x_t = sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·noise, noise ~ N(0, I),
t = 0 (least noise) to num_train_timesteps - 1. Data are expected around zero with a variance near one
or within [-1, 1], because the noise is N(0, I).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from Libraries.Utils import SampleNoise, derive_seed

SCHEDULES = ("linear", "cosine", "sigmoid")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
LOSS_WEIGHTINGS = ("uniform", "min_snr")
LABEL_STREAM = 1  # tells the draws that hide labels from those of the noise
MAX_LOG_SNR_SHIFT = 10.0  # nats; beyond, 1 - ᾱ or ᾱ drowns in rounding


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of the noise schedule and of what the network predicts; values live in `Conf.py`.

    Raises:
        ValueError: a name is unknown or a number impossible.
    """

    schedule: str  # linear | cosine | sigmoid
    num_train_timesteps: int
    beta_start: float  # linear schedule only
    beta_end: float  # linear schedule only
    log_snr_shift: float  # nats added to log-SNR at every t: 2·log(64/size) for larger data; 0: none
    zero_terminal_snr: bool  # rescale so that ᾱ is exactly 0 at the last timestep
    prediction_type: str  # epsilon | v_prediction | sample
    loss_weighting: str  # uniform | min_snr; of the training loss, not of the validation's
    min_snr_gamma: float  # min_snr only; timesteps with more SNR than this count no more than with this
    label_dropout: float  # share of training samples whose label is hidden; 0: none. Only with classes

    def __post_init__(self):
        for name, known in (
            ("schedule", SCHEDULES),
            ("prediction_type", PREDICTION_TYPES),
            ("loss_weighting", LOSS_WEIGHTINGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}"
                )
        if self.num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps={self.num_train_timesteps} must be 2 or more")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"betas must rise within (0, 1); got {self.beta_start} to {self.beta_end}")
        if not abs(self.log_snr_shift) <= MAX_LOG_SNR_SHIFT:
            raise ValueError(f"log_snr_shift={self.log_snr_shift} must be within ±{MAX_LOG_SNR_SHIFT} nats")
        if not 0 < self.min_snr_gamma < math.inf:
            raise ValueError(f"min_snr_gamma={self.min_snr_gamma} must be above 0 and finite")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout={self.label_dropout} must be within [0, 1)")
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "zero_terminal_snr=True leaves no signal at the last timestep, so x0 = (x_t - s·eps)/sqrt(ᾱ) "
                "divides by 0 with prediction_type='epsilon'; use v_prediction or sample"
            )


def linear_betas(num_timesteps: int, start: float, end: float) -> Tensor:
    """Return betas (num_timesteps,), float64, rising linearly (Ho et al. 2020, section 4)."""
    return torch.linspace(start, end, num_timesteps, dtype=torch.float64)


def cosine_betas(num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Return betas (num_timesteps,), float64, of the cosine ᾱ (Nichol and Dhariwal 2021, eq. 17).

    ᾱ(u) = cos²(π/2·(u + s)/(1 + s)), beta_t = 1 - ᾱ((t + 1)/T)/ᾱ(t/T), clipped at `max_beta`.

    What goes wrong with it in practice: the last betas run into the clip, and at t = T - 1 the signal is
    about sqrt(ᾱ) = 5e-5. x0 recovered from a predicted noise is then divided by 5e-5, so an error of 1 %
    in eps becomes an x0 of ±200; without v_prediction or a clamp of x0 the sampler starts from that.
    """
    u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alphas_cumprod = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return _betas_of(alphas_cumprod, max_beta)


def sigmoid_betas(
    num_timesteps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Tensor:
    """Return betas (num_timesteps,), float64, of the sigmoid ᾱ (Jabri et al. 2022; Chen 2023).

    ᾱ(u) = (g(1) - g(u))/(g(1) - g(0)), g(u) = sigmoid((start + u·(end - start))/tau), then as the cosine's.
    A larger tau is closer to linear in ᾱ.
    """
    u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    g = torch.sigmoid((start + u * (end - start)) / tau)
    return _betas_of((g[-1] - g) / (g[-1] - g[0]), max_beta)


def shift_log_snr(alphas_cumprod: Tensor, shift: float) -> Tensor:
    """Return ᾱ with `shift` nats added to its log-SNR (Hoogeboom et al. 2023, section 3.1), same shape.

    Neighbouring pixels of larger data repeat one another, so the same noise hides less of them; a schedule
    made for 64x64 does to size d what it did there with shift = 2·log(64/d), which is below 0.
    """
    return torch.sigmoid(torch.logit(alphas_cumprod) + shift) if shift else alphas_cumprod


def rescale_to_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Return ᾱ that ends at exactly 0 and starts where it did (Lin et al. 2023, algorithm 1), same shape.

    sqrt(ᾱ) is shifted by its last value and stretched back to its first.
    """
    signal = alphas_cumprod.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


def min_snr_weight(alphas_cumprod: Tensor, prediction_type: str, gamma: float) -> Tensor:
    """Return the weight of the squared error of the network's output (Hang et al. 2023).

    That of x0 is min(snr, γ). An error of x0 is sqrt(1/snr) times that of eps and 1/sqrt(snr + 1) that of v,
    so theirs are min(snr, γ)/snr and min(snr, γ)/(snr + 1). Where ᾱ = 0 the weight is 0: with
    `zero_terminal_snr` the last timestep is learned from its neighbours alone. Same shape as
    `alphas_cumprod`, float64.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    per_x0 = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[prediction_type]
    return snr.clamp(max=gamma) / per_x0


def _betas_of(alphas_cumprod: Tensor, max_beta: float) -> Tensor:
    """beta_t = 1 - ᾱ_t/ᾱ_(t-1) of ᾱ at 0/T, 1/T, ..., 1, clipped so that some signal is left."""
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)


BETAS = {
    "linear": lambda config: linear_betas(config.num_train_timesteps, config.beta_start, config.beta_end),
    "cosine": lambda config: cosine_betas(config.num_train_timesteps),
    "sigmoid": lambda config: sigmoid_betas(config.num_train_timesteps),
}


class NoiseSchedule(nn.Module):
    """ᾱ_t and the conversions between x0, noise and v.

    `alphas_cumprod` falls from about 1 to about 0, to exactly 0 with `zero_terminal_snr`; it and `betas`
    are float64 on the CPU (samplers take exact scalars from them). `signal` = sqrt(ᾱ) and
    `noise_level` = sqrt(1 - ᾱ) are float32 buffers that follow the device, and so is `loss_weight`,
    what the squared error of the network's output counts for at each t.
    """

    def __init__(self, config: DiffusionConfig):
        super().__init__()
        self.config = config
        self.num_train_timesteps = config.num_train_timesteps
        self.prediction_type = config.prediction_type
        alphas_cumprod = torch.cumprod(1 - BETAS[config.schedule](config), dim=0)
        alphas_cumprod = shift_log_snr(alphas_cumprod, config.log_snr_shift)
        if config.zero_terminal_snr:
            alphas_cumprod = rescale_to_zero_terminal_snr(alphas_cumprod)
        self.alphas_cumprod = alphas_cumprod
        self.betas = 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        self.register_buffer("signal", self.alphas_cumprod.sqrt().float(), persistent=False)
        self.register_buffer("noise_level", (1 - self.alphas_cumprod).sqrt().float(), persistent=False)
        weight = torch.ones_like(alphas_cumprod)
        if config.loss_weighting == "min_snr":
            weight = min_snr_weight(alphas_cumprod, config.prediction_type, config.min_snr_gamma)
        self.register_buffer("loss_weight", weight.float(), persistent=False)

    @property
    def log_snr(self) -> Tensor:
        """log(ᾱ/(1 - ᾱ)), (num_train_timesteps,), float64, falling; -inf where ᾱ is 0."""
        return torch.logit(self.alphas_cumprod)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·noise; x0, noise (B, ...), t (B,) int64."""
        a, s = self._levels(t, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should output at (x0, noise, t): noise, x0, or v (Salimans and Ho 2022)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        a, s = self._levels(t, x0)
        return a * noise - s * x0

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Recover x0 from the network's output at (x_t, t).

        epsilon: (x_t - s·eps)/a;  v: a·x_t - s·v;  sample: itself; with a = sqrt(ᾱ), s = sqrt(1 - ᾱ).
        """
        if self.prediction_type == "sample":
            return output
        a, s = self._levels(t, x_t)
        return (x_t - s * output) / a if self.prediction_type == "epsilon" else a * x_t - s * output

    def to_eps(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that makes x_t out of x0: eps = (x_t - sqrt(ᾱ_t)·x0)/sqrt(1 - ᾱ_t)."""
        a, s = self._levels(t, x_t)
        return (x_t - a * x0) / s

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(ᾱ_t) and sqrt(1 - ᾱ_t) as (B, 1, ...), in `like`'s dtype and on its device."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        if like.dtype == torch.float64:  # keep full precision where the caller computes in it
            alphas_cumprod = self.alphas_cumprod.to(like.device)[t]
            return alphas_cumprod.sqrt().view(shape), (1 - alphas_cumprod).sqrt().view(shape)
        return self.signal[t].to(like.dtype).view(shape), self.noise_level[t].to(like.dtype).view(shape)


def stream_timesteps(positions: Tensor, num_timesteps: int) -> Tensor:
    """Return the timestep of each sample of the training stream, (B,) int64.

    u_p = frac(p/φ), φ the golden ratio: a low-discrepancy sequence, so that any stretch of the
    stream covers all timesteps evenly (less variance in the loss than independent draws, the idea of
    Kingma et al. 2021, appendix I.1). It depends on the position alone, hence neither on the batch
    size, nor on accumulation, nor on the number of processes.
    """
    golden = (math.sqrt(5) - 1) / 2
    u = torch.frac(positions.double() * golden)
    return (u * num_timesteps).long().clamp_(max=num_timesteps - 1)


def diffusion_loss(
    model: Callable[..., Tensor],
    schedule: NoiseSchedule,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    cond: Tensor | None = None,
    *,
    weighted: bool = True,
) -> Tensor:
    """Return the mean squared error of each sample (Ho et al. 2020, eq. 14), (B,) float32.

    It is multiplied by the schedule's `loss_weight` at t if `weighted`.

    Args:
        model: (x_t, t, cond) -> prediction of `schedule.target`.
        x0: (B, C, F, T) data; noise: the same shape, N(0, I).
        t: (B,) int64.
        cond: (B,) class labels or None.
    """
    prediction = model(schedule.add_noise(x0, noise, t), t, cond)
    loss = (prediction.float() - schedule.target(x0, noise, t).float()).square().flatten(1).mean(dim=1)
    return schedule.loss_weight[t] * loss if weighted else loss


class DiffusionObjective:
    """What `Training.fit` minimises and reports for a diffusion model.

    Timestep and noise of a training sample, and whether its label is hidden, depend on (seed, its position
    in the stream) alone.

    Args:
        schedule: the noise schedule.
        seed: of the noise.
        num_classes: of the network, which gets the labels of the batch; 0: it gets none. A hidden label
            (`label_dropout`, Ho and Salimans 2022, algorithm 1) is `num_classes`.
        num_buckets: the validation loss is reported for this many equal ranges of t.
    """

    def __init__(self, schedule: NoiseSchedule, seed: int, num_classes: int, num_buckets: int = 4):
        self.schedule, self.seed, self.num_classes = schedule, seed, num_classes
        edges = torch.linspace(0, schedule.num_train_timesteps, num_buckets + 1).long().tolist()
        self.buckets = list(pairwise(edges))
        self.metric_names = ("val_loss", *(f"val_loss_t{low}-{high - 1}" for low, high in self.buckets))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], positions: Tensor) -> Tensor:
        """Return the loss of each sample, (B,); batch is (x0 (B, C, F, T), label (B,)), positions (B,)."""
        t = stream_timesteps(positions, self.schedule.num_train_timesteps)
        batch = batch[0], self._hide_labels(batch[1], positions)
        return self._loss_at(model, batch, t, positions, self.seed, weighted=True)

    @torch.no_grad()
    def validate(self, model: nn.Module, batches) -> dict[str, float]:
        """Return the mean unweighted loss in every bucket of t and over all, the same noise at every call."""
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

    def _hide_labels(self, label: Tensor, positions: Tensor) -> Tensor:
        share = self.schedule.config.label_dropout
        if not (share and self.num_classes):
            return label
        draws = [derive_seed(self.seed, position, LABEL_STREAM) / 2**32 for position in positions.tolist()]
        hidden = torch.tensor([draw < share for draw in draws], device=label.device)
        return label.masked_fill(hidden, self.num_classes)

    def _loss_at(self, model, batch, t: Tensor, positions: Tensor, seed: int, weighted: bool) -> Tensor:
        device = next(model.parameters()).device
        x0, label = (part.to(device) for part in batch)
        seeds = [derive_seed(seed, position) for position in positions.tolist()]
        noise = SampleNoise(seeds, device, draw_on=device)(x0.shape[1:])
        cond = label if self.num_classes else None
        schedule = self.schedule.to(device)  # a table on the CPU takes no index from a GPU
        return diffusion_loss(model, schedule, x0, t.to(device), noise, cond, weighted=weighted)
