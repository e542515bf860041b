"""Runs all benchmarks, or those named, and prints every figure beside its target. Exits with 1 if one is missed."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.measured import Measured

NAMES = ("startup", "overhead", "attention", "steps", "loading", "memory", "prepare")


def main() -> int:
    """Run what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; known: {', '.join(NAMES)}")
    torch.set_num_threads(1)
    found: dict[str, list[Measured]] = {}
    if not given.json:
        print(", ".join(f"{key}: {value}" for key, value in machine().items()), flush=True)
    for name in given.names or NAMES:
        found[name] = []
        for each in importlib.import_module(f"benchmarks.{name}").run():
            found[name].append(each)
            if not given.json:
                print(line(name, each), flush=True)
    if given.json:
        results = [{"benchmark": n, **dataclasses.asdict(m), "met": m.met} for n, each in found.items() for m in each]
        print(json.dumps({"machine": machine(), "results": results}, indent=1))
    return 0 if all(m.met for each in found.values() for m in each) else 1


def line(name: str, measured: Measured) -> str:
    """One figure for people."""
    verdict = "met" if measured.met else "not met"
    detail = ", ".join(f"{key} {value}" for key, value in measured.detail.items())
    value = f"{measured.value:.3g} {measured.unit}, target {measured.bound} {measured.target:g}: {verdict}"
    return f"{name}: {measured.what}: {value}\n    {detail}"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")), "unknown CPU")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    sys.exit(main())
