"""Blocks that only the journal's networks use: other convolutions, norms, time, attention and skips.

Tensors are (B, C, F, T) unless a docstring says otherwise.
"""

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from Libraries.Layers import (
    ACTIVATIONS,
    Modulation,
    SelfAttention2d,
    full_attention,
    match_channels,
    over_positions,
    zero_init,
)

if TYPE_CHECKING:
    from Libraries.Networks.JournalUNet import JournalUNetConfig


class Addition(nn.Module):
    """Add the embedding, projected to the channels (Ho et al. 2020).

    x (B, C, ...) and embedding (B, embedding_dim) -> like x.
    """

    def __init__(self, embedding_dim: int, channels: int):
        super().__init__()
        self.project = nn.Linear(embedding_dim, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + over_positions(self.project(embedding), x)


TIME_INJECTIONS = {"add": Addition, "modulate": Modulation}


def norm_with_time(norm: nn.Module, time: Addition | Modulation, x: Tensor, embedding: Tensor) -> Tensor:
    """Normalise and condition on time: norm(x + W·e), or norm(x)·(1 + scale(e)) + shift(e)."""
    return time(norm(x), embedding) if isinstance(time, Modulation) else norm(time(x, embedding))


NORMS = ("group", "batch")


def make_norm(norm: str, groups: int, channels: int) -> nn.Module:
    """Return a norm of (B, channels, F, T): GroupNorm (Wu and He 2018), or BatchNorm, which has no groups."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """`ResBlock` with a choice of norm, activation and time injection.

    x (B, in_channels, F, T), embedding (B, embedding_dim) -> (B, out_channels, F, T).
    """

    def __init__(self, in_channels: int, out_channels: int, config: "JournalUNetConfig"):
        super().__init__()
        self.norm1 = make_norm(config.norm, config.norm_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(config.norm, config.norm_groups, out_channels)
        self.time = TIME_INJECTIONS[config.time_injection](config.embedding_dim, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = match_channels(in_channels, out_channels)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.activation(self.norm1(x)))
        h = self.activation(norm_with_time(self.norm2, self.time, h, embedding))
        return self.skip(x) + self.conv2(self.dropout(h))


class DoubleConv(nn.Module):
    """Two convolutions, each with norm and activation (the origin's block); optionally a channel gate.

    Time is added after the first activation, or modulates the first norm.
    x (B, in_channels, F, T), embedding (B, embedding_dim) -> (B, out_channels, F, T).
    """

    def __init__(self, in_channels: int, out_channels: int, config: "JournalUNetConfig", gated: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = make_norm(config.norm, config.norm_groups, out_channels)
        self.time = TIME_INJECTIONS[config.time_injection](config.embedding_dim, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(config.norm, config.norm_groups, out_channels)
        self.gate = SqueezeExcitation(out_channels, config.activation) if gated else nn.Identity()
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x))
        if isinstance(self.time, Modulation):
            h = self.activation(self.time(h, embedding))
        else:
            h = self.time(self.activation(h), embedding)
        return self.gate(self.activation(self.norm2(self.conv2(self.dropout(h)))))


class SqueezeExcitation(nn.Module):
    """Gate each channel by the means of all channels (Hu et al. 2018, eq. 2 to 4).

    s = sigmoid(W2·act(W1·mean(x))), output x·s; (B, C, F, T) -> the same. W1 squeezes C to a sixteenth.
    The paper's act is a ReLU, of which all may die where there are four; here act is that of the block.
    """

    def __init__(self, channels: int, activation: str):
        super().__init__()
        hidden = max(4, channels // 16)
        self.gate = nn.Sequential(
            *(nn.Linear(channels, hidden), ACTIVATIONS[activation]()),
            *(nn.Linear(hidden, channels), nn.Sigmoid()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * over_positions(self.gate(x.mean(dim=(2, 3))), x)


class ConvNeXtBlock(nn.Module):
    """A 7x7 convolution of each channel alone, then a pointwise MLP four times as wide (Liu et al. 2022).

    x (B, in_channels, F, T), embedding (B, embedding_dim) -> (B, out_channels, F, T).
    The MLP's last layer starts at zero, as in `ResBlock`.
    """

    def __init__(self, in_channels: int, out_channels: int, config: "JournalUNetConfig"):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.norm = make_norm(config.norm, config.norm_groups, in_channels)
        self.time = TIME_INJECTIONS[config.time_injection](config.embedding_dim, in_channels)
        self.expand = nn.Conv2d(in_channels, 4 * out_channels, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.contract = zero_init(nn.Conv2d(4 * out_channels, out_channels, 1))
        self.skip = match_channels(in_channels, out_channels)
        self.activation = ACTIVATIONS[config.activation]()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = norm_with_time(self.norm, self.time, self.depthwise(x), embedding)
        return self.skip(x) + self.contract(self.dropout(self.activation(self.expand(h))))


BLOCKS = {
    "residual": ResidualBlock,
    "double_conv": DoubleConv,
    "double_conv_se": partial(DoubleConv, gated=True),
    "convnext": ConvNeXtBlock,
}


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax_d(q)/sqrt(d)·(softmax_N(k)ᵀ·v) (Shen et al. 2021): N·d² work for (B, heads, N, d)."""
    q, k = q.softmax(dim=-1) / math.sqrt(q.shape[-1]), k.softmax(dim=-2)
    return q @ (k.transpose(-2, -1) @ v)


ATTENTIONS = {"full": full_attention, "linear": linear_attention}


class JournalAttention2d(SelfAttention2d):
    """`SelfAttention2d` with a choice of norm, and of full or linear attention."""

    def __init__(self, channels: int, kind: str, config: "JournalUNetConfig"):
        super().__init__(channels, config.head_dim, config.norm_groups)
        self.norm = make_norm(config.norm, config.norm_groups, channels)
        self.attention = ATTENTIONS[kind]


class ModulatedSkip(nn.Module):
    """Join two branches as skip + scale(e)·h, one scale per channel (UNetV0; Schneider et al. 2023).

    h and skip (B, C, ...), embedding (B, embedding_dim) -> like skip.
    """

    def __init__(self, embedding_dim: int, channels: int):
        super().__init__()
        self.project = nn.Linear(embedding_dim, channels)

    def forward(self, h: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        return torch.addcmul(skip, over_positions(self.project(embedding), h), h)
