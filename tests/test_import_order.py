"""Imports run one way, plugins keep to themselves, and each heavy library has one room: read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    {"errors", "network", "contract", "protocols", "recipes"},
    {"api", "config"},
    {"layers", "plugins"},
    {"encoders", "names"},
    {"composition"},
    {"data"},
    {"guard", "streams", "sites"},
    {"locks", "plan", "store"},
    {"assembly", "train"},
    {"segments"},
    {"trajectory"},
    {"trial", "scoring", "cost", "latency"},
    {"mirrored"},
    {"agenda", "retention", "stats", "tracking"},
    {"execute"},
    {"requested"},
    {"sweep"},
    {"study", "workplace"},
    {"calibration"},
    {"forecast"},
    {"analysis", "conformance", "listing", "progress", "report", "verify"},
    {"cli", "__main__"},
]
"""A part of the harness may import what stands in its own or an earlier line."""
ONE_ROOM = {
    "mlflow": {"bench/tracking.py"},
    "optuna": {"bench/study/journal.py"},
    "yaml": {"bench/config.py"},
    "typer": {
        f"bench/cli/{name}.py"
        for name in (
            "__init__",
            "analysing",
            "data",
            "ladder",
            "looking",
            "options",
            "planning",
            "running",
            "tracking",
            "tuning",
            "verifying",
        )
    },
    "ray": {"bench/execute/ray.py"},
    "submitit": {"bench/execute/slurm.py"},
}
ALLOWED = {
    "methods": {"bench.api", "bench.layers", "torch", "timm", "numpy", "jaxtyping"},
    "datasets": {
        "bench.api",
        "bench.data",
        "numpy",
        "pandas",
        "scipy",
        "sklearn",
        "av",
        "soundfile",
        "librosa",
        "torch",
        "jaxtyping",
    },
}
HARNESS = sorted((ROOT / "bench").rglob("*.py"))
PLUGINS = sorted([*(ROOT / "methods").glob("*.py"), *(ROOT / "datasets").glob("*.py")])


def imported(source: str) -> Iterator[str]:
    """Every module a source text imports, wherever in it; `from bench import x` counts as `bench.x`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            assert node.module is not None
            bare = node.module in ("bench", "bench.data")
            yield from (f"{node.module}.{a.name}" for a in node.names) if bare else (node.module,)


def beyond_order(part: str, source: str) -> list[str]:
    """The parts of the harness that a part imports though they come after it."""
    rank = {name: n for n, names in enumerate(ORDER) for name in names}
    used = {module.split(".")[1] for module in imported(source) if module.startswith("bench.")}
    return sorted(u for u in used if u in rank and rank[u] > rank[part])


def strangers(group: str, source: str) -> list[str]:
    """What a plugin imports beyond what is allowed."""
    allowed = ALLOWED[group]
    return [
        module
        for module in imported(source)
        if module.split(".")[0] not in sys.stdlib_module_names
        and not any(module == a or module.startswith(f"{a}.") for a in allowed)
    ]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "bench").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", HARNESS, ids=name_of)
def test_the_harness_imports_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert list(imported(path.read_text())) in ([], ["__future__"])
        return
    assert part in {name for names in ORDER for name in names}, f"{part}: give it its place in ORDER"
    assert beyond_order(part, path.read_text()) == []


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_a_plugin_imports_the_contract_and_little_else(path: Path) -> None:
    assert strangers(path.parent.name, path.read_text()) == []


@pytest.mark.parametrize("path", [*HARNESS, *PLUGINS], ids=name_of)
def test_a_heavy_library_has_one_room(path: Path) -> None:
    used = {module.split(".")[0] for module in imported(path.read_text())}
    misplaced = [library for library in used & set(ONE_ROOM) if name_of(path) not in ONE_ROOM[library]]
    assert misplaced == []


@pytest.mark.parametrize("path", [*HARNESS, *PLUGINS], ids=name_of)
def test_only_the_command_line_prints(path: Path) -> None:
    assert name_of(path).startswith("bench/cli/") or not prints(path.read_text())


def prints(source: str) -> bool:
    """Whether a source text calls print."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return any(isinstance(function, ast.Name) and function.id == "print" for function in calls)


def test_plugin_folders_are_no_packages() -> None:
    assert [p for p in PLUGINS if p.name == "__init__.py"] == []


def test_a_wrong_import_is_seen() -> None:
    assert beyond_order("train", "from bench import cli") == ["cli"]
    assert beyond_order("train", "def f():\n    from bench.report.tables import x") == ["report"]
    assert beyond_order("cli", "from bench.train import Training") == []
    assert strangers("methods", "from bench.train import Training\nimport torch.nn") == ["bench.train"]
    assert strangers("methods", "from bench.plugins.methods.concat import Concat") == ["bench.plugins.methods.concat"]
    assert strangers("datasets", "from bench.data.truth import Code\nimport mlflow") == ["mlflow"]
    assert prints("print('x')")
    assert not prints("console.print('x')")
