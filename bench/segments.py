"""The stored epochs of one lineage: what every epoch produced, and complete states to go on from.

Everything is written whole or not at all and carries a SHA-256, so that whatever is damaged reads as missing::

    trajectories/<lineage>/
      lineage.json                 what was fixed before training, and the actions so far
      epoch-0003.json              the epoch's record, before any action, and the hashes of the next two
      epoch-0003.npz               outputs for val and test
      epoch-0003.safetensors       weights after the epoch (the parent keeps those that may be selected)
      resume-0003-<hash>.pt        everything later epochs depend on, kept while nothing newer is
      fork-0003-<hash>.pt          the same after an epoch at which planned trials part
      fork.json                    what the actions that opened this segment logged
      lock                         held by whoever trains here
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bench.api import Action, EpochRecord, SiteRecord
from bench.errors import ResultsError
from bench.locks import Claim, claim
from bench.store import npz, read_sealed, write_bytes, write_json, write_sealed, writing
from bench.train import Evaluation

Purpose = Literal["resume", "fork"]
STEP_LOSSES = "train/step_losses"
"""The loss of every training step, float32 [step]; epochs stored by earlier versions have none."""


@dataclass(frozen=True)
class Fork:
    """Actions taken after an epoch, each with the code of the strategy that took it."""

    epoch: int
    actions: tuple[Action, ...]
    codes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values: equal for equal forks."""
        keys = [json.loads(action.key()) for action in self.actions]
        return {"epoch": self.epoch, "actions": keys, "codes": list(self.codes)}


@dataclass(frozen=True)
class Lineage:
    """What determines the numbers of a stretch of epochs. Written by the harness from what acted."""

    fixed: Mapping[str, Any]
    forks: tuple[Fork, ...] = ()

    @property
    def key(self) -> str:
        """24 hex digits over everything in it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:24]

    @property
    def first_epoch(self) -> int:
        """The first epoch trained under it."""
        return self.forks[-1].epoch + 1 if self.forks else 0

    @property
    def parent(self) -> Lineage:
        """The lineage it forked from."""
        return Lineage(self.fixed, self.forks[:-1])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"fixed": dict(self.fixed), "forks": [fork.to_json() for fork in self.forks]}


@dataclass(frozen=True)
class Snapshot:
    """A stored state: the epoch after which it was taken, and its file."""

    epoch: int
    file: Path


class Segment:
    """The folder of one lineage. Reading needs no lock; whoever trains here holds `claim()`."""

    def __init__(self, trajectories: Path, lineage: Lineage) -> None:
        self.folder, self.lineage = trajectories / lineage.key, lineage
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
        if not (self.folder / "lineage.json").is_file():
            write_json(self.folder / "lineage.json", lineage.to_json())

    @property
    def key(self) -> str:
        """The name of the folder."""
        return self.folder.name

    def claim(self) -> Claim | None:
        """The lock under which epochs are trained here; None while another process has it."""
        return claim(self.folder / "lock")

    def record(self, epoch: int) -> EpochRecord | None:
        """The record of an epoch if it and its outputs are stored and sound."""
        stored = read_sealed(epoch_file(self.folder, epoch, "json"))
        if stored is None or _digest(epoch_file(self.folder, epoch, "npz")) != stored["npz"]:
            return None
        return record_from_json(stored["record"])

    def write(
        self,
        record: EpochRecord,
        outputs: Mapping[str, Evaluation],
        weights: Mapping[str, torch.Tensor],
        step_losses: np.ndarray | None = None,
    ) -> None:
        """Store an epoch; the record last, because its presence means that the rest is there."""
        steps = {} if step_losses is None else {STEP_LOSSES: step_losses}
        content = {"safetensors": tensors_bytes(weights), "npz": npz({**_flat(outputs), **steps})}
        for suffix, data in content.items():
            write_bytes(epoch_file(self.folder, record.epoch, suffix), data)
        digests = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in content.items()}
        write_sealed(epoch_file(self.folder, record.epoch, "json"), {"record": dataclasses.asdict(record), **digests})

    def write_weights(self, epoch: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Store the weights of a stored epoch once more."""
        content, file = tensors_bytes(weights), epoch_file(self.folder, epoch, "json")
        stored = read_sealed(file)
        if stored is None:
            raise ResultsError(f"{file}: the record of this epoch is gone; run again")
        write_bytes(epoch_file(self.folder, epoch, "safetensors"), content)
        write_sealed(file, {**stored, "safetensors": hashlib.sha256(content).hexdigest()})

    def opening(self) -> dict[str, float] | None:
        """What the actions that opened this segment logged, if they were carried out."""
        return read_sealed(self.folder / "fork.json")

    def write_opening(self, logged: Mapping[str, float]) -> None:
        """Store what the actions that opened this segment logged."""
        write_sealed(self.folder / "fork.json", logged)

    def snapshots(self, before: int) -> list[Snapshot]:
        """The states stored after epochs earlier than `before`, newest first."""
        found = [Snapshot(int(file.stem.split("-")[1]), file) for file in snapshot_files(self.folder)]
        return sorted((s for s in found if s.epoch < before), key=lambda s: (-s.epoch, s.file.name))

    def write_snapshot(self, epoch: int, state: Mapping[str, Any], purpose: Purpose) -> None:
        """Store a complete state under its own checksum; it takes the place of what only served to resume."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        file = self.folder / f"{purpose}-{epoch:04d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        write_bytes(file, content)
        for older in self.snapshots(epoch + 1):
            replaced = older.file.name.startswith(("resume-", f"{purpose}-{epoch:04d}-"))
            if replaced and older.file != file:
                older.file.unlink(missing_ok=True)


def snapshot_files(folder: Path) -> list[Path]:
    """All stored states of a segment."""
    return [*folder.glob("resume-????-*.pt"), *folder.glob("fork-????-*.pt")]


def read_snapshot(snapshot: Snapshot) -> dict[str, Any] | None:
    """A stored state; None if it is damaged or gone."""
    try:
        content = snapshot.file.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest()[:16] != snapshot.file.stem.split("-")[2]:
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError):  # written by another version of torch
        return None
    return state


def epoch_file(segment: Path, epoch: int, suffix: str) -> Path:
    """The file of an epoch."""
    return segment / f"epoch-{epoch:04d}.{suffix}"


def read_outputs(trajectories: Path, segment: str, epoch: int) -> dict[str, np.ndarray]:
    """The outputs of a stored epoch: `<split>/logits`, `<split>/unimodal/<m>`, `<split>/mass/<m>`, `STEP_LOSSES`.

    Raises ResultsError if they cannot be read.
    """
    file = epoch_file(trajectories / segment, epoch, "npz")
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ResultsError(f"{file}: cannot be read: {error}; run again to train this epoch once more") from None


def weights_file(trajectories: Path, segment: str, epoch: int) -> Path:
    """Where the weights after an epoch are, if they were kept."""
    return epoch_file(trajectories / segment, epoch, "safetensors")


def sound_weights(trajectories: Path, segment: str, epoch: int) -> Path | None:
    """The file of the weights after an epoch; None if it was not kept or is damaged."""
    file = weights_file(trajectories, segment, epoch)
    stored = read_sealed(epoch_file(trajectories / segment, epoch, "json"))
    return file if stored is not None and _digest(file) == stored["safetensors"] else None


def tensors_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a safetensors file (its own writer makes files that colleagues cannot read)."""
    from safetensors.torch import save

    content: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return content


def record_from_json(values: Mapping[str, Any]) -> EpochRecord:
    """The record that was written."""
    sites = {name: SiteRecord(**site) for name, site in values["sites"].items()}
    actions = tuple(Action(**action) for action in values["actions"])
    return EpochRecord(**{**values, "sites": sites, "actions": actions})


def _flat(outputs: Mapping[str, Evaluation]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for split, evaluation in outputs.items():
        arrays[f"{split}/logits"] = evaluation.logits
        arrays |= {f"{split}/unimodal/{m}": x for m, x in evaluation.unimodal.items()}
        arrays |= {f"{split}/mass/{m}": x for m, x in evaluation.mass.items()}
    return arrays


def _digest(file: Path) -> str | None:
    try:
        with file.open("rb") as stored:
            return hashlib.file_digest(stored, "sha256").hexdigest()
    except OSError:
        return None
