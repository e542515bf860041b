"""Writes docs/reference.md, the list of methods and data sets, from the plugins themselves (`make docs`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bench import listing

FILE = Path(__file__).with_name("reference.md")


def text() -> str:
    """The page as it should be."""
    lines = ["# Methods and data sets", "", "Written by `make docs` from the plugins; do not edit.", ""]
    lines += ["## Methods", ""]
    for method in listing.methods():
        lines += [f"### `{method['name']}` ({method['kind']})", "", method["about"], "", f"Paper: {method['paper']}."]
        lines += ["", f"Reference code: {method['reference'] or 'none'}.", ""]
        if method["requires"]:
            lines += [f"Requires {', '.join(method['requires'])}.", ""]
        if method.get("provides"):
            lines += [f"Provides {', '.join(method['provides'])}.", ""]
        if method.get("home"):
            lines += [f"Named alone it stands on `{method['home']}`.", ""]
        lines += _settings(method["settings"])
    lines += ["## Data sets", ""]
    for dataset in listing.datasets(Path("nowhere"), Path("nowhere")):
        lines += [f"### `{dataset['name']}`: {dataset['title']}", "", f"Source: {dataset['source']}.", ""]
        lines += [f"Licence: {dataset['licence']}.", ""]
        if dataset["groups"]:
            lines += [f"Split by {dataset['groups']}.", ""]
        lines += [f"- Known fault: {fault}" for fault in dataset["known_faults"]]
        lines += ["", *_settings(dataset["settings"])]
    return "\n".join(lines).rstrip() + "\n"


def _settings(settings: list[dict[str, Any]]) -> list[str]:
    if not settings:
        return []
    rows = ["| setting | default | allowed | searched | |", "|---|---|---|---|---|"]
    for s in settings:
        rows.append(f"| `{s['name']}` | `{s['default']}` | {_allowed(s)} | {_searched(s)} | {s.get('help', '')} |")
    return [*rows, ""]


def _allowed(s: dict[str, Any]) -> str:
    if "choices" in s:
        return ", ".join(f"`{c}`" for c in s["choices"])
    low, high = s.get("low"), s.get("high")
    if low is None and high is None:
        return str(s["type"])
    return f"{s['type']}, {'' if low is None else f'>= {low}'}{' and ' if None not in (low, high) else ''}" + (
        "" if high is None else f"<= {high}"
    )


def _searched(s: dict[str, Any]) -> str:
    return f"{s['search'][0]} to {s['search'][1]}{', log' if s.get('log') else ''}" if "search" in s else ""


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
