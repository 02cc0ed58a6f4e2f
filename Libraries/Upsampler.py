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

from Libraries.CurvePlots import plot_metrics
from Libraries.Dataset import SpectrogramDataset
from Libraries.Diffusion import Denoiser, DiffusionConfig, NoiseSchedule, edited_x0
from Libraries.Editing import Editor
from Libraries.LowResolution import LowResolution, UpsamplerConfig, ViewConfig
from Libraries.Objective import DiffusionObjective, Network
from Libraries.PhaseRuns import open_run_spectrogram
from Libraries.Plots import plot_tensors, save_figure
from Libraries.RunLog import read_metrics
from Libraries.Runs import clip_loaders, open_run, read_conf, results_of
from Libraries.Samplers import SamplerConfig
from Libraries.Settings import Settings, from_dict
from Libraries.Spectrogram import Spectrogram
from Libraries.SpectrogramConfig import SpectrogramConfig
from Libraries.TrainedNetwork import for_sampling, in_fast_precision, load_average, make_diffusion_network
from Libraries.Training import fit, resolve_precision
from Libraries.U_Net import UNetConfig
from Libraries.Utils import SampleNoise, derive_seed, pick_device, spread_indices
from Libraries.Windows import over_windows

# these share no draws
SAMPLE_STREAM, TOLD_STREAM, STRENGTH_STREAM, KIND_STREAM, ROWS_STREAM, LEVEL_STREAM = range(11, 17)
QUIETER = 24.0  # dB at most that a training clip is put below the loudest of its piece
TOLD_CHANNELS = 1  # beside those of the spectrogram: how far it can be relied on, and where
OVERLAP_SHARE = 4  # windows of music longer than a clip share a quarter unless told otherwise
PREVIEW_CLIPS = 4


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

    @classmethod
    def load(cls, run_dir: Path, device: torch.device | None = None) -> "Upsampler":
        """Load the newest EMA weights of a run, into the network of the run's own conf.json.

        Raises:
            CheckpointError: the folder is no run, has no weights, or they do not fit its settings.
        """
        conf, device = read_conf(run_dir), device or pick_device()
        settings = conf["settings"]
        spectrogram = from_dict(SpectrogramConfig, settings["spectrogram"])
        diffusion = from_dict(DiffusionConfig, settings["diffusion"])
        network = _make_network(from_dict(UNetConfig, settings["upsampler_unet"]), diffusion, spectrogram)
        load_average(network, run_dir)
        upsampler = cls(
            network,
            NoiseSchedule(diffusion),
            LowResolution(from_dict(ViewConfig, settings["view"]), spectrogram),
            from_dict(UpsamplerConfig, settings["upsampler"]),
            from_dict(SamplerConfig, settings["upsampler_sampler"]),
            open_run_spectrogram(run_dir, device=device),
            device,
        )
        upsampler.run_dir = Path(run_dir)
        return upsampler

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
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength} must be within [0, 1]")
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


class UpsamplerObjective(DiffusionObjective):
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


def train_upsampler(settings: Settings, run_dir: Path | None = None) -> Path:
    """Train an upsampler on the dataset of these settings; return its run folder.

    Args:
        settings: of the whole; they are written to the run's conf.json.
        run_dir: an interrupted run to go on with; None starts a new one.

    Raises:
        ValueError: the spectrogram has no such view, the dataset was built with another spectrogram, or the
            run with other settings.
        CheckpointError: `run_dir` is no run.
    """
    low, train = LowResolution(settings.view, settings.spectrogram), settings.upsampler_train
    network = build_upsampler(settings)
    parts = ("spectrogram", "diffusion", "view", "upsampler", "upsampler_unet", "upsampler_train")
    run_dir = open_run(settings, settings.upsampler_dir, run_dir, parts)
    schedule = NoiseSchedule(settings.diffusion)
    fit(
        network,
        UpsamplerObjective(schedule, train.seed, low, settings.upsampler),
        functools.partial(clip_loaders, settings),
        train,
        run_dir,
        preview=functools.partial(save_upsampler_preview, settings, run_dir),
    )
    return run_dir


def build_upsampler(settings: Settings) -> nn.Module:
    """Return a freshly initialised network of these settings: the same weights for the same seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.upsampler_train.seed)
        return _make_network(settings.upsampler_unet, settings.diffusion, settings.spectrogram)


def save_upsampler_preview(settings: Settings, run_dir: Path, step: int, network: nn.Module) -> None:
    """Write the same validation clips, interpolated and upsampled, and the loss curves to the results."""
    dataset = SpectrogramDataset(settings.dataset_dir, "validation")
    x0 = dataset.__getitems__(spread_indices(len(dataset), PREVIEW_CLIPS))[0]
    upsampler = Upsampler(
        network, NoiseSchedule(settings.diffusion), LowResolution(settings.view, settings.spectrogram),
        settings.upsampler, settings.upsampler_sampler, Spectrogram(settings.spectrogram),
        next(network.parameters()).device,
    )  # fmt: skip
    view = upsampler.low.view(x0)
    rows = {
        "small": upsampler.low.draw(view),
        "interpolated": upsampler.low.spread(view),
        "upsampled": upsampler.upsample(view, range(len(x0)), strength=0.0),
        "real": x0,
    }
    titles = [f"{name} {i}" for name in rows for i in range(len(x0))]
    title = f"{run_dir.name}: upsampled after {step} steps"
    results = results_of(settings, run_dir)
    figure = plot_tensors(
        torch.cat(list(rows.values())), titles, settings.spectrogram, title, columns=len(x0)
    )
    save_figure(figure, results / f"upsampled-{step:08d}.png")
    save_figure(plot_metrics(read_metrics(run_dir / "metrics.csv"), run_dir.name), results / "loss.png")


def _uniform(seeds: list[int], stream: int, device: torch.device) -> Tensor:
    """Return a draw from [0, 1) for each seed, (B,)."""
    return torch.tensor([derive_seed(seed, stream) / 2**32 for seed in seeds], device=device)


def _make_network(
    config: UNetConfig, diffusion: DiffusionConfig, spectrogram: SpectrogramConfig
) -> nn.Module:
    told_channels = spectrogram.shape[0] + TOLD_CHANNELS
    return make_diffusion_network(config, diffusion, spectrogram.shape, told_channels)
