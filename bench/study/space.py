"""What may be tuned of a method, and how a point of that space becomes a trial."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bench import names, plugins
from bench.errors import RequestError, unknown
from bench.names import Part
from bench.plan import PartSpec, TrialSpec

Point = Mapping[str, float]
"""A value per axis, by its name."""


@dataclass(frozen=True)
class Axis:
    """One searched setting: its range, which always holds the value an untuned trial has."""

    part: str
    setting: str
    default: float
    low: float
    high: float
    log: bool = False
    whole: bool = False
    levels: int | None = None

    @property
    def name(self) -> str:
        """`rollingq.rho`."""
        return f"{self.part}.{self.setting}"

    @property
    def values(self) -> tuple[float, ...] | None:
        """All values that can be drawn, ascending, the default among them; None for a continuous range."""
        if self.levels is None and not self.whole:
            return None
        count = self.levels or round(self.high - self.low) + 1
        return tuple(sorted({*self._spaced(count), self.default}))

    def spread(self, count: int) -> list[float]:
        """At most `count` values over the whole range, evenly spaced (in the logarithm if `log`)."""
        values = self.values
        if values is None:
            return self._spaced(count)
        if count >= len(values):
            return list(values)
        chosen = np.linspace(0, len(values) - 1, count) if count > 1 else np.array([(len(values) - 1) / 2])
        return [values[i] for i in np.unique(np.rint(chosen).astype(int))]

    def draw(self, generator: np.random.Generator) -> float:
        """A random value."""
        values = self.values
        if values is not None:
            return values[int(generator.integers(len(values)))]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        drawn = float(generator.uniform(low, high))
        return self.neat(math.exp(drawn) if self.log else drawn)

    def neat(self, value: float) -> float:
        """A value inside the range with four significant digits, so that a tuned setting can be typed."""
        if self.whole:
            return round(value)
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def _spaced(self, count: int) -> list[float]:
        if count == 1:
            return [self.default]
        space = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(self.neat(float(x)) for x in space(self.low, self.high, count)))


@dataclass(frozen=True)
class SearchSpace:
    """The searched settings of a method, in its order."""

    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, spec: TrialSpec, label: str = "", only: Sequence[str] = ()) -> SearchSpace:
        """What is searched of a trial's method.

        Settings written in `label` are kept. A composition is searched in its strategies' settings, on the fusion as
        it stands; a fusion without a tunable strategy in its own. `only` names settings (`fusion.dropout`) instead.
        Raises RequestError for a setting that has no search range.
        """
        parts = [spec.fusion, *spec.strategies]
        axes = [axis for part in parts for axis in _axes(part)]
        if only:
            known = {axis.name: axis for axis in axes}
            strangers = [name for name in only if name not in known]
            if strangers:
                raise unknown("setting to search", strangers[0], known, f"tuning {spec.method}")
            return cls(tuple(known[name] for name in known if name in only))
        kept = _typed(label, spec)
        free = [axis for axis in axes if axis.name not in kept]
        of_strategies = [axis for axis in free if axis.part != spec.fusion.name]
        tunable_strategies = any(axis.part != spec.fusion.name for axis in axes)
        return cls(tuple(of_strategies if tunable_strategies else free))

    @property
    def defaults(self) -> dict[str, float]:
        """The point of an untuned trial."""
        return {axis.name: axis.default for axis in self.axes}

    def grid(self, count: int) -> list[dict[str, float]]:
        """The largest regular grid of at most `count` points."""
        per_axis = max(1, count)
        while per_axis > 1 and self._size(per_axis) > count:
            per_axis -= 1
        return self.combinations(per_axis)

    def combinations(self, per_axis: int) -> list[dict[str, float]]:
        """Every combination of at most `per_axis` values of every setting."""
        values = [axis.spread(per_axis) for axis in self.axes]
        keys = [axis.name for axis in self.axes]
        return [dict(zip(keys, point, strict=True)) for point in product(*values)]

    def draws(self, count: int, seed: int) -> list[dict[str, float]]:
        """`count` random points, the defaults first."""
        generator = np.random.default_rng(seed)
        drawn = [{axis.name: axis.draw(generator) for axis in self.axes} for _ in range(count - 1)]
        return [self.defaults, *drawn]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values."""
        return [dataclasses.asdict(axis) for axis in self.axes]

    @classmethod
    def from_json(cls, values: Sequence[Mapping[str, Any]]) -> SearchSpace:
        """The space that `to_json` wrote."""
        return cls(tuple(Axis(**axis) for axis in values))

    def _size(self, per_axis: int) -> int:
        return math.prod(len(axis.spread(per_axis)) for axis in self.axes)


def at(spec: TrialSpec, point: Point) -> TrialSpec:
    """A trial with the settings of a point; all else as it was."""
    fusion = _with(spec.fusion, point)
    strategies = tuple(_with(part, point) for part in spec.strategies)
    text = "+".join(_text(part) for part in (fusion, *strategies))
    return dataclasses.replace(spec, method=text, fusion=fusion, strategies=strategies)


def _axes(part: PartSpec) -> list[Axis]:
    kind = plugins.load("methods", part.name).plugin.Settings
    types = typing.get_type_hints(kind)
    axes = []
    for field in dataclasses.fields(kind):
        about = names.hyperparameter(field)
        if about.search is None:
            continue
        default = part.settings[field.name]
        if about.log and default <= 0:
            raise RequestError(
                f"tuning {part.name}: {field.name}={default} cannot be the start of a logarithmic search; "
                f"give a value above 0 (its range is {about.search[0]} to {about.search[1]})"
            )
        whole = types[field.name] is int
        number = int if whole else float  # 1 and 1.0 would be two trials
        low, high = number(min(about.search[0], default)), number(max(about.search[1], default))
        axes.append(Axis(part.name, field.name, number(default), low, high, about.log, whole, about.levels))
    return axes


def _typed(label: str, spec: TrialSpec) -> set[str]:
    """The settings that a method text names, by axis name."""
    typed = set()
    parts = {part.name for part in (spec.fusion, *spec.strategies)}
    for word in re.split(r"\+(?=[a-z_])", label.strip()) if label.strip() else ():
        name, given = names.split_settings(word)
        owner = name if name in parts else spec.fusion.name  # an alias or a modality stands for the fusion
        typed |= {f"{owner}.{key}" for key in given}
    return typed


def _with(part: PartSpec, point: Point) -> PartSpec:
    own = {key.split(".", 1)[1]: value for key, value in point.items() if key.split(".", 1)[0] == part.name}
    return dataclasses.replace(part, settings={**part.settings, **own}) if own else part


def _text(part: PartSpec) -> str:
    loaded = plugins.load("methods", part.name)
    settings = names.fill(loaded.plugin.Settings, part.settings, part.name)
    return Part(part.name, loaded.plugin, settings, part.code).text
