"""A measured ratio beside its target, and ways to measure that hold on a machine shared with others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Measured:
    """One figure of a benchmark."""

    what: str
    value: float
    target: float
    bound: Literal["at least", "at most"]
    unit: str = "x"
    detail: Mapping[str, float | str] = field(default_factory=dict)
    """What the value was computed from, and what it may depend on."""

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target


Seconds = Mapping[str, list[float]]
"""Candidate -> processor seconds of every repetition; the n-th of all candidates were taken one after another."""


def interleaved(candidates: Mapping[str, Callable[[], object]], repetitions: int, warmup: int = 1) -> Seconds:
    """Processor time of every candidate, run in turn and in swapped order each time: others hit all of them alike."""
    for _ in range(warmup):
        for run in candidates.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(repetitions):
        order = list(candidates) if repetition % 2 == 0 else list(candidates)[::-1]
        for name in order:
            started = time.process_time()
            candidates[name]()
            seconds[name].append(time.process_time() - started)
    return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    """How many times longer `slow` took: of the fastest repetitions, which others disturbed least."""
    return min(seconds[slow]) / min(seconds[fast])


def spread(seconds: Seconds) -> dict[str, float | str]:
    """The fastest and the median repetition of every candidate, in milliseconds."""
    shown: dict[str, float | str] = {}
    for name, taken in seconds.items():
        shown[f"{name} ms"] = round(1000 * min(taken), 3)
        shown[f"{name} median ms"] = round(1000 * statistics.median(taken), 3)
    return shown
