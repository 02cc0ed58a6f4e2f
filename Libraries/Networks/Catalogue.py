"""Networks by name: the one that `Conf.py` describes, and those of the journal, each at its own size."""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from Libraries.Networks.AttentionUNet import AttentionUNet, AttentionUNetConfig
from Libraries.Networks.UNetV0 import UNetV0, UNetV0Config
from Libraries.U_Net import UNet, UNetConfig, count_parameters
from Libraries.Utils import require

NetworkConfig = UNetConfig | AttentionUNetConfig | UNetV0Config

CONV_UNET_17M = UNetConfig(
    block="double_conv",
    channels=(32, 64, 128, 256, 392),
    blocks_per_level=1,
    attention_levels=(),
    linear_attention_levels=(),
    head_dim=32,
    time_injection="add",
    skips="level",
    first_skip=False,
    modulated_skips=False,
    patch_size=(1, 1),
    frequency_features=0,
    embedding_dim=256,
    norm="group",
    norm_groups=8,
    activation="gelu",
    dropout=0.0,
    output="linear",
    num_classes=0,
)

CONV_UNET_450K = replace(CONV_UNET_17M, channels=(16, 32, 64), embedding_dim=144)

SE_UNET = replace(CONV_UNET_17M, block="double_conv_se")

MODULATED_UNET = replace(
    CONV_UNET_17M,
    channels=(64, 128, 256, 512, 928),
    time_injection="modulate",
    modulated_skips=True,
    activation="silu",
)

# Pytorch_Diffusion's defaults: widths 64·(1, 2, 4, 8), two blocks a level and a skip from each, one from the
# first convolution; full attention at the coarsest level only, linear above.
RESIDUAL_UNET = replace(
    CONV_UNET_17M,
    block="residual",
    channels=(64, 128, 256, 512),
    blocks_per_level=2,
    attention_levels=(3,),
    linear_attention_levels=(0, 1, 2),
    time_injection="modulate",
    skips="block",
    first_skip=True,
    activation="silu",
)

ATTENTION_UNET = AttentionUNetConfig(width=64, num_heads=4, embedding_dim=256, num_classes=0)

UNET_V0 = UNetV0Config(
    dim=2,
    channels=(32, 64, 128, 256, 512, 512),
    factors=(1, 2, 2, 2, 2, 2),
    items=(1, 2, 2, 2, 2, 2),
    attentions=(0, 0, 0, 0, 1, 1),
    linear_attentions=(0, 0, 0, 0, 0, 0),
    head_dim=64,
    num_heads=8,
    norm_groups=8,
    embedding_dim=1024,
    time_scale=1000.0,
    num_classes=0,
)


@dataclass(frozen=True)
class JournalNetwork:
    """A network and the entry of the journal that it belongs to."""

    entry: str
    config: NetworkConfig


JOURNAL = {
    "conv_unet_450k": JournalNetwork("03.03.2025, the first that trained", CONV_UNET_450K),
    "attention_unet": JournalNetwork("04.03.2025, after Outlier", ATTENTION_UNET),
    "se_unet": JournalNetwork("06.03.2025, gates for attention", SE_UNET),
    "conv_unet_17m": JournalNetwork("07.03.2025, the first output", CONV_UNET_17M),
    "modulated_unet": JournalNetwork("17.03.2025, the lowest loss", MODULATED_UNET),
    "residual_unet": JournalNetwork("24.03.2025, after Luke Ditria", RESIDUAL_UNET),
    "unet_v0": JournalNetwork("23.04.2025, after Flavio Schneider", UNET_V0),
}

CLASSES = {UNetConfig: UNet, AttentionUNetConfig: AttentionUNet, UNetV0Config: UNetV0}


def network_config(name: str, unet: UNetConfig, width: float = 1.0) -> NetworkConfig:
    """Return what the named network is made of.

    Args:
        name: "unet" for `unet` itself, or one of the journal's.
        unet: the settings of `Conf.py`; a network of the journal takes `num_classes` alone from them.
        width: factor on its widths (`scale_widths`).

    Raises:
        ValueError: there is no network of that name; the known are listed.
    """
    if name == "unet":
        return scale_widths(unet, width)
    require(("unet", *JOURNAL), network=name)
    return scale_widths(replace(JOURNAL[name].config, num_classes=unet.num_classes), width)


def scale_widths(config: NetworkConfig, factor: float) -> NetworkConfig:
    """Return the network with its channels, its embedding and UNetV0's heads times `factor`.

    Each is rounded to what normalisation and attention need, and is at least that.

    Raises:
        ValueError: the factor is not positive.
    """
    if not factor > 0:
        raise ValueError(f"network_width={factor} must be greater than 0")
    if factor == 1:
        return config
    embedding_dim = _rounded(config.embedding_dim * factor, 8)
    if isinstance(config, AttentionUNetConfig):
        width = _rounded(config.width * factor, config.num_heads)
        return replace(config, width=width, embedding_dim=embedding_dim)
    if isinstance(config, UNetV0Config):
        widths = tuple(_rounded(width * factor, config.norm_groups) for width in config.channels)
        heads = _rounded(config.num_heads * factor, 1)
        return replace(config, channels=widths, embedding_dim=embedding_dim, num_heads=heads)
    groups = config.norm_groups if config.norm == "group" else 1
    units = [
        math.lcm(groups, config.head_dim) if config.attention_at(level) else groups
        for level in range(len(config.channels))
    ]
    widths = tuple(_rounded(width * factor, unit) for width, unit in zip(config.channels, units, strict=True))
    return replace(config, channels=widths, embedding_dim=embedding_dim)


def width_for(config: NetworkConfig, in_channels: int, parameters: int) -> float:
    """Return the factor for `scale_widths` at which a network has most nearly so many parameters."""

    def size(factor: float) -> int:
        return parameters_of(scale_widths(config, factor), in_channels)

    factors = [2 ** (step / 32) for step in range(-160, 97)]  # a 32nd to eight times as wide
    low, high = 0, len(factors) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(factors[middle]) <= parameters else (low, middle)
    return min((factors[low], factors[high]), key=lambda factor: abs(size(factor) - parameters))


def parameters_of(config: NetworkConfig, in_channels: int) -> int:
    """Return how many parameters a network has, without making their values."""
    with torch.device("meta"):
        return count_parameters(make_network(config, in_channels))


def _rounded(width: float, unit: int) -> int:
    """Return the multiple of `unit` nearest to `width`, at least one of it."""
    return max(unit, round(width / unit) * unit)


def make_network(config: NetworkConfig, in_channels: int, out_channels: int | None = None) -> nn.Module:
    """Return the network `(x, t, cond)` of a config, freshly initialised."""
    return CLASSES[type(config)](config, in_channels, out_channels)
