"""What stands in the folder of a prepared data set: names, specification, hashes, manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from bench import names
from bench.api import DataError, DataSet, DataSpec, EncoderSpec, ModalitySpec

PREPARED_VERSION = 1
"""Raised when the layout of prepared folders or the code in `bench.data` that fills them changes: all are renewed."""

MANIFEST, INDEX, TARGETS = "manifest.json", "index.parquet", "targets.npy"


def folder_of(name: str, dataset: DataSet, code: str, root: Path, store: Path) -> Path:
    """Where a data set with these settings, this code and these raw files is kept."""
    settings = settings_of(dataset)
    if settings:
        settings = {k: v for k, v in settings.items() if k not in names.places(dataset.settings)}
    key = [PREPARED_VERSION, name, settings, code, spec_to_json(dataset.describe(root))]
    text = json.dumps([*key, dataset.raw_key(root)], sort_keys=True, default=str)
    return store / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def is_complete(folder: Path) -> bool:
    """Whether the folder has a manifest and every file of it in its full length."""
    try:
        files = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == recorded["bytes"] for name, recorded in files.items())
    except (DataError, OSError, KeyError, TypeError):
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder."""
    file = folder / MANIFEST
    name = folder.name.rpartition("-")[0] or folder.name
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        raise damaged(file, "is missing", name) from None
    except (OSError, ValueError) as error:
        raise damaged(file, f"cannot be read ({error})", name) from error
    if not isinstance(manifest, dict) or "files" not in manifest:
        raise damaged(file, "is not a manifest", name)
    return manifest


def damaged(file: Path, found: str, name: str) -> DataError:
    return DataError(f"{file}: {found}; `bench data prepare {name}` writes it again")


def settings_of(dataset: DataSet) -> dict[str, Any]:
    """The settings of a data set as plain values."""
    settings = dataset.settings
    return dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else {}  # type: ignore[arg-type]  # is_dataclass also holds for classes; settings are instances


def spec_to_json(spec: DataSpec) -> dict[str, Any]:
    """A specification as plain values, modalities in order."""
    plain = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    modalities = [[m, dataclasses.asdict(modality)] for m, modality in spec.modalities.items()]
    if spec.scale is None:  # left out, so that fingerprints are those of sets prepared before there were scales
        del plain["scale"]
    return {**plain, "modalities": modalities, "class_names": list(spec.class_names)}


def spec_from_json(plain: Mapping[str, Any]) -> DataSpec:
    """The specification that `spec_to_json` wrote."""
    modalities = {m: _modality_from_json(modality) for m, modality in plain["modalities"]}
    scale = tuple(plain["scale"]) if "scale" in plain else None
    return DataSpec(**{**plain, "modalities": modalities, "class_names": tuple(plain["class_names"]), "scale": scale})


def _modality_from_json(plain: Mapping[str, Any]) -> ModalitySpec:
    encoder = {**plain["encoder"], "patch": tuple(plain["encoder"]["patch"])}
    shapes = {key: tuple(plain[key]) for key in ("shape", "stored_shape")}
    return ModalitySpec(**{**plain, **shapes, "encoder": EncoderSpec(**encoder)})


def fingerprint_of(hashes: Mapping[str, str], index: pd.DataFrame, spec: DataSpec) -> str:
    """16 hex digits over the arrays' hashes, the content of the index and the specification."""
    columns = {str(name): index[name].tolist() for name in index.columns}
    arrays = {name: value for name, value in hashes.items() if name.endswith(".npy")}
    text = json.dumps([arrays, columns, spec_to_json(spec)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what is stored."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for library in ("numpy", "scipy", "torch", "librosa", "scikit-learn", "av", "soxr", "pillow", "pandas", "pyarrow"):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "absent"
    return found
