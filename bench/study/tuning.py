"""Tuning one method on one data set and fold: proposals in, trained and scored on validation, told to the journal.

Trials are trained rung by rung: at a rung a trial ends like any other, and the next job of it goes on from what is
stored. So stopping needs no word to a process that is training, and whatever equal decisions have trained already
costs nothing, here as everywhere.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import bench
from bench import plugins, scoring
from bench.config import TUNING_SEEDS
from bench.data.selection import Selected
from bench.data.splits import split_positions
from bench.errors import RequestError, ResultsError
from bench.execute.events import EpochDone, Event, Failed, Finished, Jobs, MakeJob, Postponed, Stopped
from bench.plan import TrialSpec
from bench.scoring import MAXIMISED, Truth
from bench.store import Store
from bench.study.journal import Journal, optuna_version
from bench.study.record import Search, Study, TrialOfStudy, folder_of, read_study, study_name, write_study
from bench.study.space import Point, SearchSpace, at
from bench.trajectory import Visit, kin_of, read_outputs, weights_file
from bench.trial import Job, versions

EXHAUSTIVE = 10
"""Values per setting that an exhaustive search combines."""
EVALUATED = ("val",)
"""All that a tuning trial is evaluated on: its lineage is never that of a trial that results are read off."""


COMPANIONS = 32
"""Points drawn beforehand: where one of them would decide otherwise than the trial in training, a state is kept."""
PATIENCE = 1.0
"""Seconds before a trial is taken again whose next epoch another process is training."""


class Executor(Protocol):
    """What runs jobs: `bench.execute.local.LocalExecutor`, or a stand-in of the same shape."""

    def run(self, jobs: Jobs) -> Iterator[Event]:
        """The events of these jobs."""


@dataclass(frozen=True)
class Budget:
    """Where a study ends: no trial begins after so many trials, or so many trained epochs."""

    trials: int = 50
    epochs: int | None = None


@dataclass
class _Active:
    number: int
    point: Point
    spec: TrialSpec
    val: list[float] = field(default_factory=list)
    trained: int = 0
    first_action: int | None = None
    failure: Failed | None = None


class Tuning:
    """One study. `run` yields every trial that ends; what has ended is never run again."""

    def __init__(
        self,
        spec: TrialSpec,
        selected: Selected,
        store: Store,
        space: SearchSpace,
        search: Search | None = None,
        points: Sequence[Point] | None = None,
    ) -> None:
        """`points` are tried in this order instead of the sampler's; `spec` may have any seed."""
        self.search = search or Search()
        self.spec = dataclasses.replace(spec, seed=TUNING_SEEDS + self.search.seed)
        self.selected, self.store, self.space, self.points = selected, store, space, points
        self.truth = Truth.of(selected.prepared, spec.split, spec.fold, EVALUATED)
        if len(self.truth.targets["val"]) == 0:
            raise RequestError(
                f"tuning {spec.method} on {spec.data}: the split has no val samples, and settings are chosen on val "
                "alone; use the honest protocol, which carves them out of train"
            )
        self.halving = self.search.halving(spec.recipe.epochs)
        self.name = study_name(self.spec, space, self.search)
        self.positions = split_positions(selected.prepared.index, fold=spec.fold, kind=spec.split)
        likely = points or space.draws(COMPANIONS, self.search.seed)
        others = [at(self.spec, point) for point in likely] if spec.strategies else []
        self._others = [(kin_of(other), other.strategies) for other in others]

    def run(
        self, executor: Executor, budget: Budget, observe: Callable[[Event], None] | None = None
    ) -> Iterator[TrialOfStudy]:
        """Tune until the budget is spent; the study is stored after every trial that ends.

        With the same seed and a single worker the result is the same, interrupted or not.
        """
        journal = self._journal(budget)
        queue = _Queue(self, journal, budget)
        stored = read_study(self.store, self.name)
        begun = time.monotonic() - (stored.seconds if stored is not None else 0.0)
        try:
            for event in executor.run(queue):
                if observe is not None:
                    observe(event)
                trial = queue.handle(event)
                if trial is None or not self._is_over(journal, trial):
                    continue
                queue.forget(trial)
                study = self._study(journal, time.monotonic() - begun)
                write_study(self.store, study)
                yield next(t for t in study.trials if t.number == trial.number)
        finally:
            journal.release()

    def at(self, point: Point) -> TrialSpec:
        """The tuning trial of a point."""
        return at(self.spec, point)

    def job(self, trial: _Active, device: str) -> Job:
        """The job that takes a trial to its next rung."""
        prepared = self.selected.prepared
        return Job(
            spec=trial.spec,
            prepared=prepared.folder,
            trajectories=self.store.trajectories,
            plugin_folders=tuple(plugins.folders()),
            positions={split: self.positions[split] for split in ("train", *EVALUATED)},
            train_targets=prepared.targets()[self.positions["train"]],
            device=device,
            evaluated=EVALUATED,
            companions=tuple(strategies for kin, strategies in self._others if kin == kin_of(trial.spec)),
            until=self._halt(trial),
            measured=False,
        )

    def score(self, journal: Journal, trial: _Active, visit: Visit) -> None:
        """Take note of an epoch of a trial."""
        if visit.trained:
            trial.trained += 1
            journal.note(trial.number, trained_epochs=trial.trained)
            weights_file(self.store.trajectories, visit.segment, visit.record.epoch).unlink(missing_ok=True)
        if visit.record.epoch < len(trial.val):  # seen before the last rung
            return
        outputs = read_outputs(self.store.trajectories, visit.segment, visit.record.epoch)
        metric = self.truth.metric
        trial.val.append(self.truth.score("val", outputs["val/logits"])[metric])
        if visit.record.actions and trial.first_action is None:
            trial.first_action = visit.record.epoch
        journal.report(trial.number, len(trial.val), trial.val[scoring.best(trial.val, metric)])

    def _journal(self, budget: Budget) -> Journal:
        points = self.points
        if points is None and self.search.sampler == "grid":
            points = self.space.grid(budget.trials)
        elif points is None and self.search.sampler == "exhaustive":
            points = self.space.combinations(EXHAUSTIVE)
            if len(points) > budget.trials:
                raise RequestError(
                    f"tuning {self.spec.method}: an exhaustive search of {', '.join(a.name for a in self.space.axes)} "
                    f"takes {len(points)} trials and {budget.trials} are allowed; give --trials {len(points)}, "
                    "or --sampler grid"
                )
        return Journal(
            folder_of(self.store) / self.name,
            self.name,
            self.space,
            self.search.sampler,
            self.search.seed,
            MAXIMISED[self.truth.metric],
            points,
        )

    def _halt(self, trial: _Active) -> int:
        epochs = trial.spec.recipe.epochs
        return next((rung for rung in self.halving.rungs(epochs) if rung > len(trial.val)), epochs)

    def _is_over(self, journal: Journal, trial: _Active) -> bool:
        epochs, reached = trial.spec.recipe.epochs, len(trial.val)
        facts = {
            "val": trial.val,
            "trained_epochs": trial.trained,
            "first_action": trial.first_action,
            "method": trial.spec.method,
            "trial": trial.spec.id,
        }
        if trial.failure is not None:
            cause = f"{trial.failure.cause}: {trial.failure.text}"
            journal.tell(trial.number, "failed", {**facts, "cause": cause})
        elif reached == epochs:
            best = trial.val[scoring.best(trial.val, self.truth.metric)]
            journal.tell(trial.number, "finished", facts, best)
        elif journal.goes_on(trial.number, reached, self.halving):
            return False
        else:
            journal.tell(trial.number, "stopped", facts)
        return True

    def _study(self, journal: Journal, seconds: float) -> Study:
        trials = [
            TrialOfStudy(
                number=tried.number,
                settings=tried.point,
                method=tried.facts.get("method", ""),
                state=tried.state,
                value=tried.value,
                val=tried.facts.get("val", ()),
                trained_epochs=tried.facts.get("trained_epochs", 0),
                first_action=tried.facts.get("first_action"),
                cause=tried.facts.get("cause", ""),
                trial=tried.facts.get("trial", ""),
            )
            for tried in journal.tried()
        ]
        wasted = journal.trained_epochs() - sum(t.trained_epochs for t in trials)
        return Study(
            name=self.name,
            spec=self.spec,
            space=self.space,
            search=self.search,
            metric=self.truth.metric,
            trials=tuple(trials),
            wasted_epochs=wasted,
            seconds=seconds,
            importance=journal.importance(),
            versions={**versions(), "bench": bench.__version__, "optuna": optuna_version()},
        )


class _Queue:
    """Trials for an executor to take: those promoted at a rung first, then postponed ones, then new proposals."""

    def __init__(self, tuning: Tuning, journal: Journal, budget: Budget) -> None:
        self.tuning, self.journal, self.budget = tuning, journal, budget
        self._ready: list[_Active] = []
        self._running: dict[str, _Active] = {}
        self._not_before = 0.0
        self._more = True

    def take(self) -> tuple[str, MakeJob] | None:
        """A trial whose settings are not in training already: of two equal ones the second finds all stored.

        Nothing new is proposed while a trial waits, so that the sampler knows as much as it can.
        """
        if time.monotonic() < self._not_before:
            return None
        for trial in self._ready:
            if trial.spec.id not in self._running:
                self._ready.remove(trial)
                return self._start(trial)
        new = self._propose() if self._more and not self._ready else None
        if new is None:
            return None
        if new.spec.id not in self._running:
            return self._start(new)
        self._ready.append(new)
        return None

    def waiting(self) -> int:
        """How many could be taken now or later; one more where the budget allows another."""
        return len(self._ready) + self._more

    def handle(self, event: Event) -> _Active | None:
        """Follow an event; returns the trial whose job ended by it. Raises ResultsError where nothing can go on."""
        if isinstance(event, Stopped):
            raise ResultsError(event.text)
        if isinstance(event, EpochDone):
            self.tuning.score(self.journal, self._running[event.trial], event.visit)
        elif isinstance(event, Postponed):
            self._ready.append(self._running.pop(event.trial))
            self._not_before = time.monotonic() + PATIENCE
        elif isinstance(event, Finished | Failed):
            trial = self._running.pop(event.trial)
            trial.failure = event if isinstance(event, Failed) else None
            self._ready.insert(0, trial)
            return trial
        return None

    def forget(self, trial: _Active) -> None:
        """A trial is over."""
        self._ready.remove(trial)

    def _start(self, trial: _Active) -> tuple[str, MakeJob]:
        self._running[trial.spec.id] = trial
        return trial.spec.id, lambda device: self.tuning.job(trial, device)

    def _propose(self) -> _Active | None:
        spent = self.budget.epochs is not None and self.journal.trained_epochs() >= self.budget.epochs
        proposed = None if spent else self.journal.propose(self.budget.trials)
        if proposed is None:
            self._more = False
            return None
        number, point = proposed
        return _Active(number, point, self.tuning.at(point))
