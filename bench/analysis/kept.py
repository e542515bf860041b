"""Measurements kept by trial, analysis, settings and code, so that each is made once.

::

    results/analyses/<name>/
      <trial>-<hash>.json   values, behind a checksum; written last
      <trial>-<hash>.npz    arrays
      request.json          the rows that were asked for last: tables are made again from here
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench import plugins
from bench.analysis import changes, loaded
from bench.analysis.contract import Analysis, Answer, Measurement, Row
from bench.plan import Plan
from bench.requested import request_of
from bench.stats import Sizes
from bench.store import Store, npz, read_json, read_sealed, write_bytes, write_json, write_sealed, writing

_PRESENTING = frozenset({"bench.analysis.contract", "bench.analysis.layout"})
"""Modules that only arrange what was measured: a change there makes no measurement stale."""


class Kept:
    """The measurements of one analysis with its settings, as its code is now."""

    def __init__(self, store: Store, analysis: Analysis) -> None:
        self.store, self.analysis = store, analysis
        self.folder = store.folder / "analyses" / analysis.name
        self.settings = dataclasses.asdict(analysis.settings)
        self.code = code_of(type(analysis))

    def read(self, trial: str) -> Measurement | None:
        """What was measured on a finished trial; None if it was not, or by other code or settings."""
        file = self._file(trial)
        content = read_sealed(file)
        if content is None:
            return None
        arrays: dict[str, np.ndarray] = {}
        try:
            if content["arrays"]:
                with np.load(file.with_suffix(".npz"), allow_pickle=False) as stored:
                    arrays = {key: stored[key] for key in stored.files}
        except (OSError, ValueError):
            return None
        return Measurement(content["values"], arrays)

    def has(self, trial: str) -> bool:
        """Whether `read` has something to give."""
        return self.read(trial) is not None

    def write(self, trial: str, measured: Measurement, seconds: float) -> None:
        """Keep a measurement. Raises ValueError if a value is no plain finite one."""
        file = self._file(trial)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if measured.arrays:
            write_bytes(file.with_suffix(".npz"), npz(measured.arrays))
        content = {
            "analysis": self.analysis.name,
            "trial": trial,
            "settings": self.settings,
            "code": self.code,
            "seconds": seconds,
            "arrays": sorted(measured.arrays),
            "values": measured.values,
        }
        write_sealed(file, content)

    def write_request(self, plan: Plan, skipped: list[dict[str, str]]) -> None:
        """Keep what was asked for, so that the tables can be made again."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in request_of(plan)["rows"] if row["derived"] is None]
        refused = {(entry["label"], entry["dataset"]) for entry in skipped}
        rows = [row for row in rows if (row["label"], row["dataset_label"]) not in refused]
        write_json(self.folder / "request.json", {"settings": self.settings, "rows": rows, "skipped": skipped})

    def rows(self, request: Mapping[str, Any]) -> list[Row]:
        """The rows of a request that have been measured at least once."""
        rows = (self._row(row) for row in request["rows"])
        return [row for row in rows if row.answers]

    def _row(self, row: Mapping[str, Any]) -> Row:
        answers, sizes, modalities = [], [], ()
        for group in row["groups"]:
            (trial,) = group["trials"]
            measured = self.read(trial) if self.store.has(trial) else None
            if measured is not None:
                record = self.store.read(trial, "record.json")
                answers.append(Answer(trial, group["fold"], group["seed"], measured, record["epochs"]))
                sizes.append((record["split_sizes"]["train"], record["split_sizes"]["test"]))
                modalities = tuple(record["modalities"])
        means = [round(float(x)) for x in np.mean(sizes, axis=0)] if sizes else []
        return Row(
            label=row["label"],
            method=row["method"],
            dataset=row["dataset"],
            protocol=row["protocol"],
            metric=row["metric"],
            modalities=modalities,
            answers=tuple(answers),
            wanted=len(row["groups"]),
            sizes=Sizes(*means) if means else None,
        )

    def _file(self, trial: str) -> Path:
        # The time tells a trial from the same one trained again elsewhere.
        finished = self.store.read(trial, "record.json")["finished"]
        what = [trial, finished, self.settings, self.code]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{trial}-{digest[:12]}.json"


def request_in(store: Store, name: str) -> dict[str, Any] | None:
    """The rows an analysis was last asked for; None if it never was."""
    file = store.folder / "analyses" / name / "request.json"
    return read_json(file) if file.is_file() else None


@cache
def code_of(kind: type[Analysis]) -> str:
    """A hash of what an analysis computes with: its file, those it imports from this package, and the shared ones."""
    found: set[str] = set()
    waiting = [kind.__module__, loaded.__name__, changes.__name__]
    while waiting:
        name = waiting.pop()
        if name not in found | _PRESENTING:
            found.add(name)
            waiting += _own_imports(sys.modules[name])
    hashes = "".join(plugins.code_hash(sys.modules[name]) for name in sorted(found))
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def _own_imports(module: ModuleType) -> list[str]:
    """The modules of this package that a module takes, or takes anything from."""
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    taken = [name for node in nodes if isinstance(node, ast.ImportFrom) for name in _taken(node)]
    return [name for name in taken if name.startswith("bench.analysis.")]


def _taken(node: ast.ImportFrom) -> list[str]:
    whole = node.module == "bench.analysis"  # from bench.analysis import changes
    return [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module or ""]
