"""Two models as one: diffusion makes a small spectrogram, an upsampler the full one; generation and edits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from torch import Tensor

from Libraries.Dataset.Manifest import INVERSE_ONLY
from Libraries.Runs.LatentEditing import LatentEditor
from Libraries.Runs.Run import read_conf
from Libraries.Runs.Settings import to_dict
from Libraries.Runs.Upsampling import load_upsampler
from Libraries.Sound.LowResolution import LowResolution
from Libraries.Upsampler import Upsampler
from Libraries.Utils import get_logger

logger = get_logger("Cascade")


class ViewCodec:
    """What `LatentCodec` is to latents, for small spectrograms: encode by the view, decode by the upsampler.

    Args:
        low: the view.
        upsampler: of this view; None interpolates instead.
    """

    def __init__(self, low: LowResolution, upsampler: Upsampler | None):
        self.low, self.upsampler = low, upsampler

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, f, t) of a small spectrogram."""
        return self.low.shape

    @property
    def stride(self) -> tuple[int, int]:
        """Spectrogram rows a small row, and frames a small frame."""
        return self.low.stride

    def encode(self, x0: Tensor) -> Tensor:
        """Return small spectrograms (B, C, f, t) of x0 (B, C, F, T)."""
        return self.low.downsample(x0)

    def decode(
        self,
        view: Tensor,
        seeds: Iterable[int] | None = None,
        *,
        kept: tuple[Tensor, Tensor] | None = None,
        overlap: int | None = None,
        circular: bool = False,
    ) -> Tensor:
        """Return full spectrograms (B, C, F, T) of small ones (B, C, f, t), on their device.

        Args:
            seeds: one a clip; None: seed 0 for each, so that what decoding draws is the same for all.
            kept, overlap, circular: as in `Upsampler.upsample`.
        """
        seeds = [0] * len(view) if seeds is None else list(seeds)
        if self.upsampler is not None:
            return self.upsampler.upsample(view, seeds, kept=kept, overlap=overlap, circular=circular)
        full = self.low.interpolate(view)
        return full if kept is None else torch.where(kept[1], kept[0], full)


def open_cascade(parent: Path, low: LowResolution, device: torch.device | None = None) -> ViewCodec:
    """Return the codec of the newest upsampler in `parent` that goes on from this view.

    Without one, which is how the first model of a cascade may be trained, it interpolates, and says so.
    """
    runs = sorted(Path(parent).glob("*/ema-*.pth"), reverse=True)
    for run_dir in dict.fromkeys(path.parent for path in runs):
        if _goes_on_from(run_dir, low):
            return ViewCodec(low, load_upsampler(run_dir, device))
    logger.warning("no upsampler of this view in %s: small spectrograms are interpolated", parent)
    return ViewCodec(low, None)


@dataclass(frozen=True)
class CascadeEditor(LatentEditor):
    """`Editing.Editor`'s methods for spectrograms x0 (B, C, F, T) of a cascade.

    The small spectrogram is edited, and the upsampler makes the rest around all of x0 that is known, by the
    core's inpainting; so the known part is kept at full size and what joins it has seen it.
    """

    codec: ViewCodec

    def _full(self, made: Tensor, seeds: Sequence[int], x0: Tensor, known: Tensor) -> Tensor:
        return self.codec.decode(made, seeds, kept=(x0, known))

    def _longer(
        self, made: Tensor, seeds: Sequence[int], x0: Tensor, overlap: int, *, circular: bool
    ) -> Tensor:
        n_frames = made.shape[-1] * self.codec.stride[1]
        known = (torch.arange(n_frames, device=x0.device) < x0.shape[-1]).expand(*x0.shape[:3], n_frames)
        kept = nnf.pad(x0, (0, n_frames - x0.shape[-1])), known
        return self.codec.decode(made, seeds, kept=kept, overlap=overlap, circular=circular)


def _goes_on_from(run_dir: Path, low: LowResolution) -> bool:
    theirs = read_conf(run_dir)["settings"]
    ours = to_dict(low.spectrogram)
    same = all(theirs["spectrogram"].get(name) == ours[name] for name in ours.keys() - set(INVERSE_ONLY))
    return same and theirs["view"] == to_dict(low.config)
