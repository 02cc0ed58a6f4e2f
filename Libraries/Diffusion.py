"""The diffusion process: levels of signal and noise at every t; apart from them, what a network predicts.

Forward process (Ho et al. 2020, eq. 4): x_t = sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·noise, noise ~ N(0, I),
t = 0 (least noise) to num_train_timesteps - 1. The noise is N(0, I), so the data should lie around zero with
a variance near one, or within [-1, 1].

`NoiseSchedule` knows the levels. `Parameterisation` turns a network, whatever it predicts, into a denoiser
`(x_t, t) -> x0`, once; samplers, guidance, windows and edits know denoisers only.
"""

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
OBJECTIVES = ("denoising", "consistency")
MAX_LOG_SNR_SHIFT = 10.0  # nats; beyond, 1 - ᾱ or ᾱ drowns in rounding

Network = Callable[..., Tensor]  # (scaled x_t (B, C, ...), t (B,), conditioning if it takes any) -> output
Denoiser = Callable[..., Tensor]  # (x_t (B, C, ...), t (B,), conditioning if the network takes any) -> x0


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Settings of the noise schedule, of what the network predicts and of its loss; values in `Conf.py`.

    Raises:
        ValueError: a name is unknown, a number impossible, or two settings do not go together.
    """

    schedule: str  # linear | cosine | sigmoid | edm
    num_train_timesteps: int  # levels of noise, from the least to pure noise
    beta_start: float  # linear schedule only
    beta_end: float  # linear schedule only
    sigma_min: float  # edm schedule only
    sigma_max: float  # edm schedule only
    log_snr_shift: float = 0.0  # nats added to log-SNR at every t: 2·log(64/size) for larger data
    zero_terminal_snr: bool = False  # rescale so that ᾱ is exactly 0 at the last timestep
    prediction_type: str  # epsilon | v_prediction | sample | edm
    sigma_data: float  # edm prediction only; standard deviation of the data
    learned_variance: bool = False  # the network outputs the variance of ddpm's step too, in C more channels
    vlb_weight: float  # learned_variance only; weight of the variational bound in the loss
    timestep_sampling: str  # uniform | log_normal: how training chooses t
    log_normal_mean: float  # log_normal only; of ln σ
    log_normal_std: float  # log_normal only; of ln σ
    loss_weighting: str  # uniform | min_snr | uncertainty; of the training loss, not of the validation loss
    min_snr_gamma: float  # min_snr only; timesteps with a larger SNR count no more than those with this one
    label_dropout: float = 0.0  # fraction of training samples whose label is hidden; only with classes
    objective: str = "denoising"  # denoising | consistency: tunes a trained network for one or two steps
    consistency_ratio: float = 256.0  # consistency only; the larger, the nearer are the two levels of noise
    consistency_stage_clips: int = 0  # consistency only; they come nearer every so many clips; 0: never

    def __post_init__(self) -> None:
        require(SCHEDULES, schedule=self.schedule)
        require(PREDICTION_TYPES, prediction_type=self.prediction_type)
        require(TIMESTEP_SAMPLINGS, timestep_sampling=self.timestep_sampling)
        require(LOSS_WEIGHTINGS, loss_weighting=self.loss_weighting)
        require(OBJECTIVES, objective=self.objective)
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
        require("(1, inf)", consistency_ratio=self.consistency_ratio)
        require("[0, inf)", consistency_stage_clips=self.consistency_stage_clips)

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
        if self.objective == "consistency":
            self._check_consistency()

    def _check_consistency(self) -> None:
        if self.prediction_type == "epsilon" or self.zero_terminal_snr:
            raise ValueError(
                "objective='consistency' needs x0 and σ at every level of noise: set prediction_type to "
                "'v_prediction', 'sample' or 'edm', and zero_terminal_snr to False"
            )
        if self.learned_variance or self.loss_weighting != "uniform":
            raise ValueError(
                "objective='consistency' has a weight of its own and trains no variance: set loss_weighting "
                "to 'uniform' and learned_variance to False"
            )
        if self.timestep_sampling != "log_normal":
            raise ValueError(
                "objective='consistency' draws σ between the timesteps: set timestep_sampling='log_normal', "
                "log_normal_mean=-0.41 and log_normal_std=2.0 of data of unit variance"
            )


class NoiseSchedule(nn.Module):
    """ᾱ_t and what follows from it alone: the levels of signal and noise at every t.

    `alphas_cumprod` falls from about 1 to about 0, to exactly 0 with `zero_terminal_snr`; it and `betas`
    are float64 on the CPU (samplers take exact scalars from them). `signal` = sqrt(ᾱ) and
    `noise_level` = sqrt(1 - ᾱ) are float32 buffers that follow the device. Methods take t (B,) as int64, or
    as float for continuous time: between two timesteps log-SNR is linear (exactly so in the edm schedule).
    """

    signal: Tensor
    noise_level: Tensor

    def __init__(self, config: DiffusionConfig):
        super().__init__()
        self.config = config
        self.num_train_timesteps = config.num_train_timesteps
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

        Values outside the schedule become its nearest end.
        """
        there = (-self.log_snr / 2).tolist()
        return torch.from_numpy(np.interp(log_sigma.double().numpy(), there, range(len(there))))

    def log_sigma_of_t(self, t: Tensor) -> Tensor:
        """Return ln σ, σ = sqrt((1 - ᾱ)/ᾱ), at t (B,) float64 on the CPU: the inverse of `t_of_log_sigma`."""
        low = t.floor().long().clamp(0, self.num_train_timesteps - 2)
        return -torch.lerp(self.log_snr[low], self.log_snr[low + 1], t - low) / 2

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·noise; x0, noise (B, ...), t (B,)."""
        a, s = self.levels(t, x0)
        return a * x0 + s * noise

    def to_eps(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that makes x_t out of x0: eps = (x_t - sqrt(ᾱ_t)·x0)/sqrt(1 - ᾱ_t)."""
        a, s = self.levels(t, x_t)
        return (x_t - a * x0) / s

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(ᾱ_t) and sqrt(1 - ᾱ_t) at t (B,): (B, 1, ...) of `like`'s dtype and device."""
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
        log_snr = -2 * self.log_sigma_of_t(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


class Parameterisation:
    """What a network predicts, and how x0 follows from it.

    With a = sqrt(ᾱ), s = sqrt(1 - ᾱ), d = sigma_data and D² = s² + (a·d)², the network's output F means

        epsilon        F = noise                            x0 = (x_t - s·F)/a
        v_prediction   F = a·noise - s·x0                   x0 = a·x_t - s·F
        sample         F = x0                               x0 = F
        edm            F = (s·x0/d - a·d·noise)/D           x0 = (a·d²·x_t/D + s·d·F)/D

    and the network sees x_t, or x_t/D with edm. The formulas of edm are Karras et al. 2022, table 1 (c_skip,
    c_out, c_in) for x = a·x̃ and σ = s/a: if the data have variance d², input and target have variance one at
    every t. With d = 1, F is -v.
    """

    def __init__(self, schedule: NoiseSchedule):
        self.schedule, self.config = schedule, schedule.config
        self.prediction_type = schedule.config.prediction_type

    def denoiser(self, network: Network, *, with_variance: bool = False) -> Denoiser:
        """Return the denoiser `(x_t (B, C, ...), t (B,)) -> x0` that the network makes, in x_t's dtype.

        Whatever conditioning the network takes after t, the denoiser takes after t too.

        Args:
            with_variance: the network's variance output, C more channels, comes behind the C of x0. It is
                for `ddpm` with variance="learned" and for the variational bound; guidance, thresholds,
                windows and edits pass it on. False leaves it out.

        Raises:
            ValueError: the settings have no `learned_variance`, or (when called) the network has no such
                output.
        """
        if with_variance and not self.config.learned_variance:
            raise ValueError("variance='learned' needs a model trained with learned_variance=True")

        def denoise(x_t: Tensor, t: Tensor, *conditioning: Tensor) -> Tensor:
            C = x_t.shape[1]
            output = network(self.scale_input(x_t, t), t, *conditioning).to(x_t.dtype)
            if self.config.learned_variance and output.shape[1] != 2 * C:
                raise ValueError(
                    f"learned_variance=True needs a network of {2 * C} output channels for {C} of data; this "
                    f"one has {output.shape[1]}"
                )
            x0 = self.to_x0(output[:, :C], x_t, t)
            return torch.cat([x0, output[:, C:]], dim=1) if with_variance else x0

        return denoise

    def scale_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return what the network sees of x_t (B, ...): x_t itself, or x_t/D with edm."""
        return x_t / self._std(*self.schedule.levels(t, x_t)) if self.prediction_type == "edm" else x_t

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return F for (x0, noise, t): the noise, x0, v (Salimans and Ho 2022, appendix D) or that of edm."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        a, s = self.schedule.levels(t, x0)
        if self.prediction_type == "v_prediction":
            return a * noise - s * x0
        d = self.config.sigma_data
        return (s * x0 / d - a * d * noise) / self._std(a, s)

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the x0 that the output at (x_t, t) means, all (B, ...); the inverse of `target`."""
        if self.prediction_type == "sample":
            return output
        a, s = self.schedule.levels(t, x_t)
        if self.prediction_type == "epsilon":
            return (x_t - s * output) / a
        if self.prediction_type == "v_prediction":
            return a * x_t - s * output
        d, D = self.config.sigma_data, self._std(a, s)
        return (a * d**2 * x_t / D + s * d * output) / D

    def slope(self, t: Tensor) -> Tensor:
        """Return |∂x0/∂F| at t (B,), float32 (B,): an error of the output is as many times as large in x0."""
        a, s = self.schedule.levels(t, self.schedule.signal)
        if self.prediction_type == "epsilon":
            return s / a
        if self.prediction_type == "sample":
            return torch.ones_like(s)
        return s if self.prediction_type == "v_prediction" else s * self.config.sigma_data / self._std(a, s)

    def _std(self, a: Tensor, s: Tensor) -> Tensor:
        """D, the standard deviation of x_t when the data have `sigma_data`."""
        return (s**2 + (a * self.config.sigma_data) ** 2).sqrt()


def edited(denoiser: Denoiser, edit: Callable[[Tensor], Tensor]) -> Denoiser:
    """Return a denoiser whose x0 (B, C, ...) is `edit` of another's; a variance output passes through."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        x0, variance_output = denoiser(x_t, t).tensor_split([x_t.shape[1]], dim=1)
        return torch.cat([edit(x0), variance_output], dim=1)

    return denoise


def make_alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """Return ᾱ (num_train_timesteps,), float64, of the configured schedule, shifted and rescaled."""
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
    ᾱ = 1/(1 + σ²). Their time is σ itself and their network sees ln(σ)/4 (table 1); here that is t up to
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
