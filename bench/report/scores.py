"""Test scores of a row: those stored with its trials, or worked out once from stored logits and kept.

Derived rows, rows whose epoch is chosen on test as the papers did, and what is right sample by sample take targets.
They are kept in `results/derived/`, so that a report needs no data later::

    derived/<hash>.json   the selected epochs and test scores, where the trial itself does not hold them
    derived/<hash>.npz    score [sample] and group [sample] at the selected epoch, for paired tests
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import names, scoring
from bench.api import Derived
from bench.report.cell import Samples
from bench.scoring import Truth
from bench.store import Store, npz, read_json, write_bytes, write_json, writing
from bench.sweep import FindTruth


@dataclass(frozen=True)
class Trial:
    """What a report reads of one finished trial."""

    spec: Mapping[str, Any]
    record: Mapping[str, Any]
    scores: Mapping[str, Any]

    @classmethod
    def read(cls, store: Store, trial_id: str) -> Trial:
        """A finished trial of a store."""
        return cls(*(store.read(trial_id, f"{name}.json") for name in ("spec", "record", "scores")))


@dataclass(frozen=True)
class Scored:
    """What is known of a row's test part for one (fold, seed)."""

    test: Mapping[str, float]
    samples: Samples | None


class Scorer:
    """Scores the trials behind a row; `truths` finds targets where their data set is at hand."""

    def __init__(self, store: Store, truths: FindTruth | None) -> None:
        self.store, self.truths = store, truths
        self.folder = store.folder / "derived"

    def scored(self, row: Mapping[str, Any], trials: Sequence[Trial]) -> Scored | None:
        """Test scores and samples, or None if the scores take targets and there are none."""
        stored = None if row["derived"] or row["protocol"] != "honest" else trials[0].scores.get("test")
        what = {
            # The time tells a trial from the same one trained again elsewhere.
            "trials": [[trial.record["id"], trial.record["finished"]] for trial in trials],
            "derived": row["derived"],
            "code": names.resolve_part("methods", row["derived"], {}).code if row["derived"] else None,
            "protocol": row["protocol"],
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        scores_file, samples_file = (self.folder / f"{digest}.{suffix}" for suffix in ("json", "npz"))
        test = stored or (read_json(scores_file)["test"] if scores_file.is_file() else None)
        samples = _read(samples_file)
        if test is not None and samples is not None:
            return Scored(test, samples)
        truth = None if self.truths is None else self.truths(trials[0].spec)
        if truth is None or (test is not None and not _has_samples(truth)):
            return None if test is None else Scored(test, samples)
        epochs, logits = zip(*(self._selected(row, trial, truth) for trial in trials), strict=True)
        combined = _combined(row["derived"], logits, truth) if row["derived"] else logits[0]
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        if test is None:
            test = truth.score("test", combined)
            write_json(scores_file, {**what, "method": row["method"], "selected_epochs": list(epochs), "test": test})
        samples = _samples(truth, combined)
        if samples is not None:
            write_bytes(samples_file, npz({"score": samples.score, "group": samples.group}))
        return Scored(test, samples)

    def _selected(self, row: Mapping[str, Any], trial: Trial, truth: Truth) -> tuple[int, np.ndarray]:
        logits = self.store.arrays(trial.record["id"], "logits.npz")["test"]  # [epoch, sample, outputs]
        if row["protocol"] == "honest":
            epoch = int(trial.record["selected_epoch"])
        else:
            epoch = scoring.best([truth.score("test", one)[truth.metric] for one in logits], truth.metric)
        return epoch, logits[epoch]


def _combined(text: str, logits: Sequence[np.ndarray], truth: Truth) -> np.ndarray:
    part = names.resolve_part("methods", text, {})
    plugin: Derived = part.plugin(part.settings)
    return plugin.combine(logits, truth.kind)


def _has_samples(truth: Truth) -> bool:
    return truth.metric in scoring.SAMPLE_MEANS


def _samples(truth: Truth, logits: np.ndarray) -> Samples | None:
    score = truth.per_sample("test", logits)
    if score is None:
        return None
    groups = truth.groups.get("test", np.arange(len(score)))
    return Samples(score, np.unique(groups, return_inverse=True)[1].astype(np.int32))


def _read(file: Path) -> Samples | None:
    """Samples that were kept; None where there are none that can be read."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as kept:
            return Samples(kept["score"], kept["group"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
