"""A table as text: Markdown and LaTeX to read, CSV to compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

WORDS = frozenset({"Method", "Canonical name", "Note", "Row", "Against", "Source", "Site", "Rung", "Paired"})
"""Columns that hold words."""

_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}


@dataclass(frozen=True, eq=False)
class Section:
    """Rows that can be compared, as texts."""

    title: str
    caption: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    """What the rows may claim, a line each."""
    bold: frozenset[tuple[int, str]] = frozenset()
    """(row, column) of what is significant."""

    def is_bold(self, row: int, column: str) -> bool:
        """Whether a text is significant."""
        return (row, column) in self.bold


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
            columns = [str(name) for name in section.frame.columns]
            shown = [
                [_strong(_cell(text), section.is_bold(i, c)) for c, text in zip(columns, row, strict=True)]
                for i, row in enumerate(section.frame.itertuples(index=False))
            ]
            aligned = ["left" if name in WORDS else "right" for name in columns]
            headers = [_cell(name) for name in columns]
            grid = tabulate(shown, headers=headers, tablefmt="github", disable_numparse=True, colalign=aligned)
            parts += [f"## {_cell(section.title)}", grid if shown else "No rows.", section.caption]
            parts += ["\n".join(f"- {note}" for note in section.notes)] if section.notes else []
        return "\n\n".join(parts) + "\n"

    @property
    def latex(self) -> str:
        """The table as LaTeX, one tabular per section; it needs the package booktabs."""
        return "\n".join(_latex(section) for section in self.sections)

    @property
    def csv(self) -> str:
        """All rows of all sections, unrounded, with a header."""
        return self.values.to_csv(index=False)


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(character, character) for character in str(text))


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """A rounded number; nothing for None."""
    return "" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def bounds(low: float | None, high: float | None, digits: int, sign: bool = False) -> str:
    """An interval; nothing where a bound is not known."""
    return "" if low is None or high is None else f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def amount(value: float | None) -> str:
    """Two decimals, as papers print, or three significant digits of what is below one."""
    return "" if value is None else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def listed(numbers: Sequence[int]) -> str:
    """Numbers of seeds or folds."""
    return ", ".join(str(n) for n in numbers) or "none yet"


def _cell(text: str) -> str:
    return str(text).replace("|", r"\|").replace("\n", " ")


def _strong(text: str, bold: bool) -> str:
    return f"**{text}**" if bold and text else text


def _latex(section: Section) -> str:
    columns = [str(name) for name in section.frame.columns]
    rows = [
        " & ".join(_textbf(escaped(text), section.is_bold(i, c)) for c, text in zip(columns, row, strict=True)) + r" \\"
        for i, row in enumerate(section.frame.itertuples(index=False))
    ]
    notes = [rf"\par\smallskip{{\footnotesize {escaped(' '.join(section.notes))}\par}}"] if section.notes else []
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(section.title)}. {escaped(section.caption)}}}",
        rf"\begin{{tabular}}{{{''.join('l' if c in WORDS else 'r' for c in columns)}}}",
        r"\toprule",
        " & ".join(escaped(name) for name in columns) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *notes,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _textbf(text: str, bold: bool) -> str:
    return rf"\textbf{{{text}}}" if bold and text else text
