"""A prepared data set: memory-mapped arrays, an index and a manifest in one folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.api import DataError, DataSet, DataSpec
from bench.data.filling import fill
from bench.data.manifest import (
    INDEX,
    TARGETS,
    damaged,
    file_hash,
    folder_of,
    is_complete,
    read_manifest,
    spec_from_json,
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A complete prepared data set; arrays are memory maps and samples point to their rows."""

    folder: Path
    name: str
    spec: DataSpec
    fingerprint: str
    """16 hex digits over every array, the targets, the index and the specification."""
    index: pd.DataFrame
    """One line per sample: sample_id, group, split, row_<modality>, and what the data set says of it."""

    @classmethod
    def open(cls, folder: Path) -> Prepared:
        """The prepared data set in `folder`; DataError if a file of it is missing or cut short."""
        manifest = read_manifest(folder)
        name = str(manifest["name"])
        for file, recorded in manifest["files"].items():
            size = (folder / file).stat().st_size if (folder / file).is_file() else None
            if size != recorded["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {recorded['bytes']}"
                raise damaged(folder / file, found, name)
        try:
            index = pd.read_parquet(folder / INDEX)
        except Exception as error:  # pyarrow raises several kinds
            raise damaged(folder / INDEX, f"cannot be read ({error})", name) from error
        return cls(folder, name, spec_from_json(manifest["spec"]), str(manifest["fingerprint"]), index)

    @property
    def manifest(self) -> dict[str, Any]:
        """Hashes, recipe, versions and counts, as they were written."""
        return read_manifest(self.folder)

    def array(self, modality: str) -> np.ndarray:
        """The stored values [rows, *stored_shape], mapped read-only."""
        return self._map(f"{self._known(modality)}.npy")

    def mask(self, modality: str) -> np.ndarray | None:
        """The stored mask [rows, steps], mapped read-only; None where the modality has none."""
        return self._map(f"mask_{modality}.npy") if self.spec.modalities[self._known(modality)].masked else None

    def rows(self, modality: str) -> np.ndarray:
        """The row of `array` that each sample uses, int64 [samples]."""
        return self.index[f"row_{self._known(modality)}"].to_numpy(dtype=np.int64)

    def targets(self) -> np.ndarray:
        """All targets: int64 classes or float32 values [samples]. Only the scoring side calls this."""
        return np.asarray(self._map(TARGETS))

    def verify(self) -> list[str]:
        """The files whose content is not what was written."""
        files = self.manifest["files"]
        return [name for name, recorded in files.items() if file_hash(self.folder / name) != recorded["sha256"]]

    def _known(self, modality: str) -> str:
        if modality not in self.spec.modalities:
            raise DataError(f"{self.name} has no modality {modality!r}; it has {', '.join(self.spec.modalities)}")
        return modality

    def _map(self, file: str) -> np.ndarray:
        try:
            mapped: np.ndarray = np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise damaged(self.folder / file, f"cannot be read ({error})", self.name) from error
        return mapped


def find(name: str, dataset: DataSet, code: str, root: Path, store: Path) -> Prepared | None:
    """The prepared data set, or None where it still has to be prepared; raw files need not be there."""
    try:
        folder = folder_of(name, dataset, code, root, store)
    except DataError:  # only its raw files would tell which folder is meant
        return None
    return Prepared.open(folder) if is_complete(folder) else None


def prepare(
    name: str,
    dataset: DataSet,
    code: str,
    root: Path,
    store: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """The data set as arrays under `store`, read from the raw files in `root` unless that has been done.

    May be called by several processes at once and goes on where a killed one stopped. Sources that cannot be read
    are listed in the manifest and their samples left out; more than 1 % of them (any, for an embedded set) is a
    DataError unless `allow_missing`. `overwrite` prepares again what is there. `progress(done, total)` counts items.
    """
    folder = fill(
        folder_of(name, dataset, code, root, store),
        name,
        dataset,
        code,
        root,
        workers=workers,
        progress=progress,
        allow_missing=allow_missing,
        overwrite=overwrite,
    )
    return Prepared.open(folder)
