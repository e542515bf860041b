"""A cell: one method on one data set under one protocol, its seeds and folds together."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from bench import names
from bench.protocols import Selection
from bench.stats import Sizes

PERCENT = frozenset({"accuracy", "macro_f1"})
"""Metrics that are fractions and shown in percent."""
UNGUARDED = "trained unguarded, in one process with the targets"
"""What a note says of trials that nobody watched."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What one training does on each test sample, in the order of the split; compared where both rows have it."""

    score: Shaped[np.ndarray, " sample"]
    """Whether it is right, or its negative absolute error: more is better."""
    group: Int[np.ndarray, " sample"]


@dataclass(frozen=True)
class Cell:
    """One row of a table. None is what cannot be known."""

    method: str
    label: str
    dataset: str
    dataset_label: str
    protocol: str
    metric: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n_seeds: int = 0
    n_folds: int = 0
    trial_ids: tuple[str, ...] = ()
    """Finished ones, the parts of a derived row included."""
    accuracy_mean: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    macro_f1: float | None = None
    unimodal: Mapping[str, float] = field(default_factory=dict)
    """The metric of each modality's own logits on test, at the trial's stored epoch."""
    air: float | None = None
    attention_mass: Mapping[str, float] = field(default_factory=dict)
    """Mean over test, at the trial's stored epoch."""
    cost: Mapping[str, float] = field(default_factory=dict)
    """The fields of `bench.cost.Cost`, `published_gflops`, `step_ms`, and `forwards` and `backwards` of a training
    per train sample; a derived row's is the sum of its parts."""
    tuning: Mapping[str, int] = field(default_factory=lambda: {"trials": 0, "epochs": 0})
    """What its settings cost to find: trials and epochs of tuning, 0 where they are the defaults or were typed."""
    values: tuple[float, ...] = ()
    """One score per finished (fold, seed), in the order of `seeds` and `folds`."""
    seeds: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()
    wanted: int = 0
    """How many (fold, seed) were asked for."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Trial id -> cause, of those that ended early."""
    splits: Mapping[int, str] = field(default_factory=dict)
    """Fold -> hash of the effective split; where trials of a row differ in it, all of them."""
    sizes: Sizes | None = None
    """Of a fold's train and test part; the mean where folds differ."""
    modalities: tuple[str, ...] = ()
    """All of the data set."""
    derived: bool = False
    recipe: str = ""
    data_fingerprint: str = ""
    note: str = ""
    samples: Mapping[tuple[int, int], Samples] = field(default_factory=dict, compare=False, repr=False)
    """(fold, seed) -> what a paired test reads; empty where targets were never at hand."""
    selections: Mapping[Selection, tuple[float, ...]] = field(default_factory=dict, compare=False, repr=False)
    """How the epoch is selected -> scores in the order of `values`; only the audit of selections shows them."""
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict, compare=False, repr=False)
    """`AIR` and `mass <modality>` after every epoch, means over trainings and sites."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the fusion and its strategies, in order, without settings."""
        return tuple(names.split_settings(text)[0] for text in split_method(self.method))

    @property
    def digits(self) -> int:
        """How many decimals the metric is shown with."""
        return 1 if self.metric in PERCENT else 3

    def identity(self) -> dict[str, str]:
        """What tells this row from others in a file of values."""
        return {name: getattr(self, name) for name in ("dataset", "protocol", "label", "method", "metric")}

    def shown(self, value: float) -> float:
        """A value of the metric in the unit it is shown in."""
        return shown(self.metric, value)


def split_method(text: str) -> list[str]:
    """The texts of a method's fusion and strategies."""
    return re.split(r"\+(?=[a-z_])", text)


def shown(metric: str, value: float) -> float:
    """A value in the unit it is shown in: percent for fractions."""
    return 100 * value if metric in PERCENT else value


def to_json(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells as plain values; numbers unrounded, accuracies in percent. What only tests and figures read is left out."""
    bare = [dataclasses.replace(cell, samples={}, selections={}, curves={}) for cell in cells]
    plain: list[dict[str, Any]] = json.loads(json.dumps([dataclasses.asdict(cell) for cell in bare], allow_nan=False))
    return [{k: v for k, v in cell.items() if k not in ("samples", "selections", "curves")} for cell in plain]
