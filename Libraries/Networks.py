"""Networks by name: the one that `Conf.py` describes, and those of the journal, each at its own size."""

from dataclasses import dataclass, replace

from torch import nn

from Libraries.AttentionUNet import AttentionUNet, AttentionUNetConfig
from Libraries.U_Net import UNet, UNetConfig
from Libraries.UNetV0 import UNetV0, UNetV0Config

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


def network_config(name: str, unet: UNetConfig) -> NetworkConfig:
    """Return what the named network is made of.

    Args:
        name: "unet" for `unet` itself, or one of the journal's.
        unet: the settings of `Conf.py`; a network of the journal takes `num_classes` from them alone.

    Raises:
        ValueError: there is no network of that name; the known are listed.
    """
    if name == "unet":
        return unet
    if name not in JOURNAL:
        raise ValueError(f"network={name!r} is unknown; choose one of unet, {', '.join(JOURNAL)}")
    return replace(JOURNAL[name].config, num_classes=unet.num_classes)


def make_network(config: NetworkConfig, in_channels: int, out_channels: int | None = None) -> nn.Module:
    """Return the network `(x, t, cond)` of a config, freshly initialised."""
    return CLASSES[type(config)](config, in_channels, out_channels)
