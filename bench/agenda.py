"""The trials a sweep has yet to run, handed out one at a time so that no prefix is trained twice.

Trials whose training begins alike are put side by side, those that never act between epochs first, because the
others can go on from their epochs. Several processes on one folder share the work through locks: who finds a trial
or a stretch of epochs taken goes on with another and comes back later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import ResultsError
from bench.locks import Claim, claim, held
from bench.plan import TrialSpec
from bench.segments import epoch_file
from bench.store import Store
from bench.trajectory import decides, kin_of
from bench.trial import Job

LONGEST_WAIT = 30.0
"""Seconds after which an epoch in training elsewhere is looked for again."""


@dataclass
class _Entry:
    """A waiting trial. After it met a lock it waits until that is free, or the epoch is there and some time passed."""

    spec: TrialSpec
    kin: str
    failure: dict[str, Any] | None
    """The stored failure when the sweep began: another one since then means that somebody tried it."""
    segment: str = ""
    epoch: int = 0
    wait: float = 0.0
    since: float = field(default_factory=time.monotonic)


class Agenda:
    """Hands out trials; whoever runs one says `done`, or `put_back` if it met a lock."""

    def __init__(self, store: Store, specs: Sequence[TrialSpec], make_job: Callable[[TrialSpec, str], Job]) -> None:
        self.store, self._make_job = store, make_job
        self._waiting = [_Entry(spec, kin_of(spec), _failure(store, spec.id)) for spec in in_order(specs)]
        self._running: dict[str, tuple[_Entry, Claim]] = {}
        self._settled: list[TrialSpec] = []

    def waiting(self) -> int:
        """How many trials have not been handed out."""
        return len(self._waiting)

    def settled(self) -> list[TrialSpec]:
        """Trials that another process finished or failed, each named once."""
        found, self._settled = self._settled, []
        return found

    def look(self) -> list[str]:
        """The trials that another process finished or failed since the last look; `settled` names them too."""
        return [entry.spec.id for entry in list(self._waiting) if self._is_settled(entry)]

    def kins(self) -> set[str]:
        """What the trials not done yet share their epochs with."""
        return {e.kin for e in self._waiting} | {e.kin for e, _ in self._running.values()}

    def take(self) -> tuple[str, Callable[[str], Job]] | None:
        """A trial and what makes its job for a device; None if none can start now."""
        running = {entry.kin for entry, _ in self._running.values()}
        for entry in sorted(self._waiting, key=lambda e: e.kin in running):  # stable: else in order
            if self._is_settled(entry) or not self._is_ready(entry):
                continue
            lock = claim(self.store.locks / f"trial-{entry.spec.id}.lock")
            if lock is None:
                continue
            if self._is_settled(entry):  # between the look and the lock
                lock.release()
                continue
            self._waiting.remove(entry)
            self._running[entry.spec.id] = entry, lock
            return entry.spec.id, lambda device, spec=entry.spec: self._make_job(spec, device)
        return None

    def put_back(self, trial: str, segment: str = "", epoch: int = 0) -> None:
        """A trial waits again: until an epoch of a segment is there, if one is named."""
        entry, lock = self._running.pop(trial)
        lock.release()
        entry.wait = min(2 * entry.wait, LONGEST_WAIT) if segment and segment == entry.segment else 1.0
        entry.segment, entry.epoch, entry.since = segment, epoch, time.monotonic()
        self._waiting.append(entry)

    def done(self, trial: str) -> None:
        """A trial is stored, or its failure is."""
        self._running.pop(trial)[1].release()

    def close(self) -> None:
        """Let go of everything that is running."""
        for trial in list(self._running):
            self.done(trial)

    def _is_settled(self, entry: _Entry) -> bool:
        if not self.store.has(entry.spec.id) and _failure(self.store, entry.spec.id) in (None, entry.failure):
            return False
        self._waiting.remove(entry)
        self._settled.append(entry.spec)
        return True

    def _is_ready(self, entry: _Entry) -> bool:
        if not entry.segment:
            return True
        folder = self.store.trajectories / entry.segment
        if not held(folder / "lock"):
            return True
        there = epoch_file(folder, entry.epoch, "json").is_file()
        return there and time.monotonic() - entry.since > entry.wait


def in_order(specs: Sequence[TrialSpec]) -> list[TrialSpec]:
    """Trials that begin alike side by side, where the first of them stood; those that act between epochs last."""
    kins = [kin_of(spec) for spec in specs]
    first = {kin: i for i, kin in reversed(list(enumerate(kins)))}
    acting = [sum(decides(part) for part in spec.strategies) for spec in specs]
    order = sorted(range(len(specs)), key=lambda i: (first[kins[i]], acting[i], i))
    return [specs[i] for i in order]


def _failure(store: Store, trial: str) -> dict[str, Any] | None:
    try:
        return store.failure(trial)
    except ResultsError:  # a damaged note about a trial that will be tried again
        return None
