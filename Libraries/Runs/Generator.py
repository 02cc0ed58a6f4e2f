"""A trained run that makes music: the network of its EMA weights, its schedule, its spectrogram.

If its diffusion is in the latents of an autoencoder, or of small spectrograms that an upsampler goes on from,
those belong to it too: clips go in and come out as spectrograms x0 (N, C, F, T) either way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from Libraries.Diffusion import Denoiser, DiffusionConfig, NoiseSchedule, Parameterisation
from Libraries.Networks.Catalogue import NetworkConfig, network_config
from Libraries.Runs.Autoencoding import LatentCodec, load_codec
from Libraries.Runs.Cascade import CascadeEditor, ViewCodec, open_cascade
from Libraries.Runs.LatentEditing import LatentEditor
from Libraries.Runs.PhaseRuns import open_run_spectrogram
from Libraries.Runs.Run import load_average, read_conf
from Libraries.Runs.Settings import from_dict
from Libraries.Sampling.Editing import Editor, interpolate
from Libraries.Sampling.Guidance import GuidanceConfig, autoguidance, classifier_free_guidance, with_labels
from Libraries.Sampling.Loop import Callback, SamplerConfig, inference_timesteps, sample
from Libraries.Sound.LowResolution import LowResolution, LowResolutionConfig
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Checkpoint import CheckpointError, find_checkpoints
from Libraries.Training.DiffusionNetwork import for_sampling, in_fast_precision, make_diffusion_network
from Libraries.U_Net import UNetConfig
from Libraries.Utils import pick_device, resolve_precision


class Generator:
    """Network, schedule, spectrogram and typical gain, and what can be done with them.

    Attributes:
        network: `(x_t, t, cond) -> output`, in evaluation mode on `device`.
        codec: of the latents or of the cascade; None where the diffusion is on spectrograms.
        weaker: the same of less trained weights, for autoguidance; None until `load_weaker`.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        spectrogram: Spectrogram,
        device: torch.device,
        codec: LatentCodec | ViewCodec | None = None,
    ):
        self.network = for_sampling(network, device)
        self.schedule, self.spectrogram, self.device = schedule.to(device), spectrogram, device
        self.codec, self.precision = codec, resolve_precision("auto")
        self.weaker: nn.Module | None = None
        self.run_dir: Path | None = None

    @classmethod
    def load(
        cls,
        run_dir: Path,
        device: torch.device | None = None,
        *,
        step: int | None = None,
        ema_length: float | None = None,
        inverse: SpectrogramConfig | None = None,
    ) -> "Generator":
        """Load the EMA weights of a run, into the network of the run's own conf.json.

        Args:
            run_dir: `Models/diffusion/<run>`.
            device: None picks the best one.
            step: of the optimiser; None is the last one saved.
            ema_length: relative length of the average, put together after the training from its snapshots
                (`PostHocEMA.reconstruct`); None takes the average that training kept.
            inverse: settings by whose phase, band_inverse and griffin_lim_iterations it shall decode; None:
                the run's own.

        Raises:
            CheckpointError: the folder is no run, has no such weights, they do not fit its settings, the
                autoencoder it belongs to is missing or another one now, or so is its learned phase.
        """
        conf, device = read_conf(run_dir), device or pick_device()
        settings = conf["settings"]
        spectrogram_config = from_dict(SpectrogramConfig, settings["spectrogram"])
        diffusion = from_dict(DiffusionConfig, settings["diffusion"])
        models, vae = Path(run_dir).parent.parent, conf["vae"]
        if settings.get("cascade"):  # runs from before there was one have no such setting
            low = LowResolution(from_dict(LowResolutionConfig, settings["view"]), spectrogram_config)
            codec = open_cascade(models / "upsampler", low, device)
        else:
            codec = load_codec(models / "vae", vae, device) if vae else None
        config = _network_of(settings, vae is not None)
        network = make_diffusion_network(config, diffusion, (codec or spectrogram_config).shape)
        load_average(network, run_dir, step, ema_length)
        spectrogram = open_run_spectrogram(run_dir, inverse, device)
        generator = cls(network, NoiseSchedule(diffusion), spectrogram, device, codec)
        generator.run_dir = Path(run_dir)
        return generator

    def load_weaker(self, share: float) -> int:
        """Load as the weaker network the weights that were saved nearest to `share` of the training.

        Returns:
            Their optimiser step.

        Raises:
            CheckpointError: the run has no weights from before its last.
        """
        found = find_checkpoints(self.run_dir, "ema")
        last = found[-1][0]
        earlier = [step for step, _ in found if step < last]
        if not earlier:
            raise CheckpointError(
                f"{self.run_dir} has no weights from before its last ones; train with a smaller save_every"
            )
        step = min(earlier, key=lambda step: abs(step - share * last))
        self.weaker = Generator.load(self.run_dir, self.device, step=step).network
        return step

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, F, T) of what the network makes: a spectrogram, small or not, or a latent."""
        return self.spectrogram.config.shape if self.codec is None else self.codec.shape

    def encode(self, x0: Tensor) -> Tensor:
        """Return what the diffusion is about, on `device`: x0 (N, C, F, T), its view or its latents."""
        x0 = x0.to(self.device)
        return x0 if self.codec is None else self.codec.encode(x0)

    def decode(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Return spectrograms x0 (N, C, F, T) of what the diffusion made, on the CPU.

        An upsampler draws, by `seeds`, one a clip; None is seed 0 for each.
        """
        if isinstance(self.codec, ViewCodec):
            return self.codec.decode(x, seeds).cpu()
        return (x if self.codec is None else self.codec.decode(x)).cpu()

    def labels_in_turn(self, count: int) -> Tensor | None:
        """Return int64 labels (count,) that go round all classes; None for a network without classes."""
        num_classes = self.network.config.num_classes
        return torch.arange(count) % num_classes if num_classes else None

    def denoiser(
        self,
        labels: Tensor | None = None,
        guidance: GuidanceConfig | None = None,
        *,
        with_variance: bool = False,
    ) -> Denoiser:
        """Return the denoiser `(x_t, t) -> x0` for the samplers, in this machine's fast precision.

        Args:
            labels: int64 (B,), one per sample, or (1,) for all; None: no label.
            guidance: how to guide it; None: not at all.
            with_variance: as in `Parameterisation.denoiser`.

        Raises:
            ValueError: labels that do not fit, or guidance by labels without any.
            CheckpointError: autoguidance in a run that has one set of weights.
        """
        num_classes = self.network.config.num_classes
        denoiser = self._denoiser_of(self.network, with_variance)
        if guidance is None or guidance.method == "none" or guidance.scale == 1:
            return self._with_labels(denoiser, labels)
        if guidance.method == "classifier_free":
            if labels is None:
                raise ValueError("guidance by classifier_free needs labels; give them, or use autoguidance")
            return classifier_free_guidance(
                denoiser, labels, num_classes, guidance.scale, rescale=guidance.rescale
            )
        if self.weaker is None:
            self.load_weaker(guidance.guide_at)
        guide = self._with_labels(self._denoiser_of(self.weaker, with_variance), labels)
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
        """Sample one clip a seed; returns spectrograms x0 (N, C, F, T) on the CPU.

        The batch size changes the speed, not the samples. The callback sees every step of every batch.
        `labels` is int64 (N,), one a seed; it and `guidance` are as in `denoiser`.
        """
        seeds, config, batches = list(seeds), self._unbounded(config), []
        learned = config.variance == "learned"
        if labels is not None and len(labels) != len(seeds):
            raise ValueError(f"there are {len(labels)} labels for {len(seeds)} seeds: give one a seed")
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
    ) -> Editor | LatentEditor:
        """Return an `Editor` with this network, or the same for latents or a cascade.

        Its clips have to be on `device`.
        """
        config = self._unbounded(config)
        denoiser = self.denoiser(labels, guidance, with_variance=config.variance == "learned")
        editor = Editor(denoiser, self.schedule, config, resamplings, progress=True)
        if isinstance(self.codec, ViewCodec):
            return CascadeEditor(editor, self.codec)
        return editor if self.codec is None else LatentEditor(editor, self.codec)

    def interpolate(
        self, clips: Tensor, weights: Tensor, num_inference_steps: int, iterations: int
    ) -> Tensor:
        """Return clips on the way from one to another, x0 (K, C, F, T) on the CPU.

        Args:
            clips: x0 (2, C, F, T).
            weights: float (K,), of the second clip.
            num_inference_steps, iterations: steps of DDIM there and back, and calls of the network for each
                step there (`Editing.invert`).
        """
        timesteps = inference_timesteps(self.schedule, num_inference_steps, "trailing")
        options = {"iterations": iterations, "progress": True}
        return self.decode(
            interpolate(self.denoiser(), self.schedule, self.encode(clips), weights, timesteps, **options)
        )

    def to_audio(self, x0: Tensor, *, any_length: bool = False) -> Tensor:
        """Decode x0 (N, C, F, T) at the training music's typical level; returns (N, 1, L), about [-1, 1].

        With `any_length` T may be another than the model's, as `Editor.extend` makes it.
        """
        return self.spectrogram.decode(x0.cpu(), any_length=any_length)

    def _unbounded(self, config: SamplerConfig) -> SamplerConfig:
        """The settings' clamp is that of spectrograms; latents have no bounds."""
        if isinstance(self.codec, LatentCodec):
            return replace(config, clip_x0=None, dynamic_threshold=None)
        return config

    def _with_labels(self, denoiser: Denoiser, labels: Tensor | None) -> Denoiser:
        return denoiser if labels is None else with_labels(denoiser, labels, self.network.config.num_classes)

    def _denoiser_of(self, network: nn.Module, with_variance: bool) -> Denoiser:
        network = in_fast_precision(network, self.device, self.precision)
        return Parameterisation(self.schedule).denoiser(network, with_variance=with_variance)


def _network_of(settings: dict, latent: bool) -> NetworkConfig:
    """Return what the network of a run is made of, from the settings in its conf.json."""
    name = "view_unet" if settings.get("cascade") else "latent_unet" if latent else "unet"
    config = from_dict(UNetConfig, settings[name])
    return (
        network_config(settings["network"], config, settings["network_width"]) if name == "unet" else config
    )
