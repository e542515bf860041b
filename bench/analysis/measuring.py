"""Analyses carried out over a plan: every finished trial is loaded once, asked whatever is not kept, and let go."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench.analysis.contract import Analysis, Measurement
from bench.analysis.kept import Kept
from bench.analysis.loaded import LoadedTrial, Material, material_of
from bench.assembly import task_of
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

    def run(self, device: str) -> Iterator[Measured]:
        """Measure and keep what is pending; one that fails is told and the others go on."""
        order = sorted(self.pending, key=lambda item: (item[0].fingerprint, item[0].split, item[0].fold))
        material: Material | None = None
        here: tuple[str, str, int] | None = None
        for spec, asked in order:
            if here != (spec.fingerprint, spec.split, spec.fold) or material is None:
                here = (spec.fingerprint, spec.split, spec.fold)
                material = material_of(self._prepared[spec.fingerprint], spec, torch.device(device))
            torch.set_num_threads(spec.recipe.threads)
            trial: LoadedTrial | str
            try:
                trial = LoadedTrial.open(self.store, spec, material)
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
                        Kept(self.store, analysis).write(spec.id, plain, seconds)
                    except Exception as error:  # a method's own code runs here: whatever it raises, the rest goes on
                        problem = _why(error)
                yield Measured(analysis.name, spec, time.perf_counter() - started, problem)

    def close(self) -> None:
        """Keep what was asked for, for tables made later."""
        for analysis in self.analyses:
            Kept(self.store, analysis).write_request(self.plan, self.skipped[analysis.name])


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no text'])[0]}"


def _plain(value: Any) -> Any:
    """Nested values with numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
