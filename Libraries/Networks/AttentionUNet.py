"""The U-Net of Outlier's "Diffusion-Models-pytorch", to which the journal moved in its second week.

Full self-attention after every resampling, up to the finest level: at 1x224x416 nearly all of the network's
work. Double convolutions with GroupNorm(1) and GELU, the time added after each, one skip per level by
concatenation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Libraries.Layers import LabelEmbedding, attend, check_input, require_sizes, sinusoids
from Libraries.Networks.Blocks import Addition


@dataclass(frozen=True)
class AttentionUNetConfig:
    """What the network is made of.

    Raises:
        ValueError: two settings do not fit together.
    """

    width: int  # channels of the finest level; the levels have 1, 2, 4 and 4 times as many, the middle 8
    num_heads: int  # of each attention
    embedding_dim: int  # of the time and class embedding
    num_classes: int = 0  # 0: unconditional

    def __post_init__(self):
        require_sizes(self)
        if self.width % self.num_heads or self.embedding_dim % 2:
            raise ValueError(
                f"width={self.width} must be a multiple of num_heads={self.num_heads}, embedding_dim="
                f"{self.embedding_dim} even"
            )

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and frames of the input must be multiples of this: three halvings."""
        return 8, 8


class AttentionUNet(nn.Module):
    """The network `(x, t, cond)`; x (B, in_channels, F, T), t (B,) -> (B, out_channels, F, T).

    Raises:
        ValueError: shape or labels do not fit the network.
    """

    def __init__(self, config: AttentionUNetConfig, in_channels: int, out_channels: int | None = None):
        super().__init__()
        self.config, self.in_channels = config, in_channels
        width, embedding_dim, heads = config.width, config.embedding_dim, config.num_heads
        self.embed_class = LabelEmbedding(config.num_classes, embedding_dim) if config.num_classes else None
        self.stem = _double_conv(in_channels, width, width)
        self.down = nn.ModuleList(
            _Down(width * a, width * b, embedding_dim, heads) for a, b in ((1, 2), (2, 4), (4, 4))
        )
        self.middle = nn.Sequential(
            *(_double_conv(width * a, width * b, width * b) for a, b in ((4, 8), (8, 8), (8, 4)))
        )
        self.up = nn.ModuleList(
            _Up(width * a, width * b, embedding_dim, heads) for a, b in ((8, 2), (4, 1), (2, 1))
        )
        self.out = nn.Conv2d(width, in_channels if out_channels is None else out_channels, 1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        check_input(x, cond, self.in_channels, self.config.multiple, self.config.num_classes)
        embedding = sinusoids(t, self.config.embedding_dim).to(self.out.weight.dtype)
        if self.embed_class is not None:
            embedding = embedding + self.embed_class(cond, t)
        embedding = F.silu(embedding)
        h, skips = self.stem(x), []
        for stage in self.down:
            skips.append(h)
            h = stage(h, embedding)
        h = self.middle(h)
        for stage in self.up:
            h = stage(h, skips.pop(), embedding)
        return self.out(h)


class _Down(nn.Module):
    """Halve F and T, convolve, add the time, attend: (B, C, F, T) -> (B, out_channels, F/2, T/2)."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, num_heads: int):
        super().__init__()
        self.residual = _double_conv(in_channels, in_channels, in_channels)
        self.convolutions = _double_conv(in_channels, out_channels, out_channels)
        self.time = Addition(embedding_dim, out_channels)
        self.attention = _AttentionBlock(out_channels, num_heads)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.max_pool2d(x, 2)
        h = self.convolutions(F.gelu(h + self.residual(h)))
        return self.attention(self.time(h, embedding))


class _Up(nn.Module):
    """Double F and T, join the skip, convolve, add the time, attend; `in_channels` includes the skip's."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, num_heads: int):
        super().__init__()
        self.residual = _double_conv(in_channels, in_channels, in_channels)
        self.convolutions = _double_conv(in_channels, in_channels // 2, out_channels)
        self.time = Addition(embedding_dim, out_channels)
        self.attention = _AttentionBlock(out_channels, num_heads)

    def forward(self, x: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        h = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        h = torch.cat([skip, h], dim=1)
        h = self.convolutions(F.gelu(h + self.residual(h)))
        return self.attention(self.time(h, embedding))


class _AttentionBlock(nn.Module):
    """A pre-norm transformer block over all F·T positions, its MLP as wide as its input."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, F·T, C)
        qkv = self.qkv(self.norm(tokens)).chunk(3, dim=2)
        tokens = tokens + self.project(attend(*qkv, self.num_heads))
        tokens = tokens + self.feed_forward(tokens)
        return tokens.transpose(1, 2).reshape_as(x)


def _double_conv(in_channels: int, middle: int, out_channels: int) -> nn.Sequential:
    """Return conv, GroupNorm(1), GELU, conv, GroupNorm(1); the norms make biases pointless."""
    return nn.Sequential(
        *(nn.Conv2d(in_channels, middle, 3, padding=1, bias=False), nn.GroupNorm(1, middle), nn.GELU()),
        *(nn.Conv2d(middle, out_channels, 3, padding=1, bias=False), nn.GroupNorm(1, out_channels)),
    )
