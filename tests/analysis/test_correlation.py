"""Correlations over samples: known ones inside the interval, shuffled ones inside the null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from bench.analysis.correlation import contrast, correlate, draws_over


def pairs(r: float, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, noise = np.random.default_rng(seed).normal(size=(2, count))
    return x, r * x + np.sqrt(1 - r**2) * noise


def test_a_known_correlation_is_found():
    x, y = pairs(0.6, 2000, 0)
    found = correlate(x, y, draws_over(np.arange(2000)))
    assert found.low < 0.6 < found.high
    assert found.low < found.r < found.high
    assert found.high - found.low < 0.1
    assert found.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic)
    assert abs(found.r) > found.null
    assert found.p == pytest.approx(1 / 1001)


def test_shuffled_quality_stays_inside_the_null():
    x, y = pairs(0.6, 1000, 1)
    outside = 0
    for seed in range(6):
        found = correlate(x, np.random.default_rng(seed).permutation(y), draws_over(np.arange(1000)), seed)
        assert abs(found.r) < 0.12
        assert 0.04 < found.null < 0.09
        outside += abs(found.r) > found.null
    assert outside <= 2


def test_pairs_of_one_sample_are_drawn_together():
    x, y = pairs(0.5, 200, 2)
    alone = correlate(x, y, draws_over(np.arange(200)))
    repeated = correlate(np.tile(x, 4), np.tile(y, 4), draws_over(np.tile(np.arange(200), 4)))
    assert repeated.r == pytest.approx(alone.r)
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=1e-6)


def test_the_same_data_gives_the_same_numbers_in_any_units():
    x, y = pairs(0.3, 300, 3)
    first, second = (
        correlate(x, y, draws_over(np.arange(300))),
        correlate(1e3 * x - 5, 1e-3 * y, draws_over(np.arange(300))),
    )
    assert first.r == pytest.approx(second.r)
    assert (first.low, first.null, first.p) == pytest.approx((second.low, second.null, second.p))


def test_a_constant_side_correlates_with_nothing():
    found = correlate(np.full(50, 0.3), np.arange(50.0), draws_over(np.arange(50)))
    assert (found.r, found.low, found.high, found.null, found.p) == (0, 0, 0, 0, 1)


def test_contrast_is_the_difference_for_two_and_sums_to_nothing_for_three():
    a, b, c = np.random.default_rng(0).normal(size=(3, 5))
    two = contrast({"a": a, "b": b})
    np.testing.assert_allclose(two["a"], a - b)
    np.testing.assert_allclose(two["b"], b - a)
    three = contrast({"a": a, "b": b, "c": c})
    np.testing.assert_allclose(three["a"], a - (b + c) / 2)
    np.testing.assert_allclose(sum(three.values()), 0, atol=1e-12)
