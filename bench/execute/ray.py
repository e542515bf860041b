"""Trials as tasks of Ray: on a cluster that is there, or on one of this machine's own that listens on loopback only.

A task is sent what a training process is given, a `Job`, and streams its events back. The results folder and the
prepared arrays are read where they are, so every machine of a cluster must see them under the same path.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import secrets
import time
from collections.abc import Iterator
from typing import Any

from bench.api import DataError
from bench.config import RayConfig
from bench.errors import RequestError, ResultsError, TrialError
from bench.execute.events import EpochDone, Event, Failed, Finished, Jobs, Postponed, Started, Stopped
from bench.execute.local import POLL
from bench.trajectory import BusyError
from bench.trial import Job, visits

LOOPBACK = "127.0.0.1"
OBJECT_STORE = 80_000_000
"""Bytes: the least that Ray takes. Nothing here is an object; arrays are read from files."""


class RayExecutor:
    """Runs each trial as a task with its share of the CPUs and GPUs of a Ray cluster."""

    def __init__(self, config: RayConfig, device: str = "auto", slots: int | None = None) -> None:
        """Connect; `slots` bounds how many trials run at a time. Raises RequestError for what the cluster has not."""
        if device not in ("auto", "cpu", "cuda"):
            raise RequestError(f"execute.device: {device}: Ray gives out the devices; allowed here: auto, cpu, cuda")
        self._ray = _ray(own=config.address is None, host=config.host)
        self._config, self._most = config, slots
        if config.address is None:
            self._start(device)
        else:
            self._join(config.address)
        try:
            gpus = self._total("GPU")
            share = config.gpus if config.gpus is not None else float(gpus > 0 and device != "cpu")
            self._share = 0.0 if device == "cpu" else share
            if device == "cuda" and not self._share:
                raise RequestError("execute.device: cuda: the Ray cluster has no GPU, or ray.gpus is 0")
            if self.slots() < 1:
                raise RequestError(
                    f"ray: a trial takes {config.cpus:g} CPUs and {self._share:g} GPUs (ray.cpus, ray.gpus); "
                    f"the cluster has {self._total('CPU'):g} and {gpus:g}"
                )
        except BaseException:
            self.close()
            raise
        self._device = "cuda:0" if self._share else "cpu"  # of those that Ray lets a task see
        shares = {"num_cpus": config.cpus, "num_gpus": self._share}
        self._train = self._ray.remote(num_returns="streaming", max_retries=0, **shares)(train)

    def slots(self) -> int:
        """How many trials fit into the cluster as it is now."""
        fit = [self._total("CPU") / self._config.cpus]
        if self._share:
            fit.append(self._total("GPU") / self._share)
        room = math.floor(min(fit) + 1e-6)
        return room if self._most is None else min(room, self._most)

    def run(self, jobs: Jobs) -> Iterator[Event]:
        """Run trials as long as there are any, and report events as they come.

        Raises ResultsError when the results folder cannot be used any more.
        """
        running: dict[Any, str] = {}
        try:
            while True:
                room = max(1, self.slots())  # a machine that left the cluster may come back
                while len(running) < room and (taken := jobs.take()) is not None:
                    trial, make_job = taken
                    try:
                        job = make_job(self._device)
                    except DataError as error:
                        yield Failed(trial, "data", str(error))
                        continue
                    running[self._train.remote(job)] = trial
                if running:
                    wait = POLL if jobs.waiting() else None
                    ready, _ = self._ray.wait(list(running), num_returns=1, timeout=wait, fetch_local=False)
                    for task in ready:
                        event = self._next(task, running[task])
                        if isinstance(event, Finished | Failed | Postponed):
                            del running[task]
                        yield event
                elif jobs.waiting():
                    time.sleep(POLL)
                else:
                    return
        finally:
            for task in running:
                self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Leave the cluster, which ends what still runs; one of this machine's own ends too."""
        self._ray.shutdown()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, task: Any, trial: str) -> Event:
        dead = self._ray.exceptions
        try:
            event: Event | Stopped = self._ray.get(next(task))
        except (dead.WorkerCrashedError, dead.NodeDiedError, dead.OutOfMemoryError, dead.TaskCancelledError) as error:
            return Failed(trial, "killed", f"the process that Ray gave it died: {_first_sentence(error)}")
        except (dead.RayError, StopIteration) as error:
            return Failed(trial, "error", f"its task on Ray ended: {error or 'without a word'}")
        if isinstance(event, Stopped):
            raise ResultsError(event.text)
        return event

    def _start(self, device: str) -> None:
        cores = len(os.sched_getaffinity(0))
        wanted = None if self._most is None else math.ceil(self._most * self._config.cpus)
        self._ray.init(
            address="local",
            num_cpus=wanted or max(cores, math.ceil(self._config.cpus)),
            num_gpus=0 if device == "cpu" else None,
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=self._config.host,
        )
        where = self._ray.nodes()[0]["NodeManagerAddress"]
        if where != self._config.host:
            self.close()
            raise RequestError(
                f"ray.host: {self._config.host}: Ray would listen on {where}, as this process has used Ray before; "
                "run bench in a new process"
            )

    def _join(self, address: str) -> None:
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RequestError(f"ray.address: {address}: cannot be joined: {_first_sentence(error)}") from None

    def _total(self, kind: str) -> float:
        return float(self._ray.cluster_resources().get(kind, 0.0))


def train(job: Job) -> Iterator[Event | Stopped]:
    """The task of a trial: its events, of which the last is Finished, Failed, Postponed or Stopped."""
    trial = job.spec.id
    yield Started(trial, f"{platform.node()} {job.device}")
    way = visits(job)
    while True:
        try:
            visit = next(way)
        except StopIteration as end:
            yield Finished(trial, end.value)
        except TrialError as error:
            yield Failed(trial, error.cause, error.text)
        except BusyError as busy:
            yield Postponed(trial, busy.segment, busy.epoch)
        except ResultsError as error:
            yield Stopped(trial, str(error))
        else:
            yield EpochDone(trial, visit)
            continue
        return


def _ray(own: bool, host: str) -> Any:
    """The library, told before its import what it otherwise decides by itself. Raises ImportError without it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # under `uv run` it would ship the working directory
    if own:
        # Else it would write a token of its own into the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        if host == LOOPBACK:
            # Else Ray puts the address of this machine's network in place of loopback.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    from ray._private import worker

    # Else it prints on stdout that a worker died, also where that belongs to JSON; the failure is recorded anyhow.
    worker._worker_logs_enabled = False
    return ray


def _first_sentence(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split(". ")[0].splitlines()[0]
