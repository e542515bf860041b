"""Training memoised by epoch.

A *segment* is a stretch of epochs with one history: everything fixed before training, and the actions taken so far
(`bench.segments` stores it). Two trials with equal lineage up to an epoch share the segment up to it, whatever
their ids; where one of them acts, it forks into a segment of its own. So walking a trial means reading records,
asking `decide` at each, and training only what nobody has trained.

Complete states are stored for resuming at most once a minute and at the end, and for forking after those epochs at
which a planned trial parts from the one in training: what it would decide is asked of its own strategies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import composition, plugins
from bench.api import EpochRecord, Strategy
from bench.locks import Claim
from bench.plan import NUMERICS_VERSION, PartSpec, TrialSpec
from bench.segments import (
    Fork,
    Lineage,
    Purpose,
    Segment,
    read_outputs,
    read_snapshot,
    record_from_json,
    sound_weights,
    weights_file,
)
from bench.train import Evaluation, Training

__all__ = [
    "INSIDE_AN_EPOCH",
    "BusyError",
    "Deciding",
    "Fork",
    "Lineage",
    "Segment",
    "Visit",
    "Walk",
    "decides",
    "kin_of",
    "lineage_of",
    "read_outputs",
    "record_from_json",
    "weights_file",
]

INSIDE_AN_EPOCH = (
    "seed_offset",
    "setup",
    "epoch_start",
    "terms",
    "backward",
    "grads",
    "train_step",
    "train_epoch",
    "epoch_end",
)
"""Hooks that act while an epoch is trained: a strategy that overrides one is part of every lineage from the start."""

_MACHINE = ("threads", "compile", "device", "torch", "evaluated", "unguarded")
"""What a lineage holds beyond the trial: how its epochs were computed and what was put out."""

Deciding = Mapping[str, tuple[Strategy, str]]
"""The strategies of a trial by name, each with the hash of its code."""


class BusyError(Exception):
    """Another process is training the epoch this walk needs: come back when it is there."""

    def __init__(self, segment: str, epoch: int) -> None:
        super().__init__(f"epoch {epoch} of {segment} is in training elsewhere")
        self.segment, self.epoch = segment, epoch


def lineage_of(spec: TrialSpec, evaluated: Sequence[str], device: str, guarded: bool = True) -> Lineage:
    """A trial's lineage before anything was decided. What no guard watched is shared with nothing that was watched."""
    extra = {
        "threads": spec.recipe.threads,
        "compile": spec.recipe.compile,
        "device": device,
        "torch": torch.__version__,
        "evaluated": list(evaluated),
        "numerics": NUMERICS_VERSION,
        **({} if guarded else {"unguarded": True}),
    }
    return Lineage({**_fixed(spec), **extra})


def kin_of(spec: TrialSpec | Mapping[str, Any]) -> str:
    """Equal for trials whose lineages begin alike on one machine; of a spec, or of the stored `fixed` of a lineage."""
    fixed = _fixed(spec) if isinstance(spec, TrialSpec) else {k: v for k, v in spec.items() if k not in _MACHINE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:24]


def decides(part: PartSpec) -> bool:
    """Whether a strategy may act between epochs."""
    return composition.replaces(plugins.load("methods", part.name).plugin, "decide")


def _fixed(spec: TrialSpec) -> dict[str, Any]:
    identity = spec.identity()
    identity["strategies"] = [s.identity() for s in spec.strategies if _acts_inside(s)]
    return identity


@dataclass(frozen=True)
class Visit:
    """One epoch of a trial as it is stored: where, its record with the actions taken after it."""

    segment: str
    record: EpochRecord
    trained: bool
    """Whether this walk trained it, rather than finding it stored."""


class Walk:
    """One trial's way through stored and new epochs.

    `companions` are the strategies of other planned trials that begin alike; one stays until it decides otherwise.
    """

    def __init__(
        self,
        folder: Path,
        lineage: Lineage,
        strategies: Deciding,
        num_epochs: int,
        start: Callable[[], Training],
        evaluate: Callable[[Training], dict[str, Evaluation]],
        snapshot_seconds: float = 60.0,
        companions: Sequence[Deciding] = (),
        until: int | None = None,
        refuse: Callable[[], None] = lambda: None,
    ) -> None:
        """`until` ends the walk before that epoch; a later one goes on from there. `refuse` is called before anything
        is stored and raises what is to end the walk instead."""
        self.folder, self.lineage, self.num_epochs = folder, lineage, num_epochs
        self.until = num_epochs if until is None else min(until, num_epochs)
        self.strategies, self.start, self.evaluate, self.refuse = strategies, start, evaluate, refuse
        self.snapshot_seconds, self.companions = snapshot_seconds, list(companions)
        self._training: Training | None = None
        self._snapshot_due = time.monotonic() + snapshot_seconds
        self._claims: dict[str, Claim] = {}
        self._path: list[Segment] = []

    def epochs(self) -> Iterator[Visit]:
        """Every epoch in order, trained if it is not stored. Raises BusyError where another process is training it."""
        segment = Segment(self.folder, self.lineage)
        history: list[EpochRecord] = []
        self._path = []
        try:
            for epoch in range(self.until):
                self._path.append(segment)
                record = segment.record(epoch)
                if record is None and self._hold(segment, epoch):
                    record = segment.record(epoch)  # its trainer may have let go of the lock in between
                trained = record is None
                if record is None:
                    record = self._train(segment, history)
                else:
                    self._training = None
                history.append(record)
                fork = self._decision(self.strategies, history)
                self.companions = self._staying(fork, history)
                home = segment
                if fork is not None:
                    segment, logged = self._fork(home, fork)
                    self._leave(home)
                    diagnostics = {**record.diagnostics, **logged}
                    history[-1] = dataclasses.replace(record, actions=fork.actions, diagnostics=diagnostics)
                yield Visit(home.key, history[-1], trained)
        finally:
            self._leave_all()

    def restore(self, epoch: int) -> None:
        """Make the weights after an epoch of this walk again if they are not stored. Call it after `epochs`."""
        segment = self._path[epoch]
        if sound_weights(self.folder, segment.key, epoch) is not None:
            return
        try:
            self._hold(segment, epoch)
            training = self._state_before(segment, epoch + 1)
            self.refuse()
            segment.write_weights(epoch, training.model.state_dict())
        finally:
            self._leave_all()

    def _decision(self, strategies: Deciding, history: Sequence[EpochRecord]) -> Fork | None:
        if len(history) == self.num_epochs:
            return None
        taken = [(strategy.decide(tuple(history)), code) for strategy, code in strategies.values()]
        actions = [(action, code) for action, code in taken if action is not None]
        if not actions:
            return None
        return Fork(history[-1].epoch, tuple(a for a, _ in actions), tuple(c for _, c in actions))

    def _staying(self, fork: Fork | None, history: Sequence[EpochRecord]) -> list[Deciding]:
        """The companions that do after this epoch what this trial does."""
        ours = fork and fork.to_json()
        decisions = ((c, self._decision(c, history)) for c in self.companions)
        return [c for c, decided in decisions if (decided and decided.to_json()) == ours]

    def _train(self, segment: Segment, history: Sequence[EpochRecord]) -> EpochRecord:
        epoch = len(history)
        training = self._training or self._state_before(segment, epoch)
        self._training = training
        record = training.train(epoch)
        outputs = self.evaluate(training)
        # Before the record, which lets others go on from here.
        self._snapshot(segment, training, [*history, record])
        self.refuse()
        segment.write(record, outputs, training.model.state_dict(), training.step_losses())
        return record

    def _snapshot(self, segment: Segment, training: Training, history: Sequence[EpochRecord]) -> None:
        fork = self._decision(self.strategies, history)
        parting = len(self._staying(fork, history)) < len(self.companions)
        last = len(history) == self.until
        if parting or last or time.monotonic() >= self._snapshot_due:
            self._store(segment, training, len(history) - 1, "fork" if parting else "resume")

    def _store(self, segment: Segment, training: Training, epoch: int, purpose: Purpose) -> None:
        self.refuse()
        segment.write_snapshot(epoch, training.state_dict(), purpose)
        self._snapshot_due = time.monotonic() + self.snapshot_seconds

    def _fork(self, segment: Segment, fork: Fork) -> tuple[Segment, dict[str, float]]:
        child = Segment(self.folder, Lineage(segment.lineage.fixed, (*segment.lineage.forks, fork)))
        logged = self._opened(child)
        if logged is None and self._hold(child, fork.epoch + 1):
            logged = self._opened(child)
        if logged is None:
            self._training = self._training or self._state_before(segment, fork.epoch + 1)
            logged = _apply(self._training, fork)
            self.refuse()
            child.write_opening(logged)
        else:
            self._training = None
        return child, logged

    def _opened(self, child: Segment) -> dict[str, float] | None:
        """What opening a segment logged, if its first epoch is stored and so nothing need be carried out again."""
        return child.opening() if child.record(child.lineage.first_epoch) is not None else None

    def _state_before(self, segment: Segment, epoch: int) -> Training:
        """The state from which `epoch` is trained: the newest usable snapshot, and the epochs since trained again."""
        taken = segment.snapshots(epoch)
        there = taken[0].epoch + 1 if taken else segment.lineage.first_epoch
        claimed = there < epoch and self._hold(segment, epoch)
        training, first = self._nearest(segment, epoch)
        for earlier in range(first, epoch):
            training.train(earlier)
        if first < epoch and (self.companions or time.monotonic() >= self._snapshot_due):
            self._store(segment, training, epoch - 1, "fork" if self.companions else "resume")
        if claimed:
            self._leave(segment)
        return training

    def _nearest(self, segment: Segment, epoch: int) -> tuple[Training, int]:
        for snapshot in segment.snapshots(epoch):
            state = read_snapshot(snapshot)
            if state is not None:
                training = self.start()
                training.load_state_dict(state)
                return training, snapshot.epoch + 1
        if not segment.lineage.forks:
            return self.start(), 0
        last = segment.lineage.forks[-1]
        training = self._state_before(Segment(self.folder, segment.lineage.parent), last.epoch + 1)
        _apply(training, last)
        return training, last.epoch + 1

    def _hold(self, segment: Segment, epoch: int) -> bool:
        """Take the lock on a segment; False if this walk had it already. Raises BusyError if another process has it."""
        if segment.key in self._claims:
            return False
        claimed = segment.claim()
        if claimed is None:
            raise BusyError(segment.key, epoch)
        self._claims[segment.key] = claimed
        return True

    def _leave(self, segment: Segment) -> None:
        claimed = self._claims.pop(segment.key, None)
        if claimed is not None:
            claimed.release()

    def _leave_all(self) -> None:
        for claimed in self._claims.values():
            claimed.release()
        self._claims.clear()


def _apply(training: Training, fork: Fork) -> dict[str, float]:
    logged: dict[str, float] = {}
    for action in fork.actions:
        logged |= training.apply(action)
    return logged


def _acts_inside(part: PartSpec) -> bool:
    plugin = plugins.load("methods", part.name).plugin
    return any(composition.replaces(plugin, hook) for hook in INSIDE_AN_EPOCH)
