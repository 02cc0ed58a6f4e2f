"""Guidance: one denoiser `model(x_t, t)` made of two, pushed away from the worse of them.

output = weak + guidance_scale·(strong - weak). All of `prediction_type`'s outputs are affine in x0 with the
same weights for both, so guiding eps, v or x0 is the same guidance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from Libraries.Diffusion import Denoiser
from Libraries.Utils import require

METHODS = ("none", "classifier_free", "autoguidance")
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x_t (B, C, F, T), t (B,), cond (B,))


@dataclass(frozen=True)
class GuidanceConfig:
    """How samples are guided; the values live in `Conf.py`.

    Raises:
        ValueError: an unknown method, or a number that is impossible.
    """

    method: str  # none | classifier_free (towards the label) | autoguidance (away from a weaker model)
    scale: float  # 1: no guidance; more: further
    rescale: float  # φ of `rescaled`: 0 none, to 1
    weaker_at: float  # autoguidance only; share of the training that the weaker weights have had

    def __post_init__(self):
        require(METHODS, method=self.method)
        _check_scale(self.scale, self.rescale)
        require("(0, 1)", weaker_at=self.weaker_at)


def with_labels(network: Network, labels: Tensor, num_classes: int) -> Denoiser:
    """Return the denoiser of these labels, without guidance.

    Args:
        network: (x_t (B, C, F, T), t (B,), cond (B,)) -> output like x_t; `num_classes` is "no label" to it.
        labels: int64 (B,), one a sample of the batch, or (1,) for all; `num_classes` for no label.
        num_classes: that of the network.

    Raises:
        ValueError: the labels do not fit the network, or (when called) the batch.
    """
    _check_labels(labels, num_classes)

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        return network(x_t, t, _labels_of_batch(labels, x_t))

    return model


def classifier_free_guidance(
    network: Network, labels: Tensor, num_classes: int, guidance_scale: float, *, rescale: float = 0.0
) -> Denoiser:
    """Return the denoiser of these labels, guided by the same network without them.

    Ho and Salimans 2022, eq. 6, with guidance_scale = 1 + w: 0 ignores the labels, 1 is the network as it is
    (and costs one call of the batch), more than 1 follows the labels further than the data do. Both halves
    go through the network as one batch of 2·B. It needs a network trained with `label_dropout`.

    Args:
        network: (x_t (B, C, F, T), t (B,), cond (B,)) -> output like x_t; `num_classes` is "no label" to it.
        labels: int64 (B,), one a sample of the batch, or (1,) for all.
        num_classes: that of the network.
        guidance_scale: 0 or more.
        rescale: φ of `rescaled`, 0 (none) to 1.

    Raises:
        ValueError: a number is impossible, or the labels do not fit the network or (when called) the batch.
    """
    _check_scale(guidance_scale, rescale)
    plain = with_labels(network, labels, num_classes)
    if guidance_scale == 1:
        return plain

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        own = _labels_of_batch(labels, x_t)
        cond = torch.cat([own, torch.full_like(own, num_classes)])
        strong, weak = network(torch.cat([x_t, x_t]), torch.cat([t, t]), cond).chunk(2)
        return _guide(strong, weak, x_t, guidance_scale, rescale)

    return model


def autoguidance(
    model: Denoiser, weaker: Denoiser, guidance_scale: float, *, rescale: float = 0.0
) -> Denoiser:
    """Return `model` guided away from the errors of a weaker one (Karras et al. 2024).

    The weaker one is an earlier checkpoint or a smaller network, trained on the same data to predict the
    same (`prediction_type`, schedule). Neither needs labels; `with_labels` gives them to those that do.

    Args:
        model, weaker: (x_t (B, ...), t (B,)) -> output like x_t.
        guidance_scale: 0 (the weaker one) or more; 1 is `model` as it is and calls nothing else.
        rescale: φ of `rescaled`, 0 (none) to 1.

    Raises:
        ValueError: a number is impossible.
    """
    _check_scale(guidance_scale, rescale)
    if guidance_scale == 1:
        return model
    return lambda x_t, t: _guide(model(x_t, t), weaker(x_t, t), x_t, guidance_scale, rescale)


def guided(strong: Tensor, weak: Tensor, guidance_scale: float, rescale: float) -> Tensor:
    """Return weak + guidance_scale·(strong - weak), rescaled by φ = `rescale`; all (B, ...)."""
    output = weak + guidance_scale * (strong - weak)
    return rescaled(output, strong, rescale) if rescale else output


def rescaled(output: Tensor, like: Tensor, phi: float) -> Tensor:
    """Return `output` with a standard deviation φ of the way to that of `like`, sample by sample.

    φ·output·std(like)/std(output) + (1 - φ)·output (Lin et al. 2023, section 3.4): guidance spreads the
    values and so overexposes. A constant sample, whose standard deviation is 0, stays. Both (B, ...).
    """
    target, own = (part.flatten(1).std(dim=1, correction=0) for part in (like, output))
    factor = torch.where(own > 0, target / own, 1.0)
    return output * (phi * factor + 1 - phi).view(-1, *[1] * (output.ndim - 1))


def _guide(strong: Tensor, weak: Tensor, x_t: Tensor, guidance_scale: float, rescale: float) -> Tensor:
    """Guide the channels that predict; those of a learned variance stay the strong one's."""
    C = x_t.shape[1]
    return torch.cat([guided(strong[:, :C], weak[:, :C], guidance_scale, rescale), strong[:, C:]], dim=1)


def _labels_of_batch(labels: Tensor, x_t: Tensor) -> Tensor:
    """Return the labels as (B,) on the batch's device; the windows of one clip follow one another."""
    B = len(x_t)
    if B % len(labels):
        raise ValueError(
            f"there are {len(labels)} labels for a batch of {B}: give one a sample (and sample with a "
            f"batch_size of that many), or a single one for all"
        )
    return labels.to(x_t.device).repeat_interleave(B // len(labels))


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError("labels were given to a network without classes; set num_classes in Conf.py")
    if labels.ndim != 1 or labels.dtype != torch.int64 or len(labels) == 0:
        raise ValueError(f"labels must be int64 (B,); got {labels.dtype} {tuple(labels.shape)}")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high > num_classes:
        raise ValueError(
            f"labels go from {low} to {high}; the network knows 0 to {num_classes - 1}, and {num_classes} "
            f"for no label"
        )


def _check_scale(guidance_scale: float, rescale: float) -> None:
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"guidance_scale={guidance_scale} must be 0 or more; 1 changes nothing")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale={rescale} must be within [0, 1]; 0 changes nothing")
