"""Images to compare networks on: CIFAR-10, or scikit-learn's handwritten digits if it is unavailable."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
from requests.exceptions import RequestException
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from Libraries.Dataset.Batches import loaders_of
from Libraries.Dataset.CIFAR10 import LabelledImages, read_cifar10
from Libraries.Dataset.SpectrogramDataset import DatasetError
from Libraries.Studies.ImagesConfig import IMAGE_SIZE, ImagesConfig
from Libraries.Utils import get_logger, spread_indices

log = get_logger("Images")

CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_URL = f"https://www.cs.toronto.edu/~kriz/{CIFAR10_ARCHIVE}"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as https://www.cs.toronto.edu/~kriz/cifar.html states it
CIFAR10_BYTES = 170_052_171
DIGITS_RANGE = 16  # the digits have values from 0 to this


class DownloadError(RuntimeError):
    """The images cannot be downloaded here; the message says how to supply them."""


@dataclass(frozen=True)
class ImageSplits:
    """The images of one source in three splits.

    Attributes:
        name: "CIFAR-10" or "digits, not CIFAR-10", for every title and table.
        mirrored: whether training may mirror images: a mirrored car is still a car, a digit is no longer one.
    """

    name: str
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    mirrored: bool

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, rows, columns)."""
        return tuple(self.train.images.shape[1:])

    def fingerprint(self) -> str:
        """Return a SHA-256 of all images and labels."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(split.images.numpy())
            digest.update(split.labels.numpy())
        return digest.hexdigest()


def load_images(config: ImagesConfig, folder: Path) -> ImageSplits:
    """Return the images of `config.source`; CIFAR-10's archive is in `folder` or is downloaded to it.

    With source="auto" the digits replace CIFAR-10 if it cannot be downloaded, and a warning says so.

    Raises:
        DownloadError: CIFAR-10 cannot be downloaded, and the source is "cifar10".
        DatasetError: the archive exists but is not the right file.
    """
    if config.source == "digits":
        return load_digits(config)
    try:
        archive = fetch_cifar10(folder)
    except DownloadError as error:
        if config.source == "cifar10":
            raise
        log.warning("%s. Using the digits instead: nothing that follows is about CIFAR-10", error)
        return load_digits(config)
    splits = read_cifar10(archive)
    train, validation = split_off(splits["train"], config.validation_fraction, config.split_seed)
    return ImageSplits("CIFAR-10", train, validation, splits["test"], mirrored=True)


def fetch_cifar10(folder: Path) -> Path:
    """Return cifar-10-binary.tar.gz in `folder`, downloaded with a progress bar if it is not there yet.

    Raises:
        DownloadError: there is no network, or the server has no such file.
        DatasetError: the existing or the downloaded file has another checksum.
    """
    path, url, md5 = Path(folder) / CIFAR10_ARCHIVE, CIFAR10_URL, CIFAR10_MD5
    if path.exists():
        if pooch.file_hash(str(path), alg="md5") != md5:
            raise DatasetError(f"{path} is not the file of {url} (MD5 {md5}): delete it or copy it again")
        return path
    with tqdm(total=CIFAR10_BYTES, desc=path.name, unit="B", unit_scale=True, delay=0.5) as bar:
        downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**18)
        try:
            pooch.retrieve(url, f"md5:{md5}", fname=path.name, path=path.parent, downloader=downloader)
        except RequestException as error:
            raise DownloadError(
                f"CIFAR-10 cannot be downloaded ({type(error).__name__}): fetch {url} where there is a "
                f"network and put it into {path.parent}"
            ) from None
        except ValueError:  # from pooch for another checksum; nothing was kept
            raise DatasetError(f"the file sent by {url} does not have the MD5 {md5}: try again") from None
    return path


def load_digits(config: ImagesConfig) -> ImageSplits:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 with 17 levels, enlarged to 32x32."""
    from sklearn import datasets  # takes seconds to import, and only this function needs it

    digits = datasets.load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] / DIGITS_RANGE
    size = (IMAGE_SIZE, IMAGE_SIZE)
    values = F.interpolate(small, size=size, mode="bilinear", align_corners=False).mul(255).round()
    classes = tuple(str(digit) for digit in digits.target_names)
    whole = LabelledImages(values.to(torch.uint8), torch.from_numpy(digits.target).long(), classes)
    rest, test = split_off(whole, config.test_fraction, config.split_seed)
    train, validation = split_off(rest, config.validation_fraction, config.split_seed)
    return ImageSplits("digits, not CIFAR-10", train, validation, test, mirrored=False)


def split_off(whole: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Return the rest and a fraction `share` of every class, chosen by the seed, both in their old order."""
    rng, chosen = np.random.default_rng(seed), np.zeros(len(whole.labels), dtype=bool)
    for label in whole.labels.unique().tolist():
        members = np.flatnonzero(whole.labels.numpy() == label)
        chosen[rng.permutation(members)[: round(share * len(members))]] = True
    return _rows(whole, ~chosen), _rows(whole, chosen)


def spread_images(split: LabelledImages, count: int) -> LabelledImages:
    """Return `count` images spread evenly over a split, or all if there are fewer."""
    chosen = np.zeros(len(split.labels), dtype=bool)
    chosen[spread_indices(len(split.labels), count)] = True
    return _rows(split, chosen)


def to_x0(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(x0: Tensor) -> Tensor:
    """Return x0 as uint8 images; values outside [-1, 1] are clipped."""
    return ((x0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class ImageDataset(TorchDataset):
    """One split for `Batches`: an item is an index, or an (index, seed) pair from `StepSampler`.

    Args:
        split: the images.
        mirrored: mirror the images whose seed is odd.
    """

    def __init__(self, split: LabelledImages, mirrored: bool = False):
        self.images, self.labels, self.mirrored = split.images, split.labels, mirrored

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, items: list[int] | list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return x0 float32 (B, C, rows, columns) in [-1, 1] and labels int64 (B,)."""
        seeded = isinstance(items[0], tuple)
        rows = torch.tensor([item[0] for item in items] if seeded else items, device=self.images.device)
        x0 = to_x0(self.images[rows])
        if seeded and self.mirrored:
            mirror = torch.tensor([seed % 2 == 1 for _, seed in items], device=x0.device)
            x0 = torch.where(mirror[:, None, None, None], x0.flip(3), x0)
        return x0, self.labels[rows]

    @property
    def num_bytes(self) -> int:
        """The size of the split on a device, in bytes."""
        return self.images.numel()

    def to(self, device: torch.device | str) -> "ImageDataset":
        """Keep the images on `device`, where batches are made from then on."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        return self


def image_loaders(
    splits: ImageSplits, num_validation_images: int, **options
) -> tuple[DataLoader, DataLoader]:
    """Return the endless training loader and the validation loader; `options` are those of `loaders_of`."""
    validation = ImageDataset(spread_images(splits.validation, num_validation_images))
    return loaders_of(ImageDataset(splits.train, splits.mirrored), validation, **options)


def _rows(whole: LabelledImages, chosen: np.ndarray) -> LabelledImages:
    rows = torch.from_numpy(np.flatnonzero(chosen))
    return LabelledImages(whole.images[rows], whole.labels[rows], whole.classes)
