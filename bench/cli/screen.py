"""What every command prints with: tables, JSON, short numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header, as wide as the terminal is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))  # Text: brackets in a cell are not markup
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def short(value: Any) -> str:
    """A value for a table: four digits of a small number, two decimals of a large one."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 100 else f"{value:.2f}"


def say(quiet: bool, *lines: str) -> None:
    """Print lines for a person; to stderr where stdout belongs to JSON."""
    for line in lines:
        print(line, file=sys.stderr if quiet else sys.stdout)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=1, allow_nan=False))


def dataset_line(dataset: dict[str, Any]) -> list[str]:
    """One line of the list of data sets."""
    if dataset["kind"] == "broken":
        return [dataset["name"], "broken", dataset["reason"].strip().splitlines()[-1], ""]
    return [dataset["name"], "yes" if dataset["usable"] else "no", dataset["title"], dataset["licence"]]
