"""Trials in the parent's own process, one after another: for a debugger, not for results.

Nobody can say here who opens a file of targets, so these trials are recorded as `unguarded`.
"""

from __future__ import annotations

import bdb
import dataclasses
import time
from collections.abc import Iterator, Sequence

from bench.api import DataError
from bench.errors import TrialError
from bench.execute.events import EpochDone, Event, Failed, Finished, Jobs, MakeJob, Postponed, Started
from bench.execute.local import POLL, InTurn
from bench.trajectory import BusyError
from bench.trial import visits


class InlineExecutor:
    """Runs trials in this process, where `breakpoint()` and `python -m pdb` work; `q` there ends the sweep."""

    def __init__(self, devices: Sequence[str]) -> None:
        """One trial runs at a time, on the first device."""
        self._device = devices[0]

    def run(self, jobs: Jobs | Sequence[tuple[str, MakeJob]]) -> Iterator[Event]:
        """Run trials as long as there are any, and report events as they come.

        Raises ResultsError when the results folder cannot be used any more.
        """
        if isinstance(jobs, Sequence):
            in_turn = InTurn(jobs)
            for event in self.run(in_turn):
                in_turn.follow(event)
                yield event
            return
        while jobs.waiting():
            taken = jobs.take()
            if taken is None:
                time.sleep(POLL)
            else:
                yield from self._trial(*taken)

    def close(self) -> None:
        """Nothing is left running."""

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _trial(self, trial: str, make_job: MakeJob) -> Iterator[Event]:
        try:
            job = make_job(self._device)
        except DataError as error:
            yield Failed(trial, "data", str(error))
            return
        yield Started(trial, self._device)
        way = visits(dataclasses.replace(job, guarded=False))
        while True:
            try:
                visit = next(way)
            except StopIteration as end:
                yield Finished(trial, end.value)
                return
            except TrialError as error:
                if isinstance(error.__cause__, bdb.BdbQuit):
                    raise KeyboardInterrupt from error
                yield Failed(trial, error.cause, error.text)
                return
            except BusyError as busy:
                yield Postponed(trial, busy.segment, busy.epoch)
                return
            yield EpochDone(trial, visit)
