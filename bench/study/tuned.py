"""Tuned rows: a plan in which every row that has something to tune runs with what its study found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.config import TUNING_SEEDS
from bench.data.selection import Selected
from bench.plan import Plan, Row, TrialSpec
from bench.store import Store
from bench.study.record import Search, read_study, require_tuned, study_name
from bench.study.space import SearchSpace, at
from bench.study.tuning import Tuning


@dataclass(frozen=True)
class Target:
    """One study that a plan needs: a method on a data set and fold, with any evaluation seed."""

    spec: TrialSpec
    space: SearchSpace

    def name(self, search: Search) -> str:
        """The name of its study."""
        return study_name(dataclasses.replace(self.spec, seed=TUNING_SEEDS + search.seed), self.space, search)


def targets(plan: Plan, only: Sequence[str] = ()) -> list[Target]:
    """The studies that a plan's rows need, each once; rows with nothing to tune need none.

    `only` names the settings to search, as in `SearchSpace.of`.
    """
    found: dict[str, Target] = {}
    for row in plan.rows:
        for target in _targets(row, only):
            if target.space.axes:
                found.setdefault(target.name(Search()), target)
    return list(found.values())


def nothing_to_tune(plan: Plan) -> list[Row]:
    """The rows without a single searched setting: they are as they were under any budget."""
    return [row for row in plan.rows if not any(target.space.axes for target in _targets(row))]


def tunings(
    plan: Plan,
    datasets: Sequence[Selected],
    store: Store,
    search: Search | None = None,
    only: Sequence[str] = (),
) -> list[Tuning]:
    """The studies a plan needs, ready to run; what they have done already counts."""
    selected = {each.prepared.fingerprint: each for each in datasets}
    return [
        Tuning(target.spec, selected[target.spec.fingerprint], store, target.space, search)
        for target in targets(plan, only)
    ]


def with_tuned(plan: Plan, store: Store, trials: int, search: Search | None = None) -> Plan:
    """The plan with tuned settings, all rows with the same budget: the best of their first `trials` trials.

    Every fold runs with what was found on its own train and val samples. Raises RequestError, naming the command,
    for a row that was tuned with less.
    """
    search = search or Search()
    return dataclasses.replace(plan, rows=tuple(_tuned_row(row, store, trials, search) for row in plan.rows))


def tuned_settings(store: Store, target: Target, trials: int, search: Search | None = None) -> Mapping[str, float]:
    """The best settings of a study's first `trials` trials by axis name. Raises RequestError where there are fewer."""
    study = read_study(store, target.name(search or Search()))
    return require_tuned(study, target.spec, trials).settings


def _tuned_row(row: Row, store: Store, trials: int, search: Search) -> Row:
    groups: list[tuple[TrialSpec, ...]] = []
    spent: dict[str, int] = {}
    for group in row.groups:
        tuned = []
        for spec in group:
            target = _target(row, spec)
            if not target.space.axes:
                tuned.append(spec)
                continue
            study = read_study(store, target.name(search))
            tuned.append(at(spec, require_tuned(study, spec, trials).settings))
            if study is not None:
                spent[study.name] = sum(trial.trained_epochs for trial in study.ended[:trials])
        groups.append(tuple(tuned))
    about = {"trials": trials if spent else 0, "trained_epochs": sum(spent.values()), "studies": sorted(spent)}
    return dataclasses.replace(row, groups=tuple(groups), tuned=about)


def _targets(row: Row, only: Sequence[str] = ()) -> Iterator[Target]:
    """One per fold and part, whatever the seed."""
    seen = set()
    for group in row.groups:
        for place, spec in enumerate(group):
            if (spec.fold, place) not in seen:
                seen.add((spec.fold, place))
                yield _target(row, spec, only)


def _target(row: Row, spec: TrialSpec, only: Sequence[str] = ()) -> Target:
    # The label of a derived row names none of its parts' settings.
    label = "" if row.derived else row.label
    return Target(spec, SearchSpace.of(spec, label, only))
