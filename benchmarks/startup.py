"""How long `bench --help` takes to answer, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bench
from benchmarks.measured import Measured

REPETITIONS = 9


def run() -> Iterator[Measured]:
    """The median of several calls with compiled files, and the fastest."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    source = Path(bench.__file__).parent / "errors.py"
    compiled = Path(importlib.util.cache_from_source(str(source))).is_file()
    command = [sys.executable, "-c", "from bench.cli import main; main()", "--help"]
    taken = []
    before = 0.0
    for repetition in range(REPETITIONS + 1):
        started = time.perf_counter()
        subprocess.run(command, env=environment, capture_output=True, check=True)
        if repetition:  # the first one compiles
            taken.append(time.perf_counter() - started)
        else:
            before = _processor_seconds()
    seconds = statistics.median(taken)
    detail = {
        "fastest s": round(min(taken), 3),
        "processor s": round((_processor_seconds() - before) / REPETITIONS, 3),
        "compiled files": "were there" if compiled else "were missing, the first call wrote them",
    }
    yield Measured("`bench --help`, median", seconds, 0.3, "at most", "s", detail)


def _processor_seconds() -> float:
    """What all processes started here have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
