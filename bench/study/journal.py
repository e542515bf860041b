"""A study's memory: which settings were tried and what they scored, in a journal that survives its process.

Optuna proposes and remembers; what it is told comes from `bench.study.tuning`. Every process holds a lock for each
trial it runs, and a lock dies with its process: so a trial that is running in the journal but held by nobody was
interrupted, and its settings are proposed again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from bench.streams import derive
from bench.study.halving import Halving
from bench.study.record import Sampler
from bench.study.space import Axis, SearchSpace

State = Literal["running", "finished", "stopped", "failed"]
STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
SEED_RANGE = 2**31


@dataclass(frozen=True)
class Tried:
    """What the journal knows of one trial."""

    number: int
    point: Mapping[str, float]
    state: State
    value: float | None
    """The best val score until it ended or was stopped."""
    facts: Mapping[str, Any]


class _Lock:
    """A lock of the operating system: unlike Optuna's link file it is gone when its process is killed."""

    def __init__(self, file: Path) -> None:
        self._lock = FileLock(file)

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


class Journal:
    """The trials of one study. `points` are proposed in order where given; else the sampler proposes."""

    def __init__(
        self,
        folder: Path,
        name: str,
        space: SearchSpace,
        sampler: Sampler,
        seed: int,
        maximised: bool,
        points: Sequence[Mapping[str, float]] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.space, self.sampler, self.seed = folder, name, space, sampler, seed
        self.maximised, self.points = maximised, points
        self._mutex = FileLock(folder / "study.lock")
        self._held: dict[int, tuple[Trial, FileLock]] = {}
        logging.getLogger("optuna").setLevel(logging.WARNING)
        lock: Any = _Lock(folder / "journal.lock")  # the base class of Optuna's locks is not public
        backend = JournalFileBackend(str(folder / "journal.log"), lock_obj=lock)
        with self._mutex:
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name=name,
                load_if_exists=True,
                direction="maximize" if maximised else "minimize",
            )

    def propose(self, limit: int) -> tuple[int, dict[str, float]] | None:
        """The number and the point of the next trial, held until it is told; None where `limit` trials are begun.

        Interrupted trials come first, then the defaults, then the given points or the sampler's. With the same seed
        the proposals of a single worker are the same whether it was interrupted or not.
        """
        with self._mutex:
            self._put_back_interrupted()
            trials = self._study.get_trials(deepcopy=False)
            position = sum(t.state in STATES and not _interrupted(t) for t in trials)
            if position >= (limit if self.points is None else min(limit, len(self.points))):
                return None
            if not any(t.state == TrialState.WAITING for t in trials):
                if self.points is not None:
                    self._study.enqueue_trial(self._params(self.points[position]))
                elif position == 0:
                    self._study.enqueue_trial(self._params(self.space.defaults))
            self._study.sampler = self._sampler_at(position)
            trial = self._study.ask({axis.name: _distribution(axis) for axis in self.space.axes})
            lease = self._lease(trial.number)
            lease.acquire()
            self._held[trial.number] = trial, lease
        return trial.number, self._point(trial.params)

    def note(self, number: int, **facts: Any) -> None:
        """Remember facts of a running trial."""
        for key, value in facts.items():
            self._held[number][0].set_user_attr(key, value)

    def report(self, number: int, epochs: int, best: float) -> None:
        """Remember the best val score of a running trial after so many epochs."""
        self._held[number][0].report(best, epochs)

    def goes_on(self, number: int, epochs: int, halving: Halving) -> bool:
        """Whether a trial is good enough at a rung to be trained further."""
        trials = [t for t in self._study.get_trials(deepcopy=False) if not _interrupted(t)]
        scores = {t.number: t.intermediate_values[epochs] for t in trials if epochs in t.intermediate_values}
        own = scores.pop(number)
        return halving.promotes(own, list(scores.values()), self.maximised)

    def tell(self, number: int, state: State, facts: Mapping[str, Any], value: float | None = None) -> None:
        """End a trial; `value` is the score of one that finished."""
        self.note(number, outcome=state, **facts)
        told = next(key for key, name in STATES.items() if name == state)
        with self._mutex:
            self._study.tell(number, value, state=told)
        self.release(number)

    def release(self, number: int | None = None) -> None:
        """Let go of a trial, or of all: what is still running counts as interrupted from now on."""
        for held in [number] if number is not None else list(self._held):
            _, lease = self._held.pop(held)
            lease.release()

    def tried(self) -> list[Tried]:
        """Every trial but the interrupted ones, in order."""
        trials = [t for t in self._study.get_trials(deepcopy=False) if t.state in STATES and not _interrupted(t)]
        return [Tried(t.number, self._point(t.params), STATES[t.state], _value(t), dict(t.user_attrs)) for t in trials]

    def trained_epochs(self) -> int:
        """What all trials trained, interrupted ones included (their repetition finds it stored)."""
        return sum(t.user_attrs.get("trained_epochs", 0) for t in self._study.get_trials(deepcopy=False))

    def importance(self) -> dict[str, float] | None:
        """The share of every setting in what makes a trial score well (PED-ANOVA); None with too few trials."""
        finished = [t for t in self._study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        if len(finished) < 10 or len({t.value for t in finished}) < 2:
            return None
        try:
            found = optuna.importance.get_param_importances(self._study)
        except (ValueError, RuntimeError):  # it asks for variation that this study may not have
            return None
        return {axis.name: float(found.get(axis.name, 0.0)) for axis in self.space.axes}

    def _put_back_interrupted(self) -> None:
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number in self._held:
                continue
            with _free(self._lease(trial.number)) as free:
                if free:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    self._study.enqueue_trial(trial.params)

    def _lease(self, number: int) -> FileLock:
        return FileLock(self.folder / f"trial-{number}.lock")

    def _sampler_at(self, position: int) -> optuna.samplers.BaseSampler:
        # A sampler of its own for every position: one that lives on would repeat itself after a restart.
        seed = derive(self.seed, self.name, position) % SEED_RANGE
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def _params(self, point: Mapping[str, float]) -> dict[str, float]:
        return {axis.name: _param(axis, point[axis.name]) for axis in self.space.axes}

    def _point(self, params: Mapping[str, float]) -> dict[str, float]:
        return {axis.name: _value_of(axis, params[axis.name]) for axis in self.space.axes if axis.name in params}


def optuna_version() -> str:
    """Its proposals are the same within one version only."""
    return str(optuna.__version__)


@contextlib.contextmanager
def _free(lock: FileLock) -> Iterator[bool]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _interrupted(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "outcome" not in trial.user_attrs


def _value(trial: FrozenTrial) -> float | None:
    """The value it was told, or the last that was reported: reports are the best so far."""
    if trial.value is not None:
        return trial.value
    return trial.intermediate_values[trial.last_step] if trial.last_step is not None else None


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.levels is not None and axis.values is not None:
        return IntDistribution(0, len(axis.values) - 1)  # the position among the levels keeps their order
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _param(axis: Axis, value: float) -> float:
    if axis.levels is not None and axis.values is not None:
        return min(range(len(axis.values)), key=lambda i: abs(axis.values[i] - value))  # type: ignore[index]
    return value


def _value_of(axis: Axis, param: float) -> float:
    if axis.levels is not None and axis.values is not None:
        return axis.values[int(param)]
    return axis.default if param == axis.default else axis.neat(param)
