"""Where a command works: which bench.yaml, which results, which data. The environment is read here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import config as configuration
from bench.config import Config, Sources


@dataclass(frozen=True)
class Workplace:
    """The folders and the configuration of one command."""

    config: Config
    sources: Sources
    file: Path | None
    folder: Path
    """Of the bench.yaml in use, else the current one: plugins beside it are found."""
    results: Path
    data_root: Path
    """Raw files; read, and written only by explicit downloads."""
    prepared: Path
    """Prepared arrays."""


def find(
    config_file: Path | None,
    results: Path | None,
    data_root: Path | None,
    prepared: Path | None,
    overrides: Mapping[str, Any],
    assignments: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Workplace:
    """The workplace of a command: options first, then the environment, then the defaults.

    Raises RequestError for a configuration that does not hold.
    """
    environment = os.environ if environment is None else environment
    here = Path.cwd()
    file = config_file or (here / "bench.yaml" if (here / "bench.yaml").is_file() else None)
    config, sources = configuration.load(file, overrides, assignments)
    folder = file.resolve().parent if file else here
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bench"
    return Workplace(
        config=config,
        sources=sources,
        file=file,
        folder=folder,
        results=results or folder / "results",
        data_root=data_root or _path(environment, "BENCH_DATA") or cache / "data",
        prepared=prepared or _path(environment, "BENCH_PREPARED") or cache / "prepared",
    )


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    return Path(environment[name]).expanduser() if environment.get(name) else None
