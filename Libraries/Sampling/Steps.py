"""Sampling methods: each is one function, the step from t to the timestep that follows, under its equation.

`method(x, x0, step, **options) -> x` takes the state x_t (B, ...), the denoiser's x0 at (x_t, t), and `step`,
which says where to go. The loop (`Loop.run_sampler`) does the rest, the last step of every method included:
it ends at x0 itself, so ᾱ_s < 1 in all equations here. A new method is one more function under `@sampler`.

Solvers work on the probability flow ODE in the coordinates of Karras et al. 2022, eq. 1 and 3:
dx̃/dσ = (x̃ - x0(x̃, σ))/σ = eps, with x̃ = x/sqrt(ᾱ) and σ = sqrt((1-ᾱ)/ᾱ). The state is kept as
x = sqrt(ᾱ)·x̃, which is finite at ᾱ = 0 where x̃ and σ are not. λ = log(1/σ) is half the log-SNR. In the
equations t is the timestep of x and s the one that follows.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from Libraries.Sampling.Likelihood import interpolated_log_variance

Kept = tuple[Tensor, Tensor, float]  # x, x0 and ᾱ at a step that has been made


@dataclass(frozen=True)
class Step:
    """Where a step begins and ends, and what the loop lends to the method.

    Attributes:
        abar, abar_next: ᾱ_t and ᾱ_s, exact Python floats.
        t_next: s.
        noise: returns the next N(0, I) like x.
        denoise: `(x, t) -> (x0, variance output)` at one timestep, clamped as the loop's own x0.
        past: what a multistep method keeps of its last two steps, newest last.
        variance_output: the network's, like x; without channels unless the denoiser has one.
    """

    abar: float
    abar_next: float
    t_next: int
    noise: Callable[[], Tensor]
    denoise: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    past: deque[Kept]
    variance_output: Tensor


SAMPLERS: dict[str, Callable[..., Tensor]] = {}


def sampler(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Enter a step function into `SAMPLERS` under its name."""
    SAMPLERS[method.__name__] = method
    return method


@sampler
def ddpm(x: Tensor, x0: Tensor, step: Step, *, variance: str) -> Tensor:
    """The reverse Markov chain (Ho et al. 2020, eq. 7 and algorithm 2; strided, Nichol and Dhariwal 2021).

    x_s = sqrt(ᾱ_s)·β/(1-ᾱ_t)·x0 + sqrt(α)·(1-ᾱ_s)/(1-ᾱ_t)·x_t + sqrt(V)·noise with α = ᾱ_t/ᾱ_s, β = 1 - α and
    V = β̃ = β·(1-ᾱ_s)/(1-ᾱ_t) (fixed_small), V = β (fixed_large), or between the two (learned).
    """
    alpha = step.abar / step.abar_next
    beta = 1 - alpha
    small = beta * (1 - step.abar_next) / (1 - step.abar)
    mean = (step.abar_next**0.5 * beta * x0 + alpha**0.5 * (1 - step.abar_next) * x) / (1 - step.abar)
    if variance == "learned":
        log_variance = interpolated_log_variance(step.variance_output, math.log(beta), math.log(small))
        deviation = torch.exp(log_variance / 2)
    else:
        deviation = {"fixed_small": small, "fixed_large": beta}[variance] ** 0.5
    return mean + deviation * step.noise()


@sampler
def ddim(x: Tensor, x0: Tensor, step: Step, *, eta: float) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta = 0 is deterministic, eta = 1 is ddpm with fixed_small.

    x_s = sqrt(ᾱ_s)·x0 + sqrt(1-ᾱ_s-v²)·eps + v·noise with v = eta·sqrt((1-ᾱ_s)/(1-ᾱ_t)·(1-ᾱ_t/ᾱ_s)).
    """
    v = eta * ((1 - step.abar_next) / (1 - step.abar) * (1 - step.abar / step.abar_next)) ** 0.5
    x_next = step.abar_next**0.5 * x0 + max(1 - step.abar_next - v**2, 0.0) ** 0.5 * _eps(x, x0, step.abar)
    return x_next + v * step.noise() if v > 0 else x_next


@sampler
def consistency(x: Tensor, x0: Tensor, step: Step) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1), for a network tuned for few steps.

    x_s = sqrt(ᾱ_s)·x0 + sqrt(1-ᾱ_s)·noise: all of x_t but its x0 is forgotten.
    """
    return step.abar_next**0.5 * x0 + (1 - step.abar_next) ** 0.5 * step.noise()


@sampler
def euler(x: Tensor, x0: Tensor, step: Step) -> Tensor:
    """Euler's method in σ: x̃_s = x̃_t + (σ_s - σ_t)·eps; order 1.

    Because x̃_t = x0 + σ_t·eps this is x̃_s = x0 + σ_s·eps: the same points as ddim with eta = 0.
    """
    return step.abar_next**0.5 * x0 + (1 - step.abar_next) ** 0.5 * _eps(x, x0, step.abar)


@sampler
def heun(x: Tensor, x0: Tensor, step: Step) -> Tensor:
    """Heun's method in σ (Karras et al. 2022, algorithm 1); order 2, two calls of the denoiser per step.

    Euler's step to s, then x̃_s = x̃_t + (σ_s - σ_t)·(eps_t + eps_s)/2. A step from σ = ∞ (ᾱ = 0) is Euler's.
    """
    x_next = euler(x, x0, step)
    if step.abar == 0:
        return x_next
    x0_next, _ = step.denoise(x_next, step.t_next)
    change = _eps(x_next, x0_next, step.abar_next) - _eps(x, x0, step.abar)
    return x_next + step.abar_next**0.5 * (_sigma(step.abar_next) - _sigma(step.abar)) / 2 * change


@sampler
def dpmpp_2m(x: Tensor, x0: Tensor, step: Step) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2); order 2, one call per step.

    x_s = sqrt((1-ᾱ_s)/(1-ᾱ_t))·x_t + sqrt(ᾱ_s)·(1 - e^-h)·D with h = λ_s - λ_t, where D continues x0 linearly
    in λ to the middle of the step; D is x0 itself where there is no past.
    """
    D = x0 + _slope(x0, step.abar, step.abar_next, step.past) / 2
    step.past.append((x, x0, step.abar))
    return _exponential_step(x, D, step.abar, step.abar_next)


@sampler
def dpmpp_2m_sde(x: Tensor, x0: Tensor, step: Step) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022), the stochastic form of `dpmpp_2m`.

    x_s = sqrt((1-ᾱ_s)/(1-ᾱ_t))·e^-h·x_t + sqrt(ᾱ_s)·(1 - e^-2h)·D + sqrt((1-ᾱ_s)·(1 - e^-2h))·noise.
    """
    D = x0 + _slope(x0, step.abar, step.abar_next, step.past) / 2
    step.past.append((x, x0, step.abar))
    h = _lambda(step.abar_next) - _lambda(step.abar)
    kept, fresh = ((1 - step.abar_next) / (1 - step.abar)) ** 0.5 * math.exp(-h), -math.expm1(-2 * h)
    return kept * x + step.abar_next**0.5 * fresh * D + ((1 - step.abar_next) * fresh) ** 0.5 * step.noise()


@sampler
def unipc(x: Tensor, x0: Tensor, step: Step) -> Tensor:
    """UniPC of order 2, B(h) = e^h - 1, predicting x0 (Zhao et al. 2023, algorithms 1 and 2).

    The predictor is the step of `dpmpp_2m`. The x0 at the point it reaches both corrects the step that led
    there, as x0 is now known at its end too, and starts the next.
    """
    x = _corrected(x, x0, step.abar, step.past)
    D = x0 + _slope(x0, step.abar, step.abar_next, step.past) / 2
    step.past.append((x, x0, step.abar))
    return _exponential_step(x, D, step.abar, step.abar_next)


def _corrected(x_next: Tensor, x0_next: Tensor, abar_next: float, past: Sequence[Kept]) -> Tensor:
    """UniC: repeat the last step of `past` now that x0 at its end is known; x_next itself if there is none.

    D = x0 + ρ_1·slope + ρ_2·(x0_next - x0). After the first step ρ_2 = 1/2 (the paper's choice for order 1);
    after later ones the ρ integrate a parabola in λ exactly.
    """
    if not past:
        return x_next
    *before, (x, x0, abar) = past
    if not before:
        return _exponential_step(x, (x0 + x0_next) / 2, abar, abar_next)
    h = _lambda(abar_next) - _lambda(abar)
    B = math.expm1(-h)
    b1 = (B / -h - 1) / B  # weight that integrates a straight line
    b2 = 2 * ((B / -h - 1) / -h - 0.5) / B  # and a parabola
    r = -(_lambda(abar) - _lambda(before[-1][2])) / h
    rho1 = (b1 - b2) / (1 - r)
    D = x0 + rho1 * _slope(x0, abar, abar_next, before) + (b1 - rho1) * (x0_next - x0)
    return _exponential_step(x, D, abar, abar_next)


def _exponential_step(x: Tensor, x0: Tensor, abar: float, abar_next: float) -> Tensor:
    """Solve dx/dλ exactly for a constant x0: sqrt((1-ᾱ_s)/(1-ᾱ_t))·x + sqrt(ᾱ_s)·(1 - e^-h)·x0."""
    h = _lambda(abar_next) - _lambda(abar)
    return ((1 - abar_next) / (1 - abar)) ** 0.5 * x - abar_next**0.5 * math.expm1(-h) * x0


def _slope(x0: Tensor, abar: float, abar_next: float, past: Sequence[Kept]) -> Tensor | float:
    """Return by how much x0 changes over the next step if it goes on linearly in λ; 0 without a past.

    The step before is the last of `past`. If it began at λ = -∞ (ᾱ = 0) this is 0 too.
    """
    if not past:
        return 0.0
    _, x0_before, abar_before = past[-1]
    h, h_before = _lambda(abar_next) - _lambda(abar), _lambda(abar) - _lambda(abar_before)
    return h / h_before * (x0 - x0_before)


def _eps(x: Tensor, x0: Tensor, abar: float) -> Tensor:
    return (x - abar**0.5 * x0) / (1 - abar) ** 0.5


def _sigma(abar: float) -> float:
    return ((1 - abar) / abar) ** 0.5


def _lambda(abar: float) -> float:
    """Half the log-SNR, log(sqrt(ᾱ/(1-ᾱ))); -∞ at ᾱ = 0."""
    return math.log(abar / (1 - abar)) / 2 if abar else -math.inf
