"""The tree of all settings: one dataclass, its folders, and its conversion to and from conf.json."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from Libraries.Dataset.Manifest import DatasetConfig
from Libraries.DemoMusic.Corpus import DemoMusicConfig
from Libraries.Diffusion import DiffusionConfig
from Libraries.Networks.Catalogue import NetworkConfig
from Libraries.Networks.JournalUNet import JournalUNetConfig
from Libraries.Phase import PhaseConfig
from Libraries.Sampling.Editing import EditConfig
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Loop import SamplerConfig
from Libraries.Sound.LowResolution import ConditioningConfig, LowResolution, LowResolutionConfig
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.DiffusionNetwork import require_multiple
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Training.VAELoss import VAELossConfig
from Libraries.U_Net import UNetConfig
from Libraries.Utils import require
from Libraries.VAE import VAEConfig

SPACES = ("spectrogram", "latent", "small")
LATEST = "latest"  # the newest run that fits


@dataclass(frozen=True)
class VAESettings:
    """The autoencoder in whose latents music can be generated."""

    network: VAEConfig
    loss: VAELossConfig
    train: TrainConfig
    run: str = LATEST  # or a name in Models/vae or Models/released
    start: str | None = None  # a run in either folder with whose weights training begins
    freeze_encoder: bool = False  # only with start: train the decoder alone, so that latents stay as they are


@dataclass(frozen=True)
class UpsamplerSettings:
    """The second model of a cascade, which makes full spectrograms from small ones.

    Raises:
        ValueError: the network has classes.
    """

    network: UNetConfig
    train: TrainConfig
    low_resolution: LowResolutionConfig  # the small spectrogram
    conditioning: ConditioningConfig
    sampler: SamplerConfig

    def __post_init__(self):
        if self.network.num_classes:
            raise ValueError(
                f"num_classes={self.network.num_classes} of the upsampler's network must be 0: labels are "
                "for the network that makes the small spectrogram"
            )


@dataclass(frozen=True)
class PhaseSettings:
    """The network of phase="learned"."""

    network: PhaseConfig
    train: TrainConfig
    run: str = LATEST  # or a name in Models/phase or Models/released


@dataclass(frozen=True)
class EvaluationConfig:
    """What `Eval Diffusion` measures, and what it compares on the same seeds."""

    num_samples: int  # clips generated for the figures
    batch_size: int  # clips sampled at a time
    compared_clips: int  # per variant compared, on the validation split
    samplers: tuple[str, ...]  # names, as in sampler.name
    steps: tuple[int, ...]  # for every sampler
    guidance_scales: tuple[float, ...]  # as guidance.scale
    ema_lengths: tuple[float, ...]  # relative to the training
    upsampler_steps: tuple[int, ...]  # of the upsampler's sampler


@dataclass(frozen=True)
class Settings:
    """All settings of one preset; `Conf.py` holds the values.

    Raises:
        ValueError: two parts do not fit together.
    """

    preset: str  # the name in Conf.py of what these settings began as
    root: Path  # parent of Data, Models and Results
    music_dir: Path | None  # the user's own music; None: Data/music if that exists, else the demo music
    log_level: str  # DEBUG | LIGHT_DEBUG | INFO | WARNING
    demo_music: DemoMusicConfig
    spectrogram: SpectrogramConfig
    dataset: DatasetConfig
    space: str  # what diffuses: spectrogram | latent (of the autoencoder) | small (for the upsampler)
    network: NetworkConfig  # of the diffusion
    diffusion: DiffusionConfig
    train: TrainConfig  # of the diffusion
    sampler: SamplerConfig
    guidance: GuidanceConfig
    edit: EditConfig
    evaluation: EvaluationConfig
    vae: VAESettings
    upsampler: UpsamplerSettings
    phase: PhaseSettings
    start: str | None = None  # a run in Models/diffusion or Models/released: training begins with it
    encode_once: bool = False  # encode latents before the training, without augmentation; not in every step

    def __post_init__(self):
        require(SPACES, space=self.space)
        if self.encode_once and self.space != "latent":
            raise ValueError(f"encode_once=True needs space='latent', not {self.space!r}")
        if self.space == "spectrogram":
            require_multiple("a spectrogram", self.spectrogram.shape, self.network)
        if self.space == "small":
            shape = LowResolution(self.upsampler.low_resolution, self.spectrogram).shape
            require_multiple("a small spectrogram", shape, self.network)
            require_multiple("a spectrogram", self.spectrogram.shape, self.upsampler.network)
        for name, sampler in (("sampler", self.sampler), ("upsampler.sampler", self.upsampler.sampler)):
            self._check_sampler(name, sampler)
        if self.guidance.method == "classifier_free" and not (
            self.network.num_classes and self.diffusion.label_dropout
        ):
            raise ValueError(
                "guidance by classifier_free needs labels that are sometimes dropped: set num_classes of "
                "the network and label_dropout of the diffusion, or choose autoguidance"
            )
        self._check_output()

    def _check_sampler(self, name: str, sampler: SamplerConfig) -> None:
        """Raise a ValueError for a sampler that the diffusion cannot have."""
        if sampler.variance == "learned" and not self.diffusion.learned_variance:
            raise ValueError(f"{name}.variance='learned' needs the diffusion's learned_variance=True")
        steps, most = sampler.num_inference_steps, self.diffusion.num_train_timesteps
        if steps > most:
            raise ValueError(f"{name}.num_inference_steps={steps} must be at most num_train_timesteps={most}")

    def _check_output(self) -> None:
        """Raise a ValueError for a sigmoid output with a target that it cannot reach."""
        target, values = self.diffusion.prediction_type, self.spectrogram.value_range
        fits = target == "sample" and values == "zero_to_one"
        sigmoid = isinstance(self.network, JournalUNetConfig) and self.network.output == "sigmoid"
        if sigmoid and not fits:
            raise ValueError(
                f"output='sigmoid' stays within (0, 1) and cannot reach the target of prediction_type="
                f"{target!r} with value_range={values!r}: the samples would be noise. Set output='linear', "
                "prediction_type='sample' with value_range='zero_to_one', or output='sigmoid_experiment' to "
                "see it fail"
            )

    @property
    def demo_music_dir(self) -> Path:
        """The folder of this preset's demo corpus."""
        return self.root / "Data" / f"demo_music-{self.preset}"

    @property
    def score_cache_dir(self) -> Path:
        """The folder in which the notes of parsed scores are kept."""
        return self.root / "Data" / "demo_scores"

    @property
    def dataset_dir(self) -> Path:
        """The folder of the dataset."""
        return self.root / "Data" / self.dataset.name

    @property
    def models_dir(self) -> Path:
        """Parent of the folders `diffusion`, `vae`, `upsampler`, `phase` and `experiments`, one per kind."""
        return self.root / "Models"

    @property
    def results_dir(self) -> Path:
        """Parent of every run's results."""
        return self.root / "Results"

    def describe(self, *parts: str) -> str:
        """Return the settings, one per line.

        Args:
            parts: the settings to list after preset and root, such as "spectrogram"; none: all settings.

        Raises:
            ValueError: there is no such part.
        """
        values = to_dict(self)
        if unknown := [name for name in parts if name not in values]:
            raise ValueError(f"there is no setting {unknown[0]!r}; there are {', '.join(values)}")
        names = ("preset", "root", *parts) if parts else values
        return "\n".join(_lines({name: values[name] for name in names}, ""))


def to_dict(config: Any) -> dict:
    """Return a (nested) config dataclass as plain JSON values.

    If a setting may be one of several dataclasses, "type" names its class.
    """
    types = get_type_hints(type(config))
    return {f.name: _to_plain(types[f.name], getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type, values: dict) -> Any:
    """Build the (nested) config dataclass `cls` from `to_dict`'s values (lists become tuples again).

    Raises:
        ValueError: a setting is missing or unknown, as in a run from another version of the code.
    """
    fields = dataclasses.fields(cls)
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}
    wrong = [f"{name} is missing" for name in sorted(needed - values.keys())]
    wrong += [f"{name} is unknown" for name in sorted(values.keys() - {f.name for f in fields})]
    if wrong:
        raise ValueError(f"these settings do not make a {cls.__name__}: {', '.join(wrong)}")
    types = get_type_hints(cls)
    return cls(**{name: _from_plain(types[name], value) for name, value in values.items()})


def part_of(cls: type, values: dict, path: str) -> Any:
    """Return one part of the settings in `to_dict`'s values, typed: "spectrogram" or "vae.network".

    Raises:
        KeyError: there is no such part in `cls` or in the values.
        ValueError: as `from_dict`.
    """
    for name in path.split("."):
        cls, values = get_type_hints(cls)[name], values[name]
    return _from_plain(cls, values)


def value_at(path: str, values: dict) -> Any:
    """Return what is at a path, such as "vae.network", in `to_dict`'s values."""
    return functools.reduce(lambda part, name: part[name], path.split("."), values)


def music_folder(settings: Settings) -> Path:
    """Return the folder of the music: `music_dir`, else `Data/music` if there is one, else the demo music's.

    It need not be there.
    """
    if settings.music_dir is not None:
        return settings.music_dir
    own = settings.root / "Data" / "music"
    return own if own.is_dir() else settings.demo_music_dir


def with_defaults(cls: type, values: dict) -> dict:
    """Return `to_dict`'s values, of all or some settings of `cls`, with the defaults of those they lack.

    A setting that is younger than the values has a default.
    """
    types, found = get_type_hints(cls), dict(values)
    for field in dataclasses.fields(cls):
        kind, value = types[field.name], values.get(field.name)
        if isinstance(value, dict):
            kind = _choices(kind).get(value.get("type"), kind)
            found[field.name] = with_defaults(kind, value) if dataclasses.is_dataclass(kind) else value
        elif field.name not in values and field.default is not dataclasses.MISSING:
            found[field.name] = _to_plain(kind, field.default)
    return found


def changed(config: Any, changes: dict[str, Any], prefix: str = "") -> Any:
    """Return the settings with some of them replaced, as by `{"network.norm": "batch", "space": "small"}`.

    Args:
        config: any (nested) config dataclass.
        prefix: of the names in error messages.

    Raises:
        ValueError: there is no such setting, or the changed settings do not fit together.
    """
    known, values, nested = [f.name for f in dataclasses.fields(config)], {}, {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if name not in known:
            raise ValueError(f"there is no setting {prefix + path!r}; choose one of {', '.join(known)}")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            values[name] = value
    for name, parts in nested.items():
        values[name] = changed(values.get(name, getattr(config, name)), parts, f"{prefix}{name}.")
    return dataclasses.replace(config, **values)


def differences(begun: Any, config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the changes by which `changed` makes `config` from `begun`, two configs of one class."""
    found = {}
    for field in dataclasses.fields(begun):
        old, new, path = getattr(begun, field.name), getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(old) and type(old) is type(new):
            found |= differences(old, new, f"{path}.")
        elif old != new:
            found[path] = new
    return found


def describe(config: Any) -> str:
    """Return every setting of a (nested) config dataclass, one per line, as `part.name = value`."""
    return "\n".join(_lines(to_dict(config), ""))


def _choices(kind: Any) -> dict[str, type]:
    """Return by name the dataclasses that a setting may be one of; empty if it is no such choice."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return {member.__name__: member for member in members if dataclasses.is_dataclass(member)}


def _to_plain(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        name = {"type": type(value).__name__} if _choices(kind) else {}
        return {**name, **to_dict(value)}
    return str(value) if isinstance(value, Path) else value


def _from_plain(kind: Any, value: Any) -> Any:
    if (choices := _choices(kind)) and isinstance(value, dict):
        require(choices, type=value.get("type"))
        kind, value = choices[value["type"]], {name: v for name, v in value.items() if name != "type"}
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value)
    if Path in (kind, *get_args(kind)) and isinstance(value, str):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _lines(values: dict, prefix: str) -> list[str]:
    """Return nested settings as `part.name = value`, one per line."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name} = {value}")
    return lines
