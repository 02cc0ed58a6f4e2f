"""The tree of all settings: one dataclass, its folders, and its way to and from a run's conf.json."""

import dataclasses
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

from Libraries.Dataset.Manifest import DatasetConfig
from Libraries.DemoMusic.Corpus import DemoMusicConfig
from Libraries.Diffusion import DiffusionConfig
from Libraries.Networks.Catalogue import NetworkConfig, network_config
from Libraries.Phase import PhaseConfig
from Libraries.Sampling.Editing import EditConfig
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Loop import SamplerConfig
from Libraries.Sound.LowResolution import ConditioningConfig, LowResolution, LowResolutionConfig
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Studies.ImagesConfig import ImagesConfig
from Libraries.Training.DiffusionNetwork import require_multiple
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Training.VAELoss import VAELossConfig
from Libraries.U_Net import UNetConfig
from Libraries.VAE import VAEConfig


@dataclass(frozen=True)
class ComparisonConfig:
    """What `Eval Diffusion` compares, on the same seeds; the values live in `Conf.py`."""

    clips: int  # of every variant
    samplers: tuple[str, ...]
    steps: tuple[int, ...]  # of every sampler
    guidance_scales: tuple[float, ...]
    ema_lengths: tuple[float, ...]  # relative to the training
    upsampler_steps: tuple[int, ...]


@dataclass(frozen=True)
class ExperimentsConfig:
    """How the experiments of the journal run; the values live in `Conf.py`."""

    seeds: tuple[int, ...]  # trainings of every variant
    clips: int  # that every training is measured by
    names: tuple[str, ...]  # which run in the notebook's last cell; (): all


@dataclass(frozen=True)
class Settings:
    """All settings of one preset; `Conf.py` holds the values.

    Raises:
        ValueError: two parts do not fit together.
    """

    preset: str
    root: Path  # Data, Models and Results hang below it
    music_dir: Path | None  # the user's own music; None: Data/music if it is there, else the demo music
    log_level: str  # DEBUG | LIGHT_DEBUG | INFO | WARNING
    demo_music: DemoMusicConfig
    spectrogram: SpectrogramConfig
    dataset: DatasetConfig
    network: str  # unet (the settings below) | a name of Networks.JOURNAL
    network_width: float  # factor on all widths of that network
    unet: UNetConfig
    diffusion: DiffusionConfig
    train: TrainConfig
    sampler: SamplerConfig
    guidance: GuidanceConfig
    edit: EditConfig
    comparison: ComparisonConfig
    experiments: ExperimentsConfig
    vae_run: str | None  # run of the autoencoder in whose latents diffusion trains; None: on spectrograms
    latent_unet: UNetConfig  # the network of a diffusion in latents
    latent_train: TrainConfig  # its training; a step costs less there
    vae: VAEConfig
    vae_loss: VAELossConfig
    vae_train: TrainConfig
    cascade: bool  # diffusion makes the small spectrogram of `view`, and an upsampler the full one
    view: LowResolutionConfig  # what the upsampler is trained to go on from
    view_unet: UNetConfig  # the network of a diffusion of small spectrograms
    view_train: TrainConfig
    upsampler: ConditioningConfig
    upsampler_unet: UNetConfig
    upsampler_train: TrainConfig
    upsampler_sampler: SamplerConfig  # few steps: the small spectrogram says most
    phase_run: str  # "latest" or a name in Models/phase: the network of phase="learned"
    phase_net: PhaseConfig
    phase_train: TrainConfig
    num_validation_clips: int  # clips of the validation split that are scored during training
    num_samples: int  # clips that Eval makes for its figures
    sample_batch_size: int  # clips sampled at a time
    images: ImagesConfig  # the comparison of networks on CIFAR-10, apart from everything above

    def __post_init__(self):
        network = network_config(self.network, self.unet, self.network_width)
        require_multiple("a spectrogram", self.spectrogram.shape, network)
        if self.vae_run is not None and (self.network, self.network_width) != ("unet", 1):
            raise ValueError(
                f"network={self.network!r}, network_width={self.network_width:g} are for spectrograms, and "
                f"diffusion with vae_run={self.vae_run!r} is in latents, by latent_unet; set vae_run=None"
            )
        self._check_cascade()
        if self.sampler.variance == "learned" and not self.diffusion.learned_variance:
            raise ValueError("the sampler's variance='learned' needs the diffusion's learned_variance=True")
        if self.guidance.method == "classifier_free" and not (
            self.network_config.num_classes and self.diffusion.label_dropout
        ):
            raise ValueError(
                "guidance by classifier_free needs labels that are hidden now and then: set num_classes of "
                "the unet and label_dropout of the diffusion, or choose autoguidance"
            )
        self._check_output()

    def _check_cascade(self) -> None:
        """Refuse a cascade of what has no small spectrogram, or two ways of diffusing at once."""
        if self.upsampler_unet.num_classes:
            raise ValueError(
                f"num_classes={self.upsampler_unet.num_classes} of upsampler_unet must be 0: labels are for "
                "the network that makes the small spectrogram"
            )
        if not self.cascade:
            return
        if self.vae_run is not None or (self.network, self.network_width) != ("unet", 1):
            raise ValueError(
                "cascade=True makes small spectrograms by view_unet, which does not go with "
                f"vae_run={self.vae_run!r}, network={self.network!r}, network_width={self.network_width:g}; "
                "set vae_run=None, network='unet' and network_width=1, or cascade=False"
            )
        require_multiple(
            "a small spectrogram", LowResolution(self.view, self.spectrogram).shape, self.view_unet
        )
        require_multiple("a spectrogram", self.spectrogram.shape, self.upsampler_unet)

    def _check_output(self) -> None:
        """Refuse a sigmoid in front of a target that it cannot reach."""
        target, values = self.diffusion.prediction_type, self.spectrogram.value_range
        fits = target == "sample" and values == "zero_to_one"
        if self.network == "unet" and self.unet.output == "sigmoid" and not fits:
            raise ValueError(
                f"output='sigmoid' stays within (0, 1) and cannot reach what prediction_type={target!r} with "
                f"value_range={values!r} asks for: the samples would be noise. Set output='linear', or "
                "prediction_type='sample' with value_range='zero_to_one', or to see it fail "
                "output='sigmoid_experiment'"
            )

    @property
    def network_config(self) -> NetworkConfig:
        """The network of the diffusion: on spectrograms, on small ones, or in latents."""
        if self.cascade:
            return self.view_unet
        if self.vae_run is not None:
            return self.latent_unet
        return network_config(self.network, self.unet, self.network_width)

    @property
    def diffusion_train(self) -> TrainConfig:
        """The training of the diffusion: on spectrograms, on small ones, or in latents."""
        if self.cascade:
            return self.view_train
        return self.train if self.vae_run is None else self.latent_train

    @property
    def diffusion_parts(self) -> tuple[str, ...]:
        """The settings, by name, that a run of the diffusion is made of and has to go on with."""
        if self.cascade:
            own = ("view", "view_unet", "view_train")
        elif self.vae_run is not None:
            own = ("latent_unet", "latent_train")
        else:
            own = ("network", "network_width", "unet", "train")
        return ("spectrogram", "diffusion", "cascade", *own)

    @property
    def demo_music_dir(self) -> Path:
        """Where this preset's demo corpus is rendered to."""
        return self.root / "Data" / f"demo_music-{self.preset}"

    @property
    def score_cache_dir(self) -> Path:
        """Where the notes of parsed scores are kept."""
        return self.root / "Data" / "demo_scores"

    @property
    def dataset_dir(self) -> Path:
        """The dataset on disk."""
        return self.root / "Data" / self.dataset.name

    @property
    def models_dir(self) -> Path:
        """Parent of the diffusion runs; those of small spectrograms are apart."""
        return self.root / "Models" / ("cascade" if self.cascade else "diffusion")

    @property
    def upsampler_dir(self) -> Path:
        """Parent of the runs of upsamplers."""
        return self.root / "Models" / "upsampler"

    @property
    def experiments_dir(self) -> Path:
        """Parent of the runs of experiments."""
        return self.root / "Models" / "experiments"

    @property
    def vae_dir(self) -> Path:
        """Parent of the runs of autoencoders."""
        return self.root / "Models" / "vae"

    @property
    def phase_dir(self) -> Path:
        """Parent of the runs of learned phase."""
        return self.root / "Models" / "phase"

    @property
    def images_dir(self) -> Path:
        """Parent of the runs on images."""
        return self.root / "Models" / "images"

    @property
    def results_dir(self) -> Path:
        """Parent of every run's results."""
        return self.root / "Results"

    def describe(self, *parts: str) -> str:
        """Return settings of the music, one a line; those of the images are `describe(self.images)`.

        Args:
            parts: the settings wanted, as "spectrogram"; preset and root go before them. None named: all.

        Raises:
            ValueError: there is no such part.
        """
        values = {name: value for name, value in to_dict(self).items() if name != "images"}
        if unknown := [name for name in parts if name not in values]:
            raise ValueError(f"there is no setting {unknown[0]!r}; there are {', '.join(values)}")
        names = ("preset", "root", *parts) if parts else values
        return "\n".join(_lines({name: values[name] for name in names}, ""))


def to_dict(config: Any) -> dict:
    """Return a (nested) config dataclass as plain JSON values."""
    return {
        f.name: to_dict(value)
        if dataclasses.is_dataclass(value)
        else str(value)
        if isinstance(value, Path)
        else value
        for f in dataclasses.fields(config)
        for value in [getattr(config, f.name)]
    }


def describe(config: Any) -> str:
    """Return every setting of a (nested) config dataclass, one a line, as `part.name = value`."""
    return "\n".join(_lines(to_dict(config), ""))


def from_dict(cls: type, values: dict) -> Any:
    """Build the (nested) config dataclass `cls` from `to_dict`'s values (lists become tuples again).

    Raises:
        ValueError: a setting is missing or unknown: the run is from another version of the code.
    """
    names = {f.name for f in dataclasses.fields(cls)}
    wrong = [f"{name} is missing" for name in sorted(names - values.keys())]
    wrong += [f"{name} is unknown" for name in sorted(values.keys() - names)]
    if wrong:
        raise ValueError(f"these settings do not make a {cls.__name__}: {', '.join(wrong)}")
    types = get_type_hints(cls)
    return cls(**{name: _from_plain(types[name], value) for name, value in values.items()})


def _from_plain(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value)
    return tuple(value) if isinstance(value, list) else value


def _lines(values: dict, prefix: str) -> list[str]:
    """Return nested settings as `part.name = value`, one a line."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name} = {value}")
    return lines


def provenance() -> dict[str, str]:
    """Return what a result depends on besides the settings: git commit, versions and the machine's kind."""
    repository = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # a copy without its history
        commit = "unknown"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
    }
