"""From noise to x0: one loop over timesteps for every sampling method, and which timesteps it visits.

A denoiser is `(x_t, t) -> x0`, t (B,) int64 (`Diffusion.Parameterisation.denoiser`). Each sample has a random
generator of its own, so that sample 7 is the same alone or in a batch of 64. The loop visits the descending
timesteps and always ends at x0 itself. The methods, one step of each, are in `Steps`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Diffusion import Denoiser, NoiseSchedule, edited
from Libraries.Sampling.Likelihood import VARIANCES
from Libraries.Sampling.Steps import SAMPLERS, Kept, Step
from Libraries.Utils import SampleNoise, require

Noise = Callable[[tuple[int, ...]], Tensor]  # (*shape) -> the next draw (B, *shape), as `SampleNoise`
Callback = Callable[[int, int, Tensor, Tensor], None]  # (step, t, x_t, x0 that the denoiser makes of x_t)

SPACINGS = ("leading", "trailing", "linspace", "karras", "karras_trailing", "log_snr")
KARRAS_RHO = 7.0
MAX_SIGMA = 80.0  # Karras et al. 2022, table 1: -38 dB of signal
MAX_CHURN = 2**0.5 - 1  # Karras et al. 2022: never add more noise than there is

OPTIONS: dict[str, tuple[str, Callable[..., bool], str]] = {  # option: its sampler, what it may be, in words
    "eta": ("ddim", lambda eta: 0 <= eta <= 1, "a number within [0, 1]"),
    "variance": ("ddpm", lambda variance: variance in VARIANCES, f"one of {', '.join(VARIANCES)}"),
    "churn": ("heun", lambda churn: churn >= 0, "a number of 0 or more"),
}


@dataclass(frozen=True)
class SamplerConfig:
    """Which sampler and how; the values live in `Conf.py`. Options of other samplers are left out.

    Raises:
        ValueError: a name is unknown, an option is missing, or it is one of another sampler.
    """

    name: str  # ddpm | ddim | consistency | euler | heun | dpmpp_2m | dpmpp_2m_sde | unipc
    num_inference_steps: int  # from noise to music
    spacing: str  # leading | trailing | linspace | karras | karras_trailing | log_snr
    clip_x0: float | None  # clamp the predicted x0 to ±this; None: leave it
    dynamic_threshold: float | None = None  # fraction of |x0| that is scaled to fit into ±clip_x0
    eta: float | None = None  # ddim only: 0 deterministic, 1 as noisy as ddpm
    variance: str | None = None  # ddpm only: fixed_small | fixed_large | learned
    churn: float | None = None  # heun only: S_churn of Karras et al. 2022, 0 deterministic

    def __post_init__(self) -> None:
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
                f"dynamic_threshold={self.dynamic_threshold} must be a fraction within (0, 1], with a "
                "clip_x0 to scale to; or None"
            )

    @property
    def options(self) -> dict[str, Any]:
        """The options of this sampler by name."""
        return {option: getattr(self, option) for option, (name, *_) in OPTIONS.items() if name == self.name}


def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    seeds: Iterable[int],
    shape: tuple[int, ...],
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    callback: Callback | None = None,
    progress: bool = True,
) -> Tensor:
    """Make one sample of `shape` per seed, `batch_size` at a time; returns x0 (N, *shape).

    The batch size changes the speed, not the samples. The callback sees every step of every batch.
    """
    timesteps = inference_timesteps(schedule, config.num_inference_steps, config.spacing)
    seeds = list(seeds)
    batches = []
    for start in range(0, len(seeds), batch_size):
        noise = SampleNoise(seeds[start : start + batch_size], device)
        batches.append(
            run_sampler(
                denoiser, schedule, config, noise, shape, timesteps, callback=callback, progress=progress
            )
        )
    return torch.cat(batches) if batches else torch.empty(0, *shape, device=device)


@torch.no_grad()
def run_sampler(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    config: SamplerConfig,
    noise: Noise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample one batch with the configured method and its options, at these timesteps.

    `noise` gives x_T and the noise of every step. The number of steps and the spacing of `config` have no
    effect here.

    Returns:
        x0 (B, *shape) on the noise's device.

    Raises:
        ValueError: variance="learned", and the denoiser has no variance output.
    """
    denoise = partial(_denoise, with_dynamic_threshold(denoiser, config), config.clip_x0)
    method, options = SAMPLERS[config.name], config.options
    gamma = min(options.pop("churn", 0.0) / len(timesteps), MAX_CHURN)
    past: deque[Kept] = deque(maxlen=2)
    abars, x = schedule.alphas_cumprod.tolist(), noise(shape)
    steps = list(zip(timesteps, [*timesteps[1:], None], strict=True))
    steps = tqdm(steps, desc="sampling", unit="step", leave=False, disable=not progress)
    for number, (t, t_next) in enumerate(steps):
        t, x = _churned(schedule, noise, x, t, gamma)
        x0, variance_output = denoise(x, t)
        if callback is not None:
            callback(number, t, x, x0)
        if t_next is None:
            x = x0
        else:
            draw = partial(noise, shape)
            step = Step(abars[t], abars[t_next], t_next, draw, denoise, past, variance_output)
            x = method(x, x0, step, **options)
    return x


def _denoise(denoiser: Denoiser, clip_x0: float | None, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Return x0 at one timestep, clamped, and the variance output: both (B, ...), the second maybe empty."""
    output = denoiser(x_t, torch.full((x_t.shape[0],), t, dtype=torch.int64, device=x_t.device))
    x0, variance_output = output.tensor_split([x_t.shape[1]], dim=1)
    return x0 if clip_x0 is None else x0.clamp(-clip_x0, clip_x0), variance_output


def _churned(schedule: NoiseSchedule, noise: Noise, x: Tensor, t: int, gamma: float) -> tuple[int, Tensor]:
    """Diffuse x onward from t to the timestep nearest to σ·(1 + γ), γ = min(churn/steps, sqrt(2) - 1).

    Karras et al. 2022, algorithm 2, with S_tmin = 0, S_tmax = ∞, S_noise = 1. Where ᾱ = 0 nothing is added.

    Returns:
        That timestep and x there.
    """
    if gamma == 0 or schedule.alphas_cumprod[t] == 0:
        return t, x
    sigmas = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt()
    t_hat = int((sigmas - sigmas[t] * (1 + gamma)).abs().argmin())
    if t_hat > t:
        abar, abar_hat = schedule.alphas_cumprod[[t, t_hat]].tolist()
        ratio = abar_hat / abar
        x = ratio**0.5 * x + (1 - ratio) ** 0.5 * noise(tuple(x.shape[1:]))
    return t_hat, x


def dynamic_threshold(x0: Tensor, fraction: float, limit: float) -> Tensor:
    """Return x0 (B, ...) scaled, sample by sample, so that a fraction of it is within ±limit; then cut.

    Saharia et al. 2022 (Imagen), section 2.3: with s the quantile of |x0|, at least `limit`, x0 is clamped
    to ±s and divided by s/limit. So values that guidance drives out of range are scaled back and do not pile
    up at its ends.
    """
    s = torch.quantile(x0.abs().flatten(1), fraction, dim=1).clamp(min=limit)
    s = s.view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) * (limit / s)


def with_dynamic_threshold(denoiser: Denoiser, config: SamplerConfig) -> Denoiser:
    """Return the denoiser with the configured dynamic threshold, or as it is if there is none."""
    fraction, limit = config.dynamic_threshold, config.clip_x0
    if fraction is None or limit is None:
        return denoiser
    return edited(denoiser, lambda x0: dynamic_threshold(x0, fraction, limit))


def inference_timesteps(schedule: NoiseSchedule, num_inference_steps: int, spacing: str) -> list[int]:
    """Return the descending timesteps to visit, without repeats.

    leading: multiples of T//n, so the first is not pure noise; trailing: T - 1 downwards in T/n;
    linspace: T - 1 down to 0 evenly (Lin et al. 2023, table 2). For T = 1000, n = 5: leading 800..0,
    trailing 999..199. karras: evenly in σ^(1/7) (Karras et al. 2022, eq. 5); log_snr: evenly in log-SNR
    (Lu et al. 2022); both take the nearest timesteps, down to 0 from the last one, or from σ = 80 where the
    last one has more: the cosine's last ten timesteps go to σ = 20000 and would take half of the steps.
    karras_trailing: one more of karras' without the last, for a sampler that needs few steps and has none to
    waste where there is hardly any noise.

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
        steps = _evenly_in(_karras, schedule, n)
    elif spacing == "karras_trailing":
        steps = _evenly_in(_karras, schedule, n + 1)[:-1] if n < T else torch.arange(T - 1, -1, -1)
    else:
        steps = _evenly_in(lambda log_sigma: log_sigma, schedule, n)
    return steps.tolist()


def _karras(log_sigma: Tensor) -> Tensor:
    return torch.exp(log_sigma / KARRAS_RHO)


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


def switch_sampler(config: SamplerConfig, name: str, num_inference_steps: int) -> SamplerConfig:
    """Return `config` with another sampler at its best: spacing and options as they suit it.

    The solvers that work in σ or log-SNR need steps that are even there; with steps even in t the cosine's
    first one, from σ = 20000, spoils them. The consistency sampler's few steps are best at much noise.
    """
    best: dict[str, dict[str, Any]] = {
        "ddim": {"eta": 0.0}, "ddpm": {"variance": "fixed_small"}, "heun": {"churn": 0.0}
    }  # fmt: skip
    options = {**dict.fromkeys(OPTIONS), **best.get(name, {})}
    even_in_t = dict.fromkeys(("ddpm", "ddim", "euler"), "trailing")
    spacing = {**even_in_t, "consistency": "karras_trailing"}.get(name, "karras")
    return replace(config, name=name, num_inference_steps=num_inference_steps, spacing=spacing, **options)
