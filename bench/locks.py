"""Locks between processes that share a results folder; a process that dies, however it dies, lets go of its own."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from bench.errors import ResultsError

Claim = FileLock


def claim(file: Path) -> Claim | None:
    """The lock on a file, held by the caller until `release()`; None if somebody else holds it.

    Raises ResultsError if the file cannot be made.
    """
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        raise ResultsError(f"{file}: cannot be locked: {error.strerror or error}") from None
    return lock


def held(file: Path) -> bool:
    """Whether somebody holds the lock on a file at this moment."""
    lock = claim(file) if file.is_file() else None
    if lock is None:
        return file.is_file()
    lock.release()
    return False
