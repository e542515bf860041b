"""Which sample belongs to which split: the official one, or group-disjoint ones drawn from a fixed seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import get_args

import numpy as np
import pandas as pd

from bench.api import DataError
from bench.protocols import Split

SPLITS = ("train", "val", "test")
VAL_FRACTION = 0.125
"""Of the train samples, as near as whole groups allow."""


def split_positions(
    index: pd.DataFrame, fold: int = 0, kind: str = "honest", folds: int = 5, seed: int = 0
) -> dict[str, np.ndarray]:
    """Sorted int64 positions of the train, val and test samples.

    `honest`: the official split where there is one, with val carved out of train by group where it has none;
    otherwise group-disjoint folds, of which `fold` is the test part. No group and no stored row may be in two
    splits. `published`: the lists as published (column `published_split` if there is one, else `split`), with
    whatever leaks they have; val is empty where the papers had none. `carved`: the published lists with val carved
    out of their train by sample, where they have none, so that the leaks stay. Test never stands in for val.
    """
    if kind not in get_args(Split):
        raise DataError(f"unknown kind of split {kind!r}; allowed: {', '.join(get_args(Split))}")
    available = num_folds(index, folds, kind)
    if not 0 <= fold < available:
        raise DataError(f"fold {fold} does not exist: this data set has fold 0 to {available - 1}")
    split = _official(index, kind)
    if kind != "honest":
        positions = {name: np.flatnonzero(split == name) for name in SPLITS}
        if kind == "carved" and len(positions["val"]) == 0:
            samples = index["sample_id"].to_numpy(dtype=str)
            positions["val"] = carve(samples, positions["train"], VAL_FRACTION, seed)
            positions["train"] = np.setdiff1d(positions["train"], positions["val"])
        return positions
    groups = sample_groups(index)
    if (split == "").all():
        positions = _fold(groups, fold, folds, seed)
    else:
        positions = {name: np.flatnonzero(split == name) for name in SPLITS}
        if len(positions["val"]) == 0:
            positions["val"] = carve(groups, positions["train"], VAL_FRACTION, seed)
            positions["train"] = np.setdiff1d(positions["train"], positions["val"])
    _check_disjoint(index, groups, positions)
    return positions


def num_folds(index: pd.DataFrame, folds: int = 5, kind: str = "honest") -> int:
    """1 where the split is official, else `folds`."""
    return folds if kind == "honest" and (index["split"] == "").all() else 1


def split_hash(index: pd.DataFrame, positions: Mapping[str, np.ndarray]) -> str:
    """16 hex digits over the sorted sample ids of each split; equal for equal effective splits."""
    ids = index["sample_id"].to_numpy(dtype=str)
    digest = hashlib.sha256()
    for name in sorted(positions):
        digest.update("\n".join([f"[{name}]", *sorted(ids[positions[name]]), ""]).encode())
    return digest.hexdigest()[:16]


def sample_groups(index: pd.DataFrame) -> np.ndarray:
    """The group of every sample; a sample without one is its own."""
    groups = index["group"].to_numpy(dtype=str).astype(object)
    alone = groups == ""
    groups[alone] = "sample " + index["sample_id"].to_numpy(dtype=str).astype(object)[alone]
    return groups.astype(str)


def carve(groups: np.ndarray, positions: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Positions of whole groups that hold about `fraction` of the given ones; at least one group stays behind."""
    names, counts = np.unique(groups[positions], return_counts=True)
    if len(names) < 2:
        raise DataError(
            f"val cannot be carved out of train: its {len(positions)} samples are {len(names)} group"
            f"{' (' + names[0] + ')' if len(names) else 's'}; give a val split, or groups that are smaller"
        )
    order = np.random.default_rng([seed, len(names)]).permutation(len(names))
    total = np.cumsum(counts[order])
    taken = 1 + int(np.argmin(np.abs(total[:-1] - fraction * counts.sum())))
    return positions[np.isin(groups[positions], names[order[:taken]])]


def _official(index: pd.DataFrame, kind: str) -> np.ndarray:
    """The split of every sample, empty strings where there is none at all."""
    listed = kind != "honest" and "published_split" in index.columns
    split = index["published_split" if listed else "split"].fillna("").to_numpy(dtype=str)
    strange = sorted(set(split.tolist()) - {*SPLITS, ""})
    if strange:
        raise DataError(f"unknown split {strange[0]!r}; allowed: train, val, test")
    empty = split == ""
    if empty.all():
        if kind != "honest":
            raise DataError("this data set has no published split; the honest protocol draws one by group")
        return split
    if empty.any() and not listed:
        first = index["sample_id"].to_numpy(dtype=str)[empty][0]
        raise DataError(
            f"{int(empty.sum())} of {len(split)} samples have no split (first: {first}); give one to all or to none"
        )
    for name in ("train", "test"):
        if not (split == name).any():
            raise DataError(f"the split has no {name} samples; a split needs train and test")
    return split


def _fold(groups: np.ndarray, fold: int, folds: int, seed: int) -> dict[str, np.ndarray]:
    names, counts = np.unique(groups, return_counts=True)
    if folds < 2 or len(names) < max(folds, 3):
        raise DataError(f"{folds} folds cannot be drawn from {len(names)} groups; allowed: 2 to the number of groups")
    shuffled = np.random.default_rng([seed, folds]).permutation(len(names))
    by_size = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    part = np.empty(len(names), dtype=np.int64)
    filled = np.zeros(folds, dtype=np.int64)
    for group in by_size:  # the largest group goes to the emptiest fold
        part[group] = int(np.argmin(filled))
        filled[part[group]] += counts[group]
    test = np.isin(groups, names[part == fold])
    rest = np.flatnonzero(~test)
    val = carve(groups, rest, VAL_FRACTION, seed)
    return {"train": np.setdiff1d(rest, val), "val": val, "test": np.flatnonzero(test)}


def _check_disjoint(index: pd.DataFrame, groups: np.ndarray, positions: Mapping[str, np.ndarray]) -> None:
    rows = [str(column) for column in index.columns if str(column).startswith("row_")]
    kinds = {"groups": groups, **{f"rows of {c.removeprefix('row_')}": index[c].to_numpy() for c in rows}}
    for what, values in kinds.items():
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = np.intersect1d(values[positions[one]], values[positions[other]])
            if len(shared):
                named = ", ".join(str(value) for value in shared[:3]) + (", ..." if len(shared) > 3 else "")
                raise DataError(
                    f"{len(shared)} {what} are in both {one} and {other} ({named}); "
                    "the honest protocol needs splits that share none: mend the split, or leave it out and have "
                    "one drawn by group"
                )
