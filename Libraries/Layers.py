"""Blocks that the networks share, and how time, label and frequency condition them.

Tensors are (B, C, F, T): frequency rows from low to high, time to the right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Libraries.Utils import require

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU}
LARGEST = 2**14  # of the numbers that a network is made of: a 3x3 convolution of this width has 9.7 GB


class ResBlock(nn.Module):
    """Residual block with group norm and modulation (Ho et al. 2020; Dhariwal and Nichol 2021).

    h = conv(act(norm(x))); h = conv(act(norm(h)·(1 + scale) + shift)); output = skip(x) + h.
    x (B, in_channels, F, T), embedding (B, embedding_dim) -> (B, out_channels, F, T).
    The last convolution starts at zero, so a fresh block returns skip(x). With `embedding_dim` 0 the block
    takes x alone and has no modulation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        embedding_dim: int = 0,
        dropout: float = 0.0,
        activation: str = "silu",
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.time = Modulation(embedding_dim, out_channels) if embedding_dim else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = match_channels(in_channels, out_channels)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(self.activation(self.norm1(x))))
        h = h if self.time is None else self.time(h, embedding)
        return self.skip(x) + self.conv2(self.dropout(self.activation(h)))


def match_channels(in_channels: int, out_channels: int) -> nn.Module:
    """Return a 1x1 convolution to `out_channels`, or the identity where the number stays."""
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


def zero_init(layer: nn.Module) -> nn.Module:
    """Set the parameters of `layer` to zero, so that its branch starts as "change nothing"."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q·kᵀ/sqrt(d))·v (Vaswani et al. 2017, eq. 1): N² work for (B, heads, N, d)."""
    return F.scaled_dot_product_attention(q, k, v)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor] = full_attention,
) -> Tensor:
    """Attend with each head separately: q, k, v (B, N, heads·d) -> the same shape."""
    q, k, v = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, heads, N, d)
    return attention(q, k, v).transpose(1, 2).flatten(2)


class SelfAttention2d(nn.Module):
    """Multi-head self-attention over all F·T positions, with a residual connection.

    (B, C, F, T) -> the same; C must be a multiple of `head_dim`. Starts as the identity.
    """

    attention = staticmethod(full_attention)

    def __init__(self, channels: int, head_dim: int, groups: int):
        super().__init__()
        require_multiples((channels,), head_dim=head_dim)
        self.num_heads = channels // head_dim
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, F·T, C)
        h = attend(*self.qkv(tokens).chunk(3, dim=2), self.num_heads, self.attention)  # (B, F·T, C)
        return x + self.project(h).transpose(1, 2).reshape_as(x)


class Downsample(nn.Module):
    """Divide F and T by `stride` with a strided convolution: (B, C, F, T) -> (B, out, F/p, T/q)."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int] = (2, 2)):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Multiply F and T by `stride`: nearest neighbour, then a convolution (Odena et al. 2016).

    A transposed convolution would leave a checkerboard pattern.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int] = (2, 2)):
        super().__init__()
        self.scale = tuple(float(factor) for factor in stride)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.scale, mode="nearest"))


def fold(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Space to depth: (B, C, F, T) -> (B, C·p·q, F/p, T/q)."""
    p, q = patch
    patches = x.unfold(2, p, p).unfold(3, q, q)  # (B, C, F/p, T/q, p, q)
    return patches.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)


def unfold(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Depth to space, the inverse of `fold`: (B, C·p·q, F, T) -> (B, C, F·p, T·q)."""
    patches = x.unflatten(1, (-1, *patch))  # (B, C, p, q, F, T)
    return patches.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


def sinusoids(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Return cos and sin of t at `dim`/2 frequencies from 1 to 1/max_period (Vaswani et al. 2017, 3.5).

    Input t (B,), int64 or float; output (B, dim), float32.
    """
    half = dim // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """Turn timesteps into vectors: sinusoids, then a two-layer MLP.

    Input t (B,), int64 or float; output (B, dim).
    """

    def __init__(self, dim: int, activation: str = "silu"):
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim), ACTIVATIONS[activation](), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoids(t, self.dim).to(self.mlp[0].weight.dtype))


class LabelEmbedding(nn.Embedding):
    """Turn class labels into vectors, one row more than there are classes: the last row is "no label".

    Input cond (B,) int64 or None, t (B,) for size and device; output (B, dim). The vectors start as
    N(0, 1), as in Dhariwal and Nichol 2021: beside the time embedding, much smaller ones have no effect until
    late in the training.
    """

    def __init__(self, num_classes: int, dim: int):
        super().__init__(num_classes + 1, dim)

    def forward(self, cond: Tensor | None, t: Tensor) -> Tensor:
        no_label = self.num_embeddings - 1
        return super().forward(torch.full_like(t, no_label, dtype=torch.int64) if cond is None else cond)


class Modulation(nn.Module):
    """Scale and shift a normalised tensor by the embedding (Dhariwal and Nichol 2021, eq. 7).

    x (B, C, ...) and embedding (B, embedding_dim) -> like x; starts as the identity.
    """

    def __init__(self, embedding_dim: int, channels: int):
        super().__init__()
        self.project = zero_init(nn.Linear(embedding_dim, 2 * channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = over_positions(self.project(embedding), x).chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


def over_positions(vector: Tensor, x: Tensor) -> Tensor:
    """Give (B, C) the trailing axes of x (B, C, ...), so that it holds at every position."""
    return vector[(...,) + (None,) * (x.ndim - 2)]


class FrequencyFeatures(nn.Module):
    """Append `count` channels that give each row its frequency.

    A convolution is the same at every height, but music is not: a bass line and a cymbal look alike when
    moved. Cosines of the row's position, cos(pi k f) for k = 1..count, make the height known.
    Input (B, C, F, T); output (B, C + count, F, T).
    """

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        B, _, n_rows, n_frames = x.shape
        f = (torch.arange(n_rows, device=x.device, dtype=x.dtype) + 0.5) / n_rows
        k = torch.arange(1, self.count + 1, device=x.device, dtype=x.dtype)
        features = torch.cos(math.pi * k[:, None] * f[None, :])  # (count, F)
        return torch.cat([x, features[None, :, :, None].expand(B, -1, -1, n_frames)], dim=1)


def check_input(
    x: Tensor, cond: Tensor | None, in_channels: int, multiple: tuple[int, ...], num_classes: int
) -> None:
    """Refuse input that a network cannot take; while a graph is traced, check nothing.

    Args:
        x: (B, in_channels, L) or (B, in_channels, F, T), one axis per value of `multiple`.
        cond: (B,) labels or None.
        multiple: the sizes of L, or F and T, must be multiples of these.
        num_classes: of the network; 0 if it takes no labels.

    Raises:
        ValueError: names what was expected.
    """
    if torch.jit.is_tracing():
        return
    axes = "FT" if len(multiple) == 2 else "L"
    fits = x.ndim == 2 + len(axes) and x.shape[1] == in_channels
    if not fits or any(size % of for size, of in zip(x.shape[2:], multiple, strict=True)):
        needs = " and ".join(f"{axis} a multiple of {of}" for axis, of in zip(axes, multiple, strict=True))
        raise ValueError(
            f"the network takes (B, {in_channels}, {', '.join(axes)}) with {needs}; got {tuple(x.shape)}"
        )
    if cond is not None and not num_classes:
        raise ValueError("labels were given to a network without classes; set num_classes in Conf.py")


def require_sizes(config: Any) -> None:
    """Raise a ValueError if a number in a network's settings, a dataclass, asks for more than any memory."""
    for field in fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, str) and number > LARGEST:
                raise ValueError(f"{field.name}={number!r:.80} must be at most {LARGEST}")


def require_multiples(channels: Sequence[int], **divisors: int) -> None:
    """Raise a ValueError unless all widths are multiples of each divisor, as `norm_groups=8`."""
    require("[1, inf)", **divisors)
    for name, divisor in divisors.items():
        if any(width % divisor for width in channels):
            raise ValueError(f"channels={tuple(channels)} must be multiples of {name}={divisor}")
