"""What can be predicted without understanding anything: from the group alone, or from the nearest train sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped
from scipy import stats

SHUFFLES = 200
CEILING, SUSPECT = 0.995, 0.98
"""A score is at the ceiling if it is at least the second and its 95 % interval reaches the first."""


@dataclass(frozen=True)
class GroupPrior:
    """What the group says of the class among the train samples."""

    bits: float
    """Mutual information of group and class."""
    shuffled_bits: float
    """The same if classes were dealt out at random, mean over shuffles."""
    accuracy: float
    """Of guessing each group's most frequent class, on the samples it was counted on."""
    shuffled_accuracy: float
    p: float
    """How often shuffled classes share as much information with the groups."""


@dataclass(frozen=True)
class Score:
    """A score that should be hard to get, on one part of a split."""

    predictor: str
    part: str
    accuracy: float
    low: float
    high: float
    samples: int

    @property
    def at_ceiling(self) -> bool:
        """Whether it is as good as perfect: then the answer is likely to be in the input, or in train."""
        return self.accuracy >= SUSPECT and self.high >= CEILING

    @classmethod
    def of(cls, predictor: str, part: str, hits: int, samples: int) -> Score:
        """With Clopper and Pearson's 95 % interval."""
        low, high = stats.binomtest(hits, samples).proportion_ci(0.95)
        return cls(predictor, part, hits / samples, float(low), float(high), samples)


def group_prior(groups: Shaped[np.ndarray, " sample"], classes: Int[np.ndarray, " sample"]) -> GroupPrior | None:
    """Mutual information against shuffled classes; None where groups or classes do not vary, or no two samples share
    a group.
    """
    _, member = np.unique(groups, return_inverse=True)
    _, label = np.unique(classes, return_inverse=True)
    if len(groups) == 0 or member.max() == 0 or label.max() == 0 or member.max() + 1 == len(groups):
        return None
    bits, accuracy = _shared(member, label)
    rng = np.random.default_rng(0)
    shuffled = np.array([_shared(member, rng.permutation(label)) for _ in range(SHUFFLES)])  # [shuffle, 2]
    as_much = int((shuffled[:, 0] >= bits - 1e-12).sum())
    means = shuffled.mean(axis=0)
    return GroupPrior(bits, float(means[0]), accuracy, float(means[1]), (as_much + 1) / (SHUFFLES + 1))


def score_by_group(
    part: str,
    train: tuple[Shaped[np.ndarray, " sample"], Int[np.ndarray, " sample"]],
    other: tuple[Shaped[np.ndarray, " sample"], Int[np.ndarray, " sample"]],
) -> Score | None:
    """Each group's most frequent class in train, on the samples of another part whose group train knows; None for
    none.
    """
    names, member = np.unique(train[0], return_inverse=True)
    known = np.isin(other[0], names)
    if not known.any():
        return None
    width = int(max(train[1].max(), other[1].max())) + 1
    table = np.bincount(member * width + train[1], minlength=len(names) * width).reshape(len(names), width)
    predicted = table.argmax(axis=1)[np.searchsorted(names, other[0][known])]
    return Score.of("the group alone", part, int((predicted == other[1][known]).sum()), int(known.sum()))


def _shared(member: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Mutual information in bits, and the accuracy of each group's most frequent class."""
    width = int(label.max()) + 1
    table = np.bincount(member * width + label, minlength=(int(member.max()) + 1) * width).reshape(-1, width)
    joint = table / len(label)
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    held = joint > 0
    bits = float((joint[held] * np.log2(joint[held] / expected[held])).sum())
    return max(bits, 0.0), float(table.max(axis=1).sum() / len(label))
