"""Method and data set texts: `fusion[:key=value...][+strategy[:key=value...]]...` and what they stand for.

Lists split on `,(?=[a-z_])`, strategies on `+(?=[a-z_])`, settings on `:(?=[a-z_]\\w*=)`, so that numbers such as
1e+3, Windows paths and URLs survive as values.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench import plugins
from bench.api import DataSet, Derived, Fusion, Hyperparameter, Plugin, Settings, Strategy
from bench.errors import RequestError, unknown

_STRATEGIES = re.compile(r"\+(?=[a-z_])")

Overrides = Mapping[str, Mapping[str, Any]]
"""Plugin name -> settings given elsewhere than in the text (bench.yaml, --set, a data set's published settings)."""


@dataclass(frozen=True)
class Part:
    """One plugin with all its settings filled in."""

    name: str
    plugin: type[Any]
    settings: Settings
    code: str

    @property
    def text(self) -> str:
        """The shortest text that gives this part: settings that differ from their defaults, in field order."""
        written = [f":{k}={_write(v)}" for k, v in changed(self.settings).items()]
        return self.name + "".join(written)


@dataclass(frozen=True)
class Method:
    """A fusion (or derived row) and its strategies; `label` is what was typed."""

    label: str
    base: Part
    strategies: tuple[Part, ...] = ()

    @property
    def canonical(self) -> str:
        """The full text: equal for every spelling of the same method."""
        return "+".join(part.text for part in (self.base, *self.strategies))

    @property
    def derived(self) -> bool:
        """Whether it is computed from other rows and never trained."""
        return issubclass(self.base.plugin, Derived)


def split_settings(text: str, where: str = "") -> tuple[str, dict[str, str]]:
    """`name:key=value:key=value` as name and settings."""
    name, *items = re.split(r":(?=[a-z_]\w*=)", text)
    given: dict[str, str] = {}
    for item in items:
        key, value = item.split("=", 1)
        if key in given:
            raise RequestError(f"{where or text}: setting {key!r} is given twice")
        given[key] = value
    if not re.fullmatch(r"[a-z_]\w*", name):
        raise RequestError(
            f"{where or text}: {text!r} is no name with settings; write name:key=value, e.g. rollingq:rho=2:beta=0.3"
        )
    return name, given


def first_name(text: str, where: str = "") -> str:
    """The name a method text begins with."""
    return split_settings(_STRATEGIES.split(text.strip())[0], where)[0]


def resolve_method(text: str, modalities: Sequence[str], overrides: Overrides | None = None, where: str = "") -> Method:
    """The method a text stands for on a data set with these modalities. Raises RequestError for anything unknown."""
    overrides = overrides or {}
    words = _STRATEGIES.split(text.strip())
    expanded = _expand(words[0], modalities, where)
    if expanded != words[0]:
        inner = resolve_method(expanded, modalities, overrides, where)
        base, first = inner.base, list(inner.strategies)
    else:
        part = resolve_part("methods", words[0], overrides, where)
        if issubclass(part.plugin, Strategy):
            home = resolve_method(part.plugin.home, modalities, overrides, where)
            base, first = home.base, [*home.strategies, part]
        else:
            base, first = part, []
    rest = [resolve_part("methods", word, overrides, where) for word in words[1:]]
    for part in rest:
        if not issubclass(part.plugin, Strategy):
            raise RequestError(f"{where or text}: {part.name!r} is a fusion and cannot follow '+'; it must come first")
    strategies = (*first, *rest)
    twice = [p.name for i, p in enumerate(strategies) if p.name in {q.name for q in strategies[:i]}]
    if twice:
        raise RequestError(f"{where or text}: strategy {twice[0]!r} is named twice")
    if strategies and issubclass(base.plugin, Derived):
        raise RequestError(f"{where or text}: {base.name!r} is computed from other rows; no strategy can act on it")
    return Method(text.strip(), base, strategies)


def resolve_dataset(text: str, overrides: Overrides | None = None, where: str = "") -> tuple[Part, DataSet]:
    """The data set a text stands for, with an instance of its plugin."""
    part = resolve_part("datasets", text.strip(), overrides or {}, where)
    return part, part.plugin(part.settings)


def resolve_part(group: plugins.Group, text: str, overrides: Overrides, where: str = "") -> Part:
    """One plugin with settings from its defaults, `overrides` and the text, in that order."""
    name, given = split_settings(text, where)
    loaded = plugins.load(group, name, where)
    kind = (Fusion, Strategy, Derived) if group == "methods" else (DataSet,)
    if not issubclass(loaded.plugin, kind):
        raise RequestError(f"{loaded.origin}: holds a {loaded.plugin.__bases__[0].__name__}, not one of {group}")
    settings = fill(
        loaded.plugin.Settings, {**overrides.get(name, {}), **given}, f"{where}{': ' if where else ''}{name}"
    )
    return Part(name, loaded.plugin, settings, loaded.code)


def all_methods(modalities: Iterable[str]) -> list[str]:
    """What `--methods all` means: every modality alone, the derived rows, every fusion, every strategy at home."""
    found = {name: plugins.find("methods", name) for name in plugins.names("methods")}
    usable: dict[str, type[Plugin]] = {
        name: entry.plugin
        for name, entry in found.items()
        if isinstance(entry, plugins.Loaded) and issubclass(entry.plugin, Plugin) and entry.plugin.listed
    }
    order = (Derived, Fusion, Strategy)
    ranked = [name for kind in order for name, plugin in usable.items() if issubclass(plugin, kind)]
    return [*modalities, *(name for name in ranked if name != "unimodal")]


def fill(kind: type[Settings], given: Mapping[str, Any], where: str) -> Any:
    """An instance of a settings class from texts or values; RequestError names the setting and what it allows."""
    types_ = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {}
    for key, value in given.items():
        if key not in fields:
            raise unknown("setting", key, fields, where)
        values[key] = _checked(fields[key], types_[key], value, f"{where}:{key}")
    return kind(**values)


def changed(settings: Settings) -> dict[str, Any]:
    """The settings that differ from their defaults, in field order."""
    return {
        f.name: getattr(settings, f.name)
        for f in dataclasses.fields(settings)
        if getattr(settings, f.name) != f.default
    }


def places(settings: Settings) -> tuple[str, ...]:
    """The settings that only say where something lies."""
    return tuple(f.name for f in dataclasses.fields(settings) if hyperparameter(f).place)


def hyperparameter(field: dataclasses.Field[Any]) -> Hyperparameter:
    """What may be asked of a settings field."""
    about: Hyperparameter = field.metadata.get("hyperparameter", Hyperparameter())
    return about


def _expand(word: str, modalities: Sequence[str], where: str) -> str:
    name, given = split_settings(word, where)
    if name in plugins.names("methods"):
        return word
    rest = "".join(f":{k}={v}" for k, v in given.items())
    for other in plugins.names("methods"):
        entry = plugins.find("methods", other)
        if isinstance(entry, plugins.Loaded) and issubclass(entry.plugin, Plugin) and name in entry.plugin.aliases:
            return entry.plugin.aliases[name] + rest
    if name in modalities:
        return f"unimodal:modality={name}{rest}"
    raise unknown("method", name, {*plugins.names("methods"), *modalities}, where)


def _checked(field: dataclasses.Field[Any], kind: Any, value: Any, where: str) -> Any:
    about = hyperparameter(field)
    try:
        value = _converted(kind, value)
    except (TypeError, ValueError):
        raise RequestError(f"{where}={value}: expected {_type_name(kind)}, found {value!r}") from None
    if about.choices is not None and value not in about.choices:
        allowed = ", ".join(_write(c) for c in about.choices)
        raise RequestError(f"{where}={value}: must be one of {allowed}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = about.low, about.high
        if not (low is None or value >= low) or not (high is None or value <= high):
            bounds = f"{'-inf' if low is None else low} to {'inf' if high is None else high}"
            raise RequestError(f"{where}={value}: must lie in {bounds}")
    return value


def _converted(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is Literal:
        allowed = typing.get_args(kind)
        found = next((a for a in allowed if str(a) == str(value)), None)
        if found is None:
            raise ValueError
        return found
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if value is None or str(value).lower() in ("none", "null") else _converted(inner[0], value)
    if kind is bool:
        words = {
            "true": True,
            "1": True,
            "yes": True,
            "on": True,
            "false": False,
            "0": False,
            "no": False,
            "off": False,
        }
        return words[str(value).lower()] if str(value).lower() in words else _fail()
    if kind is int:
        return int(str(value))
    if kind is float:
        number = float(str(value))
        return number if math.isfinite(number) else _fail()
    return str(value)


def _fail() -> Any:
    raise ValueError


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(str(a) for a in typing.get_args(kind))
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}.get(kind, str(kind))


def _write(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
