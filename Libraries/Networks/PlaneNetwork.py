"""A network for points in the plane, small enough to learn diffusion with (`Learn Diffusion.ipynb`)."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class PlaneNetwork(nn.Module):
    """A perceptron of three hidden layers that sees a point and sinusoids of its timestep.

    Args:
        num_train_timesteps: T; the slowest sinusoid goes through half a period from t = 0 to T.
        width: of the hidden layers.
        frequencies: number of sinusoids.
    """

    def __init__(self, num_train_timesteps: int, width: int = 128, frequencies: int = 4):
        super().__init__()
        angular = math.pi / num_train_timesteps * torch.arange(1, frequencies + 1)
        self.register_buffer("angular", angular, persistent=False)
        widths = (2 + frequencies, width, width, width)
        hidden = [nn.Sequential(nn.Linear(m, n), nn.SiLU()) for m, n in pairwise(widths)]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        """Return the output (B, 2) for points x (B, 2) at timesteps t (B,); there are no labels."""
        time = torch.cos(t.to(x.dtype)[:, None] * self.angular)  # (B, frequencies)
        return self.layers(torch.cat([x, time], dim=1))
