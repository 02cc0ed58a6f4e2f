"""How a network is told the time, the label and the frequency, and what it does with them."""

import math

import torch
from torch import Tensor, nn

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
