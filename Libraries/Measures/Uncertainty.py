"""How sure a figure is: an interval over pieces, and the floor, which is what real music itself reaches."""

from collections.abc import Callable, Sequence

import numpy as np

from Libraries.Measures.Distances import Statistic

RESAMPLES = 200
FLOOR_SETS = 20
CONFIDENCE = 0.95


def piece_numbers(pieces: Sequence) -> np.ndarray:
    """Return the number of each clip's piece, from 0: (N,) int64."""
    return np.unique(np.asarray(pieces), return_inverse=True)[1]


def bootstrap(
    statistic: Statistic, generated_pieces: np.ndarray, reference_pieces: np.ndarray, seed: int
) -> np.ndarray:
    """Return a statistic of 200 draws of pieces, not clips, with replacement: float64 (200,).

    Clips of a piece resemble one another, so eight pieces of twelve clips say less than ninety-six pieces.

    Args:
        generated_pieces, reference_pieces: (N,) and (M,), from `piece_numbers`.
        seed: of the draws; with as many pieces the same seed draws the same ones.
    """
    rng = np.random.default_rng(seed)
    draws = (statistic(_draw(generated_pieces, rng), _draw(reference_pieces, rng)) for _ in range(RESAMPLES))
    return np.fromiter(draws, np.float64, RESAMPLES)


def interval(value: float, draws: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a value from its draws; NaN where nothing is known.

    Drawing twice what is there once makes most distances larger, so the draws' spread is laid around the
    value itself: their quantiles less their mean.
    """
    found = draws[np.isfinite(draws)]
    if not len(found) or not np.isfinite(value):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) - found.mean()
    return value + low, value + high


def random_sets(available: int, size: int, seed: int) -> list[np.ndarray]:
    """Return twenty random sets of `size` out of `available` clips, a clip once in a set: sorted indices."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(available)[:size]) for _ in range(FLOOR_SETS)]


def floor_of(distance: Callable[[np.ndarray], float], sets: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return mean and deviation of `distance(indices)` over sets of real clips; NaN are left out."""
    found = np.array([distance(indices) for indices in sets])
    found = found[np.isfinite(found)]
    return (float(found.mean()), float(found.std(ddof=1))) if len(found) > 1 else (float("nan"),) * 2


def _draw(pieces: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how often every clip counts, int64 (N,), when as many pieces as there are are drawn."""
    count = pieces.max() + 1
    return np.bincount(rng.integers(count, size=count), minlength=count)[pieces]
