"""One page that shows a report: tables, figures and verdicts, with nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2

from bench.analysis.showing import Shown
from bench.report.across import across
from bench.report.cell import Cell
from bench.report.figures import curves, dots
from bench.report.layout import WORDS, Section, Table
from bench.report.ranks import critical_difference
from bench.report.sections import sections, title


@dataclass(frozen=True)
class _Part:
    """One data set and protocol on the page."""

    title: str
    figures: tuple[str, ...]
    tables: tuple[tuple[str, Section], ...]


def page(
    cells: Sequence[Cell],
    tables: Mapping[str, Table],
    skipped: Sequence[Mapping[str, str]],
    problems: Sequence[str] = (),
    analyses: Sequence[Shown] = (),
) -> str:
    """The whole page as one self-contained HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    groups = sections(cells)
    parts = []
    for i, group in enumerate(groups):
        figures = tuple(figure for figure in (dots(group, f"dots-{i}"), curves(group, f"curves-{i}")) if figure)
        shown = [(tables[name].title, tables[name].sections[i]) for name in ("accuracy", "cost")]
        shown += [("Comparisons", s) for s in tables["comparisons"].sections if s.title == title(group)]
        parts.append(_Part(title(group), figures, tuple(shown)))
    published = tables["published"].sections if "published" in tables else ()
    return environment.get_template("report.html.jinja").render(
        parts=parts,
        published=published,
        across=tables["across"].sections if "across" in tables else (),
        ranks=[critical_difference(one, f"ranks-{i}") for i, one in enumerate(across(cells))],
        skipped=skipped,
        problems=problems,
        words=WORDS,
        analyses=analyses,
    )
