"""A conditional diffusion that makes the full spectrogram of a low-resolution one: network, loss and use.

The second network of a cascade (Ho et al. 2022, "Cascaded Diffusion Models"; Saharia et al. 2021, "SR3"): a
U-Net that sees, beside x_t, the low-resolution spectrogram interpolated to the full size. It diffuses the
residual: x0 less the best linear estimate of it, in units of the estimate's expected error (the idea of Whang
et al. 2022, "Deblurring via stochastic refinement", with an estimate in closed form). The residual has about
unit variance at every augmentation level, so the noise covers no more than what is to be found, and few steps
suffice. Samplers and edits take it as any denoiser.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from Libraries.Diffusion import Denoiser, DiffusionConfig, NoiseSchedule, Parameterisation, edited
from Libraries.Sampling.Editing import Editor
from Libraries.Sampling.Loop import Callback, SamplerConfig
from Libraries.Sampling.Windows import over_windows
from Libraries.Sound.LowResolution import ConditioningConfig, LowResolution
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.DiffusionLoss import DiffusionLoss, TrainedNetwork
from Libraries.Training.DiffusionNetwork import for_sampling, in_fast_precision, make_diffusion_network
from Libraries.U_Net import UNetConfig
from Libraries.Utils import SampleNoise, derive_seed, require, resolve_precision

# these share no draws
SAMPLE_STREAM, NOISE_STREAM, AUGMENTATION_STREAM, KIND_STREAM, ROWS_STREAM, LEVEL_STREAM = range(11, 17)
MAX_ATTENUATION = 24.0  # dB that a training clip is put at most below the loudest of its piece
RELIABILITY_CHANNELS = 1  # of the conditioning, beside those of the spectrogram
OVERLAP_FRACTION = 0.25  # of a clip, shared by neighbouring windows of longer music unless given


class Upsampler:
    """A trained run that makes full spectrograms x0 (N, C, F, T) of low-resolution ones y (N, C, f, t).

    The music may have any length. A result depends on its seed and its y, not on the batch.

    Attributes:
        low: the low resolution that it was trained on.
        config: its augmentation level and data consistency; may be set to others.
        sampler: as in the run's settings; may be set to another.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        low: LowResolution,
        config: ConditioningConfig,
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
        y: Tensor,
        seeds: Iterable[int],
        *,
        augmentation: float | None = None,
        kept: tuple[Tensor, Tensor] | None = None,
        overlap: int | None = None,
        circular: bool = False,
        batch_size: int = 16,
        progress: bool = False,
    ) -> Tensor:
        """Make the full spectrograms of low-resolution ones.

        Args:
            y: (N, C, f, t'), t' of a clip or more.
            seeds: one per clip.
            augmentation: level of the noise on y, 0 to 1; None is that of the settings, for generated y. For
                real y it is best 0. With 1 nothing of y is used, and there is no data consistency.
            kept: x0 (N, C, F, T') and mask, bool like it, True where the result is to be x0.
            overlap, circular: of the windows of music longer than a clip, in full frames (`over_windows`).
            batch_size: clips at a time; it changes the speed, not the result.

        Returns:
            x0 (N, C, F, T') float32 on the device of `y`.

        Raises:
            ValueError: shapes, seeds, augmentation or overlap do not fit; the sentence says which.
        """
        seeds = list(seeds)
        augmentation = self.config.augmentation if augmentation is None else augmentation
        if len(seeds) != len(y):
            raise ValueError(f"there are {len(seeds)} seeds for {len(y)} small spectrograms: give one each")
        require("[0, 1]", augmentation=augmentation)
        results = []
        for part in (slice(first, first + batch_size) for first in range(0, len(y), batch_size)):
            own, own_seeds = y[part].to(self.device), seeds[part]
            noise = SampleNoise([derive_seed(seed, NOISE_STREAM) for seed in own_seeds], self.device)
            levels = torch.full((len(own),), augmentation)
            conditioning = self.low.conditioning_from_low_resolution(own, levels, noise(own.shape[1:]))
            constrain = self.low.limit
            if self.config.data_consistency and augmentation < 1:
                constrain = functools.partial(self.low.consistent, y=own)
            around = None if kept is None else (kept[0][part].to(self.device), kept[1][part])
            denoiser = self.denoiser(conditioning, overlap=overlap, circular=circular)
            results.append(self._sample(denoiser, conditioning, constrain, around, own_seeds, progress))
        return torch.cat(results).to(y.device)

    def complete(
        self,
        x0: Tensor,
        rows: int,
        seeds: Iterable[int],
        *,
        overlap: int | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Inpaint all above the lowest `rows` rows of spectrograms; these come back unchanged.

        Args:
            x0: (N, C, F, T'), T' of a clip or more; its values above have no effect.
            rows: at least `low.fewest_rows`; fewer were not trained.
            callback: sees every step.

        Returns:
            x0 (N, C, F, T') float32 on its device.

        Raises:
            ValueError: shapes or rows do not fit, or the run was trained with restored_fraction=0.
        """
        seeds, fewest = list(seeds), self.low.fewest_rows
        if not self.config.restored_fraction:
            raise ValueError(
                "this upsampler was trained with restored_fraction=0: it goes on from its own low resolution "
                "alone"
            )
        if not fewest <= rows < x0.shape[2]:
            raise ValueError(
                f"rows={rows} must be {fewest} to {x0.shape[2] - 1}: fewer were not trained, and with all "
                "there is nothing to make"
            )
        clips, every = x0.to(self.device), torch.full((len(x0),), rows, device=self.device)
        no_noise = torch.zeros(len(x0)), torch.zeros_like(clips)
        conditioning = self.low.conditioning_from_rows(clips, every, *no_noise)
        mask = (torch.arange(x0.shape[2], device=self.device) < rows)[:, None]
        denoiser = self.denoiser(conditioning, overlap=overlap)
        return self._sample(
            denoiser, conditioning, self.low.limit, (clips, mask), seeds, progress, callback
        ).to(x0.device)  # fmt: skip

    def denoiser(
        self, conditioning: Tensor, *, overlap: int | None = None, circular: bool = False
    ) -> Denoiser:
        """Return the denoiser of the residual for a conditioning (B, C + 1, F, T'), T' of a clip or longer.

        Raises:
            ValueError: fewer frames than a clip has, or an overlap that does not fit.
        """
        network = in_fast_precision(self.network, self.device, self.precision)
        learned = self.sampler.variance == "learned"
        denoiser = Parameterisation(self.schedule).denoiser(_beside(network), with_variance=learned)
        window, n_frames = self.spectrogram.config.n_frames, conditioning.shape[-1]
        if n_frames == window and not circular:
            return lambda x_t, t: denoiser(x_t, t, conditioning)
        overlap = int(window * OVERLAP_FRACTION) if overlap is None else overlap
        return over_windows(
            denoiser, window, n_frames, overlap, circular=circular, conditioning=conditioning
        )  # fmt: skip

    def _sample(
        self,
        denoiser: Denoiser,
        conditioning: Tensor,
        constrain: Callable[[Tensor], Tensor],
        kept: tuple[Tensor, Tensor] | None,
        seeds: list[int],
        progress: bool,
        callback: Callback | None = None,
    ) -> Tensor:
        """Return x0 of a batch: its residual sampled, x0 constrained at every step, around what is kept."""
        estimate, error = self.low.estimate(conditioning)
        nothing = torch.zeros_like(estimate), torch.zeros(1, dtype=torch.bool)
        x0, mask = nothing if kept is None else kept
        denoiser = edited(denoiser, lambda r: (constrain(estimate + error * r) - estimate) / error)
        # the settings' clamp is that of spectrograms; residuals have no bounds
        sampler = replace(self.sampler, clip_x0=None, dynamic_threshold=None)
        editor = Editor(denoiser, self.schedule, sampler, callback=callback, progress=progress)
        # not the seeds as they are: the first model has drawn from those
        own = [derive_seed(seed, SAMPLE_STREAM) for seed in seeds]
        result = estimate + error * editor.inpaint((x0 - estimate) / error, mask, own)
        return torch.where(mask.to(x0.device), x0, result)


class UpsamplerLoss(DiffusionLoss):
    """What `Training.fit` minimises for an upsampler: the diffusion loss of the residual of each clip.

    The augmentation level, and whether the conditioning is the low-resolution spectrogram or the lower rows
    up to any one, depend on (seed, position in the stream) alone, as timestep and noise do.
    """

    def __init__(self, schedule: NoiseSchedule, seed: int, low: LowResolution, config: ConditioningConfig):
        super().__init__(schedule, seed, num_classes=0)
        self.low, self.config = low, config

    def attenuated(self, x0: Tensor, seeds: list[int]) -> Tensor:
        """Return x0 (B, C, F, T), quieter where conditioned on rows: most of a piece is below its peak."""
        decibels = MAX_ATTENUATION * _uniform(seeds, LEVEL_STREAM, x0.device)
        return self.low.attenuate(x0, torch.where(self._from_rows(seeds, x0.device), decibels, 0.0))

    def conditioning(self, x0: Tensor, seeds: list[int]) -> Tensor:
        """Return the conditioning (B, C + 1, F, T) of x0 (B, C, F, T)."""
        low, (_, f, t) = self.low, self.low.shape
        # low levels more often: they are what is used
        level = self.config.max_augmentation * _uniform(seeds, AUGMENTATION_STREAM, x0.device).square()
        fraction = _uniform(seeds, ROWS_STREAM, x0.device)
        rows = low.fewest_rows + (fraction * (x0.shape[2] - low.fewest_rows)).long()
        noise_seeds = [derive_seed(seed, NOISE_STREAM) for seed in seeds]
        noise = SampleNoise(noise_seeds, x0.device, draw_on=x0.device)(x0.shape[1:])
        y = low.conditioning_from_low_resolution(low.downsample(x0), level, noise[:, :, :f, :t])
        lower_rows = low.conditioning_from_rows(x0, rows, level, noise)
        return torch.where(self._from_rows(seeds, x0.device).view(-1, 1, 1, 1), lower_rows, y)

    def _from_rows(self, seeds: list[int], device: torch.device) -> Tensor:
        return _uniform(seeds, KIND_STREAM, device) < self.config.restored_fraction

    def _network_and_data(
        self, model: nn.Module, x0: Tensor, seeds: list[int]
    ) -> tuple[TrainedNetwork, Tensor]:
        x0 = self.attenuated(x0, seeds)
        conditioning = self.conditioning(x0, seeds)
        estimate, error = self.low.estimate(conditioning)
        beside = _beside(model)
        return lambda x_t, t, cond: beside(x_t, t, conditioning), (x0 - estimate) / error


def _beside(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `network(x, t)` as a network `(x, t, conditioning)` that sees both side by side."""
    return lambda x, t, conditioning: network(torch.cat([x, conditioning], dim=1), t)


def _uniform(seeds: list[int], stream: int, device: torch.device) -> Tensor:
    """Return a draw from [0, 1) for each seed, (B,)."""
    return torch.tensor([derive_seed(seed, stream) / 2**32 for seed in seeds], device=device)


def make_upsampler_network(
    config: UNetConfig, diffusion: DiffusionConfig, spectrogram: SpectrogramConfig
) -> nn.Module:
    """Return a new network that sees the residual and its conditioning."""
    channels = spectrogram.shape[0] + RELIABILITY_CHANNELS
    return make_diffusion_network(config, diffusion, spectrogram.shape, channels)
