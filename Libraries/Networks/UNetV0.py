"""UNetV0 of Flavio Schneider (Moûsai, 2023; the packages audio-diffusion-pytorch and a-unet), 1-D or 2-D.

Levels are nested: down, items, the next level, items, up, and around all of these one skip whose inner
branch the time scales, skip + scale(time)·h. With the weights of the package's network, UNetV0 computes the
same outputs.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Libraries.Layers import (
    LabelEmbedding,
    Modulation,
    attend,
    check_input,
    require_multiples,
    require_sizes,
)
from Libraries.Networks.Blocks import ATTENTIONS, ModulatedSkip
from Libraries.Utils import require

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}


@dataclass(frozen=True)
class UNetV0Config:
    """What a UNetV0 is made of; a tuple holds one value per level, outermost first.

    Raises:
        ValueError: two settings do not fit together.
    """

    dim: int  # 1: waveforms (B, C, L) | 2: spectrograms (B, C, F, T)
    channels: tuple[int, ...]
    factors: tuple[int, ...]  # by which a level divides the size of each axis
    items: tuple[int, ...]  # blocks in the encoder half, and as many in the decoder half
    attentions: tuple[int, ...]  # 1: every item attends | 0
    linear_attentions: tuple[int, ...]  # the same at linear cost
    head_dim: int  # channels per attention head
    num_heads: int
    norm_groups: int
    embedding_dim: int  # of the time and class embedding
    time_scale: float  # timesteps are divided by it, because the network was made for times in [0, 1]
    num_classes: int = 0  # 0: unconditional

    def __post_init__(self):
        require_sizes(self)
        require(CONVOLUTIONS, dim=self.dim)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) != len(self.channels):
                raise ValueError(f"{field.name}={value} needs one value for each of channels={self.channels}")
        require_multiples(self.channels, norm_groups=self.norm_groups)

    @property
    def multiple(self) -> tuple[int, ...]:
        """Rows and frames, or the samples of a waveform, must be multiples of this: all factors."""
        return (math.prod(self.factors),) * self.dim


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
        check_input(x, cond, self.in_channels, self.config.multiple, self.config.num_classes)
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
    """One level and, inside it, all deeper ones: skip + scale(e)·up(items(inner(items(down(x)))))."""

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
    """Residual convolutions, modulation by the time, and attention where the level asks for it."""

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
    """Residual self-attention with one norm for the queries and another for keys and values."""

    def __init__(self, channels: int, head_dim: int, num_heads: int, kind: str):
        super().__init__()
        self.num_heads, self.attention = num_heads, ATTENTIONS[kind]
        self.norm_q, self.norm_kv = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.q = nn.Linear(channels, num_heads * head_dim, bias=False)
        self.kv = nn.Linear(channels, 2 * num_heads * head_dim, bias=False)
        self.project = nn.Linear(num_heads * head_dim, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, positions, C)
        q, (k, v) = self.q(self.norm_q(tokens)), self.kv(self.norm_kv(tokens)).chunk(2, dim=2)
        h = self.project(attend(q, k, v, self.num_heads, self.attention))
        return x + h.transpose(1, 2).reshape_as(x)
