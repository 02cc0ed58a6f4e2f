"""A diffusion run whose networks onnxruntime computes on the CPU, in float32.

Noise, sampler, guidance, edits and phase retrieval are those of `DiffusionRun`, so a seed gives the same clip
to rounding. The networks lie in the run's folder `onnx`, where other programs find them too: inputs and
outputs are float32, t and labels int64, and any batch will do.
"""

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from Libraries.Layers import check_input
from Libraries.Networks.Catalogue import NetworkConfig
from Libraries.Runs.Autoencoding import CODEC_BATCH, LatentCodec
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.Upsampling import LowResolutionCodec
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig
from Libraries.Training.Checkpoint import CheckpointError
from Libraries.Training.Graphs import Example, export_graph, weights_hash
from Libraries.Utils import get_logger, require

logger = get_logger("OnnxRun")

WARNINGS_OFF = 3  # of onnxruntime's severities: errors and worse


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open an `.onnx` file with as many threads as torch has.

    Raises:
        CheckpointError: the file is damaged.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), WARNINGS_OFF
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its types have no common ancestor
        raise CheckpointError(f"{path} cannot be read as ONNX ({error!s:.100}): delete it") from None


class OnnxRun(DiffusionRun):
    """A `DiffusionRun` that samples and decodes with onnxruntime; learned phase stays with torch."""

    open_session = staticmethod(open_session)  # another runtime opens the same files by its own

    @classmethod
    def load(
        cls,
        run_dir: Path,
        device: torch.device | None = None,
        *,
        step: int | None = None,
        ema_length: float | None = None,
        inverse: SpectrogramConfig | None = None,
    ) -> "OnnxRun":
        """Load a run as `DiffusionRun.load`, and its networks as `export_run` writes them.

        Raises:
            ValueError: a device other than the CPU, or as `export_graph`.
            CheckpointError: as `DiffusionRun.load`, or an exported file is damaged.
        """
        device = device or torch.device("cpu")
        require(("cpu",), device=device.type)
        model = super().load(run_dir, device, step=step, ema_length=ema_length, inverse=inverse)
        sessions = {name: cls.open_session(path) for name, path in export_run(model).items()}
        model.network = OnnxNetwork(sessions["network"], model.network.config)
        if isinstance(model.codec, LatentCodec):
            model.codec = OnnxCodec(model.codec, sessions["encoder"], sessions["decoder"])
        if "upsampler" in sessions:
            upsampler = model.codec.upsampler
            upsampler.network = OnnxNetwork(sessions["upsampler"], upsampler.network.config)
        return model


def export_run(model: DiffusionRun) -> dict[str, Path]:
    """Write the networks that a clip passes through to `onnx` in the run's folder; return their files.

    Those are `network-<step>.onnx`, in latents `encoder.onnx` and `decoder.onnx`, in a cascade
    `upsampler.onnx`. A file that is there with the same weights stays.

    Raises:
        ValueError, DiskError: as `export_graph`.
        CheckpointError: a file that is there is damaged.
    """
    folder, files = model.run.folder / "onnx", {}
    for name, (network, example) in _parts(model).items():
        suffix = model.run.weights_path(model.step).stem.removeprefix("ema") if name == "network" else ""
        files[name] = folder / f"{name}{suffix}.onnx"
        if not (files[name].exists() and weights_of(files[name]) == weights_hash(network)):
            logger.info("writing %s", files[name])
            export_graph(network, example, files[name])
    return files


def _parts(model: DiffusionRun) -> dict[str, tuple[nn.Module, Example]]:
    """Return each network by its name, with an example of its input."""
    codec, parts = model.codec, {"network": (model.network, _example(model.network, model.shape))}
    if isinstance(codec, LatentCodec):
        parts["encoder"] = Encoder(codec), (torch.zeros(1, *codec.vae.shape),)
        parts["decoder"] = Decoder(codec), (torch.zeros(1, *codec.shape),)
    if isinstance(codec, LowResolutionCodec) and codec.upsampler is not None:
        network = codec.upsampler.network
        shape = network.in_channels, *model.spectrogram.config.shape[1:]
        parts["upsampler"] = network, _example(network, shape)
    return parts


def _example(network: nn.Module, shape: tuple[int, int, int]) -> Example:
    t = torch.zeros(1, dtype=torch.int64)
    return (torch.zeros(1, *shape), t, t) if network.config.num_classes else (torch.zeros(1, *shape), t)


def weights_of(path: Path) -> str | None:
    """Return the `weights_hash` that an `.onnx` file was made of; None if it does not say."""
    return open_session(path).get_modelmeta().custom_metadata_map.get("weights")


def compute(session: onnxruntime.InferenceSession, *inputs: Tensor) -> Tensor:
    """Return the only output of a network in onnxruntime; inputs and output are on the CPU."""
    names = (there.name for there in session.get_inputs())
    feed = {name: part.contiguous().numpy() for name, part in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


class OnnxNetwork:
    """A network `(x, t, cond) -> output` in onnxruntime, called as the one that was exported.

    Args:
        config: of that network.
    """

    def __init__(self, session: onnxruntime.InferenceSession, config: NetworkConfig):
        self.session, self.config = session, config

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict from x (B, C, F, T), t (B,) int64 and labels (B,) int64 or None."""
        classes = self.config.num_classes
        check_input(x, cond, self.session.get_inputs()[0].shape[1], self.config.multiple, classes)
        if not classes:
            return compute(self.session, x, t)
        return compute(self.session, x, t, torch.full_like(t, classes) if cond is None else cond)


class OnnxCodec(LatentCodec):
    """A `LatentCodec` whose network runs in onnxruntime."""

    def __init__(
        self, codec: LatentCodec, encoder: onnxruntime.InferenceSession, decoder: onnxruntime.InferenceSession
    ):
        super().__init__(codec.vae, codec.mean, codec.std, codec.spectrogram, codec.device)
        self.run_dir, self.encoder, self.decoder = codec.run_dir, encoder, decoder

    def encode(self, x0: Tensor) -> Tensor:
        """Return latents as `LatentCodec.encode`."""
        return torch.cat([compute(self.encoder, part) for part in x0.split(CODEC_BATCH)])

    def decode(self, z: Tensor, seeds: object = None) -> Tensor:
        """Return spectrograms as `LatentCodec.decode`."""
        return torch.cat([compute(self.decoder, part) for part in z.split(CODEC_BATCH)])


class _Normalised(nn.Module):
    """An autoencoder with the mean and standard deviation of its latents."""

    def __init__(self, codec: LatentCodec):
        super().__init__()
        self.vae = codec.vae
        self.register_buffer("mean", codec.mean)
        self.register_buffer("std", codec.std)


class Encoder(_Normalised):
    """x0 (B, C, F, T) -> normalised latents (B, *shape), as `LatentCodec.encode`."""

    def forward(self, x0: Tensor) -> Tensor:
        return (self.vae.encode(x0).mu - self.mean) / self.std


class Decoder(_Normalised):
    """Normalised latents z (B, *shape) -> x0 (B, C, F, T), as `LatentCodec.decode`."""

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z * self.std + self.mean)


RUNTIMES: dict[str, type[DiffusionRun]] = {"torch": DiffusionRun, "onnx": OnnxRun}
