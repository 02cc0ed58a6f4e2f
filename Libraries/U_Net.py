"""The denoising network: a configured U-Net `(x, t, cond)`. It knows no noise schedule."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from Libraries.Layers import (
    ACTIVATIONS,
    BLOCKS,
    NORMS,
    TIME_INJECTIONS,
    Downsample,
    FrequencyFeatures,
    LabelEmbedding,
    ModulatedSkip,
    SelfAttention2d,
    TimestepEmbedding,
    Upsample,
    check_input,
    fold,
    make_norm,
    unfold,
    zero_init,
)
from Libraries.Utils import require

SKIPS = ("none", "level", "block", "layer")
OUTPUTS = ("linear", "sigmoid", "sigmoid_experiment")


@dataclass(frozen=True)
class UNetConfig:
    """What the network is made of; the values live in `Conf.py`.

    Raises:
        ValueError: a setting is unknown or two do not fit together.
    """

    block: str  # residual | double_conv | double_conv_se | convnext
    channels: tuple[int, ...]  # width of each level, finest first
    blocks_per_level: int
    attention_levels: tuple[int, ...]  # indices into `channels`; every position sees every other
    linear_attention_levels: tuple[int, ...]  # where the square of F·T is too much
    head_dim: int  # channels of one attention head
    time_injection: str  # add | modulate
    skips: str  # none | level (its last block) | block | layer (stem, blocks and downsamplings)
    first_skip: bool  # one more skip, from the first convolution to a last block
    modulated_skips: bool  # join skips as skip + scale(time)·h instead of side by side
    patch_size: tuple[int, int]  # rows, frames: the stem folds a patch into channels
    frequency_features: int  # channels that tell a row its frequency; 0 for none
    embedding_dim: int  # of the time (and class) embedding
    norm: str  # group | batch
    norm_groups: int  # group only; 1 normalises over all channels
    activation: str  # silu | gelu
    dropout: float  # share of features dropped in training
    output: str  # linear | sigmoid | sigmoid_experiment (a sigmoid whatever is predicted)
    num_classes: int  # 0: unconditional; else cond = num_classes means "no label"

    def __post_init__(self):
        known = {
            "block": BLOCKS, "time_injection": TIME_INJECTIONS, "skips": SKIPS, "norm": NORMS,
            "activation": ACTIVATIONS, "output": OUTPUTS,
        }  # fmt: skip
        for name, values in known.items():
            require(values, **{name: getattr(self, name)})
        if not self.channels or self.blocks_per_level < 1:
            raise ValueError("channels needs at least one level and blocks_per_level must be 1 or more")
        if self.norm == "group" and any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels={self.channels} must be multiples of norm_groups={self.norm_groups}")
        if self.num_classes < 0 or self.frequency_features < 0 or min(self.patch_size) < 1:
            raise ValueError("num_classes and frequency_features must be 0 or more, patch_size 1 or more")
        if self.embedding_dim % 2:
            raise ValueError(f"embedding_dim={self.embedding_dim} must be even: half sines, half cosines")
        if self.modulated_skips and self.skips == "none" and not self.first_skip:
            raise ValueError("modulated_skips needs skips to modulate; set skips or first_skip")
        self._check_attention()

    def _check_attention(self) -> None:
        for name in ("attention_levels", "linear_attention_levels"):
            levels = getattr(self, name)
            if any(not 0 <= level < len(self.channels) for level in levels):
                raise ValueError(f"{name}={levels} must be below {len(self.channels)}")
            if any(self.channels[level] % self.head_dim for level in levels):
                raise ValueError(
                    f"channels={self.channels} at {name}={levels} must be multiples of "
                    f"head_dim={self.head_dim}"
                )
        if both := set(self.attention_levels) & set(self.linear_attention_levels):
            raise ValueError(
                f"level {min(both)} is in attention_levels and linear_attention_levels; choose one"
            )

    def keeps_skip(self, last_of_level: bool) -> bool:
        """Return whether a block's output is a skip to its partner on the other side."""
        return self.skips in ("block", "layer") or (self.skips == "level" and last_of_level)

    def attention_at(self, level: int) -> str | None:
        """Return the kind of attention at a level: full, linear or None."""
        if level in self.attention_levels:
            return "full"
        return "linear" if level in self.linear_attention_levels else None

    @property
    def multiple(self) -> tuple[int, int]:
        """Rows and frames of the input must be multiples of this: patch times every halving."""
        halvings = 2 ** (len(self.channels) - 1)
        return self.patch_size[0] * halvings, self.patch_size[1] * halvings


class UNet(nn.Module):
    """U-Net of Ho et al. 2020 with a space-to-depth stem and, unless asked otherwise, a linear output.

    The output is linear because what it predicts (noise, v) is unbounded: a sigmoid there is why the
    first run of the journal this grew from was noise. Folding p·q patches into channels first divides
    the cost by about p·q (a U-Net that convolves at 224x416 needs 170 to 290 GFLOP a step).
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int | None = None):
        super().__init__()
        self.config, self.in_channels = config, in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.embed_time = TimestepEmbedding(config.embedding_dim, config.activation)
        self.embed_class = (
            LabelEmbedding(config.num_classes, config.embedding_dim) if config.num_classes else None
        )
        self.embed_activation = ACTIVATIONS[config.activation]()

        (p, q), width = config.patch_size, config.channels[0]
        self.frequency_features = FrequencyFeatures(config.frequency_features)
        self.stem = nn.Conv2d(in_channels * p * q + config.frequency_features, width, 3, padding=1)
        skip_widths = self._build_down()
        deepest = len(config.channels) - 1
        self.middle = _Stage(config, config.channels[-1], config.channels[-1], config.attention_at(deepest))
        self._build_up(skip_widths)
        self.last = _Stage(config, width, width, None, skip_channels=width) if config.first_skip else None
        self.out_norm = make_norm(config.norm, config.norm_groups, width)
        self.out = zero_init(nn.Conv2d(width, self.out_channels * p * q, 3, padding=1))

    def _build_down(self) -> list[int]:
        """Make the falling half; return the widths of the skips in the order they are pushed."""
        config, width = self.config, self.config.channels[0]
        every = config.skips == "layer"
        self.down, self.skips_stem = nn.ModuleList(), every
        self.pushes: list[bool] = []  # for each layer of `down`, whether its output is a skip
        widths = [width] * every
        for level, channels in enumerate(config.channels):
            if level:
                self.down.append(Downsample(width, width))
                self.pushes.append(every)
                widths += [width] * every
            for block in range(config.blocks_per_level):
                self.down.append(_Stage(config, width, channels, config.attention_at(level)))
                width = channels
                self.pushes.append(config.keeps_skip(block == config.blocks_per_level - 1))
                widths += [width] * self.pushes[-1]
        return widths

    def _build_up(self, skip_widths: list[int]) -> None:
        """Make the rising half; with skips from every layer one stage more a level than going down."""
        config, width = self.config, self.config.channels[-1]
        self.up = nn.ModuleList()
        for level in reversed(range(len(config.channels))):
            for block in range(config.blocks_per_level + (config.skips == "layer")):
                skip = skip_widths.pop() if config.keeps_skip(block == 0) else 0
                self.up.append(
                    _Stage(config, width, config.channels[level], config.attention_at(level), skip)
                )
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
            multiples = dict(zip("FT", self.config.multiple, strict=True))
            check_input(x, cond, self.in_channels, multiples, self.config.num_classes)
        embedding = self._embed(t, cond)
        first = self.stem(self.frequency_features(fold(x, self.config.patch_size)))
        h, skips = first, [first] * self.skips_stem
        for layer, pushes in zip(self.down, self.pushes, strict=True):
            h = layer(h, embedding) if isinstance(layer, _Stage) else layer(h)
            skips += [h] * pushes
        h = self.middle(h, embedding)
        for layer in self.up:
            if isinstance(layer, _Stage):
                h = layer(h, embedding, skips.pop() if layer.takes_skip else None)
            else:
                h = layer(h)
        if self.last is not None:
            h = self.last(h, embedding, first)
        h = unfold(self.out(self.embed_activation(self.out_norm(h))), self.config.patch_size)
        return h if self.config.output == "linear" else h.sigmoid()

    def _embed(self, t: Tensor, cond: Tensor | None) -> Tensor:
        embedding = self.embed_time(t)
        if self.embed_class is not None:
            embedding = embedding + self.embed_class(cond, t)
        return self.embed_activation(embedding)


class _Stage(nn.Module):
    """One block, after joining a skip if it takes one, and self-attention if the level asks for it."""

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        attention: str | None,
        skip_channels: int = 0,
    ):
        super().__init__()
        self.takes_skip = skip_channels > 0
        modulated = self.takes_skip and config.modulated_skips
        self.match = (
            nn.Conv2d(in_channels, skip_channels, 1) if modulated and in_channels != skip_channels else None
        )
        self.merge = ModulatedSkip(config.embedding_dim, skip_channels) if modulated else None
        self.block = BLOCKS[config.block](
            skip_channels if modulated else in_channels + skip_channels,
            out_channels,
            config.embedding_dim,
            config.norm_groups,
            config.activation,
            config.dropout,
            config.norm,
            config.time_injection,
        )
        self.attention = (
            SelfAttention2d(out_channels, config.head_dim, config.norm_groups, config.norm, attention)
            if attention
            else None
        )

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = self._join(x, embedding, skip)
        h = self.block(x, embedding)
        return h if self.attention is None else self.attention(h)

    def _join(self, x: Tensor, embedding: Tensor, skip: Tensor) -> Tensor:
        if self.merge is None:
            return torch.cat([x, skip], dim=1)
        return self.merge(x if self.match is None else self.match(x), skip, embedding)


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
