"""What was asked for, as plain values from which tables are made; and the targets behind what is stored."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import protocols
from bench.api import DataError
from bench.data.prepared import Prepared
from bench.data.selection import Selected
from bench.plan import Plan
from bench.scoring import Truth
from bench.store import Store

FindTruth = Callable[[Mapping[str, Any]], Truth | None]
"""From a trial's spec (as plain values) to its targets, or None where the data is not at hand."""


def request_of(plan: Plan) -> dict[str, Any]:
    """A plan as plain values: rows in the user's order with the ids of their trials."""
    rows = [
        {
            "label": row.label,
            "method": row.method,
            "dataset_label": row.dataset_label,
            "dataset": row.dataset,
            "protocol": row.protocol,
            "metric": row.metric,
            "derived": row.derived,
            "groups": [
                {"fold": group[0].fold, "seed": group[0].seed, "trials": [spec.id for spec in group]}
                for group in row.groups
            ],
            **({} if row.tuned is None else {"tuned": dict(row.tuned)}),
        }
        for row in plan.rows
    ]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    return {"id": digest, "rows": rows, "skipped": [dataclasses.asdict(s) for s in plan.skipped]}


def request_of_stored(store: Store) -> dict[str, Any]:
    """A request for every finished trial, for a folder that trials were copied into from elsewhere."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for trial in store.finished():
        spec, record = (store.read(trial, f"{name}.json") for name in ("spec", "record"))
        row = rows.setdefault(
            (spec["data"], spec["method"], spec["split"]),
            {
                "label": spec["method"],
                "method": spec["method"],
                "dataset_label": spec["data"],
                "dataset": spec["data"],
                "protocol": protocols.of_split(spec["split"]).name,
                "metric": record["metric"],
                "derived": None,
                "groups": [],
            },
        )
        row["groups"].append({"fold": spec["fold"], "seed": spec["seed"], "trials": [trial]})
    for row in rows.values():
        row["groups"].sort(key=lambda group: (group["fold"], group["seed"]))
    ordered = [rows[key] for key in sorted(rows)]
    return {"id": "stored", "rows": ordered, "skipped": []}


def truths(datasets: Sequence[Selected]) -> FindTruth:
    """The targets of data sets that are selected."""
    prepared = {selected.prepared.fingerprint: selected.prepared for selected in datasets}
    return lambda spec: _truth(prepared.get(spec["fingerprint"]), spec)


def truths_of_stored(folder: Path) -> FindTruth:
    """The targets of whatever is prepared in a folder."""
    found: dict[str, Prepared] = {}
    for manifest in folder.glob("*/manifest.json"):
        with contextlib.suppress(DataError):
            prepared = Prepared.open(manifest.parent)
            found[prepared.fingerprint] = prepared
    return lambda spec: _truth(found.get(spec["fingerprint"]), spec)


def _truth(prepared: Prepared | None, spec: Mapping[str, Any]) -> Truth | None:
    return None if prepared is None else Truth.of(prepared, spec["split"], spec["fold"])
