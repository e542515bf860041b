"""Stored trials to cells: one per row that was asked for, in the user's order.

Derived rows, and rows whose epoch is chosen on test as the papers did, are scored from stored logits. That takes
targets once; the scores are kept in `results/derived/`, so that a report needs no data later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench import names, scoring, stats
from bench.api import Derived
from bench.cost import Cost
from bench.recipes import NOT_IN_ID, RECIPES
from bench.scoring import Truth
from bench.stats import Interval, Sizes
from bench.store import Store, read_json, write_json
from bench.sweep import FindTruth
from bench.trajectory import record_from_json

SELECTION = {
    "honest": "best val epoch, test scored once after selection",
    "published": "best epoch on test, as the papers did",
}
"""Which epoch counts under a protocol."""

PERCENT = frozenset({"accuracy", "macro_f1"})
"""Metrics that are fractions and shown in percent."""


@dataclass(frozen=True)
class Cell:
    """One method on one data set under one protocol: its seeds and folds together. None is what cannot be known."""

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
    """The fields of `bench.cost.Cost`, `published_gflops` and `step_ms`; a derived row's is the sum of its parts."""
    values: tuple[float, ...] = ()
    """One score per finished (fold, seed), in the order of `seeds` and `folds`."""
    seeds: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()
    wanted: int = 0
    """How many (fold, seed) were asked for."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Trial id -> cause, of those that ended early."""
    splits: Mapping[int, str] = field(default_factory=dict)
    """Fold -> hash of the effective split."""
    recipe: str = ""
    data_fingerprint: str = ""
    note: str = ""


@dataclass(frozen=True)
class _Trial:
    """What a report reads of one finished trial."""

    spec: Mapping[str, Any]
    record: Mapping[str, Any]
    scores: Mapping[str, Any]

    @classmethod
    def read(cls, store: Store, trial_id: str) -> _Trial:
        return cls(*(store.read(trial_id, f"{name}.json") for name in ("spec", "record", "scores")))


@dataclass(frozen=True)
class _Group:
    """One finished (fold, seed) of a row: its trials, and its test scores if they are known."""

    fold: int
    seed: int
    trials: tuple[_Trial, ...]
    test: Mapping[str, float] | None


def collect(store: Store, request: Mapping[str, Any], truths: FindTruth | None = None) -> list[Cell]:
    """A cell for every row of a request (`Store.latest_sweep`), in its order."""
    scorer = _Scorer(store, truths)
    return [_cell(store, row, scorer) for row in request["rows"]]


def to_json(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells as plain values; numbers unrounded, accuracies in percent."""
    plain: list[dict[str, Any]] = json.loads(json.dumps([dataclasses.asdict(cell) for cell in cells], allow_nan=False))
    return plain


def _cell(store: Store, row: Mapping[str, Any], scorer: _Scorer) -> Cell:
    cell = Cell(
        method=row["method"],
        label=row["label"],
        dataset=row["dataset"],
        dataset_label=row["dataset_label"],
        protocol=row["protocol"],
        metric=row["metric"],
        wanted=len(row["groups"]),
        failures=_failures(store, row),
    )
    groups = []
    for group in row["groups"]:
        if all(store.has(trial) for trial in group["trials"]):
            parts = tuple(_Trial.read(store, trial) for trial in group["trials"])
            groups.append(_Group(group["fold"], group["seed"], parts, scorer.test(row, parts)))
    if not groups:
        return dataclasses.replace(cell, note=_note(cell, row, 0, 0))
    scored = [(group, group.test[cell.metric]) for group in groups if group.test is not None]
    trials = [trial for group in groups for trial in group.trials]
    cell = dataclasses.replace(
        cell,
        n_seeds=len({group.seed for group, _ in scored}),
        n_folds=len({group.fold for group, _ in scored}),
        trial_ids=tuple(dict.fromkeys(trial.record["id"] for trial in trials)),
        values=tuple(_shown(cell.metric, value) for _, value in scored),
        seeds=tuple(group.seed for group, _ in scored),
        folds=tuple(group.fold for group, _ in scored),
        splits={group.fold: group.trials[0].record["split_hash"] for group in groups},
        recipe=_recipe(trials[0].spec["recipe"]),
        data_fingerprint=trials[0].record["data_fingerprint"],
        cost=_cost(groups),
        note=_note(cell, row, len(groups), len(scored)),
    )
    if not scored:
        return cell
    mean, low, high = _interval(cell, scored)
    accuracy = (mean, low, high) if cell.metric == "accuracy" else (None, None, None)
    f1 = [group.test["macro_f1"] for group, _ in scored if group.test is not None and "macro_f1" in group.test]
    cell = dataclasses.replace(
        cell,
        mean=mean,
        low=low,
        high=high,
        accuracy_mean=accuracy[0],
        accuracy_low=accuracy[1],
        accuracy_high=accuracy[2],
        macro_f1=_shown("macro_f1", float(np.mean(f1))) if f1 else None,
    )
    if row["derived"]:
        return cell
    unimodal = [{m: s[cell.metric] for m, s in t.scores.get("test_unimodal", {}).items()} for t in trials]
    return dataclasses.replace(
        cell,
        unimodal={m: _shown(cell.metric, value) for m, value in _means(unimodal).items()},
        air=_mean([air for trial in trials if (air := _air(trial)) is not None]),
        attention_mass=_means([trial.scores.get("test_attention_mass", {}) for trial in trials]),
    )


def _interval(cell: Cell, scored: Sequence[tuple[_Group, float]]) -> Interval:
    sizes = [group.trials[0].record["split_sizes"] for group, _ in scored]
    train, test = (round(float(np.mean([size[name] for size in sizes]))) for name in ("train", "test"))
    return stats.interval(cell.values, folds=cell.folds, sizes=Sizes(train, test))


class _Scorer:
    """Test scores of a row's group: those stored with the trial, or worked out once from stored logits and kept."""

    def __init__(self, store: Store, truths: FindTruth | None) -> None:
        self.store, self.truths = store, truths
        self.folder = store.folder / "derived"

    def test(self, row: Mapping[str, Any], trials: Sequence[_Trial]) -> Mapping[str, float] | None:
        """The test scores, or None if they take targets and there are none."""
        if not row["derived"] and row["protocol"] == "honest":
            stored: Mapping[str, float] | None = trials[0].scores.get("test")
            return stored
        what = {
            "trials": [trial.record["id"] for trial in trials],
            "derived": row["derived"],
            "code": names.resolve_part("methods", row["derived"], {}).code if row["derived"] else None,
            "protocol": row["protocol"],
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        file = self.folder / f"{digest}.json"
        if file.is_file():
            kept: Mapping[str, float] = read_json(file)["test"]
            return kept
        truth = None if self.truths is None else self.truths(trials[0].spec)
        if truth is None:
            return None
        epochs, logits = zip(*(self._selected(row, trial, truth) for trial in trials), strict=True)
        combined = _combined(row["derived"], logits, truth) if row["derived"] else logits[0]
        test = truth.score("test", combined)
        self.folder.mkdir(exist_ok=True)
        write_json(file, {**what, "method": row["method"], "selected_epochs": list(epochs), "test": test})
        return test

    def _selected(self, row: Mapping[str, Any], trial: _Trial, truth: Truth) -> tuple[int, np.ndarray]:
        logits = self.store.arrays(trial.record["id"], "logits.npz")["test"]  # [epoch, sample, outputs]
        if row["protocol"] == "honest":
            epoch = int(trial.record["selected_epoch"])
        else:
            epoch = scoring.best([truth.score("test", one)[truth.metric] for one in logits], truth.metric)
        return epoch, logits[epoch]


def _combined(text: str, logits: Sequence[np.ndarray], truth: Truth) -> np.ndarray:
    part = names.resolve_part("methods", text, {})
    plugin: Derived = part.plugin(part.settings)
    return plugin.combine(logits, truth.kind)


def _failures(store: Store, row: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for trial in (trial for group in row["groups"] for trial in group["trials"]):
        failure = None if store.has(trial) else store.failure(trial)
        if failure is not None:
            found[trial] = failure["cause"]
    return found


def _note(cell: Cell, row: Mapping[str, Any], finished: int, scored: int) -> str:
    notes = []
    if finished < cell.wanted:
        notes.append(f"{finished} of {cell.wanted} finished")
    if cell.failures:
        notes.append(f"failed: {', '.join(sorted(set(cell.failures.values())))}")
    if scored < finished:
        why = "a derived row" if row["derived"] else "an epoch chosen on test"
        notes.append(f"{finished - scored} not scored: {why} takes the targets, and the data set is not prepared here")
    return "; ".join(notes)


def _recipe(recipe: Mapping[str, Any]) -> str:
    """The recipe's name, and every field of it that differs."""
    base = dataclasses.asdict(RECIPES[recipe["name"]]) if recipe["name"] in RECIPES else {}
    changed = [f"{k}={v}" for k, v in recipe.items() if k not in NOT_IN_ID | {"epochs"} and base.get(k, v) != v]
    return ", ".join([recipe["name"], f"{recipe['epochs']} epochs", *changed])


def _cost(groups: Sequence[_Group]) -> dict[str, float]:
    """Means over groups of the sums over a group's trials; a value that one trial lacks is left out."""
    by_group = []
    for group in groups:
        each = [_trial_cost(trial.record) for trial in group.trials]
        shared = set.intersection(*(set(one) for one in each))
        by_group.append({name: float(sum(one[name] for one in each)) for name in each[0] if name in shared})
    return _means(by_group)


def _trial_cost(record: Mapping[str, Any]) -> dict[str, float]:
    cost = {"step_ms": 1000 * record["train_seconds"] / record["steps"]}
    if record["cost"]:
        cost |= {**record["cost"], "published_gflops": Cost(**record["cost"]).published_gflops}
    return cost


def _air(trial: _Trial) -> float | None:
    """AIR after the stored epoch; the mean over sites where a fusion has several."""
    epoch = record_from_json(trial.record["epochs"][trial.record["selected_epoch"]])
    return _mean([site.air for site in epoch.sites.values()])


def _means(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every value that all have."""
    return {name: float(np.mean([one[name] for one in each])) for name in each[0] if all(name in one for one in each)}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _shown(metric: str, value: float) -> float:
    return 100 * value if metric in PERCENT else value
