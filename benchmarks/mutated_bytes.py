"""Break files in the ways in which they break: bytes in the header or the body, their length, their parts."""

import re
import struct
from collections.abc import Sequence

import numpy as np

HEADER_BYTES = 128
# what a field may hold that no field should: nothing, the largest, the smallest, not a number
NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (float("nan"), float("inf"), 3.4e38, -3.4e38, 1e-45)
VALUES = (
    "1e999",
    "-1",
    "0",
    "1" + "0" * 400,
    "NaN",
    "null",
    "true",
    '"x"',
    "[]",
    "{}",
    "[[[[]]]]",
    "1e15",
    "",
)


def mutate(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Return the content with one to three mistakes; `others` are what it may be spliced with."""
    for _ in range(rng.integers(1, 4)):
        way = (in_header, in_body, in_length, spliced)[rng.integers(4)]
        content = way(content, others, rng)
    return content


def mutate_text(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Return JSON or CSV with one to three mistakes, half of the time in names and values alone."""
    ways = (in_value, without_a_part, in_body, in_length, spliced)
    ways = ways[:1] if rng.random() < 0.5 else ways
    for _ in range(rng.integers(1, 4)):
        content = ways[rng.integers(len(ways))](content, others, rng)
    return content


def in_header(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Write random bytes or an absurd number over a place near the start."""
    return _overwritten(content, _place(min(HEADER_BYTES, len(content)), rng), rng)


def in_body(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Write random bytes or an absurd number over one to eight places anywhere."""
    for _ in range(rng.integers(1, 9)):
        content = _overwritten(content, _place(len(content), rng), rng)
    return content


def in_length(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Cut the end or the start off, or append zeros, noise or the content itself."""
    at = _place(len(content), rng)
    noise = rng.bytes(rng.integers(1, 4096))
    return (content[:at], content[at:], content + bytes(at), content + noise, content + content)[
        rng.integers(5)
    ]


def spliced(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Join the start with the end of another, or put a piece of another, or of itself, inside."""
    other = others[rng.integers(len(others))] if others else content
    at, begin = _place(len(content), rng), _place(len(other), rng)
    if rng.random() < 0.5:
        return content[:at] + other[begin:]
    return content[:at] + other[begin : begin + rng.integers(1, 2048)] + content[at:]


def in_value(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Put an absurd value in the place of a number, a word or a string of a text."""
    found = list(re.finditer(rb'"[^"\n]*"|-?\d[\d.e+-]*|true|false|null', content))
    if not found:
        return content
    match = found[rng.integers(len(found))]
    value = VALUES[rng.integers(len(VALUES))].encode()
    return content[: match.start()] + value + content[match.end() :]


def without_a_part(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Leave out one line, or what stands between two commas."""
    ends = [match.start() for match in re.finditer(rb"\n" if rng.random() < 0.5 else rb",", content)]
    if len(ends) < 2:
        return content
    i = rng.integers(len(ends) - 1)
    return content[: ends[i]] + content[ends[i + 1] :]


def _place(size: int, rng: np.random.Generator) -> int:
    return int(rng.integers(max(size, 1)))


def _overwritten(content: bytes, at: int, rng: np.random.Generator) -> bytes:
    order = "<>"[rng.integers(2)]
    with_bytes = (
        rng.bytes(rng.integers(1, 9)),
        struct.pack(f"{order}I", NUMBERS[rng.integers(len(NUMBERS))]),
        struct.pack(f"{order}H", NUMBERS[rng.integers(len(NUMBERS))] & 0xFFFF),
        struct.pack(f"{order}f", FLOATS[rng.integers(len(FLOATS))]),
    )[rng.integers(4)]
    return content[:at] + with_bytes + content[at + len(with_bytes) :]
