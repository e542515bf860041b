"""Plugins are found by file name: in a checkout, beside a user's bench.yaml, in a wheel, and in spawned workers."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench import plugins
from bench.conformance import check
from bench.errors import RequestError
from bench.names import all_methods

ROOT = Path(__file__).resolve().parent.parent
METHOD = '''"""A method of one's own."""

from bench.api import Fusion, Output


class Mine(Fusion):
    """The features' own first values."""

    def forward(self, tokens):
        features = {m: t.pooled for m, t in tokens.items()}
        return Output(sum(features.values())[:, : self.task.num_outputs], features)
'''


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of one's own with `methods/` and `datasets/`, in use for the length of a test."""
    for group in ("methods", "datasets"):
        (tmp_path / group).mkdir()
    monkeypatch.setattr(plugins, "__path__", list(plugins.__path__))
    known = set(sys.modules)
    plugins.use_folder(tmp_path)
    yield tmp_path
    for name in [m for m in set(sys.modules) - known if m.startswith("bench.plugins.")]:
        del sys.modules[name]
    monkeypatch.undo()
    plugins.names.cache_clear()
    plugins.find.cache_clear()


def python(code: str, cwd: Path, path: tuple[Path, ...] = (ROOT,)) -> str:
    """What a fresh interpreter prints, run in a folder with these on its path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_every_file_in_the_folders_is_a_plugin() -> None:
    for group in ("methods", "datasets"):
        files = {file.stem for file in (ROOT / group).glob("*.py")}
        assert files <= set(plugins.names(group))


@pytest.mark.parametrize("group", ["methods", "datasets"])
def test_every_bundled_plugin_loads(group: Any) -> None:
    broken = [p for p in (plugins.find(group, name) for name in plugins.names(group)) if isinstance(p, plugins.Broken)]
    assert broken == []


def test_a_file_of_ones_own_is_found_beside_the_bundled_ones(beside: Path) -> None:
    (beside / "methods" / "mine.py").write_text(METHOD)
    plugins.names.cache_clear()
    found = plugins.load("methods", "mine")
    assert found.origin == str(beside / "methods" / "mine.py")
    assert found.plugin.__name__ == "Mine"
    assert plugins.load("methods", "concat").origin == str(ROOT / "methods" / "concat.py")
    assert "mine" in all_methods(("audio",))


def test_a_name_with_an_underscore_in_front_is_no_plugin(beside: Path) -> None:
    (beside / "methods" / "_shared.py").write_text(METHOD)
    (beside / "methods" / "not-a-name.py").write_text(METHOD)
    plugins.names.cache_clear()
    assert not {"_shared", "not-a-name"} & set(plugins.names("methods"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_library\n", "No module named 'no_such_library'"),
        ("class Broken(:\n", "SyntaxError"),
        ("x = 1\n", "expected exactly one Fusion, Strategy, Derived or DataSet; found none"),
        (METHOD + METHOD.replace("Mine", "Yours"), "found Mine, Yours"),
        ("raise RuntimeError('no')\n", "RuntimeError: no"),
    ],
)
def test_a_broken_file_stays_visible_with_its_reason(beside: Path, text: str, says: str) -> None:
    file = beside / "methods" / "broken.py"
    file.write_text(text)
    plugins.names.cache_clear()
    assert "broken" in plugins.names("methods")
    found = plugins.find("methods", "broken")
    assert isinstance(found, plugins.Broken)
    assert found.origin == str(file)
    assert says in found.reason
    assert "broken" not in all_methods(("audio",))
    with pytest.raises(RequestError) as caught:
        plugins.load("methods", "broken")
    assert str(caught.value).startswith(f"{file}: this plugin cannot be imported")
    (result,) = check("methods", "broken")
    assert (result.name, result.ok) == ("can be used", False)
    assert says in result.message


def test_a_data_set_among_the_methods_is_told_so(beside: Path) -> None:
    (beside / "methods" / "astray.py").write_text((ROOT / "datasets" / "arrays.py").read_text())
    plugins.names.cache_clear()
    (result,) = check("methods", "astray")
    assert "not one of methods" in result.message


def test_ones_own_file_comes_before_a_bundled_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "concat.py").write_text(METHOD)
    code = (
        "import json; from pathlib import Path; from bench import plugins; plugins.use_folder(Path('.'))\n"
        "print(json.dumps([plugins.load('methods', n).origin for n in ('concat', 'mbt')]))"
    )
    assert json.loads(python(code, tmp_path)) == [
        str(tmp_path / "methods" / "concat.py"),
        str(ROOT / "methods" / "mbt.py"),
    ]


def test_using_the_bundled_folder_again_changes_nothing() -> None:
    before = plugins.folders()
    plugins.use_folder(ROOT)
    assert plugins.folders() == before


def module(text: str, folder: Path) -> ModuleType:
    """A module with this source, not in sys.modules."""
    import importlib.util

    file = folder / f"m{abs(hash(text))}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def test_the_code_hash_sees_code_and_not_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(text: str) -> str:
        ast.parse(text)
        found = module(text, tmp_path)
        monkeypatch.setitem(sys.modules, found.__name__, found)
        return plugins.code_hash(found)

    plain = hashed(METHOD)
    assert hashed(METHOD + "\n# a comment\n\n\n") == plain
    assert hashed(METHOD.replace("The features' own first values.", "Other words.")) == plain
    assert hashed(METHOD.replace("A method of one's own.", "Another one.")) == plain
    assert hashed(METHOD.replace("t.pooled for", "t.pooled  for")) == plain
    assert hashed(METHOD.replace("num_outputs]", "num_outputs] * 2")) != plain
    assert hashed(METHOD.replace("t.pooled for", "t.x.mean(1) for")) != plain


def test_another_package_called_datasets_imports_as_itself(tmp_path: Path) -> None:
    package = tmp_path / "datasets"
    package.mkdir()
    (package / "__init__.py").write_text("WHO = 'Hugging Face'\n")
    code = (
        "from bench import plugins; plugins.load('datasets', 'planted')\n"
        "import datasets; print(datasets.WHO, plugins.load('datasets', 'planted').plugin.title)"
    )
    for path in ((tmp_path, ROOT), (ROOT, tmp_path)):
        assert python(code, tmp_path, path) == "Hugging Face Planted"


WORKER = """
import multiprocessing, pickle
from pathlib import Path
from bench import plugins

def look(connection, folders):
    for folder in reversed(folders):
        plugins.use_folder(Path(folder))
    kind = connection.recv()
    connection.send((plugins.load("methods", "mine").plugin is kind, plugins.load("methods", "mine").origin))

if __name__ == "__main__":
    plugins.use_folder(Path("."))
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=look, args=(theirs, plugins.folders()))
    child.start()
    ours.send(plugins.load("methods", "mine").plugin)
    print(*ours.recv())
    child.join()
"""


def test_a_spawned_worker_finds_a_method_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(METHOD)
    (tmp_path / "start.py").write_text(WORKER)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "start.py"]  # a file, since spawn runs the main module again
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert ran.stdout.split() == ["True", str(tmp_path / "methods" / "mine.py")], ran.stderr


def test_a_wheel_brings_its_plugins_and_merges_with_ones_own(tmp_path: Path) -> None:
    source, target, work = tmp_path / "source", tmp_path / "installed", tmp_path / "work"
    copy_of_the_tree(source)
    build = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    command = [*build, "--no-index", "--target", str(target), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert built.returncode == 0, built.stderr
    (work / "methods").mkdir(parents=True)
    (work / "methods" / "mine.py").write_text(METHOD)
    code = (
        "import json; from pathlib import Path; import bench; from bench import plugins\n"
        "plugins.use_folder(Path('.'))\n"
        "both = {g: plugins.names(g) for g in ('methods', 'datasets')}\n"
        "broken = [n for g in both for n in both[g] if isinstance(plugins.find(g, n), plugins.Broken)]\n"
        "origins = {n: plugins.load('methods', n).origin for n in ('concat', 'mine')}\n"
        "top = [n for n in ('methods', 'datasets') if Path(bench.__file__).parent.parent.joinpath(n).exists()]\n"
        "print(json.dumps([bench.__file__, both, broken, origins, top]))"
    )
    where, names, broken, origins, top = json.loads(python(code, work, (target,)))
    assert Path(where).is_relative_to(target)
    harness = {str(f.relative_to(source)) for f in (source / "bench").rglob("*.py")}
    assert harness == {str(f.relative_to(target)) for f in (target / "bench").rglob("*.py")} - bundled(target)
    assert names["methods"] == sorted([*(f.stem for f in (ROOT / "methods").glob("*.py")), "mine"])
    assert names["datasets"] == sorted(f.stem for f in (ROOT / "datasets").glob("*.py"))
    assert broken == []
    assert Path(origins["concat"]).is_relative_to(target)
    assert origins["mine"] == str(work / "methods" / "mine.py")
    assert top == []


def bundled(target: Path) -> set[str]:
    return {str(f.relative_to(target)) for f in (target / "bench" / "bundled").rglob("*.py")}


def copy_of_the_tree(target: Path) -> None:
    """What a wheel is built from, so that building leaves nothing behind in the checkout."""
    import shutil

    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("bench", "methods", "datasets"):
        shutil.copytree(ROOT / folder, target / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / file).is_file():
            shutil.copy(ROOT / file, target / file)


def test_the_hash_of_code_is_the_same_for_every_python() -> None:
    """Written down: a hash that moved with Python's version would make every stored trial stale."""
    tree = ast.parse("def f(a: int = 1) -> list[int]:\n    return [a, *range(a)]\n")
    assert hashlib.sha256(repr(plugins._plain(tree)).encode()).hexdigest()[:16] == "8ddf43813bd493c0"
