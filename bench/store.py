"""The results folder: the only writer there, every write atomic.

::

    results/
      trials/<id>/        spec.json, record.json, scores.json, logits.npz, samples.npz, losses.npz,
                          weights.safetensors
      failures/<id>.json  the typed cause of a trial that ended early; it is tried again
      trajectories/       training memoised by epoch (bench.trajectory)
      sweeps/<id>.json    what was asked for, so that tables come in the user's order
      analyses/           what analyses measured, by trial (bench.analysis.kept)
      slurm/              scripts and logs of Slurm jobs, written by submitit; may be removed when none runs
      locks/              held by running processes; may be removed when none runs
      tables/ figures/    made from the above, never read
      mlflow.db           a mirror, never read
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import ResultsError

_WHOLE = ("spec.json", "scores.json", "logits.npz", "record.json")
"""Without one of these a trial is not finished: its folder was copied only in part."""


class Store:
    """A results folder. Raises ResultsError, naming the file, for whatever cannot be read or written."""

    def __init__(self, folder: Path, writable: bool = True) -> None:
        """`writable` makes the folder where it is not there, and fails at once where it cannot be written."""
        self.folder = folder.absolute()
        if not writable:
            if self.folder.exists() and not self.folder.is_dir():
                raise ResultsError(f"{self.folder}: results cannot be read here: it is not a folder")
            return
        try:
            for name in ("trials", "failures", "trajectories", "sweeps", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ResultsError(f"{self.folder}: results cannot be written here: {error.strerror or error}") from None

    @property
    def trajectories(self) -> Path:
        """Where trajectory segments live."""
        return self.folder / "trajectories"

    @property
    def locks(self) -> Path:
        """Where running processes hold locks."""
        return self.folder / "locks"

    def trial(self, trial_id: str) -> Path:
        """The folder of a finished trial."""
        return self.folder / "trials" / trial_id

    def has(self, trial_id: str) -> bool:
        """Whether a trial is finished."""
        return all((self.trial(trial_id) / name).is_file() for name in _WHOLE)

    def finished(self) -> list[str]:
        """The ids of all finished trials."""
        found = (f.parent.name for f in (self.folder / "trials").glob("*/record.json"))
        return sorted(name for name in found if not name.startswith(".") and self.has(name))

    def write_trial(self, trial_id: str, files: Mapping[str, bytes | Path]) -> None:
        """Store a finished trial whole or not at all. Files given as paths are copied."""
        target = self.trial(trial_id)
        with writing(target):
            scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{trial_id}."))
            try:
                for name, content in files.items():
                    _fill(scratch / name, content)
                scratch.chmod(0o777 & ~_umask())
                if target.exists():
                    shutil.rmtree(target)
                scratch.rename(target)
                _sync(target.parent)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        (self.folder / "failures" / f"{trial_id}.json").unlink(missing_ok=True)

    def read(self, trial_id: str, name: str) -> dict[str, Any]:
        """A JSON file of a finished trial."""
        return read_json(self.trial(trial_id) / name)

    def arrays(self, trial_id: str, name: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz file of a finished trial."""
        file = self.trial(trial_id) / name
        try:
            with np.load(file, allow_pickle=False) as stored:
                return {key: stored[key] for key in stored.files}
        except (OSError, ValueError) as error:
            raise ResultsError(f"{file}: cannot be read: {error}; remove the folder and run again") from None

    def write_failure(self, trial_id: str, record: Mapping[str, Any]) -> None:
        """Record why a trial ended early."""
        write_json(self.folder / "failures" / f"{trial_id}.json", record)

    def failure(self, trial_id: str) -> dict[str, Any] | None:
        """Why a trial ended early, if it did and was not finished since."""
        file = self.folder / "failures" / f"{trial_id}.json"
        return read_json(file) if file.is_file() else None

    def write_sweep(self, sweep_id: str, request: Mapping[str, Any]) -> None:
        """Record what was asked for, as the latest sweep."""
        others = [s.get("order", 0) for s in self.sweeps() if s["id"] != sweep_id]
        write_json(self.folder / "sweeps" / f"{sweep_id}.json", {**request, "order": max(others, default=0) + 1})

    def sweeps(self) -> list[dict[str, Any]]:
        """Everything that was ever asked for, the latest last; by a count, because clocks are set back."""
        found = [{"id": f.stem, **read_json(f)} for f in sorted((self.folder / "sweeps").glob("*.json"))]
        return sorted(found, key=lambda sweep: (sweep.get("order", 0), sweep["id"]))

    def latest_sweep(self) -> dict[str, Any] | None:
        """What was asked for last."""
        found = self.sweeps()
        return found[-1] if found else None


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Failures of the file system as ResultsError naming the file."""
    try:
        yield
    except OSError as error:
        raise ResultsError(f"{target}: cannot be written: {error.strerror or error}") from None


def write_atomically(file: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a temporary file in the same folder and put it in place when it is complete on disk."""
    with writing(file):
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        os.close(handle)
        scratch = Path(name)
        try:
            fill(scratch)
            with scratch.open("rb") as written:
                os.fsync(written.fileno())
            scratch.chmod(0o666 & ~_umask())
            scratch.replace(file)
            _sync(file.parent)
        finally:
            scratch.unlink(missing_ok=True)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically; NaN and infinities are refused, as JSON has none."""
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_atomically(file, lambda scratch: _fill(scratch, text.encode()))


def write_sealed(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically behind its own checksum."""
    write_json(file, {"sha256": _seal(content), "content": dict(content)})


def read_sealed(file: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None if it is not there or damaged."""
    try:
        values = json.loads(file.read_bytes())
        content: dict[str, Any] = values["content"]
        return content if values["sha256"] == _seal(content) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(file, lambda scratch: _fill(scratch, content))


def npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes the arrays for its own options
    return buffer.getvalue()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ResultsError if it cannot be read."""
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file}: cannot be read: {error}") from None
    return values


def _fill(file: Path, content: bytes | Path) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, file)
    else:
        file.write_bytes(content)
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
