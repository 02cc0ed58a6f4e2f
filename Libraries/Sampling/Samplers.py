"""Samplers: functions over any denoiser, one call shape for all.

A denoiser is `model(x_t, t) -> output`, t (B,) int64, output of the schedule's `prediction_type`.
`noise` gives x_T and the noise of every step; each sample has a generator of its own, so that
sample 7 is the same alone or in a batch of 64. `shape` is that of one sample. A sampler visits the
descending `timesteps` and always ends at x0 itself: after the last of them ᾱ is 1.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from Libraries.Diffusion import Denoiser, NoiseSchedule, edited_x0
from Libraries.Sampling.Likelihood import VARIANCES, interpolated_log_variance
from Libraries.Sampling.Solvers import (
    Callback,
    predict,
    predict_x0,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_euler,
    sample_heun,
    sample_unipc,
    trajectory,
)
from Libraries.Utils import SampleNoise, require

SPACINGS = ("leading", "trailing", "linspace", "karras", "log_snr")
KARRAS_RHO = 7.0
MAX_SIGMA = 80.0  # Karras et al. 2022, table 1: -38 dB of signal


@dataclass(frozen=True)
class SamplerConfig:
    """Which sampler and how; the values live in `Conf.py`.

    Raises:
        ValueError: a name is unknown, or a setting was given to a sampler that has no use for it.
    """

    name: str  # ddpm | ddim | euler | heun | dpmpp_2m | dpmpp_2m_sde | unipc
    num_inference_steps: int
    spacing: str  # leading | trailing | linspace | karras | log_snr
    clip_x0: float | None  # clamp the predicted x0 to ±this; None: leave it
    dynamic_threshold: float | None  # share of |x0| that is scaled to fit into ±clip_x0; None: none
    eta: float | None  # ddim only: 0 deterministic, 1 as noisy as ddpm
    variance: str | None  # ddpm only: fixed_small | fixed_large | learned
    churn: float | None  # heun only: S_churn of Karras et al. 2022, 0 deterministic

    def __post_init__(self):
        require(SAMPLERS, name=self.name)
        require(SPACINGS, spacing=self.spacing)
        for option, (sampler, allows, allowed) in OPTIONS.items():
            value = getattr(self, option)
            if self.name == sampler and (value is None or not allows(value)):
                raise ValueError(f"{option}={value!r} is not for {sampler}; choose {allowed}")
            if self.name != sampler and value is not None:
                raise ValueError(f"{option}={value!r} is for {sampler} alone; set it to None for {self.name}")
        if self.num_inference_steps < 1 or (self.clip_x0 is not None and self.clip_x0 <= 0):
            raise ValueError("num_inference_steps must be 1 or more and clip_x0 positive or None")
        if self.dynamic_threshold is not None and not (self.clip_x0 and 0 < self.dynamic_threshold <= 1):
            raise ValueError(
                f"dynamic_threshold={self.dynamic_threshold} must be a share within (0, 1], with a clip_x0 "
                "to scale to; or None"
            )


def inference_timesteps(schedule: NoiseSchedule, num_inference_steps: int, spacing: str) -> list[int]:
    """Return the descending timesteps to visit, without repeats.

    leading: multiples of T//n, so the first is not pure noise; trailing: T - 1 downwards in T/n;
    linspace: T - 1 down to 0 evenly (Lin et al. 2023, table 2). For T = 1000, n = 5: leading 800..0,
    trailing 999..199. karras: evenly in σ^(1/7) (Karras et al. 2022, eq. 5); log_snr: evenly in log-SNR
    (Lu et al. 2022); both by the nearest timesteps, down to 0 from the last one or from where σ is 80, if
    that is less: the cosine's last ten timesteps go to σ = 20000 and would take half of the steps.

    Raises:
        ValueError: more steps than the schedule has, or an unknown spacing.
    """
    T, n = schedule.num_train_timesteps, num_inference_steps
    if not 1 <= n <= T:
        raise ValueError(f"num_inference_steps={n} must be between 1 and num_train_timesteps={T}")
    require(SPACINGS, spacing=spacing)
    if spacing == "leading":
        steps = torch.arange(n - 1, -1, -1) * (T // n)
    elif spacing == "trailing":
        steps = torch.arange(n, 0, -1, dtype=torch.float64).mul(T / n).round().long() - 1
    elif spacing == "linspace":
        steps = torch.linspace(T - 1, 0, n, dtype=torch.float64).round().long()
    elif spacing == "karras":
        steps = _evenly_in(lambda log_sigma: torch.exp(log_sigma / KARRAS_RHO), schedule, n)
    else:
        steps = _evenly_in(lambda log_sigma: log_sigma, schedule, n)
    return steps.tolist()


def _evenly_in(scale: Callable[[Tensor], Tensor], schedule: NoiseSchedule, n: int) -> Tensor:
    """Return n falling timesteps, the nearest to even spacing of scale(log σ), a rising function.

    σ = ∞ (ᾱ = 0) is visited first and the others are spaced below it. Where two fall on one timestep the
    later moves down, and none is so low that those after it have no room.
    """
    log_sigma = -schedule.log_snr / 2
    steps = [schedule.num_train_timesteps - 1] if log_sigma[-1].isinf() else []
    log_sigma = log_sigma[: schedule.num_train_timesteps - len(steps)]
    values, top = scale(log_sigma), scale(log_sigma[-1].clamp(max=math.log(MAX_SIGMA)))
    wanted = torch.linspace(1, 0, n - len(steps), dtype=torch.float64) * (top - values[0]) + values[0]
    for t in (values - wanted[:, None]).abs().argmin(dim=1).tolist():
        room = n - 1 - len(steps)
        steps.append(max(room, min(t, steps[-1] - 1) if steps else t))
    return torch.tensor(steps)


@torch.no_grad()
def sample_ddpm(
    model: Denoiser,
    schedule: NoiseSchedule,
    noise: SampleNoise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    variance: str = "fixed_small",
    clip_x0: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample with the reverse Markov chain (Ho et al. 2020, algorithm 2), all steps or a strided subset.

    With s the timestep after t, α = ᾱ_t/ᾱ_s and β = 1 - α (eq. 7, strided as in Nichol and Dhariwal 2021):
    mean = sqrt(ᾱ_s)·β/(1-ᾱ_t)·x0 + sqrt(α)·(1-ᾱ_s)/(1-ᾱ_t)·x_t,
    variance = β̃ = β·(1-ᾱ_s)/(1-ᾱ_t) (fixed_small), β (fixed_large), or between them by the network's word
    (learned). The last step adds no noise.

    Returns:
        x0 (B, *shape) on the noise's device.

    Raises:
        ValueError: variance="learned" with a schedule that has no `learned_variance`.
    """
    if variance == "learned" and not schedule.learned_variance:
        raise ValueError("variance='learned' needs a model trained with learned_variance=True")
    x = noise(shape)
    for step, (t, abar, abar_next) in enumerate(trajectory(schedule, timesteps, progress)):
        x0, variance_output = predict(model, schedule, x, t, clip_x0)
        if callback is not None:
            callback(step, t, x, x0)
        alpha = abar / abar_next
        beta = 1 - alpha
        x = (abar_next**0.5 * beta * x0 + alpha**0.5 * (1 - abar_next) * x) / (1 - abar)
        if abar_next < 1:
            small = beta * (1 - abar_next) / (1 - abar)
            x = x + _deviation(variance, variance_output, beta, small) * noise(shape)
    return x


@torch.no_grad()
def sample_ddim(
    model: Denoiser,
    schedule: NoiseSchedule,
    noise: SampleNoise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    eta: float = 0.0,
    clip_x0: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample with DDIM (Song et al. 2021, eq. 12 and 16).

    With s the timestep after t: σ = eta·sqrt((1-ᾱ_s)/(1-ᾱ_t)·(1-ᾱ_t/ᾱ_s)),
    x_s = sqrt(ᾱ_s)·x0 + sqrt(1-ᾱ_s-σ²)·eps + σ·noise.
    eta = 0 is deterministic, eta = 1 is DDPM (fixed_small).

    Returns:
        x0 (B, *shape) on the noise's device.
    """
    x = noise(shape)
    for step, (t, abar, abar_next) in enumerate(trajectory(schedule, timesteps, progress)):
        x0 = predict_x0(model, schedule, x, t, clip_x0)
        if callback is not None:
            callback(step, t, x, x0)
        eps = (x - abar**0.5 * x0) / (1 - abar) ** 0.5
        sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)) ** 0.5
        x = abar_next**0.5 * x0 + max(1 - abar_next - sigma**2, 0.0) ** 0.5 * eps
        if sigma > 0:
            x = x + sigma * noise(shape)
    return x


def _deviation(variance: str, variance_output: Tensor, beta: float, small: float) -> Tensor | float:
    """The standard deviation of ddpm's step: a number, or for a learned one a tensor like x."""
    if variance == "learned":
        return torch.exp(interpolated_log_variance(variance_output, math.log(beta), math.log(small)) / 2)
    return {"fixed_small": small, "fixed_large": beta}[variance] ** 0.5


def dynamic_threshold(x0: Tensor, share: float, limit: float) -> Tensor:
    """Return x0 (B, ...) scaled, sample by sample, so that `share` of its values are within ±limit; then cut.

    Saharia et al. 2022 (Imagen), section 2.3: with s the quantile of |x0|, at least `limit`, x0 is clamped
    to ±s and divided by s/limit. What guidance drives out of range is so scaled back, not piled up at it.
    """
    s = torch.quantile(x0.abs().flatten(1), share, dim=1).clamp(min=limit).view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) * (limit / s)


def with_dynamic_threshold(
    model: Denoiser, schedule: NoiseSchedule, config: SamplerConfig
) -> tuple[Denoiser, NoiseSchedule, SamplerConfig]:
    """Return the denoiser with the configured threshold, its schedule, and the settings without it."""
    if config.dynamic_threshold is None:
        return model, schedule, config
    share, limit = config.dynamic_threshold, config.clip_x0
    model, schedule = edited_x0(model, schedule, lambda x0: dynamic_threshold(x0, share, limit))
    return model, schedule, replace(config, dynamic_threshold=None)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddpm": sample_ddpm,
    "ddim": sample_ddim,
    "euler": sample_euler,
    "heun": sample_heun,
    "dpmpp_2m": sample_dpmpp_2m,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "unipc": sample_unipc,
}
OPTIONS: dict[str, tuple[str, Callable[..., bool], str]] = {  # option: its sampler, what it may be, in words
    "eta": ("ddim", lambda eta: 0 <= eta <= 1, "a number within [0, 1]"),
    "variance": ("ddpm", lambda variance: variance in VARIANCES, f"one of {', '.join(VARIANCES)}"),
    "churn": ("heun", lambda churn: churn >= 0, "a number of 0 or more"),
}


def switch_sampler(config: SamplerConfig, name: str, num_inference_steps: int) -> SamplerConfig:
    """Return `config` with another sampler at its best: spacing and options as they suit it.

    The solvers that work in σ or log-SNR want their steps even there; on steps even in t the cosine's first
    one, from σ = 20000, spoils them.
    """
    options = {option: None for option in OPTIONS}
    options |= {"ddim": {"eta": 0.0}, "ddpm": {"variance": "fixed_small"}, "heun": {"churn": 0.0}}.get(
        name, {}
    )
    spacing = "trailing" if name in ("ddpm", "ddim", "euler") else "karras"
    return replace(config, name=name, num_inference_steps=num_inference_steps, spacing=spacing, **options)


def sample(
    model: Denoiser,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    seeds: Iterable[int],
    shape: tuple[int, ...],
    *,
    batch_size: int,
    device="cpu",
    callback: Callback | None = None,
    progress: bool = True,
) -> Tensor:
    """Sample one clip a seed with the configured sampler, `batch_size` at a time; returns (N, *shape).

    The batch size changes the speed, not the samples. The callback sees every step of every batch.
    """
    timesteps = inference_timesteps(schedule, config.num_inference_steps, config.spacing)
    seeds = list(seeds)
    batches = []
    for start in range(0, len(seeds), batch_size):
        noise = SampleNoise(seeds[start : start + batch_size], device)
        options = {"callback": callback, "progress": progress}
        batches.append(run_sampler(model, schedule, config, noise, shape, timesteps, **options))
    return torch.cat(batches) if batches else torch.empty(0, *shape, device=device)


def run_sampler(
    model: Denoiser,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    noise: SampleNoise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample one batch with the configured sampler and its options, at these timesteps.

    The number of steps and the spacing of `config` have no say here. Returns x0 (B, *shape).
    """
    model, schedule, config = with_dynamic_threshold(model, schedule, config)
    options = {
        option: getattr(config, option) for option, (name, *_) in OPTIONS.items() if name == config.name
    }
    return SAMPLERS[config.name](
        model, schedule, noise, shape, timesteps,
        clip_x0=config.clip_x0, callback=callback, progress=progress, **options,
    )  # fmt: skip
