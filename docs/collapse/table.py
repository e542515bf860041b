"""AIR, attention mass and accuracy over epochs, from stored trials: `python docs/collapse/table.py RESULTS`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.report.build import build
from bench.store import Store

EPOCHS = (0, 1, 2, 3, 5, 9, 14, 19, 24, 29)


def lines(store: Store) -> Iterator[str]:
    """The accuracy table of the latest run, then one table of means over seeds per method with a site."""
    request = store.latest_sweep()
    if request is None:
        raise SystemExit(f"{store.folder}: nothing was run here")
    yield build(store, request).tables["accuracy"].markdown
    records: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in request["rows"]:
        for group in row["groups"]:
            records[row["label"]] += [store.read(trial, "record.json") for trial in group["trials"]]
    for label, each in records.items():
        if each[0]["epochs"][0]["sites"]:
            yield from _over_epochs(label, each)


def _over_epochs(label: str, records: Sequence[dict[str, Any]]) -> Iterator[str]:
    modalities = records[0]["modalities"]
    yield f"\n### {label}, mean over {len(records)} seeds\n"
    yield "| epoch | AIR | " + " | ".join(f"mass {m}" for m in modalities) + " | rotations |"
    yield "|---" * (len(modalities) + 3) + "|"
    for epoch in (e for e in EPOCHS if e < len(records[0]["epochs"])):
        sites = [next(iter(r["epochs"][epoch]["sites"].values())) for r in records]
        air = mean(s["cosines"][modalities[0]] - s["cosines"][modalities[1]] for s in sites)
        mass = " | ".join(f"{mean(s['mass'][m] for s in sites):.2f}" for m in modalities)
        yield f"| {epoch} | {air:+.2f} | {mass} | {mean(s['num_rotations'] for s in sites):.1f} |"
    taken = [f"{e['epoch']}" for r in records for e in r["epochs"] if e["actions"]]
    yield f"\nRotated after epoch: {', '.join(taken) or 'never'}."


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines(Store(Path(sys.argv[1])))) + "\n")
