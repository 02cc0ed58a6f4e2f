"""Edit spectrograms through a codec: encode them, map the mask, edit and decode."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from Libraries.Runs.Codec import Codec
from Libraries.Sampling.Editing import Editor
from Libraries.Sampling.Windows import blend, window_starts


@dataclass(frozen=True)
class LatentEditor:
    """`Editing.Editor`'s methods for spectrograms x0 (B, C, F, T) of a diffusion in latents.

    The masked part (True in the mask) comes back unchanged; the inpainted part has been through the decoder.
    """

    editor: Editor  # of the latents
    codec: Codec

    def inpaint(self, x0: Tensor, mask: Tensor, seeds: Iterable[int]) -> Tensor:
        """Inpaint where the mask is False, as `Editor.inpaint`.

        A latent is kept only if everything that it represents is, so the gap in latents is a bit wider.

        Raises:
            ValueError: as `Editor.inpaint`, or one latent represents the whole clip (kind "linear").
        """
        mask = mask.to(x0.device).expand(x0.shape)
        z = self.editor.inpaint(self.codec.encode(x0), self._latent_mask(mask), seeds)
        return self._full(z, seeds, x0, mask)

    def vary(self, x0: Tensor, strength: float, seeds: Iterable[int], mask: Tensor | None = None) -> Tensor:
        """Return variations, as `Editor.vary`; at strength 0 they are the clips' reconstructions.

        Raises:
            ValueError: as `Editor.vary`, or with a mask as `inpaint`.
        """
        if mask is None:
            z = self.editor.vary(self.codec.encode(x0), strength, seeds)
            return self._full(z, seeds, x0, torch.zeros_like(x0, dtype=torch.bool))
        mask = mask.to(x0.device).expand(x0.shape)
        z = self.editor.vary(self.codec.encode(x0), strength, seeds, self._latent_mask(mask))
        return self._full(z, seeds, x0, mask)

    def extend(self, x0: Tensor, n_frames: int, overlap: int, seeds: Iterable[int]) -> Tensor:
        """Continue clips to any length, as `Editor.extend`; frames are the spectrogram's."""
        T = self.codec.shape[2]  # latent frames, which the strides may not divide: a clip can end in padding
        longer = T + self._latent_frames(max(0, n_frames - x0.shape[-1]))
        z = self.editor.extend(self.codec.encode(x0), longer, self._latent_frames(overlap), seeds)
        return self._longer(z, seeds, x0, overlap, circular=False)[..., :n_frames]

    def loop(self, x0: Tensor, n_frames: int, overlap: int, seeds: Iterable[int]) -> Tensor:
        """Continue clips into a loop, as `Editor.loop`; its length is rounded up to whole latent frames."""
        z = self.editor.loop(
            self.codec.encode(x0), self._latent_frames(n_frames), self._latent_frames(overlap), seeds
        )
        return self._longer(z, seeds, x0, overlap, circular=True)

    def _full(self, z: Tensor, seeds: Iterable[int], x0: Tensor, mask: Tensor) -> Tensor:
        """Return clips (B, C, F, T) decoded from z, with x0 where the mask (bool, like x0) is True."""
        return torch.where(mask, x0, self.codec.decode(z))

    def _longer(self, z: Tensor, seeds: Iterable[int], x0: Tensor, overlap: int, *, circular: bool) -> Tensor:
        """Return longer clips (B, C, F, frames) decoded from z, that begin with x0."""
        longer = self._decode(z, overlap, circular=circular)
        T = min(x0.shape[-1], longer.shape[-1])
        return torch.cat([x0[..., :T], longer[..., T:]], dim=-1)

    def _latent_mask(self, mask: Tensor) -> Tensor:
        rows, frames = self.codec.stride
        _, F, T = self.codec.shape
        if (F, T) == (1, 1):
            raise ValueError("a single latent represents the whole clip, so no part of it can be kept")
        mask = mask.all(dim=1, keepdim=True)[:, :, : F * rows, : T * frames]
        padding = 0, T * frames - mask.shape[3], 0, F * rows - mask.shape[2]
        mask = nnf.pad(mask, padding, value=True)  # where the strides divide neither rows nor frames
        return mask.unflatten(3, (T, frames)).unflatten(2, (F, rows)).all(dim=5).all(dim=3)

    def _latent_frames(self, frames: int) -> int:
        return -(-frames // self.codec.stride[1])

    def _decode(self, z: Tensor, overlap: int, *, circular: bool) -> Tensor:
        """Decode latents of any length in windows that blend where they overlap, (B, C, F, frames)."""
        T, stride = self.codec.shape[2], self.codec.stride[1]
        starts = window_starts(T, z.shape[-1], self._latent_frames(overlap), circular=circular)
        frames = [(start + torch.arange(T, device=z.device)) % z.shape[-1] for start in starts]
        windows = torch.stack([self.codec.decode(z[..., part]) for part in frames], dim=-2)
        return blend(windows, [start * stride for start in starts], z.shape[-1] * stride)


@dataclass(frozen=True)
class CascadeEditor(LatentEditor):
    """`Editing.Editor`'s methods for spectrograms x0 (B, C, F, T) of a cascade.

    The small spectrogram is edited, then the upsampler inpaints around the kept part of x0, so that this
    part stays at full size and the rest fits it.
    """

    def _full(self, z: Tensor, seeds: Sequence[int], x0: Tensor, mask: Tensor) -> Tensor:
        return self.codec.decode(z, seeds, kept=(x0, mask))

    def _longer(self, z: Tensor, seeds: Sequence[int], x0: Tensor, overlap: int, *, circular: bool) -> Tensor:
        n_frames = z.shape[-1] * self.codec.stride[1]
        mask = (torch.arange(n_frames, device=x0.device) < x0.shape[-1]).expand(*x0.shape[:3], n_frames)
        kept = nnf.pad(x0, (0, n_frames - x0.shape[-1])), mask
        return self.codec.decode(z, seeds, kept=kept, overlap=overlap, circular=circular)
