"""From the configuration to an executor. Libraries that only one of them needs are imported here when it is chosen."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from bench.config import Config
from bench.errors import RequestError
from bench.execute.events import Event, Jobs

if TYPE_CHECKING:
    from bench.execute.slurm import SlurmExecutor


class Executor(Protocol):
    """What runs trials until it is left, which ends everything it started."""

    def run(self, jobs: Jobs) -> Iterator[Event]:
        """The events of the trials that `jobs` hands out."""

    def __enter__(self) -> Executor:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is running."""


def trial_executor(config: Config, most: int | None = None) -> tuple[Executor, str]:
    """An executor that is handed one trial after another, and in words how many it runs at a time.

    `most` bounds that number where more could never be used. Raises RequestError for what cannot run here.
    """
    execute = config.execute
    if execute.executor == "slurm":
        raise RequestError(
            "execute.executor: slurm runs whole sweeps (`bench run`); allowed here: local, inline, ray. Inside a job "
            "of yours (sbatch --wrap 'bench tune ...') it is local; several such jobs share one study"
        )
    if execute.executor == "ray":
        _need("ray")
        from bench.execute.ray import RayExecutor

        slots = execute.slots if execute.slots != "auto" else None
        on_ray = RayExecutor(config.ray, execute.device, min((n for n in (slots, most) if n is not None), default=None))
        return on_ray, f"{on_ray.slots()} at a time on Ray"
    from bench.execute.inline import InlineExecutor
    from bench.execute.local import LocalExecutor, devices

    chosen = devices(execute.device, execute.slots)[:most]
    if execute.executor == "inline":
        return InlineExecutor(chosen), "one after another in this process"
    return LocalExecutor(chosen), f"{len(chosen)} at a time"


def sweep_executor(config: Config, words: Sequence[str], logs: Path, most: int) -> tuple[Executor | SlurmExecutor, str]:
    """As `trial_executor`, and for `slurm` one that submits the `bench run` of these words, `most` times at most.

    Raises RequestError for what cannot run here.
    """
    if config.execute.executor != "slurm" or not words:
        return trial_executor(config, most)
    _need("submitit")
    from bench.execute.slurm import SlurmExecutor, command_of

    slurm = config.slurm.model_copy(update={"jobs": min(config.slurm.jobs, most)})
    return SlurmExecutor(slurm, command_of(config, words), logs), f"by {slurm.jobs} Slurm jobs, logs in {logs}"


def check(config: Config) -> None:
    """Raises RequestError, before anything is prepared or planned, for an executor that cannot run here."""
    execute = config.execute
    if execute.executor == "slurm":
        _need("submitit")
    elif execute.executor == "ray":
        _need("ray")
    else:
        from bench.execute.local import devices

        devices(execute.device, execute.slots)


def _need(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        extra = {"submitit": "slurm"}.get(library, library)
        raise RequestError(
            f"execute.executor: {extra} needs {library}, which is not installed; "
            f"pip install 'fusion-referee[{extra}]' does it"
        )
