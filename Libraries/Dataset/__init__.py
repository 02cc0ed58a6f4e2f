"""Music on disk -> spectrograms on disk -> batches."""

from Libraries.Dataset.Build import BuildReport, build, build_dataset, build_part
from Libraries.Dataset.CIFAR10 import LabelledImages, read_cifar10
from Libraries.Dataset.Manifest import DatasetConfig, DatasetError, load_manifest, manifest_hash
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset, make_loaders, read_clip
