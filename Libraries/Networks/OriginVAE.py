"""The three autoencoders that the origin's journal tried and abandoned, for anyone who wants to repeat it.

The journal says: linear layers needed too many parameters; a convolutional bottleneck needed far fewer, but
its many filters gave a latent of very high dimensionality, and stronger compression was not possible;
`conv_VAE_v2` was trained for more than 1,000 epochs (batch 32, learning rate 1e-4) without its error falling.
The rest is inferred: one strided 3x3 convolution with ReLU per level in the encoder, one transposed
convolution per level in the decoder, and a second, plain convolution per level in v2. The output is linear,
so that any value range fits; the origin's data lay in [0, 1].

Each builder returns (encoder, decoder) for padded tensors: (B, C, F, T) -> (B, 2·latent, f, t), mu and logvar
concatenated along the channels, and (B, latent, f, t) -> (B, C, F, T).
"""

import math

from torch import nn

Strides = tuple[tuple[int, int], ...]  # (rows, frames) of each level, finest first


def build_linear(
    channels: tuple[int, ...], strides: Strides, latent: int, padded: tuple[int, int, int]
) -> tuple[nn.Module, nn.Module]:
    """Build the linear bottleneck: all features of the convolutions, to `latent` values and back.

    The two Linear layers hold 3·latent·features values. The latent has f = t = 1.
    """
    down, up = _convolutions(channels, strides, padded[0], extra=False)
    rows, frames = (
        size // math.prod(steps) for size, steps in zip(padded[1:], zip(*strides, strict=True), strict=True)
    )
    features = channels[-1] * rows * frames
    encoder = [*down, nn.Flatten(), nn.Linear(features, 2 * latent), nn.Unflatten(1, (2 * latent, 1, 1))]
    widen = [nn.Linear(latent, features), nn.ReLU(), nn.Unflatten(1, (channels[-1], rows, frames))]
    return nn.Sequential(*encoder), nn.Sequential(nn.Flatten(), *widen, *up)


def build_conv(
    channels: tuple[int, ...], strides: Strides, latent: int, padded: tuple[int, int, int]
) -> tuple[nn.Module, nn.Module]:
    """Build the convolutional bottleneck: the latent is an image of `latent` channels."""
    return _with_bottleneck(*_convolutions(channels, strides, padded[0], extra=False), channels[-1], latent)


def build_conv_v2(
    channels: tuple[int, ...], strides: Strides, latent: int, padded: tuple[int, int, int]
) -> tuple[nn.Module, nn.Module]:
    """Build conv_VAE_v2: `build_conv` with a second convolution per level."""
    return _with_bottleneck(*_convolutions(channels, strides, padded[0], extra=True), channels[-1], latent)


ORIGIN_BUILDERS = {"linear": build_linear, "conv": build_conv, "conv_v2": build_conv_v2}


def _with_bottleneck(
    down: list[nn.Module], up: list[nn.Module], width: int, latent: int
) -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(*down, nn.Conv2d(width, 2 * latent, 3, padding=1))
    return encoder, nn.Sequential(nn.Conv2d(latent, width, 3, padding=1), nn.ReLU(), *up)


def _convolutions(
    channels: tuple[int, ...], strides: Strides, in_channels: int, extra: bool
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers of the encoder and of the decoder, whose last layer has no ReLU."""
    down, up = [], []
    widths = (in_channels, *channels)
    for level, stride in enumerate(strides):
        fine, coarse = widths[level], widths[level + 1]
        down += [nn.Conv2d(fine, coarse, 3, stride=stride, padding=1), nn.ReLU()]
        if extra:
            down += [nn.Conv2d(coarse, coarse, 3, padding=1), nn.ReLU()]
        rise = nn.ConvTranspose2d(
            coarse, fine, 3, stride=stride, padding=1, output_padding=tuple(s - 1 for s in stride)
        )
        before = [nn.Conv2d(coarse, coarse, 3, padding=1), nn.ReLU()] if extra else []
        up = [*before, rise, nn.ReLU(), *up]
    return down, up[:-1]
