"""A conditional diffusion that makes the full spectrogram of a small one: its training, and its use.

The second network of a cascade (Ho et al. 2022, "Cascaded Diffusion Models"; Saharia et al. 2021, "SR3"): a
U-Net that sees, beside x_t, the small spectrogram spread to the full size. What diffuses is the residual: x0
less the best linear guess at it, in units of that guess's expected error (the idea of Whang et al. 2022,
"Deblurring via stochastic refinement", with a guess in closed form). It has about unit variance however much
is known, so noise covers no more than what is to be found, and few steps suffice. Samplers and edits take the
network as any denoiser.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from Libraries.Diffusion import Denoiser, DiffusionConfig, NoiseSchedule, edited_x0
from Libraries.Sampling.Editing import Editor
from Libraries.Sampling.Samplers import SamplerConfig
from Libraries.Sampling.Windows import over_windows
from Libraries.Sound.LowResolution import LowResolution, UpsamplerConfig
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.DiffusionLoss import DiffusionLoss, Network
from Libraries.Training.DiffusionNetwork import for_sampling, in_fast_precision, make_diffusion_network
from Libraries.U_Net import UNetConfig
from Libraries.Utils import SampleNoise, derive_seed, require, resolve_precision

# these share no draws
SAMPLE_STREAM, TOLD_STREAM, STRENGTH_STREAM, KIND_STREAM, ROWS_STREAM, LEVEL_STREAM = range(11, 17)
QUIETER = 24.0  # dB at most that a training clip is put below the loudest of its piece
TOLD_CHANNELS = 1  # beside those of the spectrogram: how far it can be relied on, and where
OVERLAP_SHARE = 4  # windows of music longer than a clip share a quarter unless told otherwise


class Upsampler:
    """A trained run that makes full spectrograms x0 (N, C, F, T) of small ones (N, C, f, t), of any length.

    A result depends on its seed and its small spectrogram, not on the batch.

    Attributes:
        low: the view that it was trained on.
        config: its strength of noise and whether x0 is held to the view; may be set to others.
        sampler: as in the run's settings; may be set to another.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        low: LowResolution,
        config: UpsamplerConfig,
        sampler: SamplerConfig,
        spectrogram: Spectrogram,
        device: torch.device,
    ):
        self.network = for_sampling(network, device)
        self.schedule, self.low, self.config, self.sampler = schedule.to(device), low, config, sampler
        self.spectrogram, self.device = spectrogram, device
        self.precision = resolve_precision("auto")
        self.run_dir: Path | None = None

    def upsample(
        self,
        view: Tensor,
        seeds: Iterable[int],
        *,
        strength: float | None = None,
        kept: tuple[Tensor, Tensor] | None = None,
        overlap: int | None = None,
        circular: bool = False,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Tensor:
        """Make the full spectrograms of small ones.

        Args:
            view: (N, C, f, t'), t' of a clip or more.
            seeds: one a clip.
            strength: of the noise on the view, 0 to 1; None is that of the settings, for generated views. A
                real view is best left as it is: 0. With 1 the view says nothing, and is not held to either.
            kept: x0 (N, C, F, T') and bool like it, True where the result is to be x0.
            overlap, circular: of the windows of music longer than a clip, in full frames (`over_windows`).
            batch_size: clips at a time; it changes the speed, not the result.

        Returns:
            x0 (N, C, F, T') float32 on the device of `view`.

        Raises:
            ValueError: shapes, seeds, strength or overlap do not fit; the sentence says which.
        """
        seeds, strength = list(seeds), self.config.strength if strength is None else strength
        if len(seeds) != len(view):
            raise ValueError(
                f"there are {len(seeds)} seeds for {len(view)} small spectrograms: give one each"
            )
        require("[0, 1]", strength=strength)
        x0, known = (None, None) if kept is None else kept
        made = []
        for part in (slice(first, first + batch_size) for first in range(0, len(view), batch_size)):
            small, own = view[part].to(self.device), seeds[part]
            noise = SampleNoise([derive_seed(seed, TOLD_STREAM) for seed in own], self.device)
            told = self.low.told_of_view(small, torch.full((len(own),), strength), noise(small.shape[1:]))
            hold = self.low.limit
            if self.config.consistent and strength < 1:
                hold = functools.partial(self.low.hold, view=small)
            around = torch.zeros_like(told[:, :-TOLD_CHANNELS]) if x0 is None else x0[part].to(self.device)
            fixed = torch.zeros(1, dtype=torch.bool) if known is None else known[part]
            model, schedule = self.denoiser(told, overlap=overlap, circular=circular)
            made.append(self._made(model, schedule, told, hold, (around, fixed), own, progress))
        return torch.cat(made).to(view.device)

    def complete(
        self,
        x0: Tensor,
        rows: int,
        seeds: Iterable[int],
        *,
        overlap: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Make all above the lowest `rows` rows of spectrograms; these come back unchanged.

        Args:
            x0: (N, C, F, T'), T' of a clip or more; what it holds above has no effect.
            rows: at least `low.fewest_rows`; fewer were not trained.

        Returns:
            x0 (N, C, F, T') float32 on its device.

        Raises:
            ValueError: shapes or rows do not fit, or the run was trained with restored_share=0.
        """
        seeds, fewest = list(seeds), self.low.fewest_rows
        if not self.config.restored_share:
            raise ValueError("this upsampler was trained with restored_share=0 and knows its own view alone")
        if not fewest <= rows < x0.shape[2]:
            raise ValueError(
                f"rows={rows} must be {fewest} to {x0.shape[2] - 1}: fewer were not trained, and with all "
                "there is nothing to make"
            )
        clips, every = x0.to(self.device), torch.full((len(x0),), rows, device=self.device)
        told = self.low.told_of_rows(clips, every, torch.zeros(len(x0)), torch.zeros_like(clips))
        known = (torch.arange(x0.shape[2], device=self.device) < rows)[:, None]
        model, schedule = self.denoiser(told, overlap=overlap)
        hold = self.low.limit
        return self._made(model, schedule, told, hold, (clips, known), seeds, progress).to(x0.device)

    def denoiser(
        self, told: Tensor, *, overlap: int | None = None, circular: bool = False
    ) -> tuple[Denoiser, NoiseSchedule]:
        """Return `model(x_t, t)` of the residual and its schedule for what is told, (B, C + 1, F, T').

        T' is that of a clip or longer.

        Raises:
            ValueError: fewer frames than a clip has, or an overlap that does not fit.
        """
        window, n_frames = self.spectrogram.config.n_frames, told.shape[-1]
        if n_frames == window and not circular:
            return functools.partial(self._predict, told=told), self.schedule
        overlap = window // OVERLAP_SHARE if overlap is None else overlap
        return over_windows(
            self._predict, self.schedule, window, n_frames, overlap, circular=circular, condition=told
        )

    def _predict(self, x_t: Tensor, t: Tensor, told: Tensor) -> Tensor:
        network = in_fast_precision(self.network, self.device, self.precision)
        return network(torch.cat([x_t, told], dim=1), t, None)

    def _made(
        self,
        model: Denoiser,
        schedule: NoiseSchedule,
        told: Tensor,
        hold: Callable[[Tensor], Tensor],
        kept: tuple[Tensor, Tensor],
        seeds: list[int],
        progress: bool,
    ) -> Tensor:
        """Sample the residuals of a batch, its x0 passing through `hold`, around what is kept; return x0."""
        (x0, known), (guess, error) = kept, self.low.expected(told)
        model, schedule = edited_x0(model, schedule, lambda r: (hold(guess + error * r) - guess) / error)
        # the settings' clamp is that of spectrograms; residuals have no bounds
        sampler = replace(self.sampler, clip_x0=None, dynamic_threshold=None)
        editor = Editor(model, schedule, sampler, progress=progress)
        # not the seeds as they are: the first model has drawn from those
        own = [derive_seed(seed, SAMPLE_STREAM) for seed in seeds]
        made = guess + error * editor.inpaint((x0 - guess) / error, known, own)
        return torch.where(known.to(x0.device), x0, made)


class UpsamplerLoss(DiffusionLoss):
    """What `Training.fit` minimises for an upsampler: the diffusion loss of the residual of each clip.

    Strength of the noise on what it is told, and whether that is the view or the lower rows up to any one,
    depend on (seed, position in the stream) alone, as timestep and noise do.
    """

    def __init__(self, schedule: NoiseSchedule, seed: int, low: LowResolution, config: UpsamplerConfig):
        super().__init__(schedule, seed, num_classes=0)
        self.low, self.config = low, config

    def varied(self, x0: Tensor, seeds: list[int]) -> Tensor:
        """Return x0 (B, C, F, T), quieter where rows are told: most of a whole piece is below its loudest."""
        decibels = QUIETER * _uniform(seeds, LEVEL_STREAM, x0.device)
        return self.low.quieter(x0, torch.where(self._of_rows(seeds, x0.device), decibels, 0.0))

    def told(self, x0: Tensor, seeds: list[int]) -> Tensor:
        """Return what the network is told of x0 (B, C, F, T): (B, C + 1, F, T)."""
        low, (_, f, t) = self.low, self.low.shape
        # little noise more often: it is what is used
        strength = self.config.max_strength * _uniform(seeds, STRENGTH_STREAM, x0.device).square()
        share = _uniform(seeds, ROWS_STREAM, x0.device)
        rows = low.fewest_rows + (share * (x0.shape[2] - low.fewest_rows)).long()
        told_seeds = [derive_seed(seed, TOLD_STREAM) for seed in seeds]
        noise = SampleNoise(told_seeds, x0.device, draw_on=x0.device)(x0.shape[1:])
        of_view = low.told_of_view(low.view(x0), strength, noise[:, :, :f, :t])
        of_rows = low.told_of_rows(x0, rows, strength, noise)
        return torch.where(self._of_rows(seeds, x0.device).view(-1, 1, 1, 1), of_rows, of_view)

    def _of_rows(self, seeds: list[int], device: torch.device) -> Tensor:
        return _uniform(seeds, KIND_STREAM, device) < self.config.restored_share

    def _posed(self, model: nn.Module, x0: Tensor, seeds: list[int]) -> tuple[Network, Tensor]:
        x0 = self.varied(x0, seeds)
        told = self.told(x0, seeds)
        guess, error = self.low.expected(told)

        def network(x_t: Tensor, t: Tensor, cond: Tensor | None):
            return model(torch.cat([x_t, told], dim=1), t, cond)

        return network, (x0 - guess) / error


def _uniform(seeds: list[int], stream: int, device: torch.device) -> Tensor:
    """Return a draw from [0, 1) for each seed, (B,)."""
    return torch.tensor([derive_seed(seed, stream) / 2**32 for seed in seeds], device=device)


def make_upsampler_network(
    config: UNetConfig, diffusion: DiffusionConfig, spectrogram: SpectrogramConfig
) -> nn.Module:
    """Return a new network that sees the residual and what it is told of the small spectrogram."""
    told_channels = spectrogram.shape[0] + TOLD_CHANNELS
    return make_diffusion_network(config, diffusion, spectrogram.shape, told_channels)
