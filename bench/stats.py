"""What the numbers of several seeds, folds and data sets say: intervals, paired tests, tiers, power.

Nothing here rounds, prints or knows of trials. Scores are larger-is-better unless said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import stats

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean and the bounds of its interval; bounds are None where one value says nothing of the spread."""

    mean: float
    low: float | None
    high: float | None


class Sizes(NamedTuple):
    """How many samples one fold trains and tests on."""

    train: int
    test: int


@dataclass(frozen=True)
class Difference:
    """The paired difference A - B of two mean scores, with its 95 % interval and two-sided p."""

    mean: float
    low: float
    high: float
    p: float
    error: float
    """Standard error, over all that was drawn: groups, and seeds or folds."""
    df: float
    """Degrees of freedom of the error."""

    def detectable(self, power: float = 0.8, alpha: float = 0.05) -> float:
        """The smallest true difference that a comparison with this error shows with this power."""
        return _multiple(self.df, power, alpha) * self.error


@dataclass(frozen=True)
class Comparison:
    """A test over data sets. It is underpowered where not even the clearest outcome could reach `alpha`."""

    p: float
    smallest_p: float
    alpha: float = 0.05

    @property
    def underpowered(self) -> bool:
        """Whether no outcome could have been significant."""
        return self.smallest_p >= self.alpha

    @property
    def verdict(self) -> str:
        """`significant`, `not significant` or `underpowered`."""
        if self.underpowered:
            return "underpowered"
        return "significant" if self.p < self.alpha else "not significant"


def interval(
    values: Sequence[float], level: float = 0.95, *, folds: Sequence[int] | None = None, sizes: Sizes | None = None
) -> Interval:
    """The mean of the scores of one cell with Student's t interval over seeds, or over folds where there are several.

    `folds[i]` is the fold of `values[i]`. Train parts of folds overlap, so that a plain t interval over them is too
    narrow: with several folds the seeds of a fold are averaged and the variance takes the factor of Nadeau and
    Bengio (Inference for the Generalization Error, 2003), 1/k + test/train. Raises ValueError without `sizes` there.
    """
    scores = np.asarray(values, dtype=np.float64)
    if len(scores) == 0:
        raise ValueError("an interval needs at least one value")
    if folds is None or len(set(folds)) < 2:
        factor = 1 / len(scores)
    else:
        if sizes is None:
            raise ValueError("a plain t interval over folds is refused: give the sizes of train and test")
        of_fold = np.asarray(folds)
        scores = np.array([scores[of_fold == fold].mean() for fold in sorted(set(folds))])
        factor = 1 / len(scores) + sizes.test / sizes.train
    mean = float(scores.mean())
    if len(scores) < 2:
        return Interval(mean, None, None)
    error = math.sqrt(factor * float(scores.var(ddof=1)))
    half = float(stats.t.ppf((1 + level) / 2, len(scores) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def corrected_t_test(differences: Sequence[float], sizes: Sizes) -> float:
    """The two-sided p of paired differences over folds under Nadeau and Bengio's corrected t."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a test over folds needs at least two, found {len(values)}")
    error = math.sqrt((1 / len(values) + sizes.test / sizes.train) * float(values.var(ddof=1)))
    if error == 0:
        return 1.0 if values[0] == 0 else 0.0
    return float(2 * stats.t.sf(abs(values.mean()) / error, len(values) - 1))


class GroupDraws:
    """How often every group is drawn in each resample of a bootstrap over whole groups; comparisons can share it.

    Raises ValueError for fewer than two groups.
    """

    def __init__(self, groups: Shaped[np.ndarray, " sample"], resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.groups = np.asarray(groups)
        _, self.member = np.unique(self.groups, return_inverse=True)
        self.size = np.bincount(self.member)
        self.resamples, self.seed = resamples, seed
        if len(self.size) < 2:
            raise ValueError("a bootstrap over groups needs at least two of them")

    @cached_property
    def counts(self) -> Shaped[np.ndarray, "resample group"]:
        """Draws with replacement, as many as there are groups."""
        rng, number = np.random.default_rng(self.seed), len(self.size)
        counts = np.empty((self.resamples, number), dtype=np.uint8 if number < 256 else np.uint16)
        step = max(1, 4_000_000 // number)
        for start in range(0, self.resamples, step):
            rows = min(step, self.resamples - start)
            drawn = rng.integers(number, size=(rows, number)) + number * np.arange(rows)[:, None]
            counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number)
        return counts

    @cached_property
    def drawn(self) -> Float[np.ndarray, " resample"]:
        """How many samples each resample has."""
        return self._sums(self.size.astype(np.float64))

    def means(self, values: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " resample"]:
        """The mean of the values in every resample."""
        means: np.ndarray = self._sums(np.bincount(self.member, weights=values)) / self.drawn
        return means

    def _sums(self, of_group: Float[np.ndarray, " group"]) -> Float[np.ndarray, " resample"]:
        step = max(1, 1_000_000 // len(self.size))  # counts of one byte are widened piece by piece
        pieces = range(0, self.resamples, step)
        return np.concatenate([self.counts[i : i + step].astype(np.float64) @ of_group for i in pieces])

    def influence(self, values: Float[np.ndarray, "*rest sample"]) -> Float[np.ndarray, "*rest group"]:
        """What each group adds to the error of a mean: the sum of squares over groups is its variance."""
        number = len(self.size)
        flat = values.reshape(-1, values.shape[-1])
        total = np.stack([np.bincount(self.member, weights=one) for one in flat])  # [rest, group]
        centred = total - flat.mean(axis=1, keepdims=True) * self.size
        scaled: np.ndarray = math.sqrt(number / (number - 1)) * centred / len(self.member)
        return scaled.reshape(*values.shape[:-1], number)


def paired_difference(
    scores_a: Shaped[np.ndarray, "*seed sample"], scores_b: Shaped[np.ndarray, "*seed sample"], draws: GroupDraws
) -> Difference:
    """The difference of two methods' mean scores on the same samples, paired by seed and sample.

    Whole groups are resampled with what a sample contributes averaged over seeds, and the resampled means are
    expanded for the number of groups (Hesterberg, What Teachers Should Know About the Bootstrap, 2015, section 5.2).
    With a seed axis of two or more, Student's t of the seeds' differences is added to every resample: otherwise two
    methods that differ in nothing but luck of their seeds would be told apart. With one seed the answer is about
    these two trainings and says nothing of the methods.
    """
    if scores_a.shape != scores_b.shape or scores_a.shape[-1] != len(draws.groups):
        raise ValueError(
            f"paired scores need the same seeds and samples: {scores_a.shape}, {scores_b.shape}, {len(draws.groups)}"
        )
    each = scores_a.astype(np.float64) - scores_b.astype(np.float64)
    each = each.reshape(-1, each.shape[-1])  # [seed, sample]
    per_sample = each.mean(axis=0)
    mean, groups, seeds = float(per_sample.mean()), len(draws.size), len(each)
    of_groups = float((draws.influence(per_sample) ** 2).sum())
    expansion = math.sqrt(groups / (groups - 1)) * float(stats.t.ppf(0.975, groups - 1) / stats.norm.ppf(0.975))
    replicates = mean + expansion * (draws.means(per_sample) - mean)
    of_seeds = 0.0
    if seeds > 1:
        of_seeds = float(each.mean(axis=1).var(ddof=1)) / seeds
        noise = np.random.default_rng([draws.seed, seeds]).standard_t(seeds - 1, size=draws.resamples)
        replicates = replicates + math.sqrt(of_seeds) * noise
    variance = of_groups + of_seeds
    df = variance**2 / (of_groups**2 / (groups - 1) + of_seeds**2 / max(seeds - 1, 1)) if variance > 0 else groups - 1
    tail = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    low, high = np.quantile(replicates, (0.025, 0.975))
    p = min(1.0, 2 * (tail + 1) / (draws.resamples + 1))
    return Difference(mean, float(low), float(high), p, math.sqrt(variance), df)


def fold_difference(differences: Sequence[float], folds: Sequence[int], sizes: Sizes) -> Difference:
    """The difference over several folds: Nadeau and Bengio's corrected t, the seeds of a fold averaged."""
    mean, low, high = interval(differences, folds=folds, sizes=sizes)
    values, of_fold = np.asarray(differences, dtype=np.float64), np.asarray(folds)
    by_fold = [float(values[of_fold == fold].mean()) for fold in sorted(set(folds))]
    if low is None or high is None:
        raise ValueError(f"a difference over folds needs at least two, found {sorted(set(folds))}")
    error = (high - low) / 2 / float(stats.t.ppf(0.975, len(by_fold) - 1))
    return Difference(mean, low, high, corrected_t_test(by_fold, sizes), error, len(by_fold) - 1)


def unpaired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The difference of two means over unrelated trainings, with Welch's 95 % interval where both have two values."""
    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Interval(mean, None, None)
    if np.var(a) == np.var(b) == 0:
        return Interval(mean, mean, mean)
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return Interval(mean, float(low), float(high))


def difference_of_means(a: Interval, units_a: int, b: Interval, units_b: int) -> Interval:
    """The difference of two unrelated means with Welch's 95 % interval, from theirs (Student's t over so many units).

    For seeds it is `unpaired_difference`; units may also be folds, whose intervals are wider than a plain t's.
    """
    mean = a.mean - b.mean
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Interval(mean, None, None)
    variances = [
        ((high - low) / 2 / float(stats.t.ppf(0.975, units - 1))) ** 2
        for low, high, units in ((a.low, a.high, units_a), (b.low, b.high, units_b))
    ]
    if sum(variances) == 0:
        return Interval(mean, mean, mean)
    df = sum(variances) ** 2 / sum(v**2 / (units - 1) for v, units in zip(variances, (units_a, units_b), strict=True))
    half = float(stats.t.ppf(0.975, df)) * math.sqrt(sum(variances))
    return Interval(mean, mean - half, mean + half)


def mcnemar(correct_a: Bool[np.ndarray, " sample"], correct_b: Bool[np.ndarray, " sample"]) -> float:
    """The exact two-sided p that two methods are wrong equally often, from the samples only one of them gets right."""
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def mcnemar_over_trainings(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Twice the median p of several paired trainings: valid although they share test samples (Rüger, 1978)."""
    each = [mcnemar(a, b) for a, b in pairs]
    return each[0] if len(each) == 1 else min(1.0, 2 * float(np.median(each)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of one family, in the order given."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def win_probability(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """P(A > B) over paired seeds, ties counting half, with Clopper and Pearson's interval."""
    if len(a) != len(b) or not a:
        raise ValueError(f"paired seeds need as many scores on both sides: {len(a)} and {len(b)}")
    wins = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in zip(a, b, strict=True))
    losses, tail = len(a) - wins, (1 - level) / 2
    # Written by the beta distribution, because scipy's binomial interval takes no half wins.
    low = float(stats.beta.ppf(tail, wins, losses + 1)) if wins else 0.0
    high = float(stats.beta.ppf(1 - tail, wins + 1, losses)) if losses else 1.0
    return Interval(wins / len(a), low, high)


def tiers(
    means: Mapping[str, float], p_value: Callable[[str, str], float], alpha: float = 0.05
) -> list[tuple[str, ...]]:
    """Names in tiers: the best mean and everything not significantly below it; then again without those.

    `p_value(best, other)` is a paired test's; the tests of one tier are one family under Holm.
    """
    left = sorted(means, key=lambda name: -means[name])
    found: list[tuple[str, ...]] = []
    while left:
        best, *others = left
        adjusted = holm([p_value(best, other) for other in others])
        below = {other for other, p in zip(others, adjusted, strict=True) if p < alpha}
        found.append(tuple(name for name in left if name not in below))
        left = [name for name in left if name in below]
    return found


def detectable_difference(samples: int, discordance: float = 0.2, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest paired difference of two accuracies that `samples` test samples show with this power.

    `discordance` is the fraction of samples that exactly one of the two gets right.
    """
    return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * math.sqrt(discordance / samples)


@dataclass(frozen=True)
class Noise:
    """Where the error of a paired difference on one fold comes from, as variances of its mean over the samples."""

    shared: float
    """Of the samples, in what all seeds have in common: more seeds do not help."""
    single: float
    """Of the samples, for one seed."""
    seeds: float
    """Between the seeds' mean differences."""

    @classmethod
    def of(cls, each: Float[np.ndarray, "seed sample"], draws: GroupDraws) -> Noise:
        """Estimated from the paired differences of at least two seeds, groups kept together."""
        if len(each) < 2:
            raise ValueError(f"what seeds have in common needs two of them, found {len(each)}")
        influence = draws.influence(each)  # [seed, group]
        products = influence @ influence.T
        single = float(np.trace(products)) / len(each)
        shared = (float(products.sum()) - float(np.trace(products))) / (len(each) * (len(each) - 1))
        return cls(min(max(shared, 0.0), single), single, float(each.mean(axis=1).var(ddof=1)))

    @classmethod
    def bound(cls, samples: int, discordance: float = 0.2) -> Noise:
        """What can be said without a history: the binomial part, as if all of it were the samples'."""
        return cls(discordance / samples, discordance / samples, 0.0)

    def detectable(
        self, seeds: int, folds: int = 1, sizes: Sizes | None = None, power: float = 0.8, alpha: float = 0.05
    ) -> float:
        """The smallest difference that so many seeds on so many folds show, under the tests made here."""
        of_samples = self.shared + (self.single - self.shared) / seeds
        of_seeds = self.seeds / seeds
        if folds > 1:
            if sizes is None:
                raise ValueError("power over several folds needs the sizes of train and test")
            error = math.sqrt((1 / folds + sizes.test / sizes.train) * (of_samples + of_seeds))
            return _multiple(folds - 1, power, alpha) * error
        variance = of_samples + of_seeds
        df = math.inf if of_seeds == 0 or seeds < 2 else variance**2 / (of_seeds**2 / (seeds - 1))
        return _multiple(df, power, alpha) * math.sqrt(variance)

    def seeds_for(self, difference: float, folds: int = 1, sizes: Sizes | None = None, most: int = 1000) -> int | None:
        """The fewest seeds that show a difference with 80 % power; None where `most` of them do not."""
        fewest = 1 if self.seeds == 0 else 2
        enough = (n for n in range(fewest, most + 1) if self.detectable(n, folds, sizes) <= difference)
        return next(enough, None)


def friedman(scores: Shaped[np.ndarray, "dataset method"]) -> tuple[float, list[float]]:
    """The p that all methods rank alike over data sets, and each method's mean rank (1 is best)."""
    if scores.ndim != 2 or scores.shape[1] < 3 or scores.shape[0] < 2:
        raise ValueError(f"Friedman's test needs three methods on two data sets, found {scores.shape[::-1]}")
    ranks = stats.rankdata(-scores, axis=1).mean(axis=0)
    if (scores == scores[:, :1]).all():
        return 1.0, ranks.tolist()
    return float(stats.friedmanchisquare(*scores.T).pvalue), ranks.tolist()


def wilcoxon(a: Sequence[float], b: Sequence[float], alpha: float = 0.05) -> Comparison:
    """Wilcoxon's signed-rank test over paired data sets; pairs without a difference say nothing and are dropped."""
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    differences = differences[differences != 0]
    if len(differences) == 0:
        return Comparison(1.0, 1.0, alpha)
    smallest = 2.0 ** (1 - len(differences))  # every sign alike
    return Comparison(float(stats.wilcoxon(differences).pvalue), smallest, alpha)


def _multiple(df: float, power: float, alpha: float) -> float:
    """How many standard errors a true difference must have to be shown."""
    return float(stats.t.ppf(1 - alpha / 2, df) + stats.t.ppf(power, df))
