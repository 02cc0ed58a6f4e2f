"""Images and labels of CIFAR-10, read in memory from its binary version."""

import gzip
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from Libraries.Dataset.Manifest import DatasetError

CIFAR10_SHAPE = (3, 32, 32)  # channels, rows, columns
CIFAR10_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue plane
CIFAR10_MEMBERS = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
CIFAR10_NAMES = "batches.meta.txt"  # one class per line
MOST_BYTES = 2**28  # that the archive may unpack to; CIFAR-10 has 184 MB


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 (N, C, rows, columns), labels int64 (N,), and what the labels mean."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def read_cifar10_batch(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Return the images uint8 (N, 3, 32, 32) and labels int64 (N,) of one file of the binary version.

    A record is one byte of label and 3072 of pixels: the red plane row by row from the top, green, blue
    (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

    Args:
        content: of the file; name: for messages.

    Raises:
        DatasetError: it is not a whole number of records, or a label is not 0 to 9.
    """
    if not content or len(content) % CIFAR10_RECORD:
        raise DatasetError(
            f"{name} has {len(content)} bytes, which is not a whole number of records of {CIFAR10_RECORD}: "
            "it is cut short or not CIFAR-10's binary version"
        )
    records = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, CIFAR10_RECORD).copy())
    labels = records[:, 0].long()
    if labels.max() > 9:
        row = int((labels > 9).nonzero()[0])
        raise DatasetError(f"record {row} of {name} has the label {int(labels[row])}; labels are 0 to 9")
    return records[:, 1:].reshape(-1, *CIFAR10_SHAPE), labels


def read_cifar10(path: Path) -> dict[str, LabelledImages]:
    """Return the training and the test images ("train", "test") of cifar-10-binary.tar.gz.

    Its files are found by name anywhere in the archive and read in memory; nothing is unpacked to disk.

    Raises:
        DatasetError: the archive is missing, broken, incomplete, not CIFAR-10, or unpacks to far more.
    """
    wanted, found = {CIFAR10_NAMES, *sum(CIFAR10_MEMBERS.values(), ())}, {}
    try:
        with gzip.open(path) as file, tarfile.open(fileobj=_Bounded(file, path), mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in wanted:
                    found[name] = archive.extractfile(member).read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = f"{path} cannot be read as cifar-10-binary.tar.gz ({error}): delete it or copy it again"
        raise DatasetError(reason) from None
    if missing := sorted(wanted - found.keys()):
        raise DatasetError(f"{path} lacks {', '.join(missing)}: it is not CIFAR-10's binary version")
    classes = tuple(found[CIFAR10_NAMES].decode("utf-8", "replace").split())
    if len(classes) != 10:
        raise DatasetError(f"{CIFAR10_NAMES} in {path} names {len(classes)} classes; CIFAR-10 has 10")
    splits = {
        split: [read_cifar10_batch(found[name], f"{name} in {path}") for name in names]
        for split, names in CIFAR10_MEMBERS.items()
    }
    return {
        split: LabelledImages(*map(torch.cat, zip(*batches, strict=True)), classes)
        for split, batches in splits.items()
    }


class _Bounded:
    """An archive as it is unpacked, which ends with an error where it grows beyond all CIFAR-10."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path, self.left = file, path, MOST_BYTES

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise DatasetError(
                f"{self.path} unpacks to more than {MOST_BYTES >> 20} MiB: it is not CIFAR-10, delete it"
            )
        return content
