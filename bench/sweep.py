"""One sweep: the missing trials of a plan are trained by an executor, scored here, and stored.

This is the parent's side of the firewall: training processes write logits, this process has the targets.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import bench
from bench import guard, plugins, scoring
from bench.agenda import Agenda, in_order
from bench.api import DataError
from bench.data.selection import Selected
from bench.data.splits import split_positions
from bench.errors import ResultsError
from bench.execute.events import EpochDone, Event, Failed, Finished, Jobs, Postponed
from bench.plan import PartSpec, Plan, TrialSpec
from bench.requested import request_of
from bench.retention import EVERYTHING, announced, forget, needed_elsewhere, prune, remove_file, remove_weights, trim
from bench.scoring import Truth
from bench.segments import STEP_LOSSES, epoch_file, read_outputs, sound_weights, weights_file
from bench.store import Store, npz
from bench.trajectory import Visit, decides, kin_of
from bench.trial import Job


@dataclass(frozen=True)
class Outcome:
    """What became of one trial of a sweep."""

    spec: TrialSpec
    status: str
    """`finished`, or the cause of its failure."""
    text: str = ""
    seconds: float = 0.0
    scores: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Watched:
    """A running trial as its parent sees it."""

    spec: TrialSpec
    truth: Truth
    visits: list[Visit] = field(default_factory=list)
    val: list[dict[str, float]] = field(default_factory=list)
    best: int = 0
    trouble: str = ""
    """Why its outputs cannot be scored."""
    tainted: str = ""
    """What plugin code did in this process."""
    removed: bool = False
    """Whether epochs were removed that it shares with a trial that turned out tainted."""


_UNSCORABLE = (ValueError, KeyError, ArithmeticError)
"""What scoring raises for outputs that have no score."""

Observer = Callable[[Event], None]


class Executor(Protocol):
    """What runs trials: `bench.execute.local.LocalExecutor`, or another of the same shape."""

    def run(self, jobs: Jobs) -> Iterator[Event]:
        """The events of the trials that `jobs` hands out."""


class SweepExecutor(Protocol):
    """An `Executor`, or one that follows what other processes make of the trials."""

    def run(self, jobs: Agenda) -> Iterator[Event]:
        """The events of the trials of an agenda."""


class Sweep:
    """Runs what is missing of a plan. `run` yields an outcome per trial; everything finished stays finished.

    `candidates` are trials outside the plan that may be asked for later: where one of them would part from a planned
    one, a state is kept that it can go on from. `disk` bytes of weights and states stay at the end.
    """

    def __init__(
        self,
        plan: Plan,
        datasets: Sequence[Selected],
        store: Store,
        candidates: Sequence[TrialSpec] = (),
        disk: float = 20e9,
    ) -> None:
        self.plan, self.store, self.candidates, self.disk = plan, store, candidates, int(disk)
        self.datasets = {selected.prepared.fingerprint: selected for selected in datasets}
        self._watched: dict[str, _Watched] = {}
        self._restore: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self._companions: dict[str, dict[str, tuple[PartSpec, ...]]] = {}
        self._segments: dict[str, set[str]] = {}
        self._name = ""

    def missing(self) -> list[TrialSpec]:
        """The trials that are not stored yet, in the order they will run."""
        return in_order([spec for spec in self.plan.trials if not self.store.has(spec.id)])

    def record_request(self) -> dict[str, Any]:
        """Store what was asked for, so that tables can be rebuilt in this order; returns it."""
        request = request_of(self.plan)
        self.store.write_sweep(request["id"], request)
        return request

    def run(self, executor: SweepExecutor, observe: Observer | None = None) -> Iterator[Outcome]:
        """Train, score and store every missing trial; a failed one is recorded and the sweep goes on.

        What another process on the same folder finishes or fails in the meantime is an outcome too.
        """
        missing = self.missing()
        specs = {spec.id: spec for spec in missing}
        for spec in [*missing, *self.candidates]:
            deciding = tuple(part for part in spec.strategies if decides(part))
            self._companions.setdefault(kin_of(spec), {})[spec.id] = deciding
        agenda = Agenda(self.store, missing, self._begin)
        guard.install(self._closed_to_plugins())
        try:
            with announced(self.store, agenda.kins()) as self._name:
                for event in executor.run(agenda):
                    if observe is not None:
                        observe(event)
                    outcome = self._follow(event, specs, agenda)
                    if outcome is not None:
                        yield outcome
                    yield from (self._elsewhere(spec) for spec in agenda.settled())
                yield from (self._elsewhere(spec) for spec in agenda.settled())
            prune(self.store, self.plan, self.disk)
        finally:
            agenda.close()

    def _closed_to_plugins(self) -> guard.Places:
        used = self.datasets.values()
        roots = (selected.root for selected in used if selected.root)
        return guard.Places.of((s.prepared.folder.parent for s in used), self.store.folder, roots)

    def _follow(self, event: Event, specs: Mapping[str, TrialSpec], agenda: Agenda) -> Outcome | None:
        """Act on an event; an outcome if it ended a trial."""
        if isinstance(event, EpochDone):
            self._score(self._watched[event.trial], event.visit)
        elif isinstance(event, Postponed):
            del self._watched[event.trial]
            agenda.put_back(event.trial, event.segment, event.epoch)
        elif isinstance(event, Finished):
            watched = self._watched.pop(event.trial)
            if tainted := watched.tainted or self._tainted(watched.spec):
                outcome = self._fail(watched.spec, Failed(event.trial, "tainted", tainted), watched)
                agenda.done(event.trial)
                return outcome
            if watched.removed or not self._is_stored(*watched.visits):
                agenda.put_back(event.trial)
                return None
            if watched.trouble:
                outcome = self._fail(watched.spec, Failed(event.trial, "error", watched.trouble), watched)
                agenda.done(event.trial)
                return outcome
            if self._weights(watched) is None and event.trial not in self._restore:
                # An earlier sweep removed them, not knowing of this trial.
                self._restore[event.trial] = watched.best, event.info
                agenda.put_back(event.trial)
                return None
            _, before = self._restore.pop(event.trial, (0, {}))
            try:
                outcome = self._finish(watched, {**event.info, **before})
            except _UNSCORABLE as error:
                outcome = self._fail(watched.spec, Failed(event.trial, "error", _why(error)), watched)
            except DataError as error:
                outcome = self._fail(watched.spec, Failed(event.trial, "data", str(error)), watched)
            agenda.done(event.trial)
            self._let_go(watched, agenda)
            return outcome
        elif isinstance(event, Failed):
            outcome = self._fail(specs[event.trial], event, self._watched.pop(event.trial, None))
            agenda.done(event.trial)
            return outcome
        return None

    def _begin(self, spec: TrialSpec, device: str) -> Job:
        selected = self.datasets[spec.fingerprint]
        known = Truth.of(selected.prepared, spec.split, spec.fold, ("val",))
        self._watched[spec.id] = _Watched(spec, known)
        positions = split_positions(selected.prepared.index, fold=spec.fold, kind=spec.split)
        others: list[tuple[PartSpec, ...]] = []
        for trial, parts in self._companions[kin_of(spec)].items():
            if trial != spec.id and parts not in others and not self.store.has(trial):
                others.append(parts)
        return Job(
            spec=spec,
            prepared=selected.prepared.folder,
            trajectories=self.store.trajectories,
            plugin_folders=tuple(plugins.folders()),
            positions=positions,
            train_targets=selected.prepared.targets()[positions["train"]],
            device=device,
            sources=(selected.root,) if selected.root else (),
            companions=tuple(others),
            restore=self._restore[spec.id][0] if spec.id in self._restore else None,
        )

    def _elsewhere(self, spec: TrialSpec) -> Outcome:
        """What another process made of a trial."""
        if self.store.has(spec.id):
            record, scores = (self.store.read(spec.id, f"{name}.json") for name in ("record", "scores"))
            return Outcome(spec, "finished", "by another process", record["seconds"], scores)
        failure = self.store.failure(spec.id) or {"cause": "error", "text": "its record is gone"}
        return Outcome(spec, failure["cause"], failure["text"])

    def _let_go(self, watched: _Watched, agenda: Agenda) -> None:
        """Remove weights when the last trial is finished that could select them."""
        kin = kin_of(watched.spec)
        segments = self._segments.setdefault(kin, set())
        segments |= {visit.segment for visit in watched.visits}
        needed = agenda.kins()
        if kin not in needed and not {kin, EVERYTHING} & needed_elsewhere(self.store, self._name):
            for segment in segments:
                remove_weights(self.store.trajectories / segment)
        trim(self.store, needed, self.disk)

    def _score(self, watched: _Watched, visit: Visit) -> None:
        """Score an epoch; one that cannot be scored fails its trial and not the sweep."""
        watched.tainted = watched.tainted or self._tainted(watched.spec)
        try:
            self._scored(watched, visit)
        except _UNSCORABLE as error:
            watched.trouble = watched.trouble or _why(error)
        except ResultsError:
            if self._is_stored(*watched.visits, visit):
                raise
            watched.removed = True

    def _tainted(self, spec: TrialSpec) -> str:
        """What plugin code did in this process that a trial cannot be scored after; empty where it did nothing."""
        changed = [f"what scores was changed in the parent process: {text}" for text in SEAL.broken()]
        modules = [f"bench.plugins.methods.{part.name}" for part in (spec.fusion, *spec.strategies)]
        modules.append(f"bench.plugins.datasets.{spec.dataset.name}")
        return "\n".join([*changed, *(str(note) for note in guard.notes() if note.module in modules)])

    def _is_stored(self, *visits: Visit) -> bool:
        """Whether all these epochs are still there."""
        files = (epoch_file(self.store.trajectories / v.segment, v.record.epoch, "json") for v in visits)
        return all(file.is_file() for file in files)

    def _scored(self, watched: _Watched, visit: Visit) -> None:
        outputs = read_outputs(self.store.trajectories, visit.segment, visit.record.epoch)
        score = watched.truth.score("val", outputs["val/logits"]) if "val/logits" in outputs else {}
        watched.visits.append(visit)
        watched.val.append(score)
        metric = watched.truth.metric
        so_far = watched.val[watched.best].get(metric) if len(watched.val) > 1 else None
        record = not score or scoring.improves(score[metric], so_far, metric)
        previous = len(watched.visits) - 2
        if previous >= 0 and previous != watched.best:
            # Any trial sharing this stretch selects one of its record epochs or trains on beyond it.
            before = watched.visits[previous]
            remove_file(weights_file(self.store.trajectories, before.segment, before.record.epoch))
        if record:
            watched.best = len(watched.visits) - 1

    def _weights(self, watched: _Watched) -> Path | None:
        visit = watched.visits[watched.best]
        return sound_weights(self.store.trajectories, visit.segment, visit.record.epoch)

    def _finish(self, watched: _Watched, info: dict[str, Any]) -> Outcome:
        spec = watched.spec
        selected = self.datasets[spec.fingerprint]
        truth = Truth.of(selected.prepared, spec.split, spec.fold)  # test targets: the epoch is selected by now
        outputs = [read_outputs(self.store.trajectories, v.segment, v.record.epoch) for v in watched.visits]
        scores = scores_of(truth, watched.val, outputs, watched.best)
        record = {
            "id": spec.id,
            "method": spec.method,
            "data": spec.data,
            "seed": spec.seed,
            "fold": spec.fold,
            "selected_epoch": watched.best,
            "started": info["started"],
            "finished": info["finished"],
            "seconds": info["finished"] - info["started"],
            "train_seconds": sum(v.record.train_seconds for v in watched.visits),
            "steps": sum(v.record.steps for v in watched.visits),
            "trained_epochs": info["trained_epochs"],
            "device": info["device"],
            "threads": spec.recipe.threads,
            "versions": {**info["versions"], "bench": bench.__version__},
            "commit": commit(),
            "cost": info["cost"],
            "guard": info["guard"],
            "data_fingerprint": spec.fingerprint,
            "split_hash": spec.split_hash,
            "split_sizes": {name: len(t) for name, t in truth.targets.items()},
            "metric": truth.metric,
            "kind": truth.kind,
            "modalities": list(selected.spec.modalities),
            "segments": [v.segment for v in watched.visits],
            "epochs": [dataclasses.asdict(v.record) for v in watched.visits],
        }
        files: dict[str, bytes | Path] = {
            "spec.json": _json(spec.to_json()),
            "scores.json": _json(scores),
            "logits.npz": npz(_by_epoch(outputs)),
            "samples.npz": npz(_samples(outputs, watched.best)),
            "losses.npz": npz({f"{epoch:04d}": o[STEP_LOSSES] for epoch, o in enumerate(outputs) if STEP_LOSSES in o}),
            "record.json": _json(record),
        }
        weights = self._weights(watched)
        if weights is None:
            raise ResultsError(f"{spec.id}: the weights of epoch {watched.best} were removed while it ran; run again")
        files["weights.safetensors"] = weights
        self.store.write_trial(spec.id, files)
        return Outcome(spec, "finished", seconds=record["seconds"], scores=scores)

    def _fail(self, spec: TrialSpec, event: Failed, watched: _Watched | None) -> Outcome:
        failure = {"cause": event.cause, "text": event.text, "time": time.time(), "attempt": uuid.uuid4().hex}
        failure["epochs"] = 0 if watched is None else len(watched.visits)
        self.store.write_failure(event.trial, {**failure, "spec": spec.to_json()})
        if event.cause == "tainted" and watched is not None:
            self._forget(watched, event.text)
        return Outcome(spec, event.cause, event.text)

    def _forget(self, watched: _Watched, text: str) -> None:
        """Remove the epochs that a tainted trial trained, and all that those plugins shaped that did it."""
        trained: dict[str, list[int]] = {}
        for visit in watched.visits:
            trained.setdefault(visit.segment, []).extend([visit.record.epoch] if visit.trained else [])
        parts = [watched.spec.fusion, *watched.spec.strategies]
        guilty = [part for part in parts if plugins.load("methods", part.name).origin in text]
        forget(self.store, trained, [part.code for part in guilty or parts])


def scores_of(
    truth: Truth, val: Sequence[Mapping[str, float]], outputs: Sequence[Mapping[str, np.ndarray]], best: int
) -> dict[str, Any]:
    """What is read off a finished trial: test targets enter here, after the epoch was selected on val."""
    selected = outputs[best]
    splits = [split for split in ("val", "test") if f"{split}/logits" in selected]
    scores: dict[str, Any] = {"selected_epoch": best, "val_by_epoch": [dict(v) for v in val]}
    for split in splits:
        scores[split] = truth.score(split, selected[f"{split}/logits"])
        unimodal = {k.rsplit("/", 1)[1]: v for k, v in selected.items() if k.startswith(f"{split}/unimodal/")}
        mass = {k.rsplit("/", 1)[1]: v for k, v in selected.items() if k.startswith(f"{split}/mass/")}
        scores[f"{split}_unimodal"] = {m: truth.score(split, logits) for m, logits in unimodal.items()}
        scores[f"{split}_attention_mass"] = {m: float(x.mean()) for m, x in mass.items()}
    return scores


@cache
def commit() -> str | None:
    """The commit of the working tree bench runs from, marked if it has changes; None outside a checkout."""
    folder = Path(bench.__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        run = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ}).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _by_epoch(outputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    splits = [split for split in ("val", "test") if f"{split}/logits" in outputs[0]]
    return {split: np.stack([o[f"{split}/logits"] for o in outputs]) for split in splits}  # [epoch, sample, outputs]


def _samples(outputs: Sequence[Mapping[str, np.ndarray]], best: int) -> dict[str, np.ndarray]:
    chosen = {"selected": outputs[best], "last": outputs[-1]}
    return {
        f"{when}/{name}": values
        for when, arrays in chosen.items()
        for name, values in arrays.items()
        if not name.endswith("/logits") and name != STEP_LOSSES
    }


def _json(values: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise ValueError(f"a record holds a number that is not finite: {error}") from None


def _why(error: Exception) -> str:
    return f"its outputs cannot be scored: {type(error).__name__}: {error}"


_SCORES = ("scoring", "data.splits", "data.prepared", "segments", "store", "requested", "sweep")
SEAL = guard.Seal(np, *(sys.modules[f"bench.{name}"] for name in _SCORES))
"""What scores and stores, as it was before any plugin was loaded."""
