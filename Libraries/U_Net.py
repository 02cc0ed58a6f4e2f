"""The denoising network: a configured U-Net `(x, t, cond)`. It knows no noise schedule."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from Libraries.Layers import (
    ACTIVATIONS,
    BLOCKS,
    Downsample,
    FrequencyFeatures,
    SelfAttention2d,
    TimestepEmbedding,
    Upsample,
    fold,
    unfold,
    zero_init,
)


@dataclass(frozen=True)
class UNetConfig:
    """What the network is made of; the values live in `Conf.py`.

    Raises:
        ValueError: a setting is unknown or two do not fit together.
    """

    block: str  # residual | double_conv
    channels: tuple[int, ...]  # width of each level, finest first
    blocks_per_level: int
    attention_levels: tuple[int, ...]  # indices into `channels`
    head_dim: int  # channels of one attention head
    patch_size: tuple[int, int]  # rows, frames: the stem folds a patch into channels
    frequency_features: int  # channels that tell a row its frequency; 0 for none
    embedding_dim: int  # of the time (and class) embedding
    norm_groups: int  # of GroupNorm
    activation: str  # silu | gelu
    dropout: float  # share of features dropped in training
    num_classes: int  # 0: unconditional; else cond = num_classes means "no label"

    def __post_init__(self):
        for name, known in (("block", BLOCKS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}"
                )
        if not self.channels or self.blocks_per_level < 1:
            raise ValueError("channels needs at least one level and blocks_per_level must be 1 or more")
        if any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels={self.channels} must be multiples of norm_groups={self.norm_groups}")
        if any(not 0 <= level < len(self.channels) for level in self.attention_levels):
            raise ValueError(f"attention_levels={self.attention_levels} must be below {len(self.channels)}")
        if self.num_classes < 0 or self.frequency_features < 0 or min(self.patch_size) < 1:
            raise ValueError("num_classes and frequency_features must be 0 or more, patch_size 1 or more")
        if self.embedding_dim % 2:
            raise ValueError(f"embedding_dim={self.embedding_dim} must be even: half sines, half cosines")

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and frames of the input must be multiples of this: patch times every halving."""
        halvings = 2 ** (len(self.channels) - 1)
        return self.patch_size[0] * halvings, self.patch_size[1] * halvings


class UNet(nn.Module):
    """U-Net of Ho et al. 2020 with the skips of every block, a space-to-depth stem and a linear output.

    The output is linear because what it predicts (noise, v) is unbounded: a sigmoid there is why the
    first run of the journal this grew from was noise. Folding p·q patches into channels first divides
    the cost by about p·q (a U-Net that convolves at 224x416 needs 170 to 290 GFLOP a step).
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int | None = None):
        super().__init__()
        self.config, self.in_channels = config, in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.embed_time = TimestepEmbedding(config.embedding_dim, config.activation)
        # one row more than there are classes: the last is "no label"
        self.embed_class = (
            nn.Embedding(config.num_classes + 1, config.embedding_dim) if config.num_classes else None
        )
        if self.embed_class is not None:
            nn.init.normal_(self.embed_class.weight, std=0.02)
        self.embed_activation = ACTIVATIONS[config.activation]()

        p, q = config.patch_size
        self.frequency_features = FrequencyFeatures(config.frequency_features)
        self.stem = nn.Conv2d(
            in_channels * p * q + config.frequency_features, config.channels[0], 3, padding=1
        )
        widths = self._build_down()
        self.middle = _Stage(config, config.channels[-1], config.channels[-1], len(config.channels) - 1)
        self._build_up(widths)
        self.out_norm = nn.GroupNorm(config.norm_groups, config.channels[0])
        self.out = zero_init(nn.Conv2d(config.channels[0], self.out_channels * p * q, 3, padding=1))

    def _build_down(self) -> list[int]:
        """Make the falling half; return the widths of the skips in the order they are pushed."""
        config, width = self.config, self.config.channels[0]
        self.down, widths = nn.ModuleList(), [width]
        for level, channels in enumerate(config.channels):
            if level:
                self.down.append(Downsample(width, width))
                widths.append(width)
            for _ in range(config.blocks_per_level):
                self.down.append(_Stage(config, width, channels, level))
                width = channels
                widths.append(width)
        return widths

    def _build_up(self, widths: list[int]) -> None:
        """Make the rising half: every stage takes one skip, so one stage more a level than going down."""
        config, width = self.config, self.config.channels[-1]
        self.up = nn.ModuleList()
        for level in reversed(range(len(config.channels))):
            for _ in range(config.blocks_per_level + 1):
                self.up.append(_Stage(config, width + widths.pop(), config.channels[level], level))
                width = config.channels[level]
            if level:
                self.up.append(Upsample(width, width))

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
        if not torch.jit.is_tracing():  # a graph for Netron has no use for the checks
            self._check(x, cond)
        embedding = self._embed(t, cond)
        h = self.stem(self.frequency_features(fold(x, self.config.patch_size)))
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding) if isinstance(layer, _Stage) else layer(h)
            skips.append(h)
        h = self.middle(h, embedding)
        for layer in self.up:
            if isinstance(layer, _Stage):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            else:
                h = layer(h)
        h = self.out(self.embed_activation(self.out_norm(h)))
        return unfold(h, self.config.patch_size)

    def _embed(self, t: Tensor, cond: Tensor | None) -> Tensor:
        embedding = self.embed_time(t)
        if self.embed_class is not None:
            cond = torch.full_like(t, self.config.num_classes, dtype=torch.int64) if cond is None else cond
            embedding = embedding + self.embed_class(cond)
        return self.embed_activation(embedding)

    def _check(self, x: Tensor, cond: Tensor | None) -> None:
        multiple = self.config.multiple
        if (
            x.ndim != 4
            or x.shape[1] != self.in_channels
            or x.shape[2] % multiple[0]
            or x.shape[3] % multiple[1]
        ):
            raise ValueError(
                f"the network takes (B, {self.in_channels}, F, T) with F a multiple of {multiple[0]} and T "
                f"of {multiple[1]}; got {tuple(x.shape)}"
            )
        if cond is not None and self.embed_class is None:
            raise ValueError("labels were given to a network without classes; set num_classes in Conf.py")


class _Stage(nn.Module):
    """One block, and self-attention after it where the level asks for it."""

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int, level: int):
        super().__init__()
        self.block = BLOCKS[config.block](
            in_channels,
            out_channels,
            config.embedding_dim,
            config.norm_groups,
            config.activation,
            config.dropout,
        )
        attends = level in config.attention_levels
        self.attention = (
            SelfAttention2d(out_channels, config.head_dim, config.norm_groups) if attends else None
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.block(x, embedding)
        return h if self.attention is None else self.attention(h)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(model: nn.Module, *inputs: Tensor) -> float:
    """Return the floating-point operations of one forward pass (two for a multiply-add), on these inputs."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*inputs)
    return counter.get_total_flops()
