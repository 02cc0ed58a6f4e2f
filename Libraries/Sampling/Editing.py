"""Edits of clips by every sampler: inpaint, vary, continue to any length, close to a loop; interpolate.

A sampler learns of its data in two ways, by the predicted x0 and by its first noise. So an edit replaces the
masked part of the predicted x0 (`edited`), or hands over a state of its own as the first noise and starts at
a later timestep (`StartFrom`), or both. Guidance and every sampler stay as they are.

Why x0 and not x_t: RePaint (Lugmayr et al. 2022, eq. 8), like the imputation of Song et al. 2021
(score-based SDEs), overwrites the masked part of x_t at every step by the clip under fresh noise. That noise
jumps at every step, which no ODE solver expects. With the true x0 in place of the predicted one the masked
part of x_t is just as noisy, but by one course of noise that the sampler lays itself (DDIM: x_t =
sqrt(ᾱ_t)·x0 + sqrt(1 - ᾱ_t)·eps with one eps), the past of multistep solvers stays consistent, and at the
end the masked part is the clip.

Both err alike: as long as the masked part is noisy the rest is drawn to fit the noisy values, so the
inpainted part follows the masked one too little. Of two Gaussian values of correlation .9 it does so by .49
of what it should with an ODE and .68 with an SDE, either way, and its variance is 2.6 and 1.8 times the exact
one (RePaint's fresh noise: 2.2 and 1.5; that is its advantage). RePaint's remedy is to resample, back and
forth at every step; here whole samplings are repeated, `resamplings`: 8 of them bring .86 and .91, and
variances of 1.1 to 1.4. tests/test_editing.py measures all this.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as nnf
from torch import Tensor

from Libraries.Diffusion import Denoiser, NoiseSchedule, edited
from Libraries.Sampling.Loop import (
    Callback,
    SamplerConfig,
    inference_timesteps,
    run_sampler,
    with_dynamic_threshold,
)
from Libraries.Sampling.Windows import over_windows, window_starts
from Libraries.Utils import SampleNoise, require


@dataclass(frozen=True)
class EditConfig:
    """How clips are edited; the values live in `Conf.py`.

    Raises:
        ValueError: a number is impossible.
    """

    resamplings: int  # times that inpainted parts are sampled again; n of them cost n/2 samplings more
    gap_seconds: float  # of a clip, filled by inpainting
    strength: float  # of a variation: 0 the clip itself, 1 a free sample
    overlap_seconds: float  # shared by neighbouring windows of a continuation
    continue_seconds: float  # length of a continued clip
    loop_seconds: float  # length of a loop
    inversion_iterations: int  # calls of the model per step of the inversion; 1 is the usual DDIM inversion

    def __post_init__(self) -> None:
        seconds = ("gap_seconds", "overlap_seconds", "continue_seconds", "loop_seconds")
        for name in seconds:
            require("(0, inf)", **{name: getattr(self, name)})
        require("[0, inf)", resamplings=self.resamplings)
        require("[1, inf)", inversion_iterations=self.inversion_iterations)
        require("[0, 1]", strength=self.strength)


class StartFrom:
    """Noise whose first draw is a given state x_t (B, ...); the draws that follow are those of `noise`.

    Samplers draw x_T first, so with the timesteps from t on they start from x_t.
    """

    def __init__(self, x_t: Tensor, noise: SampleNoise):
        self.x_t: Tensor | None = x_t
        self.noise = noise

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Return x_t once, from then on (B, *shape) of `noise`."""
        x_t, self.x_t = self.x_t, None
        return self.noise(shape) if x_t is None else x_t


def mask_outside(
    shape: tuple[int, int, int],
    *,
    rows: tuple[int, int] | None = None,
    frames: tuple[int, int] | None = None,
) -> Tensor:
    """Return the mask bool (C, F, T) that is False, to be inpainted, inside a box, and True, kept, outside.

    Args:
        shape: (C, F, T).
        rows: first frequency row of the box and the one after its last; None: all.
        frames: the same for its frames.

    Raises:
        ValueError: the box is empty or not within the shape.
    """
    mask = torch.ones(shape, dtype=torch.bool)
    (low, high), (first, end) = rows or (0, shape[1]), frames or (0, shape[2])
    for name, start, stop, size in (("rows", low, high, shape[1]), ("frames", first, end, shape[2])):
        if not 0 <= start < stop <= size:
            raise ValueError(f"{name}=({start}, {stop}) must rise within 0 and {size}")
    mask[:, low:high, first:end] = False
    return mask


def seams(window: int, n_frames: int, overlap: int) -> list[int]:
    """Return the frames where a seam of `Editor.extend` would be heard: the end of the given clip, and the
    middle of every overlap of two windows after it, where one hands over to the next."""
    starts = window_starts(window, n_frames, overlap, circular=False)
    middles = [(before + window + after) // 2 for before, after in pairwise(starts)]
    return [window, *(middle for middle in middles if middle > window)]


@dataclass(frozen=True)
class Editor:
    """Edits clips with one denoiser and one sampler; a result depends on its clip and seed, not on the batch.

    All clips of a call are one batch. They are float32 (or float64, which is then kept) on the denoiser's
    device, and so are the results. A mask is bool, True where x0 is kept.

    Raises:
        ValueError: (any method) shape, mask, seeds or a number do not fit; the sentence says which.
    """

    denoiser: Denoiser  # (x_t (B, C, F, T), t (B,)) -> x0; may be guided
    schedule: NoiseSchedule
    config: SamplerConfig
    resamplings: int = 0  # times that inpainted parts are noised and sampled again; n cost n/2 samplings more
    callback: Callback | None = None  # sees every step of every sampling
    progress: bool = False

    def __post_init__(self) -> None:
        require("[0, inf)", resamplings=self.resamplings)

    def inpaint(self, x0: Tensor, mask: Tensor, seeds: Iterable[int]) -> Tensor:
        """Fill in clips where the mask is False; where it is True they come back unchanged.

        Resampling i of n starts from the last result with strength 1 - i/(n + 1), as RePaint does at each
        step (Lugmayr et al. 2022, section 4.2), and brings the inpainted part nearer to what fits.

        Args:
            x0: (B, C, F, T) float; its values where the mask is False have no effect.
            mask: bool, broadcastable to x0, over frames, rows or both (`mask_outside`).
            seeds: one per clip.

        Returns:
            x0 (B, C, F, T).
        """
        mask, noise = _checked(x0, mask), _noise(x0, seeds)
        x0 = self._inpainted(x0, mask, noise, strength=1.0)
        for number in range(1, self.resamplings + 1):
            x0 = self._inpainted(x0, mask, noise, strength=1 - number / (self.resamplings + 1))
        return x0

    def vary(self, x0: Tensor, strength: float, seeds: Iterable[int], mask: Tensor | None = None) -> Tensor:
        """Return variations of clips: noised up to a timestep and denoised (SDEdit, Meng et al. 2022).

        Args:
            x0: (B, C, F, T) float.
            strength: sampling starts at its highest timestep below strength·num_train_timesteps. 0, or less
                than the lowest, gives the clip back; 1 a free sample, that of the seed in `sample`.
            seeds: one per clip.
            mask: as in `inpaint`, to vary only where it is False; None: all of the clip.

        Returns:
            x0 (B, C, F, T).
        """
        require("[0, 1]", strength=strength)
        mask = _checked(x0, torch.zeros(1, dtype=torch.bool) if mask is None else mask)
        return self._inpainted(x0, mask, _noise(x0, seeds), strength)

    def extend(self, x0: Tensor, n_frames: int, overlap: int, seeds: Iterable[int]) -> Tensor:
        """Continue clips to any length, through overlapping windows of T frames that are denoised together.

        Args:
            x0: (B, C, F, T) float, the beginning, which comes back unchanged; T is the window.
            n_frames: of the result.
            overlap: frames that neighbouring windows share, 1 to T - 1; more make softer seams and cost more.
            seeds: one per clip.

        Returns:
            x0 (B, C, F, n_frames), for `Spectrogram.decode` with any_length.
        """
        return self._longer(x0, max(n_frames, x0.shape[-1]), overlap, seeds, circular=False)[..., :n_frames]

    def loop(self, x0: Tensor, n_frames: int, overlap: int, seeds: Iterable[int]) -> Tensor:
        """Continue clips into a loop, whose end leads into its beginning: its windows go round.

        Args:
            x0, overlap, seeds: as in `extend`.
            n_frames: of the result, at least T.

        Returns:
            x0 (B, C, F, n_frames), to be played round and round.
        """
        return self._longer(x0, n_frames, overlap, seeds, circular=True)

    def _longer(
        self, x0: Tensor, n_frames: int, overlap: int, seeds: Iterable[int], circular: bool
    ) -> Tensor:
        T = x0.shape[-1]
        denoiser = over_windows(self.denoiser, T, n_frames, overlap, circular=circular)
        mask = torch.arange(n_frames) < T
        longer = replace(self, denoiser=denoiser)
        return longer.inpaint(nnf.pad(x0, (0, n_frames - T)), mask, seeds)

    def _inpainted(self, x0: Tensor, mask: Tensor, noise: SampleNoise, strength: float) -> Tensor:
        """Fill in x0 where the mask is False, from x0 noised to `strength` of the timesteps; 1 is noise."""
        steps = self.config.num_inference_steps
        timesteps = inference_timesteps(self.schedule, steps, self.config.spacing)
        timesteps = [t for t in timesteps if t < strength * self.schedule.num_train_timesteps]
        if not timesteps or mask.all():
            return x0.clone()
        shape = tuple(x0.shape[1:])
        x_t = noise(shape)
        if strength < 1:
            t = torch.full((len(x0),), timesteps[0], device=x0.device)
            x_t = self.schedule.add_noise(x0, x_t, t)
        # the threshold is for what the model predicts, not for the clip
        denoiser = with_dynamic_threshold(self.denoiser, self.config)
        denoiser = edited(denoiser, lambda predicted: torch.where(mask, x0, predicted))
        result = run_sampler(
            denoiser, self.schedule, replace(self.config, dynamic_threshold=None), StartFrom(x_t, noise),
            shape, timesteps, callback=self.callback, progress=self.progress,
        )  # fmt: skip
        return torch.where(mask, x0, result)


@torch.no_grad()
def invert(
    denoiser: Denoiser, schedule: NoiseSchedule, x0: Tensor, timesteps: list[int], iterations: int
) -> Tensor:
    """Return the x_T from which `ddim` (eta = 0) with these timesteps makes x0.

    DDIM's step from t to s backwards (Song et al. 2021, DDIM, eq. 12 with σ = 0), with x0 predicted at the
    x_t sought: x_t = sqrt(ᾱ_t)·(x_s - sqrt(1-ᾱ_s)·eps)/sqrt(ᾱ_s) + sqrt(1-ᾱ_t)·eps where x_s is more signal
    than noise, x_t = sqrt(ᾱ_t)·x0 + sqrt(1-ᾱ_t)·(x_s - sqrt(ᾱ_s)·x0)/sqrt(1-ᾱ_s) where it is less. They are
    the same once x_t is found; until then each depends little on the last estimate of x_t. Iteration 1
    predicts at x_s, the usual DDIM inversion; each further one at the x_t found last (Pan et al. 2023).

    Args:
        denoiser: (x_t (B, C, F, T), t (B,)) -> x0.
        x0: (B, C, F, T) float; float64 is kept.
        timesteps: descending, those of the sampling.
        iterations: calls of the denoiser per step, 1 or more.

    Raises:
        ValueError: no iteration, or the only timestep has no signal, so that nothing of x0 is in x_T.
    """
    abars = [1.0, *schedule.alphas_cumprod[timesteps[::-1]].tolist()]
    if iterations < 1 or abars[-2:] == [1.0, 0.0]:
        raise ValueError("inversion needs 1 or more iterations, and a timestep with signal")
    x = x0
    for t, abar_from, abar in zip(timesteps[::-1], abars[:-1], abars[1:], strict=True):
        x_t = x
        for _ in range(iterations):
            predicted = denoiser(x_t, torch.full((len(x_t),), t, device=x_t.device))
            eps = (x_t - abar**0.5 * predicted) / (1 - abar) ** 0.5
            if abar_from > 0.5:
                predicted = (x - (1 - abar_from) ** 0.5 * eps) / abar_from**0.5
            else:
                eps = (x - abar_from**0.5 * predicted) / (1 - abar_from) ** 0.5
            x_t = abar**0.5 * predicted + (1 - abar) ** 0.5 * eps
        x = x_t
    return x


def interpolate(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    clips: Tensor,
    weights: Tensor,
    timesteps: list[int],
    *,
    iterations: int,
    progress: bool = False,
) -> Tensor:
    """Return clips on the way from one to another: invert both, mix their x_T on a sphere, sample back.

    Song et al. 2021 (DDIM), section 5.3. The sampler is DDIM with eta = 0, the one that is inverted.

    Args:
        clips: (2, C, F, T) float.
        weights: float (K,), of the second clip: 0 gives the first and 1 the second, but for what the
            inversion loses.
        denoiser, timesteps, iterations: those of `invert`.

    Returns:
        x0 (K, C, F, T).

    Raises:
        ValueError: clips or weights have another shape, or as `invert`.
    """
    if clips.ndim != 4 or len(clips) != 2 or weights.ndim != 1:
        raise ValueError(
            f"clips must be (2, C, F, T) and weights (K,); got {tuple(clips.shape)}, {tuple(weights.shape)}"
        )
    first, second = invert(denoiser, schedule, clips, timesteps, iterations)
    x_T = torch.stack([slerp(first, second, weight) for weight in weights.tolist()])
    start = StartFrom(x_T, SampleNoise([]))  # DDIM with eta = 0 draws no more
    ddim = SamplerConfig("ddim", len(timesteps), "trailing", clip_x0=None, eta=0.0)
    shape = tuple(clips.shape[1:])
    return run_sampler(denoiser, schedule, ddim, start, shape, timesteps, progress=progress)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Return the point at `weight` of the arc from `first` to `second`, any one shape (Shoemake 1985).

    On the straight line between two such noises the norm would fall to 0.7, which no noise has.
    """
    cosine = nnf.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-4:  # the same direction: no arc
        return (1 - weight) * first + weight * second
    return (torch.sin((1 - weight) * angle) * first + torch.sin(weight * angle) * second) / angle.sin()


def _checked(x0: Tensor, mask: Tensor) -> Tensor:
    """Return the mask in the shape and on the device of x0, or say what is wrong with either."""
    if x0.ndim != 4 or x0.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x0 must be float32 (B, C, F, T); got {x0.dtype} {tuple(x0.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, True where x0 is kept; got {mask.dtype}")
    try:
        return mask.to(x0.device).expand(x0.shape)
    except RuntimeError as error:
        raise ValueError(f"a mask of {tuple(mask.shape)} does not fit x0 of {tuple(x0.shape)}") from error


def _noise(x0: Tensor, seeds: Iterable[int]) -> SampleNoise:
    seeds = list(seeds)
    if len(seeds) != len(x0):
        raise ValueError(f"there are {len(seeds)} seeds for {len(x0)} clips: give one per clip")
    return SampleNoise(seeds, x0.device, dtype=x0.dtype)
