"""The data sets a run asked for: resolved, prepared, or left out with what would make them usable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import names, plugins
from bench.api import DataError, DataSet, DataSpec
from bench.data.manifest import is_complete, read_manifest
from bench.data.prepared import Prepared, find, prepare
from bench.errors import BenchError, RequestError


@dataclass(frozen=True)
class Selected:
    """A data set in use: what was typed, its plugin, its prepared arrays."""

    label: str
    part: names.Part
    dataset: DataSet
    prepared: Prepared
    root: Path | None = None
    """Where its raw files are, or would be."""

    @property
    def spec(self) -> DataSpec:
        """Its modalities, shapes and outputs."""
        return self.prepared.spec


@dataclass(frozen=True)
class Unusable:
    """A data set that cannot be used here, and what would mend it."""

    label: str
    reason: str


Progress = Callable[[str, int, int], None]
"""Called with the data set, items done and items in all."""


def select(
    texts: Sequence[str],
    root: Path,
    store: Path,
    settings: names.Overrides,
    *,
    places: Sequence[str] = (),
    workers: int = 1,
    progress: Progress | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
) -> tuple[list[Selected], list[Unusable]]:
    """Every data set named by `texts` (`all`: each one usable here), prepared if it is not yet.

    What is prepared is used without its raw files. A set named explicitly that is neither prepared nor usable raises
    DataError; under `all` it is returned with its reason. `allow_missing` and `overwrite` are those of `prepare`.
    """
    selected: dict[str, Selected] = {}
    unusable: list[Unusable] = []
    for i, text in enumerate(texts):
        where = places[i] if i < len(places) else ""
        for name in listed() if text == "all" else [text]:
            part, dataset = names.resolve_dataset(name, settings, where)
            prepared = None if overwrite else find(part.name, dataset, part.code, root, store)
            reason = dataset.unusable(root) if prepared is None else None
            if reason is not None and text != "all":
                dataset.fetch(root)
                reason = dataset.unusable(root)
            if prepared is None and reason is None:
                prepared = prepare(
                    part.name,
                    dataset,
                    part.code,
                    root,
                    store,
                    workers=workers,
                    progress=None if progress is None else partial(progress, name),
                    allow_missing=allow_missing,
                    overwrite=overwrite,
                )
            if prepared is not None:
                selected.setdefault(part.text, Selected(name, part, dataset, prepared, root))
                continue
            why = f"{str(reason).removeprefix(f'{part.name}: ')}{_others(part.name, store)}"
            if text != "all":
                raise DataError(f"{where}{': ' if where else ''}{name}: {why}")
            unusable.append(Unusable(name, why))
    if not selected:
        reasons = "\n".join(f"  {u.label}: {u.reason}" for u in unusable)
        raise RequestError(f"no data set is usable here:\n{reasons}")
    return list(selected.values()), unusable


def modalities_of(texts: Sequence[str], root: Path, settings: names.Overrides) -> list[str]:
    """The modalities of all data sets that say so without their files."""
    found: dict[str, None] = {}
    for name in [t for text in texts for t in (listed() if text == "all" else [text])]:
        with contextlib.suppress(BenchError):  # what is wrong with it, `select` says
            found |= dict.fromkeys(names.resolve_dataset(name, settings)[1].describe(root).modalities)
    return list(found)


def listed() -> list[str]:
    """The data sets that `--datasets all` means."""
    found = {name: plugins.find("datasets", name) for name in plugins.names("datasets")}
    return [
        name
        for name, entry in found.items()
        if isinstance(entry, plugins.Loaded) and issubclass(entry.plugin, DataSet) and entry.plugin.listed
    ]


def _others(name: str, store: Path) -> str:
    """What a data set was prepared with instead of what was asked for, as the end of a sentence."""
    found = []
    for folder in sorted(store.glob(f"{name}-*")):
        if is_complete(folder):
            given = read_manifest(folder)["settings"]
            found.append(":".join([name, *(f"{key}={value}" for key, value in given.items() if value != "")]))
    return f". Prepared with other settings or by other code: {'; '.join(found)}" if found else ""
