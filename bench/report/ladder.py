"""The gap ladder: what is left of a published number when its protocol is mended one step at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from bench import stats
from bench.config import Config, Sources
from bench.data.selection import Selected
from bench.data.splits import split_positions
from bench.plan import Plan, Row, make_plan, why_no_split
from bench.protocols import PROTOCOLS, ProtocolName
from bench.report.cell import Cell
from bench.report.published import published
from bench.requested import request_of
from bench.scoring import MAXIMISED
from bench.stats import Interval

PUBLISHED = "published number"
SAME, BY_SEED, UNPAIRED = "same trainings", "by seed", "unpaired (Welch)"
ONE_NUMBER = "with one number"


@dataclass(frozen=True)
class Step:
    """One thing that is mended; what was mended before it stays so."""

    name: str
    about: str
    protocol: ProtocolName = "honest"
    tuned: bool = False
    all_folds: bool = False


STEPS = (
    Step("published lists", "trained here on all of the published train list, scored as the papers did", "published"),
    Step("val carved out", "an eighth of train is kept for val, the epoch still chosen on test", "carved_test_best"),
    Step("selected on val", "the same trainings, the epoch chosen on val", "carved_val_best"),
    Step("disjoint split", "no group in two splits"),
    Step("equal tuning", "every row tuned on val with the same budget", tuned=True),
    Step("all seeds and folds", "every seed on every fold", tuned=True, all_folds=True),
)

Tune = Callable[[Plan], Plan]
"""A plan with tuned settings."""


@dataclass(frozen=True)
class Ladder:
    """What a ladder runs: a plan, the step of each of its rows, and the steps it does without."""

    plan: Plan
    steps: tuple[str, ...]
    dropped: Mapping[str, str]
    """Step -> why there is none."""

    def request(self) -> dict[str, Any]:
        """What was asked for, in the format of `bench.sweep.request_of`, with the step of every row."""
        request = request_of(self.plan)
        about = {"steps": list(self.steps), "dropped": dict(self.dropped)}
        digest = hashlib.sha256(json.dumps([request["id"], about], sort_keys=True).encode()).hexdigest()[:16]
        return {**request, "id": digest, "ladder": about}


@dataclass(frozen=True)
class Rung:
    """A step as it was climbed."""

    name: str
    score: Interval
    trainings: int
    removes: Interval | None = None
    """By how much the score is worse than on the rung before; None on the first."""
    paired: str = ""
    """What stands behind the interval of `removes`."""


@dataclass(frozen=True)
class Climb:
    """The ladder of one row; the rungs that were reached. What they remove adds up to the total."""

    label: str
    cells: tuple[Cell, ...]
    """Behind the rungs that were trained, in order."""
    rungs: tuple[Rung, ...]
    total: Rung | None
    """From the first rung to the last; None where there is only one."""
    missing: Mapping[str, str]
    """Step -> why it was not reached."""


def honest_plan(config: Config, sources: Sources, selected: Selected) -> Plan:
    """The rows of the last step, untuned."""
    return make_plan(config.model_copy(update={"protocol": ("honest",)}), sources, [selected])


def plan_ladder(config: Config, sources: Sources, selected: Selected, tune: Tune | None = None) -> Ladder:
    """Every step on one data set: all on the first fold but the last, which takes every fold asked for.

    Without `tune` nothing is tuned. Steps that the data set has no use for are dropped with their reason.
    """
    last = honest_plan(config, sources, selected)
    folds = tuple(dict.fromkeys(group[0].fold for row in last.rows for group in row.groups))
    rows: list[Row] = []
    steps: list[str] = []
    dropped: dict[str, str] = {}
    for step in STEPS:
        reason = _why_not(step, selected, folds, tune)
        if reason is not None:
            dropped[step.name] = reason
            continue
        of_step = {"protocol": (step.protocol,), "folds": folds if step.all_folds else folds[:1]}
        plan = make_plan(config.model_copy(update=of_step), sources, [selected])
        if tune is not None and step.tuned:
            plan = tune(plan)
        rows += plan.rows
        steps += [step.name] * len(plan.rows)
    return Ladder(Plan(tuple(rows), last.skipped), tuple(steps), dropped)


def climbs(cells: Sequence[Cell], request: Mapping[str, Any]) -> list[Climb]:
    """The ladder of every method from the cells of a ladder's request, in the user's order."""
    labels = dict.fromkeys(row["label"] for row in request["rows"])
    return [_climb(label, cells, request) for label in labels]


@dataclass(frozen=True)
class _Point:
    """The scores on one rung: by seed, the folds averaged; a seed that lacks a fold is left out."""

    name: str
    by_seed: Mapping[int, float]
    score: Interval
    trials: frozenset[str]

    @property
    def trainings(self) -> int:
        return len(self.trials)


def _climb(label: str, cells: Sequence[Cell], request: Mapping[str, Any]) -> Climb:
    about = request["ladder"]
    placed = zip(about["steps"], request["rows"], cells, strict=True)
    mine = [(step, row, cell) for step, row, cell in placed if row["label"] == label]
    first = mine[0][2]
    missing = dict(about["dropped"])
    points: list[_Point] = []
    known = published(first)
    if known is None:
        missing = {PUBLISHED: f"none is known for {label} on {first.dataset}", **missing}
    else:
        points.append(_Point(PUBLISHED, {}, Interval(known.value, None, None), frozenset()))
    reached = []
    for step, row, cell in mine:
        point = _point(step, row, cell)
        if point is None:
            missing[step] = cell.note or "no seed finished on every fold"
        else:
            points.append(point)
            reached.append(cell)
    sign = 1 if MAXIMISED[first.metric] else -1
    rungs = [Rung(p.name, p.score, p.trainings) for p in points[:1]]
    rungs += [_rung(after.name, before, after, sign) for before, after in pairwise(points)]
    total = _rung("total", points[0], points[-1], sign) if len(points) > 1 else None
    return Climb(label, tuple(reached), tuple(rungs), total, missing)


def _point(step: str, row: Mapping[str, Any], cell: Cell) -> _Point | None:
    wanted = {group["fold"] for group in row["groups"]}
    found: dict[int, dict[int, float]] = {}
    for seed, fold, value in zip(cell.seeds, cell.folds, cell.values, strict=True):
        found.setdefault(seed, {})[fold] = value
    whole = {seed: by_fold for seed, by_fold in found.items() if by_fold.keys() == wanted}
    if not whole:
        return None
    values = [(value, fold) for by_fold in whole.values() for fold, value in by_fold.items()]
    spread = stats.interval([value for value, _ in values], folds=[fold for _, fold in values], sizes=cell.sizes)
    by_seed = {seed: fmean(by_fold.values()) for seed, by_fold in sorted(whole.items())}
    score = Interval(fmean(by_seed.values()), spread.low, spread.high)
    used = [t for group in row["groups"] if group["seed"] in whole for t in group["trials"]]
    return _Point(step, by_seed, score, frozenset(used))


def _rung(name: str, before: _Point, after: _Point, sign: int) -> Rung:
    """The later of two points and what it removes: paired over seeds where both have the same ones."""
    lost = sign * (before.score.mean - after.score.mean)
    if not before.by_seed:
        value, (_, low, high) = before.score.mean, after.score
        ends = sorted(sign * (value - bound) for bound in (low, high) if bound is not None)
        spread, paired = Interval(lost, *(ends or (None, None))), ONE_NUMBER
    elif before.by_seed.keys() == after.by_seed.keys():
        each = [sign * (before.by_seed[seed] - after.by_seed[seed]) for seed in before.by_seed]
        spread, paired = stats.interval(each), SAME if before.trials == after.trials else BY_SEED
    else:
        ours, theirs = ([sign * value for value in point.by_seed.values()] for point in (before, after))
        spread, paired = stats.unpaired_difference(ours, theirs), UNPAIRED
    # The mean is that of the scores, so that rungs add up whatever stands behind their intervals.
    return Rung(name, after.score, after.trainings, Interval(lost, spread.low, spread.high), paired)


def _why_not(step: Step, selected: Selected, folds: Sequence[int], tune: Tune | None) -> str | None:
    split = PROTOCOLS[step.protocol].split
    without = why_no_split(selected, split)
    if without is not None:
        return without
    if step.protocol == "carved_test_best" and len(split_positions(selected.prepared.index, kind="published")["val"]):
        return "the published lists have val samples of their own"
    if step.all_folds and len(folds) == 1:
        return f"there is one fold to run, fold {folds[0]}"
    if step.tuned and not step.all_folds and tune is None:
        return "no tuning was asked for"
    return None
