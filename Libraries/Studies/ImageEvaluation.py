"""Measure generated images: Frechet distances in the features of a classifier and of Inception.

Inception needs weights that the user supplies. The distance between finite sets falls with their size, so
all sets are cut to the size of the smallest; real training images give the floor and noise the ceiling.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from Libraries.Networks.Catalogue import count_flops, count_parameters
from Libraries.Runs.Run import Run
from Libraries.Sound.Metrics import frechet_distance
from Libraries.Studies.ImageClassifier import ImageClassifier, accuracy, classify
from Libraries.Studies.ImageRuns import ImageModel, labels_in_turn
from Libraries.Studies.Images import ImageSplits, spread_images, to_bytes, to_x0
from Libraries.Studies.ImagesConfig import ImagesConfig
from Libraries.Training.RunLog import read_metrics
from Libraries.Utils import SampleNoise, pick_device

Features = Callable[[Tensor], Tensor]  # x0 (N, C, rows, columns) -> (N, D)
INCEPTION_BATCH = 64
NOT_MEASURED = "not measured: no weights"


@dataclass(frozen=True)
class ImageScore:
    """The quality of a set of images and the cost of its network; None where a figure does not apply."""

    name: str
    images: Tensor  # x0 (N, C, rows, columns)
    distance: float  # Frechet, to test images in the classifier's features
    inception_distance: float | None  # the same in Inception's; None without its weights
    right_class: float | None  # fraction of images that the classifier assigns to the requested class
    parameters: int | None = None
    gflop: float | None = None  # of one pass over one image
    validation_loss: float | None = None  # at the end, EMA weights
    seconds_per_step: float | None = None  # of training, the median
    seconds_per_image: float | None = None  # of sampling


def compare_networks(
    run_dirs: dict[str, Path], classifier: ImageClassifier, splits: ImageSplits, config: ImagesConfig
) -> list[ImageScore]:
    """Sample every network with the same seeds and labels and score it, beside real images and noise.

    Args:
        run_dirs: runs of `train_image_network`, by name.
        config: settings for the samples; `inception_file` names Inception's weights.

    Raises:
        ValueError: `inception_file` is missing or not TorchScript.
    """
    labels = labels_in_turn(config.num_samples, len(splits.classes))
    judge = Judge(classifier, splits, config)
    scores = []
    for name, run_dir in run_dirs.items():
        model = ImageModel.load(run_dir)
        start = time.perf_counter()
        images = model.sample(labels, config)
        seconds = (time.perf_counter() - start) / len(labels)
        example = torch.zeros(1, *model.shape, device=model.device), torch.tensor([0], device=model.device)
        cost = {
            "parameters": count_parameters(model.network),
            "gflop": count_flops(model.network, *example) / 1e9,
            "seconds_per_image": seconds,
            "seconds_per_step": seconds_per_step(run_dir),
            "validation_loss": last_validation_loss(run_dir),
        }
        scores.append(judge.score(name, images, labels, **cost))
    real = spread_images(splits.train, judge.count)
    noise = SampleNoise(range(judge.count))(splits.shape).clamp(-1, 1)
    scores.append(judge.score("real training images (the floor)", to_x0(real.images), real.labels))
    scores.append(judge.score("noise (the ceiling)", noise, None))
    return scores


class Judge:
    """Scores sets of images against the same test images.

    Args:
        classifier: trained on the real images.
        splits: the test split is the reference.
        config: `num_samples` is the size of a set, and `inception_file` names Inception's weights.
    """

    def __init__(self, classifier: ImageClassifier, splits: ImageSplits, config: ImagesConfig):
        test = spread_images(splits.test, config.num_samples)
        self.classifier, self.count = classifier, min(config.num_samples, len(test.labels))
        self.extractors: list[Features | None] = [lambda x0: classify(classifier, x0)[0]]
        self.extractors.append(load_inception(Path(config.inception_file)) if config.inception_file else None)
        self.reference = [extract and extract(to_x0(test.images)) for extract in self.extractors]

    def score(self, name: str, images: Tensor, labels: Tensor | None, **cost) -> ImageScore:
        """Score x0 (N, C, rows, columns) generated for these labels; `cost` is copied into the score."""
        distances = [
            extract and frechet_distance(extract(images[: self.count]), reference)
            for extract, reference in zip(self.extractors, self.reference, strict=True)
        ]
        right = None if labels is None else accuracy(self.classifier, images, labels)
        return ImageScore(name, images, *distances, right, **cost)


def last_validation_loss(run_dir: Path) -> float:
    """Return the last validation loss of a run, from its metrics.csv."""
    return [row["val_loss"] for row in read_metrics(run_dir / "metrics.csv") if "val_loss" in row][-1]


def seconds_per_step(run_dir: Path) -> float:
    """Return the median seconds per training step, from the run's metrics.csv."""
    train = Run(run_dir).conf["settings"]["train"]
    speeds = [row["samples_per_second"] for row in read_metrics(run_dir / "metrics.csv") if "loss" in row]
    return train["batch_size"] * train["grad_accumulation"] / statistics.median(speeds)


def load_inception(path: Path, device: torch.device | None = None) -> Features:
    """Return the features of the FID's Inception network (Heusel et al. 2017), from a TorchScript file.

    The file, such as inception-2015-12-05.pt published by StyleGAN's authors, holds a program and weights.
    The program is called `(images uint8 (B, 3, rows, columns) in 0 to 255, return_features=True)`, resizes
    the images and returns (B, 2048). Take it from a source you trust: loading it can run code.

    Returns:
        x0 (N, C, rows, columns) in [-1, 1], of one channel or three -> features float32 (N, D) on the CPU.

    Raises:
        ValueError: the file is missing or not TorchScript.
    """
    device = device or pick_device()
    try:
        network = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"inception_file={str(path)!r} cannot be loaded ({reason}): name a TorchScript file of the "
            "Inception features, or set None"
        ) from None

    @torch.no_grad()
    def features(x0: Tensor) -> Tensor:
        images = to_bytes(x0).expand(-1, 3, -1, -1)
        batches = tqdm(images.split(INCEPTION_BATCH), desc="Inception", unit="batch")
        return torch.cat([network(batch.to(device), return_features=True).float().cpu() for batch in batches])

    return features


def score_table(scores: list[ImageScore], splits: ImageSplits) -> str:
    """Return scores as a Markdown table whose first cell names the images."""
    header = [
        splits.name, "M param.", "GFLOP", "s/step", "s/image", "validation loss",
        "distance", "right class", "Inception FID",
    ]  # fmt: skip
    lines = [header, ["---"] * len(header)]
    for score in scores:
        inception = NOT_MEASURED if score.inception_distance is None else f"{score.inception_distance:.2f}"
        cells = [
            _number(score.parameters and score.parameters / 1e6, ".2f"),
            _number(score.gflop, ".2f"),
            _number(score.seconds_per_step, ".3f"),
            _number(score.seconds_per_image, ".3f"),
            _number(score.validation_loss, ".4f"),
            _number(score.distance, ".3f"),
            _number(score.right_class, ".1%"),
        ]
        lines.append([score.name, *cells, inception])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score_record(scores: list[ImageScore], splits: ImageSplits) -> dict:
    """Return scores without their images, for metrics.json."""
    kept = [{key: value for key, value in vars(score).items() if key != "images"} for score in scores]
    return {"images": splits.name, "scores": kept}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
