"""Logits and targets to metrics: the only reader of val and test targets.

A score depends on the set of scored samples alone: not on their order, the batch size or the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bench.api import Kind
from bench.data.prepared import Prepared
from bench.data.splits import SPLITS, sample_groups, split_positions

MAXIMISED = {
    "accuracy": True,
    "macro_f1": True,
    "mae": False,
    "pearson": True,
    "acc2": True,
    "f1": True,
    "acc2_nonzero": True,
    "f1_nonzero": True,
    "acc7": True,
}
"""Every metric and whether more is better."""

SAMPLE_MEANS = frozenset({"accuracy", "mae"})
"""Metrics of record that are means over samples, so that two methods can be compared sample by sample."""


@dataclass(frozen=True)
class Truth:
    """The targets of every split of one fold; a training process never has one."""

    targets: Mapping[str, np.ndarray]  # split -> [sample]
    kind: Kind
    metric: str
    scale: tuple[float, float] | None = None
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)  # split -> [sample], what may not cross a split

    @classmethod
    def of(cls, prepared: Prepared, split: str, fold: int, parts: Collection[str] = SPLITS) -> Truth:
        """The targets of a prepared data set under a split; of the `parts` of it that may be known by now."""
        targets = prepared.targets()
        found = split_positions(prepared.index, fold=fold, kind=split)
        positions = {name: where for name, where in found.items() if name in parts}
        by_split = {name: targets[where] for name, where in positions.items()}
        all_groups = sample_groups(prepared.index)
        groups = {name: all_groups[where] for name, where in positions.items()}
        return cls(by_split, prepared.spec.kind, prepared.spec.metric, prepared.spec.scale, groups)

    def score(self, split: str, logits: np.ndarray) -> dict[str, float]:
        """Every metric of the task for the logits of a whole split."""
        target = self.targets[split]
        if len(target) != len(logits):
            raise ValueError(f"{split} has {len(target)} samples and {len(logits)} were scored")
        return score(logits, target, self.kind, self.scale)

    def per_sample(self, split: str, logits: np.ndarray) -> Shaped[np.ndarray, " sample"] | None:
        """What each sample adds to the metric of record, more being better; None where it is no mean over samples."""
        target = self.targets[split]
        if self.metric == "accuracy":
            hits: np.ndarray = logits.argmax(axis=1) == target
            return hits
        if self.metric == "mae":
            return -np.abs(logits[:, 0] - target)
        return None

    def best_epoch(self, logits_by_epoch: Sequence[np.ndarray]) -> int:
        """The first epoch with the best val score in the metric of record; the last epoch where there is no val."""
        if len(self.targets["val"]) == 0:
            return len(logits_by_epoch) - 1
        return best([self.score("val", logits)[self.metric] for logits in logits_by_epoch], self.metric)


def score(
    logits: Float[np.ndarray, "sample outputs"],
    target: Shaped[np.ndarray, " sample"],
    kind: Kind,
    scale: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Accuracy and macro-F1 for classes; mean absolute error and Pearson correlation for regression.

    On a sentiment scale also Acc-2 and F1 for negative against the rest, the same for negative against positive over
    the targets that are not 0, and Acc-7: value and target clipped to the scale and rounded to whole numbers.
    """
    if kind == "classes":
        predicted = logits.argmax(axis=1)
        return {
            "accuracy": float((predicted == target).mean()),
            "macro_f1": macro_f1(predicted, target, logits.shape[1]),
        }
    value = logits[:, 0]
    errors = {"mae": float(np.abs(value - target).mean()), "pearson": pearson(value, target)}
    return errors if scale is None else {**errors, **sentiment(value, target, scale)}


def sentiment(
    value: Float[np.ndarray, " sample"], target: Float[np.ndarray, " sample"], scale: tuple[float, float]
) -> dict[str, float]:
    """The further scores of CMU-MOSI and CMU-MOSEI; those without 0 only where a target is not 0."""
    steps, true_steps = (np.rint(np.clip(x, *scale)) for x in (value, target))
    scores = {
        "acc2": float(((value >= 0) == (target >= 0)).mean()),
        "f1": weighted_f1(value >= 0, target >= 0),
        "acc7": float((steps == true_steps).mean()),
    }
    polar = target != 0
    if polar.any():
        positive, truth = value[polar] > 0, target[polar] > 0
        scores |= {"acc2_nonzero": float((positive == truth).mean()), "f1_nonzero": weighted_f1(positive, truth)}
    return scores


def weighted_f1(predicted: Bool[np.ndarray, " sample"], target: Bool[np.ndarray, " sample"]) -> float:
    """The mean of both classes' F1, weighted by how often each is the target."""
    total = 0.0
    for side in (False, True):
        hits = int(((predicted == side) & (target == side)).sum())
        marked = int((predicted == side).sum()) + int((target == side).sum())
        total += 2 * hits / max(marked, 1) * float((target == side).mean())
    return total


def macro_f1(predicted: Int[np.ndarray, " sample"], target: Int[np.ndarray, " sample"], num_classes: int) -> float:
    """The unweighted mean of the classes' F1, over classes that occur in target or prediction."""
    hits = np.bincount(target[predicted == target], minlength=num_classes)
    total = np.bincount(predicted, minlength=num_classes) + np.bincount(target, minlength=num_classes)
    present = total > 0
    return float((2 * hits[present] / total[present]).mean())


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def best(scores: Sequence[float], metric: str) -> int:
    """The index of the first best score."""
    pick: Callable[[Sequence[float]], float] = max if MAXIMISED[metric] else min
    return list(scores).index(pick(scores))


def improves(value: float, reference: float | None, metric: str) -> bool:
    """Whether a score is strictly better than the best so far."""
    if reference is None:
        return True
    return value > reference if MAXIMISED[metric] else value < reference
