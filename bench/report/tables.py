"""Cells to tables: accuracy, cost, the one a paper shows, the comparisons behind them, and published values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report.across import across
from bench.report.across import table as across_table
from bench.report.board import Board, board_of
from bench.report.cell import Cell
from bench.report.evidence import comparisons, published_values
from bench.report.layout import Section, Table, amount, bounds, number
from bench.report.published import fates, published
from bench.report.sections import NAMES, caption, metric_name, sections, title
from bench.report.selection import selections

_Texts = Callable[[Sequence[Cell], int, Board], Mapping[str, str]]
_Values = Callable[[Cell, int, Board], Mapping[str, Any]]

_ACCURACY_NOTE = (
    "Modality columns: accuracy of each modality's own logits (a detached probe where the fusion has no head). "
    "AIR on train, attention mass on test, both at the stored epoch"
)
_COST_NOTE = (
    "Per sample but for GFLOPs as published: thop's GMACs x 128, what papers print for a batch of 64. True GFLOPs by "
    "torch's counter, full attention; executed GFLOPs of the form that ran. Forwards and backwards: of a whole "
    "training, per train sample, at most. Tuning: trials and epochs spent to find the row's settings; 0 where they "
    "are the defaults or were typed. Derived rows: the sum of their parts"
)
_PAPER_NOTE = "Parameters: all of the model, probes included. GFLOPs as papers print them: thop's GMACs x 128"


def tables(cells: Sequence[Cell]) -> dict[str, Table]:
    """All tables by name; `published` and `across` only where data sets have published values or share rows."""
    parts = sections(cells)
    boards = [board_of(part) for part in parts]
    placed = {id(cell): (i, board) for part, board in zip(parts, boards, strict=True) for i, cell in enumerate(part)}

    def made(name: str, heading: str, note: str, texts: _Texts, values: _Values, notes: bool = True) -> Table:
        shown = [
            Section(
                title(part),
                f"{caption(part)}. {note}.",
                pd.DataFrame([texts(part, i, board) for i in range(len(part))]),
                board.notes if notes else (),
                frozenset() if board.winner is None else frozenset({(board.winner, metric_name(part[0]))}),
            )
            for part, board in zip(parts, boards, strict=True)
        ]
        return Table(name, heading, tuple(shown), pd.DataFrame([values(cell, *placed[id(cell)]) for cell in cells]))

    found, over = fates(cells), across(cells)
    return {
        "accuracy": made("accuracy", "Accuracy", _ACCURACY_NOTE, _accuracy_text, _accuracy_values),
        "cost": made(
            "cost",
            "Cost",
            _COST_NOTE,
            lambda part, row, _: _cost_text(part, row),
            lambda cell, *_: _cost_values(cell),
            notes=False,
        ),
        "paper": made("paper", "Accuracy and cost", _PAPER_NOTE, _paper_text, _paper_values),
        "comparisons": comparisons(parts, boards),
        "selection": selections(parts),
        **({"across": across_table(over)} if over else {}),
    } | ({"published": published_values(found)} if found else {})


def _accuracy_text(cells: Sequence[Cell], row: int, board: Board) -> dict[str, str]:
    cell = cells[row]
    alone = _keys([other.unimodal for other in cells])
    masses = _keys([other.attention_mass for other in cells])
    return (
        {
            "Method": cell.label,
            "Canonical name": cell.method,
            metric_name(cell): number(cell.mean, cell.digits),
            "95 % interval": bounds(cell.low, cell.high, cell.digits),
            **_tier_text(row, board),
            **_published_text(cell, cells),
            "Seeds": str(cell.n_seeds),
            "Folds": str(cell.n_folds),
        }
        | ({NAMES["macro_f1"]: number(cell.macro_f1, 1)} if any(c.macro_f1 is not None for c in cells) else {})
        | {m: number(cell.unimodal.get(m), cell.digits) for m in alone}
        | ({"AIR": number(cell.air, 2)} if any(c.air is not None for c in cells) else {})
        | {f"mass {m}": number(cell.attention_mass.get(m), 2) for m in masses}
        | ({"Tuning trials": str(cell.tuning["trials"])} if any(c.tuning["trials"] for c in cells) else {})
        | ({"Note": cell.note} if any(c.note for c in cells) else {})
    )


def _accuracy_values(cell: Cell, row: int, board: Board) -> dict[str, Any]:
    return {
        **cell.identity(),
        "mean": cell.mean,
        "low": cell.low,
        "high": cell.high,
        "tier": board.tiers.get(row),
        "significant": board.winner == row,
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


def _cost_text(cells: Sequence[Cell], row: int) -> dict[str, str]:
    cell, cost = cells[row], cells[row].cost
    return {
        "Method": cell.label,
        "Parameters (M)": _millions(cost.get("params")),
        "Trainable (M)": _millions(cost.get("trainable")),
        "thop parameters (M)": _millions(cost.get("thop_params")),
        "GFLOPs as published": amount(cost.get("published_gflops")),
        **_published_text(cell, cells, "GFLOPs of a batch of 64", "Published GFLOPs"),
        "thop GMACs": amount(cost.get("thop_gmacs")),
        "True GFLOPs": amount(cost.get("true_gflops")),
        "Executed GFLOPs": amount(cost.get("executed_gflops")),
        "Step (ms)": number(cost.get("step_ms"), 1),
        "Forwards": _count(cost.get("forwards")),
        "Backwards": _count(cost.get("backwards")),
        "Tuning trials": str(cell.tuning["trials"]),
        "Tuning epochs": str(cell.tuning["epochs"]),
    }


def _cost_values(cell: Cell) -> dict[str, Any]:
    names = ("params", "trainable", "probe_params", "thop_params", "published_gflops", "thop_gmacs", "true_gflops")
    more = ("executed_gflops", "step_ms", "forwards", "backwards")
    tuning = {f"tuning_{name}": count for name, count in cell.tuning.items()}
    return {**cell.identity(), **{n: cell.cost.get(n) for n in (*names, *more)}, **tuning}


def _paper_text(cells: Sequence[Cell], row: int, board: Board) -> dict[str, str]:
    cell = cells[row]
    return {
        "Method": cell.label,
        metric_name(cell): f"{number(cell.mean, cell.digits)} {bounds(cell.low, cell.high, cell.digits)}".strip(),
        **_tier_text(row, board),
        **_published_text(cell, cells),
        "Parameters (M)": _millions(cell.cost.get("params")),
        "GFLOPs": amount(cell.cost.get("published_gflops")),
    }


def _paper_values(cell: Cell, row: int, board: Board) -> dict[str, Any]:
    cost = {"params": cell.cost.get("params"), "published_gflops": cell.cost.get("published_gflops")}
    tier = {"tier": board.tiers.get(row), "significant": board.winner == row}
    return {**cell.identity(), "mean": cell.mean, "low": cell.low, "high": cell.high, **tier, **cost}


def _tier_text(row: int, board: Board) -> dict[str, str]:
    return {"Tier": str(board.tiers.get(row, ""))} if board.tiers else {}


def _published_text(
    cell: Cell, cells: Sequence[Cell], quantity: str = "accuracy", heading: str = "Published"
) -> dict[str, str]:
    """A column of published values where some row of the section has one."""
    if not any(published(other, quantity) for other in cells):
        return {}
    found = published(cell, quantity)
    return {heading: "" if found is None else f"{found.value:g}"}


def _keys(each: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for one in each for name in one))


def _millions(value: float | None) -> str:
    return "" if value is None else amount(value / 1e6)


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
