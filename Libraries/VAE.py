"""Spectrogram <-> latent: variational autoencoders (Kingma and Welling 2014) for tensors of any shape.

`residual` works; `linear`, `conv` and `conv_v2` are the origin's, see `Networks/OriginVAE.py`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from Libraries.Layers import (
    ACTIVATIONS,
    Downsample,
    FrequencyFeatures,
    ResBlock,
    Upsample,
    fold,
    require_multiples,
    require_sizes,
    unfold,
)
from Libraries.Networks.OriginVAE import ORIGIN_BUILDERS, Strides
from Libraries.Utils import require

KINDS = (*ORIGIN_BUILDERS, "residual")
LOGVAR_RANGE = (-14.0, 6.0)  # standard deviations of 0.001 to 20; beyond, exp overflows in half precision


@dataclass(frozen=True)
class VAEConfig:
    """The architecture of the autoencoder; the values live in `Conf.py`.

    Raises:
        ValueError: a setting is unknown or two do not fit together.
    """

    kind: str  # linear | conv | conv_v2 | residual
    channels: tuple[int, ...]  # width of each level, finest first
    row_strides: tuple[int, ...]  # rows are divided by this on the way into each level
    frame_strides: tuple[int, ...]  # frames likewise
    latent_channels: int  # per position of the latent; for linear the size of the whole latent
    blocks_per_level: int  # residual only
    frequency_features: int  # channels that give each row its frequency, 0 for none; residual only
    norm_groups: int  # of GroupNorm; residual only
    activation: str  # silu | gelu; residual only

    def __post_init__(self):
        require_sizes(self)
        require(KINDS, kind=self.kind)
        require(ACTIVATIONS, activation=self.activation)
        if not self.channels or not len(self.channels) == len(self.row_strides) == len(self.frame_strides):
            raise ValueError(
                f"channels={self.channels}, row_strides={self.row_strides} and "
                f"frame_strides={self.frame_strides} need one value per level, and at least one level"
            )
        if min(*self.row_strides, *self.frame_strides, *self.channels, self.latent_channels) < 1:
            raise ValueError("channels, row_strides, frame_strides and latent_channels must be 1 or more")
        require("[1, inf)", blocks_per_level=self.blocks_per_level)
        require("[0, inf)", frequency_features=self.frequency_features)
        if self.kind == "residual":
            require_multiples(self.channels, norm_groups=self.norm_groups)

    @property
    def strides(self) -> Strides:
        """(rows, frames) of each level."""
        return tuple(zip(self.row_strides, self.frame_strides, strict=True))

    @property
    def stride(self) -> tuple[int, int]:
        """Rows and frames of the spectrogram per row and frame of the latent."""
        return math.prod(self.row_strides), math.prod(self.frame_strides)

    def padded_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return (C, F, T) with F and T rounded up to multiples of `stride`."""
        rows, frames = (-(-size // step) * step for size, step in zip(shape[1:], self.stride, strict=True))
        return shape[0], rows, frames

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return (channels, rows, frames) of the latent of a spectrogram of this shape."""
        if self.kind == "linear":
            return self.latent_channels, 1, 1
        _, rows, frames = self.padded_shape(shape)
        return self.latent_channels, rows // self.stride[0], frames // self.stride[1]

    def compression(self, shape: tuple[int, int, int]) -> float:
        """Return the number of values of a spectrogram of this shape per value of its latent."""
        return math.prod(shape) / math.prod(self.latent_shape(shape))


class Posterior(NamedTuple):
    """q(z | x0) = N(mu, exp(logvar)), each value independently; both float32 (B, channels, rows, frames)."""

    mu: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return z = mu + sigma·noise, which carries gradients to both (Kingma and Welling 2014, eq. 10)."""
        return self.mu + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Return KL(q || N(0, 1)) of each value in nats: (mu² + sigma² - 1 - log sigma²)/2 (appendix B)."""
        return 0.5 * (self.mu.square() + self.logvar.exp() - 1 - self.logvar)


class VAE(nn.Module):
    """An encoder to a Gaussian posterior and a decoder, for spectrograms of one shape, odd sizes included.

    Args:
        config: the settings.
        shape: (C, F, T) of a spectrogram. Where the strides do not divide F and T, the encoder repeats the
            last row and frame, and the decoder crops the padding.
    """

    def __init__(self, config: VAEConfig, shape: tuple[int, int, int]):
        super().__init__()
        self.config, self.shape = config, tuple(shape)
        self.latent_shape = config.latent_shape(self.shape)
        self.padded_shape = config.padded_shape(self.shape)
        if config.kind == "residual":
            self.encoder, self.decoder = _Encoder(config, shape[0]), _Decoder(config, shape[0])
        else:
            build = ORIGIN_BUILDERS[config.kind]
            self.encoder, self.decoder = build(
                config.channels, config.strides, config.latent_channels, self.padded_shape
            )

    def encode(self, x0: Tensor) -> Posterior:
        """Return the posterior of spectrograms (B, C, F, T).

        Raises:
            ValueError: the spectrograms do not have the shape that the network was built for.
        """
        require_shape("x0", x0, self.shape)
        rows, frames = (p - n for p, n in zip(self.padded_shape[1:], self.shape[1:], strict=True))
        if rows or frames:
            x0 = F.pad(x0, (0, frames, 0, rows), mode="replicate")
        mu, logvar = self.encoder(x0).float().chunk(2, dim=1)
        return Posterior(mu, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """Return spectrograms float32 (B, C, F, T) of latents (B, *latent_shape).

        Raises:
            ValueError: the latents do not have the shape `latent_shape`.
        """
        require_shape("z", z, self.latent_shape)
        return self.decoder(z)[..., : self.shape[1], : self.shape[2]].float()

    def forward(self, x0: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """Return the reconstruction through one sample of the posterior, and the posterior.

        Args:
            x0: (B, C, F, T).
            noise: standard normal (B, *latent_shape).
        """
        posterior = self.encode(x0)
        return self.decode(posterior.sample(noise)), posterior


class _Encoder(nn.Module):
    """Space to depth by the first strides, then residual blocks and strided convolutions, to 2·latent."""

    def __init__(self, config: VAEConfig, in_channels: int):
        super().__init__()
        self.patch, width = config.strides[0], config.channels[0]
        self.frequency_features = FrequencyFeatures(config.frequency_features)
        folded = in_channels * math.prod(self.patch) + config.frequency_features
        layers = [nn.Conv2d(folded, width, 3, padding=1)]
        for channels, stride in zip(config.channels, ((1, 1), *config.strides[1:]), strict=True):
            if layers[1:]:
                layers.append(Downsample(width, channels, stride))
            layers += _blocks(config, channels)
            width = channels
        self.layers = nn.Sequential(*layers, *_head(config, width, 2 * config.latent_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.frequency_features(fold(x, self.patch)))


class _Decoder(nn.Module):
    """The encoder reversed: residual blocks and upsampling by the strides, depth to space at the end."""

    def __init__(self, config: VAEConfig, out_channels: int):
        super().__init__()
        self.patch, width = config.strides[0], config.channels[-1]
        self.frequency_features = FrequencyFeatures(config.frequency_features)
        layers = [nn.Conv2d(config.latent_channels + config.frequency_features, width, 3, padding=1)]
        layers += _blocks(config, width)
        for channels, stride in zip(config.channels[-2::-1], config.strides[:0:-1], strict=True):
            layers += [Upsample(width, channels, stride), *_blocks(config, channels)]
            width = channels
        self.layers = nn.Sequential(*layers, *_head(config, width, out_channels * math.prod(self.patch)))

    def forward(self, z: Tensor) -> Tensor:
        return unfold(self.layers(self.frequency_features(z)), self.patch)


def _blocks(config: VAEConfig, channels: int) -> list[nn.Module]:
    return [
        ResBlock(channels, channels, config.norm_groups, activation=config.activation)
        for _ in range(config.blocks_per_level)
    ]


def _head(config: VAEConfig, width: int, out_channels: int) -> list[nn.Module]:
    norm = nn.GroupNorm(config.norm_groups, width)
    return [norm, ACTIVATIONS[config.activation](), nn.Conv2d(width, out_channels, 3, padding=1)]


def require_shape(name: str, tensor: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise a ValueError unless the tensor is a batch of this shape."""
    if tensor.ndim != 4 or tuple(tensor.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; expected (B, {', '.join(map(str, shape))})"
        )
