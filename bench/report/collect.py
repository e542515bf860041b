"""Stored trials to cells: one per row that was asked for, in the user's order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import stats
from bench.assembly import restored
from bench.cost import Cost
from bench.errors import RequestError
from bench.plan import PartSpec
from bench.protocols import SELECTIONS, Selection
from bench.recipes import NOT_IN_ID, RECIPES
from bench.report.cell import UNGUARDED, Cell, shown
from bench.report.scores import Scored, Scorer, Trial
from bench.requested import FindTruth
from bench.stats import Interval, Sizes
from bench.store import Store
from bench.trajectory import record_from_json


@dataclass(frozen=True)
class _Group:
    """One finished (fold, seed) of a row: its trials, and their scores if they are known."""

    fold: int
    seed: int
    trials: tuple[Trial, ...]
    scored: Scored | None
    selections: Mapping[Selection, float | None] | None


def collect(store: Store, request: Mapping[str, Any], truths: FindTruth | None = None) -> list[Cell]:
    """A cell for every row of a request (`Store.latest_sweep`), in its order."""
    scorer = Scorer(store, truths)
    return [_cell(store, row, scorer) for row in request["rows"]]


def _cell(store: Store, row: Mapping[str, Any], scorer: Scorer) -> Cell:
    cell = Cell(
        method=row["method"],
        label=row["label"],
        dataset=row["dataset"],
        dataset_label=row["dataset_label"],
        protocol=row["protocol"],
        metric=row["metric"],
        wanted=len(row["groups"]),
        failures=_failures(store, row),
        derived=row["derived"] is not None,
    )
    groups = []
    for group in row["groups"]:
        if all(store.has(trial) for trial in group["trials"]):
            parts = tuple(Trial.read(store, trial) for trial in group["trials"])
            found = scorer.scored(row, parts), scorer.by_selection(row, parts)
            groups.append(_Group(group["fold"], group["seed"], parts, *found))
    if not groups:
        return dataclasses.replace(cell, note=_note(cell, row, groups))
    scored = [(group, group.scored) for group in groups if group.scored is not None]
    trials = [trial for group in groups for trial in group.trials]
    cell = dataclasses.replace(
        cell,
        n_seeds=len({group.seed for group, _ in scored}),
        n_folds=len({group.fold for group, _ in scored}),
        trial_ids=tuple(dict.fromkeys(trial.record["id"] for trial in trials)),
        values=tuple(cell.shown(found.test[cell.metric]) for _, found in scored),
        seeds=tuple(group.seed for group, _ in scored),
        folds=tuple(group.fold for group, _ in scored),
        splits=_splits(groups),
        sizes=_sizes(groups),
        modalities=tuple(trials[0].record["modalities"]),
        recipe=_recipe(trials[0].spec["recipe"]),
        data_fingerprint=trials[0].record["data_fingerprint"],
        cost=_cost(groups),
        tuning=_tuning(row),
        note=_note(cell, row, groups),
    )
    if not scored:
        return cell
    mean, low, high = stats.interval(cell.values, folds=cell.folds, sizes=cell.sizes)
    accuracy = Interval(mean, low, high) if cell.metric == "accuracy" else (None, None, None)
    f1 = [found.test["macro_f1"] for _, found in scored if "macro_f1" in found.test]
    cell = dataclasses.replace(
        cell,
        mean=mean,
        low=low,
        high=high,
        accuracy_mean=accuracy[0],
        accuracy_low=accuracy[1],
        accuracy_high=accuracy[2],
        macro_f1=shown("macro_f1", float(np.mean(f1))) if f1 else None,
        samples={(g.fold, g.seed): found.samples for g, found in scored if found.samples is not None},
        selections=_selections(cell, [group for group, _ in scored]),
    )
    if row["derived"]:
        return cell
    unimodal = [{m: s[cell.metric] for m, s in t.scores.get("test_unimodal", {}).items()} for t in trials]
    return dataclasses.replace(
        cell,
        unimodal={m: cell.shown(value) for m, value in _means(unimodal).items()},
        air=_mean([air for trial in trials if (air := _air(trial)) is not None]),
        attention_mass=_means([trial.scores.get("test_attention_mass", {}) for trial in trials]),
        curves=_curves(trials),
    )


def _splits(groups: Sequence[_Group]) -> dict[int, str]:
    hashes: dict[int, dict[str, None]] = {}
    for group in groups:
        for trial in group.trials:
            hashes.setdefault(group.fold, {})[trial.record["split_hash"]] = None
    return {fold: " and ".join(sorted(found)) for fold, found in hashes.items()}


def _selections(cell: Cell, groups: Sequence[_Group]) -> dict[Selection, tuple[float, ...]]:
    """The scores under every rule that all trainings have one for."""
    found = {}
    for rule in SELECTIONS:
        values = [(group.selections or {}).get(rule) for group in groups]
        scores = tuple(cell.shown(value) for value in values if value is not None)
        if scores and len(scores) == len(values):
            found[rule] = scores
    return found


def _sizes(groups: Sequence[_Group]) -> Sizes:
    sizes = [group.trials[0].record["split_sizes"] for group in groups]
    return Sizes(*(round(float(np.mean([size[name] for size in sizes]))) for name in ("train", "test")))


def _failures(store: Store, row: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for trial in (trial for group in row["groups"] for trial in group["trials"]):
        failure = None if store.has(trial) else store.failure(trial)
        if failure is not None:
            found[trial] = failure["cause"]
    return found


def _note(cell: Cell, row: Mapping[str, Any], groups: Sequence[_Group]) -> str:
    finished, scored = len(groups), sum(group.scored is not None for group in groups)
    unguarded = sum(trial.record.get("guard") == "unguarded" for group in groups for trial in group.trials)
    notes = []
    if finished < cell.wanted:
        notes.append(f"{finished} of {cell.wanted} finished")
    if unguarded:
        notes.append(f"{unguarded} {UNGUARDED}")
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
        each = [_trial_cost(trial) for trial in group.trials]
        shared = set.intersection(*(set(one) for one in each))
        by_group.append({name: float(sum(one[name] for one in each)) for name in each[0] if name in shared})
    return _means(by_group)


def _trial_cost(trial: Trial) -> dict[str, float]:
    record = trial.record
    cost = {"step_ms": 1000 * record["train_seconds"] / record["steps"], **_passes(trial)}
    if record["cost"]:
        cost |= {**record["cost"], "published_gflops": Cost(**record["cost"]).published_gflops}
    return cost


def _passes(trial: Trial) -> dict[str, float]:
    """Forwards and backwards per train sample over the whole training; nothing where a strategy's file changed since.

    What the harness measures between epochs is not in it: it is no cost of the method.
    """
    epochs = int(trial.spec["recipe"]["epochs"])
    try:
        parts = [restored("methods", PartSpec.from_json(part)) for part in trial.spec["strategies"]]
    except RequestError:
        return {}
    extra = [plugin.extra_passes(settings, epochs) for plugin, settings in parts]
    return {
        "forwards": epochs + sum(passes.forwards for passes in extra),
        "backwards": epochs + sum(passes.backwards for passes in extra),
    }


def _tuning(row: Mapping[str, Any]) -> dict[str, int]:
    """The budget behind a row's settings, as the request says; untuned rows had none."""
    tuned = row.get("tuned") or {}
    return {"trials": int(tuned.get("trials", 0)), "epochs": int(tuned.get("trained_epochs", 0))}


def _curves(trials: Sequence[Trial]) -> dict[str, tuple[float, ...]]:
    """AIR and attention mass after every epoch of trainings that have sites."""
    by_trial = []
    for trial in trials:
        epochs = [record_from_json(epoch) for epoch in trial.record["epochs"]]
        if not all(epoch.sites for epoch in epochs):
            return {}
        lines: dict[str, list[float]] = {}
        for sites in (list(epoch.sites.values()) for epoch in epochs):
            lines.setdefault("AIR", []).append(float(np.mean([site.air for site in sites])))
            for m in sites[0].mass:
                lines.setdefault(f"mass {m}", []).append(float(np.mean([site.mass[m] for site in sites])))
        by_trial.append(lines)
    if len({len(lines["AIR"]) for lines in by_trial}) != 1:
        return {}
    return {name: tuple(np.mean([lines[name] for lines in by_trial], axis=0).tolist()) for name in by_trial[0]}


def _air(trial: Trial) -> float | None:
    """AIR after the stored epoch; the mean over sites where a fusion has several."""
    epoch = record_from_json(trial.record["epochs"][trial.record["selected_epoch"]])
    return _mean([site.air for site in epoch.sites.values()])


def _means(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every value that all have."""
    return {name: float(np.mean([one[name] for one in each])) for name in each[0] if all(name in one for one in each)}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
