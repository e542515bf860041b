"""What an epoch takes here: a few epochs of every kind of trial on two small shares of its data, thrown away after.

They run where the trials will run and as many at once, because processes side by side slow each other down. What was
measured is kept in `results/calibration.json` for the same machine, libraries and number of slots.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import plugins
from bench.data.prepared import Prepared
from bench.data.splits import split_positions
from bench.errors import RequestError, ResultsError
from bench.execute import local
from bench.execute.events import Failed, Finished
from bench.plan import TrialSpec
from bench.segments import epoch_file
from bench.store import Store, read_sealed, write_sealed
from bench.sweep import Executor
from bench.trial import Job, device_name, versions

SPLITS = ("val", "test")
EPOCHS_TRIED = 4
SHARES = (2, 8)
"""Batches per epoch of the two shares, a straight line through which gives a whole epoch."""
LONG = 10.0
"""Seconds an epoch of the small share may take for the large one to be tried; beyond, the small one is scaled."""


@dataclass(frozen=True)
class Kind:
    """What one kind of trial takes."""

    epoch_seconds: float
    trial_seconds: float
    epoch_bytes: float
    trial_bytes: float


@dataclass(frozen=True)
class _Try:
    share: float
    seconds: float
    """Of one epoch with everything that belongs to it."""
    trial_seconds: float
    """Of a trial beside its epochs."""
    sizes: Mapping[str, float]
    """Bytes by what is stored: `npz`, `json`, `safetensors` of an epoch, and `pt`, the whole state."""


def kind_of(spec: TrialSpec) -> str:
    """Equal for trials that take equally long per epoch: same fusion, strategies' names, data, encoders and batches."""
    names = [spec.fusion.name, dict(spec.fusion.settings), *(part.name for part in spec.strategies)]
    encoders = {m: dataclasses.asdict(encoder) for m, encoder in spec.encoders.items()}
    recipe = {k: getattr(spec.recipe, k) for k in ("batch_size", "precision", "threads", "air_samples", "compile")}
    return json.dumps([names, spec.fingerprint, spec.split_hash, encoders, recipe], sort_keys=True)


def calibrate(
    specs: Sequence[TrialSpec],
    prepared: Mapping[str, Prepared],
    store: Store,
    devices: Sequence[str],
    executor: Executor | None = None,
) -> dict[str, Kind]:
    """What one trial of every kind among these takes, by kind; measured where it is not known yet.

    Raises RequestError if a kind cannot be trained at all.
    """
    known, unknown = _known(specs, store, devices), strangers(specs, store, devices)
    if unknown:
        if executor is None:
            with local.LocalExecutor(devices) as here:
                measured = _measured(unknown, prepared, here, len(devices))
        else:
            measured = _measured(unknown, prepared, executor, len(devices))
        known |= measured
        file, machine = _file(store), _machine(devices)
        stored = read_sealed(file) or {}
        fresh = {_short(kind): dataclasses.asdict(value) for kind, value in measured.items()}
        with contextlib.suppress(ResultsError, OSError):  # a folder that is only looked at: measured again next time
            store.folder.mkdir(parents=True, exist_ok=True)
            write_sealed(file, {**stored, machine: {**stored.get(machine, {}), **fresh}})
    return known


def strangers(specs: Sequence[TrialSpec], store: Store, devices: Sequence[str]) -> dict[str, TrialSpec]:
    """One trial of every kind that neither ran here nor was calibrated, by kind."""
    known = _known(specs, store, devices)
    return {kind_of(spec): spec for spec in reversed(specs) if kind_of(spec) not in known}


def _known(specs: Sequence[TrialSpec], store: Store, devices: Sequence[str]) -> dict[str, Kind]:
    """What is known of the kinds of these trials: of those that ran here, else of a calibration."""
    stored = (read_sealed(_file(store)) or {}).get(_machine(devices), {})
    kinds = {kind_of(spec) for spec in specs}
    calibrated = {kind: Kind(**stored[_short(kind)]) for kind in kinds if _short(kind) in stored}
    return calibrated | _history(store, torch.device(devices[0]))


def _file(store: Store) -> Path:
    return store.folder / "calibration.json"


def _measured(
    unknown: Mapping[str, TrialSpec],
    prepared: Mapping[str, Prepared],
    executor: Executor,
    beside: int,
) -> dict[str, Kind]:
    small = _tried(unknown, prepared, executor, SHARES[0], beside)
    short = {kind: spec for kind, spec in unknown.items() if small[kind].seconds < LONG}
    large = _tried(short, prepared, executor, SHARES[1], beside) if short else {}
    return {kind: _kind(spec, small[kind], large.get(kind)) for kind, spec in unknown.items()}


def _kind(spec: TrialSpec, small: _Try, large: _Try | None) -> Kind:
    if large is None:
        epoch_seconds, last = small.seconds / small.share, small
    else:
        wider = large.share - small.share
        per_share = (large.seconds - small.seconds) / wider if wider > 0 else 0.0
        epoch_seconds, last = large.seconds + max(0.0, per_share) * (1.0 - large.share), large
    outputs, epochs = last.sizes["npz"] / last.share, spec.recipe.epochs
    return Kind(
        epoch_seconds=epoch_seconds,
        trial_seconds=last.trial_seconds,
        epoch_bytes=outputs + last.sizes["json"],
        # The outputs and records of all epochs, the selected weights, and the state that training could go on from.
        trial_bytes=epochs * (outputs + last.sizes["json"]) + last.sizes["safetensors"] + last.sizes["pt"],
    )


def _tried(
    specs: Mapping[str, TrialSpec], prepared: Mapping[str, Prepared], executor: Executor, batches: int, beside: int
) -> dict[str, _Try]:
    """A few epochs of every kind on so many batches, as many kinds at once as the executor has slots."""
    with tempfile.TemporaryDirectory() as scratch:
        tries = {}
        for number, (kind, spec) in enumerate(specs.items()):
            recipe = dataclasses.replace(spec.recipe, epochs=max(EPOCHS_TRIED, spec.recipe.epochs))
            longer = dataclasses.replace(spec, recipe=recipe)
            tries[longer.id] = kind, longer, Path(scratch) / str(number) / "trajectories"
        waiting = [
            (trial, partial(_job, spec, prepared[spec.fingerprint], batches, folder))
            for trial, (_, spec, folder) in tries.items()
        ]
        # So that the last ones do not run alone, which is faster.
        for number in range(1, beside):
            _, spec, _ = tries[waiting[-1][0]]
            other = dataclasses.replace(spec, seed=spec.seed + number)
            folder = Path(scratch) / f"beside-{number}" / "trajectories"
            waiting.append((other.id, partial(_job, other, prepared[spec.fingerprint], batches, folder)))
        jobs = _OneByOne(waiting)
        found = {}
        for event in executor.run(jobs):
            if isinstance(event, Failed) and event.trial in tries:
                _, spec, _ = tries[event.trial]
                raise RequestError(f"{spec.method} on {spec.data} cannot be trained: {event.cause}: {event.text}")
            if isinstance(event, Finished) and event.trial in tries:
                kind, spec, folder = tries[event.trial]
                found[kind] = _read(folder, _share(spec, batches), event.info)
        return found


def _job(spec: TrialSpec, prepared: Prepared, batches: int, folder: Path, device: str) -> Job:
    positions = split_positions(prepared.index, fold=spec.fold, kind=spec.split)
    share = _share(spec, batches)
    few = {name: where[: max(1, round(share * len(where)))] for name, where in positions.items() if len(where)}
    folder.mkdir(parents=True)
    return Job(
        spec=spec,
        prepared=prepared.folder,
        trajectories=folder,
        plugin_folders=tuple(plugins.folders()),
        positions=few,
        train_targets=prepared.targets()[few["train"]],
        device=device,
        evaluated=tuple(name for name in SPLITS if name in few),
        until=EPOCHS_TRIED,
    )


def _share(spec: TrialSpec, batches: int) -> float:
    return min(1.0, batches * spec.recipe.batch_size / spec.num_train)


def _read(folder: Path, share: float, info: Mapping[str, Any]) -> _Try:
    """What a few epochs took, told by when their records were written."""
    records = sorted(folder.glob("*/epoch-*.json"), key=lambda file: file.name)
    ends = [file.stat().st_mtime_ns / 1e9 for file in records]
    # The first epoch builds the model and the last one stores the whole state: what lies between is an epoch.
    seconds = statistics.mean(after - before for before, after in itertools.pairwise(ends[:-1]))
    state = max((file.stat().st_size for file in folder.glob("*/*.pt")), default=0)
    last = records[-1].parent
    written = {suffix: epoch_file(last, EPOCHS_TRIED - 1, suffix) for suffix in ("npz", "json", "safetensors")}
    sizes = {suffix: float(file.stat().st_size) for suffix, file in written.items()}
    beside = info["finished"] - info["started"] - EPOCHS_TRIED * seconds
    return _Try(share, seconds, max(0.0, beside), {**sizes, "pt": float(state)})


class _OneByOne:
    """Jobs in order; none is ever postponed, for every one has a folder of its own."""

    def __init__(self, jobs: Sequence[tuple[str, Callable[[str], Job]]]) -> None:
        self._waiting = list(jobs)

    def take(self) -> tuple[str, Callable[[str], Job]] | None:
        """The next one."""
        return self._waiting.pop(0) if self._waiting else None

    def waiting(self) -> int:
        """How many are left."""
        return len(self._waiting)


def _machine(devices: Sequence[str]) -> str:
    names = [device_name(torch.device(device)) for device in devices]
    return _short(json.dumps([names, versions()], sort_keys=True))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
