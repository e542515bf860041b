"""Settings of a plugin as its contract tests vary them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Literal

from bench import names
from bench.api import Settings
from bench.conformance.findings import expect


def well_formed(kind: type[Any]) -> None:
    """A frozen dataclass whose defaults, neutral values and search ranges lie in what each field allows."""
    what = f"{kind.__module__}.{kind.__qualname__}"
    expect(issubclass(kind, Settings), f"{what}: expected a subclass of bench.api.Settings")
    own = vars(kind).get("__dataclass_params__")  # an inherited one knows none of the fields written here
    expect(own is not None and own.frozen, f"{what}: expected @dataclass(frozen=True) on the class itself")
    for field in dataclasses.fields(kind):
        at = f"{what}.{field.name}"
        expect(field.default is not dataclasses.MISSING, f"{at}: expected a default value, found none")
        about = names.hyperparameter(field)
        names.fill(kind, {field.name: field.default}, what)
        if about.neutral is not None:
            names.fill(kind, {field.name: about.neutral}, f"{what} (neutral)")
        if about.search is not None:
            low, high = about.search
            expect(low < high, f"{at}: the search range {about.search} is empty")
            expect(not about.log or low > 0, f"{at}: a logarithmic search cannot begin at {low}")
            for end in about.search:
                names.fill(kind, {field.name: end}, f"{what} (search range)")


def variants(settings: Any, bounds: bool = True) -> Iterator[Any]:
    """The settings, and the same with one field at another choice or truth value, or (`bounds`) at its lower bound."""
    yield settings
    types = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        about, kind = names.hyperparameter(field), types[field.name]
        values: list[Any] = list(about.choices or ())
        if typing.get_origin(kind) is Literal:
            values += typing.get_args(kind)
        elif kind is bool:
            values += [False, True]
        elif bounds and about.low is not None and not about.place:
            values.append(kind(about.low) if kind in (int, float) else about.low)
        now = getattr(settings, field.name)
        for value in dict.fromkeys(v for v in values if v != now):
            yield dataclasses.replace(settings, **{field.name: value})


def neutral(settings: Any) -> Any:
    """The settings with every field at its neutral value that has one; None where no field has."""
    fields = dataclasses.fields(settings)
    values = {f.name: names.hyperparameter(f).neutral for f in fields}
    known = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(settings, **known) if known else None


def described(settings: Any) -> str:
    """The settings that differ from their defaults, or `defaults`."""
    return ":".join(f"{k}={v}" for k, v in names.changed(settings).items()) or "defaults"
