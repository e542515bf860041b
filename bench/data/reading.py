"""Reads the sources of a data set into allocated arrays, chunk by chunk, with a journal of what is done."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch

from bench import plugins
from bench.api import DataError, DataSet, DataSpec, Item, ModalitySpec

JOURNAL = "journal.jsonl"
CHUNK_BYTES, CHUNK_ITEMS = 1 << 22, 256


@dataclass(frozen=True)
class Unreadable:
    """A source that could not be read, and why."""

    modality: str
    key: str
    reason: str


@dataclass(frozen=True)
class _Chunk:
    """Some rows of one modality's array, and the sources that belong there."""

    modality: str
    rows: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    """What reading a chunk takes, whichever process does it."""

    folder: Path
    dataset: DataSet
    spec: DataSpec
    root: Path

    def read(self, chunk: _Chunk) -> dict[int, str]:
        """Stores a chunk and returns why some of its rows could not be read."""
        modality = self.spec.modalities[chunk.modality]
        values = np.lib.format.open_memmap(self.folder / f"{chunk.modality}.npy", "r+")
        masks = np.lib.format.open_memmap(self.folder / f"mask_{chunk.modality}.npy", "r+") if modality.masked else None
        failed = {}
        for row, key in zip(chunk.rows, chunk.keys, strict=True):
            try:
                item = self.dataset.read(self.root, chunk.modality, key)
                stored = _checked(item, modality)
            except DataError as error:
                failed[row] = str(error)
                continue
            values[row] = stored
            if masks is not None:
                masks[row] = item.mask
        values.flush()  # before the journal says that it is there
        if masks is not None:
            masks.flush()
        return failed


def read_all(
    folder: Path,
    dataset: DataSet,
    spec: DataSpec,
    root: Path,
    sources: Mapping[str, Sequence[str]],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> list[Unreadable]:
    """Reads what the journal does not list as read, and returns what cannot be read, in a fixed order."""
    done = _journalled(folder, sources)
    total = sum(len(keys) for keys in sources.values())
    chunks = [c for m, keys in sources.items() for c in _chunks(m, spec.modalities[m], keys, done[m])]
    task = _Task(folder, dataset, spec, root)
    finished = sum(int(rows.sum()) for rows in done.values())
    unreadable: list[tuple[str, int, str]] = []
    with (folder / JOURNAL).open("a") as journal:
        # A line that a killed process left half written ends here.
        journal.write("\n")
        for chunk, failed in _parallel(task, chunks, workers) if workers > 1 else _serial(task, chunks):
            read = [row for row in chunk.rows if row not in failed]
            journal.write(json.dumps([chunk.modality, read]) + "\n")
            journal.flush()
            unreadable += [(chunk.modality, row, reason) for row, reason in failed.items()]
            finished += len(chunk.rows)
            if progress is not None:
                progress(finished, total)
    order = {m: position for position, m in enumerate(sources)}
    unreadable.sort(key=lambda u: (order[u[0]], u[1]))
    return [Unreadable(m, sources[m][row], reason) for m, row, reason in unreadable]


def _checked(item: Item, modality: ModalitySpec) -> np.ndarray:
    """The values as they are stored; DataError if they are not what the specification promises."""
    values = np.asarray(item.values)
    if values.shape != modality.stored_shape:
        raise DataError(f"shape {list(values.shape)} instead of {list(modality.stored_shape)}")
    dtype = np.dtype(modality.dtype)
    if dtype.kind in "iub" and values.dtype != dtype:
        raise DataError(f"values are {values.dtype}, but stored as {dtype}: convert them in `read`")
    with np.errstate(over="ignore"):
        stored = values.astype(dtype, copy=False)
    if dtype.kind == "f" and not np.isfinite(stored).all():
        wrong = int((~np.isfinite(stored)).sum())
        raise DataError(f"{wrong} of {stored.size} values are NaN or infinite as {dtype}")
    if modality.masked and (item.mask is None or np.shape(item.mask) != modality.stored_shape[:1]):
        found = "no mask" if item.mask is None else f"a mask of shape {list(np.shape(item.mask))}"
        raise DataError(f"{found} instead of one of [{modality.stored_shape[0]}]")
    return stored


def _chunks(modality: str, spec: ModalitySpec, keys: Sequence[str], done: np.ndarray) -> Iterator[_Chunk]:
    item = max(1, int(np.prod(spec.stored_shape)) * np.dtype(spec.dtype).itemsize)
    size = min(CHUNK_ITEMS, max(1, CHUNK_BYTES // item))
    rows = np.flatnonzero(~done).tolist()
    for start in range(0, len(rows), size):
        part = tuple(rows[start : start + size])
        yield _Chunk(modality, part, tuple(keys[row] for row in part))


def _journalled(folder: Path, sources: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Which rows are stored already; a line cut short by a kill does not count."""
    done = {m: np.zeros(len(keys), dtype=bool) for m, keys in sources.items()}
    journal = folder / JOURNAL
    for line in journal.read_text().splitlines() if journal.is_file() else ():
        try:
            modality, rows = json.loads(line)
        except ValueError:
            continue
        done[modality][np.array(rows, dtype=np.int64)] = True
    return done


def _serial(task: _Task, chunks: Sequence[_Chunk]) -> Iterator[tuple[_Chunk, dict[int, str]]]:
    with _one_thread():
        for chunk in chunks:
            yield chunk, task.read(chunk)


def _parallel(task: _Task, chunks: Sequence[_Chunk], workers: int) -> Iterator[tuple[_Chunk, dict[int, str]]]:
    # The task is sent as bytes: it can be unpickled only when the child looks for plugins in the same folders.
    start = (pickle.dumps(task), plugins.folders())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=start) as pool:
        waiting: dict[Future[dict[int, str]], _Chunk] = {pool.submit(_read_in_child, c): c for c in chunks}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{task.folder}: a process that read data died (out of memory?); "
                "prepare again to go on from here, with fewer workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_child_task: _Task | None = None


def _start(task: bytes, folders: Sequence[str]) -> None:
    """Prepares a child: the parent's plugin folders, one thread, and an end when the parent ends."""
    global _child_task  # noqa: PLW0603  # a pool's initializer can hand over its result in no other way
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for folder in reversed(folders):
        plugins.use_folder(Path(folder))
    torch.set_num_threads(1)
    _child_task = pickle.loads(task)


def _read_in_child(chunk: _Chunk) -> dict[int, str]:
    assert _child_task is not None
    with _one_thread():
        return _child_task.read(chunk)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread inside numerical libraries: their number changes last bits, and arrays must not depend on it."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
