"""Training memoised by epoch.

A *segment* is a stretch of epochs with one history: everything fixed before training, and the actions taken so far.
Its folder holds what each epoch produced. Two trials with equal lineage up to an epoch share the segment up to it,
whatever their ids; where one of them acts, it forks into a segment of its own. So walking a trial means reading
records, asking `decide` at each, and training only what nobody has trained::

    trajectories/<lineage>/
      lineage.json                 what was fixed before training, and the actions so far
      epoch-0003.json              the epoch's record, before any action
      epoch-0003.npz               outputs for val and test
      epoch-0003.safetensors       weights after the epoch (the parent keeps those that may be selected)
      snapshot-0003.pt             everything later epochs depend on
      fork.json                    what the actions that opened this segment logged
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import composition, plugins
from bench.api import Action, EpochRecord, SiteRecord, Strategy
from bench.plan import NUMERICS_VERSION, PartSpec, TrialSpec
from bench.store import read_json, write_arrays, write_atomically, write_json
from bench.train import Evaluation, Training

INSIDE_AN_EPOCH = ("setup", "epoch_start", "terms", "backward", "grads", "train_step", "train_epoch", "epoch_end")
"""Hooks that act while an epoch is trained: a strategy that overrides one is part of every lineage from the start."""


@dataclass(frozen=True)
class Fork:
    """Actions taken after an epoch, each with the code of the strategy that took it."""

    epoch: int
    actions: tuple[Action, ...]
    codes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values: equal for equal forks."""
        keys = [json.loads(action.key()) for action in self.actions]
        return {"epoch": self.epoch, "actions": keys, "codes": list(self.codes)}


@dataclass(frozen=True)
class Lineage:
    """What determines the numbers of a stretch of epochs. Written by the harness from what acted."""

    fixed: Mapping[str, Any]
    forks: tuple[Fork, ...] = ()

    @property
    def key(self) -> str:
        """24 hex digits over everything in it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:24]

    @property
    def first_epoch(self) -> int:
        """The first epoch trained under it."""
        return self.forks[-1].epoch + 1 if self.forks else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"fixed": dict(self.fixed), "forks": [fork.to_json() for fork in self.forks]}


def lineage_of(spec: TrialSpec, evaluated: Sequence[str], device: str) -> Lineage:
    """A trial's lineage before anything was decided."""
    identity = spec.identity()
    identity["strategies"] = [s.identity() for s in spec.strategies if _acts_inside(s)]
    extra = {
        "threads": spec.recipe.threads,
        "compile": spec.recipe.compile,
        "device": device,
        "torch": torch.__version__,
        "evaluated": list(evaluated),
        "numerics": NUMERICS_VERSION,
    }
    return Lineage({**identity, **extra})


@dataclass(frozen=True)
class Visit:
    """One epoch of a trial as it is stored: where, its record with the actions taken after it."""

    segment: str
    record: EpochRecord
    trained: bool
    """Whether this walk trained it, rather than finding it stored."""


class Segment:
    """The stored epochs of one lineage."""

    def __init__(self, folder: Path, lineage: Lineage) -> None:
        self.folder, self.lineage = folder / lineage.key, lineage
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "lineage.json", lineage.to_json())

    def file(self, epoch: int, suffix: str) -> Path:
        """The file of an epoch."""
        return self.folder / f"epoch-{epoch:04d}.{suffix}"

    def record(self, epoch: int) -> EpochRecord | None:
        """The record of an epoch if it and its outputs are stored."""
        if not self.file(epoch, "json").is_file() or not self.file(epoch, "npz").is_file():
            return None
        return record_from_json(read_json(self.file(epoch, "json")))

    def write(
        self, record: EpochRecord, outputs: Mapping[str, Evaluation], weights: Mapping[str, torch.Tensor]
    ) -> None:
        """Store an epoch; the record last, because its presence means that the rest is there."""
        write_tensors(self.file(record.epoch, "safetensors"), weights)
        write_arrays(self.file(record.epoch, "npz"), _flat(outputs))
        write_json(self.file(record.epoch, "json"), dataclasses.asdict(record))

    def snapshots(self) -> list[int]:
        """Epochs after which a complete state is stored, newest first."""
        found = [int(f.stem.removeprefix("snapshot-")) for f in self.folder.glob("snapshot-????.pt")]
        return sorted(found, reverse=True)

    def write_snapshot(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Store a complete state behind its own checksum."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).digest()
        write_atomically(self.folder / f"snapshot-{epoch:04d}.pt", lambda f: _write(f, digest + content))

    def read_snapshot(self, epoch: int) -> dict[str, Any] | None:
        """The state after an epoch; None if it is damaged."""
        content = (self.folder / f"snapshot-{epoch:04d}.pt").read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(content[32:]), weights_only=True, map_location="cpu")
        return state


class Walk:
    """One trial's way through stored and new epochs."""

    def __init__(
        self,
        folder: Path,
        lineage: Lineage,
        strategies: Mapping[str, tuple[Strategy, str]],
        num_epochs: int,
        start: Callable[[], Training],
        evaluate: Callable[[Training], dict[str, Evaluation]],
        snapshot_seconds: float = 60.0,
    ) -> None:
        self.folder, self.lineage, self.num_epochs = folder, lineage, num_epochs
        self.strategies, self.start, self.evaluate = strategies, start, evaluate
        self.snapshot_seconds = snapshot_seconds
        self._training: Training | None = None
        self._snapshot_due = time.monotonic() + snapshot_seconds

    def epochs(self) -> Iterator[Visit]:
        """Every epoch in order, trained if it is not stored."""
        segment = Segment(self.folder, self.lineage)
        history: list[EpochRecord] = []
        for epoch in range(self.num_epochs):
            record = segment.record(epoch)
            trained = record is None
            if record is None:
                record = self._train(segment, epoch)
            else:
                self._training = None
            history.append(record)
            fork = self._decide(history) if epoch + 1 < self.num_epochs else None
            home = segment.folder.name
            if fork is not None:
                segment, logged = self._fork(segment, fork)
                diagnostics = {**record.diagnostics, **logged}
                record = dataclasses.replace(record, actions=fork.actions, diagnostics=diagnostics)
                history[-1] = record
            yield Visit(home, record, trained)

    def _decide(self, history: Sequence[EpochRecord]) -> Fork | None:
        taken = [(strategy.decide(tuple(history)), code) for strategy, code in self.strategies.values()]
        actions = [(action, code) for action, code in taken if action is not None]
        if not actions:
            return None
        return Fork(history[-1].epoch, tuple(a for a, _ in actions), tuple(c for _, c in actions))

    def _train(self, segment: Segment, epoch: int) -> EpochRecord:
        training = self._training or self._state_before(segment, epoch)
        self._training = training
        record = training.train(epoch)
        segment.write(record, self.evaluate(training), training.model.state_dict())
        if time.monotonic() >= self._snapshot_due and epoch + 1 < self.num_epochs:
            segment.write_snapshot(epoch, training.state_dict())
            self._snapshot_due = time.monotonic() + self.snapshot_seconds
        return record

    def _fork(self, segment: Segment, fork: Fork) -> tuple[Segment, dict[str, float]]:
        child = Segment(self.folder, Lineage(segment.lineage.fixed, (*segment.lineage.forks, fork)))
        logged = child.folder / "fork.json"
        if logged.is_file() and child.record(fork.epoch + 1) is not None:
            self._training = None
        else:
            self._training = self._training or self._state_before(segment, fork.epoch + 1)
            write_json(logged, _apply(self._training, fork))
        return child, read_json(logged)

    def _state_before(self, segment: Segment, epoch: int) -> Training:
        """The state from which `epoch` is trained: the newest usable snapshot, and the epochs since trained again."""
        training, first = self._nearest(segment, epoch)
        for earlier in range(first, epoch):
            training.train(earlier)
        return training

    def _nearest(self, segment: Segment, epoch: int) -> tuple[Training, int]:
        for taken in segment.snapshots():
            state = segment.read_snapshot(taken) if taken < epoch else None
            if state is not None:
                training = self.start()
                training.load_state_dict(state)
                return training, taken + 1
        if not segment.lineage.forks:
            return self.start(), 0
        *earlier, last = segment.lineage.forks
        parent = Segment(self.folder, Lineage(segment.lineage.fixed, tuple(earlier)))
        training = self._state_before(parent, last.epoch + 1)
        _apply(training, last)
        return training, last.epoch + 1


def _apply(training: Training, fork: Fork) -> dict[str, float]:
    logged: dict[str, float] = {}
    for action in fork.actions:
        logged |= training.apply(action)
    return logged


def read_outputs(folder: Path, segment: str, epoch: int) -> dict[str, np.ndarray]:
    """The outputs of a stored epoch: `<split>/logits`, `<split>/unimodal/<m>`, `<split>/mass/<m>`."""
    with np.load(folder / segment / f"epoch-{epoch:04d}.npz", allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def weights_file(folder: Path, segment: str, epoch: int) -> Path:
    """Where the weights after an epoch are, if they were kept."""
    return folder / segment / f"epoch-{epoch:04d}.safetensors"


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file atomically (its own writer makes files that colleagues cannot read)."""
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(file, lambda scratch: _write(scratch, content))


def record_from_json(values: Mapping[str, Any]) -> EpochRecord:
    """The record that was written."""
    sites = {name: SiteRecord(**site) for name, site in values["sites"].items()}
    actions = tuple(Action(**action) for action in values["actions"])
    return EpochRecord(**{**values, "sites": sites, "actions": actions})


def _flat(outputs: Mapping[str, Evaluation]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for split, evaluation in outputs.items():
        arrays[f"{split}/logits"] = evaluation.logits
        arrays |= {f"{split}/unimodal/{m}": x for m, x in evaluation.unimodal.items()}
        arrays |= {f"{split}/mass/{m}": x for m, x in evaluation.mass.items()}
    return arrays


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def _acts_inside(part: PartSpec) -> bool:
    plugin = plugins.load("methods", part.name).plugin
    return any(composition.replaces(plugin, hook) for hook in INSIDE_AN_EPOCH)
