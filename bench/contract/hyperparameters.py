"""Settings of plugins: fields that know their range, their search range and their neutral value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Hyperparameter:
    """What may be asked of one field of a `Settings` class, beside its type and default."""

    low: int | float | None = None
    high: int | float | None = None
    choices: tuple[Any, ...] | None = None
    search: tuple[int | float, int | float] | None = None
    log: bool = False
    levels: int | None = None
    neutral: Any = None
    place: bool = False
    help: str = ""


def setting(
    default: Any,
    *,
    low: int | float | None = None,
    high: int | float | None = None,
    choices: Sequence[Any] | None = None,
    search: tuple[int | float, int | float] | None = None,
    log: bool = False,
    levels: int | None = None,
    neutral: Any = None,
    place: bool = False,
    help: str = "",
) -> Any:
    """A dataclass field with a default, an allowed range, a search range and a neutral value.

    `low`/`high` are inclusive bounds a user may not leave; `search` is the range `bench tune` draws from (on a
    logarithmic scale if `log`; `levels` evenly spaced values of it where given, so that trials which agree in this
    setting can share what they trained), `choices` the allowed values of a categorical setting; `neutral` is the
    value at which the plugin does nothing, so that a contract test can hold it against the bare fusion. A `place`
    (a path) only says where something lies and is no part of a trial's id.
    """
    if choices is not None and default not in choices:
        raise ValueError(f"setting: default {default!r} is not among the choices {tuple(choices)}")
    extra = Hyperparameter(low, high, tuple(choices) if choices else None, search, log, levels, neutral, place, help)
    return field(default=default, metadata={"hyperparameter": extra})


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of a plugin; subclass it inside the plugin, frozen, with `setting(...)` fields."""
