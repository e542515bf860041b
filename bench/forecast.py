"""What a plan will cost: trained epochs, time and disk, before anything is trained.

Epochs follow from the lineages: trials that begin alike share what they train, and where records of such a training
are stored, of any seed, every planned `decide` is asked on them. Seconds and bytes come from trials of the same kind
that ran here, else from a calibration (`bench.calibration`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.agenda import in_order
from bench.api import EpochRecord
from bench.assembly import build_strategies, task_of
from bench.calibration import SPLITS, calibrate, kind_of, strangers
from bench.data.prepared import Prepared
from bench.data.selection import Selected
from bench.plan import TrialSpec
from bench.segments import Fork, Lineage, epoch_file, record_from_json
from bench.store import Store, read_json, read_sealed
from bench.study.tuning import EVALUATED, Budget, Tuning
from bench.sweep import Executor
from bench.trajectory import decides, lineage_of

START_SECONDS = 9.0
"""What the parent and then the training processes take to import everything."""
BESIDE_SECONDS = 0.6
"""What scoring and mirroring a trial takes of the parent; on a CPU the training processes wait for it."""
TABLES_SECONDS = 0.2
"""What a trial adds to making the tables. Seen on two cores, like the others; small beside a training."""


@dataclass(frozen=True)
class Forecast:
    """What is still to be spent on some trials."""

    trials: int
    epochs: int
    """To be trained, with everything that is shared or stored left out."""
    epochs_alone: int
    """What the trials would train if nothing were shared or stored."""
    seconds: float
    bytes: int
    calibrated: int
    """Kinds of trials that have never run here, so that their time was measured on a few steps."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def forecast(
    specs: Sequence[TrialSpec],
    datasets: Sequence[Selected],
    store: Store,
    devices: Sequence[str],
    evaluated: Sequence[str] = SPLITS,
    executor: Executor | None = None,
) -> Forecast:
    """What these trials will take on these devices, one trial at a time on each, in the order a sweep takes them.

    What never ran here is calibrated by `executor`, or by one of its own on the devices.
    """
    prepared = {selected.prepared.fingerprint: selected.prepared for selected in datasets}
    device = torch.device(devices[0])
    epochs = epochs_to_train(specs, prepared, store, device.type, evaluated)
    new = strangers(specs, store, devices)
    kinds = calibrate(specs, prepared, store, devices, executor)
    beside = BESIDE_SECONDS if device.type == "cpu" else 0.0
    free = [START_SECONDS] * min(len(devices), max(1, len(specs)))  # when every slot is free again
    size = 0.0
    for spec in in_order(specs):
        kind = kinds[kind_of(spec)]
        free[free.index(min(free))] += beside + kind.trial_seconds + epochs[spec.id] * kind.epoch_seconds
        size += kind.trial_bytes + epochs[spec.id] * kind.epoch_bytes
    return Forecast(
        trials=len(specs),
        epochs=sum(epochs.values()),
        epochs_alone=sum(spec.recipe.epochs for spec in specs),
        seconds=max(free) + TABLES_SECONDS * len(specs) if specs else 0.0,
        bytes=round(size),
        calibrated=len(new),
    )


def study_forecast(
    tuning: Tuning, budget: Budget, store: Store, devices: Sequence[str], executor: Executor | None = None
) -> Forecast:
    """What a study would take without stopping any trial early: points as the space gives them stand for proposals."""
    points = tuning.points or tuning.space.draws(budget.trials, tuning.search.seed)
    unique = {spec.id: spec for spec in (tuning.at(point) for point in points[: budget.trials])}
    return forecast(list(unique.values()), [tuning.selected], store, devices, EVALUATED, executor)


def epochs_to_train(
    specs: Sequence[TrialSpec],
    prepared: Mapping[str, Prepared],
    store: Store,
    device: str,
    evaluated: Sequence[str] = SPLITS,
) -> dict[str, int]:
    """How many epochs every trial would train, by its id, if they ran one after another.

    Exact as far as records of the same lineage are stored. Records of another seed stand in where there are some;
    without any, a trial that may act is taken to do so half way.
    """
    trunks = _Records(store)
    done: set[tuple[str, int]] = set()
    found = {}
    for spec in in_order(specs):
        deciding = build_strategies(spec, task_of(spec, prepared[spec.fingerprint].spec))
        codes = {part.name: part.code for part in spec.strategies}
        lineage, history, needed = lineage_of(spec, evaluated, device), list[EpochRecord](), 0
        acts = any(decides(part) for part in spec.strategies)
        for epoch in range(spec.recipe.epochs):
            place = lineage.key, epoch
            if place not in done and not trunks.has(lineage, epoch):
                needed += 1
            done.add(place)
            record = trunks.record(lineage, epoch) if len(history) == epoch else None
            fork = None
            if record is not None:
                history.append(record)
                taken = {name: strategy.decide(tuple(history)) for name, strategy in deciding.items()}
                actions = {name: action for name, action in taken.items() if action is not None}
                if actions:
                    fork = Fork(epoch, tuple(actions.values()), tuple(codes[name] for name in actions))
            elif acts and not history and epoch + 1 == spec.recipe.epochs // 2:
                lineage = Lineage({**lineage.fixed, "acts": spec.id})
            if fork is not None and epoch + 1 < spec.recipe.epochs:
                lineage = Lineage(lineage.fixed, (*lineage.forks, fork))
        found[spec.id] = needed
    return found


class _Records:
    """Stored records by lineage; where one has none, those of a training that differs in nothing but its seed."""

    def __init__(self, store: Store) -> None:
        self._folder = store.trajectories
        self._relatives: dict[str, Path] = {}
        longest: dict[str, int] = {}
        for file in self._folder.glob("*/lineage.json"):
            lineage = read_json(file)
            length = len(list(file.parent.glob("epoch-*.json")))
            name = _without_seed(lineage["fixed"])
            if not lineage["forks"] and length > longest.get(name, 0):
                self._relatives[name], longest[name] = file.parent, length

    def has(self, lineage: Lineage, epoch: int) -> bool:
        """Whether an epoch of a lineage is stored."""
        return epoch_file(self._folder / lineage.key, epoch, "json").is_file()

    def record(self, lineage: Lineage, epoch: int) -> EpochRecord | None:
        """The record of an epoch, or of a relative's before any action; None where there is neither."""
        found = _read(self._folder / lineage.key, epoch)
        if found is None and not lineage.forks:
            relative = self._relatives.get(_without_seed(lineage.fixed))
            found = _read(relative, epoch) if relative is not None else None
        return found


def _read(segment: Path, epoch: int) -> EpochRecord | None:
    stored = read_sealed(epoch_file(segment, epoch, "json"))
    return record_from_json(stored["record"]) if stored is not None else None


def _without_seed(fixed: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in fixed.items() if k not in ("seed", "evaluated")}, sort_keys=True)
