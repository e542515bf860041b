"""What the choice of the epoch is worth: the audit of selections, and the only table that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench import stats
from bench.protocols import SELECTIONS
from bench.report.cell import Cell
from bench.report.layout import Section, Table, bounds, number
from bench.report.sections import caption, metric_name, title
from bench.scoring import MAXIMISED
from bench.stats import Interval

NOTE = (
    "For audit alone: the same trajectories scored on test at the epoch that is best on val, at the last one, and at "
    "the one that is best on test, which nobody knows who does not look at test targets. Inflation: test-best better "
    "than val-best by so much, paired by training; {over}. Derived rows: every part at its own epoch"
)


def inflation(cell: Cell) -> Interval | None:
    """How much better test-best looks than val-best, paired by training; None where there is no val."""
    ours, theirs = cell.selections.get("test-best"), cell.selections.get("val-best")
    if not ours or not theirs:
        return None
    sign = 1 if MAXIMISED[cell.metric] else -1
    each = [sign * (a - b) for a, b in zip(ours, theirs, strict=True)]
    return stats.interval(each, folds=cell.folds, sizes=cell.sizes)


def selections(parts: Sequence[Sequence[Cell]]) -> Table:
    """Every row with a score under the three selections and the inflation, a section per comparable rows."""
    made, values = [], []
    for part in parts:
        rows = [cell for cell in part if cell.selections]
        if not rows:
            continue
        over = "95 % interval over seeds"
        if any(cell.n_folds > 1 for cell in rows):
            over = "95 % interval over folds (Nadeau and Bengio's corrected t)"
        texts = []
        for cell in rows:
            means = {rule: _mean(cell.selections.get(rule)) for rule in SELECTIONS}
            found = inflation(cell)
            mean, low, high = found or (None, None, None)
            texts.append(
                {
                    "Method": cell.label,
                    **{f"{rule.capitalize()}": number(value, cell.digits) for rule, value in means.items()},
                    "Inflation": number(mean, cell.digits, sign=True),
                    "95 % interval": bounds(low, high, cell.digits, sign=True),
                    "Trainings": str(len(cell.values)),
                }
            )
            numbers: dict[str, Any] = {rule.replace("-", "_"): value for rule, value in means.items()}
            numbers |= {"inflation": mean, "low": low, "high": high}
            values.append({**cell.identity(), **numbers, "trainings": len(cell.values)})
        text = f"{metric_name(rows[0])}. {caption(part)}. {NOTE.format(over=over)}."
        made.append(Section(title(part), text, pd.DataFrame(texts)))
    return Table("selection", "Selection of the epoch", tuple(made), pd.DataFrame(values))


def _mean(scores: Sequence[float] | None) -> float | None:
    return sum(scores) / len(scores) if scores else None
