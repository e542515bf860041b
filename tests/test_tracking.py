"""The mirror shows what is stored: a real SQLite database, read back through MLflow's own search."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from bench import tracking
from bench.analysis.contract import Measurement
from bench.analysis.kept import Kept
from bench.analysis.missing import Missing
from bench.config import TrackingConfig
from bench.errors import RequestError, ResultsError
from bench.store import Store
from bench.tracking import Mirror
from tests import stored

SPECS = [stored.spec("vanilla_mt+rollingq", seed=seed) for seed in range(2)]
FAILING = stored.spec("concat")
REQUEST = stored.request([("rollingq", [[spec] for spec in SPECS]), ("concat", [[FAILING]])])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One results folder, and so one database, for the whole module: its migrations take seconds."""
    made = Store(tmp_path_factory.mktemp("tracking") / "results")
    made.write_sweep(REQUEST["id"], REQUEST)
    return made


@pytest.fixture(scope="module")
def client(store: Store) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking.default_uri(store))


def runs_of(client: Any, kind: str, data: str = "planted") -> list[Any]:
    experiment = client.get_experiment_by_name(data)
    return list(client.search_runs([experiment.experiment_id], f"tags.`bench.kind` = '{kind}'"))


def snapshot(client: Any) -> list[tuple[str, str, int]]:
    return sorted(
        (r.info.run_id, r.info.status, r.info.end_time) for k in ("trial", "sweep") for r in runs_of(client, k)
    )


def test_a_sweep_shows_each_trial_as_it_finishes(store: Store, client: Any) -> None:
    """After the first trial, while the sweep runs, the experiment has its row; after the last, all of them."""
    mirror = Mirror(None, store, REQUEST)
    with mirror:
        stored.store_trial(store, SPECS[0], site=True)
        mirror.submit(SPECS[0].id)
        deadline = time.monotonic() + 60
        while not (Path(store.folder / "mlflow.db").is_file() and _finished(client)) and time.monotonic() < deadline:
            time.sleep(0.05)
        (first,) = runs_of(client, "trial")
        (parent,) = runs_of(client, "sweep")
        assert parent.info.status == "RUNNING"
        assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id
        stored.store_trial(store, SPECS[1], site=True, test=(6, 16, 14))
        mirror.submit(SPECS[1].id)
        store.write_failure(
            FAILING.id, {"cause": "out of memory", "text": "no room", "time": 5.0, "spec": FAILING.to_json()}
        )
        mirror.submit(FAILING.id, finished=False)
    assert mirror.problems == []
    assert sorted(run.info.status for run in runs_of(client, "trial")) == ["FAILED", "FINISHED", "FINISHED"]
    (parent,) = runs_of(client, "sweep")
    assert parent.info.status == "FAILED"
    assert parent.data.tags["bench.methods"] == "rollingq,concat"


def _finished(client: Any) -> bool:
    experiment = client.get_experiment_by_name("planted")
    query = "tags.`bench.kind` = 'trial' and attributes.status = 'FINISHED'"
    return experiment is not None and bool(client.search_runs([experiment.experiment_id], query))


def test_a_run_holds_what_a_row_needs(store: Store, client: Any) -> None:
    """12 of 20 right on test at the second epoch, 10 on val; times are the trial's own."""
    (run,) = [r for r in runs_of(client, "trial") if r.data.tags["bench.trial_id"] == SPECS[0].id]
    params, metrics = run.data.params, run.data.metrics
    assert (params["method"], params["fusion"], params["strategies"]) == (
        "vanilla_mt+rollingq",
        "vanilla_mt",
        "rollingq",
    )
    assert (params["seed"], params["fold"], params["recipe"], params["recipe.epochs"]) == ("0", "0", "small", "3")
    assert (params["rollingq.beta"], params["planted.preset"]) == ("0.3", "collapse")
    assert params["data_fingerprint"] == SPECS[0].fingerprint
    assert (metrics["val_accuracy"], metrics["test_accuracy"], metrics["selected_epoch"]) == (0.5, 0.6, 1)
    assert (metrics["test_accuracy_audio"], metrics["test_accuracy_visual"]) == (0.5, 0.25)
    assert (metrics["params_m"], metrics["gflops_published"], metrics["true_gflops"]) == (2.0, 32.0, 0.625)
    assert metrics["air"] == pytest.approx(0.35)
    assert metrics["test_attention_mass_audio"] == 0.75
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_030_000)
    curve = client.get_metric_history(run.info.run_id, "epoch/air")
    assert [(point.step, round(point.value, 6)) for point in curve] == [(0, 0.25), (1, 0.35), (2, 0.45)]
    losses = client.get_metric_history(run.info.run_id, "epoch/loss/joint")
    assert [(point.step, point.timestamp) for point in losses] == [
        (i, 1_700_000_010_000 + 10_000 * i) for i in range(3)
    ]
    assert {"epoch/lr", "epoch/val_accuracy", "epoch/attention_mass/audio"} <= metrics.keys()
    artifacts = Path(client.get_experiment(run.info.experiment_id).artifact_location.removeprefix("file://"))
    assert artifacts.is_relative_to(store.folder)


def test_sync_adds_nothing_twice(store: Store, client: Any) -> None:
    """Everything is there already: not a run changes."""
    before = snapshot(client)
    assert tracking.sync(store) == 0
    assert snapshot(client) == before


def test_sync_repairs_what_a_crash_left_behind(store: Store, client: Any) -> None:
    """A half-written run is written again, a missing one added, a mended failure becomes a finished run."""
    half = [r for r in runs_of(client, "trial") if r.info.status == "FINISHED"]
    client.update_run(half[0].info.run_id, status="RUNNING")
    client.delete_run(half[1].info.run_id)
    (parent,) = runs_of(client, "sweep")
    client.update_run(parent.info.run_id, status="RUNNING")
    stored.store_trial(store, FAILING)
    assert tracking.sync(store) == 3
    runs = runs_of(client, "trial")
    assert sorted(run.data.tags["bench.trial_id"] for run in runs) == sorted(s.id for s in (*SPECS, FAILING))
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert not any("bench.cause" in run.data.tags for run in runs)
    assert runs_of(client, "sweep")[0].info.status == "FINISHED"
    assert tracking.sync(store) == 0


def test_a_measurement_stands_on_the_run_of_its_trial(store: Store, client: Any) -> None:
    """Where the trial has no run yet it gets one; a second time adds nothing."""

    def run() -> Any:
        (found,) = [r for r in runs_of(client, "trial") if r.data.tags["bench.trial_id"] == SPECS[1].id]
        return found

    client.delete_run(run().info.run_id)
    Kept(store, Missing()).write(SPECS[1].id, Measurement({"clean": 0.75, "missing": {"audio": {"zero": 0.25}}}), 1.0)
    assert tracking.mirror_analyses(store) == 1
    metrics = run().data.metrics
    assert (metrics["analysis/missing/clean"], metrics["analysis/missing/missing/audio/zero"]) == (0.75, 0.25)
    assert run().info.status == "FINISHED"
    assert len(client.list_artifacts(run().info.run_id, "analyses")) == 1
    assert tracking.mirror_analyses(store) == 0


def test_the_database_is_in_the_results_folder_and_shared_by_writers(store: Store) -> None:
    """Write-ahead logging, so that the UI reads while a sweep writes; nothing lands in the current folder."""
    with sqlite3.connect(store.folder / "mlflow.db") as database:
        assert database.execute("pragma journal_mode").fetchone() == ("wal",)
    database.close()
    assert not Path("mlruns").exists()


def test_a_server_that_is_down_stops_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep goes on and the problem is told once; `sync` says it as an error."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = "http://127.0.0.1:9"
    with Mirror(nobody, store, REQUEST) as mirror:
        started = time.monotonic()
        mirror.submit(SPECS[0].id)
        assert time.monotonic() - started < 0.5
    (problem,) = mirror.problems
    assert problem.startswith(f"MLflow at {nobody} cannot be used: ")
    with pytest.raises(ResultsError, match="cannot be used"):
        tracking.sync(store, nobody)


def test_a_slow_server_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a sweep the mirror has its patience, and says how much is missing."""
    monkeypatch.setattr(tracking._Writer, "write", lambda *_: time.sleep(1))
    with Mirror(None, store, REQUEST, patience=0.2) as mirror:
        pass
    (problem,) = mirror.problems
    assert "is slow: " in problem
    mirror._thread.join()


def test_tracking_can_be_off(store: Store) -> None:
    """Then nothing is mirrored and nothing complains."""
    with tracking.mirror(TrackingConfig(mlflow=False), store, REQUEST) as off:
        off.submit("x", finished=True)
    assert list(off.problems) == []
    assert isinstance(tracking.mirror(TrackingConfig(uri="sqlite:////x"), store, REQUEST), Mirror)


def test_the_ui_listens_on_loopback_alone(store: Store) -> None:
    """One worker on 127.0.0.1 over the default database; a server of one's own has its own UI."""
    command = tracking.ui_command(store, port=5050)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--workers") + 1] == "1"
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{store.folder}/mlflow.db"
    with pytest.raises(RequestError, match="shows its own UI"):
        tracking.ui_command(store, "http://lab:5000")
