"""Stored trials in the real format, without training: how many samples each epoch gets right is given."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.api import Action, EncoderSpec, EpochRecord, SiteRecord
from bench.plan import PartSpec, TrialSpec
from bench.recipes import RECIPES
from bench.scoring import Truth
from bench.store import Store, npz
from bench.sweep import scores_of

NUM_CLASSES, SAMPLES = 4, 20
COST = {
    "params": 2_000_000,
    "trainable": 1_999_000,
    "probe_params": 1_000,
    "thop_gmacs": 0.25,
    "thop_params": 1_900_000,
    "true_gflops": 0.625,
    "executed_gflops": 0.5,
}
STARTED = 1_700_000_000.0


def truth() -> Truth:
    """Twenty samples of four classes in every split."""
    target = np.arange(SAMPLES) % NUM_CLASSES
    return Truth({"train": np.tile(target, 4), "val": target, "test": target}, "classes", "accuracy")


def logits(right: int) -> np.ndarray:
    """Logits [sample, class] that get the first `right` samples of a split right, and the rest wrong."""
    target = np.arange(SAMPLES) % NUM_CLASSES
    predicted = np.where(np.arange(SAMPLES) < right, target, (target + 1) % NUM_CLASSES)
    return np.eye(NUM_CLASSES, dtype=np.float32)[predicted] * 4


def spec(method: str = "concat", seed: int = 0, fold: int = 0, **changes: Any) -> TrialSpec:
    """A trial's specification; `fusion+strategy` becomes its parts."""
    fusion, *strategies = method.split("+")
    encoder = EncoderSpec("vector", dim=8)
    made = TrialSpec(
        method=method,
        data="planted",
        fusion=PartSpec(fusion, {"heads": 1}, "c0de"),
        strategies=tuple(PartSpec(name, {"rho": 1.0, "beta": 0.3}, "c0de") for name in strategies),
        dataset=PartSpec("planted", {"preset": "collapse"}, "c0de"),
        fingerprint="f1f1f1f1f1f1f1f1",
        split="honest",
        fold=fold,
        split_hash=f"5b117{fold:011d}",
        num_train=4 * SAMPLES,
        encoders={"audio": encoder, "visual": encoder},
        weights={},
        recipe=dataclasses.replace(RECIPES["small"], epochs=3),
        seed=seed,
    )
    return dataclasses.replace(made, **changes)


def store_trial(
    store: Store,
    trial: TrialSpec,
    val: Sequence[int] = (4, 10, 8),
    test: Sequence[int] = (6, 12, 14),
    unimodal: Mapping[str, int] | None = None,
    site: bool = False,
    cost: Mapping[str, float] | None = None,
) -> str:
    """Store a finished trial whose epochs get so many of twenty samples right; returns its id."""
    unimodal = {"audio": 10, "visual": 5} if unimodal is None else unimodal
    outputs: list[dict[str, np.ndarray]] = []
    for of_val, of_test in zip(val, test, strict=True):
        arrays = {"val/logits": logits(of_val), "test/logits": logits(of_test)}
        arrays |= {f"test/unimodal/{m}": logits(right) for m, right in unimodal.items()}
        if site:
            arrays |= {"test/mass/audio": np.full(SAMPLES, 0.75), "test/mass/visual": np.full(SAMPLES, 0.25)}
        outputs.append(arrays)
    of_splits, best = truth(), int(np.argmax(val))
    scores = scores_of(of_splits, [of_splits.score("val", o["val/logits"]) for o in outputs], outputs, best)
    record = {
        "id": trial.id,
        "method": trial.method,
        "data": trial.data,
        "seed": trial.seed,
        "fold": trial.fold,
        "selected_epoch": best,
        "started": STARTED + trial.seed,
        "finished": STARTED + trial.seed + 30,
        "seconds": 30.0,
        "train_seconds": 0.24,
        "steps": 6,
        "trained_epochs": len(val),
        "device": "x86_64 CPU",
        "threads": 1,
        "versions": {"python": "3.11", "torch": "2.15.0", "numpy": "2.4.6", "bench": "0"},
        "commit": None,
        "cost": dict(COST if cost is None else cost),
        "data_fingerprint": trial.fingerprint,
        "split_hash": trial.split_hash,
        "split_sizes": {name: len(target) for name, target in of_splits.targets.items()},
        "metric": "accuracy",
        "kind": "classes",
        "modalities": ["audio", "visual"],
        "segments": ["0" * 24] * len(val),
        "epochs": [dataclasses.asdict(_epoch(epoch, site)) for epoch in range(len(val))],
    }
    files = {"spec.json": trial.to_json(), "record.json": record, "scores.json": scores}
    stacked = {split: np.stack([o[f"{split}/logits"] for o in outputs]) for split in ("val", "test")}
    store.write_trial(
        trial.id,
        {**{name: json.dumps(values).encode() for name, values in files.items()}, "logits.npz": npz(stacked)},
    )
    return trial.id


def request(rows: Sequence[tuple[str, Sequence[Sequence[TrialSpec]]]], **changes: Any) -> dict[str, Any]:
    """What was asked for, in the format of `bench.sweep.request_of`: labels with the trials of each group."""
    made = [
        {
            "label": label,
            "method": groups[0][0].method,
            "dataset_label": "planted",
            "dataset": groups[0][0].data,
            "protocol": groups[0][0].split,
            "metric": "accuracy",
            "derived": label if label == "ensemble" else None,
            "groups": [{"fold": g[0].fold, "seed": g[0].seed, "trials": [one.id for one in g]} for g in groups],
        }
        for label, groups in rows
    ]
    return {"id": "5eed5eed5eed5eed", "rows": made, "skipped": [], **changes}


def _epoch(epoch: int, site: bool) -> EpochRecord:
    cosines = {"audio": 0.5 + 0.1 * epoch, "visual": 0.25}
    mass = {"audio": 0.7, "visual": 0.3}
    half = {"audio": 0.5, "visual": 0.5}
    measured = SiteRecord(cosines, mass, half, {"audio": 2.0, "visual": 1.0}, 0.1, 3.0, 0, cosines)
    rotates = (Action("rollingq", "rotate", {"site": "attention"}),) if site and epoch == 1 else ()
    return EpochRecord(
        epoch=epoch,
        losses={"joint": 1.0 / (epoch + 1), "probe/audio": 1.5},
        lr=0.02,
        sites={"attention": measured} if site else {},
        diagnostics={"ogm/coefficient/audio": 0.9},
        steps=2,
        train_seconds=0.08,
        actions=rotates,
    )
