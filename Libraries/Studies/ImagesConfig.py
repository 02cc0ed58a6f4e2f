"""The settings that compare networks on images: data, networks, training, sampling and classifier."""

from dataclasses import dataclass

from Libraries.Diffusion import DiffusionConfig
from Libraries.Networks.Catalogue import JOURNAL, NetworkConfig, journal_network
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Loop import SamplerConfig
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import require

SOURCES = ("auto", "cifar10", "digits")
IMAGE_SIZE = 32  # rows and columns, of all sources


@dataclass(frozen=True)
class ImagesConfig:
    """The settings of `CIFAR10.ipynb`; the values live in `ImagesConf.py`.

    Raises:
        ValueError: a name is unknown, a number is out of range, or a network does not fit these images.
    """

    source: str  # auto (CIFAR-10, or the digits if it cannot be downloaded) | cifar10 | digits
    validation_fraction: float  # of the training images
    test_fraction: float  # of the digits; CIFAR-10 has a test split of its own
    split_seed: int
    networks: tuple[str, ...]  # unet (the settings below) | names of Networks.JOURNAL, scaled to its size
    unet: NetworkConfig
    diffusion: DiffusionConfig
    train: TrainConfig  # of every network
    classifier_train: TrainConfig  # of the classifier in whose features the distance is measured
    sampler: SamplerConfig
    guidance: GuidanceConfig
    num_samples: int  # per network, the classes in turn
    sample_batch_size: int
    inception_file: str | None  # TorchScript of the standard Inception features; None: not measured

    def __post_init__(self):
        require(SOURCES, source=self.source)
        for name in ("validation_fraction", "test_fraction"):
            require("(0, 1)", **{name: getattr(self, name)})
        for name in ("num_samples", "sample_batch_size"):
            require("[2, inf)", **{name: getattr(self, name)})
        if self.unet.num_classes != 10:
            raise ValueError(f"num_classes={self.unet.num_classes} must be 10, as all these images have")
        if self.guidance.method == "autoguidance":
            raise ValueError("method='autoguidance' does not work on images; choose none or classifier_free")
        for name in self.networks:
            require(("unet", *JOURNAL), networks=name)
            if any(IMAGE_SIZE % size for size in self.network(name).multiple):
                raise ValueError(
                    f"the network {name!r} does not fit images of {IMAGE_SIZE}x{IMAGE_SIZE}; change the "
                    "levels or patch_size of unet, or choose another"
                )

    def network(self, name: str) -> NetworkConfig:
        """Return `unet` itself or a network of the journal, at its own size."""
        return self.unet if name == "unet" else journal_network(name, self.unet.num_classes)
