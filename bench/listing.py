"""What is there: methods, data sets, trials, and the state of this installation, as plain values."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import names, plugins
from bench.api import Capability, DataSet, Derived, Fusion, Plugin, Strategy
from bench.data.prepared import find
from bench.errors import BenchError
from bench.plugins import Broken
from bench.store import Store
from bench.workplace import Workplace


def methods() -> list[dict[str, Any]]:
    """Every method plugin: kind, what it requires and provides, paper, settings; broken ones with their reason."""
    return [_method(name) for name in plugins.names("methods")]


def datasets(root: Path, prepared: Path) -> list[dict[str, Any]]:
    """Every data set plugin: facts, settings, and whether it is usable here, prepared or from its raw files."""
    return [_dataset(name, root, prepared) for name in plugins.names("datasets")]


def settings_of(kind: type[Any]) -> list[dict[str, Any]]:
    """The settings of a plugin with type, default, range and search range."""
    hints = typing.get_type_hints(kind)
    listed = []
    for field in dataclasses.fields(kind):
        about = names.hyperparameter(field)
        shown = {k: v for k, v in dataclasses.asdict(about).items() if v is not None and v is not False and v != ""}
        listed.append({"name": field.name, "type": _type(hints[field.name]), "default": field.default, **shown})
    return listed


def status(store: Store) -> dict[str, Any]:
    """How far the latest sweep is: rows with finished, failed and missing trials, and the causes of failures."""
    request = store.latest_sweep()
    rows = []
    failures: dict[str, Any] = {}
    for row in request["rows"] if request else ():
        ids = [trial for group in row["groups"] for trial in group["trials"]]
        failed = {i: store.failure(i) for i in ids if not store.has(i)}
        failures |= {i: {k: f[k] for k in ("cause", "text")} | {"label": row["label"]} for i, f in failed.items() if f}
        finished = sum(store.has(i) for i in ids)
        rows.append(
            {
                "label": row["label"],
                "dataset": row["dataset"],
                "finished": finished,
                "failed": sum(f is not None for f in failed.values()),
                "missing": len(ids) - finished,
            }
        )
    return {"results": str(store.folder), "trials": len(store.finished()), "rows": rows, "failures": failures}


def doctor(place: Workplace) -> list[dict[str, Any]]:
    """What works on this machine: one entry per check, with what would mend it."""
    checks = [_python(), *_libraries(), _accelerator(), _folder("results", place.results)]
    checks.append(_folder("prepared arrays", place.prepared))
    there = place.data_root.is_dir()
    checks.append(
        _check("data root", True, f"{place.data_root} {'' if there else '(not there; only sets without files work)'}")
    )
    for group in typing.get_args(plugins.Group):
        broken = [p for p in (plugins.find(group, n) for n in plugins.names(group)) if isinstance(p, Broken)]
        text = "; ".join(f"{b.origin}: {b.reason.strip().splitlines()[-1]}" for b in broken)
        checks.append(_check(group, not broken, text or f"{len(plugins.names(group))} plugins"))
    return checks


def _method(name: str) -> dict[str, Any]:
    entry = plugins.find("methods", name)
    if isinstance(entry, Broken):
        return {"name": name, "kind": "broken", "origin": entry.origin, "reason": entry.reason}
    plugin = typing.cast(type[Plugin], entry.plugin)
    settings = plugin.Settings()
    listed: dict[str, Any] = {
        "name": name,
        "kind": _kind(plugin),
        "about": _first_line(plugin),
        "requires": _texts(plugin.requires(settings)),
        "paper": plugin.paper,
        "reference": plugin.reference,
        "settings": settings_of(plugin.Settings),
        "origin": entry.origin,
    }
    if issubclass(plugin, Fusion):
        listed["provides"] = _texts(plugin.provides(settings))
    if issubclass(plugin, Strategy):
        listed |= {"home": plugin.home, "owns": sorted(plugin.owns)}
    return listed


def _dataset(name: str, root: Path, prepared: Path) -> dict[str, Any]:
    entry = plugins.find("datasets", name)
    if isinstance(entry, Broken):
        return {"name": name, "kind": "broken", "origin": entry.origin, "reason": entry.reason}
    plugin = typing.cast(type[DataSet], entry.plugin)
    try:
        dataset = plugin(plugin.Settings())
        there = find(name, dataset, entry.code, root, prepared) is not None
        reason = None if there else dataset.unusable(root)
    except BenchError as error:
        reason = str(error)
    return {
        "name": name,
        "kind": "data set",
        "title": plugin.title,
        "source": plugin.source,
        "licence": plugin.licence,
        "groups": plugin.groups,
        "known_faults": list(plugin.known_faults),
        "recipe": plugin.recipe,
        "usable": reason is None,
        "reason": (reason or "").removeprefix(f"{name}: "),
        "settings": settings_of(plugin.Settings),
        "origin": entry.origin,
    }


def _kind(plugin: type[Plugin]) -> str:
    kinds: Mapping[type[Plugin], str] = {Fusion: "fusion", Strategy: "strategy", Derived: "derived"}
    return next(word for base, word in kinds.items() if issubclass(plugin, base))


def _texts(capabilities: frozenset[Capability]) -> list[str]:
    return sorted(str(c) for c in capabilities)


def _first_line(plugin: type[Any]) -> str:
    return (plugin.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def _type(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _check(name: str, ok: bool, found: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found.strip()}


def _python() -> dict[str, Any]:
    return _check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _libraries() -> list[dict[str, Any]]:
    wanted = ("torch", "torchvision", "timm", "librosa", "mlflow", "optuna", "thop", "av")
    checks = []
    for name in wanted:
        try:
            checks.append(_check(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(_check(name, False, "not installed; `make setup` installs the pinned set"))
    return checks


def _accelerator() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        found = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    else:
        found = f"none; {len(os.sched_getaffinity(0))} CPU cores"
    return _check("accelerator", True, found)


def _folder(what: str, folder: Path) -> dict[str, Any]:
    parent = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    writable = os.access(parent, os.W_OK)
    free = shutil.disk_usage(parent).free / 1e9
    state = f"{folder}: {free:.1f} GB free" if writable else f"{folder}: cannot be written; name another folder"
    return _check(what, writable, state)
