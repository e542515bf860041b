"""Plugins by name: one file in `methods/` or `datasets/` is one plugin.

`bench.plugins` is a module with a `__path__` of its own, so that `methods/concat.py` imports as
`bench.plugins.methods.concat` from a checkout, an editable install or a wheel, without a top-level package called
`datasets` that would hide Hugging Face's. The path is the folder of the bench.yaml in use, then the bundled plugins.
Installed packages add more by the entry point groups `bench.methods` and `bench.datasets`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import inspect
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal

from bench.api import DataSet, Derived, Fusion, Plugin, Strategy
from bench.errors import RequestError, unknown

Group = Literal["methods", "datasets"]

_HERE = Path(__file__).resolve().parent
_BUNDLED = _HERE / "bundled" if (_HERE / "bundled").is_dir() else _HERE.parent

__path__ = [str(_BUNDLED)]


@dataclass(frozen=True)
class Broken:
    """A plugin file that does not import, or that does not hold exactly one plugin."""

    name: str
    origin: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """A plugin that can be used: its class, where it comes from, and the hash of its code."""

    name: str
    origin: str
    plugin: type[Plugin] | type[DataSet]
    code: str


def use_folder(folder: Path) -> None:
    """Let the plugins beside a bench.yaml come first. Call it once, before anything is loaded."""
    entry = str(folder.resolve())
    if entry not in __path__:
        __path__.insert(0, entry)
        importlib.invalidate_caches()
        names.cache_clear()
        find.cache_clear()


def folders() -> list[str]:
    """Where plugins are looked for, in order; a worker is given these."""
    return list(__path__)


@cache
def names(group: Group) -> tuple[str, ...]:
    """The names of all plugins of a group, broken ones included."""
    found = {
        file.stem
        for folder in __path__
        for file in Path(folder, group).glob("*.py")
        if not file.stem.startswith("_") and file.stem.isidentifier()
    }
    return tuple(sorted(found | set(_entry_points(group))))


@cache
def find(group: Group, name: str) -> Loaded | Broken:
    """A plugin by its name, or why it cannot be used."""
    entry_point = _entry_points(group).get(name)
    target = entry_point.module if entry_point and not _file_of(group, name) else f"bench.plugins.{group}.{name}"
    origin = _file_of(group, name) or target
    try:
        module = importlib.import_module(target)
        return Loaded(name, str(module.__file__), _only_class(module), code_hash(module))
    except Exception:
        return Broken(name, origin, traceback.format_exc(limit=-3))


def load(group: Group, name: str, where: str = "") -> Loaded:
    """A usable plugin; RequestError with near matches if there is none, or with its traceback if it is broken."""
    if name not in names(group):
        raise unknown(group.removesuffix("s").replace("dataset", "data set"), name, names(group), where)
    found = find(group, name)
    if isinstance(found, Broken):
        raise RequestError(f"{found.origin}: this plugin cannot be imported:\n{found.reason}")
    return found


def code_hash(module: ModuleType) -> str:
    """SHA-256 of a module's syntax tree without docstrings: comments and documentation do not count."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()


def _plain(node: object) -> object:
    """A syntax tree as nested tuples without empty fields, which differ between versions of Python."""
    if isinstance(node, ast.AST):
        fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if value not in (None, []))
        return (type(node).__name__, *fields)
    return tuple(_plain(item) for item in node) if isinstance(node, list) else node


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _file_of(group: Group, name: str) -> str | None:
    candidates = (Path(folder, group, f"{name}.py") for folder in __path__)
    return next((str(file) for file in candidates if file.is_file()), None)


def _entry_points(group: Group) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=f"bench.{group}")}


def _only_class(module: ModuleType) -> type[Plugin] | type[DataSet]:
    kinds = (Fusion, Strategy, Derived, DataSet)
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, kinds) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        listed = ", ".join(c.__name__ for c in own) or "none"
        raise TypeError(f"{module.__file__}: expected exactly one Fusion, Strategy, Derived or DataSet; found {listed}")
    return own[0]
