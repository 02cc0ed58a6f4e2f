"""Networks as files that other programs open: TorchScript, torch.export and ONNX, chosen by the suffix.

All three hold the graph and the weights. In `.pt` the shapes are those of the example; `.pt2` and `.onnx`
take any batch size. The `.onnx` says in its metadata of which weights it was made (`weights_hash`).
"""

import contextlib
import hashlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from Libraries.Disk import write_whole
from Libraries.Utils import require

SUFFIXES = (".pt", ".pt2", ".onnx")
Example = tuple[Tensor, ...]


def export_graphs(model: nn.Module, example: Example, folder: Path) -> None:
    """Write graph.pt and graph.pt2, which Netron opens; arguments and errors as `export_graph`."""
    for suffix in (".pt", ".pt2"):
        export_graph(model, example, folder / f"graph{suffix}")


def export_graph(model: nn.Module, example: Example, path: Path) -> None:
    """Write a network as the suffix of `path` says, whole or not at all.

    `torch.jit.load` runs a `.pt`, `torch.export.load` a `.pt2`, onnxruntime and others an `.onnx`. The inputs
    of the latter are named as the arguments of `forward`, and its only output is "output".

    Args:
        model: any network; it is exported in evaluation mode.
        example: inputs to trace with, a batch of one.

    Raises:
        ValueError: an unknown suffix, or `.onnx` without the packages that write it.
        DiskError: the disk is full, forbidden, gone or broken.
    """
    require(SUFFIXES, suffix=path.suffix)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            content = {".pt": _script, ".pt2": _program, ".onnx": _onnx}[path.suffix](model, example)
        write_whole(path, content)
    finally:
        model.train(training)


def weights_hash(model: nn.Module) -> str:
    """Return a hash of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _script(model: nn.Module, example: Example) -> bytes:
    content = io.BytesIO()  # given a path, torch aborts the process where the disk is full
    with warnings.catch_warnings():
        # shapes become constants of the graph, as torch warns; a picture needs no others
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, example, check_trace=False)
    torch.jit.save(traced, content)
    return content.getvalue()


def _program(model: nn.Module, example: Example) -> bytes:
    content = io.BytesIO()
    batch, sizes = _any_batch(example)
    if not isinstance(model(*example), Tensor):
        model, sizes = _Flat(model), (sizes,)
    torch.export.save(torch.export.export(model, batch, dynamic_shapes=sizes), content)
    return content.getvalue()


def _onnx(model: nn.Module, example: Example) -> bytes:
    try:
        import onnx  # noqa: F401 - optional, as onnxscript: only the exporter needs them
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"writing ONNX needs {error.name}: `pip install onnx onnxscript`") from None
    batch, sizes = _any_batch(example)
    names = list(inspect.signature(model.forward).parameters)[: len(example)]
    with _without_remarks():
        program = torch.onnx.export(
            model, batch, dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False,
            input_names=names, output_names=["output"],
        )  # fmt: skip
    program.model.metadata_props["weights"] = weights_hash(model)
    return program.model_proto.SerializeToString()


class _Flat(nn.Module):
    """A network whose outputs, nested tuples of tensors, are one tuple.

    torch.export does not write outputs of our own types, such as `VAE.Posterior`.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.network(*inputs)))


def _tensors(nested: tuple) -> Iterator[Tensor]:
    for part in nested:
        yield from (part,) if isinstance(part, Tensor) else _tensors(part)


def _any_batch(example: Example) -> tuple[Example, tuple[dict, ...]]:
    """Return the example as a batch of two, since a size of 1 would become a constant, and the free axes."""
    batch = torch.export.Dim("batch", min=1)
    return tuple(torch.cat([part, part]) for part in example), tuple({0: batch} for _ in example)


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Leave out what the exporter says of itself: no torchvision, deprecated names, an axis named twice."""
    exporter = logging.getLogger("torch.onnx._internal.exporter")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", "# The axis name")
            yield
    finally:
        exporter.setLevel(level)
