"""Runs on disk: states to resume from, EMA weights to sample with.

A run folder `Models/<kind>/<00007-name>/` holds conf.json, metrics.csv, log.txt, state-<step>.pth,
ema-<step>.pth, snapshot-<step>.pth and what `Graphs.py` exports; a released one has ema-<step>.safetensors.
Everything is written to a temporary name and renamed, and read with `weights_only=True`: a stranger's
checkpoint cannot run code.
"""

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from Libraries.Disk import deferring, disk_errors, require_readable, write_then_rename, write_whole

WEIGHTS = "ema-*.[ps]*[hs]"  # the files of averaged weights: .pth, or .safetensors where they are released


class CheckpointError(RuntimeError):
    """A checkpoint is missing, broken or another network's; the message says which and what to do."""


def save_checkpoint(path: Path, content: dict) -> None:
    """Write tensors, numbers, strings and containers of them to `path`, whole or not at all."""

    def write(file: BinaryIO) -> None:
        with deferring(file) as target:
            torch.save(content, target)

    write_then_rename(path, write, size=num_bytes(content))


def named(pattern: str) -> str:
    """Return what a sentence calls the files that match a pattern."""
    return "weights" if pattern == WEIGHTS else pattern


def save_weights(path: Path, step: int, weights: dict[str, Tensor]) -> None:
    """Write the weights after a step as safetensors, whole or not at all; `load_checkpoint` reads them."""
    content = {name: value.contiguous() for name, value in weights.items()}
    write_whole(path, save(content, {"format": "pt", "step": str(step)}))


def num_bytes(content: object) -> int:
    """Return the bytes of all tensors in nested containers: what a checkpoint of them takes at least."""
    if isinstance(content, Tensor):
        return content.nbytes
    parts = content.values() if isinstance(content, dict) else content
    return sum(map(num_bytes, parts)) if isinstance(parts, Iterable) and not isinstance(parts, str) else 0


def load_checkpoint(path: Path, map_location="cpu", mmap: bool = False) -> dict:
    """Read what `save_checkpoint` or `save_weights` wrote; with `mmap` a tensor is read when it is used.

    Raises:
        CheckpointError: the file is missing, cut short, damaged, or holds more than plain data.
        DiskError: the disk does not give it.
    """
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path, map_location)
        _require_no_more_than_the_file(path)
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist: train the model first or check the run's name"
        ) from None
    except Exception as error:  # of any type: reading goes where the damaged bytes lead
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        require_readable(path)
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}): delete it or copy it again"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no checkpoint but {type(content).__name__}: copy it again")
    return content


def _load_safetensors(path: Path, device: str) -> dict:
    with safetensors.safe_open(path, "pt", device=str(device)) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return {"step": int(file.metadata()["step"]), "weights": weights}


def _require_no_more_than_the_file(path: Path) -> None:
    """Raise a BadZipFile for an archive that unpacks to more than its size, which torch never writes."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > Path(path).stat().st_size:
        raise zipfile.BadZipFile(f"it claims to hold {claimed} bytes")


def find_checkpoints(run_dir: Path, kind: str) -> list[tuple[int, Path]]:
    """Return (step, path) of every `<kind>-<step>` in a run, .pth or .safetensors, earliest first."""
    name = re.compile(rf"{kind}-(\d+)\.(pth|safetensors)")
    matches = ((name.fullmatch(path.name), path) for path in Path(run_dir).glob(f"{kind}-*"))
    return sorted((int(match.group(1)), path) for match, path in matches if match)


def delete_earlier(run_dir: Path, kind: str, step: int) -> None:
    """Delete every `<kind>-<step>.pth` of a run from before `step`."""
    with disk_errors(run_dir):
        for earlier, path in find_checkpoints(run_dir, kind):
            if earlier < step:
                path.unlink()


def latest_checkpoint(run_dir: Path, kind: str) -> Path:
    """Return the newest `<kind>-<step>.pth` of a run.

    Raises:
        CheckpointError: there is none.
    """
    found = find_checkpoints(run_dir, kind)
    if not found:
        raise CheckpointError(
            f"{run_dir} has no {kind}-<step>.pth: the training was never saved; run it again"
        )
    return found[-1][1]


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Copy weights into `model`.

    Raises:
        CheckpointError: the weights are another network's; the message names the first difference.
    """
    own = model.state_dict()
    if not (isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())):
        raise CheckpointError(f"{source} holds no weights: copy it again")
    for name in own.keys() | weights.keys():
        if name not in weights or name not in own or own[name].shape != weights[name].shape:
            shapes = [tuple(d[name].shape) if name in d else "absent" for d in (own, weights)]
            raise CheckpointError(
                f"{source} belongs to another network: {name} is {shapes[0]} here and {shapes[1]} there; "
                "build the network from the run's own conf.json"
            )
    model.load_state_dict(weights)


def save_json(path: Path, values: dict) -> None:
    """Write a dict as readable JSON, whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"
    content = text.encode("utf-8", "surrogateescape")  # names of files need not be valid UTF-8
    write_whole(path, content)
