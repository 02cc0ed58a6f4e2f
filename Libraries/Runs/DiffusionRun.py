"""A trained diffusion run that generates music: the network with its EMA weights, the schedule, the codec.

Clips go in and come out as spectrograms x0 (N, C, F, T) in every space.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from Libraries.Diffusion import Denoiser, NoiseSchedule, Parameterisation
from Libraries.Runs.Codec import Codec
from Libraries.Runs.Leakage import require_unheard
from Libraries.Runs.Run import Run, find_run
from Libraries.Runs.Settings import Settings
from Libraries.Runs.Spaces import open_codec
from Libraries.Runs.Upsampling import find_upsampler
from Libraries.Sampling.Editing import Editor, interpolate
from Libraries.Sampling.Guidance import (
    GuidanceConfig,
    autoguidance,
    classifier_free_guidance,
    with_labels,
)
from Libraries.Sampling.Loop import Callback, SamplerConfig, inference_timesteps, sample
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Checkpoint import WEIGHTS, CheckpointError, find_checkpoints, named
from Libraries.Training.DiffusionNetwork import for_sampling, in_fast_precision, make_diffusion_network
from Libraries.Utils import pick_device, resolve_precision


class DiffusionRun:
    """A network with its schedule, codec and spectrogram, to sample and edit clips with.

    Attributes:
        network: `(x_t, t, cond) -> output`, in evaluation mode on `device`.
        codec: between spectrograms and the network's tensors.
        guide: the guide model for autoguidance, the same network trained less; None until `load_guide`.
        run: the run that was loaded; None for a network that is still in training.
        step: optimiser step of the weights; None: the last ones.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        spectrogram: Spectrogram,
        codec: Codec,
        device: torch.device,
    ):
        self.network = for_sampling(network, device)
        self.schedule, self.spectrogram, self.device = schedule.to(device), spectrogram, device
        self.codec, self.precision = codec, resolve_precision("auto")
        self.guide: nn.Module | None = None
        self.run: Run | None = None
        self.step: int | None = None

    @classmethod
    def load(
        cls,
        run_dir: Path,
        device: torch.device | None = None,
        *,
        step: int | None = None,
        ema_length: float | None = None,
        inverse: SpectrogramConfig | None = None,
    ) -> "DiffusionRun":
        """Load the EMA weights of a run into the network that its conf.json describes.

        Args:
            run_dir: `Models/diffusion/<run>`.
            device: None picks the best one.
            step, ema_length: which weights, as in `Run.weights`.
            inverse: settings whose phase, band_inverse and griffin_lim_iterations replace the run's own;
                None keeps those.

        Raises:
            CheckpointError: the folder is not a run, has no such weights, they do not fit its settings, the
                run's autoencoder is missing or has changed, or its learned phase is missing or does not fit.
        """
        run, device = Run(run_dir), device or pick_device()
        settings = run.settings
        codec = open_codec(settings, device, run.conf["requires"])
        network = make_diffusion_network(settings.network, settings.diffusion, codec.shape)
        run.load_into(network, step, ema_length)
        spectrogram = run.spectrogram(inverse, device)
        loaded = cls(network, NoiseSchedule(settings.diffusion), spectrogram, codec, device)
        loaded.run, loaded.step = run, step
        return loaded

    def load_guide(self, fraction: float) -> int:
        """Load the weights saved nearest to this fraction of the network's own training as the guide model.

        Returns:
            The optimiser step of these weights.

        Raises:
            CheckpointError: the run has no weights before those of the network.
        """
        step = guide_step(self.run.folder, fraction, self.step)
        self.guide = type(self).load(self.run.folder, self.device, step=step).network
        return step

    @property
    def runs(self) -> list[Run]:
        """All trained runs that a generated clip passes through: network, codec and learned phase."""
        others = self.codec.run_dir, getattr(self.spectrogram.phase_model, "run_dir", None)
        return [self.run, *map(Run, filter(None, others))] if self.run else []

    def require_unheard(self, dataset_dir: Path) -> None:
        """Raise a LeakageError if one of `runs` was trained on a test piece of the dataset."""
        require_unheard(dataset_dir, self.runs)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, F, T) of what the network generates: a full or small spectrogram, or a latent."""
        return self.codec.shape

    def encode(self, x0: Tensor) -> Tensor:
        """Return x0 (N, C, F, T) encoded by the codec, on `device`."""
        return self.codec.encode(x0.to(self.device))

    def decode(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Return spectrograms x0 (N, C, F, T) decoded by the codec, on the CPU.

        An upsampler draws noise from `seeds`, one per clip; None: seed 0 for each.
        """
        return self.codec.decode(x, seeds).cpu()

    def labels_in_turn(self, count: int) -> Tensor | None:
        """Return int64 labels (count,) that cycle through all classes; None for a network without classes."""
        num_classes = self.network.config.num_classes
        return torch.arange(count) % num_classes if num_classes else None

    def label_of(self, name: str) -> Tensor:
        """Return the label of a class by its name, int64 (1,); a ValueError names the classes there are."""
        classes = self.run.conf["classes"] if self.network.config.num_classes else []
        if name not in classes:
            known = f"it knows {', '.join(classes)}" if classes else "it was trained without labels"
            raise ValueError(f"{self.run.name} knows no label {name!r}: {known}")
        return torch.tensor([classes.index(name)])

    @property
    def needs_labels(self) -> bool:
        """Whether every clip needs a label, because none was hidden in training (`label_dropout`=0)."""
        return bool(self.network.config.num_classes) and not self.schedule.config.label_dropout

    def required(self, labels: Tensor) -> Tensor | None:
        """Return the labels of clips to edit or to score if the network `needs_labels`, else None."""
        return labels if self.needs_labels else None

    def denoiser(
        self,
        labels: Tensor | None = None,
        guidance: GuidanceConfig | None = None,
        *,
        with_variance: bool = False,
    ) -> Denoiser:
        """Return the denoiser `(x_t, t) -> x0` for the samplers, in this machine's fast precision.

        Args:
            labels: int64 (B,), one per sample, or (1,) for all; None: no label, unless it `needs_labels`.
            guidance: the method and scale; None: no guidance.
            with_variance: as in `Parameterisation.denoiser`.

        Raises:
            ValueError: the labels do not fit or are missing, or classifier-free guidance cannot do without.
            CheckpointError: autoguidance of a run with only one set of weights.
        """
        num_classes = self.network.config.num_classes
        if labels is None and self.needs_labels:
            raise ValueError(
                "this network was trained with the label of every clip (label_dropout=0), so it cannot do "
                "without: give labels"
            )
        denoiser = self._denoiser_of(self.network, with_variance)
        if guidance is None or guidance.method == "none" or guidance.scale == 1:
            return self._with_labels(denoiser, labels)
        if guidance.method == "classifier_free":
            if labels is None:
                raise ValueError("guidance by classifier_free needs labels; give them, or use autoguidance")
            if self.needs_labels:
                raise ValueError(
                    "guidance by classifier_free needs a network whose labels were sometimes hidden in "
                    "training (label_dropout above 0); use autoguidance"
                )
            return classifier_free_guidance(
                denoiser, labels, num_classes, guidance.scale, rescale=guidance.rescale
            )
        if self.guide is None:
            self.load_guide(guidance.guide_at)
        guide = self._with_labels(self._denoiser_of(self.guide, with_variance), labels)
        denoiser = self._with_labels(denoiser, labels)
        return autoguidance(denoiser, guide, guidance.scale, rescale=guidance.rescale)

    def generate(
        self,
        seeds: Iterable[int],
        config: SamplerConfig,
        batch_size: int,
        *,
        labels: Tensor | None = None,
        guidance: GuidanceConfig | None = None,
        callback: Callback | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Sample one clip per seed; return spectrograms x0 (N, C, F, T) on the CPU.

        The batch size changes the speed, not the samples. The callback sees every step of every batch.
        `labels` is int64 (N,), one per seed; it and `guidance` are as in `denoiser`. Without labels a network
        that `needs_labels` gets its classes in turn.
        """
        seeds, config, batches = list(seeds), self._unbounded(config), []
        learned = config.variance == "learned"
        if labels is not None and len(labels) != len(seeds):
            raise ValueError(f"there are {len(labels)} labels for {len(seeds)} seeds: give one per seed")
        labels = self.labels_in_turn(len(seeds)) if labels is None and self.needs_labels else labels
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            own = None if labels is None else labels[part]
            denoiser = self.denoiser(own, guidance, with_variance=learned)
            batches.append(
                sample(
                    denoiser, self.schedule, config, seeds[part], self.shape,
                    batch_size=batch_size, device=self.device, callback=callback, progress=progress,
                )
            )  # fmt: skip
            batches[-1] = self.decode(batches[-1], seeds[part])
        return torch.cat(batches) if batches else torch.empty(0, *self.spectrogram.config.shape)

    def editor(
        self,
        config: SamplerConfig,
        resamplings: int,
        *,
        labels: Tensor | None = None,
        guidance: GuidanceConfig | None = None,
        callback: Callback | None = None,
    ) -> Editor:
        """Return an `Editor` of spectrograms with this network, or the codec's editor around one.

        The clips to edit have to be on `device`. The callback sees every step of every sampling.
        """
        config = self._unbounded(config)
        denoiser = self.denoiser(labels, guidance, with_variance=config.variance == "learned")
        return self.codec.editor(
            Editor(denoiser, self.schedule, config, resamplings, callback=callback, progress=True)
        )

    def interpolate(
        self,
        clips: Tensor,
        weights: Tensor,
        num_inference_steps: int,
        iterations: int,
        *,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return interpolations between two clips, x0 (K, C, F, T) on the CPU.

        Args:
            clips: x0 (2, C, F, T).
            weights: float (K,), of the second clip.
            num_inference_steps, iterations: DDIM steps each for inversion and sampling, and network calls
                per inversion step (`Editing.invert`).
            labels: int64 (1,), for both clips and all between, as in `denoiser`.
        """
        timesteps = inference_timesteps(self.schedule, num_inference_steps, "trailing")
        options = {"iterations": iterations, "progress": True}
        return self.decode(
            interpolate(
                self.denoiser(labels), self.schedule, self.encode(clips), weights, timesteps, **options
            )
        )

    def to_audio(self, x0: Tensor, *, any_length: bool = False) -> Tensor:
        """Decode x0 (N, C, F, T) at the training music's level; return (N, channels, L), about [-1, 1].

        With `any_length`, T may differ from the model's, as after `Editor.extend`.
        """
        return self.spectrogram.decode(x0.cpu(), any_length=any_length)

    def _unbounded(self, config: SamplerConfig) -> SamplerConfig:
        """Return the config without clamps in an unbounded space: the clamps are for spectrograms."""
        return config if self.codec.bounded else replace(config, clip_x0=None, dynamic_threshold=None)

    def _with_labels(self, denoiser: Denoiser, labels: Tensor | None) -> Denoiser:
        return denoiser if labels is None else with_labels(denoiser, labels, self.network.config.num_classes)

    def _denoiser_of(self, network: nn.Module, with_variance: bool) -> Denoiser:
        network = in_fast_precision(network, self.device, self.precision)
        return Parameterisation(self.schedule).denoiser(network, with_variance=with_variance)


def guide_step(run_dir: Path, fraction: float, own: int | None = None) -> int:
    """Return the step of a run's weights nearest to this fraction of those of step `own`; None: the last.

    Raises:
        CheckpointError: there are no weights before those.
    """
    found = [step for step, _ in find_checkpoints(run_dir, "ema")]
    own = found[-1] if own is None else own
    earlier = [step for step in found if step < own]
    if not earlier:
        raise CheckpointError(f"{run_dir} has no weights before step {own}: train with a smaller save_every")
    return min(earlier, key=lambda step: abs(step - fraction * own))


def find_diffusion(settings: Settings, holding: str = WEIGHTS) -> Path:
    """Return the newest diffusion run in the settings' space that has a file matching `holding`.

    Raises:
        FileNotFoundError: there is none; the message names the folder searched.
    """
    run = _newest(settings, holding)
    if run is None:
        raise FileNotFoundError(
            f"no run with {named(holding)} and space={settings.space!r} in "
            f"{settings.models_dir / 'diffusion'}: train a model first"
        )
    return run.folder


def has_cascade(settings: Settings) -> bool:
    """Return whether both models of a cascade exist, for settings in the space "small"."""
    return find_upsampler(settings) is not None and _newest(settings, WEIGHTS) is not None


def _newest(settings: Settings, holding: str) -> Run | None:
    parent = settings.models_dir / "diffusion"
    return find_run([parent], holding, fits=lambda run: run.conf["settings"]["space"] == settings.space)
