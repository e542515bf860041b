"""Statistics against scipy where it has them, else against values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench import stats
from bench.stats import Interval, Sizes


def test_the_interval_of_three_seeds_by_hand() -> None:
    """Mean 84, sd 2, standard error 2 / sqrt 3, t(0.975, 2) = 4.3027."""
    mean, low, high = stats.interval([82.0, 84.0, 86.0])
    assert mean == 84.0
    assert low == pytest.approx(84 - 4.302653 * 2 / math.sqrt(3), abs=1e-5)
    assert high == pytest.approx(84 + 4.302653 * 2 / math.sqrt(3), abs=1e-5)


def test_the_interval_is_scipys() -> None:
    """Student's t over seeds, at another level too."""
    values = [0.51, 0.47, 0.55, 0.50]
    for level in (0.9, 0.95):
        expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(level)
        assert stats.interval(values, level)[1:] == pytest.approx(tuple(expected))


def test_one_value_has_no_bounds() -> None:
    """One seed says nothing of the spread."""
    assert stats.interval([0.5]) == Interval(0.5, None, None)
    assert stats.interval([0.5], folds=[3]) == Interval(0.5, None, None)
    with pytest.raises(ValueError, match="at least one"):
        stats.interval([])


def test_folds_take_the_corrected_variance() -> None:
    """Five folds, test/train = 1/4: factor 1/5 + 1/4 = 0.45; the seeds of a fold are averaged first."""
    values, folds = [0.50, 0.52, 0.56, 0.58, 0.60, 0.62, 0.55, 0.57, 0.48, 0.50], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    by_fold = [0.51, 0.57, 0.61, 0.56, 0.49]
    half = scipy_stats.t.ppf(0.975, 4) * math.sqrt(0.45 * np.var(by_fold, ddof=1))
    found = stats.interval(values, folds=folds, sizes=Sizes(train=800, test=200))
    assert found == pytest.approx((0.548, 0.548 - half, 0.548 + half))
    with pytest.raises(ValueError, match="plain t interval over folds is refused"):
        stats.interval(values, folds=folds)


def test_the_corrected_t_test_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, variance 1, error sqrt(1/3 + 1/4); without a test part it is the plain t."""
    t = 2 / math.sqrt(1 / 3 + 1 / 4)
    expected = 2 * scipy_stats.t.sf(t, 2)
    assert stats.corrected_t_test([1, 2, 3], Sizes(400, 100)) == pytest.approx(expected)
    assert stats.corrected_t_test([1, 2, 3], Sizes(400, 0)) == pytest.approx(
        scipy_stats.ttest_1samp([1, 2, 3], 0).pvalue
    )
    assert stats.corrected_t_test([0, 0, 0], Sizes(400, 100)) == 1.0
    with pytest.raises(ValueError, match="at least two"):
        stats.corrected_t_test([1.0], Sizes(400, 100))


def test_the_bootstrap_of_independent_samples_agrees_with_the_normal_interval() -> None:
    """400 samples, 60 right by A alone, 20 by B alone: difference 0.1, sd of a sample's difference by hand."""
    a = np.array([1] * 60 + [0] * 20 + [1] * 320, dtype=bool)
    b = np.array([0] * 60 + [1] * 20 + [1] * 320, dtype=bool)
    found = stats.accuracy_difference(a, b, np.arange(400))
    error = math.sqrt((80 / 400 - 0.1**2) / 400)
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=0.004)
    assert found.p == pytest.approx(2 / 10_001)
    assert found == stats.accuracy_difference(a, b, np.arange(400))


def test_the_bootstrap_resamples_whole_groups() -> None:
    """Copies of a sample within its group add no evidence: the interval is that of the groups."""
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < 0.7, rng.random(60) < 0.5
    alone = stats.accuracy_difference(a, b, np.arange(60))
    copied = stats.accuracy_difference(np.repeat(a, 10), np.repeat(b, 10), np.repeat(np.arange(60), 10))
    assert (copied.mean, copied.low, copied.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert copied.p == alone.p
    pretending = stats.accuracy_difference(np.repeat(a, 10), np.repeat(b, 10), np.arange(600))
    assert pretending.high - pretending.low < 0.5 * (alone.high - alone.low)


def test_the_bootstrap_averages_seeds_and_refuses_what_is_not_paired() -> None:
    """Equal methods do not differ; two seeds count as their mean."""
    a = np.array([[1, 1, 0, 1], [0, 1, 0, 1]])
    b = np.array([[1, 0, 0, 1], [0, 0, 0, 1]])
    assert stats.accuracy_difference(a, b, np.arange(4), resamples=99).mean == pytest.approx(0.25)
    assert stats.accuracy_difference(a, a, np.arange(4), resamples=99).p == 1.0
    with pytest.raises(ValueError, match="same samples"):
        stats.accuracy_difference(a, b, np.arange(5))
    with pytest.raises(ValueError, match="at least two"):
        stats.accuracy_difference(a, b, np.zeros(4))


def test_mcnemar_by_hand() -> None:
    """Nine samples right by A alone, one by B alone: 2 (1 + 10) / 1024."""
    a = np.array([True] * 9 + [False] + [True] * 5)
    b = np.array([False] * 9 + [True] + [True] * 5)
    assert stats.mcnemar(a, b) == pytest.approx(22 / 1024)
    assert stats.mcnemar(a, a) == 1.0


def test_holm_by_hand() -> None:
    """0.01 x 3, 0.02 x 2, 0.04 x 1 in the order given; 0.03 x 2 pulls the larger 0.04 up with it."""
    assert stats.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert stats.holm([0.005, 0.04, 0.03]) == pytest.approx([0.015, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_holm_lies_between_the_raw_values_and_bonferroni(p_values: list[float]) -> None:
    """Never below the raw value, never above Bonferroni's, and in the same order."""
    adjusted = stats.holm(p_values)
    for raw, found in zip(p_values, adjusted, strict=True):
        assert raw <= found <= min(1.0, len(p_values) * raw) + 1e-12
    assert [adjusted[i] for i in np.argsort(p_values)] == sorted(adjusted)


def test_the_win_probability_is_the_exact_binomial_one() -> None:
    """Four wins of five, as scipy has it; a tie counts half."""
    found = stats.win_probability([2, 2, 2, 2, 0], [1, 1, 1, 1, 1])
    expected = scipy_stats.binomtest(4, 5).proportion_ci(method="exact")
    assert found == pytest.approx((0.8, expected.low, expected.high))
    assert stats.win_probability([1, 2], [1, 1]).mean == 0.75
    assert stats.win_probability([1, 1], [0, 0])[2] == 1.0
    assert stats.win_probability([0, 0], [1, 1])[:2] == (0.0, 0.0)
    with pytest.raises(ValueError, match="as many scores"):
        stats.win_probability([1], [1, 2])


def test_tiers_take_the_best_and_what_is_not_below_it() -> None:
    """c is 0.03 from a, which Holm over two tests turns into 0.06: the same tier; d stands alone."""
    p = {("a", "b"): 0.5, ("a", "c"): 0.012, ("a", "d"): 0.001, ("c", "d"): 0.02}
    means = {"d": 0.5, "b": 0.79, "a": 0.8, "c": 0.7}
    assert stats.tiers(means, lambda best, other: p[best, other]) == [("a", "b"), ("c",), ("d",)]
    p["a", "c"] = 0.03
    assert stats.tiers(means, lambda best, other: p[best, other]) == [("a", "b", "c"), ("d",)]
    assert stats.tiers({}, lambda best, other: p[best, other]) == []


def test_the_detectable_difference_of_744_clips() -> None:
    """4.6 points at 20 % discordance, 1.45 points over all 7,442 clips."""
    assert stats.detectable_difference(744) == pytest.approx(0.046, abs=5e-4)
    assert stats.detectable_difference(7442) == pytest.approx(0.0145, abs=5e-5)
    assert stats.detectable_difference(100) == pytest.approx(2.80 * math.sqrt(0.2 / 100), abs=1e-4)


def test_friedman_is_scipys_with_mean_ranks() -> None:
    """Ranks by hand: the first method is best on every data set."""
    scores = np.array([[0.9, 0.8, 0.7], [0.8, 0.6, 0.7], [0.9, 0.7, 0.5], [0.7, 0.6, 0.5]])
    p, ranks = stats.friedman(scores)
    assert p == pytest.approx(scipy_stats.friedmanchisquare(*scores.T).pvalue)
    assert ranks == [1.0, 2.25, 2.75]
    assert stats.friedman(np.ones((3, 3)))[0] == 1.0
    with pytest.raises(ValueError, match="three methods"):
        stats.friedman(scores[:, :2])


def test_wilcoxon_says_when_it_cannot_tell() -> None:
    """Five wins of five give p = 0.0625, the smallest possible: underpowered; six of six give 0.03125."""
    five = stats.wilcoxon([2, 3, 4, 5, 6], [1, 1, 1, 1, 1])
    assert (five.p, five.smallest_p, five.verdict) == (0.0625, 0.0625, "underpowered")
    six = stats.wilcoxon([2, 3, 4, 5, 6, 7], [1] * 6)
    assert (six.p, six.verdict) == (0.03125, "significant")
    mixed = stats.wilcoxon([2, 3, 4, 5, 6, -9], [1] * 6)
    assert mixed.verdict == "not significant"
    assert stats.wilcoxon([1, 1], [1, 1]).verdict == "underpowered"
