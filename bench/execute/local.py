"""Trials on this machine: one persistent training process per slot, replaced when it dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from bench.api import DataError
from bench.errors import RequestError, ResultsError
from bench.execute import worker
from bench.execute.events import SPOILING, Event, Failed, Finished, Jobs, MakeJob, Postponed, Started, Stopped
from bench.trial import smaller_batch

POLL = 0.2
"""Seconds between two looks at trials that another process keeps waiting."""


@dataclass
class _Slot:
    device: str
    process: SpawnProcess
    connection: Connection
    trial: str | None = None
    batch_size: int = 0


class InTurn:
    """Jobs from a sequence; one that met a lock comes back after the others, a little later."""

    def __init__(self, jobs: Sequence[tuple[str, MakeJob]]) -> None:
        self._waiting, self._running, self._not_before = list(jobs), dict(jobs), 0.0

    def take(self) -> tuple[str, MakeJob] | None:
        """The next one; None for a moment after one was postponed."""
        return self._waiting.pop(0) if self._waiting and time.monotonic() >= self._not_before else None

    def waiting(self) -> int:
        """How many are left."""
        return len(self._waiting)

    def follow(self, event: Event) -> None:
        """Take note of what was postponed."""
        if isinstance(event, Postponed):
            self._waiting.append((event.trial, self._running[event.trial]))
            self._not_before = time.monotonic() + POLL


class LocalExecutor:
    """Runs trials in child processes, one per slot; a slot is a GPU or a core."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._slots = [self._spawn(device) for device in devices]

    def run(self, jobs: Jobs | Sequence[tuple[str, MakeJob]]) -> Iterator[Event]:
        """Run trials as long as there are any, and report events as they come.

        Every trial taken ends in Finished, Failed or Postponed; of a plain sequence a postponed one is taken again.
        Raises ResultsError when the results folder cannot be used any more.
        """
        if isinstance(jobs, Sequence):
            in_turn = InTurn(jobs)
            for event in self.run(in_turn):
                in_turn.follow(event)
                yield event
            return
        try:
            while True:
                for slot in self._slots:
                    if slot.trial is None and (taken := jobs.take()) is not None:
                        yield from self._start(slot, *taken)
                if any(slot.trial for slot in self._slots):
                    yield from self._wait(POLL if jobs.waiting() else None)
                elif jobs.waiting():
                    time.sleep(POLL)
                else:
                    return
        finally:
            for slot in self._slots:
                if slot.trial is not None:  # nobody waits for it any more; the next job finds a new process
                    slot.trial = None
                    slot.process.kill()
                    slot.process.join()

    def close(self) -> None:
        """End all training processes; what they were doing is lost up to the last stored epoch."""
        for slot in self._slots:
            with contextlib.suppress(OSError):
                slot.connection.send(None)
        for slot in self._slots:
            slot.process.join(timeout=0.5 if slot.trial is None else 0)
            if slot.process.is_alive():
                slot.process.kill()
                slot.process.join()
            slot.connection.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, slot: _Slot, trial: str, make_job: MakeJob) -> Iterator[Event]:
        try:
            job = make_job(slot.device)
        except DataError as error:
            yield Failed(trial, "data", str(error))
            return
        try:
            slot.connection.send(job)
        except OSError:  # it died while idle: nothing was lost, so try once more in a new process
            self._replace(slot)
            slot.connection.send(job)
        slot.trial, slot.batch_size = trial, job.spec.recipe.batch_size
        yield Started(trial, slot.device)

    def _wait(self, timeout: float | None) -> Iterator[Event]:
        busy = {slot.connection: slot for slot in self._slots if slot.trial is not None}
        for ready in wait(list(busy), timeout):
            slot = busy[ready]  # type: ignore[index]  # wait() returns the objects it was given
            try:
                event: Event | Stopped = slot.connection.recv()
            except (EOFError, OSError):
                yield self._died(slot)
                continue
            if isinstance(event, Stopped):
                raise ResultsError(event.text)
            if isinstance(event, Finished | Failed | Postponed):
                slot.trial = None
            if isinstance(event, Failed) and event.cause in SPOILING:
                slot.process.kill()  # with all that its plugin may have left running
                slot.process.join()
                self._replace(slot)
            yield event

    def _died(self, slot: _Slot) -> Failed:
        slot.process.join(timeout=5)
        code = slot.process.exitcode
        trial, slot.trial = str(slot.trial), None
        self._replace(slot)
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        smaller = smaller_batch(slot.batch_size)
        hint = f"; the kernel's out-of-memory killer sends signal 9: if it did, try {smaller}" if code == -9 else ""
        return Failed(trial, "killed", f"the training process ended with {how}{hint}")

    def _replace(self, slot: _Slot) -> None:
        slot.connection.close()
        if slot.process.is_alive():
            slot.process.kill()
        fresh = self._spawn(slot.device)
        slot.process, slot.connection = fresh.process, fresh.connection

    def _spawn(self, device: str) -> _Slot:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=worker.main, args=(theirs, os.getpid()), daemon=True)
        # A child starts with this mask: Ctrl-C must not reach it even while it imports. Here it is only put off.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Slot(device, process, ours)


def devices(device: str, slots: int | str) -> list[str]:
    """The device of every slot. `auto`: every GPU, else one slot per core. Raises RequestError for one not there."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        count = len(os.sched_getaffinity(0)) if slots == "auto" else int(slots)
        return ["cpu"] * count
    allowed = ", ".join(["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))])
    if kind != "cuda" or (number and not number.isdigit()):
        raise RequestError(f"--device {device}: unknown device; allowed here: {allowed}")
    if not gpus or (number and int(number) >= gpus):
        raise RequestError(f"--device {device}: this machine has {gpus or 'no'} CUDA devices; allowed here: {allowed}")
    chosen = [f"cuda:{number}"] if number else [f"cuda:{i}" for i in range(gpus)]
    return chosen if slots == "auto" else [chosen[i % len(chosen)] for i in range(int(slots))]
