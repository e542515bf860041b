"""A stored trial trained once more, for its first steps: the same losses, or where they part and what has changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bench
from bench import plugins
from bench.api import DataError
from bench.data.prepared import Prepared
from bench.data.splits import split_hash, split_positions
from bench.errors import RequestError
from bench.plan import NUMERICS_VERSION, PartSpec, TrialSpec
from bench.segments import record_from_json
from bench.store import Store
from bench.train import Training
from bench.trial import Job, device_name, versions, walk

TOLERANCE = 1e-3
"""Relative difference of a loss that other devices and versions of libraries may make within an epoch."""


@dataclass(frozen=True)
class Change:
    """What is no longer as it was: `configuration`, `data`, `code` or `libraries`, and what exactly."""

    kind: str
    text: str


@dataclass(frozen=True)
class Parting:
    """The first loss that differs; without a step it is the mean over an epoch, of trials that stored no more."""

    epoch: int
    step: int | None
    stored: float
    found: float | None
    """None where there is no such step any more."""

    def __str__(self) -> str:
        step = "the mean" if self.step is None else f"step {self.step}"
        return f"epoch {self.epoch}, {step}: the loss was {self.stored!r} and is {self.found!r}"


@dataclass(frozen=True)
class Verdict:
    """Whether a trial's first steps are what is stored of them."""

    trial: str
    method: str
    steps: int
    """How many were compared."""
    tolerance: float
    """0.0 where the losses must be equal to the bit."""
    parting: Parting | None
    changes: tuple[Change, ...]
    replayed: bool = True
    """False where the data is not at hand."""

    @property
    def equal(self) -> bool:
        """Whether it was trained again without a difference."""
        return self.replayed and self.parting is None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**dataclasses.asdict(self), "equal": self.equal}


def verify(store: Store, trial: str, prepared: Path, steps: int | None = None) -> Verdict:
    """Train the first steps of a finished trial again, by default those of its first epoch; nothing is written.

    On the CPU and with the libraries it was trained with, losses must be equal to the bit; elsewhere within TOLERANCE.
    `trial` may be the beginning of an id. Raises RequestError for one that is not there.
    """
    trial = _full_id(store, trial)
    record = store.read(trial, "record.json")
    stored = TrialSpec.from_json(store.read(trial, "spec.json"))
    spec, changes = _with_code_of_today(stored)
    if stored.id != trial:
        why = f"spec.json was edited, or the harness's numerics are of another version (now {NUMERICS_VERSION})"
        changes.append(Change("configuration", f"the specification is that of a trial {stored.id}: {why}"))
    device = _device(record["device"])
    here = device_name(torch.device(device))
    changes += _libraries(record["versions"])
    exact = here == record["device"] and device == "cpu" and not any(c.kind == "libraries" for c in changes)
    data = _data_of(spec, prepared)
    if data is None:
        changes.append(Change("data", _what_is_there(spec, prepared)))
        return Verdict(trial, spec.method, 0, 0.0 if exact else TOLERANCE, None, tuple(changes), replayed=False)
    changes += [Change("data", f"{data.folder / file} is not what was prepared") for file in data.verify()]
    positions = split_positions(data.index, fold=spec.fold, kind=spec.split)
    found_hash = split_hash(data.index, positions)
    if found_hash != spec.split_hash:
        changes.append(Change("data", f"the split was {spec.split_hash} and is {found_hash}"))
    targets = data.targets()[positions["train"]]
    job = Job(spec, data.folder, store.trajectories, (), positions, targets, device)
    torch.set_num_threads(spec.recipe.threads)
    training = walk(job, data).start()
    losses = store.arrays(trial, "losses.npz") if (store.trial(trial) / "losses.npz").is_file() else {}
    tolerance = 0.0 if exact else TOLERANCE
    compared, parting = _replay(training, record["epochs"], losses, steps, tolerance)
    return Verdict(trial, spec.method, compared, tolerance, parting, tuple(changes))


def _replay(
    training: Training,
    epochs: list[Mapping[str, Any]],
    losses: Mapping[str, np.ndarray],
    steps: int | None,
    tolerance: float,
) -> tuple[int, Parting | None]:
    """How many steps were compared, and where they part first."""
    compared = 0
    for epoch, stored in enumerate(epochs):
        was = losses.get(f"{epoch:04d}")
        if was is None:
            return compared, _of_means(training, epoch, stored, tolerance) if compared == 0 else None
        wanted = len(was) if steps is None else min(len(was), steps - compared)
        found = training.first_steps(epoch, wanted) if wanted < len(was) else training.first_steps(epoch, len(was) + 1)
        for step, (before, now) in enumerate(zip(was[:wanted].tolist(), found.tolist(), strict=False)):
            if not _same(before, now, tolerance):
                return compared + step + 1, Parting(epoch, step, before, now)
        if len(found) < wanted:
            return compared + len(found), Parting(epoch, len(found), float(was[len(found)]), None)
        compared += wanted
        if steps is None or compared >= steps:
            break
        for action in record_from_json(stored).actions:
            training.apply(action)
    return compared, None


def _of_means(training: Training, epoch: int, stored: Mapping[str, Any], tolerance: float) -> Parting | None:
    """Where an epoch's mean losses part, for trials stored without those of every step."""
    found = training.train(epoch).losses
    pairs = ((before, found.get(name)) for name, before in stored["losses"].items())
    return next((Parting(epoch, None, b, now) for b, now in pairs if not _same(b, now, tolerance)), None)


def _same(before: float, now: float | None, tolerance: float) -> bool:
    return now is not None and (before == now or abs(before - now) <= tolerance * max(abs(before), abs(now)))


def _full_id(store: Store, beginning: str) -> str:
    found = [trial for trial in store.finished() if trial.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} trials begin so: {', '.join(found[:5])}" if found else "no finished trial of that id"
    raise RequestError(f"{store.folder / 'trials'}: {beginning}: {what}; give the name of one folder there")


def _with_code_of_today(spec: TrialSpec) -> tuple[TrialSpec, list[Change]]:
    """The specification as the plugins that are there now would run it, and which of them changed."""
    changes: list[Change] = []

    def today(group: plugins.Group, part: PartSpec) -> PartSpec:
        loaded = plugins.load(group, part.name)
        if loaded.code != part.code:
            changes.append(Change("code", f"{loaded.origin} was edited since"))
        return dataclasses.replace(part, code=loaded.code)

    fusion = today("methods", spec.fusion)
    strategies = tuple(today("methods", part) for part in spec.strategies)
    dataset = today("datasets", spec.dataset)
    return dataclasses.replace(spec, fusion=fusion, strategies=strategies, dataset=dataset), changes


def _libraries(then: Mapping[str, str]) -> Iterator[Change]:
    now = {**versions(), "bench": bench.__version__}
    for name, version in then.items():
        if now.get(name) != version:
            yield Change("libraries", f"{name} was {version} and is {now.get(name, 'absent')}")


def _device(recorded: str) -> str:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = (f"cuda:{i}" for i in range(gpus) if torch.cuda.get_device_name(i) == recorded)
    return next(named, "cpu")


def _prepared_sets(folder: Path) -> Iterator[Prepared]:
    for manifest in sorted(folder.glob("*/manifest.json")):
        try:
            yield Prepared.open(manifest.parent)
        except DataError:  # damaged: then it is not the one
            continue


def _data_of(spec: TrialSpec, folder: Path) -> Prepared | None:
    return next((data for data in _prepared_sets(folder) if data.fingerprint == spec.fingerprint), None)


def _what_is_there(spec: TrialSpec, folder: Path) -> str:
    there = [data.fingerprint for data in _prepared_sets(folder) if data.name == spec.dataset.name]
    found = f"{spec.dataset.name} is there as {', '.join(there)}" if there else f"no {spec.dataset.name} is there"
    return f"{folder}: {spec.data} with fingerprint {spec.fingerprint} is not prepared; {found}"
