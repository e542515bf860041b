"""Trained trials of the tiny world, opened for an analysis, and their answers as the rows of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.analysis.contract import Analysis, Answer, Row
from bench.analysis.loaded import LoadedTrial, material_of
from bench.api import Encoder, Tokens
from bench.assembly import task_of
from bench.data.prepared import Prepared
from bench.execute.events import Event, Jobs
from bench.plan import TrialSpec
from bench.trial import Job
from tests.world import InProcess, World, make_world

QUALITY = "planted:preset=quality:samples=400:classes=3:tokens=4"
"""200 test samples whose two modalities are never good together."""


def trained(folder: Path, methods: str, *assign: str, datasets: str = QUALITY, seeds: str = "1") -> World:
    """Methods trained in this process."""
    world = make_world(folder / "world", methods, *assign, datasets=datasets, seeds=seeds)
    outcomes = list(world.sweep().run(Uncounted()))
    assert {outcome.status for outcome in outcomes} == {"finished"}, [outcome.text for outcome in outcomes]
    return world


class Uncounted(InProcess):
    """Counts no operations: no analysis reads what a method costs, and counting takes longer than an epoch here."""

    def run(self, jobs: Jobs) -> Iterator[Event]:
        return super().run(_Uncounted(jobs))


class _Uncounted:
    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.waiting = jobs, jobs.waiting

    def take(self) -> tuple[str, Callable[[str], Job]] | None:
        taken = self.jobs.take()
        if taken is None:
            return None
        trial, make = taken
        return trial, lambda device: dataclasses.replace(make(device), measured=False)


def opened(world: World, spec: TrialSpec | None = None) -> LoadedTrial:
    """A finished trial, by default the plan's first."""
    spec = spec or world.plan.trials[0]
    return LoadedTrial.open(world.store, spec, material_of(prepared_for(world, spec), spec, torch.device("cpu")))


def prepared_for(world: World, spec: TrialSpec) -> Prepared:
    """The data of a trial."""
    (prepared,) = (s.prepared for s in world.datasets if s.prepared.fingerprint == spec.fingerprint)
    return prepared


def asked(world: World, analysis: Analysis) -> list[Row]:
    """The rows of a plan that the analysis applies to, measured."""
    rows = []
    for row in world.plan.rows:
        specs = [spec for group in row.groups for spec in group]
        if analysis.skips(specs[0], task_of(specs[0], prepared_for(world, specs[0]).spec)) is None:
            trials = [opened(world, spec) for spec in specs]
            answers = tuple(
                Answer(t.spec.id, t.spec.fold, t.spec.seed, analysis.measure(t), t.record["epochs"]) for t in trials
            )
            modalities = tuple(trials[0].record["modalities"])
            rows.append(
                Row(row.label, row.method, row.dataset, row.protocol, row.metric, modalities, answers, len(answers))
            )
    return rows


class ByHand(Encoder):
    """Two equal tokens that a function makes of a sample [batch, steps, width] -> [batch, dim]."""

    def __init__(self, dim: int, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dim, self.make = dim, make
        self.stages, self.norm = nn.ModuleList(), nn.Identity()

    def stem(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        return Tokens(self.make(x).unsqueeze(1).expand(-1, 2, -1), mask, has_class_token=True)
