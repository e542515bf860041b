"""An analysis: a question put to one finished trial, and how the answers of many trials become tables and figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bench import stats
from bench.analysis.loaded import LoadedTrial
from bench.api import Capability, Settings, TaskSpec
from bench.assembly import restored
from bench.plan import TrialSpec
from bench.report.layout import Table
from bench.stats import Interval, Sizes


@dataclass(frozen=True)
class Measurement:
    """What an analysis found in one trial: nested plain values, and arrays by name where samples matter."""

    values: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def at(self, *keys: str) -> float:
        """The number under these keys of `values`. Raises KeyError where there is none."""
        found: Any = self.values
        for key in keys:
            found = found[key]
        return float(found)

    def has(self, *keys: str) -> bool:
        """Whether there is a number under these keys."""
        try:
            return np.isfinite(self.at(*keys)).item()
        except (KeyError, TypeError):
            return False


@dataclass(frozen=True)
class Answer:
    """A measurement and the trial it was made on."""

    trial: str
    fold: int
    seed: int
    measured: Measurement
    epochs: Sequence[Mapping[str, Any]] = ()
    """The trial's stored epoch records, as plain values."""


@dataclass(frozen=True)
class Row:
    """One method on one data set under one protocol: its trials that were measured, in the order of the plan."""

    label: str
    method: str
    dataset: str
    protocol: str
    metric: str
    modalities: tuple[str, ...]
    """All of the data set."""
    answers: tuple[Answer, ...]
    wanted: int
    """How many trials were asked for."""
    sizes: Sizes | None = None
    """Of a fold's train and test part."""

    @property
    def measurements(self) -> list[Measurement]:
        """One per trial."""
        return [answer.measured for answer in self.answers]

    def interval(self, *keys: str, scale: float = 1.0) -> Interval:
        """The mean of a number of `values` over the trials, with its 95 % interval over seeds (and folds)."""
        return self.over(lambda measured: scale * measured.at(*keys))

    def over(self, read: Callable[[Measurement], float]) -> Interval:
        """The same for whatever `read` makes of one measurement."""
        folds = [answer.fold for answer in self.answers]
        return stats.interval([read(measured) for measured in self.measurements], folds=folds, sizes=self.sizes)

    def identity(self) -> dict[str, Any]:
        """What tells this row from others in a file of values."""
        names = ("dataset", "protocol", "label", "method", "metric")
        return {**{name: getattr(self, name) for name in names}, "trials": len(self.answers)}


class Analysis(ABC):
    """Override `measure` and `tables`; the package's docstring has an example."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    """Which table, figure or claim of which paper it repeats."""
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, settings: Any = None) -> None:
        self.settings: Any = self.Settings() if settings is None else settings

    def skips(self, spec: TrialSpec, task: TaskSpec) -> str | None:
        """Why it does not apply to a method on a data set; None if it does. `task` has the modalities in use."""
        return None

    @abstractmethod
    def measure(self, trial: LoadedTrial) -> Measurement:
        """The answer for one trial: a function of its weights and data, whatever the machine or the batch size."""

    @abstractmethod
    def tables(self, rows: Sequence[Row]) -> list[Table]:
        """Tables over all rows that have an answer; their names begin with the analysis's."""

    def figures(self, rows: Sequence[Row]) -> dict[str, str]:
        """SVG texts by the ending of their file's name, which may be empty."""
        return {}


def provides(spec: TrialSpec) -> frozenset[Capability]:
    """What the fusion of a trial provides."""
    plugin, settings = restored("methods", spec.fusion)
    provided: frozenset[Capability] = plugin.provides(settings)
    return provided


def by_dataset(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that can be compared: of one data set, protocol and metric, in order of first appearance."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.protocol, row.metric), []).append(row)
    yield from groups.values()
