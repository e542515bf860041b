"""The report of a request: cells, tables, and the files they are written to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.analysis.showing import Shown, show_all
from bench.errors import RequestError
from bench.report import fairness
from bench.report.cell import Cell, to_json
from bench.report.collect import collect
from bench.report.html import page
from bench.report.layout import Section, Table
from bench.report.sections import mixed
from bench.report.tables import tables
from bench.requested import FindTruth
from bench.store import Store, write_bytes, writing


@dataclass(frozen=True)
class Report:
    """What was asked for, as far as it is finished."""

    cells: tuple[Cell, ...]
    skipped: tuple[Mapping[str, str], ...]
    """Legal rows that do not apply to a data set: `label`, `dataset`, `reason`."""
    tables: Mapping[str, Table]
    paths: tuple[Path, ...]
    analyses: tuple[Shown, ...] = ()
    """What was asked by `bench analyse`, with the rows it was asked for."""

    @property
    def markdown(self) -> str:
        """All tables, what was skipped, and what analyses found."""
        own = [*(table.markdown for table in self.tables.values()), *self._left_out()]
        return "\n".join([*own, *(shown.markdown for shown in self.analyses)])

    @property
    def paper_markdown(self) -> str:
        """The one table a paper shows, what became of published values, and what was skipped."""
        shown = [self.tables[name].markdown for name in ("paper", "published") if name in self.tables]
        return "\n".join([*shown, *self._left_out()])

    def to_json(self) -> dict[str, Any]:
        """Plain values: `cells`, `skipped` and the `tables`' files."""
        skipped = [dict(entry) for entry in self.skipped]
        return {"cells": to_json(self.cells), "skipped": skipped, "tables": [str(path) for path in self.paths]}

    def _left_out(self) -> list[str]:
        return [skipped_markdown(self.skipped)] if self.skipped else []


def build(
    store: Store, request: Mapping[str, Any], truths: FindTruth | None = None, allow_mixed: bool = False
) -> Report:
    """Collect the cells of a request and write `results/tables/<name>.{md,csv,tex}` and `results/report.html`.

    Raises RequestError where rows of one data set, protocol and fold have different effective splits, unless they
    are allowed; then every table says so.
    """
    cells = collect(store, request, truths)
    notes = refuse_mixed(cells, allow_mixed)
    made = {name: _marked(table, notes) for name, table in tables(cells).items()}
    skipped = tuple(request.get("skipped", ()))
    analyses = tuple(show_all(store))
    folder = store.folder / "tables"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    files = {store.folder / "report.html": page(cells, made, skipped, fairness.problems(cells), analyses)}
    for name, table in made.items():
        left_out = f"\n{skipped_markdown(skipped)}" if skipped else ""
        for suffix, text in (("md", table.markdown + left_out), ("csv", table.csv), ("tex", table.latex)):
            files[folder / f"{name}.{suffix}"] = text
    for file, text in files.items():
        write_bytes(file, text.encode())
    paths = (*files, *(path for shown in analyses for path in shown.paths))
    return Report(tuple(cells), skipped, made, paths, analyses)


def strict(report: Report) -> list[str]:
    """What is unfair or unfinished about a report, a line per problem; `bench report --strict` refuses any."""
    return fairness.problems(report.cells)


def refuse_mixed(cells: Sequence[Cell], allow: bool) -> list[tuple[str, str]]:
    """Data sets whose rows have different effective splits, and what to say under them; RequestError unless allowed."""
    found = mixed(cells)
    if found and not allow:
        lines = "\n".join(f"  {line}" for _, line in found)
        raise RequestError(
            f"rows with different effective splits cannot be compared:\n{lines}\n"
            "train them on the same samples, or let the tables show them and say so with `bench report --allow-mixed`"
        )
    return [(dataset, f"Different effective splits (--allow-mixed): {line}.") for dataset, line in found]


def _marked(table: Table, notes: Sequence[tuple[str, str]]) -> Table:
    """The table with notes under the sections of the data sets concerned."""
    marked = [
        dataclasses.replace(
            section, notes=(*(text for dataset, text in notes if _shows(section, dataset)), *section.notes)
        )
        for section in table.sections
    ]
    return dataclasses.replace(table, sections=tuple(marked))


def _shows(section: Section, dataset: str) -> bool:
    return section.title.split(" (")[0] == dataset


def skipped_markdown(skipped: Sequence[Mapping[str, str]]) -> str:
    """The rows that do not apply, each with its reason."""
    lines = [f"- {entry['label']} on {entry['dataset']}: {entry['reason']}" for entry in skipped]
    return "\n".join(["## Skipped", "", *lines]) + "\n"
