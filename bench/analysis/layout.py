"""Tables of analyses: a section per data set, a line per row, and the same numbers unrounded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from bench.analysis.contract import Row, by_dataset
from bench.report.cell import PERCENT
from bench.report.layout import Section, Table, bounds, number
from bench.report.sections import NAMES
from bench.stats import Interval


def table_of(
    name: str,
    title: str,
    rows: Sequence[Row],
    columns: Mapping[str, Callable[[Row], Interval | None]],
    caption: str = "",
    digits: int = 3,
) -> Table:
    """A table with a column per quantity: its mean with its interval; nothing where a row has none."""
    sections, values = [], []
    for group in by_dataset(rows):
        found = [{column: read(row) for column, read in columns.items()} for row in group]
        texts = [
            {"Method": row.label, **{c: shown(x, digits) for c, x in each.items()}, **trainings(row)}
            for row, each in zip(group, found, strict=True)
        ]
        values += [{**row.identity(), **flat(each)} for row, each in zip(group, found, strict=True)]
        sections.append(section(group, texts, caption))
    return Table(name, title, tuple(sections), pd.DataFrame(values))


def section(
    group: Sequence[Row], texts: Sequence[Mapping[str, str]], caption: str, part: str = "", notes: Sequence[str] = ()
) -> Section:
    """Lines under a data set's name, and what the intervals are over."""
    heading = f"{group[0].dataset} ({group[0].protocol})" + (f": {part}" if part else "")
    over = "95 % interval over folds (Nadeau-Bengio)" if several_folds(group) else "95 % interval over seeds (Student)"
    return Section(heading, f"{caption}. Stored epoch of every trial; {over}.", pd.DataFrame(texts), tuple(notes))


def several_folds(group: Sequence[Row]) -> bool:
    """Whether some row has trials on more than one fold."""
    return any(len({answer.fold for answer in row.answers}) > 1 for row in group)


def trainings(row: Row) -> dict[str, str]:
    """How many trials a line rests on, and of how many that were asked for."""
    return {
        "Trials": f"{len(row.answers)}" if len(row.answers) == row.wanted else f"{len(row.answers)} of {row.wanted}"
    }


def shown(interval: Interval | None, digits: int, sign: bool = False) -> str:
    """A mean with its interval; nothing for None."""
    if interval is None:
        return ""
    return f"{number(interval.mean, digits, sign)} {bounds(interval.low, interval.high, digits, sign)}".strip()


def flat(each: Mapping[str, Interval | None]) -> dict[str, float | None]:
    """Intervals as columns of a file of values."""
    found: dict[str, float | None] = {}
    for name, interval in each.items():
        mean, low, high = (None, None, None) if interval is None else interval
        found |= {name: mean, f"{name} low": low, f"{name} high": high}
    return found


def metric_of(row: Row) -> tuple[str, float, int]:
    """The metric of record as a heading, the factor to the unit it is shown in, and its decimals."""
    percent = row.metric in PERCENT
    return NAMES.get(row.metric, row.metric), 100.0 if percent else 1.0, 1 if percent else 3


def slug(row: Row) -> str:
    """A row's data set and protocol as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", f"{row.dataset}-{row.protocol}")
