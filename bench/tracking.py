"""Results mirrored into MLflow: one experiment per data set, a parent run per sweep, a child run per trial.

The results folder stays the source of truth. The mirror is written by the parent process alone, from stored files,
in a thread of its own: a slow or absent server never holds a sweep up, and `sync` brings in what it missed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

import bench
from bench import mirrored
from bench.errors import BenchError, RequestError, ResultsError
from bench.mirrored import Point
from bench.store import Store, read_json, read_sealed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from bench.config import TrackingConfig

PATIENCE = 60.0
"""Seconds a sweep's end waits for the mirror."""

_BATCH = {"metrics": 1000, "params": 100}
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


class Mirror:
    """Writes a sweep's trials into MLflow while it runs; `problems` says what did not get there.

    Use it as a context manager. Nothing it does raises: `sync` repairs whatever is missing.
    """

    def __init__(self, uri: str | None, store: Store, request: Mapping[str, Any], patience: float = PATIENCE) -> None:
        self.uri, self.store, self.request, self.patience = uri or default_uri(store), store, request, patience
        self.problems: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow mirror", daemon=True)

    def start(self) -> None:
        """Begin, with the trials of the sweep that are stored already."""
        for trial_id in mirrored.trials_of(self.request):
            if self.store.has(trial_id):
                self._queue.put(trial_id)
        self._thread.start()

    def submit(self, trial_id: str, finished: bool = True) -> None:
        """Hand over a trial that finished or failed; returns at once."""
        self._queue.put(trial_id)

    def close(self, patience: float | None = None) -> None:
        """Wait for what was handed over, for at most `patience` seconds."""
        self._queue.put(None)
        self._thread.join(self.patience if patience is None else patience)
        if self._thread.is_alive():
            self._given_up.set()
            left = max(1, self._queue.qsize() - 1)
            self.problems.append(f"MLflow at {self.uri} is slow: {left} trials are not there yet")

    def __enter__(self) -> Mirror:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(5.0 if kind is not None else None)

    def _work(self) -> None:
        try:
            writer = _Writer(self.store, self.uri)
            parents = writer.open_sweep(self.request)
        except Exception as error:  # whatever the server or the library raises, training goes on
            self.problems.append(f"MLflow at {self.uri} cannot be used: {_first_line(error)}")
            return
        while (trial_id := self._queue.get()) is not None and not self._given_up.is_set():
            try:
                writer.write(trial_id, parents)
            except Exception as error:  # as above
                self.problems.append(f"MLflow: trial {trial_id} was not written: {_first_line(error)}")
        if self._given_up.is_set():
            return
        try:
            writer.close_sweep(self.request)
        except Exception as error:  # as above
            self.problems.append(f"MLflow: the sweep's run was not ended: {_first_line(error)}")


class NoMirror:
    """What stands in for a mirror when tracking is off."""

    problems: Sequence[str] = ()

    def submit(self, trial_id: str, finished: bool = True) -> None:
        """Nothing."""

    def __enter__(self) -> NoMirror:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def mirror(config: TrackingConfig, store: Store, request: Mapping[str, Any]) -> Mirror | NoMirror:
    """The mirror a configuration asks for."""
    return Mirror(config.uri, store, request) if config.mlflow else NoMirror()


def sync(store: Store, uri: str | None = None) -> int:
    """Mirror everything stored that is not there yet, and end runs that were left running; returns how many trials.

    Raises ResultsError if MLflow cannot be used.
    """
    uri = uri or default_uri(store)
    requests = store.sweeps()
    failed = [file.stem for file in sorted((store.folder / "failures").glob("*.json"))]
    written = 0
    with _usable(uri):
        writer = _Writer(store, uri)
        parents: dict[str, str] = {}
        for request in requests:
            opened = writer.open_sweep(request, reopen=False)
            parents = {**opened, **parents}  # a trial stays with the first sweep that asked for it
        for trial_id in [*store.finished(), *failed]:
            written += writer.write(trial_id, parents)
        for request in requests:
            writer.close_sweep(request)
        for file in sorted((store.folder / "studies").glob("*.json")):
            writer.write_study(read_json(file))
        for file in _analyses(store):
            writer.write_analysis(file)
    return written


def mirror_study(store: Store, study: Mapping[str, Any], uri: str | None = None) -> int:
    """Mirror a study (as `results/studies` holds it): a parent run and one per trial; returns how many were added.

    Raises ResultsError if MLflow cannot be used; `sync` repairs what is missing.
    """
    uri = uri or default_uri(store)
    with _usable(uri):
        return _Writer(store, uri).write_study(study)


def mirror_analyses(store: Store, uri: str | None = None) -> int:
    """Mirror what analyses measured (as `results/analyses` holds it) onto the runs of their trials.

    Returns how many measurements were added; a trial that has no run yet gets one. Raises ResultsError if MLflow
    cannot be used; `sync` repairs what is missing.
    """
    uri = uri or default_uri(store)
    with _usable(uri):
        writer = _Writer(store, uri)
        return sum(writer.write_analysis(file) for file in _analyses(store))


def default_uri(store: Store) -> str:
    """A database in the results folder."""
    return f"sqlite:///{store.folder / 'mlflow.db'}"


def ui_command(store: Store, uri: str | None = None, port: int = 5000) -> list[str]:
    """The command that serves the UI on loopback with one worker. Raises RequestError for a server's own address."""
    uri = uri or default_uri(store)
    if uri.startswith(("http://", "https://")):
        raise RequestError(f"tracking.uri: {uri} is a server and shows its own UI: open it in a browser")
    places = ["--backend-store-uri", uri, "--artifacts-destination", _artifacts(store).as_uri()]
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *places,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]


def serve(store: Store, uri: str | None = None, port: int = 5000) -> int:
    """Serve the UI until it is interrupted; returns the exit status of the server."""
    # Without this the server starts seven more processes, for jobs that nobody here submits.
    environment = {**_ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    try:
        return subprocess.call(ui_command(store, uri, port), env=environment)
    except KeyboardInterrupt:
        return 0


class _Writer:
    """Stored trials to runs. Idempotent: a run is found by its trial's id, and only a finished one is left alone."""

    def __init__(self, store: Store, uri: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.store, self.remote = store, uri.startswith(("http://", "https://"))
        self._lock = FileLock(store.folder / "mlflow.lock", timeout=300)
        with self._lock:  # two processes that create one database break each other
            self.client: MlflowClient = MlflowClient(tracking_uri=uri)
            self.client.search_experiments(max_results=1)
            if uri.startswith("sqlite:///"):
                with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
                    database.execute("pragma journal_mode=wal")
        self._experiments: dict[str, str] = {}

    def open_sweep(self, request: Mapping[str, Any], reopen: bool = True) -> dict[str, str]:
        """The parent runs of a sweep, one per data set; returns trial id -> parent's run id."""
        parents: dict[str, str] = {}
        for data, rows in mirrored.by_dataset(request).items():
            with self._lock:
                found = self._runs(data, "bench.sweep_id", request["id"])
                if not found:
                    run = self.client.create_run(
                        self._experiment(data),
                        run_name=f"sweep {request['id'][:8]}",
                        tags=mirrored.sweep_tags(request, rows),
                    )
                    run_id = run.info.run_id
                else:
                    run_id = found[0].info.run_id
                    if reopen:
                        self.client.update_run(run_id, status="RUNNING")
            parents |= dict.fromkeys(mirrored.trials_of({"rows": rows}), run_id)
        return parents

    def close_sweep(self, request: Mapping[str, Any]) -> None:
        """End a sweep's parent runs: finished, failed where trials failed, killed where some are missing."""
        for data, rows in mirrored.by_dataset(request).items():
            missing = [t for t in mirrored.trials_of({"rows": rows}) if not self.store.has(t)]
            failed = any(self.store.failure(t) is not None for t in missing)
            status = "FINISHED" if not missing else "FAILED" if failed else "KILLED"
            for run in self._runs(data, "bench.sweep_id", request["id"]):
                if run.info.status != status:
                    self.client.set_terminated(run.info.run_id, status)

    def write(self, trial_id: str, parents: Mapping[str, str]) -> bool:
        """Mirror a trial that finished or failed; False if it is there already."""
        if self.store.has(trial_id):
            spec, record = (self.store.read(trial_id, f"{name}.json") for name in ("spec", "record"))
            scores = self.store.read(trial_id, "scores.json")
            tags = {"bench.commit": str(record["commit"]), "bench.device": record["device"]}
            metrics = [*mirrored.summary(record, scores), *mirrored.curves(record, scores)]
            started, ended, status = record["started"], record["finished"], "FINISHED"
        elif (failure := self.store.failure(trial_id)) is not None:
            spec, metrics = failure["spec"], []
            tags = {"bench.cause": failure["cause"], "mlflow.note.content": failure["text"][:5000]}
            started = ended = failure["time"]
            status = "KILLED" if failure["cause"] in ("killed", "interrupted") else "FAILED"
        else:
            return False
        tags |= {"bench.kind": "trial", "bench.trial_id": trial_id, "bench.version": bench.__version__}
        if trial_id in parents:
            tags["mlflow.parentRunId"] = parents[trial_id]
        with self._lock:
            there = self._runs(spec["data"], "bench.trial_id", trial_id)
            if any(_same(run, status, ended) for run in there):
                return False
            for run in there:  # half written, or a failure that was mended since
                self.client.delete_run(run.info.run_id)
            name = f"{spec['method']} seed {spec['seed']}" + (f" fold {spec['fold']}" if spec["fold"] else "")
            run = self.client.create_run(
                self._experiment(spec["data"]), start_time=mirrored.ms(started), tags=tags, run_name=name
            )
            self._log(run.info.run_id, metrics, mirrored.params(spec))
            self.client.set_terminated(run.info.run_id, status, end_time=mirrored.ms(ended))
        return True

    def write_study(self, study: Mapping[str, Any]) -> int:
        """Mirror a study; what is there already is left alone. Returns how many of its trials were added."""
        data, name, best = study["data"], study["name"], study["best"]
        added = 0
        with self._lock:
            found = self._runs(data, "bench.study", name)
            parents = [run for run in found if run.data.tags["bench.kind"] == "study"]
            there = {run.data.tags.get("bench.number") for run in found}
            if parents:
                parent = parents[0].info.run_id
            else:
                tags = {"bench.kind": "study", "bench.study": name, "bench.version": bench.__version__}
                run = self.client.create_run(self._experiment(data), tags=tags, run_name=f"study {study['method']}")
                parent = run.info.run_id
                self._log(parent, [], {"method": study["method"], **mirrored.flat("search", study["search"])})
            for trial in study["trials"]:
                if trial["state"] == "running" or str(trial["number"]) in there:
                    continue
                tags = {
                    "bench.kind": "study trial",
                    "bench.study": name,
                    "bench.number": str(trial["number"]),
                    "bench.state": trial["state"],
                    "mlflow.parentRunId": parent,
                }
                run = self.client.create_run(self._experiment(data), tags=tags, run_name=trial["method"])
                moment = run.info.start_time
                curve = [(f"epoch/val_{study['metric']}", x, moment, epoch) for epoch, x in enumerate(trial["val"])]
                facts = {"trained_epochs": trial["trained_epochs"], f"best_val_{study['metric']}": trial["value"]}
                points = [(key, float(x), moment, 0) for key, x in facts.items() if x is not None]
                self._log(run.info.run_id, [*curve, *points], {k: str(v) for k, v in trial["settings"].items()})
                self.client.set_terminated(run.info.run_id, "FAILED" if trial["state"] == "failed" else "FINISHED")
                added += 1
            spent = [(f"spent_{key}", float(x), mirrored.ms(time.time()), 0) for key, x in study["spent"].items()]
            if best is not None:
                spent.append((f"best_val_{study['metric']}", best["value"], spent[0][2], 0))
            if added:
                self._log(parent, spent, {})
                self.client.set_terminated(parent, "FINISHED")
        return added

    def write_analysis(self, file: Path) -> bool:
        """Mirror one measurement onto its trial's run, with its file; False if it is there already."""
        content = read_sealed(file)
        if content is None or not self.store.has(content["trial"]):
            return False
        name, trial = content["analysis"], content["trial"]
        data = self.store.read(trial, "spec.json")["data"]
        with self._lock:
            runs = self._runs(data, "bench.trial_id", trial)
        if not runs:
            self.write(trial, {})
            runs = self._runs(data, "bench.trial_id", trial)
        run, tag = runs[0], f"bench.analysis.{name}.{file.stem.rpartition('-')[2]}"
        if tag in run.data.tags:
            return False
        found = mirrored.numbers(f"analysis/{name}", content["values"])
        moment, step = mirrored.ms(file.stat().st_mtime), self.store.read(trial, "record.json")["selected_epoch"]
        with self._lock:
            self._log(run.info.run_id, [(key, value, moment, step) for key, value in found.items()], {})
            self.client.log_artifact(run.info.run_id, str(file), "analyses")
            self.client.set_tag(run.info.run_id, tag, json.dumps(content["settings"])[:5000])
        return True

    def _log(self, run_id: str, metrics: list[Point], params: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, Param

        for some in _chunks([Param(key, value) for key, value in params.items()], _BATCH["params"]):
            self.client.log_batch(run_id, params=some)
        points = [Metric(name, value, time, step) for name, value, time, step in metrics]
        for some in _chunks(points, _BATCH["metrics"]):
            self.client.log_batch(run_id, metrics=some)

    def _runs(self, data: str, tag: str, value: str) -> list[Run]:
        return list(self.client.search_runs([self._experiment(data)], f"tags.`{tag}` = '{value}'"))

    def _experiment(self, data: str) -> str:
        if data not in self._experiments:
            found = self.client.get_experiment_by_name(data)
            if found is None:
                # A path of our own, because MLflow's default is relative to wherever bench was started.
                place = _artifacts(self.store) / hashlib.sha256(data.encode()).hexdigest()[:16]
                location = None if self.remote else place.as_uri()
                self._experiments[data] = self.client.create_experiment(data, artifact_location=location)
            else:
                if found.lifecycle_stage == "deleted":
                    self.client.restore_experiment(found.experiment_id)
                self._experiments[data] = found.experiment_id
        return self._experiments[data]


@contextlib.contextmanager
def _usable(uri: str) -> Iterator[None]:
    """Whatever MLflow raises as a ResultsError that says where."""
    try:
        yield
    except BenchError:
        raise
    except Exception as error:  # the library's own, SQLAlchemy's and the network's have no common base
        raise ResultsError(f"MLflow at {uri} cannot be used: {_first_line(error)}") from error


def _analyses(store: Store) -> list[Path]:
    """The files of all measurements that are kept."""
    return sorted(file for file in (store.folder / "analyses").glob("*/*.json") if file.name != "request.json")


def _same(run: Run, status: str, ended: float) -> bool:
    return run.info.status == status and run.info.end_time == mirrored.ms(ended)


def _artifacts(store: Store) -> Path:
    return store.folder / "mlartifacts"


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
