"""What an executor is given to run, and what it reports of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bench.trajectory import Visit
from bench.trial import Job

MakeJob = Callable[[str], Job]
"""Makes the job of a trial for a device; called when a slot is free, so that targets are read late."""


class Jobs(Protocol):
    """Where an executor gets trials from."""

    def take(self) -> tuple[str, MakeJob] | None:
        """A trial and what makes its job; None if none can start at this moment."""

    def waiting(self) -> int:
        """How many trials have not been taken; a postponed one is among them again."""


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


@dataclass(frozen=True)
class Postponed:
    """A trial needs an epoch that another process is training; it begins again later, from what is stored."""

    trial: str
    segment: str
    epoch: int


@dataclass(frozen=True)
class Stopped:
    """What a training process says when the results folder cannot be used any more; the executor raises it."""

    trial: str
    text: str


@dataclass(frozen=True)
class Settled:
    """Another process on the same results folder finished or failed a trial."""

    trial: str


@dataclass(frozen=True)
class Noted:
    """Something a person should know that ended no trial; `trial` is empty."""

    text: str
    trial: str = ""


SPOILING = frozenset({"tainted", "killed"})
"""Causes after which a training process serves no other trial."""

Event = Started | EpochDone | Finished | Failed | Postponed | Settled | Noted
"""What an executor reports of the trials it runs."""
