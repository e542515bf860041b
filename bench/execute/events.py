"""What an executor reports of the trials it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.trajectory import Visit


@dataclass(frozen=True)
class Started:
    """A trial began."""

    trial: str
    slot: str


@dataclass(frozen=True)
class EpochDone:
    """An epoch of a trial is stored."""

    trial: str
    visit: Visit


@dataclass(frozen=True)
class Finished:
    """All epochs of a trial are stored; `info` is what is to be recorded of the process."""

    trial: str
    info: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A trial ended early, with one of `bench.errors.CAUSES`."""

    trial: str
    cause: str
    text: str


Event = Started | EpochDone | Finished | Failed
