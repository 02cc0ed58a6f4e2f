"""The peers of benchmarks/peers.py: the networks of the real packages, trained and sampled by their recipes.

UNetV0 of `a-unet`, put together as audio-diffusion-pytorch does (audio_diffusion_pytorch/unets.py), with its
VDiffusion and VSampler (diffusion.py) and the optimiser and average of its trainer
(audio-diffusion-pytorch-trainer, exp/base_dataset_5.yaml): AdamW 1e-4, betas (0.95, 0.999), eps 1e-6, weight
decay 1e-3, constant rate, no clipping, fp32, EMA of ema-pytorch with beta 0.995 and power 0.7.

UNet2DModel of `diffusers`, as teticio/audio-diffusion trains it on spectrograms (scripts/train_unet.py): DDPM
with the linear schedule of 1000, epsilon, AdamW 1e-4, betas (0.95, 0.999), weight decay 1e-6, cosine after a
warm-up of 500 steps, gradients clipped at 1, fp32, EMA with power 3/4 up to 0.9999; sampled with DDIM.

Both have their authors' shape and about the size of our network; the widths of UNet2DModel are multiples of
8, so it may be smaller. The warm-up is at most a tenth of the training, which helps if the training is short.
"""

import copy
import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from Libraries.Networks.Catalogue import UNET_V0, count_parameters, scale_widths, width_for
from Libraries.Networks.UNetV0 import UNetV0Config

WARMUP_STEPS = 500  # of the learning rate of UNet2DModel
EMA_AFTER, EMA_EVERY = 100, 10  # optimiser steps, the defaults of ema-pytorch
NORM_GROUPS = 8  # of UNet2DModel; its 32 need widths from 32 up, and on a CPU width 20 costs twice width 16


def a_unet_v0(config: UNetV0Config, in_channels: int) -> nn.Module:
    """Return the package's UNetV0, called `(x, time)` with times (B,) in [0, 1]."""
    from a_unet import TimeConditioningPlugin, apex

    levels = zip(
        config.channels,
        config.factors,
        config.items,
        config.attentions,
        config.linear_attentions,
        strict=True,
    )
    blocks = [
        apex.XBlock(
            channels=channels,
            factor=factor,
            context_channels=0,
            items=(
                [apex.ResnetItem, apex.ModulationItem]
                + [apex.AttentionItem] * attends
                + [apex.LinearAttentionItem] * attends_linearly
            )
            * items,
        )
        for channels, factor, items, attends, attends_linearly in levels
    ]
    return TimeConditioningPlugin(apex.XUNet)(
        dim=config.dim,
        in_channels=in_channels,
        blocks=blocks,
        skip_t=apex.SkipModulate,
        attention_features=config.head_dim,
        attention_heads=config.num_heads,
        embedding_features=None,
        modulation_features=config.embedding_dim,
        resnet_groups=config.norm_groups,
    )


class UNetV0Peer:
    """UNetV0 with v-diffusion on a quarter circle: x_σ = cos(σπ/2)·x0 + sin(σπ/2)·noise, σ in [0, 1].

    Args:
        shape: (C, F, T) of the data.
        parameters: approximate number of parameters.
        steps: optimiser steps of the training; this recipe does not use them.
        learning_rate: the recipe's 1e-4, or another.
        device: where the network runs.
    """

    max_grad_norm = None

    def __init__(
        self, shape: tuple[int, int, int], parameters: int, steps: int, learning_rate: float, device
    ):
        factor = width_for(UNET_V0, shape[0], parameters)
        self.network = a_unet_v0(scale_widths(UNET_V0, factor), shape[0]).to(device)
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=learning_rate, betas=(0.95, 0.999), eps=1e-6, weight_decay=1e-3
        )
        self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)

    def loss(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of v = cos·noise - sin·x0 at random σ."""
        sigma = torch.rand(len(x0), generator=generator).to(x0)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        cos, sin = _circle(sigma[:, None, None, None])
        return F.mse_loss(self.network(cos * x0 + sin * noise, sigma), cos * noise - sin * x0)

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Follow ema-pytorch: every tenth step, a copy at first, then an EMA with decay 1 - n^-0.7."""
        if step % EMA_EVERY:
            return
        decay = 0.0 if step <= EMA_AFTER else min(0.995, 1 - (1 + step - EMA_AFTER) ** -0.7)
        for averaged, current in zip(self.ema.parameters(), self.network.parameters(), strict=True):
            averaged.lerp_(current, 1 - decay)

    @torch.no_grad()
    def sample(self, noise: Tensor, steps: int) -> Tensor:
        """Return x0 from noise x_1 (B, C, F, T) by VSampler, with evenly spaced σ from 1 to 0."""
        x, sigmas = noise, torch.linspace(1, 0, steps + 1, device=noise.device)
        for now, after in pairwise(sigmas):
            (cos, sin), (cos_after, sin_after) = _circle(now), _circle(after)
            v = self.ema(x, now.expand(len(x)))
            x = cos_after * (cos * x - sin * v) + sin_after * (sin * x + cos * v)
        return x


class UNet2DPeer:
    """UNet2DModel with DDPM, epsilon; arguments as in `UNetV0Peer`."""

    max_grad_norm = 1.0

    def __init__(
        self, shape: tuple[int, int, int], parameters: int, steps: int, learning_rate: float, device
    ):
        self.network = unet2d_of_size(shape, parameters).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=learning_rate, betas=(0.95, 0.999), eps=1e-8, weight_decay=1e-6
        )
        warmup = min(WARMUP_STEPS, steps // 10)
        self.scheduler = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=warmup, num_training_steps=steps
        )
        self.noising = DDPMScheduler(num_train_timesteps=1000)
        self.averages = EMAModel(
            self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
        )

    def loss(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the noise at random timesteps."""
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        t = torch.randint(0, self.noising.config.num_train_timesteps, (len(x0),), generator=generator)
        t = t.to(x0.device)
        return F.mse_loss(self.network(self.noising.add_noise(x0, noise, t), t).sample, noise)

    def average(self, step: int) -> None:
        """Follow diffusers' EMAModel."""
        self.averages.step(self.network.parameters())

    @torch.no_grad()
    def sample(self, noise: Tensor, steps: int) -> Tensor:
        """Return x0 from noise x_T (B, C, F, T) by diffusers' DDIM at its own timesteps."""
        network = copy.deepcopy(self.network).eval()
        self.averages.copy_to(network.parameters())
        scheduler, x = DDIMScheduler.from_config(self.noising.config), noise
        scheduler.set_timesteps(steps, device=noise.device)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
        return x


def unet2d_of_size(shape: tuple[int, int, int], parameters: int) -> UNet2DModel:
    """Return the network with widths in the ratio 1, 1, 2, 2, 4, 4 nearest to this number of parameters."""

    def make(width: int) -> UNet2DModel:
        return UNet2DModel(
            sample_size=shape[1:],
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=2,
            block_out_channels=tuple(width * factor for factor in (1, 1, 2, 2, 4, 4)),
            down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
            norm_num_groups=NORM_GROUPS,
        )

    def error(width: int) -> int:
        with torch.device("meta"):
            return abs(count_parameters(make(width)) - parameters)

    estimate = math.sqrt(parameters / count_parameters(make(8))) * 8  # parameters grow with the square
    nearest = max(NORM_GROUPS, round(estimate / NORM_GROUPS) * NORM_GROUPS)
    return make(min((nearest, nearest + NORM_GROUPS, max(NORM_GROUPS, nearest - NORM_GROUPS)), key=error))


PEERS = {"UNetV0": UNetV0Peer, "UNet2DModel": UNet2DPeer}


def train_peer(
    peer: UNetV0Peer | UNet2DPeer, batches: Iterator[tuple[Tensor, Tensor]], steps: int, seed: int
) -> None:
    """Take `steps` optimiser steps of the peer's recipe on batches of (x0, label); labels are not used."""
    generator, device = torch.Generator().manual_seed(seed), next(peer.network.parameters()).device
    peer.network.train()
    for step in tqdm(range(1, steps + 1), desc=type(peer).__name__, unit="step"):
        peer.loss(next(batches)[0].to(device), generator).backward()
        if peer.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(peer.network.parameters(), peer.max_grad_norm)
        peer.optimizer.step()
        peer.scheduler.step()
        peer.optimizer.zero_grad(set_to_none=True)
        peer.average(step)


def _circle(sigma: Tensor) -> tuple[Tensor, Tensor]:
    angle = sigma * (math.pi / 2)
    return angle.cos(), angle.sin()
