"""UNetV0 of Flavio Schneider (Moûsai, 2023; the packages audio-diffusion-pytorch and a-unet), 1-D or 2-D.

Every level is a nest: down, items, the next level, items, up, and around it one skip that the time scales,
skip + scale(time)·h. It is no setting of `UNet`, where levels stand side by side; with the weights of the
package's network it computes what that computes.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Libraries.Layers import LabelEmbedding, ModulatedSkip, Modulation, attend, check_input
from Libraries.Utils import require

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}


@dataclass(frozen=True)
class UNetV0Config:
    """What a UNetV0 is made of; a tuple holds one value a level, outermost first.

    Raises:
        ValueError: two settings do not fit together.
    """

    dim: int  # 1: waveforms (B, C, L) | 2: spectrograms (B, C, F, T)
    channels: tuple[int, ...]
    factors: tuple[int, ...]  # what a level divides every axis by
    items: tuple[int, ...]  # blocks on the way down, and as many on the way up
    attentions: tuple[int, ...]  # 1: every item attends | 0
    linear_attentions: tuple[int, ...]  # the same at linear cost
    head_dim: int  # channels of one attention head
    num_heads: int
    norm_groups: int
    embedding_dim: int  # of time (and label)
    time_scale: float  # timesteps that are 1 to the network, which was made for times in [0, 1]
    num_classes: int  # 0: unconditional

    def __post_init__(self):
        require(CONVOLUTIONS, dim=self.dim)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) != len(self.channels):
                raise ValueError(f"{field.name}={value} needs one value for each of channels={self.channels}")
        if any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels={self.channels} must be multiples of norm_groups={self.norm_groups}")

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and frames (of a waveform: samples) of the input must be multiples of this."""
        return (math.prod(self.factors),) * 2


class UNetV0(nn.Module):
    """The network `(x, t, cond)`; x (B, in_channels, L) or (B, in_channels, F, T), t (B,) -> like x.

    Raises:
        ValueError: shape or labels do not fit the network.
    """

    def __init__(self, config: UNetV0Config, in_channels: int, out_channels: int | None = None):
        super().__init__()
        self.config, self.in_channels = config, in_channels
        self.embed_time = NumberEmbedding(config.embedding_dim)
        self.embed_class = (
            LabelEmbedding(config.num_classes, config.embedding_dim) if config.num_classes else None
        )
        self.net = _Level(config, 0, in_channels, in_channels if out_channels is None else out_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if not torch.jit.is_tracing():
            multiples = dict.fromkeys("L" if self.config.dim == 1 else "FT", self.config.multiple[0])
            check_input(x, cond, self.in_channels, multiples, self.config.num_classes)
        embedding = self.embed_time(t / self.config.time_scale)
        if self.embed_class is not None:
            embedding = embedding + self.embed_class(cond, t)
        return self.net(x, F.silu(embedding))


class NumberEmbedding(nn.Module):
    """Turn real numbers into vectors: learned Fourier features, then an MLP; (B,) -> (B, dim).

    As in the package, the MLP's hidden layer is applied twice with the same weights.
    """

    def __init__(self, dim: int, num_features: int = 256):
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(num_features // 2))
        self.first = nn.Linear(num_features + 1, dim)
        self.hidden = nn.Linear(dim, dim)

    def forward(self, number: Tensor) -> Tensor:
        number = number.to(self.frequencies.dtype)[:, None]
        angles = 2 * math.pi * number * self.frequencies
        h = F.gelu(self.first(torch.cat([number, angles.sin(), angles.cos()], dim=1)))
        return F.gelu(self.hidden(F.gelu(self.hidden(h))))


class _Level(nn.Module):
    """One level and, inside it, all that are deeper: skip + scale(e)·up(items(inner(items(down(x)))))."""

    def __init__(self, config: UNetV0Config, level: int, in_channels: int, out_channels: int):
        super().__init__()
        conv, channels = CONVOLUTIONS[config.dim], config.channels[level]
        self.factor = float(config.factors[level])
        self.adapt = conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.down = conv(in_channels, channels, config.factors[level], stride=config.factors[level])
        self.items_down = nn.ModuleList(_Item(config, level) for _ in range(config.items[level]))
        deepest = level == len(config.channels) - 1
        self.inner = None if deepest else _Level(config, level + 1, channels, channels)
        self.items_up = nn.ModuleList(_Item(config, level) for _ in range(config.items[level]))
        self.up = conv(channels, out_channels, 3, padding=1)
        self.merge = ModulatedSkip(config.embedding_dim, out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.down(x)
        for item in self.items_down:
            h = item(h, embedding)
        if self.inner is not None:
            h = self.inner(h, embedding)
        for item in self.items_up:
            h = item(h, embedding)
        h = self.up(F.interpolate(h, scale_factor=self.factor, mode="nearest"))
        return self.merge(h, self.adapt(x), embedding)


class _Item(nn.Module):
    """Residual convolutions, modulation by the time, and attention where the level has it."""

    def __init__(self, config: UNetV0Config, level: int):
        super().__init__()
        conv, channels = CONVOLUTIONS[config.dim], config.channels[level]
        self.convolutions = nn.Sequential(
            *(nn.GroupNorm(config.norm_groups, channels), nn.SiLU(), conv(channels, channels, 3, padding=1)),
            *(nn.GroupNorm(config.norm_groups, channels), nn.SiLU(), conv(channels, channels, 3, padding=1)),
        )
        self.modulation = Modulation(config.embedding_dim, channels)
        kinds = ["full"] * config.attentions[level] + ["linear"] * config.linear_attentions[level]
        self.attentions = nn.ModuleList(
            _Attention(channels, config.head_dim, config.num_heads, kind) for kind in kinds
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = x + self.convolutions(x)
        tokens = h.flatten(2).transpose(1, 2)  # (B, positions, C)
        tokens = F.layer_norm(tokens, tokens.shape[2:], eps=1e-6)  # over the channels of each position
        h = self.modulation(tokens.transpose(1, 2).reshape_as(h), embedding)
        for attention in self.attentions:
            h = attention(h)
        return h


class _Attention(nn.Module):
    """Self-attention with a norm of its own for the queries and for keys and values; residual."""

    def __init__(self, channels: int, head_dim: int, num_heads: int, kind: str):
        super().__init__()
        self.num_heads, self.kind = num_heads, kind
        self.norm_q, self.norm_kv = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.q = nn.Linear(channels, num_heads * head_dim, bias=False)
        self.kv = nn.Linear(channels, 2 * num_heads * head_dim, bias=False)
        self.project = nn.Linear(num_heads * head_dim, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, positions, C)
        q, (k, v) = self.q(self.norm_q(tokens)), self.kv(self.norm_kv(tokens)).chunk(2, dim=2)
        h = self.project(attend(q, k, v, self.num_heads, self.kind))
        return x + h.transpose(1, 2).reshape_as(x)
