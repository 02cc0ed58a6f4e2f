"""Edits of spectrograms through a codec: encoded, edited there, decoded; masks are mapped."""

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

    What is known comes back unchanged; what is made has been through the decoder.
    """

    editor: Editor  # of the latents
    codec: Codec

    def inpaint(self, x0: Tensor, known: Tensor, seeds: Iterable[int]) -> Tensor:
        """Make new what is not known, as `Editor.inpaint`.

        A latent is known if everything that it stands for is, so a gap is made a little wider in there.

        Raises:
            ValueError: as `Editor.inpaint`, or all of a clip hangs on one latent (kind "linear").
        """
        known = known.to(x0.device).expand(x0.shape)
        made = self.editor.inpaint(self.codec.encode(x0), self._known_latents(known), seeds)
        return self._full(made, seeds, x0, known)

    def vary(self, x0: Tensor, strength: float, seeds: Iterable[int]) -> Tensor:
        """Return variations, as `Editor.vary`; of strength 0 they are what the decoder makes of the clips."""
        made = self.editor.vary(self.codec.encode(x0), strength, seeds)
        return self._full(made, seeds, x0, torch.zeros_like(x0, dtype=torch.bool))

    def extend(self, x0: Tensor, n_frames: int, overlap: int, seeds: Iterable[int]) -> Tensor:
        """Continue clips to any length, as `Editor.extend`; frames are the spectrogram's."""
        made = self.editor.extend(
            self.codec.encode(x0), self._latent_frames(n_frames), self._latent_frames(overlap), seeds
        )
        return self._longer(made, seeds, x0, overlap, circular=False)[..., :n_frames]

    def loop(self, x0: Tensor, n_frames: int, overlap: int, seeds: Iterable[int]) -> Tensor:
        """Continue clips into a loop, as `Editor.loop`; it is up to a latent's frames longer."""
        made = self.editor.loop(
            self.codec.encode(x0), self._latent_frames(n_frames), self._latent_frames(overlap), seeds
        )
        return self._longer(made, seeds, x0, overlap, circular=True)

    def _full(self, made: Tensor, seeds: Iterable[int], x0: Tensor, known: Tensor) -> Tensor:
        """Return clips (B, C, F, T) decoded from what was made, and x0 where it is known, bool like x0."""
        return torch.where(known, x0, self.codec.decode(made))

    def _longer(
        self, made: Tensor, seeds: Iterable[int], x0: Tensor, overlap: int, *, circular: bool
    ) -> Tensor:
        """Return longer clips (B, C, F, frames) decoded from what was made, that begin with x0."""
        longer = self._decode(made, overlap, circular=circular)
        T = min(x0.shape[-1], longer.shape[-1])
        return torch.cat([x0[..., :T], longer[..., T:]], dim=-1)

    def _known_latents(self, known: Tensor) -> Tensor:
        rows, frames = self.codec.stride
        _, F, T = self.codec.shape
        if (F, T) == (1, 1):
            raise ValueError("a single latent stands for all of the clip, so no part of it can be kept")
        known = known.all(dim=1, keepdim=True)[:, :, : F * rows, : T * frames]
        return known.unflatten(3, (T, frames)).unflatten(2, (F, rows)).all(dim=5).all(dim=3)

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

    The small spectrogram is edited, and the upsampler makes the rest around all of x0 that is known, by the
    core's inpainting; so the known part is kept at full size and what joins it has seen it.
    """

    def _full(self, made: Tensor, seeds: Sequence[int], x0: Tensor, known: Tensor) -> Tensor:
        return self.codec.decode(made, seeds, kept=(x0, known))

    def _longer(
        self, made: Tensor, seeds: Sequence[int], x0: Tensor, overlap: int, *, circular: bool
    ) -> Tensor:
        n_frames = made.shape[-1] * self.codec.stride[1]
        known = (torch.arange(n_frames, device=x0.device) < x0.shape[-1]).expand(*x0.shape[:3], n_frames)
        kept = nnf.pad(x0, (0, n_frames - x0.shape[-1])), known
        return self.codec.decode(made, seeds, kept=kept, overlap=overlap, circular=circular)
