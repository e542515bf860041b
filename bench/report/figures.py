"""Figures as SVG texts: the same bytes for the same cells, in the colours of the page around them."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.cell import Cell
from bench.report.sections import metric_name

INK = "#010203"
"""Stands for the text colour of the page until the figure is written."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
"""Okabe and Ito's, told apart by most eyes and on light and dark ground."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""How every figure looks; for `matplotlib.rc_context`."""


def dots(cells: Sequence[Cell], name: str) -> str:
    """Every row's mean with its interval and its single trainings; empty where nothing is scored."""
    rows = [cell for cell in cells if cell.mean is not None]
    if not rows:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.28 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, cell in enumerate(rows):
            axes.plot(cell.values, [place] * len(cell.values), "|", color=INK, alpha=0.45, markersize=8)
            if cell.low is not None and cell.high is not None:
                axes.plot([cell.low, cell.high], [place, place], "-", color=COLOURS[0], linewidth=2, alpha=0.6)
            axes.plot([cell.mean or 0.0], [place], "o", color=COLOURS[0], markersize=6)
        axes.set_yticks(range(len(rows)), [plain(cell.label) for cell in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"{metric_name(rows[0])}: mean, 95 % interval, single trainings")
        axes.grid(axis="x", color=INK, alpha=0.15)
        return svg(figure, name)


def curves(cells: Sequence[Cell], name: str) -> str:
    """AIR and attention mass over epochs of every row with an attention site; empty where there is none."""
    rows = [cell for cell in cells if cell.curves]
    if not rows:
        return ""
    masses = list(dict.fromkeys(line for cell in rows for line in cell.curves if line.startswith("mass ")))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        air, mass = figure.subplots(1, 2)
        for cell, colour in zip(rows, _cycled(len(rows)), strict=True):
            _line(air, cell.curves["AIR"], colour, "-", plain(cell.label))
            for line, dash in zip(masses, ("-", "--", ":", "-.", (0, (1, 3))), strict=False):
                if line in cell.curves:
                    _line(mass, cell.curves[line], colour, dash)
        mass.set_ylim(0, 1)
        largest = max(abs(value) for cell in rows for value in cell.curves["AIR"])
        air.set_ylim(-1.1 * max(largest, 0.25), 1.1 * max(largest, 0.25))  # what is near 0 looks near 0
        air.axhline(0, color=INK, alpha=0.3, linewidth=0.8)
        air.set_title("AIR", fontsize=9)
        styles = ("solid", "dashed", "dotted", "dash-dotted", "sparse")
        named = ", ".join(f"{m.removeprefix('mass ')} {style}" for m, style in zip(masses, styles, strict=False))
        mass.set_title(f"Attention mass ({named})", fontsize=9)
        for axes in (air, mass):
            axes.set_xlabel("epoch")
            axes.grid(color=INK, alpha=0.15)
        figure.legend(loc="outside lower center", ncols=min(3, len(rows)), frameon=False)
        return svg(figure, name)


def _line(axes: Axes, values: Sequence[float], colour: str, style: Any, label: str = "") -> None:
    axes.plot(range(len(values)), values, color=colour, linestyle=style, linewidth=1.5, label=label or "_")


def _cycled(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def plain(label: str) -> str:
    """A label that matplotlib does not take for mathematics, or for one to be hidden."""
    escaped = label.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def svg(figure: Figure, name: str) -> str:
    """The figure for inclusion in a page: ids of its own, no date, the page's ink."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'<g id="[\w.]+_\d+">', "<g>", text)
