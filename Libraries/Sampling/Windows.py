"""Music longer than the network's window: one denoiser for all of it, made of overlapping windows.

At every step the network looks at every window of x_t, and where windows overlap their x0 are averaged
(MultiDiffusion, Bar-Tal et al. 2023, eq. 5). So neighbours settle their common part together, from noise to
the end, and no part has to fit another that is already finished. The result is a denoiser like any other:
samplers, guidance and edits take it.
"""

import torch
from torch import Tensor

from Libraries.Diffusion import Denoiser

AT_ONCE = 32  # windows in one batch of the network


def window_starts(window: int, n_frames: int, overlap: int, *, circular: bool) -> list[int]:
    """Return the first frames of windows that cover `n_frames` and share `overlap` frames or a few more.

    Args:
        window: frames, at most `n_frames`.
        circular: the frame after the last is the first; windows go over that edge too.

    Raises:
        ValueError: the numbers do not fit.
    """
    if not 1 <= overlap < window or n_frames < window:
        raise ValueError(
            f"overlap={overlap} must be 1 to {window - 1}, and n_frames={n_frames} at least {window}"
        )
    if circular:
        count = -(-n_frames // (window - overlap))
        return [round(number * n_frames / count) for number in range(count)]
    count = -(-(n_frames - window) // (window - overlap)) + 1
    return [round(number * (n_frames - window) / max(count - 1, 1)) for number in range(count)]


def over_windows(
    denoiser: Denoiser,
    window: int,
    n_frames: int,
    overlap: int,
    *,
    circular: bool,
    conditioning: Tensor | None = None,
) -> Denoiser:
    """Return a denoiser of `n_frames` frames made of one of `window` frames.

    A window's x0 counts most in its middle, where the network sees what is before and after. The network gets
    up to 32 windows in one batch, all those of a clip in a row; labels of B clips need `with_labels`.

    Args:
        denoiser: (x_t (B, C, F, window), t (B,)) -> x0.
        window, n_frames, overlap, circular: as in `window_starts`.
        conditioning: (B, C', F, n_frames), of which the denoiser gets the part of each window as a third
            argument; None: it gets none.
    """
    starts = window_starts(window, n_frames, overlap, circular=circular)
    frames = _frames_of(starts, window, n_frames)

    def long_denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        parts = frames.to(x_t.device).split(AT_ONCE)
        windows = torch.cat([_denoised(denoiser, x_t, t, part, conditioning) for part in parts], dim=-2)
        return blend(windows, starts, n_frames)

    return long_denoiser


def blend(windows: Tensor, starts: list[int], n_frames: int) -> Tensor:
    """Average windows (B, C, F, W, window) that begin at `starts` into (B, C, F, n_frames).

    The weight of a window falls linearly from its middle to its ends. A window that goes over the end of the
    music goes on at its beginning.
    """
    window = windows.shape[-1]
    frames = _frames_of(starts, window, n_frames).to(windows.device)
    taper = torch.minimum(torch.arange(1, window + 1), torch.arange(window, 0, -1)).to(windows)
    total = taper.new_zeros(n_frames).index_add_(0, frames.flatten(), taper.repeat(len(starts)))
    weights = taper / total[frames]  # (W, window); those of a frame add up to 1
    result = windows.new_zeros(*windows.shape[:-2], n_frames)
    return result.index_add_(-1, frames.flatten(), (windows * weights).flatten(-2))


def _frames_of(starts: list[int], window: int, n_frames: int) -> Tensor:
    """Return the frames of every window, int64 (W, window)."""
    return (torch.tensor(starts)[:, None] + torch.arange(window)) % n_frames


def _denoised(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, frames: Tensor, conditioning: Tensor | None
) -> Tensor:
    """Denoise the windows `frames` (W, T) of x_t (B, C, F, n_frames) as one batch: (B, C, F, W, T)."""
    B, W = len(x_t), len(frames)
    own = () if conditioning is None else (_cut(conditioning, frames),)
    output = denoiser(_cut(x_t, frames), t.repeat_interleave(W), *own)
    return output.unflatten(0, (B, W)).movedim(1, -2)


def _cut(x: Tensor, frames: Tensor) -> Tensor:
    """Return the windows `frames` (W, T) of x (B, C, F, n_frames) as one batch (B·W, C, F, T)."""
    return x[..., frames].movedim(-2, 1).flatten(0, 1)
