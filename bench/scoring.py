"""Logits and targets to metrics: the only reader of val and test targets.

A score depends on the set of scored samples alone: not on their order, the batch size or the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from bench.api import Kind
from bench.data.prepared import Prepared
from bench.data.splits import split_positions

MAXIMISED = {"accuracy": True, "macro_f1": True, "mae": False, "pearson": True}
"""Every metric and whether more is better."""


@dataclass(frozen=True)
class Truth:
    """The targets of every split of one fold; a training process never has one."""

    targets: Mapping[str, np.ndarray]  # split -> [sample]
    kind: Kind
    metric: str

    @classmethod
    def of(cls, prepared: Prepared, split: str, fold: int) -> Truth:
        """The targets of a prepared data set under a split."""
        targets = prepared.targets()
        positions = split_positions(prepared.index, fold=fold, kind=split)
        by_split = {name: targets[where] for name, where in positions.items()}
        return cls(by_split, prepared.spec.kind, prepared.spec.metric)

    def score(self, split: str, logits: np.ndarray) -> dict[str, float]:
        """Every metric of the task for the logits of a whole split."""
        target = self.targets[split]
        if len(target) != len(logits):
            raise ValueError(f"{split} has {len(target)} samples and {len(logits)} were scored")
        return score(logits, target, self.kind)

    def best_epoch(self, logits_by_epoch: Sequence[np.ndarray]) -> int:
        """The first epoch with the best val score in the metric of record; the last epoch where there is no val."""
        if len(self.targets["val"]) == 0:
            return len(logits_by_epoch) - 1
        return best([self.score("val", logits)[self.metric] for logits in logits_by_epoch], self.metric)


def score(
    logits: Float[np.ndarray, "sample outputs"], target: Shaped[np.ndarray, " sample"], kind: Kind
) -> dict[str, float]:
    """Accuracy and macro-F1 for classes; mean absolute error and Pearson correlation for regression."""
    if kind == "classes":
        predicted = logits.argmax(axis=1)
        return {
            "accuracy": float((predicted == target).mean()),
            "macro_f1": macro_f1(predicted, target, logits.shape[1]),
        }
    return {"mae": float(np.abs(logits[:, 0] - target).mean()), "pearson": pearson(logits[:, 0], target)}


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
