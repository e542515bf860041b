"""Analyses carried out over a plan: every finished trial is loaded once, asked whatever is not kept, and let go."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import plugins
from bench.analysis.contract import Analysis, Measurement
from bench.analysis.kept import Kept
from bench.analysis.loaded import LoadedTrial, Material, material_of
from bench.assembly import task_of
from bench.data.prepared import Prepared
from bench.data.selection import Selected
from bench.errors import RequestError
from bench.plan import Plan, TrialSpec
from bench.store import Store


@dataclass(frozen=True)
class Measured:
    """What became of one analysis of one trial."""

    analysis: str
    spec: TrialSpec
    seconds: float
    problem: str = ""
    """Why there is no measurement."""


@dataclass
class Inquiry:
    """What analyses ask of a plan: `missing` trials are not finished, `pending` ones still have to be measured."""

    analyses: Sequence[Analysis]
    plan: Plan
    store: Store
    datasets: Sequence[Selected]
    skipped: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Analysis -> rows that it does not apply to: `label`, `dataset`, `reason`."""
    missing: list[TrialSpec] = field(default_factory=list)
    pending: list[tuple[TrialSpec, list[Analysis]]] = field(default_factory=list)
    finished: int = 0
    asked: int = 0
    """How many measurements of finished trials there will be in the end."""

    def __post_init__(self) -> None:
        prepared = {selected.prepared.fingerprint: selected.prepared for selected in self.datasets}
        self._prepared = prepared
        wanted: dict[str, tuple[TrialSpec, dict[str, Analysis]]] = {}
        for analysis in self.analyses:
            found = self.skipped.setdefault(analysis.name, [])
            found += [{"label": s.label, "dataset": s.dataset, "reason": s.reason} for s in self.plan.skipped]
            for row in self.plan.rows:  # one per protocol: what is skipped is said once
                first = row.groups[0][0]
                reason: str | None = "it is made from other rows and has no weights of its own"
                if row.derived is None:
                    reason = analysis.skips(first, task_of(first, prepared[first.fingerprint].spec))
                if reason is not None:
                    entry = {"label": row.label, "dataset": row.dataset_label, "reason": reason}
                    found += [entry] if entry not in found else []
                    continue
                for (spec,) in row.groups:
                    wanted.setdefault(spec.id, (spec, {}))[1][analysis.name] = analysis
        kept = {analysis.name: Kept(self.store, analysis) for analysis in self.analyses}
        for spec, asked in wanted.values():
            if not self.store.has(spec.id):
                self.missing.append(spec)
                continue
            self.finished += 1
            self.asked += len(asked)
            open_ = [analysis for analysis in asked.values() if not kept[analysis.name].has(spec.id)]
            if open_:
                self.pending.append((spec, open_))

    @property
    def questions(self) -> int:
        """How many measurements still have to be made."""
        return sum(len(asked) for _, asked in self.pending)

    def refuse_if_empty(self, command: str) -> None:
        """Raise RequestError where no trial is finished or none can be asked; `command` trains what is missing."""
        if self.finished:
            return
        if self.missing:
            what = f"{self.store.folder}: none of {len(self.missing)} trials is finished"
            raise RequestError(f"{what}; `{command}` trains them")
        entries = ((name, entry) for name, skipped in self.skipped.items() for entry in skipped)
        reasons = [f"  {name}: {e['label']} on {e['dataset']}: {e['reason']}" for name, e in entries]
        raise RequestError("\n".join(["nothing is left to analyse:", *reasons]))

    def run(self, devices: Sequence[str]) -> Iterator[Measured]:
        """Measure and keep what is pending, a process per device; one that fails is told and the others go on."""
        order = sorted(self.pending, key=lambda item: (item[0].fingerprint, item[0].split, item[0].fold))
        tasks = [(self._prepared[spec.fingerprint], spec, asked) for spec, asked in order]
        if len(devices) == 1 or len(tasks) < 2:
            for prepared, spec, asked in tasks:
                yield from _measure(self.store.folder, prepared.folder, spec, asked, devices[0])
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(devices), context, use_folders, (tuple(plugins.folders()),)) as pool:
            running = {
                pool.submit(_listed, self.store.folder, prepared.folder, spec, asked, devices[number % len(devices)]): (
                    spec,
                    asked,
                )
                for number, (prepared, spec, asked) in enumerate(tasks)
            }
            for future in as_completed(running):
                spec, asked = running[future]
                try:
                    yield from future.result()
                except BrokenProcessPool as error:
                    yield from (Measured(analysis.name, spec, 0.0, _why(error)) for analysis in asked)

    def close(self) -> None:
        """Keep what was asked for, for tables made later."""
        for analysis in self.analyses:
            Kept(self.store, analysis).write_request(self.plan, self.skipped[analysis.name])


def use_folders(folders: Sequence[str]) -> None:
    """Find plugins where the parent does."""
    for folder in reversed(folders):
        plugins.use_folder(Path(folder))


def _shared(prepared: Path, spec: TrialSpec, device: str) -> Material:
    """What all trials of one fold share; only the latest is kept."""
    key = (str(prepared), spec.fingerprint, json.dumps(spec.dataset.identity()), spec.split, spec.fold, device)
    if key not in _latest:
        _latest.clear()
        _latest[key] = material_of(Prepared.open(prepared), spec, torch.device(device))
    return _latest[key]


_latest: dict[tuple[str | int, ...], Material] = {}


def _measure(
    results: Path, prepared: Path, spec: TrialSpec, asked: Sequence[Analysis], device: str
) -> Iterator[Measured]:
    store = Store(results, writable=False)
    torch.set_num_threads(spec.recipe.threads)
    trial: LoadedTrial | str
    try:
        trial = LoadedTrial.open(store, spec, _shared(prepared, spec, device))
    except Exception as error:  # as below
        trial = _why(error)
    for analysis in asked:
        started = time.perf_counter()
        problem = trial if isinstance(trial, str) else ""
        if not isinstance(trial, str):
            try:
                measured = analysis.measure(trial)
                seconds = time.perf_counter() - started
                plain = Measurement(_plain(measured.values), measured.arrays)
                Kept(store, analysis).write(spec.id, plain, seconds)
            except Exception as error:  # a method's own code runs here: whatever it raises, the rest goes on
                problem = _why(error)
        yield Measured(analysis.name, spec, time.perf_counter() - started, problem)


def _listed(results: Path, prepared: Path, spec: TrialSpec, asked: Sequence[Analysis], device: str) -> list[Measured]:
    return list(_measure(results, prepared, spec, asked, device))


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no text'])[0]}"


def _plain(value: Any) -> Any:
    """Nested values with numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
