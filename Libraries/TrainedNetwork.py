"""The network of a diffusion: made as the settings ask, its averaged weights, and how it computes."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from Libraries.Checkpoint import latest_checkpoint, load_checkpoint, load_weights
from Libraries.Diffusion import DiffusionConfig
from Libraries.Networks import NetworkConfig, make_network
from Libraries.Objective import UncertaintyWeighted
from Libraries.PostHocEMA import reconstruct
from Libraries.Settings import require_multiple
from Libraries.Utils import autocast


def make_diffusion_network(
    config: NetworkConfig, diffusion: DiffusionConfig, shape: tuple[int, int, int], told_channels: int = 0
) -> nn.Module:
    """Return a new network for data of `shape` (C, F, T), with what the settings of the diffusion ask of it.

    A learned variance doubles the output channels; learned weights of the loss wrap the network. An upsampler
    is told something in `told_channels` more channels of its input.

    Raises:
        ValueError: rows or frames do not fit the network.
    """
    require_multiple("a spectrogram or latent", shape, config)
    channels = shape[0]
    out_channels = 2 * channels if diffusion.learned_variance else channels
    network = make_network(config, channels + told_channels, out_channels)
    if diffusion.loss_weighting == "uncertainty":
        return UncertaintyWeighted(network, diffusion.num_train_timesteps)
    return network


def load_average(
    network: nn.Module, run_dir: Path, step: int | None = None, ema_length: float | None = None
) -> None:
    """Load the EMA weights of a run into its network.

    Args:
        step: of the optimiser; None is the last one saved.
        ema_length: relative length of an average that is put together now (`PostHocEMA.reconstruct`); None
            takes the one that training kept.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
    """
    if ema_length is not None:
        load_weights(network, reconstruct(run_dir, ema_length, step), Path(run_dir))
        return
    path = latest_checkpoint(run_dir, "ema") if step is None else Path(run_dir) / f"ema-{step:08d}.pth"
    load_weights(network, load_checkpoint(path)["weights"], path)


def for_sampling(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network on `device`, to be evaluated, without what is of use to the loss alone."""
    network = network.network if isinstance(network, UncertaintyWeighted) else network
    return network.to(device, memory_format=torch.channels_last).eval()


def in_fast_precision(
    network: nn.Module, device: torch.device, precision: str
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return `network(x, t, cond)` with float32 outputs, computing under autocast where that is faster."""

    def model(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        with autocast(device, precision):
            return network(x, t, cond).float()

    return model
