"""Guidance: one denoiser made of two, pushed away from the worse of them.

x0 = x0_guide + guidance_scale·(x0 - x0_guide). Noise, v and x0 are affine in each other with the same weights
for both, so guiding any of them is the same guidance; only `rescaled` depends on the choice.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from Libraries.Diffusion import Denoiser
from Libraries.Utils import require

METHODS = ("none", "classifier_free", "autoguidance")


@dataclass(frozen=True)
class GuidanceConfig:
    """How samples are guided; the values live in `Conf.py`.

    Raises:
        ValueError: an unknown method, or a number that is impossible.
    """

    method: str  # none | classifier_free (towards the label) | autoguidance (away from a guide model)
    scale: float  # 1: no guidance; more: further
    rescale: float  # φ of `rescaled`: 0 none, to 1
    guide_at: float  # autoguidance only; fraction of the training that the guide model has had

    def __post_init__(self) -> None:
        require(METHODS, method=self.method)
        _check_scale(self.scale, self.rescale)
        require("(0, 1)", guide_at=self.guide_at)


def with_labels(denoiser: Denoiser, labels: Tensor, num_classes: int) -> Denoiser:
    """Return the denoiser `(x_t, t)` of these labels, without guidance.

    Args:
        denoiser: (x_t (B, C, F, T), t (B,), label (B,)) -> x0; label `num_classes` means "no label".
        labels: int64 (B,), one per sample of the batch, or (1,) for all; `num_classes` for no label.
        num_classes: that of the network.

    Raises:
        ValueError: the labels do not fit the network, or (when called) the batch.
    """
    _check_labels(labels, num_classes)
    return lambda x_t, t: denoiser(x_t, t, _labels_of_batch(labels, x_t))


def classifier_free_guidance(
    denoiser: Denoiser, labels: Tensor, num_classes: int, guidance_scale: float, *, rescale: float = 0.0
) -> Denoiser:
    """Return the denoiser `(x_t, t)` of these labels, guided by the same network without them.

    Ho and Salimans 2022, eq. 6, with guidance_scale = 1 + w: 0 ignores the labels, 1 is the denoiser as it is
    (and costs one call of the batch), more than 1 follows the labels further than the data do. Both halves
    go through the network as one batch of 2·B. It needs a network trained with `label_dropout`.

    Args:
        denoiser, labels, num_classes: as in `with_labels`.
        guidance_scale: 0 or more.
        rescale: φ of `rescaled`, 0 (none) to 1.

    Raises:
        ValueError: a number is impossible, or the labels do not fit the network or (when called) the batch.
    """
    _check_scale(guidance_scale, rescale)
    plain = with_labels(denoiser, labels, num_classes)
    if guidance_scale == 1:
        return plain

    def guided_denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        own = _labels_of_batch(labels, x_t)
        both = torch.cat([own, torch.full_like(own, num_classes)])
        x0, x0_guide = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return _guided(x0, x0_guide, x_t.shape[1], guidance_scale, rescale)

    return guided_denoiser


def autoguidance(
    denoiser: Denoiser, guide: Denoiser, guidance_scale: float, *, rescale: float = 0.0
) -> Denoiser:
    """Return a denoiser guided away from the errors of a worse one, its guide (Karras et al. 2024).

    The guide model is an earlier checkpoint or a smaller network, trained on the same data. Neither needs
    labels; `with_labels` gives them to those that do.

    Args:
        denoiser, guide: (x_t (B, C, ...), t (B,)) -> x0.
        guidance_scale: 0 (the guide) or more; 1 is `denoiser` as it is and calls nothing else.
        rescale: φ of `rescaled`, 0 (none) to 1.

    Raises:
        ValueError: a number is impossible.
    """
    _check_scale(guidance_scale, rescale)
    if guidance_scale == 1:
        return denoiser
    return lambda x_t, t: _guided(denoiser(x_t, t), guide(x_t, t), x_t.shape[1], guidance_scale, rescale)


def rescaled(x0: Tensor, like: Tensor, phi: float) -> Tensor:
    """Return x0 with a standard deviation φ of the way to that of `like`, sample by sample; both (B, ...).

    φ·x0·std(like)/std(x0) + (1 - φ)·x0 (Lin et al. 2023, section 3.4): guidance widens the range of values
    and so overexposes. The paper rescales the network's output, which is v there; here x0 is rescaled, whose
    range is at stake, whatever the network predicts. A constant sample, whose std is 0, stays.
    """
    target, own = (part.flatten(1).std(dim=1, correction=0) for part in (like, x0))
    factor = torch.where(own > 0, target / own, 1.0)
    return x0 * (phi * factor + 1 - phi).view(-1, *[1] * (x0.ndim - 1))


def _guided(output: Tensor, guide: Tensor, C: int, guidance_scale: float, rescale: float) -> Tensor:
    """Guide the C channels of x0; a variance output (the channels behind them) is not guided."""
    x0, x0_guide = output[:, :C], guide[:, :C]
    guided = x0_guide + guidance_scale * (x0 - x0_guide)
    guided = rescaled(guided, x0, rescale) if rescale else guided
    return torch.cat([guided, output[:, C:]], dim=1)


def _labels_of_batch(labels: Tensor, x_t: Tensor) -> Tensor:
    """Return the labels as (B,) on the batch's device; the windows of one clip follow one another."""
    B = len(x_t)
    if B % len(labels):
        raise ValueError(
            f"there are {len(labels)} labels for a batch of {B}: give one per sample (and sample with a "
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
