"""The journal's variants of the plain U-Net: its blocks, norms, skips, attention and outputs, as options.

replace(as_journal(conf.unet), norm="batch")  # the plain network but for its norm
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from Libraries.Layers import (
    ACTIVATIONS,
    Downsample,
    FrequencyFeatures,
    LabelEmbedding,
    TimestepEmbedding,
    Upsample,
    check_input,
    fold,
    match_channels,
    unfold,
    zero_init,
)
from Libraries.Networks.Blocks import (
    BLOCKS,
    NORMS,
    TIME_INJECTIONS,
    JournalAttention2d,
    ModulatedSkip,
    make_norm,
)
from Libraries.U_Net import UNetConfig
from Libraries.Utils import require

SKIPS = ("none", "level", "block", "layer")
OUTPUTS = ("linear", "sigmoid", "sigmoid_experiment")


@dataclass(frozen=True, kw_only=True)
class JournalUNetConfig(UNetConfig):
    """What a variant is made of: the settings of the plain network, and the options of the journal.

    Raises:
        ValueError: a setting is unknown or two do not fit together.
    """

    block: str  # residual | double_conv | double_conv_se | convnext
    linear_attention_levels: tuple[int, ...] = ()  # for levels where full attention costs too much
    time_injection: str  # add | modulate
    skips: str  # none | level (its last block) | block | layer (stem, blocks and downsamplings)
    first_skip: bool = False  # one more skip, from the first convolution to a last block
    modulated_skips: bool = False  # join skips as skip + scale(time)·h instead of by concatenation
    norm: str  # group | batch
    activation: str  # silu | gelu
    output: str  # linear | sigmoid | sigmoid_experiment (a sigmoid whatever is predicted)

    def __post_init__(self):
        super().__post_init__()
        known = {
            "block": BLOCKS, "time_injection": TIME_INJECTIONS, "skips": SKIPS, "norm": NORMS,
            "activation": ACTIVATIONS, "output": OUTPUTS,
        }  # fmt: skip
        for name, values in known.items():
            require(values, **{name: getattr(self, name)})
        if self.modulated_skips and self.skips == "none" and not self.first_skip:
            raise ValueError("modulated_skips needs skips to modulate; set skips or first_skip")
        self.check_attention("linear_attention_levels")
        if both := set(self.attention_levels) & set(self.linear_attention_levels):
            raise ValueError(
                f"level {min(both)} is in attention_levels and linear_attention_levels; choose one"
            )

    def block_has_skip(self, last_of_level: bool) -> bool:
        """Return whether a skip leads from a block of the encoder half to its partner in the decoder half."""
        return self.skips in ("block", "layer") or (self.skips == "level" and last_of_level)

    def attention_at(self, level: int) -> str | None:
        """Return the kind of attention at a level: full, linear or None."""
        if level in self.attention_levels:
            return "full"
        return "linear" if level in self.linear_attention_levels else None


PLAIN = {
    "block": "residual", "time_injection": "modulate", "skips": "layer", "norm": "group",
    "activation": "silu", "output": "linear",
}  # fmt: skip


def as_journal(config: UNetConfig) -> JournalUNetConfig:
    """Return the variant that equals the plain network: the same weights from the same seed, and outputs."""
    return JournalUNetConfig(**(PLAIN | vars(config)))


class JournalUNet(nn.Module):
    """The network `(x, t, cond)`; x (B, in_channels, F, T), t (B,) -> (B, out_channels, F, T).

    Raises:
        ValueError: shape or labels do not fit the network.
    """

    def __init__(self, config: JournalUNetConfig, in_channels: int, out_channels: int | None = None):
        super().__init__()
        self.config, self.in_channels = config, in_channels
        (p, q), width, dim = config.patch_size, config.channels[0], config.embedding_dim
        self.embed_time = TimestepEmbedding(dim, config.activation)
        self.embed_class = LabelEmbedding(config.num_classes, dim) if config.num_classes else None
        self.activation = ACTIVATIONS[config.activation]()
        self.frequency_features = FrequencyFeatures(config.frequency_features)
        self.stem = nn.Conv2d(in_channels * p * q + config.frequency_features, width, 3, padding=1)
        skips = self._build_encoder()
        self.middle = _Stage(config, len(config.channels) - 1, config.channels[-1])
        self._build_decoder(skips)
        self.last = _Stage(config, 0, width, width, attends=False) if config.first_skip else None
        self.out_norm = make_norm(config.norm, config.norm_groups, width)
        out_channels = in_channels if out_channels is None else out_channels
        self.out = zero_init(nn.Conv2d(width, out_channels * p * q, 3, padding=1))

    def _build_encoder(self) -> list[int]:
        """Make the encoder half; return the widths of its skips, finest first."""
        config, width = self.config, self.config.channels[0]
        every_layer = config.skips == "layer"
        self.down, widths = nn.ModuleList(), [width]
        self.has_skip = [every_layer]  # of the stem, then of each layer of `down`
        for level, channels in enumerate(config.channels):
            if level:
                self.down.append(Downsample(width, width))
                widths.append(width)
                self.has_skip.append(every_layer)
            for block in range(config.blocks_per_level):
                self.down.append(_Stage(config, level, width))
                width = channels
                widths.append(width)
                self.has_skip.append(config.block_has_skip(block == config.blocks_per_level - 1))
        return [width for width, has_skip in zip(widths, self.has_skip, strict=True) if has_skip]

    def _build_decoder(self, skips: list[int]) -> None:
        """Make the decoder half; with skips="layer" its levels have one stage more than the encoder's."""
        config, width = self.config, self.config.channels[-1]
        self.up = nn.ModuleList()
        for level in reversed(range(len(config.channels))):
            for block in range(config.blocks_per_level + (config.skips == "layer")):
                skip = skips.pop() if config.block_has_skip(block == 0) else 0
                self.up.append(_Stage(config, level, width, skip))
                width = config.channels[level]
            if level:
                self.up.append(Upsample(width, width))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        check_input(x, cond, self.in_channels, self.config.multiple, self.config.num_classes)
        embedding = self.embed_time(t)
        if self.embed_class is not None:
            embedding = embedding + self.embed_class(cond, t)
        embedding = self.activation(embedding)  # (B, embedding_dim)
        h = fold(x, self.config.patch_size)  # (B, in_channels·p·q, F/p, T/q)
        h = first = self.stem(self.frequency_features(h))  # (B, channels[0], F/p, T/q)
        skips = [h] * self.has_skip[0]
        for layer, has_skip in zip(self.down, self.has_skip[1:], strict=True):
            h = layer(h, embedding) if isinstance(layer, _Stage) else layer(h)
            skips += [h] * has_skip
        h = self.middle(h, embedding)
        for layer in self.up:
            if isinstance(layer, _Stage):
                h = layer(h, embedding, skips.pop() if layer.takes_skip else None)
            else:
                h = layer(h)
        if self.last is not None:
            h = self.last(h, embedding, first)
        h = self.out(self.activation(self.out_norm(h)))  # (B, out_channels·p·q, F/p, T/q)
        h = unfold(h, self.config.patch_size)
        return h if self.config.output == "linear" else h.sigmoid()


class _Stage(nn.Module):
    """A block of the width of its level, after joining a skip if it takes one, and before attention."""

    def __init__(
        self,
        config: JournalUNetConfig,
        level: int,
        in_channels: int,
        skip_channels: int = 0,
        attends: bool = True,
    ):
        super().__init__()
        channels, kind = config.channels[level], config.attention_at(level)
        self.takes_skip = skip_channels > 0
        modulated = self.takes_skip and config.modulated_skips
        self.match = match_channels(in_channels, skip_channels) if modulated else None
        self.merge = ModulatedSkip(config.embedding_dim, skip_channels) if modulated else None
        joined = skip_channels if modulated else in_channels + skip_channels
        self.block = BLOCKS[config.block](joined, channels, config)
        self.attention = JournalAttention2d(channels, kind, config) if kind and attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.merge is not None:
            x = self.merge(self.match(x), skip, embedding)
        elif skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.attention(self.block(x, embedding))
