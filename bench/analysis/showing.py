"""Kept measurements as tables and figures in results/, made again whenever a report is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import names
from bench.analysis.contract import Analysis
from bench.analysis.kept import Kept, request_in
from bench.analysis.registry import ANALYSES
from bench.report.layout import Table
from bench.store import Store, write_bytes, writing


@dataclass(frozen=True)
class Shown:
    """What one analysis says about the rows it was asked for."""

    name: str
    title: str
    paper: str
    tables: tuple[Table, ...]
    figures: Mapping[str, str]
    """SVG texts by file name."""
    skipped: tuple[Mapping[str, str], ...]
    """Rows it does not apply to: `label`, `dataset`, `reason`."""
    paths: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values: the unrounded rows of every table, what was skipped, and the files."""
        tables = {t.name: json.loads(t.values.to_json(orient="records")) for t in self.tables}
        skipped = [dict(entry) for entry in self.skipped]
        return {
            "analysis": self.name,
            "title": self.title,
            "tables": tables,
            "skipped": skipped,
            "files": [str(path) for path in self.paths],
        }

    @property
    def markdown(self) -> str:
        """Its tables and what was skipped."""
        tables = [table.markdown for table in self.tables] or [f"# {self.title}\n\n{self.stale}\n"]
        return "\n".join([*tables, _skipped(self.skipped)]).rstrip() + "\n"

    @property
    def stale(self) -> str:
        """What to do where nothing is kept that this code measured; empty where something is."""
        return "" if self.tables else f"Nothing is kept that this code measured; `bench analyse {self.name}` measures."


def show(store: Store, analyses: Sequence[Analysis]) -> list[Shown]:
    """Write `tables/analysis_*.{md,csv,tex}` and `figures/*.svg` of what was asked last of these analyses."""
    shown = []
    for analysis in analyses:
        request = request_in(store, analysis.name)
        if request is None:
            continue
        rows = Kept(store, analysis).rows(request)
        tables = analysis.tables(rows) if rows else []
        figures = analysis.figures(rows) if rows else {}
        found = Shown(
            name=analysis.name,
            title=analysis.title,
            paper=analysis.paper,
            tables=tuple(tables),
            figures={f"{analysis.name}{ending}.svg": text for ending, text in figures.items() if text},
            skipped=tuple(request["skipped"]),
        )
        shown.append(_written(store, found))
    return shown


def show_all(store: Store) -> list[Shown]:
    """The same for every analysis that was ever asked for here, with the settings it was asked with."""
    analyses = []
    for name, kind in ANALYSES.items():
        request = request_in(store, name)
        if request is not None:
            analyses.append(kind(names.fill(kind.Settings, request["settings"], f"results/analyses/{name}")))
    return show(store, analyses)


def _written(store: Store, shown: Shown) -> Shown:
    files: dict[Path, str] = {}
    for table in shown.tables:
        for suffix, text in (("md", table.markdown), ("csv", table.csv), ("tex", table.latex)):
            files[store.folder / "tables" / f"analysis_{table.name}.{suffix}"] = text
    for name, text in shown.figures.items():
        files[store.folder / "figures" / name] = text
    for file, text in files.items():
        with writing(file.parent):
            file.parent.mkdir(exist_ok=True)
        write_bytes(file, text.encode())
    return Shown(**{**vars(shown), "paths": tuple(files)})


def _skipped(skipped: Sequence[Mapping[str, str]]) -> str:
    if not skipped:
        return ""
    lines = [f"- {entry['label']} on {entry['dataset']}: {entry['reason']}" for entry in skipped]
    return "\n".join(["## Skipped", "", *lines]) + "\n"
