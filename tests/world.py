"""A world small enough to train in: planted data of a hundred samples, encoders of width 16, three epochs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.api import DataError
from bench.config import Config, Sources, load
from bench.data.selection import Selected, select
from bench.data.splits import split_positions
from bench.errors import TrialError
from bench.execute.events import EpochDone, Event, Failed, Finished, Jobs, Postponed, Started
from bench.plan import Plan, TrialSpec, make_plan
from bench.store import Store
from bench.sweep import Outcome, Sweep
from bench.trajectory import BusyError, Visit
from bench.trial import Job, run

DATASET = "planted:preset=collapse:samples=96:classes=3:tokens=4"
TINY = ("encoder.dim=16", "encoder.depth=1", "encoder.heads=2", "recipe.epochs=3", "recipe.batch_size=32")


@dataclass(frozen=True)
class World:
    """Folders, a configuration and what was planned from it."""

    folder: Path
    config: Config
    sources: Sources
    datasets: list[Selected]
    plan: Plan

    @property
    def store(self) -> Store:
        return Store(self.folder / "results")

    def sweep(self) -> Sweep:
        return Sweep(self.plan, self.datasets, self.store)

    def run(self) -> list[Outcome]:
        """Everything missing, trained in this process."""
        return list(self.sweep().run(InProcess()))

    def results(self) -> dict[str, dict[str, Any]]:
        """What finished trials amount to, by method and seed: all that must not depend on how they came about."""
        return {f"{s.method}/{s.seed}": results_of(self.store, s.id) for s in self.plan.trials if self.store.has(s.id)}

    def spec(self, method: str) -> TrialSpec:
        """The first trial of a method by its canonical text."""
        return next(spec for spec in self.plan.trials if spec.method == method)

    def job(self, spec: TrialSpec, trajectories: Path | None = None) -> Job:
        """The job of a trial, with trajectories of its own if wanted."""
        selected = next(s for s in self.datasets if s.prepared.fingerprint == spec.fingerprint)
        positions = split_positions(selected.prepared.index, fold=spec.fold)
        targets = selected.prepared.targets()[positions["train"]]
        where = trajectories or self.store.trajectories
        return Job(spec, selected.prepared.folder, where, (), positions, targets, "cpu")


def make_world(folder: Path, methods: str, *assign: str, datasets: str = DATASET, seeds: str = "1") -> World:
    """Plan methods on tiny data, prepared beside `folder`."""
    config, sources = load(None, {"methods": methods, "datasets": datasets, "seeds": seeds}, (*TINY, *assign))
    selected, _ = select(config.datasets, folder, folder.parent / "prepared", config.settings)
    return World(folder, config, sources, selected, make_plan(config, sources, selected))


def results_of(store: Store, trial: str) -> dict[str, Any]:
    """Weights, outputs of every epoch, scores and records of a trial, to the bit; times are left out."""
    arrays = {f"{n}/{k}": a.tobytes() for n in ("logits.npz", "samples.npz") for k, a in store.arrays(trial, n).items()}
    record = store.read(trial, "record.json")
    epochs = [{k: v for k, v in epoch.items() if k != "train_seconds"} for epoch in record["epochs"]]
    scores = json.dumps(store.read(trial, "scores.json"), sort_keys=True)
    weights = (store.trial(trial) / "weights.safetensors").read_bytes()
    return {**arrays, "weights": weights, "scores": scores, "epochs": json.dumps(epochs, sort_keys=True)}


class InProcess:
    """An executor without processes, so that tests can look inside."""

    guarded = True
    """False where something else of this process opens results while a trial is trained, as MLflow's thread does."""

    def run(self, jobs: Jobs) -> Iterator[Event]:
        while jobs.waiting():
            if (taken := jobs.take()) is None:
                time.sleep(0.02)  # another process has what is left
                continue
            trial, make_job = taken
            try:
                job = dataclasses.replace(make_job("cpu"), guarded=self.guarded)
            except DataError as error:
                yield Failed(trial, "data", str(error))
                continue
            yield Started(trial, "cpu")
            visits: list[Visit] = []
            try:
                info = run(job, visits.append)
            except TrialError as error:
                yield from (EpochDone(trial, visit) for visit in visits)
                yield Failed(trial, error.cause, error.text)
                continue
            except BusyError as busy:
                yield Postponed(trial, busy.segment, busy.epoch)
                continue
            yield from (EpochDone(trial, visit) for visit in visits)
            yield Finished(trial, info)
