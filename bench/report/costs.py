"""What methods cost on a data set's shapes: the rows of `bench cost`. No data is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import names
from bench.api import DataSpec, ModalitySpec
from bench.assembly import build_model, task_of
from bench.config import Config
from bench.cost import inputs_of, measure, spec_of, training_cost
from bench.data.selection import listed
from bench.errors import RequestError
from bench.latency import latency

COLUMNS = {
    "dataset": "data set",
    "label": "method",
    "params_m": "parameters (M)",
    "thop_gmacs": "GMACs (thop)",
    "gflops_published_convention": "GFLOPs (as papers print them)",
    "true_gflops_per_sample": "true GFLOPs/sample",
    "executed_gflops_per_sample": "executed GFLOPs/sample",
    "forwards_per_sample": "forwards/sample",
    "backwards_per_sample": "backwards/sample",
}
"""Field -> heading of the readable table."""


def costs(config: Config, root: Path, measure_latency: bool = False, batch_size: int = 1) -> list[dict[str, Any]]:
    """One row per data set and method, with what did not apply left out with its `reason`.

    With `measure_latency`, forward and step times and peak memory on this machine's CPU for one batch.
    """
    rows = []
    for name in [t for text in config.datasets for t in (listed() if text == "all" else [text])]:
        part, dataset = names.resolve_dataset(name, config.settings)
        data = _with_encoders(dataset.describe(root), config)
        recipe = config.recipe.resolve(dataset.recipe, dataset.epochs)
        for label in _labels(config.methods, data):
            row: dict[str, Any] = {"dataset": part.text, "label": label}
            try:
                spec = spec_of(label, data, recipe=recipe)
            except RequestError as error:
                rows.append(row | {"reason": str(error)})
                continue
            cost, training = measure(spec, data), training_cost(spec, data)
            row |= {
                "method": spec.method,
                "params_m": 1e-6 * cost.params,
                "thop_gmacs": cost.thop_gmacs,
                "gflops_published_convention": cost.published_gflops,
                "true_gflops_per_sample": cost.true_gflops,
                "executed_gflops_per_sample": cost.executed_gflops,
                "forwards_per_sample": training.forwards - training.measuring,
                "backwards_per_sample": training.backwards,
                "shapes": {m: list(s.shape) for m, s in data.modalities.items()},
                "cost": cost.to_json(),
                "training": training.to_json(),
            }
            if measure_latency:
                task = task_of(spec, data)
                measured = latency(build_model(spec, task, data), task, inputs_of(task, data, batch_size))
                row["latency"] = dataclasses.asdict(measured)
            rows.append(row)
    return rows


def _labels(texts: Sequence[str], data: DataSpec) -> list[str]:
    wanted = [t for text in texts for t in (names.all_methods(data.modalities) if text == "all" else [text])]
    return list(dict.fromkeys(wanted))


def _with_encoders(data: DataSpec, config: Config) -> DataSpec:
    """The data set's shapes with the encoders asked for; what weights hold does not change what they cost."""

    def overridden(spec: ModalitySpec) -> ModalitySpec:
        return dataclasses.replace(
            spec, encoder=dataclasses.replace(config.encoder.resolve(spec.encoder), weights="none")
        )

    return dataclasses.replace(data, modalities={m: overridden(s) for m, s in data.modalities.items()})
