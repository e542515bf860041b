"""Two rows of a section against each other, paired by training and test sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from bench import stats
from bench.report.cell import Cell
from bench.stats import Difference, GroupDraws, Interval, Noise

HOW = (
    "Paired tests: on one fold a bootstrap over whole groups of test samples (10,000 resamples, seed 0), what a "
    "sample contributes averaged over the seeds both rows have, with Student's t of the seeds' differences added to "
    "every resample; over several folds Nadeau and Bengio's corrected t, the seeds of a fold averaged"
)
"""What stands behind every p."""


@dataclass(frozen=True)
class Compared:
    """How much better the first row is, in the unit the metric is shown in; more is always better."""

    difference: Difference
    mcnemar: float | None
    """Exact, from the samples only one row gets right; over several trainings twice the median. None for errors."""
    wins: Interval
    """P(first > second) over paired trainings, ties counting half."""
    noise: Noise | None
    """Of one fold, the mean where there are several; None where the rows share one seed."""
    discordance: float | None
    """The fraction of samples that exactly one row gets right, mean over trainings; None for errors."""
    trainings: int
    """Pairs of one fold and seed."""
    num_seeds: int


@dataclass(frozen=True, eq=False)
class _Fold:
    """What two rows share of one fold."""

    ours: Shaped[np.ndarray, "seed sample"]
    theirs: Shaped[np.ndarray, "seed sample"]
    draws: GroupDraws

    @property
    def each(self) -> Float[np.ndarray, "seed sample"]:
        """The paired differences."""
        return self.ours.astype(np.float64) - self.theirs.astype(np.float64)


class Comparer:
    """Compares rows of one section; resamples are drawn once per fold and shared."""

    def __init__(self) -> None:
        self._draws: dict[int, GroupDraws] = {}

    def compare(self, first: Cell, second: Cell) -> Compared | None:
        """The comparison over the trainings both rows have; None where there are none, or no test is possible."""
        shared = sorted(first.samples.keys() & second.samples.keys())
        parts = [self._fold(first, second, fold, shared) for fold in sorted({fold for fold, _ in shared})]
        folds = [part for part in parts if part is not None]
        if not folds or len(folds) < len(parts) or first.sizes is None:
            return None
        means = [float(mean) for part in folds for mean in part.each.mean(axis=1)]
        if len(folds) > 1:
            difference = stats.fold_difference(means, [fold for fold, _ in shared], first.sizes)
        else:
            difference = stats.paired_difference(folds[0].ours, folds[0].theirs, folds[0].draws)
        trainings = [pair for part in folds for pair in zip(part.ours, part.theirs, strict=True)]
        hits = all(side.dtype == bool for pair in trainings for side in pair)
        return Compared(
            difference=_scaled(difference, first.shown(1.0)),
            mcnemar=stats.mcnemar_over_trainings(trainings) if hits else None,
            wins=stats.win_probability(means, [0.0] * len(means)),
            noise=_noise(folds, first.shown(1.0)),
            discordance=float(np.mean([(a != b).mean() for a, b in trainings])) if hits else None,
            trainings=len(shared),
            num_seeds=len({seed for _, seed in shared}),
        )

    def _fold(self, first: Cell, second: Cell, fold: int, shared: Sequence[tuple[int, int]]) -> _Fold | None:
        """None where the rows' samples are not the same, or are all of one group."""
        keys = [key for key in shared if key[0] == fold]
        ours, theirs = [first.samples[key] for key in keys], [second.samples[key] for key in keys]
        groups = ours[0].group
        if any(not np.array_equal(one.group, groups) for one in (*ours, *theirs)) or len(np.unique(groups)) < 2:
            return None
        if fold not in self._draws or not np.array_equal(self._draws[fold].groups, groups):
            self._draws[fold] = GroupDraws(groups)
        return _Fold(np.stack([one.score for one in ours]), np.stack([one.score for one in theirs]), self._draws[fold])


def _scaled(difference: Difference, unit: float) -> Difference:
    return dataclasses.replace(
        difference, **{name: unit * getattr(difference, name) for name in ("mean", "low", "high", "error")}
    )


def _noise(folds: Sequence[_Fold], unit: float) -> Noise | None:
    each = [Noise.of(part.each, part.draws) for part in folds if len(part.ours) > 1]
    if not each:
        return None
    names = [field.name for field in dataclasses.fields(Noise)]
    return Noise(**{name: unit**2 * float(np.mean([getattr(one, name) for one in each])) for name in names})
