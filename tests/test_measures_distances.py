"""Distances between sets in closed form, and planted failures that move the measure which is for them."""

import numpy as np
import pytest
import torch
from scipy import stats

from Libraries.Measures.Distances import (
    Values,
    as_they_are,
    coverage_statistic,
    frechet_statistic,
    kernel_distance,
    kernel_statistic,
    precision_recall,
    values_per_clip,
    wasserstein_distance,
    wasserstein_statistic,
)
from Libraries.Measures.Uncertainty import bootstrap, floor_of, interval, piece_numbers, random_sets
from Libraries.Sound.Metrics import frechet_distance

WIDTH = 8


def gaussian(clips, seed, shift=0.0, width=WIDTH):
    rows = np.random.default_rng(seed).normal(size=(clips, width))
    rows[:, 0] += shift
    return rows


def two_classes(clips, seed, share=0.5, apart=12.0):
    rows = gaussian(clips, seed)
    rows[: round(share * clips), 0] += apart
    return rows


def test_kernel_distance_between_gaussians_has_its_closed_form():
    reference = gaussian(3_000, 0)
    pairs = np.linalg.norm(reference[:1_500] - reference[1_500:], axis=1)
    square, shift = np.median(pairs) ** 2, 1.5
    same = (square / (square + 2)) ** (WIDTH / 2)  # the mean of exp(-|d|²/2s²) for d ~ N(0, 2)
    expected = 2_000 * same * (1 - np.exp(-(shift**2) / (2 * (square + 2))))
    assert kernel_distance(gaussian(3_000, 1, shift), reference) == pytest.approx(expected, rel=0.1)


def test_kernel_distance_of_equal_distributions_is_zero_in_the_mean_at_any_size():
    for clips in (10, 100):
        found = [kernel_distance(gaussian(clips, seed), gaussian(clips, 1_000 + seed)) for seed in range(60)]
        assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
        assert min(found) < 0


def test_frechet_distance_by_weights_is_that_of_rows_repeated():
    a, b = gaussian(40, 0, width=3), gaussian(50, 1, 0.7, width=3)
    assert as_they_are(frechet_statistic(a, b), a, b) == pytest.approx(
        frechet_distance(torch.from_numpy(a), torch.from_numpy(b)), rel=1e-9
    )
    weights = np.random.default_rng(2).integers(0, 3, 40), np.random.default_rng(3).integers(0, 3, 50)
    repeated = (torch.from_numpy(np.repeat(rows, w, axis=0)) for rows, w in zip((a, b), weights, strict=True))
    assert frechet_statistic(a, b)(*weights) == pytest.approx(frechet_distance(*repeated), rel=1e-9)


def test_frechet_distance_takes_several_rows_a_clip():
    a, b = gaussian(60, 0, width=6).reshape(20, 3, 6), gaussian(60, 1, 0.5, width=6).reshape(20, 3, 6)
    flat = (torch.from_numpy(rows.reshape(60, 6)) for rows in (a, b))
    assert as_they_are(frechet_statistic(a, b), a, b) == pytest.approx(frechet_distance(*flat), rel=1e-9)


def test_clips_of_another_kind_lower_precision_and_not_recall():
    reference, generated = gaussian(300, 0), gaussian(300, 1)
    before = precision_recall(generated, reference)
    generated = np.concatenate([generated, gaussian(100, 2, shift=40)])
    after = precision_recall(generated, reference)
    assert after[0] == pytest.approx(0.75 * before[0], abs=0.01)
    assert after[1] == pytest.approx(before[1], abs=0.05)


def test_a_class_left_out_lowers_recall_and_not_precision():
    reference = two_classes(300, 0)
    whole, half = two_classes(300, 1), two_classes(300, 1, share=0)
    assert precision_recall(whole, reference)[1] > 0.85
    precision, recall = precision_recall(half, reference)
    assert recall < 0.55
    assert precision > 0.85
    assert kernel_distance(half, reference) > 20 * abs(kernel_distance(whole, reference))


def test_one_clip_over_and_over_lowers_recall():
    reference, generated = gaussian(300, 0), gaussian(300, 1)
    repeated = np.repeat(generated[:10], 30, axis=0)
    assert precision_recall(repeated, reference)[1] < 0.3 < precision_recall(generated, reference)[1]


def test_wasserstein_distance_is_scipys_and_a_shift_costs_its_length():
    rng = np.random.default_rng(0)
    a = Values(rng.normal(size=500), rng.integers(0, 20, 500), 20)
    b = Values(rng.exponential(size=300), rng.integers(0, 10, 300), 10)
    assert wasserstein_distance(a, b) == pytest.approx(stats.wasserstein_distance(a.values, b.values))
    assert wasserstein_distance(Values(a.values + 3, a.clip, 20), a) == pytest.approx(3)
    weights = rng.integers(0, 3, 20), rng.integers(0, 3, 10)
    expected = stats.wasserstein_distance(a.values, b.values, weights[0][a.clip], weights[1][b.clip])
    assert wasserstein_statistic(a, b)(*weights) == pytest.approx(expected)


def test_a_set_without_values_has_no_distance():
    none = Values(np.zeros(0), np.zeros(0, int), 4)
    assert np.isnan(wasserstein_distance(none, values_per_clip(np.arange(4.0))))
    assert np.isnan(none.median())
    assert values_per_clip(np.array([1.0, np.nan, 3.0])).clip.tolist() == [0, 2]


def test_values_of_some_clips_are_numbered_anew():
    values = Values(np.arange(6.0), np.array([0, 0, 1, 2, 2, 3]), 4).select(np.array([2, 0]))
    assert values.values.tolist() == [0, 1, 3, 4]
    assert values.clip.tolist() == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="out of 2"):
        Values(np.zeros(1), np.array([2]), 2)


def test_a_clip_that_counts_twice_is_not_compared_with_itself():
    reference, generated = gaussian(20, 0), gaussian(20, 1)
    statistic = kernel_statistic(generated, reference)
    ones = np.ones(20, int)
    assert statistic(2 * ones, ones) == pytest.approx(statistic(ones, ones))


def test_sets_that_do_not_fit_or_are_too_small_are_refused():
    with pytest.raises(ValueError, match="widths"):
        kernel_distance(gaussian(9, 0), gaussian(9, 0, width=3))
    with pytest.raises(ValueError, match="6 or more"):
        coverage_statistic(gaussian(9, 0), gaussian(5, 0))


def test_the_interval_holds_the_truth_and_is_wider_for_few_pieces():
    rng = np.random.default_rng(0)

    def mean(g, r):
        return float(g @ values / g.sum())

    hits, widths = 0, []
    for seed in range(40):
        values = np.repeat(rng.normal(size=30), 10)  # ten clips of a piece are the same
        pieces = np.repeat(np.arange(30), 10)
        by_piece, by_clip = (
            interval(values.mean(), bootstrap(mean, own, np.zeros(1, int), seed))
            for own in (pieces, np.arange(300))
        )
        hits += by_piece[0] <= 0 <= by_piece[1]
        widths.append((by_piece[1] - by_piece[0]) / (by_clip[1] - by_clip[0]))
    assert hits >= 35
    assert np.median(widths) == pytest.approx(10**0.5, rel=0.15)


def test_random_sets_depend_on_the_seed_alone_and_hold_a_clip_once():
    sets = random_sets(50, 20, seed=7)
    assert len(sets) == 20
    assert all(len(set(chosen.tolist())) == 20 for chosen in sets)
    assert all(np.array_equal(a, b) for a, b in zip(sets, random_sets(50, 20, seed=7), strict=True))
    assert not np.array_equal(sets[0], random_sets(50, 20, seed=8)[0])
    mean, deviation = floor_of(lambda chosen: float(chosen.mean()), sets)
    assert mean == pytest.approx(24.5, abs=3)
    assert deviation > 0


def test_pieces_are_numbered_whatever_they_are_called():
    assert piece_numbers(["b", "a", "b"]).tolist() == [1, 0, 1]
