"""What of the trajectories is kept: weights and states that a planned trial may still need, within a disk budget.

Epoch records and outputs always stay; they are small, and with them no epoch is trained twice to be looked at.
Weights and states only save time: what was removed too early is trained again.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.errors import ResultsError
from bench.locks import claim, held
from bench.plan import Plan
from bench.segments import snapshot_files
from bench.store import Store, read_json, write_json, writing
from bench.trajectory import kin_of

EVERYTHING = "*"
"""Stands for every kin where a running process has not said yet what it needs."""


@dataclass(frozen=True)
class Pruned:
    """What pruning did, in bytes of weights and states."""

    freed: int
    kept: int


def prune(store: Store, plan: Plan | None, budget: int) -> Pruned:
    """Remove weights that neither the plan nor a running process needs, then states until `budget` bytes are left.

    States go in the order: not needed, then needed, the oldest first. What a process is training on is left alone,
    and what dead processes left half written is removed.
    """
    missing = [spec for spec in plan.trials if not store.has(spec.id)] if plan is not None else []
    needed = {kin_of(spec) for spec in missing} | needed_elsewhere(store)
    _remove_scratch(store)
    freed = 0
    for segment in _segments(store):
        if not _is_needed(segment, needed) and not held(segment / "lock"):
            freed += remove_weights(segment)
    return Pruned(freed + trim(store, needed, budget), _size(_kept(store)))


def trim(store: Store, needed: Iterable[str], budget: int) -> int:
    """Remove states until weights and states take at most `budget` bytes together; returns what was freed."""
    excess = _size(_kept(store)) - budget
    if excess <= 0:
        return 0
    freed, kins = 0, set(needed)
    candidates = []
    for segment in _segments(store):
        if not held(segment / "lock"):
            important = _is_needed(segment, kins)
            candidates += [(important, _age(file), file) for file in snapshot_files(segment)]
    for _, _, file in sorted(candidates):
        if freed >= excess:
            break
        freed += remove_file(file)
    return freed


def forget(store: Store, trained: Mapping[str, Iterable[int]], codes: Collection[str]) -> None:
    """Remove stored epochs that nobody may build on, and all states made of them.

    `trained` are epochs by segment; of a segment in whose lineage one of `codes` acted, every epoch goes.
    """
    for key, epochs in trained.items():
        segment = store.trajectories / key
        lineage = (segment / "lineage.json").read_text() if (segment / "lineage.json").is_file() else ""
        whole = any(code in lineage for code in codes)
        first = 0 if whole else min(epochs, default=None)
        if first is None:
            continue
        for file in (*segment.glob("epoch-????.*"), *snapshot_files(segment)):
            if int(file.name.split("-")[1][:4]) >= first:
                remove_file(file)
        if whole:
            remove_file(segment / "fork.json")


def remove_weights(segment: Path) -> int:
    """Remove the weights of a segment's epochs; returns their size."""
    return sum(remove_file(file) for file in segment.glob("epoch-*.safetensors"))


@contextlib.contextmanager
def announced(store: Store, kins: Iterable[str]) -> Iterator[str]:
    """While inside, other processes on the same folder know what this one needs; gives the name it goes by."""
    name = uuid.uuid4().hex
    lock = claim(store.locks / f"run-{name}.lock")
    needs = store.locks / f"run-{name}.json"
    try:
        write_json(needs, {"kins": sorted(kins)})
        yield name
    finally:
        # Where the results folder is gone there is nothing left to take back.
        with contextlib.suppress(OSError):
            needs.unlink(missing_ok=True)
            (store.locks / f"run-{name}.lock").unlink(missing_ok=True)
        if lock is not None:
            lock.release()


def needed_elsewhere(store: Store, own: str = "") -> set[str]:
    """The kins that running processes but `own` announced on this folder; what dead ones announced is forgotten."""
    kins: set[str] = set()
    for lock in store.locks.glob("run-*.lock"):
        if lock.stem == f"run-{own}":
            continue
        needs = lock.with_suffix(".json")
        if held(lock):
            kins |= _announced(needs)
        else:
            remove_file(needs)
            remove_file(lock)
    return kins


def _announced(needs: Path) -> set[str]:
    try:
        return set(read_json(needs)["kins"])
    except ResultsError:
        return {EVERYTHING}


def _is_needed(segment: Path, kins: set[str]) -> bool:
    if EVERYTHING in kins:
        return True
    try:
        return kin_of(read_json(segment / "lineage.json")["fixed"]) in kins
    except (ResultsError, KeyError):
        return False


def _segments(store: Store) -> list[Path]:
    return sorted(folder for folder in store.trajectories.iterdir() if folder.is_dir())


def _kept(store: Store) -> list[Path]:
    return [f for s in _segments(store) for f in (*s.glob("epoch-*.safetensors"), *snapshot_files(s))]


def _size(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # another process prunes too
            total += file.stat().st_size
    return total


def _age(file: Path) -> int:
    """When a file was written; a clock set back changes which state goes first and no number."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_mtime_ns
    return 0


def remove_file(file: Path) -> int:
    """Remove a file that may be gone already; returns its size."""
    size = _size([file])
    with writing(file):
        file.unlink(missing_ok=True)
    return size


def _remove_scratch(store: Store) -> None:
    """Remove the unfinished writes of dead processes: those under whose lock nobody works."""
    for segment in _segments(store):
        lock = claim(segment / "lock") if list(segment.glob(".*")) else None
        if lock is not None:
            for scratch in segment.glob(".*"):
                remove_file(scratch)
            lock.release()
    for file in store.locks.glob("trial-*.lock"):
        lock = claim(file)
        if lock is not None:
            remove_file(file)
            lock.release()
    for scratch in (store.folder / "trials").glob(".*"):
        lock = claim(store.locks / f"trial-{scratch.name.split('.')[1]}.lock")
        if lock is not None:
            shutil.rmtree(scratch, ignore_errors=True)
            lock.release()
