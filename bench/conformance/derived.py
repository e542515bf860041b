"""Contract tests of a derived row."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import names
from bench.api import Derived, Kind
from bench.composition import refuse_illegal
from bench.conformance import running
from bench.conformance.findings import Check, expect
from bench.conformance.world import THREE, TWO

SAMPLES, CLASSES = 12, 3


def checks(kind: type[Derived], settings: Any) -> list[Check]:
    """Everything a derived row has to keep."""
    return [
        Check("documented", lambda: running.documented(kind)),
        Check("parts are trained methods", lambda: parts(kind, settings)),
        Check("combines sample by sample", lambda: combines(kind, settings)),
    ]


def parts(kind: type[Derived], settings: Any) -> None:
    """Its parts are legal methods for two and three modalities, and none is itself derived."""
    for modalities in (TWO, THREE):
        texts = kind(settings).parts(modalities)
        expect(bool(texts), f"parts({modalities}) is empty; expected at least one method")
        for text in texts:
            method = names.resolve_method(text, modalities)
            refuse_illegal(method)
            expect(not method.derived, f"part {text!r} is itself derived; expected a method that is trained")


def combines(kind: type[Derived], settings: Any) -> None:
    """Finite float32 logits, equal when made twice, of each sample alone, without changing what they are made from."""
    tasks: tuple[tuple[Kind, int], ...] = (("classes", CLASSES), ("regression", 1))
    for task, outputs in tasks:
        for modalities in (TWO, THREE):
            rng = np.random.default_rng(0)
            shape = (SAMPLES, outputs)
            given = [rng.normal(0, 30, shape).astype(np.float32) for _ in kind(settings).parts(modalities)]
            kept = [logits.copy() for logits in given]
            row = kind(settings)
            made = row.combine(given, task)
            where = f"combine({task}, {len(given)} parts)"
            expect(made.shape == shape, f"{where}: expected shape {shape}, found {made.shape}")
            expect(made.dtype == np.float32, f"{where}: expected float32, found {made.dtype}")
            expect(bool(np.isfinite(made).all()), f"{where}: not all values are finite")
            expect(all(map(np.array_equal, given, kept)), f"{where}: changes the logits of its parts in place")
            expect(np.array_equal(row.combine(given, task), made), f"{where}: gives something else a second time")
            alone = np.concatenate([row.combine([g[i : i + 1] for g in given], task) for i in range(SAMPLES)])
            expect(bool(np.allclose(alone, made, atol=1e-5)), f"{where}: a sample's logits depend on other samples")
