"""Samplers: functions over any denoiser, one call shape for all.

A denoiser is `model(x_t, t) -> output`, t (B,) int64, output of the schedule's `prediction_type`.
`noise` gives x_T and the noise of every step; each sample has a generator of its own, so that
sample 7 is the same alone or in a batch of 64. `shape` is that of one sample. A sampler visits the
descending `timesteps` and always ends at x0 itself: after the last of them ᾱ is 1.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Diffusion import NoiseSchedule
from Libraries.Utils import SampleNoise

Denoiser = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor], None]  # (step, t, x_t before the step, predicted x0)

SPACINGS = ("leading", "trailing", "linspace")
VARIANCES = ("fixed_small", "fixed_large")


@dataclass(frozen=True)
class SamplerConfig:
    """Which sampler and how; the values live in `Conf.py`.

    Raises:
        ValueError: a name is unknown, or a setting was given to a sampler that has no use for it.
    """

    name: str  # ddpm | ddim
    num_inference_steps: int
    spacing: str  # leading | trailing | linspace
    clip_x0: float | None  # clamp the predicted x0 to ±this; None: leave it
    eta: float | None  # DDIM only: 0 deterministic, 1 as noisy as DDPM
    variance: str | None  # DDPM only: fixed_small | fixed_large

    def __post_init__(self):
        known = {"name": (self.name, SAMPLERS), "spacing": (self.spacing, SPACINGS)}
        if self.name == "ddpm":
            known["variance"] = (self.variance, VARIANCES)
        for name, (value, allowed) in known.items():
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}")
        if self.name == "ddim" and (self.variance is not None or self.eta is None or not 0 <= self.eta <= 1):
            raise ValueError(
                f"ddim takes eta within [0, 1] and variance=None; got {self.eta} and {self.variance!r}"
            )
        if self.name == "ddpm" and self.eta is not None:
            raise ValueError(f"ddpm has no eta (it is DDIM's); set eta=None, not {self.eta}")
        if self.num_inference_steps < 1 or (self.clip_x0 is not None and self.clip_x0 <= 0):
            raise ValueError("num_inference_steps must be 1 or more and clip_x0 positive or None")


def inference_timesteps(schedule: NoiseSchedule, num_inference_steps: int, spacing: str) -> list[int]:
    """Return the descending timesteps to visit (Lin et al. 2023, table 2).

    leading: multiples of T//n, so the first is not pure noise; trailing: T - 1 downwards in T/n;
    linspace: T - 1 down to 0 evenly. For T = 1000, n = 5: leading 800..0, trailing 999..199.

    Raises:
        ValueError: more steps than the schedule has, or an unknown spacing.
    """
    T, n = schedule.num_train_timesteps, num_inference_steps
    if not 1 <= n <= T:
        raise ValueError(f"num_inference_steps={n} must be between 1 and num_train_timesteps={T}")
    if spacing == "leading":
        steps = torch.arange(n - 1, -1, -1) * (T // n)
    elif spacing == "trailing":
        steps = torch.arange(n, 0, -1, dtype=torch.float64).mul(T / n).round().long() - 1
    elif spacing == "linspace":
        steps = torch.linspace(T - 1, 0, n, dtype=torch.float64).round().long()
    else:
        raise ValueError(f"spacing={spacing!r} is unknown; choose one of {', '.join(SPACINGS)}")
    return steps.tolist()


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
    variance = β·(1-ᾱ_s)/(1-ᾱ_t) (fixed_small) or β (fixed_large). The last step adds no noise.

    Returns:
        x0 (B, *shape) on the noise's device.
    """
    x = noise(shape)
    for step, (t, abar, abar_next) in enumerate(_trajectory(schedule, timesteps, progress)):
        x0 = _predict_x0(model, schedule, x, t, clip_x0)
        if callback is not None:
            callback(step, t, x, x0)
        alpha = abar / abar_next
        beta = 1 - alpha
        x = (abar_next**0.5 * beta * x0 + alpha**0.5 * (1 - abar_next) * x) / (1 - abar)
        if abar_next < 1:
            small = beta * (1 - abar_next) / (1 - abar)
            x = x + (small if variance == "fixed_small" else beta) ** 0.5 * noise(shape)
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
    for step, (t, abar, abar_next) in enumerate(_trajectory(schedule, timesteps, progress)):
        x0 = _predict_x0(model, schedule, x, t, clip_x0)
        if callback is not None:
            callback(step, t, x, x0)
        eps = (x - abar**0.5 * x0) / (1 - abar) ** 0.5
        sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)) ** 0.5
        x = abar_next**0.5 * x0 + max(1 - abar_next - sigma**2, 0.0) ** 0.5 * eps
        if sigma > 0:
            x = x + sigma * noise(shape)
    return x


SAMPLERS = {"ddpm": sample_ddpm, "ddim": sample_ddim}


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
    options = {"eta": config.eta} if config.name == "ddim" else {"variance": config.variance}
    timesteps = inference_timesteps(schedule, config.num_inference_steps, config.spacing)
    seeds = list(seeds)
    batches = []
    for start in range(0, len(seeds), batch_size):
        noise = SampleNoise(seeds[start : start + batch_size], device)
        x0 = SAMPLERS[config.name](
            model, schedule, noise, shape, timesteps,
            clip_x0=config.clip_x0, callback=callback, progress=progress, **options,
        )  # fmt: skip
        batches.append(x0)
    return torch.cat(batches) if batches else torch.empty(0, *shape, device=device)


def _trajectory(schedule: NoiseSchedule, timesteps: list[int], progress: bool):
    """Yield (t, ᾱ_t, ᾱ of the timestep that follows); after the last ᾱ is 1. Python floats: exact."""
    alphas_cumprod = schedule.alphas_cumprod.tolist()
    following = [alphas_cumprod[t] for t in timesteps[1:]] + [1.0]
    steps = tqdm(timesteps, desc="sampling", unit="step", leave=False, disable=not progress)
    for t, abar_next in zip(steps, following, strict=True):
        yield t, alphas_cumprod[t], abar_next


def _predict_x0(
    model: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: int, clip_x0: float | None
) -> Tensor:
    t_batch = torch.full((x_t.shape[0],), t, dtype=torch.int64, device=x_t.device)
    x0 = schedule.to_x0(model(x_t, t_batch).to(x_t.dtype), x_t, t_batch)
    return x0 if clip_x0 is None else x0.clamp(-clip_x0, clip_x0)
