"""Noise schedules: the curve ᾱ_t of each, from t = 0 (least noise) to num_train_timesteps - 1.

Each is a function of a `DiffusionConfig`'s numbers; `Diffusion.NoiseSchedule` puts them to use.
"""

import math

import torch
from torch import Tensor

SCHEDULES = ("linear", "cosine", "sigmoid", "edm")


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
