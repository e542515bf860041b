"""Test scores of a row: those stored with its trials, or worked out once from stored logits and kept.

Derived rows, rows whose epoch is chosen on test as the papers did, and what is right sample by sample take targets.
They are kept in `results/derived/`, so that a report needs no data later::

    derived/<hash>.json   the selected epochs and test scores, where the trial itself does not hold them
    derived/<hash>.npz    score [sample] and group [sample] at the selected epoch, for paired tests
    derived/audit-<hash>.json   the test scores under every selection, for the audit of selections
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
from bench.protocols import PROTOCOLS, SELECTIONS, Selection
from bench.report.cell import Samples
from bench.requested import FindTruth
from bench.scoring import Truth
from bench.store import Store, npz, read_json, write_bytes, write_json, writing


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
        self._truths: dict[tuple[str, str, int], Truth | None] = {}

    def scored(self, row: Mapping[str, Any], trials: Sequence[Trial]) -> Scored | None:
        """Test scores and samples, or None if the scores take targets and there are none."""
        protocol = PROTOCOLS[row["protocol"]]
        stored = trials[0].scores.get("test") if protocol.selection == "val-best" and not row["derived"] else None
        what = {**_identity(row, trials), "protocol": protocol.name, "version": protocol.version}
        digest = _digest(what)
        scores_file, samples_file = (self.folder / f"{digest}.{suffix}" for suffix in ("json", "npz"))
        test = stored or (read_json(scores_file)["test"] if scores_file.is_file() else None)
        samples = _read(samples_file)
        if test is not None and samples is not None:
            return Scored(test, samples)
        truth = self._truth(trials[0])
        if truth is None or (test is not None and not _has_samples(truth)):
            return None if test is None else Scored(test, samples)
        chosen = [self._selected(protocol.selection, trial, truth) for trial in trials]
        epochs, logits = [epoch for epoch, _ in chosen], [of_test for _, of_test in chosen]
        combined = _combined(row["derived"], logits, truth) if row["derived"] else logits[0]
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        if test is None:
            test = truth.score("test", combined)
            write_json(scores_file, {**what, "method": row["method"], "selected_epochs": epochs, "test": test})
        samples = _samples(truth, combined)
        if samples is not None:
            write_bytes(samples_file, npz({"score": samples.score, "group": samples.group}))
        return Scored(test, samples)

    def by_selection(self, row: Mapping[str, Any], trials: Sequence[Trial]) -> Mapping[Selection, float | None] | None:
        """The metric on test with each part's epoch chosen by every rule; None if that takes targets that are not here.

        Without val there is no val-best. From the stored logits of every epoch, and kept.
        """
        what = {**_identity(row, trials), "selections": list(SELECTIONS)}
        file = self.folder / f"audit-{_digest(what)}.json"
        if file.is_file():
            kept: dict[Selection, float | None] = read_json(file)["test"]
            return kept
        truth = self._truth(trials[0])
        if truth is None:
            return None
        no_val = len(truth.targets["val"]) == 0
        found: dict[Selection, float | None] = {}
        for rule in SELECTIONS:
            if rule == "val-best" and no_val:
                found[rule] = None
                continue
            logits = [self._selected(rule, trial, truth)[1] for trial in trials]
            combined = _combined(row["derived"], logits, truth) if row["derived"] else logits[0]
            found[rule] = truth.score("test", combined)[truth.metric]
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        write_json(file, {**what, "method": row["method"], "test": found})
        return found

    def _selected(self, rule: Selection, trial: Trial, truth: Truth) -> tuple[int, np.ndarray]:
        """The epoch that a rule chooses, and the logits [sample, outputs] it wrote for test."""
        by_split = self.store.arrays(trial.record["id"], "logits.npz")  # split -> [epoch, sample, outputs]
        logits = by_split["test"]
        if rule == "test-best":
            epoch = scoring.best([truth.score("test", one)[truth.metric] for one in logits], truth.metric)
        elif rule == "val-best" and "val" in by_split:
            epoch = truth.best_epoch(list(by_split["val"]))
        else:
            epoch = len(logits) - 1
        return epoch, logits[epoch]

    def _truth(self, trial: Trial) -> Truth | None:
        key = (trial.spec["fingerprint"], trial.spec["split"], trial.spec["fold"])
        if key not in self._truths:
            self._truths[key] = None if self.truths is None else self.truths(trial.spec)
        return self._truths[key]


def _identity(row: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, Any]:
    """What every score of these trials depends on."""
    return {
        # The time tells a trial from the same one trained again elsewhere.
        "trials": [[trial.record["id"], trial.record["finished"]] for trial in trials],
        "derived": row["derived"],
        "code": names.resolve_part("methods", row["derived"], {}).code if row["derived"] else None,
    }


def _digest(what: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


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
