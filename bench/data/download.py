"""Public files fetched once: over https, bounded in size, checked, and in place only when complete."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from filelock import FileLock

from bench.api import DataError
from bench.network import unreachable

CHUNK = 1 << 20
TIMEOUT = 10.0
"""Seconds without an answer after which a transfer is given up."""
REACH = 3.0
"""Seconds in which a host has to answer at all."""
Check = Callable[[Path], str]
"""What is wrong with a fetched file; empty if nothing is."""


def fetch(addresses: Sequence[str], target: Path, largest: int, check: Check, timeout: float = TIMEOUT) -> None:
    """`target`, from the first address that gives a file that passes `check`; nothing if it is there already.

    May be called by several processes at once. Raises DataError with what every address said.
    """
    for address in addresses:
        if not address.startswith("https://"):
            raise ValueError(f"{address}: files are fetched over https only")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{target.parent} cannot be made ({error}); choose another data root") from error
    with FileLock(target.parent / f".{target.name}.lock"):
        if target.is_file():
            return
        said = []
        for address in addresses:
            problem = _attempt(address, target, largest, check, timeout)
            if not problem:
                return
            said.append(f"  {address}: {problem}")
    raise DataError(f"{target.name} cannot be fetched:\n" + "\n".join(said) + f"\nPut it into {target.parent} by hand")


def content_md5(path: Path, largest: int) -> str:
    """The MD5 of a file, unpacked if it ends in .gz; empty if it cannot be read or is longer than `largest`."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                if size > largest:
                    return ""
                digest.update(chunk)
    except (OSError, EOFError, zlib.error):
        return ""
    return digest.hexdigest()


def _attempt(address: str, target: Path, largest: int, check: Check, timeout: float) -> str:
    if reason := unreachable(address, REACH):
        return reason
    with _partial(target) as (file, path):
        try:
            with urllib.request.urlopen(address, timeout=timeout) as response:
                if not response.geturl().startswith("https://"):
                    return f"leads to {response.geturl()}, which is not https"
                size = 0
                while chunk := response.read(CHUNK):
                    size += len(chunk)
                    if size > largest:
                        return f"is longer than {largest} bytes"
                    file.write(chunk)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        file.flush()
        os.fsync(file.fileno())
        if problem := check(path):
            return problem
        path.chmod(0o666 & ~_umask())
        path.rename(target)
    return ""


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file beside `target`, with its ending, that is gone afterwards unless it was renamed."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=f".partial{target.suffix}")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
