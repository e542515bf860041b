"""Trials on this machine: one persistent training process per slot, replaced when it dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from bench.errors import RequestError
from bench.execute import worker
from bench.execute.events import Event, Failed, Finished, Started
from bench.trial import Job

MakeJob = Callable[[str], Job]
"""Makes the job of a trial for a device; called when a slot is free, so that targets are read late."""


@dataclass
class _Slot:
    device: str
    process: SpawnProcess
    connection: Connection
    trial: str | None = None


class LocalExecutor:
    """Runs trials in child processes, one per slot; a slot is a GPU or a core."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._slots = [self._spawn(device) for device in devices]

    def run(self, jobs: Sequence[tuple[str, MakeJob]]) -> Iterator[Event]:
        """Run every (trial id, job) and report events as they come. Every trial ends in Finished or Failed."""
        waiting = list(reversed(jobs))
        while waiting or any(slot.trial for slot in self._slots):
            for slot in self._slots:
                if slot.trial is None and waiting:
                    yield from self._start(slot, *waiting.pop())
            yield from self._wait()

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
            slot.connection.send(make_job(slot.device))
        except OSError:  # it died while idle: nothing was lost, so try once more in a new process
            self._replace(slot)
            slot.connection.send(make_job(slot.device))
        slot.trial = trial
        yield Started(trial, slot.device)

    def _wait(self) -> Iterator[Event]:
        busy = {slot.connection: slot for slot in self._slots if slot.trial is not None}
        for ready in wait(list(busy)):
            slot = busy[ready]  # type: ignore[index]  # wait() returns the objects it was given
            try:
                event: Event = slot.connection.recv()
            except (EOFError, OSError):
                yield self._died(slot)
                continue
            if isinstance(event, Finished | Failed):
                slot.trial = None
            yield event

    def _died(self, slot: _Slot) -> Failed:
        slot.process.join(timeout=5)
        code = slot.process.exitcode
        trial, slot.trial = str(slot.trial), None
        self._replace(slot)
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        hint = " (the kernel's out-of-memory killer sends signal 9)" if code == -9 else ""
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
        process.start()
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
