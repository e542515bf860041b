"""One sweep: the missing trials of a plan are trained by an executor, scored here, and stored.

This is the parent's side of the firewall: training processes write logits, this process has the targets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import bench
from bench import plugins, scoring
from bench.api import DataError
from bench.data.prepared import Prepared
from bench.data.selection import Selected
from bench.data.splits import split_positions
from bench.errors import ResultsError
from bench.execute.events import EpochDone, Event, Failed, Finished, Started
from bench.execute.local import LocalExecutor
from bench.plan import Plan, TrialSpec
from bench.scoring import Truth
from bench.store import Store, npz
from bench.trajectory import Visit, read_outputs, weights_file
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


Observer = Callable[[Event], None]


class Sweep:
    """Runs what is missing of a plan. `run` yields an outcome per trial; everything finished stays finished."""

    def __init__(self, plan: Plan, datasets: Sequence[Selected], store: Store) -> None:
        self.plan, self.store = plan, store
        self.datasets = {selected.prepared.fingerprint: selected for selected in datasets}
        self._watched: dict[str, _Watched] = {}

    def missing(self) -> list[TrialSpec]:
        """The trials that are not stored yet, in the order they will run."""
        return [spec for spec in self.plan.trials if not self.store.has(spec.id)]

    def record_request(self) -> dict[str, Any]:
        """Store what was asked for, so that tables can be rebuilt in this order; returns it."""
        request = request_of(self.plan)
        self.store.write_sweep(request["id"], request)
        return request

    def run(self, executor: LocalExecutor, observe: Observer | None = None) -> Iterator[Outcome]:
        """Train, score and store every missing trial; a failed one is recorded and the sweep goes on."""
        specs = {spec.id: spec for spec in self.missing()}
        jobs = [(spec.id, lambda device, spec=spec: self._job(spec, device)) for spec in specs.values()]
        for event in executor.run(jobs):
            if observe is not None:
                observe(event)
            if isinstance(event, Started):
                self._watched[event.trial] = self._watch(specs[event.trial])
            elif isinstance(event, EpochDone):
                self._scored(self._watched[event.trial], event.visit)
            elif isinstance(event, Finished):
                yield self._finish(self._watched.pop(event.trial), event.info)
            else:
                yield self._fail(self._watched.pop(event.trial), event)

    def _job(self, spec: TrialSpec, device: str) -> Job:
        selected = self.datasets[spec.fingerprint]
        positions = split_positions(selected.prepared.index, fold=spec.fold, kind=spec.split)
        return Job(
            spec=spec,
            prepared=selected.prepared.folder,
            trajectories=self.store.trajectories,
            plugin_folders=tuple(plugins.folders()),
            positions=positions,
            train_targets=selected.prepared.targets()[positions["train"]],
            device=device,
        )

    def _watch(self, spec: TrialSpec) -> _Watched:
        return _Watched(spec, Truth.of(self.datasets[spec.fingerprint].prepared, spec.split, spec.fold))

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
            self._weights(watched, previous).unlink(missing_ok=True)
        if record:
            watched.best = len(watched.visits) - 1

    def _weights(self, watched: _Watched, epoch: int) -> Path:
        return weights_file(self.store.trajectories, watched.visits[epoch].segment, epoch)

    def _finish(self, watched: _Watched, info: dict[str, Any]) -> Outcome:
        spec = watched.spec
        outputs = [read_outputs(self.store.trajectories, v.segment, v.record.epoch) for v in watched.visits]
        scores = scores_of(watched.truth, watched.val, outputs, watched.best)
        selected = self.datasets[spec.fingerprint]
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
            "data_fingerprint": spec.fingerprint,
            "split_hash": spec.split_hash,
            "split_sizes": {name: len(t) for name, t in watched.truth.targets.items()},
            "metric": watched.truth.metric,
            "kind": watched.truth.kind,
            "modalities": list(selected.spec.modalities),
            "segments": [v.segment for v in watched.visits],
            "epochs": [dataclasses.asdict(v.record) for v in watched.visits],
        }
        files: dict[str, bytes | Path] = {
            "spec.json": _json(spec.to_json()),
            "scores.json": _json(scores),
            "logits.npz": npz(_by_epoch(outputs)),
            "samples.npz": npz(_samples(outputs, watched.best)),
            "record.json": _json(record),
        }
        weights = self._weights(watched, watched.best)
        if weights.is_file():
            files["weights.safetensors"] = weights
        self.store.write_trial(spec.id, files)
        return Outcome(spec, "finished", seconds=record["seconds"], scores=scores)

    def _fail(self, watched: _Watched, event: Failed) -> Outcome:
        failure = {"cause": event.cause, "text": event.text, "time": time.time(), "epochs": len(watched.visits)}
        self.store.write_failure(event.trial, {**failure, "spec": watched.spec.to_json()})
        return Outcome(watched.spec, event.cause, event.text)


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


def request_of(plan: Plan) -> dict[str, Any]:
    """A plan as plain values: rows in the user's order with the ids of their trials."""
    rows = [
        {
            "label": row.label,
            "method": row.method,
            "dataset_label": row.dataset_label,
            "dataset": row.dataset,
            "protocol": row.protocol,
            "metric": row.metric,
            "derived": row.derived,
            "groups": [
                {"fold": group[0].fold, "seed": group[0].seed, "trials": [spec.id for spec in group]}
                for group in row.groups
            ],
        }
        for row in plan.rows
    ]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    return {"id": digest, "rows": rows, "skipped": [dataclasses.asdict(s) for s in plan.skipped]}


FindTruth = Callable[[Mapping[str, Any]], Truth | None]
"""From a trial's spec (as plain values) to its targets, or None where the data is not at hand."""


def truths(datasets: Sequence[Selected]) -> FindTruth:
    """The targets of data sets that are selected."""
    prepared = {selected.prepared.fingerprint: selected.prepared for selected in datasets}
    return lambda spec: _truth(prepared.get(spec["fingerprint"]), spec)


def truths_of_stored(folder: Path) -> FindTruth:
    """The targets of whatever is prepared in a folder."""
    found: dict[str, Prepared] = {}
    for manifest in folder.glob("*/manifest.json"):
        with contextlib.suppress(DataError):
            prepared = Prepared.open(manifest.parent)
            found[prepared.fingerprint] = prepared
    return lambda spec: _truth(found.get(spec["fingerprint"]), spec)


def _truth(prepared: Prepared | None, spec: Mapping[str, Any]) -> Truth | None:
    return None if prepared is None else Truth.of(prepared, spec["split"], spec["fold"])


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
        if not name.endswith("/logits")
    }


def _json(values: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise ResultsError(f"a record holds a number that is not finite: {error}") from None
