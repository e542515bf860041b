"""Trials by Slurm: some ordinary `bench run` as jobs on the shared results folder, followed from here.

A job gets a command line and nothing else. The jobs share the trials through the locks of the results folder, so one
that never starts, or dies, is only missed; this process trains nothing and reports what appears in the folder.
"""

from __future__ import annotations

import contextlib
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import submitit
from submitit.core.utils import UncompletedJobError

from bench.config import Config, SlurmConfig
from bench.errors import RequestError
from bench.execute.events import Event, Failed, MakeJob, Noted, Settled

POLL = 2.0
"""Seconds between two looks at the results folder."""
QUEUE_POLL = 10.0
"""Seconds between two questions to the controller, which serves a whole cluster."""
GRACE = 60.0
"""Seconds that running jobs have for their last words when every trial is done."""
PENDING = "PD"
"""Slurm's state of a job that has not begun."""
SOME_FAILED = 1
"""The exit code of a `bench run` in which trials failed: they are recorded, and nothing is wrong with the job."""


class Followed(Protocol):
    """Trials that other processes work on, e.g. `bench.agenda.Agenda`."""

    def look(self) -> list[str]:
        """The trials settled elsewhere since the last look."""

    def take(self) -> tuple[str, MakeJob] | None:
        """A trial that nobody works on; None if there is none at this moment."""

    def waiting(self) -> int:
        """How many are not settled."""


class Queue(Protocol):
    """What knows which jobs are still there."""

    def states(self, jobs: Sequence[submitit.Job[int]]) -> dict[str, str]:
        """The state of every job that waits (`PENDING`) or runs, by its id. Raises OSError where nobody answers."""


class Squeue:
    """Slurm's queue as `squeue` shows it, which needs no accounting."""

    def states(self, jobs: Sequence[submitit.Job[int]]) -> dict[str, str]:
        """As `Queue` says; the state is Slurm's short one."""
        command = ["squeue", "--me", "--noheader", "--format=%A %t"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except subprocess.SubprocessError as error:
            said = getattr(error, "stderr", None) or str(error)
            raise OSError(str(said).strip()) from None
        found = dict(line.split() for line in answer.stdout.splitlines())
        return {job.job_id: found[job.job_id] for job in jobs if job.job_id in found}


class SlurmExecutor:
    """Submits `bench *command` some times and follows what becomes of the trials."""

    def __init__(
        self,
        config: SlurmConfig,
        command: Sequence[str],
        logs: Path,
        cluster: str = "slurm",
        queue: Queue | None = None,
    ) -> None:
        """`logs` is a folder that the cluster sees too. Raises RequestError where nothing can be submitted."""
        self.command, self.logs, self.count = tuple(command), logs, config.jobs
        try:
            self._submitter = submitit.AutoExecutor(folder=logs / "%j", cluster=cluster)
            self._submitter.update_parameters(**_parameters(config))
        except (RuntimeError, ValueError) as error:
            raise RequestError(f"execute.executor: slurm: {error}; run bench where sbatch and srun are") from None
        self._queue = queue or Squeue()
        self._jobs: list[submitit.Job[int]] = []
        self._asked = 0.0
        self._told = False

    def run(self, jobs: Followed) -> Iterator[Event]:
        """Submit, and report every trial that is settled; with no job left, what is missing has failed.

        Raises RequestError for what Slurm refuses.
        """
        self._submit()
        while True:
            yield from (Settled(trial) for trial in jobs.look())
            if not jobs.waiting():
                break
            if self._jobs:
                yield from self._follow()
            if not self._jobs:
                time.sleep(POLL)  # what the last job wrote shows up late on a network's file system
                while (taken := jobs.take()) is not None:
                    yield Failed(taken[0], "killed", f"no Slurm job is left that would run it; their logs: {self.logs}")
                continue
            time.sleep(POLL)
        self._let_end()

    def close(self) -> None:
        """Cancel what still waits or runs; what was in training is lost up to the last stored epoch."""
        for job in self._jobs:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                job.cancel(check=False)
        self._jobs = []

    def __enter__(self) -> SlurmExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of accounting that a cluster does not have
            try:
                for _ in range(self.count):
                    self._jobs.append(self._submitter.submit(work, self.command))
            except (OSError, subprocess.SubprocessError, RuntimeError, UncompletedJobError) as error:
                raise RequestError(f"execute.executor: slurm: nothing could be submitted: {error}") from None

    def _follow(self) -> Iterator[Event]:
        """Forget the jobs that are gone, with a note about each that was not at its end."""
        if time.monotonic() - self._asked < QUEUE_POLL:
            return
        self._asked = time.monotonic()
        try:
            states = self._queue.states(self._jobs)
        except OSError as error:
            if not self._told:
                yield Noted(f"squeue does not answer: {error}; still waiting, Ctrl-C ends the jobs")
            self._told = True
            return
        self._told = False
        gone = [job for job in self._jobs if job.job_id not in states]
        self._jobs = [job for job in self._jobs if job.job_id in states]
        for job in gone:
            how = _how_it_ended(job)
            if how:
                yield Noted(f"Slurm job {job.job_id} {how}; its log: {job.paths.stderr}")

    def _let_end(self) -> None:
        """Everything is settled: jobs that have not begun are not needed, the others finish their reports."""
        end = time.monotonic() + GRACE
        while self._jobs and time.monotonic() < end:
            try:
                states = self._queue.states(self._jobs)
            except OSError:
                return
            for job in self._jobs:
                if states.get(job.job_id) == PENDING:
                    job.cancel(check=False)
            self._jobs = [job for job in self._jobs if states.get(job.job_id) not in (PENDING, None)]
            time.sleep(POLL if self._jobs else 0)


def work(command: Sequence[str]) -> int:
    """Run `bench *command` in this process, as a job does; its exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, and Slurm would wait before it kills
    sys.argv = ["bench", *command]
    code: Any = 0
    try:
        runpy.run_module("bench", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    return int(code)


def command_of(config: Config, words: Sequence[str]) -> list[str]:
    """The words of a `bench run` given as `words`, for a job: on the job's own machine, without MLflow."""
    slots = config.execute.slots
    if slots == "auto" and not config.slurm.gpus:
        slots = config.slurm.cpus  # a job sees all cores of its machine where Slurm does not bind it to its own
    settings = {"execute.executor": "local", "execute.slots": slots, "tracking.mlflow": "false"}
    return [*words, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def _parameters(config: SlurmConfig) -> dict[str, Any]:
    """What submitit is told; it has names of its own for some options of sbatch."""
    return {
        "name": "bench",
        "cpus_per_task": config.cpus,
        "gpus_per_node": config.gpus or None,
        "mem_gb": config.memory_gb,
        "slurm_time": config.time,
        "slurm_partition": config.partition,
        "slurm_account": config.account,
        "slurm_qos": config.qos,
        "slurm_constraint": config.constraint,
        "slurm_setup": list(config.setup) or None,
        "slurm_additional_parameters": dict(config.options) or None,
    }


def _how_it_ended(job: submitit.Job[int]) -> str:
    """What went wrong with a job that is gone; empty if nothing did."""
    if not job.paths.result_pickle.exists():
        return "ended early"
    if job.exception() is not None:
        return "could not run bench"
    code = job.result()
    return "" if code in (0, SOME_FAILED) else f"ended with exit code {code}"
