"""Every measure of a set of generated clips against real ones, in one call.

Each row is a distance between the generated clips and the reference (a test or validation split), with a 95 %
interval over pieces, and its floor: what as many clips of real training music reach against that reference.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from Libraries.Measures.Copies import (
    nearer_than_most,
    nearest_embeddings,
    nearest_pictures,
    nearest_within,
    shifted_distances,
    smallest,
)
from Libraries.Measures.Description import STEREO_UNITS, UNITS, Described, describe
from Libraries.Measures.Distances import (
    NEIGHBOURS,
    Statistic,
    coverage_statistic,
    frechet_statistic,
    kernel_statistic,
    wasserstein_statistic,
)
from Libraries.Measures.Outcome import Measures, Row
from Libraries.Measures.Tagger import load_tagger
from Libraries.Measures.Uncertainty import bootstrap, floor_of, interval, piece_numbers, random_sets
from Libraries.Utils import derive_seed

PUBLISHED_CLIPS = 256  # a table with fewer says what it could not have seen
POOL = 2  # sets of clips that the floor needs; random sets out of fewer would be nearly the same
FEWEST_CLIPS = 2


class Yardstick:
    """Real music that sets of generated clips are measured against; it is described once for all of them.

    All clips should have come through one decoder at one level, so that the figures judge the model.

    Args:
        reference: waveforms (M, C, L) float32 in [-1, 1], of the split to compare with, drawn by seed or
            spread over it.
        training: (K, C, L), for the floors and to look for copies in; twice as many as a set will have.
        sample_rate: Hz.
        pieces: whose clip each of the reference is, any hashable, (M,).
        seed: of the bootstrap and of the random sets of the floors.
    """

    def __init__(self, reference: Tensor, training: Tensor, sample_rate: int, pieces: Sequence, seed: int):
        self.tagger, self.sample_rate, self.pieces, self.seed = load_tagger(), sample_rate, pieces, seed
        self.reference, self.training = self.describe(reference), self.describe(training)

    def describe(self, waveforms: Tensor) -> Described:
        """Return the description of clips (N, C, L) at this sample rate."""
        return describe(waveforms, self.sample_rate, self.tagger)

    def measure(self, generated: Tensor, pieces: Sequence | None = None) -> Measures:
        """Measure generated clips (N, C, L); without `pieces` every clip is a piece of its own.

        Raises:
            ValueError: a set has fewer than two clips, or pieces and clips differ in number.
        """
        return self.compare(self.describe(generated), pieces)

    def compare(self, generated: Described, pieces: Sequence | None = None) -> Measures:
        """Measure clips that are described already."""
        return compare(generated, self.reference, self.training, self.pieces, self.seed, pieces)


def compare(
    generated: Described,
    reference: Described,
    training: Described,
    reference_pieces: Sequence,
    seed: int,
    generated_pieces: Sequence | None = None,
) -> Measures:
    """Return the measures of what `describe` has described; arguments as those of `Yardstick`."""
    pieces = range(len(generated)) if generated_pieces is None else generated_pieces
    _check(generated, reference, training, pieces, reference_pieces)
    size = min(len(generated), len(training))
    comparison = _Comparison(
        generated, reference, training,
        piece_numbers(pieces), piece_numbers(reference_pieces),
        random_sets(len(training), size, derive_seed(seed, 1)), derive_seed(seed, 2),
    )  # fmt: skip
    nearest = {
        "spectrogram": tuple(
            nearest_pictures(own.pictures, training.pictures) for own in (generated, reference)
        ),
        "embedding": tuple(
            nearest_embeddings(own.embedding, training.embedding) for own in (generated, reference)
        ),
    }
    rows = [
        *comparison.distances(),
        *comparison.distributions(),
        *comparison.copies(nearest),
        comparison.repeats(),
    ]
    remarks = _remarks(rows, len(generated), len(training), size, nearest)
    return Measures(len(generated), rows, remarks, generated.values, reference.values, nearest)


@dataclass(frozen=True, eq=False)
class _Comparison:
    """The sets, and how intervals and floors are made of them."""

    generated: Described
    reference: Described
    training: Described
    generated_pieces: np.ndarray
    reference_pieces: np.ndarray
    sets: list[np.ndarray]
    seed: int

    def row(
        self,
        name: str,
        unit: str,
        between: Callable[[Described], Statistic],
        bounds: tuple[float, float],
        **medians: float,
    ) -> Row:
        """Return a row from the statistic between a described set and the reference, and its bounds."""
        statistic = between(self.generated)
        value = _plain(statistic, self.generated, self.reference)
        draws = self.draws(statistic)

        def of_training(indices: np.ndarray) -> float:
            chosen = self.training.select(indices)
            return _plain(between(chosen), chosen, self.reference)

        found = np.clip(interval(value, draws), *bounds).tolist()
        return Row(name, unit, value, *found, *floor_of(of_training, self.sets), **medians, draws=draws)

    def draws(self, statistic: Statistic) -> np.ndarray:
        """Return the statistic of every draw; sets of as many pieces get the same draws, row by row."""
        return bootstrap(statistic, self.generated_pieces, self.reference_pieces, self.seed)

    def distances(self) -> list[Row]:
        """Return the rows of the tagger's embedding and of the log-mel statistics."""
        there = self.reference

        def kernel(own: Described) -> Statistic:
            return kernel_statistic(own.embedding, there.embedding)

        def frechet(own: Described) -> Statistic:
            return frechet_statistic(own.embedding, there.embedding)

        def precision(own: Described) -> Statistic:
            return coverage_statistic(own.embedding, there.embedding)

        def recall(own: Described) -> Statistic:
            statistic = coverage_statistic(there.embedding, own.embedding)
            return lambda g, r: statistic(r, g)

        def log_mel(own: Described) -> Statistic:
            return frechet_statistic(own.log_mel, there.log_mel)

        rows = [
            self.row("kernel distance", "", kernel, (-math.inf, math.inf)),
            self.row("Frechet distance", "", frechet, (0, math.inf)),
        ]
        if min(len(self.sets[0]), len(self.generated), len(there)) > NEIGHBOURS:
            rows += [self.row(of.__name__, "", of, (0, 1)) for of in (precision, recall)]
        return [*rows, self.row("log-mel distance", "", log_mel, (0, math.inf))]

    def distributions(self) -> list[Row]:
        """Return a row for each quantity: the Wasserstein distance, with both medians."""
        return [self.distribution(name) for name in (*UNITS, *STEREO_UNITS) if name in self.generated.values]

    def distribution(self, name: str) -> Row:
        ours, theirs = self.generated.values[name], self.reference.values[name]
        medians = {"generated": ours.median(), "reference": theirs.median()}
        return self.row(
            name,
            (UNITS | STEREO_UNITS)[name],
            lambda own: wasserstein_statistic(own.values[name], theirs),
            (0, math.inf),
            **medians,
        )

    def copies(self, nearest: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[Row]:
        """Return how many clips are nearer to training than 99 in 100 reference clips are: 1 % by chance."""
        chance = 100 * math.sqrt(0.01 * 0.99 / len(self.generated))
        return [self._share(f"copies by {name}", *sets, (1.0, chance)) for name, sets in nearest.items()]

    def repeats(self) -> Row:
        """Return how many clips have a neighbour in their own set as near as 1 in 100 real clips has."""
        ours, theirs = nearest_within(self.generated.pictures), nearest_within(self.reference.pictures)
        between = shifted_distances(self.training.pictures, self.training.pictures)
        between.fill_diagonal_(float("inf"))

        def of_training(indices: np.ndarray) -> float:
            return 100 * nearer_than_most(between[indices][:, indices].amin(1).numpy(), theirs).mean()

        return self._share("repeats", ours, theirs, floor_of(of_training, self.sets))

    def _share(self, name: str, ours: np.ndarray, theirs: np.ndarray, floor: tuple[float, float]) -> Row:
        near = 100.0 * nearer_than_most(ours, theirs)
        value, draws = float(near.mean()), self.draws(lambda g, r: float(g @ near / g.sum()))
        found = np.clip(interval(value, draws), 0, 100).tolist()
        medians = float(np.median(ours)), float(np.median(theirs))
        return Row(name, "%", value, *found, *floor, *medians, draws)


def _plain(statistic: Statistic, generated: Described, reference: Described) -> float:
    return statistic(np.ones(len(generated), int), np.ones(len(reference), int))


def _remarks(
    rows: list[Row], clips: int, pool: int, size: int, nearest: dict[str, tuple[np.ndarray, np.ndarray]]
) -> list[str]:
    """Return the sentences below the table."""
    found = []
    if clips < PUBLISHED_CLIPS:
        first = next(row for row in rows if row.name == "kernel distance")
        found.append(
            f"{clips} clips: a kernel distance within {first.unseen:.3g} of the floor could not have been "
            f"told from it, nor another difference below the last column; publish {PUBLISHED_CLIPS} or more."
        )
    if size < clips:
        found.append(
            f"The floor's sets have {size} clips, all of training, the generated set {clips}: Frechet "
            f"distances of smaller sets are larger."
        )
    if pool < POOL * size:
        found.append(
            f"The training set gives {pool} clips for random sets of {size}, which are then alike: the "
            f"floor's deviation is too small."
        )
    ours, theirs = (", ".join(f"{d:.2f}" for d in smallest(d)) for d in nearest["spectrogram"])
    found.append(f"Nearest to training in the spectrogram: generated {ours}; real {theirs}.")
    return found


def _check(
    generated: Described,
    reference: Described,
    training: Described,
    pieces: Sequence,
    reference_pieces: Sequence,
) -> None:
    sizes = len(generated), len(reference), len(training)
    if min(sizes) < FEWEST_CLIPS:
        raise ValueError(f"generated, reference and training hold {sizes} clips; {FEWEST_CLIPS} are needed")
    if (len(pieces), len(reference_pieces)) != sizes[:2]:
        raise ValueError(
            f"{len(pieces)} and {len(reference_pieces)} pieces are named for {sizes[0]} generated and "
            f"{sizes[1]} reference clips; each clip needs one"
        )
