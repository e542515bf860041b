"""The gap ladder to read: a table in every format and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from bench.protocols import PROTOCOLS
from bench.report.build import refuse_mixed, skipped_markdown
from bench.report.cell import Cell
from bench.report.collect import collect
from bench.report.figures import COLOURS, INK, STYLE, plain, svg
from bench.report.ladder import PUBLISHED, STEPS, Climb, Rung, climbs
from bench.report.layout import Section, Table, bounds, listed, number
from bench.report.published import dataset_of, published
from bench.report.sections import metric_name
from bench.requested import FindTruth
from bench.scoring import MAXIMISED
from bench.store import Store, write_bytes, writing

NOTE = (
    "Removes: what is lost against the rung above, by the printed scores, so that the rungs add up to the total. "
    "Its 95 % interval: Student's t over seeds; paired by training where a rung scores the same ones, by seed where it "
    "trains the same seeds again, else Welch's; against a published number, for which no interval is known, that of "
    "the reproduction. It speaks of trainings with these splits, not of the samples in them"
)


@dataclass(frozen=True)
class LadderReport:
    """The ladders of a request, as far as they are climbed."""

    climbs: tuple[Climb, ...]
    skipped: tuple[Mapping[str, str], ...]
    table: Table
    paths: tuple[Path, ...]

    @property
    def markdown(self) -> str:
        """The table, and the rows that do not apply."""
        return _markdown(self.table, self.skipped)

    def to_json(self) -> dict[str, Any]:
        """Plain values: a list of rungs per method, unrounded, and the files."""
        missing = {climb.label: dict(climb.missing) for climb in self.climbs}
        files = [str(path) for path in self.paths]
        return {
            "rungs": _values(self.climbs),
            "missing": missing,
            "skipped": [dict(s) for s in self.skipped],
            "files": files,
        }


def build_ladder(
    store: Store, request: Mapping[str, Any], truths: FindTruth | None = None, allow_mixed: bool = False
) -> LadderReport:
    """Write `results/tables/ladder-<data set>.{md,csv,tex}` and `results/figures/ladder-<data set>.svg`.

    `request` is a `Ladder`'s. Raises RequestError where rungs of one protocol and fold have different effective splits.
    """
    cells = collect(store, request, truths)
    notes = [text for _, text in refuse_mixed(cells, allow_mixed)]
    found = tuple(climbs(cells, request))
    name = f"ladder-{dataset_of(cells[0])}"
    sections = tuple(_section(climb, cells[0], notes) for climb in found)
    table = Table(name, "Where the published points went", sections, pd.DataFrame(_values(found)))
    skipped = tuple(request.get("skipped", ()))
    tables, figures = store.folder / "tables", store.folder / "figures"
    files = {tables / f"{name}.md": _markdown(table, skipped), tables / f"{name}.csv": table.csv}
    files |= {tables / f"{name}.tex": table.latex, figures / f"{name}.svg": figure(found, metric_name(cells[0]), name)}
    for file, text in files.items():
        with writing(file.parent):
            file.parent.mkdir(exist_ok=True)
        write_bytes(file, text.encode())
    return LadderReport(found, skipped, table, tuple(files))


def figure(found: Sequence[Climb], metric: str, name: str) -> str:
    """Every rung's score with its interval, a line per method from the published number down, as SVG."""
    reached = {rung.name for climb in found for rung in climb.rungs}
    order = [rung for rung in (PUBLISHED, *(step.name for step in STEPS)) if rung in reached]
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(7.2, 1.2 + 0.42 * max(len(order), 1) + 0.2 * len(found)), layout="constrained")
        axes = drawn.subplots()
        for i, climb in enumerate(found):
            colour = COLOURS[i % len(COLOURS)]
            shift = 0.5 * ((i + 0.5) / len(found) - 0.5)
            places = [order.index(rung.name) + shift for rung in climb.rungs]
            scores = [rung.score.mean for rung in climb.rungs]
            axes.plot(scores, places, "o-", color=colour, markersize=5, linewidth=1, label=plain(climb.label))
            for rung, place in zip(climb.rungs, places, strict=True):
                if rung.score.low is not None and rung.score.high is not None:
                    axes.plot([rung.score.low, rung.score.high], [place] * 2, color=colour, linewidth=3, alpha=0.35)
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_xlabel(f"{metric}: mean, 95 % interval")
        axes.grid(axis="x", color=INK, alpha=0.15)
        drawn.legend(loc="outside lower center", ncols=min(3, max(len(found), 1)), frameon=False)
        return svg(drawn, name)


def _values(found: Sequence[Climb]) -> list[dict[str, Any]]:
    """A line per rung and one for the total, unrounded."""
    lines = []
    for climb in found:
        first = climb.cells[0] if climb.cells else None
        about = {} if first is None else {name: getattr(first, name) for name in ("dataset", "method", "metric")}
        for rung in (*climb.rungs, *([climb.total] if climb.total is not None else [])):
            mean, low, high = rung.removes or (None, None, None)
            lines.append(
                {
                    **about,
                    "label": climb.label,
                    "rung": rung.name,
                    "score": rung.score.mean,
                    "low": rung.score.low,
                    "high": rung.score.high,
                    "removes": mean,
                    "removes_low": low,
                    "removes_high": high,
                    "paired": rung.paired,
                    "trainings": rung.trainings,
                }
            )
    return lines


def _markdown(table: Table, skipped: Sequence[Mapping[str, str]]) -> str:
    return table.markdown + (f"\n{skipped_markdown(skipped)}" if skipped else "")


def _section(climb: Climb, first: Cell, notes: Sequence[str]) -> Section:
    printed = [number(rung.score.mean, first.digits) for rung in climb.rungs]
    rows = [
        _line(rung, score, _lost(before, score, first), first)
        for rung, score, before in zip(climb.rungs, printed, [None, *printed], strict=False)
    ]
    if climb.total is not None:
        rows.append(_line(climb.total, "", _lost(printed[0], printed[-1], first), first))
    left_out = [f"Left out: {step}: {reason}." for step, reason in climb.missing.items()]
    text = f"{metric_name(first)}. {_caption(climb, first)}. {NOTE}."
    return Section(f"{first.dataset}: {climb.label}", text, pd.DataFrame(rows), (*left_out, *notes))


def _line(rung: Rung, score: str, lost: str, cell: Cell) -> dict[str, str]:
    removes = rung.removes
    return {
        "Rung": rung.name,
        metric_name(cell): score,
        "95 % interval": bounds(rung.score.low, rung.score.high, cell.digits) if score else "",
        "Removes": lost,
        "Its 95 % interval": "" if removes is None else bounds(removes.low, removes.high, cell.digits, sign=True),
        "Paired": rung.paired,
        "Trainings": str(rung.trainings) if score and rung.trainings else "",
    }


def _lost(before: str | None, after: str, cell: Cell) -> str:
    """The difference of two printed scores, so that what is printed adds up."""
    if before is None:
        return ""
    lost = Decimal(before) - Decimal(after)
    return f"{lost if MAXIMISED[cell.metric] else -lost:+}"


def _caption(climb: Climb, first: Cell) -> str:
    """Every rung with its protocol, seeds, folds and effective split."""
    known = published(first)
    facts = [] if known is None else [f"{PUBLISHED.capitalize()}: {known.source}"]
    about = {step.name: step.about for step in STEPS}
    trained = [rung.name for rung in climb.rungs if rung.name in about]
    for name, cell in zip(trained, climb.cells, strict=True):
        hashes = ", ".join(f"fold {fold}: {split}" for fold, split in sorted(cell.splits.items()))
        protocol = PROTOCOLS[cell.protocol]
        tuned = f"; {cell.tuning['trials']} tuning trials" if cell.tuning.get("trials") else ""
        facts.append(
            f"{name.capitalize()}: {about[name]} (protocol {protocol.title}: {protocol.about}{tuned}; "
            f"seeds {listed(sorted(set(cell.seeds)))}; effective split {hashes}; recipe {cell.recipe})"
        )
    return ". ".join(facts)
