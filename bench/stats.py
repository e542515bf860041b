"""What the numbers of several seeds, folds and data sets say: intervals, paired tests, tiers.

Nothing here rounds, prints or knows of trials. Scores are larger-is-better unless said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
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
    """The paired difference A - B of two accuracies, as fractions, with its 95 % interval and two-sided p."""

    mean: float
    low: float
    high: float
    p: float


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


def accuracy_difference(
    correct_a: Shaped[np.ndarray, "*seed sample"],
    correct_b: Shaped[np.ndarray, "*seed sample"],
    groups: Shaped[np.ndarray, " sample"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The difference of two methods' accuracies on the same samples, by a paired bootstrap over whole groups.

    With a seed axis, what a sample contributes is its mean over seeds. Raises ValueError for fewer than two groups.
    """
    if correct_a.shape[-1] != correct_b.shape[-1] or correct_a.shape[-1] != len(groups):
        raise ValueError(
            f"paired scores need the same samples: {correct_a.shape[-1]}, {correct_b.shape[-1]}, {len(groups)}"
        )
    each = _per_sample(correct_a) - _per_sample(correct_b)
    _, member = np.unique(groups, return_inverse=True)
    size = np.bincount(member)
    if len(size) < 2:
        raise ValueError("a bootstrap over groups needs at least two of them")
    total = np.bincount(member, weights=each)
    drawn = stats.bootstrap(
        (total, size),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(size)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    means = drawn.bootstrap_distribution
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    low, high = drawn.confidence_interval
    return Difference(float(each.mean()), float(low), float(high), min(1.0, 2 * (tail + 1) / (resamples + 1)))


def mcnemar(correct_a: Bool[np.ndarray, " sample"], correct_b: Bool[np.ndarray, " sample"]) -> float:
    """The exact two-sided p that two methods are wrong equally often, from the samples only one of them gets right."""
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


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


def _per_sample(correct: np.ndarray) -> np.ndarray:
    return correct.astype(np.float64).reshape(-1, correct.shape[-1]).mean(axis=0)


def _ratio(total: np.ndarray, size: np.ndarray, axis: int) -> np.ndarray:
    ratio: np.ndarray = total.sum(axis=axis) / size.sum(axis=axis)
    return ratio
