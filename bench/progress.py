"""What a person sees while trials run: a live display on a terminal, one line per trial elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench.execute.events import EpochDone, Event, Noted, Postponed, Started
from bench.plan import TrialSpec
from bench.sweep import Outcome


class Display:
    """Shows the trials of a sweep as they go."""

    def __init__(self, trials: Sequence[TrialSpec], quiet: bool = False) -> None:
        self._specs = {spec.id: spec for spec in trials}
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and not quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._live, transient=True)
        self._all = self._progress.add_task("trials", total=len(trials))
        self._running: dict[str, TaskID] = {}
        self._count = 0

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def observe(self, event: Event) -> None:
        """Follow a trial's epochs."""
        spec = self._specs.get(event.trial)
        if isinstance(event, Started) and spec is not None:
            self._running[event.trial] = self._progress.add_task(_name(spec), total=spec.recipe.epochs)
        elif isinstance(event, EpochDone) and event.trial in self._running:
            self._progress.advance(self._running[event.trial])
        elif isinstance(event, Postponed) and event.trial in self._running:
            self._progress.remove_task(self._running.pop(event.trial))
        elif isinstance(event, Noted):
            self._progress.console.print(event.text, markup=False)

    def done(self, outcome: Outcome) -> None:
        """One line for a trial that ended."""
        self._count += 1
        task = self._running.pop(outcome.spec.id, None)
        if task is not None:
            self._progress.remove_task(task)
        self._progress.advance(self._all)
        head = f"[{self._count}/{len(self._specs)}] {_name(outcome.spec)}"
        if outcome.status == "finished":
            line = f"{head}: {_on_val(outcome.scores)}, {outcome.seconds:.1f} s"
        else:
            line = f"{head}: failed: {outcome.status}: {_first_line(outcome.text)}"
        self._progress.console.print(line, markup=False)


def _on_val(scores: Mapping[str, Any]) -> str:
    """The best val score and its epoch; a published split has no val."""
    if "val" not in scores:
        return "trained; its split has no val"
    metric, value = next(iter(scores["val"].items()))
    shown = f"{100 * value:.1f} %" if metric in ("accuracy", "macro_f1") else f"{value:.3f}"
    return f"val {metric} {shown} at epoch {scores['selected_epoch']}"


class Preparing:
    """Shows the preparation of data sets: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("preparing {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=self._console, disable=not self._console.is_terminal, transient=True
        )
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Preparing:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Report the state of one data set."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            sys.stderr.write(f"preparing {name}: {done} of {total} items\n")


class Asking:
    """Shows analyses of trials as they are made: a bar on a terminal, a line each elsewhere."""

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and not quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, disable=not self._live, transient=True)
        self._task, self._total, self._count = self._progress.add_task("measuring", total=total), total, 0

    def __enter__(self) -> Asking:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def done(self, analysis: str, spec: TrialSpec, seconds: float, problem: str = "") -> None:
        """One measurement was made, or failed."""
        self._count += 1
        self._progress.update(self._task, advance=1, description=analysis)
        if problem or not self._live:
            ending = f"failed: {problem}" if problem else f"{seconds:.1f} s"
            line = f"[{self._count}/{self._total}] {analysis}: {_name(spec)}: {ending}"
            self._progress.console.print(line, markup=False)


def _name(spec: TrialSpec) -> str:
    fold = f" fold {spec.fold}" if spec.fold else ""
    return f"{spec.method} on {spec.data}{fold} seed {spec.seed}"


def _first_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
