"""Which cells stand in one section, and what its caption says: what cannot be compared is never in one section."""

from __future__ import annotations

from collections.abc import Sequence

from bench.protocols import PROTOCOLS
from bench.report.cell import Cell
from bench.report.layout import listed

NAMES = {"accuracy": "Accuracy (%)", "macro_f1": "Macro-F1 (%)", "mae": "MAE", "pearson": "Pearson"}


def sections(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that can be compared, in order of first appearance; a cell without trials joins its own kind."""
    found: list[list[Cell]] = []
    for cell in sorted(cells, key=lambda cell: not cell.splits):  # those that know their split come first
        home = next((part for part in found if all(_comparable(cell, other) for other in part)), None)
        if home is None:
            found.append([cell])
        else:
            home.append(cell)
    place = {id(cell): i for i, cell in enumerate(cells)}
    parts = [sorted(part, key=lambda cell: place[id(cell)]) for part in found]
    return sorted(parts, key=lambda part: place[id(part[0])])


def mixed(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Data sets and a line for each of their folds in which rows of one protocol have different effective splits."""
    found: dict[tuple[str, str, int], dict[str, list[str]]] = {}
    for cell in cells:
        for fold, split in cell.splits.items():
            found.setdefault((cell.dataset, cell.protocol, fold), {}).setdefault(split, []).append(cell.label)
    return [
        (dataset, f"{dataset} ({protocol}), fold {fold}: {_rows_by(by_split)}")
        for (dataset, protocol, fold), by_split in found.items()
        if len(by_split) > 1 or any(" and " in split for split in by_split)
    ]


def title(cells: Sequence[Cell]) -> str:
    """The data set and the protocol."""
    return f"{cells[0].dataset} ({cells[0].protocol})"


def caption(cells: Sequence[Cell]) -> str:
    """Protocol, metric, seeds, folds, effective split and recipe."""
    first = next((cell for cell in cells if cell.splits), cells[0])
    seeds = sorted({seed for cell in cells for seed in cell.seeds})
    splits = {fold: split for cell in cells for fold, split in cell.splits.items()}
    hashes = ", ".join(f"fold {fold}: {split}" for fold, split in sorted(splits.items()))
    facts = [
        f"Protocol {PROTOCOLS[first.protocol].title} ({PROTOCOLS[first.protocol].about})",
        f"{metric_name(first)}: mean with its 95 % interval over {_interval_over(cells)}",
        f"Seeds {listed(seeds)}; folds {listed(sorted(splits))}; effective split {hashes or 'none yet'}",
        f"Recipe {first.recipe or 'none yet'}",
    ]
    return ". ".join(facts)


def metric_name(cell: Cell) -> str:
    """The metric as a heading."""
    return NAMES.get(cell.metric, cell.metric)


def _rows_by(split: dict[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(labels)}: {name}" for name, labels in split.items())


def _comparable(a: Cell, b: Cell) -> bool:
    if (a.dataset, a.protocol, a.metric) != (b.dataset, b.protocol, b.metric):
        return False
    if not a.splits or not b.splits:
        return True
    same_split = all(a.splits[fold] == b.splits[fold] for fold in a.splits.keys() & b.splits.keys())
    return same_split and (a.recipe, a.data_fingerprint) == (b.recipe, b.data_fingerprint)


def _interval_over(cells: Sequence[Cell]) -> str:
    if any(cell.n_folds > 1 for cell in cells):
        return "folds (Nadeau-Bengio's corrected t; the seeds of a fold averaged)"
    return "seeds (Student's t)"
