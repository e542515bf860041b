"""How much faster data are prepared by one process per core than by one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import names
from bench.data.prepared import prepare
from benchmarks.clips import write_clips
from benchmarks.measured import Measured

CLIPS = 768


def run() -> Iterator[Measured]:
    """The ratio of the times from the first chunk that is stored to the last: a process takes seconds to start."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as scratch:
        root = Path(scratch)
        write_clips(root, CLIPS)
        rates, wall = {}, {}
        for workers in (1, cores):
            rates[workers], wall[workers] = _rate(root, workers)
    detail = {
        "cores": cores,
        **{f"items/s by {workers}": round(rate, 1) for workers, rate in rates.items()},
        **{f"s in all by {workers}": round(seconds, 1) for workers, seconds in wall.items()},
    }
    yield Measured("preparing CREMA-D's files", rates[cores] / rates[1], 0.9 * cores, "at least", "x faster", detail)


def _rate(root: Path, workers: int) -> tuple[float, float]:
    """Items per second once all processes work, and the seconds it took in all."""
    part, dataset = names.resolve_dataset("crema_d", {})
    seen: list[tuple[float, int]] = []
    started = time.perf_counter()

    def progress(done: int, total: int) -> None:
        del total
        seen.append((time.perf_counter(), done))

    with tempfile.TemporaryDirectory(prefix="bench-prepared-") as store:
        prepare("crema_d", dataset, part.code, root, Path(store), workers=workers, progress=progress)
    whole = time.perf_counter() - started
    # By then every process has stored something.
    first, last = seen[min(len(seen) - 2, 2 * workers)], seen[-1]
    return (last[1] - first[1]) / (last[0] - first[0]), whole
