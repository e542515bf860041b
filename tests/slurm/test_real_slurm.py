"""`bench run --executor slurm` on a real Slurm: the same numbers, killed jobs, Ctrl-C. Run by tests/slurm/run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.store import Store
from tests.commandline import DONE, INTERRUPTED, NO_MIRROR, SMALL, SOME_FAILED
from tests.world import results_of

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        "SLURM_CONF" not in os.environ or shutil.which("sbatch") is None, reason="tests/slurm/run starts a Slurm"
    ),
]
METHODS = ("--methods", "concat,rollingq:beta=0", "--seeds", "1")
SLURM = ("--executor", "slurm", "--set", "slurm.partition=main", "--set", "slurm.time=10")


class Place:
    """A folder in which `bench run` is typed; data are prepared once for all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.started: list[subprocess.Popen[str]] = []
        self.store = Store(folder / "results")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A `bench run` in the background, alone in its process group as in a terminal."""
        command = [sys.executable, "-m", "bench", "run", *SMALL, *METHODS, *words]
        environment = {**os.environ, "BENCH_PREPARED": str(self.folder.parent / "prepared")}
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *words: str) -> tuple[int, str]:
        """The exit code of a `bench run` and what it said."""
        process = self.start(*words)
        said, _ = process.communicate(timeout=240)
        return process.returncode, said

    def results(self) -> dict[str, dict[str, Any]]:
        return {trial: results_of(self.store, trial) for trial in self.store.finished()}

    def wait_for_an_epoch(self) -> None:
        end = time.monotonic() + 120
        while not list(self.store.trajectories.glob("*/epoch-*.json")):
            assert time.monotonic() < end, "nothing was trained"
            time.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place whose runs end with the test, and their jobs with them."""
    made = Place(tmp_path / "w")
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=False)


def undisturbed(tmp_path: Path, *words: str) -> dict[str, dict[str, Any]]:
    local = Place(tmp_path / "local")
    code, said = local.run(*NO_MIRROR, *words)
    assert code == DONE, said
    return local.results()


def queue() -> list[str]:
    words = ["squeue", "--noheader", "--format=%A"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def wait_until_the_queue_is_empty() -> None:
    end = time.monotonic() + 60
    while queue():
        assert time.monotonic() < end, queue()
        time.sleep(0.2)


def test_jobs_make_the_numbers_that_this_machine_makes(place: Place, tmp_path: Path) -> None:
    code, said = place.run(*SLURM, "--set", "slurm.jobs=2")
    assert code == DONE, said
    assert "2 of 2 trials to train, by 2 Slurm jobs" in said
    assert all(f"[{n}/2]" in said for n in (1, 2))
    assert "Slurm job" not in said.split("trials to train")[1].replace("by 2 Slurm jobs", ""), said
    assert len(place.results()) == 2
    assert place.results() == undisturbed(tmp_path)
    wait_until_the_queue_is_empty()
    with sqlite3.connect(place.folder / "results" / "mlflow.db") as mirror:
        (runs,) = mirror.execute("select count(*) from tags where key='bench.kind' and value='trial'").fetchone()
    assert runs == 2  # by this process: the jobs write none
    shown = next((place.folder / "results" / "slurm").glob("*/*_log.out")).read_text()
    assert "trials to train, 1 at a time" in shown


LONG = ("--methods", "concat", "--set", "recipe.epochs=60")


def test_after_a_job_is_killed_the_same_line_finishes(place: Place, tmp_path: Path) -> None:
    words = (*SLURM, *NO_MIRROR, *LONG, "--set", "slurm.jobs=1")
    process = place.start(*words)
    place.wait_for_an_epoch()
    (job,) = queue()
    subprocess.run(["scancel", job], check=True)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == SOME_FAILED, said
    assert re.search(rf"Slurm job {job} ended early; its log: \S+{job}_0_log.err", said), said
    assert "failed: killed: no Slurm job is left" in said
    stored = len(list(place.store.trajectories.glob("*/epoch-*.json")))
    assert stored > 0
    code, said = place.run(*words)
    assert code == DONE, said
    assert len(place.results()) == 1
    assert place.results() == undisturbed(tmp_path, *LONG)


def test_ctrl_c_cancels_the_jobs(place: Place) -> None:
    process = place.start(*SLURM, *NO_MIRROR, "--set", "recipe.epochs=2000", "--set", "slurm.jobs=2")
    place.wait_for_an_epoch()
    assert len(queue()) == 2
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, said
    assert "the same command goes on" in said
    wait_until_the_queue_is_empty()


def test_what_slurm_refuses_is_said(place: Place) -> None:
    code, said = place.run(*SLURM, *NO_MIRROR, "--set", "slurm.partition=nowhere")
    assert code == 2, said
    assert "execute.executor: slurm: nothing could be submitted" in said
    assert "invalid partition" in said
