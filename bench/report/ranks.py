"""The critical-difference figure: rows on a scale of mean ranks, joined where data sets do not tell them apart."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure

from bench.report.across import Across
from bench.report.figures import COLOURS, INK, STYLE, plain, svg


def critical_difference(found: Across, name: str) -> str:
    """Labels hang from their mean rank, the better half to the left; a bar joins rows of which no two differ."""
    count, cliques = len(found.rows), found.cliques
    half = (count + 1) // 2
    top = 0.45 + 0.22 * len(cliques)
    depth = top + 0.32 * half
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.55 + 0.62 * depth), layout="constrained")
        axes = figure.subplots()
        axes.plot([1, count], [0, 0], "-", color=INK, linewidth=1)
        for tick in range(1, count + 1):
            axes.plot([tick, tick], [0, -0.08], "-", color=INK, linewidth=1)
            axes.text(tick, -0.14, str(tick), ha="center", va="bottom")
        margin = 0.06 * (count - 1)
        for i, (cell, rank) in enumerate(zip(found.rows, found.ranks, strict=True)):
            left = i < half
            level = top + 0.32 * (i if left else count - 1 - i)
            edge = 1 - margin if left else count + margin
            axes.plot([rank, rank, edge], [0, level, level], "-", color=INK, alpha=0.6, linewidth=0.9)
            axes.plot([rank], [0], "o", color=COLOURS[0], markersize=4)
            text = f"{plain(cell.label)} ({rank:.2f})"
            offset = -4 if left else 4
            axes.annotate(
                text,
                (edge, level),
                (offset, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
            )
        for i, (first, last) in enumerate(cliques):
            level = 0.22 + 0.22 * i
            ends = [found.ranks[first] - 0.012 * count, found.ranks[last] + 0.012 * count]
            axes.plot(ends, [level, level], "-", color=COLOURS[1], linewidth=3.5, solid_capstyle="butt")
        axes.set_xlim(1 - 0.5 * (count - 1), count + 0.5 * (count - 1))
        axes.set_ylim(depth, -0.5)
        axes.set_axis_off()
        test = "" if found.p is None else f", Friedman: p {'< 0.001' if found.p < 0.001 else f'= {found.p:.3f}'}"
        axes.set_title(f"Mean rank over {len(found.datasets)} data sets{test}", fontsize=9)
        return svg(figure, name)
