"""The diffusion process: levels of noise and of signal at every t, and what the network predicts. No network.

Forward process (Ho et al. 2020, eq. 4): x_t = sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·noise, noise ~ N(0, I),
t = 0 (least noise) to num_train_timesteps - 1. Data are expected around zero with a variance near one
or within [-1, 1], because the noise is N(0, I).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from Libraries.Utils import require

SCHEDULES = ("linear", "cosine", "sigmoid", "edm")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "edm")
TIMESTEP_SAMPLINGS = ("uniform", "log_normal")
LOSS_WEIGHTINGS = ("uniform", "min_snr", "uncertainty")
MAX_LOG_SNR_SHIFT = 10.0  # nats; beyond, 1 - ᾱ or ᾱ drowns in rounding

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t, t (B,)) -> output of the schedule's `prediction_type`


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of the noise schedule, of what the network predicts and of its loss; values in `Conf.py`.

    Raises:
        ValueError: a name is unknown, a number impossible, or two settings do not go together.
    """

    schedule: str  # linear | cosine | sigmoid | edm
    num_train_timesteps: int
    beta_start: float  # linear schedule only
    beta_end: float  # linear schedule only
    sigma_min: float  # edm schedule only
    sigma_max: float  # edm schedule only
    log_snr_shift: float  # nats added to log-SNR at every t: 2·log(64/size) for larger data; 0: none
    zero_terminal_snr: bool  # rescale so that ᾱ is exactly 0 at the last timestep
    prediction_type: str  # epsilon | v_prediction | sample | edm
    sigma_data: float  # edm prediction only; standard deviation of the data
    learned_variance: bool  # the network also outputs the variance of ddpm's step, in as many channels again
    vlb_weight: float  # learned_variance only; what the variational bound counts for in the loss
    timestep_sampling: str  # uniform | log_normal: how training chooses t
    log_normal_mean: float  # log_normal only; of ln σ
    log_normal_std: float  # log_normal only; of ln σ
    loss_weighting: str  # uniform | min_snr | uncertainty; of the training loss, not of the validation's
    min_snr_gamma: float  # min_snr only; timesteps with more SNR than this count no more than with this
    label_dropout: float  # share of training samples whose label is hidden; 0: none. Only with classes

    def __post_init__(self):
        require(SCHEDULES, schedule=self.schedule)
        require(PREDICTION_TYPES, prediction_type=self.prediction_type)
        require(TIMESTEP_SAMPLINGS, timestep_sampling=self.timestep_sampling)
        require(LOSS_WEIGHTINGS, loss_weighting=self.loss_weighting)
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        require("[2, inf)", num_train_timesteps=self.num_train_timesteps)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"betas must rise within (0, 1); got {self.beta_start} to {self.beta_end}")
        if not 1e-5 <= self.sigma_min < self.sigma_max <= 1e5:
            raise ValueError(
                f"σ must rise within 1e-5 and 1e5; got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )
        if not abs(self.log_snr_shift) <= MAX_LOG_SNR_SHIFT:
            raise ValueError(f"log_snr_shift={self.log_snr_shift} must be within ±{MAX_LOG_SNR_SHIFT} nats")
        for name in ("sigma_data", "log_normal_std", "min_snr_gamma"):
            require("(0, inf)", **{name: getattr(self, name)})
        if not 0 <= self.vlb_weight < math.inf or not math.isfinite(self.log_normal_mean):
            raise ValueError("vlb_weight must be 0 or more, and it and log_normal_mean finite")
        require("[0, 1)", label_dropout=self.label_dropout)

    def _check_together(self) -> None:
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "zero_terminal_snr=True leaves no signal at the last timestep, so x0 = (x_t - s·eps)/sqrt(ᾱ) "
                "divides by 0 with prediction_type='epsilon'; use v_prediction, sample or edm"
            )
        if self.zero_terminal_snr and self.timestep_sampling == "log_normal":
            raise ValueError(
                "timestep_sampling='log_normal' draws a finite σ, and zero_terminal_snr=True ends at an "
                "infinite one that it would never train; use one of the two"
            )
        if self.learned_variance and self.timestep_sampling == "log_normal":
            raise ValueError(
                "learned_variance=True is trained by the bound over all whole timesteps alike; use "
                "timestep_sampling='uniform'"
            )


class NoiseSchedule(nn.Module):
    """ᾱ_t and the conversions between x0, noise and the network's output.

    `alphas_cumprod` falls from about 1 to about 0, to exactly 0 with `zero_terminal_snr`; it and `betas`
    are float64 on the CPU (samplers take exact scalars from them). `signal` = sqrt(ᾱ) and
    `noise_level` = sqrt(1 - ᾱ) are float32 buffers that follow the device. A method takes t (B,) as int64, or
    as float for continuous time: log-SNR is linear between two timesteps (exactly so in the edm schedule).

    With a = sqrt(ᾱ), s = sqrt(1 - ᾱ), d = sigma_data and D² = s² + (a·d)², the network's output F means

        epsilon        F = noise                            x0 = (x_t - s·F)/a
        v_prediction   F = a·noise - s·x0                   x0 = a·x_t - s·F
        sample         F = x0                               x0 = F
        edm            F = (s·x0/d - a·d·noise)/D           x0 = (a·d²·x_t/D + s·d·F)/D

    and all see x_t, edm x_t/D. Its rows are Karras et al. 2022, table 1 (c_skip, c_out, c_in) for x = a·x̃ and
    σ = s/a: input and target have variance one at every t when the data have d². With d = 1 it is -v.
    """

    def __init__(self, config: DiffusionConfig):
        super().__init__()
        self.config = config
        self.num_train_timesteps = config.num_train_timesteps
        self.prediction_type = config.prediction_type
        self.learned_variance = config.learned_variance
        alphas_cumprod = make_alphas_cumprod(config)
        self.alphas_cumprod = alphas_cumprod
        self.betas = 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
        self.register_buffer("signal", alphas_cumprod.sqrt().float(), persistent=False)
        self.register_buffer("noise_level", (1 - alphas_cumprod).sqrt().float(), persistent=False)

    @property
    def log_snr(self) -> Tensor:
        """log(ᾱ/(1 - ᾱ)), (num_train_timesteps,), float64, falling; -inf where ᾱ is 0."""
        return torch.logit(self.alphas_cumprod)

    def t_of_log_sigma(self, log_sigma: Tensor) -> Tensor:
        """Return the t (B,), float64 in [0, num_train_timesteps - 1], where ln σ is `log_sigma` (B,).

        What lies outside the schedule becomes its nearest end.
        """
        t = np.interp(log_sigma.double().numpy(), (-self.log_snr / 2).numpy(), np.arange(len(self.betas)))
        return torch.from_numpy(t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·noise; x0, noise (B, ...), t (B,)."""
        a, s = self._levels(t, x0)
        return a * x0 + s * noise

    def scale_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return what the network is shown: x_t (B, ...), with edm x_t/D."""
        return x_t / self._std(*self._levels(t, x_t)) if self.prediction_type == "edm" else x_t

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should output at (x0, noise, t): noise, x0, v (Salimans and Ho 2022) or edm's."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        a, s = self._levels(t, x0)
        if self.prediction_type == "v_prediction":
            return a * noise - s * x0
        d = self.config.sigma_data
        return (s * x0 / d - a * d * noise) / self._std(a, s)

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Recover x0 from the network's output at (x_t, t), all (B, ...); the inverse of `target`."""
        if self.prediction_type == "sample":
            return output
        a, s = self._levels(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - s * output) / a
        if self.prediction_type == "v_prediction":
            return a * x_t - s * output
        d, D = self.config.sigma_data, self._std(a, s)
        return (a * d**2 * x_t / D + s * d * output) / D

    def to_eps(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that makes x_t out of x0: eps = (x_t - sqrt(ᾱ_t)·x0)/sqrt(1 - ᾱ_t)."""
        a, s = self._levels(t, x_t)
        return (x_t - a * x0) / s

    def min_snr_weight(self, t: Tensor) -> Tensor:
        """Return what the squared error of the network's output counts for at t (B,), float32 (B,).

        That of x0 counts min(snr, γ) (Hang et al. 2023), and an error of the output is ∂x0/∂output times as
        large in x0: s/a, s, 1 or s·d/D. So it is min(snr, γ)/snr for epsilon and min(snr, γ)/(snr + 1) for v.
        Where ᾱ = 0 it is 0: with `zero_terminal_snr` the last timestep is learned from its neighbours alone.
        """
        a, s = self._levels(t, self.signal)
        slope = {
            "epsilon": lambda: s / a,
            "v_prediction": lambda: s,
            "sample": lambda: torch.ones_like(s),
            "edm": lambda: s * self.config.sigma_data / self._std(a, s),
        }[self.prediction_type]()
        return (a / s).square().clamp(max=self.config.min_snr_gamma) * slope.square()

    def _std(self, a: Tensor, s: Tensor) -> Tensor:
        """D, the standard deviation of x_t when the data have `sigma_data`."""
        return (s**2 + (a * self.config.sigma_data) ** 2).sqrt()

    def _levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(ᾱ_t) and sqrt(1 - ᾱ_t) as (B, 1, ...), in `like`'s dtype and on its device."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        if t.is_floating_point():  # between two timesteps; few and small, so on the CPU in float64
            levels = self._levels_between(t.double().cpu())
        elif like.dtype == torch.float64:  # keep full precision where the caller computes in it
            alphas_cumprod = self.alphas_cumprod[t.cpu()]
            levels = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        else:
            levels = self.signal[t], self.noise_level[t]
        a, s = (level.to(like.device, like.dtype).view(shape) for level in levels)
        return a, s

    def _levels_between(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low = t.floor().long().clamp(0, self.num_train_timesteps - 2)
        log_snr = torch.lerp(self.log_snr[low], self.log_snr[low + 1], t - low)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def denoise(model: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Ask the network for x0 at (x_t (B, C, ...), t (B,)).

    Returns:
        x0 (B, C, ...) in x_t's dtype, and whatever channels the network outputs beyond C: with
        `learned_variance` another C, else none.

    Raises:
        ValueError: the schedule has `learned_variance` and the network has no such channels.
    """
    C = x_t.shape[1]
    output = model(schedule.scale_input(x_t, t), t).to(x_t.dtype)
    if schedule.learned_variance and output.shape[1] != 2 * C:
        raise ValueError(
            f"learned_variance=True needs a network of {2 * C} output channels for {C} of data; this one has "
            f"{output.shape[1]}"
        )
    return schedule.to_x0(output[:, :C], x_t, t), output[:, C:]


def in_x0(schedule: NoiseSchedule) -> NoiseSchedule:
    """Return the same schedule for a denoiser that outputs x0 itself."""
    schedule = copy.copy(schedule)
    schedule.prediction_type = "sample"
    return schedule


def edited_x0(
    model: Denoiser, schedule: NoiseSchedule, edit: Callable[[Tensor], Tensor]
) -> tuple[Denoiser, NoiseSchedule]:
    """Return a denoiser whose x0 is `edit` of the model's, and the schedule that goes with it.

    The denoiser's output is x0 itself and the schedule's `prediction_type` "sample", so nothing is rounded on
    the way; a learned variance passes through.
    """

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        x0, rest = denoise(model, schedule, x_t, t)
        return torch.cat([edit(x0), rest], dim=1)

    return denoiser, in_x0(schedule)


def make_alphas_cumprod(config) -> Tensor:
    """Return ᾱ (num_train_timesteps,), float64, of a `DiffusionConfig`, shifted and rescaled as it says."""
    T = config.num_train_timesteps
    if config.schedule == "edm":
        alphas_cumprod = edm_alphas_cumprod(T, config.sigma_min, config.sigma_max)
    else:
        betas = {
            "linear": lambda: linear_betas(T, config.beta_start, config.beta_end),
            "cosine": lambda: cosine_betas(T),
            "sigmoid": lambda: sigmoid_betas(T),
        }[config.schedule]()
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    alphas_cumprod = shift_log_snr(alphas_cumprod, config.log_snr_shift)
    return rescale_to_zero_terminal_snr(alphas_cumprod) if config.zero_terminal_snr else alphas_cumprod


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


def edm_alphas_cumprod(num_timesteps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return ᾱ (num_timesteps,), float64, of σ from `sigma_min` to `sigma_max`, evenly in log σ.

    Karras et al. 2022 add noise, x̃ = x0 + σ·noise, where this repository mixes it, x = sqrt(ᾱ)·x̃, so
    ᾱ = 1/(1 + σ²). Their time is σ itself and their network is told ln(σ)/4 (table 1); here that is t up to
    a constant, because ln σ is linear in t. A t between two integers is a σ between theirs: continuous time.
    """
    log_sigma = torch.linspace(math.log(sigma_min), math.log(sigma_max), num_timesteps, dtype=torch.float64)
    return torch.sigmoid(-2 * log_sigma)


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


def _betas_of(alphas_cumprod: Tensor, max_beta: float) -> Tensor:
    """beta_t = 1 - ᾱ_t/ᾱ_(t-1) of ᾱ at 0/T, 1/T, ..., 1, clipped so that some signal is left."""
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)
