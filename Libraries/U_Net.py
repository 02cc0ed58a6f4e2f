"""The denoising network: a U-Net `(x, t, cond)`. It knows no noise schedule."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Libraries.Layers import (
    Downsample,
    FrequencyFeatures,
    LabelEmbedding,
    ResBlock,
    SelfAttention2d,
    TimestepEmbedding,
    Upsample,
    check_input,
    fold,
    require_multiples,
    require_sizes,
    unfold,
    zero_init,
)
from Libraries.Utils import require


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """What the network is made of; the values live in `Conf.py`.

    Raises:
        ValueError: a setting is impossible or two do not fit together.
    """

    channels: tuple[int, ...]  # width of each level, finest first
    blocks_per_level: int  # in the encoder; the decoder has one more
    attention_levels: tuple[int, ...] = ()  # indices into `channels`; every position sees every other
    head_dim: int  # channels per attention head
    patch_size: tuple[int, int]  # rows, frames: the stem folds a patch into channels
    frequency_features: int = 0  # channels that give each row its frequency
    embedding_dim: int  # of the time and class embedding
    norm_groups: int  # of GroupNorm; 1 normalises over all channels
    dropout: float = 0.0  # fraction of features dropped in training
    num_classes: int = 0  # 0: unconditional; else cond = num_classes means "no label"

    def __post_init__(self) -> None:
        require_sizes(self)
        if not self.channels:
            raise ValueError("channels=() needs at least one level")
        require("[1, inf)", blocks_per_level=self.blocks_per_level)
        for size in self.patch_size:
            require("[1, inf)", patch_size=size)
        require("[0, inf)", frequency_features=self.frequency_features, num_classes=self.num_classes)
        require("[0, 1)", dropout=self.dropout)
        if self.embedding_dim % 2:
            raise ValueError(f"embedding_dim={self.embedding_dim} must be even: half sines, half cosines")
        require_multiples(self.channels, norm_groups=self.norm_groups)
        self.check_attention("attention_levels")

    def check_attention(self, name: str) -> None:
        """Raise a ValueError unless the levels in the field `name` exist and attention heads divide them."""
        for level in getattr(self, name):
            require(f"[0, {len(self.channels)})", **{name: level})
            require_multiples((self.channels[level],), head_dim=self.head_dim)

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and frames of the input must be multiples of this: patch times every halving."""
        halvings = 2 ** (len(self.channels) - 1)
        return self.patch_size[0] * halvings, self.patch_size[1] * halvings


class UNet(nn.Module):
    """U-Net of Ho et al. 2020 with the blocks of Dhariwal and Nichol 2021 and a space-to-depth stem.

    Every layer of the encoder half, stem and downsamplings included, has a skip to the decoder half. The
    output is linear because what it predicts (noise, v) is unbounded. Folding patches of p·q values into
    channels divides the cost by about p·q: a U-Net that convolves at 224x416 needs 170 to 290 GFLOP per step.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int | None = None):
        super().__init__()
        self.config, self.in_channels = config, in_channels
        (p, q), width, dim = config.patch_size, config.channels[0], config.embedding_dim
        self.embed_time = TimestepEmbedding(dim)
        self.embed_class = LabelEmbedding(config.num_classes, dim) if config.num_classes else None
        self.frequency_features = FrequencyFeatures(config.frequency_features)
        self.stem = nn.Conv2d(in_channels * p * q + config.frequency_features, width, 3, padding=1)

        self.down, skips = nn.ModuleList(), [width]
        for level in range(len(config.channels)):
            if level:
                self.down.append(Downsample(width, width))
                skips.append(width)
            for _ in range(config.blocks_per_level):
                self.down.append(Stage(config, level, width))
                width = config.channels[level]
                skips.append(width)
        self.middle = Stage(config, level, width)
        self.up = nn.ModuleList()
        for level in reversed(range(len(config.channels))):
            for _ in range(config.blocks_per_level + 1):  # one more, for the skip of the resampling or stem
                self.up.append(Stage(config, level, width + skips.pop()))
                width = config.channels[level]
            if level:
                self.up.append(Upsample(width, width))

        self.out_norm = nn.GroupNorm(config.norm_groups, width)
        out_channels = in_channels if out_channels is None else out_channels
        self.out = zero_init(nn.Conv2d(width, out_channels * p * q, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict from the noisy input.

        Args:
            x: (B, in_channels, F, T), F and T multiples of `config.multiple`.
            t: (B,) timesteps.
            cond: (B,) int64 class labels; None or `num_classes` for no label.

        Returns:
            (B, out_channels, F, T).

        Raises:
            ValueError: shape or labels do not fit the network.
        """
        check_input(x, cond, self.in_channels, self.config.multiple, self.config.num_classes)
        embedding = self.embed_time(t)
        if self.embed_class is not None:
            embedding = embedding + self.embed_class(cond, t)
        embedding = F.silu(embedding)  # (B, embedding_dim)
        h = fold(x, self.config.patch_size)  # (B, in_channels·p·q, F/p, T/q)
        h = self.stem(self.frequency_features(h))  # (B, channels[0], F/p, T/q)
        skips = [h]
        for layer in self.down:  # to (B, channels[-1], F/p/2^n, T/q/2^n), n = levels - 1
            h = layer(h, embedding) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        h = self.middle(h, embedding)
        for layer in self.up:  # back to (B, channels[0], F/p, T/q)
            h = layer(torch.cat([h, skips.pop()], dim=1), embedding) if isinstance(layer, Stage) else layer(h)
        h = self.out(F.silu(self.out_norm(h)))  # (B, out_channels·p·q, F/p, T/q)
        return unfold(h, self.config.patch_size)


class Stage(nn.Module):
    """A residual block of the width of its level, then self-attention if the level asks for it."""

    def __init__(self, config: UNetConfig, level: int, in_channels: int):
        super().__init__()
        channels, groups = config.channels[level], config.norm_groups
        self.block = ResBlock(in_channels, channels, groups, config.embedding_dim, config.dropout)
        attends = level in config.attention_levels
        self.attention = SelfAttention2d(channels, config.head_dim, groups) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))
