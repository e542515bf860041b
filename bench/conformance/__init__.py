"""Contract tests over every plugin; `bench check NAME` runs them on anybody's file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench import names, plugins
from bench.api import DataSet, Derived, Fusion, Strategy
from bench.conformance import datasets, derived, fusions, strategies
from bench.conformance.findings import Check, CheckResult, ConformanceError
from bench.conformance.settings import well_formed
from bench.errors import RequestError

__all__ = ["Check", "CheckResult", "ConformanceError", "check", "checks_for", "checks_of"]


KINDS: dict[plugins.Group, tuple[type[Any], ...]] = {
    "methods": (Fusion, Strategy, Derived),
    "datasets": (DataSet,),
}


def checks_for(group: plugins.Group, text: str, root: Path | None = None) -> list[Check]:
    """The contract tests of a plugin, named with or without settings; a single failing one if it cannot be used.

    `root` holds raw data; without it a data set that needs files is held to its facts alone. Raises RequestError for
    a name or a setting that does not exist.
    """
    name = names.split_settings(text)[0]
    found = plugins.find(group, name) if name in plugins.names(group) else plugins.load(group, name)
    usable = isinstance(found, plugins.Loaded) and issubclass(found.plugin, KINDS[group])
    imported = Check("can be used", lambda: _resolve(group, text))
    return [imported, *checks_of(names.resolve_part(group, text, {}), root)] if usable else [imported]


def checks_of(part: names.Part, root: Path | None = None) -> list[Check]:
    """The contract tests of a resolved plugin."""
    found = [Check("settings are well formed", lambda: well_formed(part.plugin.Settings))]
    if issubclass(part.plugin, Fusion):
        found += fusions.checks(part.plugin, part.settings)
    elif issubclass(part.plugin, Strategy):
        found += strategies.checks(part.name, part.plugin, part.settings)
    elif issubclass(part.plugin, Derived):
        found += derived.checks(part.plugin, part.settings)
    elif issubclass(part.plugin, DataSet):
        nowhere = Path(tempfile.gettempdir(), "bench-no-raw-data")
        found += datasets.checks(part.name, part.plugin, part.settings, part.code, root or nowhere)
    return found


def check(group: plugins.Group, text: str, root: Path | None = None) -> list[CheckResult]:
    """What became of every contract test of a plugin."""
    return [c.result() for c in checks_for(group, text, root)]


def _resolve(group: plugins.Group, text: str) -> None:
    try:
        names.resolve_part(group, text, {})
    except RequestError as error:
        raise ConformanceError(str(error)) from None
