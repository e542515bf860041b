"""The evidence behind the tables: paired comparisons, and what became of published values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.report.board import Board
from bench.report.cell import Cell
from bench.report.compare import HOW
from bench.report.layout import Section, Table, bounds, number
from bench.report.published import Fate
from bench.report.sections import caption, sections, title

COMPARISONS_NOTE = (
    "The best row against every other, and every row with strategies against its fusion alone. Difference: row minus "
    "against, more is better. p (Holm) over all comparisons of this section. McNemar: exact, twice the median where "
    "there are several trainings. Wins: P(row > against) over paired trainings with Clopper and Pearson's interval. "
    "Detectable: the difference that this comparison alone shows with 80 % power"
)
PUBLISHED_NOTE = (
    "Reproduced: here, under the published protocol. Reproduced - published carries the interval of the reproduction, "
    "since no interval was published. Honest - reproduced: Welch's interval over the seeds, or the folds, of each"
)


def comparisons(parts: Sequence[Sequence[Cell]], boards: Sequence[Board]) -> Table:
    """What stands behind tiers and bold figures, a section per board that has comparisons."""
    made, values = [], []
    for part, board in zip(parts, boards, strict=True):
        texts = []
        for claim in board.claims:
            row, against, pair = part[claim.row], part[claim.against], claim.compared
            found, digits = pair.difference, row.digits
            texts.append(
                {
                    "Row": row.label,
                    "Against": against.label,
                    "Difference": number(found.mean, digits, sign=True),
                    "95 % interval": bounds(found.low, found.high, digits, sign=True),
                    "p": _p(found.p),
                    "p (Holm)": _p(claim.adjusted),
                    "McNemar p": _p(pair.mcnemar),
                    "Wins": f"{pair.wins.mean:.2f} {bounds(pair.wins.low, pair.wins.high, 2)}",
                    "Trainings": str(pair.trainings),
                    "Detectable": number(found.detectable(), digits),
                }
            )
            numbers: dict[str, Any] = {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
            numbers |= {"p_holm": claim.adjusted, "mcnemar_p": pair.mcnemar, "detectable": found.detectable()}
            numbers |= {"wins": pair.wins.mean, "wins_low": pair.wins.low, "wins_high": pair.wins.high}
            numbers |= {"trainings": pair.trainings, "discordance": pair.discordance}
            values.append({**row.identity(), "against": against.label, **numbers})
        if texts:
            text = f"{caption(part)}. {COMPARISONS_NOTE}. {HOW}."
            made.append(Section(title(part), text, pd.DataFrame(texts)))
    return Table("comparisons", "Comparisons", tuple(made), pd.DataFrame(values))


def published_values(found: Sequence[Fate]) -> Table:
    """Published, reproduced and honest accuracy, a section per data set."""
    made, values = [], []
    for dataset in dict.fromkeys(_cell(fate).dataset for fate in found):
        rows = [fate for fate in found if _cell(fate).dataset == dataset]
        texts = [
            {
                "Method": fate.label,
                "Published": number(fate.published.value, 1),
                "Reproduced": _with_interval(fate.reproduced),
                "Honest": _with_interval(fate.honest),
                "Reproduced - published": _difference(fate.not_reproduced),
                "Honest - reproduced": _difference(fate.protocol_gap),
            }
            for fate in rows
        ]
        sources = "; ".join(dict.fromkeys(fate.published.source for fate in rows))
        either = [cell for fate in rows for cell in (fate.reproduced, fate.honest) if cell is not None]
        captions = [caption(part) for part in sections(either)]
        text = ". ".join([f"Accuracy (%). Published: {sources}", *captions, PUBLISHED_NOTE]) + "."
        made.append(Section(dataset, text, pd.DataFrame(texts)))
        for fate in rows:
            means: dict[str, Any] = {"published": fate.published.value, "source": fate.published.source}
            means |= {"reproduced": _mean(fate.reproduced), "honest": _mean(fate.honest)}
            for name, gap in (("not_reproduced", fate.not_reproduced), ("protocol_gap", fate.protocol_gap)):
                means |= {name: gap and gap.mean, f"{name}_low": gap and gap.low, f"{name}_high": gap and gap.high}
            values.append({"dataset": dataset, "label": fate.label, "method": _cell(fate).method, **means})
    return Table("published", "Published values", tuple(made), pd.DataFrame(values))


def _cell(fate: Fate) -> Cell:
    cell = fate.reproduced or fate.honest
    assert cell is not None  # a fate comes from a cell
    return cell


def _mean(cell: Cell | None) -> float | None:
    return None if cell is None else cell.mean


def _with_interval(cell: Cell | None) -> str:
    return "" if cell is None else f"{number(cell.mean, cell.digits)} {bounds(cell.low, cell.high, 1)}".strip()


def _difference(found: tuple[float, float | None, float | None] | None) -> str:
    return "" if found is None else f"{found[0]:+.1f} {bounds(found[1], found[2], 1, sign=True)}".strip()


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
