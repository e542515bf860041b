"""Cells to tables: Markdown and LaTeX to read, CSV to compute with.

One section per data set, protocol, recipe and effective split: what cannot be compared is never in one section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.report.collect import PERCENT, SELECTION, Cell

NAMES = {"accuracy": "Accuracy (%)", "macro_f1": "Macro-F1 (%)", "mae": "MAE", "pearson": "Pearson"}

_TEXT = frozenset({"Method", "Canonical name", "Note"})
"""Columns that hold words."""

_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "±": r"$\pm$"}


@dataclass(frozen=True, eq=False)
class Section:
    """Rows that can be compared, as texts."""

    title: str
    caption: str
    frame: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Table:
    """One table: sections to read and unrounded values to compute with."""

    name: str
    title: str
    sections: tuple[Section, ...]
    values: pd.DataFrame

    @property
    def markdown(self) -> str:
        """The table as GitHub Markdown."""
        parts = [f"# {self.title}"]
        for section in self.sections:
            shown = [[_markdown(text) for text in row] for row in section.frame.itertuples(index=False)]
            headers = [_markdown(name) for name in section.frame.columns]
            aligned = ["left" if name in _TEXT else "right" for name in headers]
            grid = tabulate(shown, headers=headers, tablefmt="github", disable_numparse=True, colalign=aligned)
            parts += [f"## {_markdown(section.title)}", grid if shown else "No rows.", section.caption]
        return "\n\n".join(parts) + "\n"

    @property
    def latex(self) -> str:
        """The table as LaTeX with booktabs, one tabular per section."""
        return "\n".join(_latex(section) for section in self.sections)

    @property
    def csv(self) -> str:
        """All rows of all sections, unrounded, with a header."""
        return self.values.to_csv(index=False)


def tables(cells: Sequence[Cell]) -> dict[str, Table]:
    """The accuracy table, the cost table and the one table a paper shows, by name."""
    sections = _sections(cells)
    return {
        "accuracy": Table(
            "accuracy",
            "Accuracy",
            tuple(_section(part, _accuracy_texts(part), _ACCURACY_NOTE) for part in sections),
            pd.DataFrame([_accuracy_values(cell) for cell in cells]),
        ),
        "cost": Table(
            "cost",
            "Cost",
            tuple(_section(part, [_cost_texts(cell) for cell in part], _COST_NOTE) for part in sections),
            pd.DataFrame([_cost_values(cell) for cell in cells]),
        ),
        "paper": Table(
            "paper",
            "Accuracy and cost",
            tuple(_section(part, [_paper_texts(cell) for cell in part], _PAPER_NOTE) for part in sections),
            pd.DataFrame([_paper_values(cell) for cell in cells]),
        ),
    }


_ACCURACY_NOTE = (
    "Modality columns: accuracy of each modality's own logits (a detached probe where the fusion has no head). "
    "AIR on train, attention mass on test, both at the stored epoch."
)
_COST_NOTE = (
    "Per sample but for GFLOPs as published: thop's GMACs x 128, what papers print for a batch of 64. True GFLOPs by "
    "torch's counter, full attention; executed GFLOPs of the form that ran. Derived rows: the sum of their parts."
)
_PAPER_NOTE = "Parameters: all of the model, probes included. GFLOPs as papers print them: thop's GMACs x 128."


def _sections(cells: Sequence[Cell]) -> list[list[Cell]]:
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


def _comparable(a: Cell, b: Cell) -> bool:
    if (a.dataset, a.protocol, a.metric) != (b.dataset, b.protocol, b.metric):
        return False
    if not a.splits or not b.splits:
        return True
    same_split = all(a.splits[fold] == b.splits[fold] for fold in a.splits.keys() & b.splits.keys())
    return same_split and (a.recipe, a.data_fingerprint) == (b.recipe, b.data_fingerprint)


def _section(cells: Sequence[Cell], texts: Sequence[Mapping[str, str]], note: str) -> Section:
    first = next((cell for cell in cells if cell.splits), cells[0])
    seeds = sorted({seed for cell in cells for seed in cell.seeds})
    splits = {fold: split for cell in cells for fold, split in cell.splits.items()}
    hashes = ", ".join(f"fold {fold}: {split}" for fold, split in sorted(splits.items()))
    facts = [
        f"Protocol {first.protocol} ({SELECTION[first.protocol]})",
        f"{NAMES[first.metric]}: mean with its 95 % interval over {_interval_over(cells)}",
        f"Seeds {_listed(seeds)}; folds {_listed(sorted(splits))}; effective split {hashes or 'none yet'}",
        f"Recipe {first.recipe or 'none yet'}",
    ]
    return Section(f"{first.dataset} ({first.protocol})", ". ".join([*facts, note]), pd.DataFrame(list(texts)))


def _interval_over(cells: Sequence[Cell]) -> str:
    if any(cell.n_folds > 1 for cell in cells):
        return "folds (Nadeau-Bengio's corrected t; the seeds of a fold averaged)"
    return "seeds (Student's t)"


def _accuracy_texts(cells: Sequence[Cell]) -> list[dict[str, str]]:
    metric = NAMES[cells[0].metric]
    alone = _keys([cell.unimodal for cell in cells])
    masses = _keys([cell.attention_mass for cell in cells])
    site = any(cell.air is not None for cell in cells)
    f1 = any(cell.macro_f1 is not None for cell in cells)
    noted = any(cell.note for cell in cells)
    return [
        {
            "Method": cell.label,
            "Canonical name": cell.method,
            metric: _score(cell, cell.mean),
            "95 % interval": _bounds(cell),
            "Seeds": str(cell.n_seeds),
            "Folds": str(cell.n_folds),
        }
        | ({NAMES["macro_f1"]: _number(cell.macro_f1, 1)} if f1 else {})
        | {m: _score(cell, cell.unimodal.get(m)) for m in alone}
        | ({"AIR": _number(cell.air, 2)} if site else {})
        | {f"mass {m}": _number(cell.attention_mass.get(m), 2) for m in masses}
        | ({"Note": cell.note} if noted else {})
        for cell in cells
    ]


def _accuracy_values(cell: Cell) -> dict[str, Any]:
    return {
        **_identity(cell),
        "mean": cell.mean,
        "low": cell.low,
        "high": cell.high,
        "n_seeds": cell.n_seeds,
        "n_folds": cell.n_folds,
        "macro_f1": cell.macro_f1,
        **{f"{cell.metric}_{m}": value for m, value in cell.unimodal.items()},
        "air": cell.air,
        **{f"attention_mass_{m}": value for m, value in cell.attention_mass.items()},
        "recipe": cell.recipe,
        "split": " ".join(f"{fold}:{split}" for fold, split in sorted(cell.splits.items())),
        "note": cell.note,
    }


def _cost_texts(cell: Cell) -> dict[str, str]:
    cost = cell.cost
    return {
        "Method": cell.label,
        "Parameters (M)": _millions(cost.get("params")),
        "Trainable (M)": _millions(cost.get("trainable")),
        "thop parameters (M)": _millions(cost.get("thop_params")),
        "GFLOPs as published": _amount(cost.get("published_gflops")),
        "thop GMACs": _amount(cost.get("thop_gmacs")),
        "True GFLOPs": _amount(cost.get("true_gflops")),
        "Executed GFLOPs": _amount(cost.get("executed_gflops")),
        "Step (ms)": _number(cost.get("step_ms"), 1),
    }


def _cost_values(cell: Cell) -> dict[str, Any]:
    names = ("params", "trainable", "probe_params", "thop_params", "published_gflops", "thop_gmacs", "true_gflops")
    return {**_identity(cell), **{n: cell.cost.get(n) for n in (*names, "executed_gflops", "step_ms")}}


def _paper_texts(cell: Cell) -> dict[str, str]:
    bounds = _bounds(cell)
    return {
        "Method": cell.label,
        NAMES[cell.metric]: f"{_score(cell, cell.mean)} {bounds}" if bounds else _score(cell, cell.mean),
        "Parameters (M)": _millions(cell.cost.get("params")),
        "GFLOPs": _amount(cell.cost.get("published_gflops")),
    }


def _paper_values(cell: Cell) -> dict[str, Any]:
    cost = {"params": cell.cost.get("params"), "published_gflops": cell.cost.get("published_gflops")}
    return {**_identity(cell), "mean": cell.mean, "low": cell.low, "high": cell.high, **cost}


def _identity(cell: Cell) -> dict[str, str]:
    return {
        "dataset": cell.dataset,
        "protocol": cell.protocol,
        "label": cell.label,
        "method": cell.method,
        "metric": cell.metric,
    }


def _keys(each: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for one in each for name in one))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(n) for n in numbers) or "none yet"


def _score(cell: Cell, value: float | None) -> str:
    return _number(value, 1 if cell.metric in PERCENT else 3)


def _bounds(cell: Cell) -> str:
    if cell.low is None or cell.high is None:
        return ""
    return f"[{_score(cell, cell.low)}, {_score(cell, cell.high)}]"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _millions(value: float | None) -> str:
    return "" if value is None else _amount(value / 1e6)


def _amount(value: float | None) -> str:
    """Two decimals, as papers print, or three significant digits of what is below one."""
    return "" if value is None else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _markdown(text: str) -> str:
    return str(text).replace("|", r"\|").replace("\n", " ")


def _latex(section: Section) -> str:
    columns = list(section.frame.columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(section.title)}. {_escaped(section.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        " & ".join(_escaped(name) for name in columns) + r" \\",
        r"\midrule",
        *(" & ".join(_escaped(text) for text in row) + r" \\" for row in section.frame.itertuples(index=False)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in str(text))
