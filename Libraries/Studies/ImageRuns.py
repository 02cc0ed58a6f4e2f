"""Networks against one another on images: trained alike, sampled alike, judged by one classifier."""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from Libraries.Diffusion import NoiseSchedule, Parameterisation
from Libraries.Networks.Catalogue import NetworkConfig, network_config, scale_widths, width_for
from Libraries.Runs.Run import claim_run, load_average, read_conf, require_same
from Libraries.Runs.Settings import Settings, from_dict, provenance, to_dict
from Libraries.Sampling.Guidance import classifier_free_guidance, with_labels
from Libraries.Sampling.Loop import sample
from Libraries.Studies.ImageClassifier import ClassifierLoss, ImageClassifier
from Libraries.Studies.Images import ImageSplits, image_loaders
from Libraries.Studies.ImagesConfig import ImagesConfig
from Libraries.Training.DiffusionLoss import DiffusionLoss
from Libraries.Training.DiffusionNetwork import for_sampling, in_fast_precision, make_diffusion_network
from Libraries.Training.Loop import fit
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.U_Net import count_parameters
from Libraries.Utils import pick_device, resolve_precision

CLASSIFIER = "classifier"


def equal_networks(config: ImagesConfig, channels: int) -> dict[str, NetworkConfig]:
    """Return the networks to compare by name, each as wide as it takes to have the parameters of `unet`.

    Args:
        channels: of the images.
    """
    with torch.device("meta"):
        size = count_parameters(make_diffusion_network(config.unet, config.diffusion, (channels, 32, 32)))
    found = {}
    for name in config.networks:
        journal = network_config(name, config.unet)
        factor = 1.0 if name == "unet" else width_for(journal, channels, size)
        found[name] = scale_widths(journal, factor)
    return found


def train_image_network(
    settings: Settings, splits: ImageSplits, name: str, run_dir: Path | None = None
) -> Path:
    """Train one of the networks of `settings.images`, with the label of every image; return its run folder.

    Args:
        name: one of `settings.images.networks`.
        run_dir: an interrupted run to go on with; None starts a new one.

    Raises:
        ValueError: the run was made with other settings or images.
        CheckpointError: `run_dir` is no run.
    """
    config = settings.images
    network = equal_networks(config, splits.shape[0])[name]
    record = {"network": to_dict(network), "diffusion": to_dict(config.diffusion)}
    run_dir = open_image_run(settings, splits, name, config.train, record, run_dir)
    loss_fn = DiffusionLoss(
        NoiseSchedule(config.diffusion), config.train.seed, num_classes=network.num_classes
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(config.train.seed)
        model = make_diffusion_network(network, config.diffusion, splits.shape)
    fit(model, loss_fn, _loaders(config, splits), config.train, run_dir)
    return run_dir


def train_classifier(settings: Settings, splits: ImageSplits, run_dir: Path | None = None) -> Path:
    """Train the classifier that judges on the real images; return its run folder.

    Arguments and errors are those of `train_image_network`.
    """
    config = settings.images
    train = config.classifier_train
    run_dir = open_image_run(settings, splits, CLASSIFIER, train, {}, run_dir)
    with torch.random.fork_rng([]):
        torch.manual_seed(train.seed)
        model = ImageClassifier(splits.shape[0], len(splits.classes))
    fit(model, ClassifierLoss(), _loaders(config, splits), train, run_dir)
    return run_dir


def open_image_run(
    settings: Settings,
    splits: ImageSplits,
    name: str,
    train: TrainConfig,
    record: dict,
    run_dir: Path | None,
) -> Path:
    """Return a new run folder below `Models/images` with its conf.json, or `run_dir` if it was made alike.

    Args:
        record: of what the network is; it is part of conf.json, and an interrupted run must agree in it.
    """
    made_of = {
        "name": name,
        "images": splits.name,
        "fingerprint": splits.fingerprint(),
        "shape": splits.shape,
        "train": to_dict(train),
        **record,
    }
    if run_dir is None:
        conf = {**made_of, "settings": to_dict(settings), "classes": splits.classes}
        return claim_run(settings.images_dir, name, {**conf, "provenance": provenance()})
    known = read_conf(run_dir)
    require_same(f"the run {run_dir.name}", {key: known.get(key) for key in made_of}, made_of)
    return run_dir


def load_classifier(run_dir: Path) -> ImageClassifier:
    """Return a trained classifier with its EMA weights.

    Raises:
        CheckpointError: the folder is no run of a classifier, or has no weights.
    """
    conf = read_conf(run_dir)
    model = ImageClassifier(conf["shape"][0], len(conf["classes"]))
    load_average(model, run_dir)
    return model.to(pick_device()).eval()


class ImageModel:
    """A trained network of images with its schedule; samples by class.

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
            CheckpointError: the folder is no run, or has no such weights.
        """
        conf, device = read_conf(run_dir), device or pick_device()
        config = from_dict(ImagesConfig, conf["settings"]["images"])
        kind = type(network_config(conf["name"], config.unet))
        shape = tuple(conf["shape"])
        network = make_diffusion_network(from_dict(kind, conf["network"]), config.diffusion, shape)
        load_average(network, run_dir)
        return cls(network, NoiseSchedule(config.diffusion), shape, device)

    def sample(self, labels: Tensor, config: ImagesConfig, first_seed: int = 0) -> Tensor:
        """Return one image a label, x0 (N, C, rows, columns) on the CPU; image i is of seed first_seed + i.

        Args:
            labels: int64 (N,).
            config: of which sampler, guidance and the size of a batch count; a sample does not depend on it.
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
    """Return int64 labels (count,) that go round all classes."""
    return torch.arange(count) % num_classes


def _loaders(config: ImagesConfig, splits: ImageSplits):
    return functools.partial(image_loaders, splits, config.num_validation_images)
