"""What a plan will cost: trained epochs, time and disk, before anything is trained.

Epochs follow from the lineages: trials that begin alike share what they train, and where records of such a training
are stored, of any seed, every planned `decide` is asked on them. Seconds and bytes come from trials of the same kind
that ran here, else from a calibration: a few epochs on two small shares of the data, in a folder that is thrown away.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import plugins
from bench.agenda import in_order
from bench.api import EpochRecord
from bench.assembly import build_strategies, task_of
from bench.cost import measure
from bench.data.prepared import Prepared
from bench.data.selection import Selected
from bench.data.splits import split_positions
from bench.plan import TrialSpec
from bench.segments import Fork, Lineage, epoch_file, record_from_json
from bench.store import Store, read_json, read_sealed
from bench.study.tuning import EVALUATED, Budget, Tuning
from bench.trajectory import decides, lineage_of
from bench.trial import Job, device_name, walk

SPLITS = ("val", "test")
PROCESS_SECONDS = 4.0
"""What a training process takes to import everything, once per slot."""
EPOCHS_TRIED = 4
SHARES = (2, 8)
"""Batches per epoch of the two calibrations, a straight line through which gives a whole epoch."""


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


@dataclass(frozen=True)
class Kind:
    """What one kind of trial takes."""

    epoch_seconds: float
    trial_seconds: float
    epoch_bytes: float
    trial_bytes: float


def forecast(
    specs: Sequence[TrialSpec],
    datasets: Sequence[Selected],
    store: Store,
    devices: Sequence[str],
    evaluated: Sequence[str] = SPLITS,
) -> Forecast:
    """What these trials will take on these devices, one trial at a time on each."""
    prepared = {selected.prepared.fingerprint: selected.prepared for selected in datasets}
    device = torch.device(devices[0])
    epochs = epochs_to_train(specs, prepared, store, device.type, evaluated)
    known = _history(store, device)
    calibrated: dict[str, Kind] = {}
    seconds: list[float] = []
    size = 0.0
    for spec in specs:
        name = kind_of(spec)
        kind = known.get(name) or calibrated.get(name)
        if kind is None:
            kind = calibrated[name] = calibrate(spec, prepared[spec.fingerprint], devices[0])
        seconds.append(kind.trial_seconds + epochs[spec.id] * kind.epoch_seconds)
        size += kind.trial_bytes + epochs[spec.id] * kind.epoch_bytes
    slots = min(len(devices), max(1, len(specs)))
    return Forecast(
        trials=len(specs),
        epochs=sum(epochs.values()),
        epochs_alone=sum(spec.recipe.epochs for spec in specs),
        seconds=max(sum(seconds) / slots, *seconds) + PROCESS_SECONDS if seconds else 0.0,
        bytes=round(size),
        calibrated=len(calibrated),
    )


def study_forecast(tuning: Tuning, budget: Budget, store: Store, devices: Sequence[str]) -> Forecast:
    """What a study would take without stopping any trial early: points as the space gives them stand for proposals."""
    points = tuning.points or tuning.space.draws(budget.trials, tuning.search.seed)
    unique = {spec.id: spec for spec in (tuning.at(point) for point in points[: budget.trials])}
    return forecast(list(unique.values()), [tuning.selected], store, devices, EVALUATED)


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


def calibrate(spec: TrialSpec, prepared: Prepared, device: str) -> Kind:
    """Seconds and bytes of a kind of trial, from a few epochs on two small shares of its data."""
    positions = split_positions(prepared.index, fold=spec.fold, kind=spec.split)
    steps = max(1.0, len(positions["train"]) / spec.recipe.batch_size)
    small, large = (_tried(spec, prepared, positions, share, device) for share in (min(1.0, b / steps) for b in SHARES))
    per_share = (large.seconds - small.seconds) / (large.share - small.share) if large.share > small.share else 0.0
    outputs, epochs = large.sizes["npz"] / large.share, spec.recipe.epochs
    return Kind(
        epoch_seconds=large.seconds + max(0.0, per_share) * (1.0 - large.share),
        trial_seconds=large.start_seconds,
        epoch_bytes=outputs + large.sizes["json"],
        # The outputs and records of all epochs, the selected weights, and the state that training could go on from.
        trial_bytes=epochs * (outputs + large.sizes["json"]) + large.sizes["safetensors"] + large.sizes["pt"],
    )


def kind_of(spec: TrialSpec) -> str:
    """Equal for trials that take equally long per epoch: same plugins, data, encoders and batches."""
    names = "+".join(part.name for part in (spec.fusion, *spec.strategies))
    encoders = {m: dataclasses.asdict(encoder) for m, encoder in spec.encoders.items()}
    recipe = {k: getattr(spec.recipe, k) for k in ("batch_size", "precision", "threads", "air_samples", "compile")}
    return json.dumps([names, spec.fingerprint, spec.split_hash, encoders, recipe], sort_keys=True)


@dataclass(frozen=True)
class _Try:
    share: float
    seconds: float
    """Of one epoch with everything that belongs to it."""
    start_seconds: float
    sizes: Mapping[str, float]
    """Bytes by what is stored: `npz`, `json`, `safetensors` of an epoch, and `pt`, the whole state."""


def _tried(spec: TrialSpec, prepared: Prepared, positions: Mapping[str, np.ndarray], share: float, device: str) -> _Try:
    recipe = dataclasses.replace(spec.recipe, epochs=max(EPOCHS_TRIED, spec.recipe.epochs))
    spec = dataclasses.replace(spec, recipe=recipe)
    few = {name: where[: max(1, round(share * len(where)))] for name, where in positions.items() if len(where)}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            spec=spec,
            prepared=prepared.folder,
            trajectories=Path(folder),
            plugin_folders=tuple(plugins.folders()),
            positions=few,
            train_targets=prepared.targets()[few["train"]],
            device=device,
            evaluated=tuple(name for name in SPLITS if name in few),
            until=EPOCHS_TRIED,
        )
        begun = time.perf_counter()
        measure(spec, prepared.spec)
        clock = [time.perf_counter()]
        for visit in walk(job, prepared).epochs():
            clock.append(time.perf_counter())
            segment = Path(folder) / visit.segment
        # The first epoch builds the model and the last one stores the whole state: what lies between is an epoch.
        seconds = statistics.mean(after - before for before, after in itertools.pairwise(clock[1:-1]))
        start = max(0.0, clock[1] - begun - seconds)
        state = max((file.stat().st_size for file in segment.glob("*.pt")), default=0)
        last = {suffix: epoch_file(segment, EPOCHS_TRIED - 1, suffix) for suffix in ("npz", "json", "safetensors")}
        sizes = {suffix: file.stat().st_size for suffix, file in last.items()}
    return _Try(share, seconds, start, {**sizes, "pt": state})


def _history(store: Store, device: torch.device) -> dict[str, Kind]:
    """What the stored trials took on this kind of device, by kind."""
    found: dict[str, list[Kind]] = {}
    for trial in store.finished():
        record = store.read(trial, "record.json")
        epochs, trained = len(record["epochs"]), record["trained_epochs"]
        if trained < max(1, epochs // 2) or record["device"] != device_name(device):
            continue
        spec = TrialSpec.from_json(store.read(trial, "spec.json"))
        folders = [store.trial(trial), *(store.trajectories / name for name in set(record["segments"]))]
        size = sum(file.stat().st_size for folder in folders if folder.is_dir() for file in folder.iterdir())
        kind = Kind(record["seconds"] / trained, 0.0, 0.0, size)
        found.setdefault(kind_of(spec), []).append(kind)
    return {
        name: Kind(
            statistics.median(k.epoch_seconds for k in kinds), 0.0, 0.0, statistics.median(k.trial_bytes for k in kinds)
        )
        for name, kinds in found.items()
    }


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
