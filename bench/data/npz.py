"""The arrays of a user's .npz file, checked: modalities, targets, split, groups and train statistics."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from bench.api import DataError
from bench.data.splits import VAL_FRACTION, carve, sample_groups, split_positions

Split = Literal["train", "val", "test"]

SPLIT_NAMES: Mapping[str, Split] = {
    "0": "train",
    "1": "val",
    "2": "test",
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Request:
    """Which arrays play which part; `split` and `group` may be empty, and so may the lists."""

    path: str
    target: str
    split: str
    group: str
    modalities: tuple[str, ...]
    images: tuple[str, ...]
    fold: int


@dataclass(frozen=True, eq=False)
class Content:
    """The file, checked."""

    arrays: Mapping[str, np.ndarray]
    modalities: tuple[str, ...]
    images: tuple[str, ...]
    target: np.ndarray
    class_names: tuple[str, ...]
    split: Sequence[Split]
    group: np.ndarray
    metadata: Mapping[str, np.ndarray]
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def is_image(self, modality: str) -> bool:
        """Whether an array is encoded as an image."""
        return modality in self.images


@lru_cache(maxsize=2)
def read(request: Request, key: str) -> Content:
    """Everything that is checked and computed once; `key` tells one content of the file from the next."""
    del key
    path = request.path
    arrays = _arrays(path)
    target_name = _named(path, arrays, request.target, "target")
    count = len(_one_dimensional(path, arrays, target_name))
    special = {target_name}
    if request.split:
        split_name = request.split if request.split == "split" else _named(path, arrays, request.split, "split")
        special.add(split_name)
    group_name = _named(path, arrays, request.group, "group") if request.group else "group"
    special.add(group_name)
    for name in special & set(arrays):
        _check_length(path, name, _one_dimensional(path, arrays, name), count)
    modalities = _modalities(path, arrays, request, count, special)
    target, class_names = _targets(path, target_name, arrays[target_name])
    group = arrays[group_name].astype(str) if group_name in arrays else np.full(count, "")
    split = _split(path, request, arrays, group)
    taken = {*modalities, *special, *(f"mask_{m}" for m in modalities)}
    metadata = {n: a for n, a in arrays.items() if n not in taken and a.ndim == 1 and len(a) == count}
    train = np.array(split) == "train"
    forced = request.images
    for name in forced:
        if name not in modalities or arrays[name].ndim not in (3, 4):
            raise DataError(f"{path}: images={name}, but that is no modality [N, H, W] or [N, H, W, C]")
    images = tuple(m for m in modalities if m in forced or is_image(arrays[m].ndim, arrays[m].dtype == np.uint8))
    statistics = {
        m: _statistics(arrays[m][train], arrays[f"mask_{m}"][train] if f"mask_{m}" in arrays else None, m in images)
        for m in modalities
        if not (m in images and arrays[m].dtype == np.uint8)
    }
    return Content(arrays, modalities, images, target, class_names, split, group, metadata, statistics)


def directory(path: str) -> list[zipfile.ZipInfo]:
    """The arrays in the file with their checksums."""
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as archive:
            return archive.infolist()
    except FileNotFoundError:
        raise DataError(f"arrays: there is no file {Path(path).expanduser().absolute()}") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: this is no .npz file ({error}); np.savez writes one") from error


def _arrays(path: str) -> dict[str, np.ndarray]:
    names = [entry.filename.removesuffix(".npy") for entry in directory(path)]
    arrays = {}
    with np.load(Path(path).expanduser(), allow_pickle=False) as file:
        for name in names:
            try:
                arrays[name] = file[name]
            except (ValueError, KeyError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"{path}: array {name!r} cannot be read ({error}); allowed are arrays of numbers or strings, "
                    "not of Python objects"
                ) from error
            if not isinstance(arrays[name], np.ndarray):
                raise DataError(f"{path}: {name!r} is no array; np.savez writes a file of arrays only")
    return arrays


def _named(path: str, arrays: Mapping[str, np.ndarray], name: str, what: str) -> str:
    if name in arrays:
        return name
    near = difflib.get_close_matches(name, arrays, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"{path}: no array {name!r} for {what}.{hint} Arrays: {', '.join(sorted(arrays)) or 'none'}.")


def _one_dimensional(path: str, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if arrays[name].ndim != 1:
        raise DataError(f"{path}: {name!r} has shape {list(arrays[name].shape)}; allowed: one value per sample, [N]")
    return arrays[name]


def _check_length(path: str, name: str, values: np.ndarray, count: int) -> None:
    if len(values) != count:
        raise DataError(f"{path}: {name!r} has {len(values)} rows, but there are {count} targets")


def _modalities(
    path: str, arrays: Mapping[str, np.ndarray], request: Request, count: int, special: set[str]
) -> tuple[str, ...]:
    chosen = request.modalities
    several = [n for n, a in arrays.items() if a.ndim >= 2 and n not in special and not n.startswith("mask_")]
    names = tuple(_named(path, arrays, name, "modalities") for name in chosen) or tuple(several)
    if not names:
        raise DataError(f"{path}: no array of two or more dimensions, so there is no modality")
    for name in names:
        values = arrays[name]
        if values.ndim not in (2, 3, 4) or values.dtype.kind not in "fiu" or 0 in values.shape:
            raise DataError(
                f"{path}: {name!r} is {values.dtype} {list(values.shape)}; allowed for a modality: numbers "
                "[N, D], [N, T, D], [N, H, W] or [N, H, W, C], none of them 0 (or name others: modalities=a|b)"
            )
        _check_length(path, name, values, count)
        wrong = int((~np.isfinite(values)).sum()) if values.dtype.kind == "f" else 0
        if wrong:
            raise DataError(f"{path}: {wrong} of {values.size} values of {name!r} are NaN or infinite")
        mask = arrays.get(f"mask_{name}")
        if mask is not None and (values.ndim != 3 or mask.shape != values.shape[:2]):
            raise DataError(
                f"{path}: 'mask_{name}' has shape {list(mask.shape)} and {name!r} {list(values.shape)}; "
                "allowed: [N, T] for a sequence [N, T, D]"
            )
    return names


def _targets(path: str, name: str, values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    if values.dtype.kind == "f":
        wrong = int((~np.isfinite(values)).sum())
        if wrong:
            raise DataError(f"{path}: {wrong} of {len(values)} targets in {name!r} are NaN or infinite")
        return values.astype(np.float64), ()
    if values.dtype.kind not in "iubU":
        raise DataError(f"{path}: targets {name!r} are {values.dtype}; allowed: whole numbers, floats or strings")
    classes, target = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{path}: all {len(values)} targets in {name!r} are the same; a task needs two classes")
    return target, tuple(str(c) for c in classes)


def _split(path: str, request: Request, arrays: Mapping[str, np.ndarray], group: np.ndarray) -> list[Split]:
    count = len(group)
    ids = [f"{row:07d}" for row in range(count)]
    index = pd.DataFrame({"sample_id": ids, "group": group, "split": ""})
    given = arrays.get(request.split) if request.split else None
    if given is None:
        positions = split_positions(index, request.fold)
    else:
        whole = (
            given.astype(np.int64) if given.dtype.kind in "bf" and (given == given.astype(np.int64)).all() else given
        )
        words = np.char.lower(whole.astype(str))
        if strange := sorted(set(words.tolist()) - set(SPLIT_NAMES)):
            allowed = ", ".join(SPLIT_NAMES)
            raise DataError(f"{path}: {request.split!r} holds {strange[0]!r}; allowed: {allowed}")
        named = np.array([SPLIT_NAMES[word] for word in words.tolist()])
        positions = {name: np.flatnonzero(named == name) for name in ("train", "val", "test")}
        for name in ("train", "test"):
            if len(positions[name]) == 0:
                raise DataError(f"{path}: {request.split!r} has no {name} samples; it needs train and test")
        if len(positions["val"]) == 0:
            positions["val"] = carve(sample_groups(index), positions["train"], VAL_FRACTION, seed=0)
    split: list[Split] = ["train"] * count
    for position in positions["val"].tolist():
        split[position] = "val"
    for position in positions["test"].tolist():
        split[position] = "test"
    return split


def _statistics(values: np.ndarray, mask: np.ndarray | None, image: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / deviation per feature of the train values; 0 for a feature that is constant there."""
    if image:
        flat = values.reshape(-1, values.shape[3] if values.ndim == 4 else 1)
    elif mask is not None:
        flat = values[mask.astype(bool)]
    else:
        flat = values.reshape(-1, values.shape[-1])
    mean, deviation = flat.mean(axis=0, dtype=np.float64), flat.std(axis=0, dtype=np.float64)
    # Rounding leaves a constant column a deviation of about 1e-16 of its size.
    dead = deviation <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    return mean, np.where(dead, 0.0, 1.0 / np.where(dead, 1.0, deviation))


def is_image(axes: int, bytes_: bool) -> bool:
    """Whether [N, ...] of so many axes is an image unless told otherwise: [N, H, W, C], or [N, H, W] of uint8."""
    return axes == 4 or (axes == 3 and bytes_)
