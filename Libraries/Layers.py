"""Blocks that the networks share. Tensors are (B, C, F, T); frequency upwards, time to the right."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU}


def zero_init(layer: nn.Module) -> nn.Module:
    """Set the parameters of `layer` to zero, so that its branch starts as "change nothing"."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class TimestepEmbedding(nn.Module):
    """Turn timesteps into vectors: sinusoids (Vaswani et al. 2017, section 3.5), then a two-layer MLP.

    Input t (B,), int64 or float; output (B, dim).
    """

    def __init__(self, dim: int, activation: str = "silu", max_period: float = 10_000.0):
        super().__init__()
        self.dim, self.max_period = dim, max_period
        self.mlp = nn.Sequential(nn.Linear(dim, dim), ACTIVATIONS[activation](), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
        angles = t.float()[:, None] * torch.exp(-math.log(self.max_period) * exponents)[None]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.mlp[0].weight.dtype))


class FrequencyFeatures(nn.Module):
    """Append `count` channels that tell every row its frequency.

    A convolution is the same at every height, but music is not: a bass line and a cymbal look alike
    when moved. Cosines of the row's position, cos(pi k f) for k = 1..count, give it back.
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


class Modulation(nn.Module):
    """Scale and shift a normalised tensor as the embedding says (Dhariwal and Nichol 2021, eq. 7)."""

    def __init__(self, embedding_dim: int, channels: int):
        super().__init__()
        self.project = zero_init(nn.Linear(embedding_dim, 2 * channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.project(embedding)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


class ResBlock(nn.Module):
    """Residual block with GroupNorm and time modulation (Dhariwal and Nichol 2021).

    h = conv(act(norm(x))); h = conv(act(norm(h)·(1 + scale) + shift)); output = skip(x) + h.
    x (B, in_channels, F, T), embedding (B, embedding_dim) -> (B, out_channels, F, T).
    The last convolution starts at zero: a fresh block is its own skip. With `embedding_dim` 0 there is
    neither modulation nor embedding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        groups: int,
        activation: str,
        dropout: float,
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.modulation = Modulation(embedding_dim, out_channels) if embedding_dim else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(self.activation(self.norm1(x))))
        h = self.activation(h if self.modulation is None else self.modulation(h, embedding))
        return self.skip(x) + self.conv2(self.dropout(h))


class DoubleConv(nn.Module):
    """Two convolutions, each with norm and activation; time is added (the origin's block).

    x (B, in_channels, F, T), embedding (B, embedding_dim) -> (B, out_channels, F, T).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        groups: int,
        activation: str,
        dropout: float,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, out_channels)
        self.project = nn.Linear(embedding_dim, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.activation(self.norm1(self.conv1(x)))
        h = h + self.project(embedding)[:, :, None, None]
        return self.activation(self.norm2(self.conv2(self.dropout(h))))


BLOCKS = {"residual": ResBlock, "double_conv": DoubleConv}


class SelfAttention2d(nn.Module):
    """Multi-head self-attention over all F·T positions, with a residual connection.

    (B, C, F, T) -> the same; C must be a multiple of `head_dim`. Starts as the identity.
    """

    def __init__(self, channels: int, head_dim: int, groups: int):
        super().__init__()
        if channels % head_dim:
            raise ValueError(
                f"attention needs channels to be a multiple of head_dim; got {channels} and {head_dim}"
            )
        self.num_heads = channels // head_dim
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, F·T, C)
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # (B, F·T, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # each (B, heads, F·T, head_dim)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, F·T, C)
        return x + self.project(h).transpose(1, 2).reshape_as(x)


class Downsample(nn.Module):
    """Divide F and T by `stride` with a strided convolution: (B, C, F, T) -> (B, out, F/2, T/2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int] = (2, 2)):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Multiply F and T by `stride`: nearest neighbour, then a convolution (Odena et al. 2016).

    A transposed convolution would leave a checkerboard.
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
