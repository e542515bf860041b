"""Fills the folder of a prepared data set from raw files: in several processes, resumable, complete or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from bench.api import DataError, DataSet, DataSpec, Sample
from bench.data import reading
from bench.data.manifest import (
    INDEX,
    MANIFEST,
    PREPARED_VERSION,
    TARGETS,
    file_hash,
    fingerprint_of,
    is_complete,
    library_versions,
    settings_of,
    spec_to_json,
)

REQUEST = "request.json"

LEFT_OUT = "left_out.csv"
"""Which samples of a prepared set are missing, and why."""


def fill(
    folder: Path,
    name: str,
    dataset: DataSet,
    code: str,
    root: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
) -> Path:
    """`folder`, complete. Everything is written to a folder beside it, the manifest last, and renamed then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if is_complete(folder) and not overwrite:
            return folder
        spec, samples = dataset.describe(root), dataset.samples(root)
        _check_samples(name, spec, samples)
        sources = {m: list(dict.fromkeys(s.sources[m] for s in samples)) for m in spec.modalities}
        partial = folder.parent / f".{folder.name}.partial"
        _begin(partial, spec, sources)
        unreadable = reading.read_all(partial, dataset, spec, root, sources, workers, progress)
        kept = _readable(samples, unreadable)
        _judge(name, dataset, samples, kept, unreadable, allow_missing)
        index = _index(kept, sources)
        np.save(partial / TARGETS, _targets(name, spec, kept))
        index.to_parquet(partial / INDEX, index=False)
        _left_out(samples, unreadable).to_csv(partial / LEFT_OUT, index=False)
        for leftover in (reading.JOURNAL, REQUEST):
            (partial / leftover).unlink()
        _write_manifest(partial, name, dataset, code, spec, index, len(samples), unreadable)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    return folder


def _check_samples(name: str, spec: DataSpec, samples: Sequence[Sample]) -> None:
    if not samples:
        raise DataError(f"{name}: no samples were found")
    strange = [m for m in spec.modalities if not re.fullmatch(r"[A-Za-z_]\w*", m)]
    if strange:
        raise DataError(f"{name}: {strange[0]!r} cannot name a modality; allowed: letters, digits and _")
    for m, modality in spec.modalities.items():
        if modality.masked and len(modality.stored_shape) < 2:
            raise DataError(f"{name}: {m} is masked, but {list(modality.stored_shape)} has no steps")
    repeated = [sample_id for sample_id, count in Counter(s.id for s in samples).items() if count > 1]
    if repeated:
        raise DataError(f"{name}: {len(repeated)} sample ids appear more than once, {repeated[0]!r} among them")
    for sample in samples:
        if missing := set(spec.modalities) - set(sample.sources):
            raise DataError(f"{name}: sample {sample.id!r} has no source for {', '.join(sorted(missing))}")


def _begin(partial: Path, spec: DataSpec, sources: Mapping[str, Sequence[str]]) -> None:
    """An unfinished folder of exactly this request with all arrays allocated; an older one of it is gone on with."""
    digest = hashlib.sha256(json.dumps([PREPARED_VERSION, spec_to_json(spec), dict(sources)]).encode()).hexdigest()
    request = partial / REQUEST
    if request.is_file() and request.read_text() == digest:
        return
    if partial.exists():
        shutil.rmtree(partial)
    shapes = {m: (len(keys), *spec.modalities[m].stored_shape) for m, keys in sources.items()}
    needed = sum(int(np.prod(shape)) * np.dtype(spec.modalities[m].dtype).itemsize for m, shape in shapes.items())
    free = shutil.disk_usage(partial.parent).free
    if needed * 1.05 > free:
        raise DataError(
            f"{partial.parent}: preparing needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "make room, or keep prepared data elsewhere"
        )
    partial.mkdir()
    for m, shape in shapes.items():
        modality = spec.modalities[m]
        np.lib.format.open_memmap(partial / f"{m}.npy", "w+", dtype=np.dtype(modality.dtype), shape=shape)
        if modality.masked:
            np.lib.format.open_memmap(partial / f"mask_{m}.npy", "w+", dtype=np.dtype(bool), shape=shape[:2])
    # Written last: a folder without it was not fully allocated and is begun anew.
    request.write_text(digest)


def _readable(samples: Sequence[Sample], unreadable: Sequence[reading.Unreadable]) -> list[Sample]:
    bad = {(u.modality, u.key) for u in unreadable}
    return [s for s in samples if not any((m, key) in bad for m, key in s.sources.items())]


def _left_out(samples: Sequence[Sample], unreadable: Sequence[reading.Unreadable]) -> pd.DataFrame:
    reasons = {(u.modality, u.key): u.reason for u in unreadable}
    lost = [
        {"sample_id": s.id, "split": s.split, "modality": m, "source": key, "reason": reasons[m, key]}
        for s in samples
        for m, key in s.sources.items()
        if (m, key) in reasons
    ]
    return pd.DataFrame(lost, columns=["sample_id", "split", "modality", "source", "reason"])


def _judge(
    name: str,
    dataset: DataSet,
    samples: Sequence[Sample],
    kept: Sequence[Sample],
    unreadable: Sequence[reading.Unreadable],
    allow_missing: bool,
) -> None:
    lost = len(samples) - len(kept)
    tolerated = 0 if dataset.embedded else int(dataset.tolerated_loss * len(samples))
    if kept and (allow_missing or lost <= tolerated):
        return
    first = "\n".join(f"  {u.modality} {u.key}: {u.reason}" for u in unreadable[:5])
    more = f"\n  and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    raise DataError(
        f"{name}: {len(unreadable)} sources cannot be read, which takes {lost} of {len(samples)} samples "
        f"({tolerated} are tolerated):\n{first}{more}\nMend them and prepare again (what was read is kept), "
        "or allow missing samples"
    )


def _index(samples: Sequence[Sample], sources: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "sample_id": [s.id for s in samples],
        "group": [s.group for s in samples],
        "split": [s.split for s in samples],
    }
    for m, keys in sources.items():
        row = {key: position for position, key in enumerate(keys)}
        columns[f"row_{m}"] = np.array([row[s.sources[m]] for s in samples], dtype=np.int64)
    for field in dict.fromkeys(field for s in samples for field in s.metadata):
        if field in columns:
            raise DataError(f"metadata may not be called {field!r}: the index has a column of that name")
        columns[field] = [s.metadata.get(field) for s in samples]
    return pd.DataFrame(columns)


def _targets(name: str, spec: DataSpec, samples: Sequence[Sample]) -> np.ndarray:
    values = np.array([s.target for s in samples], dtype=np.float64)
    if spec.kind == "regression":
        wrong = ~np.isfinite(values)
        allowed = "finite numbers"
    else:
        wrong = (values != np.floor(values)) | (values < 0) | (values >= spec.num_outputs)
        allowed = f"whole numbers from 0 to {spec.num_outputs - 1}"
    if wrong.any():
        first = samples[int(np.argmax(wrong))]
        raise DataError(f"{name}: sample {first.id!r} has target {first.target}; allowed: {allowed}")
    return values.astype(np.float32 if spec.kind == "regression" else np.int64)


def _write_manifest(
    partial: Path,
    name: str,
    dataset: DataSet,
    code: str,
    spec: DataSpec,
    index: pd.DataFrame,
    found: int,
    unreadable: Sequence[reading.Unreadable],
) -> None:
    files = sorted(p for p in partial.iterdir() if p.suffix in (".npy", ".parquet"))
    hashes = {p.name: file_hash(p) for p in files}
    manifest = {
        "name": name,
        "title": dataset.title,
        "source": dataset.source,
        "licence": dataset.licence,
        "fingerprint": fingerprint_of(hashes, index, spec),
        "settings": settings_of(dataset),
        "code": code,
        "layout": PREPARED_VERSION,
        "spec": spec_to_json(spec),
        "counts": {
            "samples": len(index),
            "left_out": found - len(index),
            "splits": {str(split): int(count) for split, count in index["split"].value_counts().items()},
            "groups": int(index["group"].nunique()),
        },
        "unreadable": [dataclasses.asdict(u) for u in unreadable],
        "files": {p.name: {"bytes": p.stat().st_size, "sha256": hashes[p.name]} for p in files},
        "versions": library_versions(),
    }
    with (partial / MANIFEST).open("w") as file:
        json.dump(manifest, file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
