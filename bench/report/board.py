"""What the rows of one section may claim against each other: tiers, a winner or none, and how sure the board is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench import stats
from bench.protocols import PROTOCOLS
from bench.report.cell import Cell, split_method
from bench.report.compare import Compared, Comparer
from bench.scoring import MAXIMISED, SAMPLE_MEANS

ALPHA = 0.05
PLACEBO = "placebo"
_Compare = Callable[[int, int], Compared | None]


@dataclass(frozen=True)
class Claim:
    """One comparison of a section's declared family."""

    row: int
    against: int
    compared: Compared
    adjusted: float
    """p under Holm, over all comparisons of the section."""


@dataclass(frozen=True)
class Board:
    """Verdicts about the rows of a section, by their place in it."""

    tiers: Mapping[int, int]
    """Row -> tier; empty where nothing can be claimed."""
    winner: int | None
    """The row that is significantly above every other, over more than one training each."""
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    """What the caption has to say."""


def board_of(cells: Sequence[Cell]) -> Board:
    """The verdicts about comparable rows. Under any protocol but the honest one there are none."""
    first = cells[0]
    unranked = PROTOCOLS[first.protocol].unranked
    if unranked:
        return Board({}, None, (), (f"Not ranked: {unranked}.",))
    if first.metric not in SAMPLE_MEANS:
        return Board(
            {}, None, (), (f"No tiers: {first.metric} is no mean over samples, so no paired test per sample.",)
        )
    scored = {i: cell for i, cell in enumerate(cells) if cell.mean is not None}
    known = [i for i, cell in scored.items() if cell.samples]
    if len(known) < len(scored):
        missing = ", ".join(cells[i].label for i in scored if i not in known)
        note = f"No tiers: for {missing} it is not known what is right sample by sample; prepare the data set here "
        return Board({}, None, (), (note + "and `bench report` finds out.",))
    if len(known) < 2:
        return Board({}, None, (), ())
    sign = 1 if MAXIMISED[first.metric] else -1
    means = {i: sign * (cells[i].mean or 0.0) for i in known}
    comparer = Comparer()
    made: dict[tuple[int, int], Compared | None] = {}

    def compared(row: int, against: int) -> Compared | None:
        if (row, against) not in made:
            made[row, against] = comparer.compare(cells[row], cells[against])
        return made[row, against]

    def p_value(best: str, other: str) -> float:
        found = compared(int(best), int(other))
        return 1.0 if found is None else found.difference.p

    found = stats.tiers({str(i): mean for i, mean in means.items()}, p_value, ALPHA)
    tiers = {int(name): tier for tier, names in enumerate(found, start=1) for name in names}
    best = max(means, key=lambda i: means[i])
    others = [i for i in known if i != best]
    single = any((pair := compared(best, i)) is not None and pair.trainings < 2 for i in others)
    winner = best if not single and list(tiers.values()).count(1) == 1 else None
    family = [(best, i) for i in others]
    asked = {frozenset(pair) for pair in family}
    family += [(i, base) for i in known for base in _bases(cells, i) if base in known and {i, base} not in asked]
    pairs = [(row, against, pair) for row, against in family if (pair := compared(row, against)) is not None]
    adjusted = stats.holm([pair.difference.p for _, _, pair in pairs])
    claims = tuple(Claim(*pair, p) for pair, p in zip(pairs, adjusted, strict=True))
    notes = [_tier_note(single), *_power(cells, best, tiers, compared), *_placebo(cells, compared)]
    return Board(tiers, winner, claims, tuple(notes))


def _tier_note(single: bool) -> str:
    text = (
        f"Tier 1: the best mean and every row not significantly below it, paired over seeds and groups of test "
        f"samples, Holm, {ALPHA:.0%}; then again without those. Bold: the only row of tier 1."
    )
    if single:
        text += (
            " Rows that share one training: the test speaks of these trainings, not of the methods; nothing is bold."
        )
    return text


def _bases(cells: Sequence[Cell], row: int) -> list[int]:
    """The rows that a row with strategies is compared with: itself without them."""
    fusion, *strategies = split_method(cells[row].method)
    return [i for i, cell in enumerate(cells) if strategies and cell.method == fusion]


def _power(cells: Sequence[Cell], best: int, tiers: Mapping[int, int], compared: _Compare) -> list[str]:
    """The smallest difference the board could have shown, and which of its silences mean nothing."""
    pairs = {i: pair for i in tiers if i != best and (pair := compared(best, i)) is not None}
    if not pairs:
        return []
    unit = "points" if cells[best].shown(1.0) == 100 else cells[best].metric
    detectable = {i: pair.difference.detectable(alpha=ALPHA / len(pairs)) for i, pair in pairs.items()}
    sizes, trainings = cells[best].sizes, sorted({pair.trainings for pair in pairs.values()})
    of = f"{sizes.test} test samples a fold, " if sizes is not None else ""
    text = (
        f"Smallest difference from the best row that this board shows with 80 % power: "
        f"{np.median(list(detectable.values())):.2g} {unit} (median over rows; {of}"
        f"{' or '.join(map(str, trainings))} paired trainings, {len(pairs)} comparisons)."
    )
    unseen = [i for i in pairs if tiers[i] == 1 and pairs[i].difference.mean < detectable[i]]
    if not unseen:
        return [text]
    rows = ", ".join(cells[i].label for i in unseen)
    return [text, f"Underpowered: that {rows} share tier 1 with the best row is no evidence that they are as good."]


def _placebo(cells: Sequence[Cell], compared: _Compare) -> list[str]:
    """How often a method that is no better beat its base: the empirical false-discovery rate."""
    pairs = []
    for i, cell in enumerate(cells):
        texts = split_method(cell.method)
        bare = "+".join(text for text in texts if text.split(":")[0] != PLACEBO)
        if len(texts) == 1 or bare == cell.method:
            continue
        base = next((j for j, other in enumerate(cells) if other.method == bare), None)
        if base is not None and (pair := compared(i, base)) is not None:
            pairs.append(pair)
    if not pairs:
        fusion = "concat" if any(cell.method == "concat" for cell in cells) else split_method(cells[0].method)[0]
        rows = f"{fusion}+{PLACEBO}:width=0,{fusion}+{PLACEBO}:width=0.1"
        return [f"Empirical false-discovery rate: unknown; add the rows {rows} (and {fusion}) to measure it."]
    trainings = sum(pair.trainings for pair in pairs)
    wins = sum(pair.wins.mean * pair.trainings for pair in pairs)
    ahead = sum(pair.difference.mean > 0 for pair in pairs)
    shown = sum(pair.difference.mean > 0 and pair.difference.p < ALPHA for pair in pairs)
    return [
        f"Empirical false-discovery rate: placebo rows beat their base in {wins:g} of {trainings} paired trainings "
        f"({wins / trainings:.0%}), by their mean in {ahead} of {len(pairs)} rows, significantly in {shown}."
    ]
