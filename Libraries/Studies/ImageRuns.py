"""Compare networks on images: trained alike, sampled alike and judged by one classifier."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from Libraries.Diffusion import DiffusionConfig, NoiseSchedule, Parameterisation
from Libraries.Networks.Catalogue import NetworkConfig, count_parameters, scale_widths, width_for
from Libraries.Runs.Recipe import Recipe, train
from Libraries.Runs.Run import Run
from Libraries.Sampling.Guidance import classifier_free_guidance, with_labels
from Libraries.Sampling.Loop import sample
from Libraries.Studies.ImageClassifier import ClassifierLoss, ImageClassifier
from Libraries.Studies.Images import ImageSplits, image_loaders
from Libraries.Studies.ImagesConfig import ImagesConfig
from Libraries.Training.DiffusionLoss import DiffusionLoss
from Libraries.Training.DiffusionNetwork import for_sampling, in_fast_precision, make_diffusion_network
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import pick_device, resolve_precision

CLASSIFIER = "classifier"


@dataclass(frozen=True)
class ImageNetworkSettings:
    """The settings in conf.json of a network trained on images."""

    network: NetworkConfig
    diffusion: DiffusionConfig
    train: TrainConfig


@dataclass(frozen=True)
class ClassifierSettings:
    """The settings in conf.json of a classifier."""

    train: TrainConfig


def equal_networks(config: ImagesConfig, channels: int) -> dict[str, NetworkConfig]:
    """Return the networks to compare by name, each scaled in width to the parameter count of `unet`.

    Args:
        channels: of the images.
    """
    with torch.device("meta"):
        size = count_parameters(make_diffusion_network(config.unet, config.diffusion, (channels, 32, 32)))
    found = {}
    for name in config.networks:
        network = config.network(name)
        factor = 1.0 if name == "unet" else width_for(network, channels, size)
        found[name] = scale_widths(network, factor)
    return found


def train_image_network(
    config: ImagesConfig, splits: ImageSplits, name: str, models_dir: Path, run_dir: Path | None = None
) -> Path:
    """Train one of the networks of `config` on images and their labels; return its run folder.

    Args:
        name: one of `config.networks`.
        models_dir: the run is created in its folder `images`.

    Errors are those of `Recipe.train`.
    """
    network = equal_networks(config, splits.shape[0])[name]
    schedule = NoiseSchedule(config.diffusion)
    recipe = Recipe(
        parent=models_dir / "images",
        name=name,
        settings=ImageNetworkSettings(network, config.diffusion, config.train),
        made_of=("network", "diffusion", "train"),
        train=config.train,
        build=lambda: make_diffusion_network(network, config.diffusion, splits.shape),
        loss=DiffusionLoss(schedule, config.train.seed, num_classes=network.num_classes),
        loaders=functools.partial(image_loaders, splits, config.train.num_validation_clips),
        dataset=functools.partial(images_record, splits),
    )
    return train(recipe, run_dir)


def train_classifier(
    config: ImagesConfig, splits: ImageSplits, models_dir: Path, run_dir: Path | None = None
) -> Path:
    """Train the judging classifier on the real images; return its run folder.

    Arguments and errors are those of `train_image_network`.
    """
    training = config.classifier_train
    recipe = Recipe(
        parent=models_dir / "images",
        name=CLASSIFIER,
        settings=ClassifierSettings(training),
        made_of=("train",),
        train=training,
        build=lambda: ImageClassifier(splits.shape[0], len(splits.classes)),
        loss=ClassifierLoss(),
        loaders=functools.partial(image_loaders, splits, training.num_validation_clips),
        dataset=functools.partial(images_record, splits),
    )
    return train(recipe, run_dir)


def images_record(splits: ImageSplits) -> dict:
    """Return what a run records about its training images: name, hash, shape and classes."""
    dataset = {"folder": splits.name, "hash": splits.fingerprint()}
    return {"dataset": dataset, "shape": splits.shape, "classes": splits.classes}


def load_classifier(run_dir: Path) -> ImageClassifier:
    """Return a trained classifier with its EMA weights.

    Raises:
        CheckpointError: the folder is not a run of a classifier, or has no weights.
    """
    run = Run(run_dir, ClassifierSettings)
    model = ImageClassifier(run.conf["shape"][0], len(run.conf["classes"]))
    return run.load_into(model).to(pick_device()).eval()


class ImageModel:
    """A trained image network with its schedule, which samples by class.

    Attributes:
        network: `(x_t, t, label) -> output` with the EMA weights, in evaluation mode on `device`.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, shape: tuple[int, int, int], device):
        self.network, self.shape, self.device = for_sampling(network, device), shape, device
        self.schedule, self.precision = schedule.to(device), resolve_precision("auto")

    @classmethod
    def load(cls, run_dir: Path, device: torch.device | None = None) -> "ImageModel":
        """Load the newest EMA weights of a run of `train_image_network`.

        Raises:
            CheckpointError: the folder is not such a run, or has no weights.
        """
        run = Run(run_dir, ImageNetworkSettings)
        diffusion, shape = run.config("diffusion"), tuple(run.conf["shape"])
        network = run.load_into(make_diffusion_network(run.config("network"), diffusion, shape))
        return cls(network, NoiseSchedule(diffusion), shape, device or pick_device())

    def sample(self, labels: Tensor, config: ImagesConfig, first_seed: int = 0) -> Tensor:
        """Return one image per label, x0 (N, C, rows, columns) on the CPU; image i has seed first_seed + i.

        Args:
            labels: int64 (N,).
            config: gives sampler, guidance and batch size; a sample does not depend on the batch size.
        """
        batches = []
        for start in tqdm(range(0, len(labels), config.sample_batch_size), desc="sampling", unit="batch"):
            part = labels[start : start + config.sample_batch_size].to(self.device)
            seeds = range(first_seed + start, first_seed + start + len(part))
            batches.append(
                sample(
                    self._denoiser(part, config), self.schedule, config.sampler, seeds, self.shape,
                    batch_size=len(part), device=self.device, progress=False,
                ).cpu()
            )  # fmt: skip
        return torch.cat(batches)

    def _denoiser(self, labels: Tensor, config: ImagesConfig):
        num_classes = self.network.config.num_classes
        network = in_fast_precision(self.network, self.device, self.precision)
        learned = config.sampler.variance == "learned"
        denoiser = Parameterisation(self.schedule).denoiser(network, with_variance=learned)
        if config.guidance.method == "none":
            return with_labels(denoiser, labels, num_classes)
        scale, rescale = config.guidance.scale, config.guidance.rescale
        return classifier_free_guidance(denoiser, labels, num_classes, scale, rescale=rescale)


def labels_in_turn(count: int, num_classes: int) -> Tensor:
    """Return int64 labels (count,) that cycle through all classes."""
    return torch.arange(count) % num_classes
