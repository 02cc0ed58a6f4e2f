"""Points in the plane whose exact denoiser is known, to learn diffusion with (`Learn Diffusion.ipynb`)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from Libraries.Diffusion import Denoiser, NoiseSchedule


@dataclass(frozen=True)
class PointMixture:
    """Points from Gaussians of one standard deviation, all equally likely."""

    means: Tensor  # (K, 2)
    std: float

    def sample(self, count: int, seed: int) -> Tensor:
        """Return points x0 (count, 2), float32."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.randint(len(self.means), (count,), generator=generator)
        return self.means[component] + self.std * torch.randn(count, 2, generator=generator)

    def denoiser(self, schedule: NoiseSchedule) -> Denoiser:
        """Return the exact denoiser `(x_t (B, 2), t (B,)) -> E[x0 | x_t]`, the best that a network can learn.

        With a = sqrt(ᾱ), s² = 1 - ᾱ and d = std, x_t of component k is N(a·mean_k, (a²d² + s²)·I), so
        E[x0 | x_t, k] = mean_k + a·d²/(a²d² + s²)·(x_t - a·mean_k), and Bayes' rule weights the components.
        """

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            a, s = (level[:, None] for level in schedule.levels(t, x_t))  # (B, 1, 1)
            variance = (a * self.std) ** 2 + s**2
            offset = x_t[:, None] - a * self.means.to(x_t)  # (B, K, 2)
            weight = torch.softmax(-offset.square().sum(2, keepdim=True) / (2 * variance), dim=1)
            x0 = self.means.to(x_t) + a * self.std**2 / variance * offset
            return (weight * x0).sum(1)

        return denoise


def two_moons(per_moon: int = 24, std: float = 0.08) -> PointMixture:
    """Return two interlocking half circles of Gaussians, about zero and with variances around one."""
    angle = torch.linspace(0, math.pi, per_moon)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    return PointMixture(1.3 * torch.cat([upper, -upper]), std)
