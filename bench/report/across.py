"""Rows held against each other over data sets: ranks, and the pairs of rows that data sets tell apart."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bench import stats
from bench.report.board import ALPHA
from bench.report.cell import Cell
from bench.report.layout import Section, Table, number
from bench.report.sections import metric_name, sections
from bench.scoring import MAXIMISED
from bench.stats import Comparison

LEAST_DATASETS, LEAST_ROWS = 3, 2
NOTE = (
    "Honest protocol; a row's score is its mean over seeds and folds, rank 1 is best, equal scores share ranks. "
    "Friedman: that all rows rank alike, from three rows on. Pairs: Wilcoxon's signed-rank test over data sets, Holm "
    "over all pairs. The data sets are few and not drawn at random: this speaks of them alone"
)


@dataclass(frozen=True)
class Pair:
    """Two rows over the data sets."""

    row: int
    against: int
    ahead: int
    """On how many data sets the first is better."""
    test: Comparison
    adjusted: float
    """p under Holm, over all pairs."""
    underpowered: bool
    """Whether not even a win on every data set could be significant among so many pairs."""

    @property
    def significant(self) -> bool:
        """Whether the data sets tell these rows apart."""
        return not self.underpowered and self.adjusted < ALPHA

    @property
    def verdict(self) -> str:
        """`significant`, `not significant` or `underpowered`."""
        if self.underpowered:
            return "underpowered"
        return "significant" if self.significant else "not significant"


@dataclass(frozen=True, eq=False)
class Across:
    """The rows that several data sets share, by mean rank."""

    metric: str
    datasets: tuple[str, ...]
    rows: tuple[Cell, ...]
    """One cell of each, the best mean rank first."""
    scores: Float[np.ndarray, "dataset row"]
    ranks: tuple[float, ...]
    p: float | None
    """Friedman's; None for two rows."""
    pairs: tuple[Pair, ...]

    @property
    def cliques(self) -> list[tuple[int, int]]:
        """First and last of each largest run of rows of which no two are told apart; runs of one are left out."""
        apart = {(pair.row, pair.against) for pair in self.pairs if pair.significant}
        runs: list[tuple[int, int]] = []
        for first in range(len(self.rows)):
            last = first
            while last + 1 < len(self.rows) and not any((i, last + 1) in apart for i in range(first, last + 1)):
                last += 1
            if last > first and not any(last <= end for _, end in runs):
                runs.append((first, last))
        return runs


def across(cells: Sequence[Cell]) -> list[Across]:
    """What can be said over data sets, for every metric that three of them share with two rows."""
    honest = [cell for cell in cells if cell.protocol == "honest" and cell.mean is not None]
    found = [_across(metric, honest) for metric in dict.fromkeys(cell.metric for cell in honest)]
    return [one for one in found if one is not None]


def table(found: Sequence[Across]) -> Table:
    """Ranks and pairs, two sections per metric."""
    made, values = [], []
    for one in found:
        heading = f"{metric_name(one.rows[0])} over {len(one.datasets)} data sets"
        test = "" if one.p is None else f"Friedman: p {_compared(one.p)}. "
        ranks = [
            {
                "Method": cell.label,
                "Mean rank": number(one.ranks[i], 2),
                **{name: number(one.scores[d, i], cell.digits) for d, name in enumerate(one.datasets)},
            }
            for i, cell in enumerate(one.rows)
        ]
        made.append(Section(heading, f"{test}{NOTE}.", pd.DataFrame(ranks), _notes(one)))
        pairs = [
            {
                "Row": one.rows[pair.row].label,
                "Against": one.rows[pair.against].label,
                "Better on": f"{pair.ahead} of {len(one.datasets)}",
                "p": _p(pair.test.p),
                "p (Holm)": _p(pair.adjusted),
                "Verdict": pair.verdict,
            }
            for pair in one.pairs
        ]
        made.append(Section(f"{heading}: pairs of rows", f"{NOTE}.", pd.DataFrame(pairs)))
        values += [_values(one, pair) for pair in one.pairs]
    return Table("across", "Across data sets", tuple(made), pd.DataFrame(values))


def _across(metric: str, cells: Sequence[Cell]) -> Across | None:
    by_dataset: dict[str, dict[str, Cell]] = {}
    # What cannot be compared is never in one section: of several of a data set the one with the most rows counts.
    for part in sorted(sections([cell for cell in cells if cell.metric == metric]), key=len, reverse=True):
        by_dataset.setdefault(part[0].dataset, {cell.method: cell for cell in part})
    order = dict.fromkeys(cell.dataset for cell in cells if cell.dataset in by_dataset)
    methods, datasets = _shared({name: by_dataset[name] for name in order})
    if len(datasets) < LEAST_DATASETS or len(methods) < LEAST_ROWS:
        return None
    sign = 1.0 if MAXIMISED[metric] else -1.0
    means = np.array([[by_dataset[name][method].mean for method in methods] for name in datasets], dtype=np.float64)
    p, ranks = _ranks(sign * means)
    place = np.argsort(ranks, kind="stable")
    rows = [by_dataset[datasets[0]][methods[i]] for i in place]
    ordered = means[:, place]
    sorted_ranks = tuple(ranks[i] for i in place)
    return Across(metric, tuple(datasets), tuple(rows), ordered, sorted_ranks, p, _pairs(sign * ordered))


def _shared(by_dataset: Mapping[str, Mapping[str, Cell]]) -> tuple[list[str], list[str]]:
    """Methods that all of the data sets have; data sets with the fewest rows of the others' are left out first."""
    left = dict(by_dataset)
    while len(left) >= LEAST_DATASETS:
        methods = [method for method in next(iter(left.values())) if all(method in rows for rows in left.values())]
        if len(methods) >= LEAST_ROWS:
            return methods, list(left)
        common = Counter(method for rows in left.values() for method in rows)
        del left[min(left, key=lambda name: sum(common[method] - 1 for method in left[name]))]
    return [], []


def _ranks(scores: Float[np.ndarray, "dataset row"]) -> tuple[float | None, list[float]]:
    if scores.shape[1] > 2:
        return stats.friedman(scores)
    ahead = np.sign(scores[:, 0] - scores[:, 1])
    first = float((1.5 - ahead / 2).mean())
    return None, [first, 3 - first]


def _pairs(scores: Float[np.ndarray, "dataset row"]) -> tuple[Pair, ...]:
    places = list(itertools.combinations(range(scores.shape[1]), 2))
    tests = [stats.wilcoxon(scores[:, a].tolist(), scores[:, b].tolist()) for a, b in places]
    adjusted = stats.holm([test.p for test in tests])
    # Holm holds the smallest p against ALPHA over the number of pairs; if that cannot pass, none can.
    return tuple(
        Pair(a, b, int((scores[:, a] > scores[:, b]).sum()), test, p, len(places) * test.smallest_p >= ALPHA)
        for (a, b), test, p in zip(places, tests, adjusted, strict=True)
    )


def _notes(found: Across) -> tuple[str, ...]:
    lacking = [pair for pair in found.pairs if pair.underpowered]
    if not lacking:
        return ()
    fewest = next(n for n in itertools.count(1) if len(found.pairs) * 2.0 ** (1 - n) < ALPHA)
    return (
        f"Underpowered: for {len(lacking)} of {len(found.pairs)} pairs of rows not even a win on every data set could "
        f"be significant; with so many pairs that takes {fewest} data sets without ties.",
    )


def _values(found: Across, pair: Pair) -> dict[str, Any]:
    row, against = found.rows[pair.row], found.rows[pair.against]
    means = {f"mean_rank{end}": found.ranks[i] for end, i in (("", pair.row), ("_against", pair.against))}
    numbers: dict[str, Any] = {"better_on": pair.ahead, "datasets": len(found.datasets), "friedman_p": found.p}
    numbers |= {"p": pair.test.p, "p_holm": pair.adjusted, "smallest_p": pair.test.smallest_p}
    names = {"label": row.label, "method": row.method, "against": against.label, "against_method": against.method}
    return {"metric": found.metric, **names, **means, **numbers, "verdict": pair.verdict}


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _compared(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
