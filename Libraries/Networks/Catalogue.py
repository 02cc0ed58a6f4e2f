"""The networks of the journal by name, and any network made, made wider, and measured."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from Libraries.Networks.AttentionUNet import AttentionUNet, AttentionUNetConfig
from Libraries.Networks.JournalUNet import JournalUNet, JournalUNetConfig
from Libraries.Networks.UNetV0 import UNetV0, UNetV0Config
from Libraries.U_Net import UNet, UNetConfig
from Libraries.Utils import require

NetworkConfig = UNetConfig | JournalUNetConfig | AttentionUNetConfig | UNetV0Config
CLASSES = {
    UNetConfig: UNet,
    JournalUNetConfig: JournalUNet,
    AttentionUNetConfig: AttentionUNet,
    UNetV0Config: UNetV0,
}


def make_network(config: NetworkConfig, in_channels: int, out_channels: int | None = None) -> nn.Module:
    """Return the network `(x, t, cond)` of a config, freshly initialised."""
    return CLASSES[type(config)](config, in_channels, out_channels)


CONV_UNET_17M = JournalUNetConfig(
    block="double_conv",
    channels=(32, 64, 128, 256, 392),
    blocks_per_level=1,
    head_dim=32,
    time_injection="add",
    skips="level",
    patch_size=(1, 1),
    embedding_dim=256,
    norm="group",
    norm_groups=8,
    activation="gelu",
    output="linear",
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

# The defaults of Pytorch_Diffusion: widths 64·(1, 2, 4, 8), two blocks per level with a skip from each, one
# skip from the first convolution; full attention at the coarsest level only, linear attention at the others.
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

ATTENTION_UNET = AttentionUNetConfig(width=64, num_heads=4, embedding_dim=256)

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
)


@dataclass(frozen=True)
class JournalNetwork:
    """A network and the entry of the journal in which it stands."""

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


def journal_network(name: str, num_classes: int, width: float = 1.0) -> NetworkConfig:
    """Return the config of a network of the journal.

    Args:
        name: one of `JOURNAL`.
        num_classes: 0 for an unconditional network.
        width: factor on its widths (`scale_widths`).

    Raises:
        ValueError: there is no network of that name; the known ones are listed.
    """
    require(JOURNAL, network=name)
    return scale_widths(replace(JOURNAL[name].config, num_classes=num_classes), width)


def scale_widths(config: NetworkConfig, factor: float) -> NetworkConfig:
    """Return the network with its channels, its embedding and UNetV0's heads times `factor`.

    Each is rounded to what normalisation and attention need, and is at least that.

    Raises:
        ValueError: the factor is not positive.
    """
    require("(0, inf)", network_width=factor)
    if factor == 1:
        return config

    def scaled(width: int, unit: int) -> int:
        return max(unit, round(width * factor / unit) * unit)

    embedding_dim = scaled(config.embedding_dim, 8)
    if isinstance(config, AttentionUNetConfig):
        return replace(config, width=scaled(config.width, config.num_heads), embedding_dim=embedding_dim)
    units = [config.norm_groups] * len(config.channels)
    heads = {}
    if isinstance(config, UNetV0Config):
        heads = {"num_heads": scaled(config.num_heads, 1)}
    else:
        attending = config.attention_levels
        if isinstance(config, JournalUNetConfig):
            attending += config.linear_attention_levels
        for level in attending:
            units[level] = math.lcm(config.norm_groups, config.head_dim)
    channels = tuple(scaled(width, unit) for width, unit in zip(config.channels, units, strict=True))
    return replace(config, channels=channels, embedding_dim=embedding_dim, **heads)


def width_for(config: NetworkConfig, in_channels: int, parameters: int) -> float:
    """Return the factor for `scale_widths` that brings a network closest to a number of parameters."""

    def size(factor: float) -> int:
        return parameters_of(scale_widths(config, factor), in_channels)

    factors = [2 ** (step / 32) for step in range(-160, 97)]  # a 32nd to eight times as wide
    low, high = 0, len(factors) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(factors[middle]) <= parameters else (low, middle)
    return min((factors[low], factors[high]), key=lambda factor: abs(size(factor) - parameters))


def parameters_of(config: NetworkConfig, in_channels: int) -> int:
    """Return the number of trainable values of a network, without allocating them."""
    with torch.device("meta"):
        return count_parameters(make_network(config, in_channels))


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(model: nn.Module, *inputs: Tensor) -> float:
    """Return the floating-point operations of one forward pass on these inputs; a multiply-add is two."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*inputs)
    return counter.get_total_flops()
