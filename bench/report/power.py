"""How many seeds and folds it takes to see a difference: `bench plan --detect`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.data.selection import Selected
from bench.data.splits import num_folds, split_positions
from bench.report.cell import Cell, shown
from bench.report.collect import collect
from bench.report.compare import Comparer
from bench.requested import truths
from bench.scoring import SAMPLE_MEANS
from bench.stats import Noise, Sizes
from bench.store import Store


@dataclass(frozen=True)
class Need:
    """What it takes on one data set to show a difference with 80 % power, under the tests of the board."""

    dataset: str
    points: float
    seeds: int | None
    """On one fold; None where no number of seeds is enough."""
    folds: int
    """How many there are."""
    seeds_on_all_folds: int | None
    basis: str
    """What the answer rests on."""

    def __str__(self) -> str:
        one = _said(self.seeds, "on one fold")
        more = "" if self.folds == 1 else f"; {_said(self.seeds_on_all_folds, f'on each of {self.folds} folds')}"
        return f"{self.dataset}: to see {self.points:g} points: {one}{more} ({self.basis})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def detect(points: float, store: Store, request: Mapping[str, Any], datasets: Sequence[Selected]) -> list[Need]:
    """What a plan's data sets need to show a difference of so many points under the honest protocol.

    From the trainings of the request that are stored, else from the binomial bound: one test part, 20 % discordance
    and seeds that do not differ, so that more may be needed. Data sets whose metric is no mean over samples are left
    out, and for errors `points` is in the metric's unit.
    """
    rows = [row for row in request["rows"] if row["protocol"] == "honest"]
    found = []
    for selected in datasets:
        if selected.spec.metric not in SAMPLE_MEANS:
            continue
        mine = [row for row in rows if row["dataset"] == selected.part.text]
        cells = collect(store, {**request, "rows": mine}, truths([selected]))
        found.append(_need(points, selected, _history(cells)))
    return found


def _need(points: float, selected: Selected, history: Sequence[Noise]) -> Need:
    index, metric = selected.prepared.index, selected.spec.metric
    positions, folds = split_positions(index), num_folds(index)
    sizes = Sizes(len(positions["train"]), len(positions["test"]))
    if history:
        noise = Noise(*(float(np.median([getattr(one, f.name) for one in history])) for f in dataclasses.fields(Noise)))
        pairs = "one pair" if len(history) == 1 else f"{len(history)} pairs"
        basis = f"from the spread and the discordance of {pairs} of stored rows"
    else:
        bound, unit = Noise.bound(sizes.test), shown(metric, 1.0)
        noise = Noise(unit**2 * bound.shared, unit**2 * bound.single, 0.0)
        basis = f"binomial bound for {sizes.test} test samples at 20 % discordance; seeds may ask for more"
        if metric != "accuracy":
            return Need(
                selected.label, points, None, folds, None, f"no stored rows to learn the spread of {metric} from"
            )
    several = noise.seeds_for(points, folds, sizes) if folds > 1 else None
    return Need(selected.label, points, noise.seeds_for(points), folds, several, basis)


def _history(cells: Sequence[Cell]) -> list[Noise]:
    """The noise of every pair of rows that share at least two seeds."""
    comparer = Comparer()
    pairs = [
        comparer.compare(a, b)
        for i, a in enumerate(cells)
        for b in cells[i + 1 :]
        if a.method != b.method and _share_seeds(a, b)
    ]
    return [pair.noise for pair in pairs if pair is not None and pair.noise is not None]


def _share_seeds(a: Cell, b: Cell) -> bool:
    return len({seed for _, seed in a.samples.keys() & b.samples.keys()}) > 1


def _said(seeds: int | None, where: str) -> str:
    if seeds is None:
        return f"no number of seeds is enough {where}"
    return f"{seeds} {'seed' if seeds == 1 else 'seeds'} {where}"
