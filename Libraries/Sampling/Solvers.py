"""Solvers of the reverse process in few steps: Euler, Heun, DPM-Solver++, UniPC; what all samplers share.

The probability flow ODE in the coordinates of Karras et al. 2022, eq. 1 and 3:
dx̃/dσ = (x̃ - x0(x̃, σ))/σ = eps, with x̃ = x/sqrt(ᾱ) and σ = sqrt((1-ᾱ)/ᾱ). The state is kept as
x = sqrt(ᾱ)·x̃, which is finite at ᾱ = 0 where x̃ and σ are not, and `lambda` = log(1/σ) is half the log-SNR.
Call shape, denoiser, noise and timesteps are those of `Samplers`.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Diffusion import Denoiser, NoiseSchedule, denoise
from Libraries.Utils import SampleNoise

Callback = Callable[[int, int, Tensor, Tensor], None]  # (step, t, x_t before the step, predicted x0)

MAX_CHURN = 2**0.5 - 1  # Karras et al. 2022: never add more noise than there is


def trajectory(
    schedule: NoiseSchedule, timesteps: list[int], progress: bool
) -> Iterator[tuple[int, float, float]]:
    """Yield (t, ᾱ_t, ᾱ of the timestep that follows); after the last ᾱ is 1. Python floats: exact."""
    alphas_cumprod = schedule.alphas_cumprod.tolist()
    following = [alphas_cumprod[t] for t in timesteps[1:]] + [1.0]
    steps = tqdm(timesteps, desc="sampling", unit="step", leave=False, disable=not progress)
    for t, abar_next in zip(steps, following, strict=True):
        yield t, alphas_cumprod[t], abar_next


def predict_x0(
    model: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: int, clip_x0: float | None
) -> Tensor:
    """Return the denoiser's x0 at (x_t (B, *shape), t), clamped to ±clip_x0 unless that is None."""
    return predict(model, schedule, x_t, t, clip_x0)[0]


def predict(
    model: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: int, clip_x0: float | None
) -> tuple[Tensor, Tensor]:
    """Return x0 as `predict_x0`, and the channels that speak of the variance (none without them)."""
    t_batch = torch.full((x_t.shape[0],), t, dtype=torch.int64, device=x_t.device)
    x0, variance_output = denoise(model, schedule, x_t, t_batch)
    return x0 if clip_x0 is None else x0.clamp(-clip_x0, clip_x0), variance_output


@torch.no_grad()
def sample_euler(
    model: Denoiser,
    schedule: NoiseSchedule,
    noise: SampleNoise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    clip_x0: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample with Euler's method in σ: x̃_s = x̃_t + (σ_s - σ_t)·eps; order 1.

    Because x̃_t = x0 + σ_t·eps this is x̃_s = x0 + σ_s·eps: the same points as DDIM with eta = 0.

    Returns:
        x0 (B, *shape) on the noise's device.
    """
    x = noise(shape)
    for step, (t, abar, abar_next) in enumerate(trajectory(schedule, timesteps, progress)):
        x0 = predict_x0(model, schedule, x, t, clip_x0)
        if callback is not None:
            callback(step, t, x, x0)
        x = _diffused(x0, _eps(x, x0, abar), abar_next)
    return x


@torch.no_grad()
def sample_heun(
    model: Denoiser,
    schedule: NoiseSchedule,
    noise: SampleNoise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    churn: float = 0.0,
    clip_x0: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample with Heun's method in σ and churn (Karras et al. 2022, algorithm 2); order 2, two calls a step.

    Euler's step to s, then x̃_s = x̃_t + (σ_s - σ_t)·(eps_t + eps_s)/2. The last step, to σ = 0, is Euler's,
    and so is one from σ = ∞ (ᾱ = 0). With `churn` > 0 noise is first added up to the timestep nearest
    to σ·(1 + γ), γ = min(churn/number of steps, sqrt(2) - 1); S_tmin = 0, S_tmax = ∞, S_noise = 1.

    Returns:
        x0 (B, *shape) on the noise's device.
    """
    x, gamma = noise(shape), min(churn / len(timesteps), MAX_CHURN)
    for step, (t, abar, abar_next) in enumerate(trajectory(schedule, timesteps, progress)):
        if gamma > 0 and abar > 0:
            t, abar, x = _add_churn(schedule, noise, x, t, gamma)
        x0 = predict_x0(model, schedule, x, t, clip_x0)
        if callback is not None:
            callback(step, t, x, x0)
        eps = _eps(x, x0, abar)
        x = _diffused(x0, eps, abar_next)
        if abar > 0 and abar_next < 1:
            x0_next = predict_x0(model, schedule, x, timesteps[step + 1], clip_x0)
            change = _eps(x, x0_next, abar_next) - eps
            x = x + abar_next**0.5 * (_sigma(abar_next) - _sigma(abar)) / 2 * change
    return x


@torch.no_grad()
def sample_dpmpp_2m(
    model: Denoiser,
    schedule: NoiseSchedule,
    noise: SampleNoise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    clip_x0: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample with DPM-Solver++(2M) (Lu et al. 2022, algorithm 2); order 2, one call a step.

    With h = λ_s - λ_t: x_s = sqrt((1-ᾱ_s)/(1-ᾱ_t))·x_t + sqrt(ᾱ_s)·(1 - e^-h)·D, where D continues x0
    linearly in λ to the middle of the step; in the first and the last step D is x0 itself.

    Returns:
        x0 (B, *shape) on the noise's device.
    """
    x, past = noise(shape), None
    for step, (t, abar, abar_next) in enumerate(trajectory(schedule, timesteps, progress)):
        x0 = predict_x0(model, schedule, x, t, clip_x0)
        if callback is not None:
            callback(step, t, x, x0)
        slope = _slope(x0, past, abar, abar_next)
        x = _exponential_step(x, x0 + slope / 2, abar, abar_next)
        past = x0, abar
    return x


@torch.no_grad()
def sample_dpmpp_2m_sde(
    model: Denoiser,
    schedule: NoiseSchedule,
    noise: SampleNoise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    clip_x0: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample with SDE-DPM-Solver++(2M) (Lu et al. 2022), the stochastic form of `sample_dpmpp_2m`.

    x_s = sqrt((1-ᾱ_s)/(1-ᾱ_t))·e^-h·x_t + sqrt(ᾱ_s)·(1 - e^-2h)·D + sqrt((1-ᾱ_s)·(1 - e^-2h))·noise.

    Returns:
        x0 (B, *shape) on the noise's device.
    """
    x, past = noise(shape), None
    for step, (t, abar, abar_next) in enumerate(trajectory(schedule, timesteps, progress)):
        x0 = predict_x0(model, schedule, x, t, clip_x0)
        if callback is not None:
            callback(step, t, x, x0)
        h = _lambda(abar_next) - _lambda(abar)
        kept = ((1 - abar_next) / (1 - abar)) ** 0.5 * math.exp(-h)
        fresh = -math.expm1(-2 * h)
        x = kept * x + abar_next**0.5 * fresh * (x0 + _slope(x0, past, abar, abar_next) / 2)
        if abar_next < 1:
            x = x + ((1 - abar_next) * fresh) ** 0.5 * noise(shape)
        past = x0, abar
    return x


@torch.no_grad()
def sample_unipc(
    model: Denoiser,
    schedule: NoiseSchedule,
    noise: SampleNoise,
    shape: tuple[int, ...],
    timesteps: list[int],
    *,
    clip_x0: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Sample with UniPC of order 2, B(h) = e^h - 1, predicting x0 (Zhao et al. 2023).

    The predictor is the step of `sample_dpmpp_2m`. At the point it reaches the model is called once, and that
    call both corrects the step that led there, as x0 is now known at its end too, and starts the next.

    Returns:
        x0 (B, *shape) on the noise's device.
    """
    x, start, past = noise(shape), None, None
    for step, (t, abar, abar_next) in enumerate(trajectory(schedule, timesteps, progress)):
        x0 = predict_x0(model, schedule, x, t, clip_x0)
        if start is not None:
            x_start, x0_start, abar_start = start
            x = _corrected(x_start, x0_start, past, abar_start, x0, abar)
            past = x0_start, abar_start
        if callback is not None:
            callback(step, t, x, x0)
        start = x, x0, abar
        x = _exponential_step(x, x0 + _slope(x0, past, abar, abar_next) / 2, abar, abar_next)
    return x


def _corrected(
    x: Tensor, x0: Tensor, past: tuple[Tensor, float] | None, abar: float, x0_next: Tensor, abar_next: float
) -> Tensor:
    """UniC: repeat the step from (x, x0) now that x0 at its end is known (Zhao et al. 2023).

    D = x0 + ρ_1·slope + ρ_2·(x0_next - x0). Without a past ρ_2 = 1/2 (the paper's choice for order 1); with
    one the ρ integrate a parabola in λ exactly.
    """
    if past is None:
        return _exponential_step(x, (x0 + x0_next) / 2, abar, abar_next)
    h = _lambda(abar_next) - _lambda(abar)
    B = math.expm1(-h)
    b1 = (B / -h - 1) / B  # weight that integrates a straight line
    b2 = 2 * ((B / -h - 1) / -h - 0.5) / B  # and a parabola
    r = -(_lambda(abar) - _lambda(past[1])) / h
    rho1 = (b1 - b2) / (1 - r)
    D = x0 + rho1 * _slope(x0, past, abar, abar_next) + (b1 - rho1) * (x0_next - x0)
    return _exponential_step(x, D, abar, abar_next)


def _exponential_step(x: Tensor, x0: Tensor, abar: float, abar_next: float) -> Tensor:
    """Solve dx/dλ exactly for a constant x0: sqrt((1-ᾱ_s)/(1-ᾱ_t))·x + sqrt(ᾱ_s)·(1 - e^-h)·x0."""
    h = _lambda(abar_next) - _lambda(abar)
    return ((1 - abar_next) / (1 - abar)) ** 0.5 * x - abar_next**0.5 * math.expm1(-h) * x0


def _slope(x0: Tensor, past: tuple[Tensor, float] | None, abar: float, abar_next: float) -> Tensor | float:
    """Return what x0 changes by over the next step if it goes on linearly in λ; 0 where that is unknown.

    `past` is (x0, ᾱ) one step before. Unknown before there is one, if it was at λ = -∞ (ᾱ = 0), and for the
    last step, which goes to λ = ∞.
    """
    if past is None or abar_next == 1:
        return 0.0
    x0_before, abar_before = past
    h, h_before = _lambda(abar_next) - _lambda(abar), _lambda(abar) - _lambda(abar_before)
    return h / h_before * (x0 - x0_before)


def _add_churn(
    schedule: NoiseSchedule, noise: SampleNoise, x: Tensor, t: int, gamma: float
) -> tuple[int, float, Tensor]:
    """Diffuse x onward from t to the timestep nearest to σ·(1 + γ); return that timestep, its ᾱ and x."""
    sigmas = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt()
    t_hat = int((sigmas - sigmas[t] * (1 + gamma)).abs().argmin())
    abar, abar_hat = schedule.alphas_cumprod[[t, t_hat]].tolist()
    if t_hat > t:
        ratio = abar_hat / abar
        x = ratio**0.5 * x + (1 - ratio) ** 0.5 * noise(tuple(x.shape[1:]))
    return t_hat, abar_hat, x


def _eps(x: Tensor, x0: Tensor, abar: float) -> Tensor:
    return (x - abar**0.5 * x0) / (1 - abar) ** 0.5


def _diffused(x0: Tensor, eps: Tensor, abar: float) -> Tensor:
    return abar**0.5 * x0 + (1 - abar) ** 0.5 * eps


def _sigma(abar: float) -> float:
    return ((1 - abar) / abar) ** 0.5


def _lambda(abar: float) -> float:
    """Half the log-SNR, log(sqrt(ᾱ/(1-ᾱ))); ±∞ at the ends."""
    if abar in (0.0, 1.0):
        return math.inf if abar else -math.inf
    return math.log(abar / (1 - abar)) / 2
