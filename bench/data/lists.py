"""Lists of clips as they are published: one line each, separated by commas or blanks, with or without a header."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from bench.api import DataError


@dataclass(frozen=True)
class Line:
    """One line of a list: its number in the file, and its fields."""

    number: int
    fields: tuple[str, ...]


def read_list(file: Path) -> list[Line]:
    """The lines of a list that are not empty; a byte-order mark is passed over."""
    try:
        text = file.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: this list cannot be read ({error})") from error
    lines = []
    for number, raw in enumerate(text.splitlines(), 1):
        if not raw.strip():
            continue
        fields = next(csv.reader([raw], skipinitialspace=True)) if "," in raw else raw.split()
        lines.append(Line(number, tuple(field.strip() for field in fields)))
    if not lines:
        raise DataError(f"{file}: this list is empty")
    return lines
