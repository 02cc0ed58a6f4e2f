"""Blocks that the networks share, and how a network is told the time, the label and the frequency.

Tensors are (B, C, F, T): frequency upwards, time to the right.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU}


def zero_init(layer: nn.Module) -> nn.Module:
    """Set the parameters of `layer` to zero, so that its branch starts as "change nothing"."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


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


class LabelEmbedding(nn.Embedding):
    """Turn class labels into vectors; one row more than there are classes: the last is "no label".

    Input cond (B,) int64 or None, t (B,) for size and device; output (B, dim). The vectors start as
    N(0, 1), as those of Dhariwal and Nichol 2021: much smaller ones are long not heard beside the time's.
    """

    def __init__(self, num_classes: int, dim: int):
        super().__init__(num_classes + 1, dim)

    def forward(self, cond: Tensor | None, t: Tensor) -> Tensor:
        no_label = self.num_embeddings - 1
        return super().forward(torch.full_like(t, no_label, dtype=torch.int64) if cond is None else cond)


def over_positions(vector: Tensor, x: Tensor) -> Tensor:
    """Give (B, C) the trailing axes of x (B, C, ...), so that it holds at every position."""
    return vector[(...,) + (None,) * (x.ndim - 2)]


class Modulation(nn.Module):
    """Scale and shift a normalised tensor as the embedding says (Dhariwal and Nichol 2021, eq. 7).

    x (B, C, ...) and embedding (B, embedding_dim) -> like x; starts as the identity.
    """

    def __init__(self, embedding_dim: int, channels: int):
        super().__init__()
        self.project = zero_init(nn.Linear(embedding_dim, 2 * channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = over_positions(self.project(embedding), x).chunk(2, dim=1)
        return torch.addcmul(shift, x, 1 + scale)


class Addition(nn.Module):
    """Add the embedding, projected to the channels (Ho et al. 2020); shapes as in `Modulation`."""

    def __init__(self, embedding_dim: int, channels: int):
        super().__init__()
        self.project = nn.Linear(embedding_dim, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + over_positions(self.project(embedding), x)


TIME_INJECTIONS = {"add": Addition, "modulate": Modulation}


def norm_with_time(norm: nn.Module, time: nn.Module | None, x: Tensor, embedding: Tensor | None) -> Tensor:
    """Normalise and tell the time: norm(x + W·e), or norm(x)·(1 + scale(e)) + shift(e)."""
    if time is None:
        return norm(x)
    return time(norm(x), embedding) if isinstance(time, Modulation) else norm(time(x, embedding))


class ModulatedSkip(nn.Module):
    """Join two branches as skip + scale(e)·h, one scale a channel (UNetV0; Schneider et al. 2023).

    h and skip (B, C, ...), embedding (B, embedding_dim) -> like skip.
    """

    def __init__(self, embedding_dim: int, channels: int):
        super().__init__()
        self.project = nn.Linear(embedding_dim, channels)

    def forward(self, h: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
        return torch.addcmul(skip, over_positions(self.project(embedding), h), h)


def check_input(
    x: Tensor, cond: Tensor | None, in_channels: int, multiples: dict[str, int], num_classes: int
) -> None:
    """Refuse what a network cannot take.

    Args:
        x: (B, in_channels, ...) with the axes of `multiples`.
        cond: (B,) labels or None.
        multiples: what the size of each further axis must be a multiple of, by the axis' name.
        num_classes: of the network; 0 if it knows no labels.

    Raises:
        ValueError: says what was expected.
    """
    fits = x.ndim == 2 + len(multiples) and x.shape[1] == in_channels
    if not fits or any(size % of for size, of in zip(x.shape[2:], multiples.values(), strict=True)):
        needs = " and ".join(f"{axis} a multiple of {of}" for axis, of in multiples.items())
        raise ValueError(
            f"the network takes (B, {in_channels}, {', '.join(multiples)}) with {needs}; got {tuple(x.shape)}"
        )
    if cond is not None and not num_classes:
        raise ValueError("labels were given to a network without classes; set num_classes in Conf.py")


NORMS = ("group", "batch")


def make_norm(norm: str, groups: int, channels: int) -> nn.Module:
    """Return a norm of (B, channels, F, T): GroupNorm (Wu and He 2018), or BatchNorm without groups."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(groups, channels)


class SqueezeExcitation(nn.Module):
    """Gate each channel by what the whole tensor holds (Hu et al. 2018, eq. 2 to 4).

    s = sigmoid(W2·act(W1·mean(x))), output x·s; (B, C, F, T) -> the same. W1 squeezes C to a sixteenth.
    Their act is a ReLU; among as few as four hidden values all of them may die, so it is the block's here.
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


def _shortcut(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


class ResBlock(nn.Module):
    """Residual block with normalisation and time (Ho et al. 2020; Dhariwal and Nichol 2021).

    h = conv(act(norm(x))); h = conv(act(norm(h)·(1 + scale) + shift)); output = skip(x) + h. With
    `time_injection` "add" the middle is act(norm(h + W·e)).
    x (B, in_channels, F, T), embedding (B, embedding_dim) -> (B, out_channels, F, T).
    The last convolution starts at zero: a fresh block is its own skip. With `embedding_dim` 0 there is
    neither time nor embedding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        groups: int,
        activation: str,
        dropout: float,
        norm: str = "group",
        time_injection: str = "modulate",
    ):
        super().__init__()
        self.norm1 = make_norm(norm, groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(norm, groups, out_channels)
        self.time = TIME_INJECTIONS[time_injection](embedding_dim, out_channels) if embedding_dim else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = _shortcut(in_channels, out_channels)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(self.activation(self.norm1(x)))
        h = self.activation(norm_with_time(self.norm2, self.time, h, embedding))
        return self.skip(x) + self.conv2(self.dropout(h))


class DoubleConv(nn.Module):
    """Two convolutions, each with norm and activation (the origin's block); optionally a channel gate.

    Time is added after the first activation, or modulates the first norm.
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
        norm: str,
        time_injection: str,
        gated: bool = False,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = make_norm(norm, groups, out_channels)
        self.time = TIME_INJECTIONS[time_injection](embedding_dim, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(norm, groups, out_channels)
        self.gate = SqueezeExcitation(out_channels, activation) if gated else nn.Identity()
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x))
        if isinstance(self.time, Modulation):
            h = self.activation(self.time(h, embedding))
        else:
            h = self.time(self.activation(h), embedding)
        return self.gate(self.activation(self.norm2(self.conv2(self.dropout(h)))))


class ConvNeXtBlock(nn.Module):
    """A 7x7 convolution of each channel alone, then a pointwise MLP four times as wide (Liu et al. 2022).

    x (B, in_channels, F, T), embedding (B, embedding_dim) -> (B, out_channels, F, T).
    The MLP's last layer starts at zero, as in `ResBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        groups: int,
        activation: str,
        dropout: float,
        norm: str,
        time_injection: str,
    ):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.norm = make_norm(norm, groups, in_channels)
        self.time = TIME_INJECTIONS[time_injection](embedding_dim, in_channels)
        self.expand = nn.Conv2d(in_channels, 4 * out_channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.contract = zero_init(nn.Conv2d(4 * out_channels, out_channels, 1))
        self.skip = _shortcut(in_channels, out_channels)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = norm_with_time(self.norm, self.time, self.depthwise(x), embedding)
        return self.skip(x) + self.contract(self.dropout(self.activation(self.expand(h))))


BLOCKS = {
    "residual": ResBlock,
    "double_conv": DoubleConv,
    "double_conv_se": partial(DoubleConv, gated=True),
    "convnext": ConvNeXtBlock,
}


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q·kᵀ/sqrt(d))·v (Vaswani et al. 2017, eq. 1): N² work for (B, heads, N, d)."""
    return F.scaled_dot_product_attention(q, k, v)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax_d(q)/sqrt(d)·(softmax_N(k)ᵀ·v) (Shen et al. 2021): N·d² work for (B, heads, N, d)."""
    q, k = q.softmax(dim=-1) / math.sqrt(q.shape[-1]), k.softmax(dim=-2)
    return q @ (k.transpose(-2, -1) @ v)


ATTENTIONS = {"full": full_attention, "linear": linear_attention}


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, attention: str = "full") -> Tensor:
    """Attend with every head by itself: q, k, v (B, N, heads·d) -> the same shape."""
    q, k, v = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))  # (B, heads, N, d)
    return ATTENTIONS[attention](q, k, v).transpose(1, 2).flatten(2)


class SelfAttention2d(nn.Module):
    """Multi-head self-attention over all F·T positions, with a residual connection.

    (B, C, F, T) -> the same; C must be a multiple of `head_dim`. Starts as the identity.
    """

    def __init__(
        self, channels: int, head_dim: int, groups: int, norm: str = "group", attention: str = "full"
    ):
        super().__init__()
        if channels % head_dim:
            raise ValueError(
                f"attention needs channels to be a multiple of head_dim; got {channels} and {head_dim}"
            )
        self.num_heads, self.attention = channels // head_dim, attention
        self.norm = make_norm(norm, groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, F·T, C)
        h = attend(*self.qkv(tokens).chunk(3, dim=2), self.num_heads, self.attention)  # (B, F·T, C)
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
