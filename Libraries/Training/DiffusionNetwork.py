"""The network of a diffusion model: built from the settings, and run at the chosen precision."""

import torch
from torch import Tensor, nn

from Libraries.Diffusion import DiffusionConfig, Network
from Libraries.Networks.Catalogue import NetworkConfig, make_network
from Libraries.Training.DiffusionLoss import UncertaintyWeighted
from Libraries.Utils import autocast


def make_diffusion_network(
    config: NetworkConfig,
    diffusion: DiffusionConfig,
    shape: tuple[int, int, int],
    conditioning_channels: int = 0,
) -> nn.Module:
    """Return a new network for data of `shape` (C, F, T), as the diffusion settings require.

    A learned variance doubles the output channels; learned loss weights wrap the network. An upsampler gets
    its conditioning in `conditioning_channels` more input channels.

    Raises:
        ValueError: rows or frames do not fit the network.
    """
    require_multiple("a spectrogram or latent", shape, config)
    channels = shape[0]
    out_channels = 2 * channels if diffusion.learned_variance else channels
    network = make_network(config, channels + conditioning_channels, out_channels)
    if diffusion.loss_weighting == "uncertainty":
        return UncertaintyWeighted(network, diffusion.num_train_timesteps)
    return network


def for_sampling(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network on `device` in evaluation mode, without the part that only the loss uses."""
    network = network.network if isinstance(network, UncertaintyWeighted) else network
    return network.to(device, memory_format=torch.channels_last).eval()


def in_fast_precision(network: nn.Module, device: torch.device, precision: str) -> Network:
    """Return `network(x, t, cond)` with float32 outputs, computing under autocast where that is faster."""

    def model(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        with autocast(device, precision):
            return network(x, t, cond).float()

    return model


def require_multiple(what: str, shape: tuple[int, int, int], network: NetworkConfig) -> None:
    """Raise a ValueError if data of shape (C, F, T) do not fit the network."""
    _, n_rows, n_frames = shape
    rows, frames = network.multiple
    if n_rows % rows or n_frames % frames:
        raise ValueError(
            f"{what} of {n_rows}x{n_frames} does not fit a network that needs multiples of "
            f"{rows}x{frames}; change size_multiple, clip_seconds, patch_size or the number of levels"
        )
