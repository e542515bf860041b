"""What is unfair or unfinished about a report: the problems `bench report --strict` refuses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from bench import names
from bench.report.cell import UNGUARDED, Cell, split_method
from bench.report.sections import sections, title

LATE_FUSIONS = ("concat", "sum")


def problems(cells: Sequence[Cell]) -> list[str]:
    """One line per problem; none for cells that may be shown as they are."""
    parts = sections(cells)
    return [*_apart(parts), *(f"{title(part)}: {text}" for part in parts for text in _problems(part))]


def _apart(parts: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """Rows of one data set and protocol that cannot be compared."""
    by_title: dict[str, int] = defaultdict(int)
    for part in parts:
        by_title[title(part)] += 1
    for name, count in by_title.items():
        if count > 1:
            yield f"{name}: the rows lie in {count} sections that cannot be compared (split, recipe or data differ)"


def _problems(cells: Sequence[Cell]) -> Iterator[str]:
    for cell in cells:
        if cell.note:
            how = "was not watched" if UNGUARDED in cell.note else "is not finished"
            yield f"{cell.label} {how}: {cell.note}"
    trained = [cell for cell in cells if not cell.derived and cell.values]
    budgets = {cell.label: f"{cell.tuning['trials']} trials, {cell.tuning['epochs']} epochs" for cell in trained}
    if len(set(budgets.values())) > 1:
        yield f"unequal tuning budgets: {_each(budgets)}"
    seeds = {cell.label: _runs(cell) for cell in cells if cell.values}
    if len(set(seeds.values())) > 1:
        yield f"unequal seeds: {_each(seeds)}"
    yield from _missing(cells)


def _missing(cells: Sequence[Cell]) -> Iterator[str]:
    """The simple rows without which no other row means anything."""
    modalities = next((cell.modalities for cell in cells if cell.modalities), ())
    heads = [(names.split_settings(split_method(cell.method)[0]), len(cell.parts)) for cell in cells]
    alone = {
        given.get("modality", modalities[0] if modalities else "")
        for (name, given), count in heads
        if name == "unimodal" and count == 1
    }
    for m in modalities:
        if m not in alone:
            yield f"no row for {m} alone; add {m} to the methods"
    if len(modalities) < 2:
        return
    bare = {name for (name, _), count in heads if count == 1}
    if not bare & set(LATE_FUSIONS):
        yield f"no late fusion; add {' or '.join(LATE_FUSIONS)} to the methods"
    if "ensemble" not in bare:
        yield "no mean of the unimodal rows' probabilities; add ensemble to the methods"


def _runs(cell: Cell) -> str:
    runs = sorted(zip(cell.folds, cell.seeds, strict=True))
    if len(set(cell.folds)) == 1:
        return ", ".join(str(seed) for _, seed in runs)
    return ", ".join(f"{seed} of fold {fold}" for fold, seed in runs)


def _each(values: dict[str, str]) -> str:
    """Labels by their value: `concat, sum: 0, 1, 2; mbt: 0, 1`."""
    by_value: dict[str, list[str]] = defaultdict(list)
    for label, value in values.items():
        by_value[value].append(label)
    return "; ".join(f"{', '.join(labels)}: {value}" for value, labels in by_value.items())
