"""How far one set of clips is from another: kernel, Frechet and Wasserstein distance, precision and recall.

Each is a statistic of how often every clip counts: `statistic(generated_weights, reference_weights)`, whole
numbers, all 1 for the sets as they are. So what is costly (distances between clips, sorting) is done once,
and a bootstrap only changes the weights. Features are NumPy arrays with one row a clip.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

Statistic = Callable[[np.ndarray, np.ndarray], float]

KERNEL_SCALE = 1000.0  # only so that the numbers read well
NEIGHBOURS = 5  # of precision and recall


@dataclass(frozen=True, eq=False)
class Values:
    """A quantity of which a clip has any number of values, as the lengths of its notes.

    Raises:
        ValueError: a clip's number is not below `clips`, or values and clips differ in number.
    """

    values: np.ndarray  # (M,) float64
    clip: np.ndarray  # (M,) int64, from 0: whose value it is
    clips: int  # how many there are, those without a value included

    def __post_init__(self) -> None:
        if len(self.values) != len(self.clip) or (len(self.clip) and self.clip.max() >= self.clips):
            raise ValueError(f"{len(self.values)} values of {len(self.clip)} clips out of {self.clips}")

    def select(self, indices: np.ndarray) -> "Values":
        """Return the values of these clips, each named once."""
        place = np.full(self.clips, -1)
        place[indices] = np.arange(len(indices))
        kept = place[self.clip] >= 0
        return Values(self.values[kept], place[self.clip[kept]], len(indices))

    def median(self) -> float:
        """Return the median, NaN where there is no value."""
        return float(np.median(self.values)) if len(self.values) else float("nan")


def values_per_clip(values: np.ndarray) -> Values:
    """Return one value a clip (N,) as `Values`; a clip whose value is NaN has none."""
    found = np.flatnonzero(np.isfinite(values))
    return Values(np.asarray(values, np.float64)[found], found, len(values))


def kernel_distance(generated: np.ndarray, reference: np.ndarray) -> float:
    """Return the squared maximum mean discrepancy, unbiased, times 1000 (KAD).

    Chung et al. 2025, arXiv 2502.15602. k(x, y) = exp(-|x - y|² / 2s²), s the median distance within the
    reference. Its mean does not depend on the number of clips, and for equal distributions it is 0, so it may
    be below 0.

    Args:
        generated, reference: (N, D) and (M, D), N and M >= 2.
    """
    return as_they_are(kernel_statistic(generated, reference), generated, reference)


def precision_recall(generated: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return how many generated clips lie among the reference, and the other way round, both from 0 to 1.

    A clip lies among a set if it is no further from one of its clips than that one's fifth neighbour is
    (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2). Precision falls with clips that resemble none;
    recall falls with music that is never generated.

    Args:
        generated, reference: (N, D) and (M, D), N and M > 5.
    """
    precision = as_they_are(coverage_statistic(generated, reference), generated, reference)
    recall = as_they_are(coverage_statistic(reference, generated), reference, generated)
    return precision, recall


def wasserstein_distance(generated: Values, reference: Values) -> float:
    """Return the mean distance by which values have to move for the one distribution to become the other.

    In the unit of the values; NaN where one of the sets has none.
    """
    ones = np.ones(generated.clips, int), np.ones(reference.clips, int)
    return wasserstein_statistic(generated, reference)(*ones)


def as_they_are(statistic: Statistic, generated: np.ndarray, reference: np.ndarray) -> float:
    """Return the statistic with every clip counted once."""
    return statistic(np.ones(len(generated), int), np.ones(len(reference), int))


def kernel_statistic(generated: np.ndarray, reference: np.ndarray) -> Statistic:
    """Return `kernel_distance` as a function of weights; a clip is never compared with itself.

    Raises:
        ValueError: the sets differ in D or have fewer than two clips.
    """
    _check(generated, reference, at_least=2)
    among = cdist(reference, reference)
    bandwidth = np.median(among[np.triu_indices(len(reference), 1)])
    scale = -0.5 / max(bandwidth, 1e-12) ** 2
    within_reference, within_generated, between = (
        np.exp(scale * distances**2)
        for distances in (among, cdist(generated, generated), cdist(generated, reference))
    )

    def statistic(g: np.ndarray, r: np.ndarray) -> float:
        across = g @ between @ r / (g.sum() * r.sum())
        return KERNEL_SCALE * (
            _mean_of_pairs(within_generated, g) + _mean_of_pairs(within_reference, r) - 2 * across
        )

    return statistic


def frechet_statistic(generated: np.ndarray, reference: np.ndarray) -> Statistic:
    """Return the Frechet distance between Gaussians fitted to rows (Heusel et al. 2017, eq. 6) by weights.

    The same as `Metrics.frechet_distance` of rows repeated by weight; the sums of each clip are made once.

    Args:
        generated, reference: (N, D), or (N, R, D) with R rows a clip.
    """
    _check(generated, reference, at_least=2)
    ours, theirs = _Moments(generated), _Moments(reference)

    def statistic(g: np.ndarray, r: np.ndarray) -> float:
        (mean_a, cov_a), (mean_b, cov_b) = ours.of(g), theirs.of(r)
        values, vectors = np.linalg.eigh(cov_a)
        root = vectors * np.sqrt(values.clip(min=0))  # C_a = root root.T
        # C_a C_b and root.T C_b root have the same eigenvalues, and the second is symmetric
        overlap = np.sqrt(np.linalg.eigvalsh(root.T @ cov_b @ root).clip(min=0)).sum()
        distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap
        return max(float(distance), 0.0)

    return statistic


class _Moments:
    """Sums over the rows of each clip, from which mean and covariance follow for any weights."""

    def __init__(self, rows: np.ndarray):
        rows = np.asarray(rows, np.float64).reshape(len(rows), -1, rows.shape[-1])  # (N, R, D)
        self.centre = rows.mean((0, 1))
        rows = rows - self.centre
        self.rows_per_clip, self.sums = rows.shape[1], rows.sum(1)
        self.squares = None if rows.shape[1] == 1 else np.einsum("nrd,nre->nde", rows, rows, optimize=True)

    def of(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean (D,) and the covariance (D, D)."""
        count = weights.sum() * self.rows_per_clip
        mean = weights @ self.sums / count
        if self.squares is None:
            square = (self.sums * weights[:, None]).T @ self.sums
        else:
            square = np.tensordot(weights, self.squares, 1)
        return mean + self.centre, (square - count * np.outer(mean, mean)) / (count - 1)


def coverage_statistic(judged: np.ndarray, covering: np.ndarray) -> Statistic:
    """Return the share of `judged` that lies among `covering` (`precision_recall`), as a function of weights.

    The radii are those of the whole set: a clip that is drawn twice would be its own neighbour.

    Raises:
        ValueError: the sets differ in D, or have no fifth neighbour.
    """
    _check(judged, covering, at_least=NEIGHBOURS + 1)
    radii = np.partition(cdist(covering, covering), NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # 0 is the clip itself
    inside = cdist(judged, covering) <= radii

    def statistic(j: np.ndarray, c: np.ndarray) -> float:
        return float(j @ inside[:, c > 0].any(axis=1) / j.sum())

    return statistic


def wasserstein_statistic(generated: Values, reference: Values) -> Statistic:
    """Return `wasserstein_distance` as a function of the clips' weights."""
    together = np.concatenate([generated.values, reference.values])
    order = np.argsort(together, kind="stable")
    steps = np.diff(together[order])
    n = len(generated.values)

    def share(weights: np.ndarray) -> np.ndarray:
        total = np.cumsum(weights[order])[:-1]
        return total / weights.sum()

    def statistic(g: np.ndarray, r: np.ndarray) -> float:
        weights = np.zeros((2, len(together)))
        weights[0, :n], weights[1, n:] = g[generated.clip], r[reference.clip]
        if not weights.any(axis=1).all():
            return float("nan")
        return float(np.abs(share(weights[0]) - share(weights[1])) @ steps)

    return statistic


def _mean_of_pairs(kernel: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean of the kernel over pairs of different clips; NaN where all weight is on one clip."""
    squares = weights @ weights
    if squares == weights.sum() ** 2:
        return float("nan")
    return (weights @ kernel @ weights - squares) / (weights.sum() ** 2 - squares)  # k(x, x) = 1


def _check(generated: np.ndarray, reference: np.ndarray, at_least: int) -> None:
    shapes = generated.shape, reference.shape
    alike = generated.ndim >= 2 and generated.shape[1:] == reference.shape[1:]
    if not alike or min(len(generated), len(reference)) < at_least:
        raise ValueError(f"features have shapes {shapes}; widths must be equal and clips {at_least} or more")
