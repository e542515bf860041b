"""Statistics against scipy where it has them, else against values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from bench import stats
from bench.stats import Difference, GroupDraws, Interval, Noise, Sizes


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


def difference(a: np.ndarray, b: np.ndarray, groups: np.ndarray, resamples: int = 10_000) -> Difference:
    return stats.paired_difference(a, b, GroupDraws(groups, resamples))


def test_the_bootstrap_of_independent_samples_agrees_with_the_normal_interval() -> None:
    """400 samples, 60 right by A alone, 20 by B alone: difference 0.1, sd of a sample's difference by hand."""
    a = np.array([1] * 60 + [0] * 20 + [1] * 320, dtype=bool)
    b = np.array([0] * 60 + [1] * 20 + [1] * 320, dtype=bool)
    found = difference(a, b, np.arange(400))
    error = math.sqrt((80 / 400 - 0.1**2) / 399)
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=0.004)
    assert found.error == pytest.approx(error)
    assert found.df == pytest.approx(399)
    assert found.p == pytest.approx(2 / 10_001)
    assert found == difference(a, b, np.arange(400))


def test_the_draws_are_scipys_bootstrap() -> None:
    """The spread of the resampled means is that of scipy's own bootstrap over the same groups."""
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=90), np.repeat(np.arange(30), 3)
    found = GroupDraws(groups, 4000).means(values)
    sums = np.bincount(groups, weights=values)
    expected = scipy_stats.bootstrap((sums / 3,), np.mean, n_resamples=4000, rng=1).standard_error
    assert found.std(ddof=1) == pytest.approx(expected, rel=0.05)
    assert found.mean() == pytest.approx(values.mean(), abs=0.01)


def test_few_groups_widen_the_interval() -> None:
    """Five groups of a constant each: close to Student's t over the groups' means, which the plain percentiles miss."""
    each = np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    found = difference(np.repeat(each, 10), np.zeros(50), np.repeat(np.arange(5), 10))
    low, high = scipy_stats.ttest_1samp(each, 0).confidence_interval()
    plain = np.quantile(GroupDraws(np.arange(5)).means(each), (0.025, 0.975))
    assert plain[1] - plain[0] < 0.7 * (high - low)
    assert found.high - found.low == pytest.approx(high - low, rel=0.08)


def test_the_bootstrap_resamples_whole_groups() -> None:
    """Copies of a sample within its group add no evidence: the interval is that of the groups."""
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < 0.7, rng.random(60) < 0.5
    alone = difference(a, b, np.arange(60))
    copied = difference(np.repeat(a, 10), np.repeat(b, 10), np.repeat(np.arange(60), 10))
    assert (copied.mean, copied.low, copied.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert (copied.p, copied.error) == (alone.p, pytest.approx(alone.error))
    pretending = difference(np.repeat(a, 10), np.repeat(b, 10), np.arange(600))
    assert pretending.high - pretending.low < 0.5 * (alone.high - alone.low)


def test_seeds_are_drawn_too() -> None:
    """Seeds whose differences spread widen the interval to at least Student's t over them; equal ones do not."""
    samples, groups = 800, np.arange(800)
    b = np.zeros((3, samples), dtype=bool)
    a = np.stack([np.arange(samples) < right for right in (200, 240, 280)])
    found = difference(a, b, groups)
    low, high = scipy_stats.ttest_1samp([0.25, 0.3, 0.35], 0).confidence_interval()
    assert found.mean == pytest.approx(0.3)
    assert found.low < low + 0.01
    assert found.high > high - 0.01
    same = difference(np.repeat(a[1:2], 3, axis=0), b, groups)
    assert same.high - same.low < 0.4 * (found.high - found.low)
    assert same.df == pytest.approx(samples - 1)


def test_the_bootstrap_averages_seeds_and_refuses_what_is_not_paired() -> None:
    """Equal methods do not differ; two seeds count as their mean."""
    a = np.array([[1, 1, 0, 1], [0, 1, 0, 1]])
    b = np.array([[1, 0, 0, 1], [0, 0, 0, 1]])
    assert difference(a, b, np.arange(4), resamples=99).mean == pytest.approx(0.25)
    assert difference(a, a, np.arange(4), resamples=99).p == 1.0
    with pytest.raises(ValueError, match="same seeds and samples"):
        difference(a, b, np.arange(5))
    with pytest.raises(ValueError, match="same seeds and samples"):
        difference(a[:1], b, np.arange(4))
    with pytest.raises(ValueError, match="at least two"):
        difference(a, b, np.zeros(4))


def test_a_difference_over_folds_is_the_corrected_t() -> None:
    """Fold means 2, 3 and 4 points: the interval and p of `interval` and `corrected_t_test`."""
    found = stats.fold_difference([1, 3, 3, 3, 4, 4], [0, 0, 1, 1, 2, 2], Sizes(400, 100))
    assert found.mean == pytest.approx(3)
    assert found.error == pytest.approx(math.sqrt(1 / 3 + 1 / 4))
    assert found.df == 2
    assert found.p == pytest.approx(stats.corrected_t_test([2, 3, 4], Sizes(400, 100)))
    assert found.high - 3 == pytest.approx(scipy_stats.t.ppf(0.975, 2) * found.error)
    with pytest.raises(ValueError, match="at least two"):
        stats.fold_difference([1, 2], [0, 0], Sizes(400, 100))


def test_the_corrected_t_of_a_split_half_is_scipys_welch() -> None:
    """With test/train = 1/k the factor is 2/k: the plain t of scipy, less a factor of sqrt 2."""
    each = [0.01, 0.03, 0.02, 0.05, 0.04]
    plain = scipy_stats.ttest_1samp(each, 0).statistic
    expected = 2 * scipy_stats.t.sf(plain / math.sqrt(2), 4)
    assert stats.corrected_t_test(each, Sizes(500, 100)) == pytest.approx(expected)


def test_an_unpaired_difference_is_welchs() -> None:
    """As scipy has it; one value on a side has no interval."""
    a, b = [60.0, 62.0, 67.0], [50.0, 51.0, 53.0, 50.0]
    low, high = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert stats.unpaired_difference(a, b) == pytest.approx((12.0, low, high))
    assert stats.unpaired_difference([1.0], b) == Interval(-50.0, None, None)
    assert stats.unpaired_difference([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_mcnemar_over_trainings_is_twice_the_median() -> None:
    """One training: its own p. Three with p 1, 22/1024 and 22/1024: 44/1024."""
    nine_to_one = (np.array([True] * 9 + [False]), np.array([False] * 9 + [True]))
    even = (np.array([True, False]), np.array([False, True]))
    assert stats.mcnemar_over_trainings([nine_to_one]) == pytest.approx(22 / 1024)
    assert stats.mcnemar_over_trainings([even, nine_to_one, nine_to_one]) == pytest.approx(44 / 1024)
    assert stats.mcnemar_over_trainings([even, even]) == 1.0


def test_noise_tells_samples_from_seeds() -> None:
    """Differences made of a part per sample (variance 4), a part per seed (1) and one of its own each (9)."""
    rng = np.random.default_rng(0)
    each = 2 * rng.normal(size=400) + rng.normal(size=(200, 1)) + 3 * rng.normal(size=(200, 400))
    noise = Noise.of(each, GroupDraws(np.arange(400), 1))
    assert noise.shared == pytest.approx(4 / 400, rel=0.15)
    assert noise.single == pytest.approx(13 / 400, rel=0.05)
    assert noise.seeds == pytest.approx(1 + 9 / 400, rel=0.25)
    with pytest.raises(ValueError, match="two of them"):
        Noise.of(each[:1], GroupDraws(np.arange(400), 1))


def test_how_many_seeds_a_difference_takes() -> None:
    """Without spread over seeds it is the binomial bound; with it, the first n whose own formula is small enough."""
    assert Noise.bound(744).detectable(1) == pytest.approx(stats.detectable_difference(744))
    assert Noise.bound(744).seeds_for(0.047) == 1
    assert Noise.bound(744).seeds_for(0.045) is None
    noise = Noise(shared=0.0, single=0.0, seeds=4.0)
    found = noise.seeds_for(2.0)
    assert found is not None
    t = scipy_stats.t
    error = {n: 2 / math.sqrt(n) * (t.ppf(0.975, n - 1) + t.ppf(0.8, n - 1)) for n in (found - 1, found)}
    assert error[found] <= 2.0 < error[found - 1]
    assert (Noise(1.0, 1.0, 0.0).detectable(3), Noise(1.0, 2.0, 0.0).detectable(10**9)) == pytest.approx(
        (2.8, 2.8), abs=0.01
    )
    five = Noise(1.0, 1.0, 0.0).detectable(1, folds=5, sizes=Sizes(400, 100))
    assert five == pytest.approx(math.sqrt(0.2 + 0.25) * (t.ppf(0.975, 4) + t.ppf(0.8, 4)))
    with pytest.raises(ValueError, match="sizes"):
        noise.detectable(3, folds=5)


def two_alike(rng: np.random.Generator, seeds: int, groups: int, luck: float) -> tuple[np.ndarray, np.ndarray]:
    """Hits [seed, sample] of two methods that differ in the luck of their trainings alone, 300 samples in groups."""
    hard = rng.normal(0.8, 1.0, 300) + np.repeat(rng.normal(0, 0.3, groups), 300 // groups)

    def trained() -> np.ndarray:
        return hard + rng.normal(0, luck, (seeds, 1)) + rng.normal(0, 0.7, (seeds, 300)) > 0

    return trained(), trained()


def rejections(seeds: int, groups: int, luck: float, simulations: int) -> float:
    """How often two methods that are alike are told apart at 5 %."""
    rng = np.random.default_rng(0)
    draws = GroupDraws(np.repeat(np.arange(groups), 300 // groups), 999)
    pairs = (two_alike(rng, seeds, groups, luck) for _ in range(simulations))
    return sum(stats.paired_difference(a, b, draws).p < 0.05 for a, b in pairs) / simulations


@pytest.mark.parametrize(("seeds", "groups", "luck"), [(2, 20, 0.15), (3, 300, 0.15), (5, 20, 0.0), (5, 300, 0.15)])
def test_methods_that_are_alike_are_rarely_told_apart(seeds: int, groups: int, luck: float) -> None:
    """At most 5 % of 200 simulations, plus three standard errors of the count; ignoring seeds it would be 40 %."""
    assert rejections(seeds, groups, luck, 200) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_without_its_seeds_the_test_would_not_hold() -> None:
    """What the seeds' part is there for: one training each, taken for the methods, tells the same apart too often."""
    assert rejections(1, 300, 0.15, 200) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("groups", [10, 20, 300])
@pytest.mark.parametrize("luck", [0.0, 0.05, 0.15, 0.4])
def test_methods_that_are_alike_are_rarely_told_apart_at_length(seeds: int, groups: int, luck: float) -> None:
    """The same over 2,000 simulations."""
    assert rejections(seeds, groups, luck, 2000) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_a_difference_that_is_there_is_seen() -> None:
    """Four points on 3,000 samples with five seeds, in at least 90 of 100 simulations."""
    rng = np.random.default_rng(1)
    draws = GroupDraws(np.arange(3000), 499)
    seen = 0
    for _ in range(100):
        hard = rng.random(3000)
        a, b = (hard + rng.normal(0, 0.1, (5, 3000)) + rng.normal(0, 0.003, (5, 1)) < edge for edge in (0.84, 0.80))
        seen += stats.paired_difference(a, b, draws).p < 0.05
    assert seen >= 90


def test_methods_that_are_alike_share_a_tier() -> None:
    """Two methods that are alike beside one that is worse: one tier in at least 95 % of 100 simulations."""
    rng = np.random.default_rng(2)
    draws = GroupDraws(np.arange(300), 499)
    together = 0
    for _ in range(100):
        rows = dict(zip("ab", two_alike(rng, 3, 300, 0.15), strict=True))
        rows["bad"] = rows["a"] & (rng.random((3, 300)) < 0.5)
        means = {name: float(hits.mean()) for name, hits in rows.items()}
        found = stats.tiers(
            means, lambda best, other, rows=rows: stats.paired_difference(rows[best], rows[other], draws).p
        )
        together += any({"a", "b"} <= set(tier) for tier in found)
    assert together >= 95


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
