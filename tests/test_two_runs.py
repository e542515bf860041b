"""Two processes on one results folder share the work: nothing is trained twice, nothing is lost or doubled."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import tracking
from bench.api import EpochRecord
from bench.locks import claim, held
from bench.store import Store
from bench.tracking import Mirror
from bench.train import Training
from tests import stored
from tests.world import make_world

METHODS = "rollingq:beta=0:max_rotations=2,vanilla_mt,rollingq:beta=0:max_rotations=1,concat+pmr,concat"


def forked(work: Callable[[], None]) -> int:
    """A child process that does some work and ends with status 0 if it went well."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_two_runs_share_the_work_and_train_no_epoch_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five trials of three epochs: the three that begin alike share the first epoch, two of them the second."""
    alone = make_world(tmp_path / "alone", METHODS)
    alone.run()
    log, train = tmp_path / "trained", Training.train

    def noted(self: Training, epoch: int) -> EpochRecord:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {epoch}\n")
        return train(self, epoch)

    monkeypatch.setattr(Training, "train", noted)
    outcomes = tmp_path / "outcomes"

    together = multiprocessing.get_context("fork").Barrier(2)

    def work() -> None:
        world = make_world(tmp_path / "w", METHODS)
        together.wait()
        for outcome in world.run():
            with outcomes.open("a") as file:
                file.write(f"{os.getpid()} {outcome.spec.method} {outcome.status}\n")

    children = [forked(work), forked(work)]
    assert [status(child) for child in children] == [0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert Counter(epoch for _, epoch in lines) == {"0": 3, "1": 4, "2": 5}
    assert len({process for process, _ in lines}) == 2
    told = [line.split() for line in outcomes.read_text().splitlines()]
    assert Counter(process for process, *_ in told) == dict.fromkeys(map(str, children), 5)
    assert {state for *_, state in told} == {"finished"}
    assert make_world(tmp_path / "w", METHODS).results() == alone.results()


def test_the_lock_of_a_killed_process_blocks_nobody(tmp_path: Path) -> None:
    def hold() -> None:
        lock = claim(tmp_path / "lock")
        assert lock is not None
        (tmp_path / "holds").touch()
        time.sleep(60)

    child = forked(hold)
    while not (tmp_path / "holds").exists():
        time.sleep(0.01)
    assert held(tmp_path / "lock")
    assert claim(tmp_path / "lock") is None
    os.kill(child, signal.SIGKILL)
    assert status(child) == -signal.SIGKILL
    assert not held(tmp_path / "lock")
    lock = claim(tmp_path / "lock")
    assert lock is not None
    assert claim(tmp_path / "lock") is None
    lock.release()


def test_two_parents_mirror_every_trial_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    store = Store(tmp_path / "results")
    specs = [stored.spec(seed=seed) for seed in range(4)]
    request = stored.request([("concat", [[spec] for spec in specs])])
    store.write_sweep(request["id"], request)
    mirrors = [Mirror(None, store, request), Mirror(None, store, request)]
    together = threading.Barrier(2)

    def parent(mirror: Mirror) -> None:
        with mirror:
            for spec in specs:
                together.wait()
                if mirror is mirrors[0]:
                    stored.store_trial(store, spec)
                together.wait()
                mirror.submit(spec.id)

    threads = [threading.Thread(target=parent, args=(mirror,)) for mirror in mirrors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [mirror.problems for mirror in mirrors] == [[], []]
    client = MlflowClient(tracking_uri=tracking.default_uri(store))
    experiment = client.get_experiment_by_name("planted")
    runs = client.search_runs([experiment.experiment_id])
    kinds = Counter(run.data.tags["bench.kind"] for run in runs)
    assert kinds == {"trial": 4, "sweep": 1}
    assert {run.data.tags.get("bench.trial_id") for run in runs} == {None, *(spec.id for spec in specs)}
    assert {run.info.status for run in runs} == {"FINISHED"}
