"""A permutation without a table: one to one, another for every key, and as good as a shuffled list."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from Libraries.Dataset.Permutation import permuted


def whole(size: int, *key: int) -> np.ndarray:
    return permuted(np.arange(size), size, key)


@pytest.mark.parametrize("size", [*range(1, 40), 100, 101, 1023, 1024, 1025, 99_991])
def test_every_number_comes_once(size):
    for epoch in range(3):
        assert np.array_equal(np.sort(whole(size, 7, epoch)), np.arange(size))


def test_a_position_does_not_depend_on_the_others_asked_for():
    order = whole(1000, 3, 4)
    some = np.random.default_rng(0).integers(0, 1000, 50)
    assert np.array_equal(permuted(some, 1000, (3, 4)), order[some])


def test_the_order_stays_what_it_was_so_that_runs_of_other_versions_resume():
    assert whole(12, 0, 0).tolist() == [10, 6, 3, 7, 1, 0, 9, 4, 11, 5, 8, 2]
    first = permuted(np.arange(6), 10**8, (7, 3))
    assert first.tolist() == [86189814, 52408916, 68458051, 75244150, 27458966, 58545817]


def test_every_seed_and_epoch_has_another_order():
    orders = [whole(50, seed, epoch).tobytes() for seed in range(10) for epoch in range(10)]
    assert len(set(orders)) == 100


@pytest.mark.parametrize("size", [2, 3, 5, 10, 37])
def test_every_number_is_as_likely_at_every_place(size):
    orders = np.stack([whole(size, 0, epoch) for epoch in range(4000)])
    for place in {0, 1, size // 2, size - 1}:
        assert chisquare(np.bincount(orders[:, place], minlength=size)).pvalue > 1e-4


def test_all_orders_of_four_come_up_alike():
    orders = [tuple(whole(4, 1, epoch)) for epoch in range(12_000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24 and chisquare(counts).pvalue > 1e-4


def test_two_neighbours_in_the_order_are_unrelated():
    """As are two epochs, and a number and its place: differences, modulo the size, are uniform."""
    size = 20_000
    first, second = whole(size, 0, 0), whole(size, 0, 1)
    pairs = (first[1:], first[:-1]), (first, second), (first, np.arange(size))
    for ours, theirs in pairs:
        assert kstest((ours - theirs) % size / size, "uniform").pvalue > 1e-4


def test_fixed_points_are_as_many_as_by_chance():
    counts = [np.count_nonzero(whole(100, 2, epoch) == np.arange(100)) for epoch in range(4000)]
    assert np.mean(counts) == pytest.approx(1, abs=0.08) and np.var(counts) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("size", [96_000_000, 2**40, 2**62])
def test_a_batch_of_the_largest_datasets_takes_no_memory(size):
    tracemalloc.start()
    positions = np.array([0, 1, size // 2, size - 1])
    found = permuted(positions, size, (0, 12))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(found.tolist())) == 4 and found.min() >= 0 and found.max() < size
    assert peak < 100_000
