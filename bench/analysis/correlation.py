"""Correlation over samples with a bootstrap interval and a permutation null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import rankdata

from bench.scoring import pearson
from bench.stats import GroupDraws

RESAMPLES, PERMUTATIONS = 2_000, 1_000


@dataclass(frozen=True)
class Correlation:
    """Pearson's r with its 95 % interval, Spearman's rho, and what chance gives."""

    r: float
    low: float
    high: float
    spearman: float
    null: float
    """The |r| that 95 % of random pairings stay below."""
    p: float
    """Two-sided, from the permutations: at least 1 / (permutations + 1)."""
    pairs: int


def draws_over(groups: Shaped[np.ndarray, " pair"]) -> GroupDraws:
    """Resamples of whole groups (a sample's pairs, an actor's samples) that several correlations can share.

    Raises ValueError for fewer than two groups.
    """
    return GroupDraws(groups, RESAMPLES)


def correlate(
    x: Float[np.ndarray, " pair"], y: Float[np.ndarray, " pair"], draws: GroupDraws, seed: int = 0
) -> Correlation:
    """Pearson's correlation of x and y.

    The interval is the bootstrap's percentiles, the null that of y in random order. A constant side gives 0.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    r = pearson(x, y)
    low, high = np.quantile(_resampled(x, y, draws), (0.025, 0.975))
    chance = np.abs(_permuted(x, y, np.random.default_rng([seed, len(x)])))
    return Correlation(
        r=r,
        low=float(low),
        high=float(high),
        spearman=pearson(rankdata(x), rankdata(y)),
        null=float(np.quantile(chance, 0.95)),
        p=float((1 + (chance >= abs(r) - 1e-12).sum()) / (1 + len(chance))),
        pairs=len(x),
    )


def _resampled(x: np.ndarray, y: np.ndarray, draws: GroupDraws) -> np.ndarray:
    """r of every resample, from the resampled moments of the standardised sides."""
    x, y = _standard(x), _standard(y)
    mean_x, mean_y = draws.means(x), draws.means(y)
    covariance = draws.means(x * y) - mean_x * mean_y
    variances = (draws.means(x * x) - mean_x**2) * (draws.means(y * y) - mean_y**2)
    scale = np.sqrt(np.clip(variances, 0.0, None))
    return np.where(scale > 1e-12, covariance / np.maximum(scale, 1e-12), 0.0)


def _permuted(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """r of x with y in random order, many times."""
    x, y = _standard(x) / len(x), _standard(y)
    return np.array([x @ rng.permutation(y) for _ in range(PERMUTATIONS)])


def _standard(values: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1; zeros where there is no spread."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-12 * (1 + np.abs(values).max()) else np.zeros(len(values))


def contrast(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How far every modality's value [sample] is above the mean of the others'; a - v and v - a for two."""
    total = np.sum(list(values.values()), axis=0)
    return {m: x - (total - x) / (len(values) - 1) for m, x in values.items()}
