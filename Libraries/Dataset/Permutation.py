"""A permutation that needs no memory: each place of it is computed by itself."""

from functools import lru_cache

import numpy as np

ROUNDS = 8  # a half sees the other four times; Luby and Rackoff 1988 need four rounds for one pass


def permuted(positions: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Return what a permutation of `size` has at these positions.

    A Feistel network over two digits, x = a·left + right, each in turn shifted by a hash of the other: every
    round can be undone, so that no two positions meet. Its numbers reach up to a·b >= size; one beyond the
    size is put in again until it falls within ("cycle walking"). The table of a permutation would take 8
    bytes per clip and epoch.

    Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains".

    Args:
        positions: int64 (B,), 0 to size - 1.
        size: at most 2**62.
        key: names the permutation, such as (seed, epoch).

    Returns:
        int64 (B,), 0 to size - 1.
    """
    wide = int(np.ceil(np.sqrt(size)))
    moduli = np.uint64(-(-size // wide)), np.uint64(wide)  # of left and right
    keys = _round_keys(key)
    result = _shuffled(positions.astype(np.uint64), *moduli, keys)
    while (beyond := result >= size).any():
        result[beyond] = _shuffled(result[beyond], *moduli, keys)
    return result.astype(np.int64)


def _shuffled(values: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = values // b, values % b
    for first, second in keys.reshape(-1, 2):
        left = (left + _hash(right ^ first) % a) % a
        right = (right + _hash(left ^ second) % b) % b
    return left * b + right


def _hash(values: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 values (SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=4)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
