"""The report of a request: cells, tables, and the files they are written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import fairness
from bench.report.cell import Cell, to_json
from bench.report.collect import collect
from bench.report.html import page
from bench.report.layout import Table
from bench.report.tables import tables
from bench.store import Store, write_bytes, writing
from bench.sweep import FindTruth


@dataclass(frozen=True)
class Report:
    """What was asked for, as far as it is finished."""

    cells: tuple[Cell, ...]
    skipped: tuple[Mapping[str, str], ...]
    """Legal rows that do not apply to a data set: `label`, `dataset`, `reason`."""
    tables: Mapping[str, Table]
    paths: tuple[Path, ...]

    @property
    def markdown(self) -> str:
        """All tables and what was skipped."""
        return "\n".join([*(table.markdown for table in self.tables.values()), *self._left_out()])

    @property
    def paper_markdown(self) -> str:
        """The one table a paper shows, and what was skipped."""
        return "\n".join([self.tables["paper"].markdown, *self._left_out()])

    def to_json(self) -> dict[str, Any]:
        """Plain values: `cells`, `skipped` and the `tables`' files."""
        skipped = [dict(entry) for entry in self.skipped]
        return {"cells": to_json(self.cells), "skipped": skipped, "tables": [str(path) for path in self.paths]}

    def _left_out(self) -> list[str]:
        return [skipped_markdown(self.skipped)] if self.skipped else []


def build(store: Store, request: Mapping[str, Any], truths: FindTruth | None = None) -> Report:
    """Collect the cells of a request and write `results/tables/<name>.{md,csv,tex}` and `results/report.html`."""
    cells = collect(store, request, truths)
    made = tables(cells)
    skipped = tuple(request.get("skipped", ()))
    folder = store.folder / "tables"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    files = {store.folder / "report.html": page(cells, made, skipped, fairness.problems(cells))}
    for name, table in made.items():
        left_out = f"\n{skipped_markdown(skipped)}" if skipped else ""
        for suffix, text in (("md", table.markdown + left_out), ("csv", table.csv), ("tex", table.latex)):
            files[folder / f"{name}.{suffix}"] = text
    for file, text in files.items():
        write_bytes(file, text.encode())
    return Report(tuple(cells), skipped, made, tuple(files))


def strict(report: Report) -> list[str]:
    """What is unfair or unfinished about a report, a line per problem; `bench report --strict` refuses any."""
    return fairness.problems(report.cells)


def skipped_markdown(skipped: Sequence[Mapping[str, str]]) -> str:
    """The rows that do not apply, each with its reason."""
    lines = [f"- {entry['label']} on {entry['dataset']}: {entry['reason']}" for entry in skipped]
    return "\n".join(["## Skipped", "", *lines]) + "\n"
