"""Music longer than the network's window: one denoiser for all of it, made of overlapping windows.

At every step the network looks at every window of x_t, and where windows overlap their x0 are averaged
(MultiDiffusion, Bar-Tal et al. 2023, eq. 5). So neighbours settle their common part together, from noise to
the end, and no part has to fit another that is already finished. It is a denoiser like any other: samplers,
guidance and edits take it.
"""

import torch
from torch import Tensor

from Libraries.Diffusion import Denoiser, NoiseSchedule, denoise, in_x0

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
    model: Denoiser, schedule: NoiseSchedule, window: int, n_frames: int, overlap: int, *, circular: bool
) -> tuple[Denoiser, NoiseSchedule]:
    """Return a denoiser of `n_frames` frames made of one of `window` frames, and its schedule.

    A window's x0 counts most in its middle, where the network sees what is before and after, and less towards
    its ends. The schedule's `prediction_type` is "sample", as averages are taken of x0. The network gets up
    to 32 windows in one batch, all of a clip's in a row; B clips with labels of their own need `with_labels`.

    Args:
        model: (x_t (B, C, F, window), t (B,)) -> output of the schedule's `prediction_type`.
        window, n_frames, overlap, circular: as in `window_starts`.
    """
    starts = torch.tensor(window_starts(window, n_frames, overlap, circular=circular))
    frames = (starts[:, None] + torch.arange(window)) % n_frames  # (W, window)
    taper = torch.minimum(torch.arange(1, window + 1), torch.arange(window, 0, -1)).double()
    total = torch.zeros(n_frames, dtype=torch.float64).index_add_(
        0, frames.flatten(), taper.repeat(len(starts))
    )
    shares = taper / total[frames]  # (W, window); those of a frame add up to 1

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        result = 0
        for part, share in zip(frames.split(AT_ONCE), shares.split(AT_ONCE), strict=True):
            made = _windows_of(model, schedule, x_t, t, part.to(x_t.device)) * share.to(x_t)
            empty = made.new_zeros(*made.shape[:-2], n_frames)
            result = result + empty.index_add_(-1, part.flatten().to(x_t.device), made.flatten(-2))
        return result

    return denoiser, in_x0(schedule)


def _windows_of(model: Denoiser, schedule: NoiseSchedule, x_t: Tensor, t: Tensor, frames: Tensor) -> Tensor:
    """Denoise the windows `frames` (W, T) of x_t (B, C, F, n_frames) as one batch: (B, C', F, W, T)."""
    B, W = len(x_t), len(frames)
    batch = x_t[..., frames].movedim(-2, 1).flatten(0, 1)  # (B·W, C, F, T)
    outputs = torch.cat(denoise(model, schedule, batch, t.repeat_interleave(W)), dim=1)
    return outputs.unflatten(0, (B, W)).movedim(1, -2)
