"""What MLflow is told of trials, sweeps and measurements: names, numbers and times, without MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import bench
from bench.cost import Cost
from bench.trajectory import record_from_json

Point = tuple[str, float, int, int]
"""A metric: name, value, milliseconds, step."""


def sweep_tags(request: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a sweep asked for of one data set."""
    seeds = sorted({group["seed"] for row in rows for group in row["groups"]})
    folds = sorted({group["fold"] for row in rows for group in row["groups"]})
    return {
        "bench.kind": "sweep",
        "bench.sweep_id": request["id"],
        "bench.version": bench.__version__,
        "bench.methods": ",".join(dict.fromkeys(row["label"] for row in rows))[:5000],
        "bench.protocols": ",".join(dict.fromkeys(row["protocol"] for row in rows)),
        "bench.seeds": ",".join(map(str, seeds)),
        "bench.folds": ",".join(map(str, folds)),
    }


def params(spec: Mapping[str, Any]) -> dict[str, str]:
    """Everything a trial was asked to be."""
    parts = [spec["fusion"], *spec["strategies"]]
    values: dict[str, Any] = {
        "method": spec["method"],
        "fusion": spec["fusion"]["name"],
        "strategies": "+".join(part["name"] for part in spec["strategies"]),
        "dataset": spec["data"],
        "seed": spec["seed"],
        "fold": spec["fold"],
        "split": spec["split"],
        "split_hash": spec["split_hash"],
        "data_fingerprint": spec["fingerprint"],
        "recipe": spec["recipe"]["name"],
    }
    values |= {f"recipe.{key}": value for key, value in spec["recipe"].items() if key != "name"}
    for part in (*parts, spec["dataset"]):
        values |= {f"{part['name']}.{key}": value for key, value in part["settings"].items()}
    values |= {f"encoder.{m}": json.dumps(encoder) for m, encoder in spec["encoders"].items()}
    return {key: str(value)[:5000] for key, value in values.items()}


def summary(record: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[Point]:
    """What a trial amounts to, at its selected epoch: name, value, time, step."""
    chosen, ended = record["selected_epoch"], ms(record["finished"])
    values: dict[str, float] = {"selected_epoch": chosen, "train_seconds": record["train_seconds"]}
    for split in ("val", "test"):
        values |= {f"{split}_{metric}": value for metric, value in scores.get(split, {}).items()}
        for m, of_modality in scores.get(f"{split}_unimodal", {}).items():
            values |= {f"{split}_{metric}_{m}": value for metric, value in of_modality.items()}
        values |= {f"{split}_attention_mass_{m}": x for m, x in scores.get(f"{split}_attention_mass", {}).items()}
    values |= _air(record["epochs"][chosen])
    if record["cost"]:
        cost = Cost(**record["cost"])
        values |= {
            "params_m": cost.params / 1e6,
            "gflops_published": cost.published_gflops,
            "true_gflops": cost.true_gflops,
            "executed_gflops": cost.executed_gflops,
        }
    return ((name, float(value), ended, chosen) for name, value in values.items())


def curves(record: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[Point]:
    """What every epoch recorded: name, value, time, step."""
    epochs = record["epochs"]
    for stored, val in zip(epochs, scores["val_by_epoch"], strict=True):
        epoch = record_from_json(stored)
        values: dict[str, float] = {"lr": epoch.lr, **{f"loss/{name}": x for name, x in epoch.losses.items()}}
        values |= {f"val_{metric}": value for metric, value in val.items()}
        values |= _air(stored)
        for name, site in epoch.sites.items():
            prefix = "" if len(epoch.sites) == 1 else f"{name}/"
            values |= {f"{prefix}attention_mass/{m}": x for m, x in site.mass.items()}
            values[f"{prefix}rotations"] = site.num_rotations
        values |= epoch.diagnostics
        share = (epoch.epoch + 1) / len(epochs)
        time = ms(record["started"] + share * (record["finished"] - record["started"]))
        yield from ((f"epoch/{name}", float(value), time, epoch.epoch) for name, value in values.items())


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Values as parameters under a prefix."""
    return {f"{prefix}.{key}": str(value)[:5000] for key, value in values.items()}


def numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Every number of nested values under a name that MLflow takes."""
    found: dict[str, float] = {}
    for key, value in values.items():
        word = re.sub(r"[^\w./ -]", "_", key)
        name = f"{prefix}/{word}"
        if isinstance(value, Mapping):
            found |= numbers(name, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def by_dataset(request: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of a request by data set."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in request["rows"]:
        rows.setdefault(row["dataset"], []).append(row)
    return rows


def trials_of(request: Mapping[str, Any]) -> list[str]:
    """The trials of a request, each once."""
    return list(dict.fromkeys(t for row in request["rows"] for group in row["groups"] for t in group["trials"]))


def _air(epoch: Mapping[str, Any]) -> dict[str, float]:
    """AIR after an epoch, the mean over sites; nothing where there is no site."""
    sites = record_from_json(epoch).sites.values()
    return {"air": float(np.mean([site.air for site in sites]))} if sites else {}


def ms(seconds: float) -> int:
    """Milliseconds."""
    return round(1000 * seconds)
