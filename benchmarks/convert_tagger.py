"""Write `Models/released/tagger/tagger.safetensors` from the musicnn wheel, without TensorFlow.

    pip download --no-deps musicnn==0.1.0
    python benchmarks/convert_tagger.py musicnn-0.1.0-py3-none-any.whl

The wheel holds a TensorFlow 1 checkpoint (a "tensor bundle"): an index, which is a sorted table in LevelDB's
format (blocks of keys that share a prefix with the key before), and a file of raw float32 values.
"""

import argparse
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from Libraries.Measures.Tagger import WEIGHTS, Tagger  # noqa: E402

MODEL = "musicnn/MTT_musicnn/"
_MAGIC = bytes.fromhex("57fb808b247547db")  # the last bytes of a LevelDB table
_FOOTER_BYTES = 48
_DTYPE, _SHAPE, _OFFSET, _SIZE = 1, 2, 4, 5  # fields of a BundleEntryProto
_FLOAT32 = 1
_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # wire types of protocol buffers


def read_checkpoint(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """Return the float32 tensors of a checkpoint by name.

    Args:
        index, data: the content of `.index` and `.data-00000-of-00001`.

    Raises:
        ValueError: the index is not a LevelDB table, a block is compressed, or a tensor is not float32.
    """
    footer = index[-_FOOTER_BYTES:]
    if footer[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("the index does not end like a LevelDB table")
    _, at = _read_handle(footer, 0)  # of the metadata block, which is empty
    (start, size), _ = _read_handle(footer, at)
    tensors = {}
    for _, value in read_block(index, start, size):
        handle, _ = _read_handle(value, 0)
        for name, entry in read_block(index, *handle):
            if name:  # the entry without a name is the header
                tensors[name.decode()] = _tensor(name.decode(), read_message(entry), data)
    return tensors


def read_block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block of a LevelDB table.

    An entry gives the number of bytes that its key shares with the key before, the number of its own key
    bytes, and the length of its value. The block ends with the positions of the keys that share nothing, and
    the number of these keys.
    """
    if table[start + size] != 0:
        raise ValueError(f"the block at byte {start} is compressed; only uncompressed blocks are read")
    n_restarts = int.from_bytes(table[start + size - 4 : start + size], "little")
    at, end, key = start, start + size - 4 * (n_restarts + 1), b""
    while at < end:
        (shared, own, length), at = _read_varints(table, at, 3)
        key = key[:shared] + table[at : at + own]
        yield key, table[at + own : at + own + length]
        at += own + length


def read_message(message: bytes) -> dict[int, list]:
    """Return the fields of a protocol buffer by number: integers, and the bytes of nested fields."""
    fields, at = {}, 0
    while at < len(message):
        (tag,), at = _read_varints(message, at, 1)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            (value,), at = _read_varints(message, at, 1)
        elif wire_type == _BYTES:
            (length,), at = _read_varints(message, at, 1)
            value, at = message[at : at + length], at + length
        elif wire_type == _FIXED32:
            value, at = message[at : at + 4], at + 4
        else:
            raise ValueError(f"field {number} has wire type {wire_type}; only 0, 2 and 5 are read")
        fields.setdefault(number, []).append(value)
    return fields


def _tensor(name: str, entry: dict[int, list], data: bytes) -> np.ndarray:
    if entry[_DTYPE] != [_FLOAT32]:
        raise ValueError(f"{name} has data type {entry[_DTYPE]}; only float32 is read")
    dimensions = read_message(entry[_SHAPE][0]).get(2, [])
    shape = [read_message(dimension)[1][0] for dimension in dimensions]
    offset, size = entry.get(_OFFSET, [0])[0], entry[_SIZE][0]
    return np.frombuffer(data[offset : offset + size], "<f4").reshape(shape)


def _read_handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    (start, size), at = _read_varints(data, at, 2)
    return (start, size), at


def _read_varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """Return `count` numbers of seven bits per byte, lowest bits first, and the position after them."""
    values = []
    for _ in range(count):
        value = shift = 0
        while True:
            byte = data[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                break
        values.append(value)
    return values, at


def convert(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state of a `Tagger` from the tensors of the checkpoint.

    TensorFlow numbers layers in the order in which the model's code creates them: input normalisation, five
    layers of the front end, three of the middle, normalisation of the pooled features, the dense layer.
    """
    state = _norm(tensors, "norm", 0)
    for i in range(5):  # kernels are (time, mel band, 1, filter)
        kernel = tensors[_numbered("conv2d", i) + "/kernel"].transpose(3, 2, 1, 0)
        state |= _layer(tensors, f"front.{i}.conv", _numbered("conv2d", i), kernel)
        state |= _norm(tensors, f"front.{i}.norm", 1 + i)
    for i in range(3):  # (time, channel, 1, filter)
        kernel = tensors[f"conv2d_{5 + i}/kernel"][:, :, 0].transpose(2, 1, 0)
        state |= _layer(tensors, f"middle.{i}.conv", f"conv2d_{5 + i}", kernel)
        state |= _norm(tensors, f"middle.{i}.norm", 6 + i)
    state |= _norm(tensors, "pool_norm", 9) | _norm(tensors, "dense_norm", 10)
    state |= _layer(tensors, "dense", "dense", tensors["dense/kernel"].T)
    state |= _layer(tensors, "output", "dense_1", tensors["dense_1/kernel"].T)
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in state.items()}


def _layer(tensors: dict, ours: str, theirs: str, kernel: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{ours}.weight": kernel, f"{ours}.bias": tensors[f"{theirs}/bias"]}


def _norm(tensors: dict, ours: str, number: int) -> dict[str, np.ndarray]:
    theirs = _numbered("batch_normalization", number)
    names = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    state = {f"{ours}.{to}": tensors[f"{theirs}/{name}"] for to, name in names.items()}
    return state | {f"{ours}.num_batches_tracked": np.int64(0)}


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheel", type=Path, help="musicnn-0.1.0-py3-none-any.whl")
    with zipfile.ZipFile(parser.parse_args().wheel) as wheel:
        index, data = (wheel.read(f"{MODEL}.{part}") for part in ("index", "data-00000-of-00001"))
        licence = next(name for name in wheel.namelist() if name.endswith("LICENSE.md"))
        WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
        (WEIGHTS.parent / "LICENCE").write_bytes(wheel.read(licence))
    state = convert(read_checkpoint(index, data))
    Tagger().load_state_dict(state)  # raises if a tensor is missing or has another shape
    save_file(state, WEIGHTS)
    count = sum(value.numel() for name, value in state.items() if name.endswith(("weight", "bias")))
    print(f"{WEIGHTS}: {count / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
