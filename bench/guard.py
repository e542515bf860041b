"""Notes of plugin code that reaches for targets: an audit hook on whatever opens files and starts programs.

While a trial is trained (`watching`) nothing in the process may open a file of targets, whoever asks; elsewhere, in
the parent, no plugin may. What is noted is never taken back. The hook sees Python: what a C library opens by itself,
it does not. The threat is careless code.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, wraps
from multiprocessing import util
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import pandas

from bench.data.manifest import INDEX, MANIFEST, TARGETS

PLUGINS = ("bench.plugins.methods.", "bench.plugins.datasets.")
_METHODS = PLUGINS[0]
_PROGRAMS = {"subprocess.Popen": 1, "os.system": 0, "os.posix_spawn": 1, "os.spawn": 2, "os.exec": 1, "bench.spawn": 1}
"""Events of programs that start, with the place of what they are told among the arguments."""
_OPEN_IN_RESULTS = (("trajectories",), ("locks",))
_OPENS = {"open", "sqlite3.connect"}


def _folders(*names: str) -> tuple[str, ...]:
    """Folders of this installation as its modules name them, each with a separator at its end."""
    given = [sysconfig.get_path(name) for name in names]
    return tuple({path + os.sep for folder in given for path in (folder, os.path.realpath(folder))})


_LIBRARIES, _STANDARD = _folders("purelib", "platlib"), _folders("stdlib", "platstdlib")
_HARNESS = str(Path(__file__).parent) + os.sep


class ForbiddenError(PermissionError):
    """What a plugin meets in a training process when it reaches for targets."""


@dataclass(frozen=True)
class Note:
    """What was done, and the line of the plugin that did it; `module` is empty where no plugin was on the stack."""

    what: str
    where: str
    module: str
    watched: bool
    """Whether a trial was in training in this process."""

    def __str__(self) -> str:
        return f"{self.where or 'a thread without a line of a plugin'}: {self.what}"


@dataclass(frozen=True)
class Places:
    """Folders whose files say more than a method may know."""

    prepared: tuple[str, ...] = ()
    """Folders of prepared sets: their targets, by whatever path, and for plugins their index: ids may name classes."""
    results: str = ""
    """What scored trials is closed but for weights; what is trained on and from stays open."""
    sources: tuple[str, ...] = ()
    """Raw files, closed to methods."""
    inodes: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)
    """(device, inode) of every file of targets, so that a hard link is known."""

    @classmethod
    def of(cls, prepared: Iterable[Path], results: Path | None = None, sources: Iterable[Path] = ()) -> Places:
        """The places around folders of prepared sets. A source that holds one of the others is closed beside it."""
        folders = sorted({os.path.realpath(folder) for folder in prepared})
        closed = sorted({os.path.realpath(source) for source in sources})
        targets = itertools.chain.from_iterable(Path(folder).glob(f"*/{TARGETS}") for folder in folders)
        found = (target.stat() for target in targets)
        inodes = frozenset((seen.st_dev, seen.st_ino) for seen in found)
        return cls(tuple(folders), os.path.realpath(results) if results else "", tuple(closed), inodes)


class _Guard:
    """The state of the hook. Notes go through a pipe, so that those of a forked child arrive here too."""

    def __init__(self) -> None:
        self.places, self.watching = Places(), False
        _installed()  # now: it opens files, and the hook would ask for it while one is opened
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._notes: list[Note] = []
        self._left = b""

    def notes(self) -> tuple[Note, ...]:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._read, 65536):
                self._left += chunk
        *lines, self._left = self._left.split(b"\n")
        self._notes += (Note(**json.loads(line)) for line in lines)
        return tuple(self._notes)

    def see(self, event: str, values: tuple[Any, ...]) -> None:
        if event in _OPENS:
            what = self._file(values[0], by_descriptor=values[1:2] == (None,))
        elif event in _PROGRAMS:
            what = self._program(event, values)
        else:
            what = f"asked the data set {values[0]} for its samples, which have targets"
        if what:
            self._note(what)

    def _note(self, what: str) -> None:
        frame = _plugin_frame()
        if frame is None and not self.watching:
            return
        what = what[:600]  # a write to a pipe is whole up to 4096 bytes
        where = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else ""
        module = str(frame.f_globals["__name__"]) if frame else ""
        note = {"what": what, "where": where[-300:], "module": module, "watched": self.watching}
        line = json.dumps(note, ensure_ascii=False).encode(errors="backslashreplace")
        with contextlib.suppress(BlockingIOError):  # full: there are notes enough
            os.write(self._write, line + b"\n")
        if self.watching:
            raise ForbiddenError(f"{what}; a training process has the targets of train, and no others")

    def _file(self, path: object, by_descriptor: bool) -> str:
        """What opening a path amounts to; empty where it is of no interest."""
        if isinstance(path, int) or not isinstance(path, str | bytes | os.PathLike):
            return ""
        text = os.fsdecode(path)
        if text.startswith((*_LIBRARIES, *_STANDARD)):
            return ""
        real = Path(os.path.realpath(text))
        try:
            seen = real.stat()
            inode, there = (seen.st_dev, seen.st_ino), True
        except (OSError, ValueError):
            inode, there = (-1, -1), False
        # What `os.open` finds in an open folder is not found from here: then the name counts by itself.
        prepared = (by_descriptor and not there and not Path(text).is_absolute()) or (real.parent / MANIFEST).is_file()
        if inode in self.places.inodes or (real.name == TARGETS and prepared):
            return f"opened the targets of a prepared data set: {text}"
        if self.places.results and real.is_relative_to(self.places.results):
            room = real.relative_to(self.places.results).parts[:1]
            closed = real.is_file() and room not in _OPEN_IN_RESULTS and real.suffix != ".safetensors"
            return f"opened results, which say how trials score: {text}" if closed else ""
        if real.name == INDEX and prepared and self._is_method():
            return f"opened the index of a prepared data set, whose sample ids may name classes: {text}"
        if any(map(real.is_relative_to, self.places.prepared)) or real.suffix in (".py", ".pyc"):
            return ""
        if any(map(real.is_relative_to, self.places.sources)) and self._is_method():
            return f"opened a raw file of a data set: {text}"
        return ""

    def _is_method(self) -> bool:
        """Whether the code that asks is a plugin that has no business with labels here."""
        frame = _plugin_frame()
        return frame is not None and (self.watching or frame.f_globals["__name__"].startswith(_METHODS))

    def _program(self, event: str, values: tuple[Any, ...]) -> str:
        told = str(values[_PROGRAMS[event]])
        if self.watching and (_asked_by_plugin() or (event == "bench.spawn" and _plugin_frame() is not None)):
            return f"started a program, whose files nobody sees: {told[:200]}"
        return f"started a program with the file of targets: {told[:200]}" if TARGETS in told else ""


@cache
def _guard() -> _Guard:
    """The guard of this process; its hook stays for as long as the process lives."""
    guard = _Guard()
    # Neither raises an event by itself.
    util.spawnv_passfds = _announced(util.spawnv_passfds, "bench.spawn")
    pandas.read_parquet = _announced(pandas.read_parquet, "open")
    events = {*_OPENS, *_PROGRAMS, "bench.samples"}

    # Called some thirty times a training step: a plain function takes a third of a bound method's time.
    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event in events:
            guard.see(event, values)

    sys.addaudithook(hook)
    return guard


def _announced(function: Callable[..., Any], event: str) -> Callable[..., Any]:
    @wraps(function)
    def announced(*values: Any, **named: Any) -> Any:
        sys.audit(event, *(values or named.values()))
        return function(*values, **named)

    return announced


def install(places: Places | None = None) -> None:
    """Take note from here on. Call it before any plugin is imported; `places` replace those of the last call."""
    guard = _guard()
    if places is not None:
        guard.places = places


def notes() -> tuple[Note, ...]:
    """Everything noted in this process and the children it forked, oldest first."""
    return _guard().notes()


@contextlib.contextmanager
def watching(places: Places) -> Iterator[None]:
    """While inside, reaching for targets is noted and refused for everything in this process."""
    guard = _guard()
    before = guard.places, guard.watching
    guard.places, guard.watching = places, True
    try:
        yield
    finally:
        guard.places, guard.watching = before


@contextlib.contextmanager
def without_samples(kind: type[Any]) -> Iterator[None]:
    """While inside, a data set's `samples`, which have targets, are not to be had."""
    own = vars(kind).get("samples")

    def samples(self: object, *_: object) -> list[Any]:
        sys.audit("bench.samples", type(self).__name__)
        return []

    setattr(kind, "samples", samples)  # noqa: B010  # a checker knows that methods are not assigned to
    try:
        yield
    finally:
        if own is None:
            delattr(kind, "samples")
        else:
            setattr(kind, "samples", own)  # noqa: B010  # as above


class Seal:
    """Functions, classes and tables of modules as they were when this was made."""

    def __init__(self, *modules: ModuleType) -> None:
        self._owners: list[tuple[str, Any, dict[str, tuple[object, object]]]] = []
        for module in modules:
            self._remember(module.__name__, module)
            for name, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == module.__name__ and module.__name__ != "numpy":
                    self._remember(f"{module.__name__}.{name}", value)

    def broken(self) -> list[str]:
        """What is no longer what it was, and what took its place."""
        return list(self._changes())

    def _changes(self) -> Iterator[str]:
        for label, owner, was in self._owners:
            now = vars(owner)
            for name, (value, content) in was.items():
                current = now.get(name)
                if current is not value or _content(current) != content:
                    yield f"{label}.{name} is now {_described(current)}"

    def _remember(self, label: str, owner: Any) -> None:
        kept = {
            name: (value, _content(value))
            for name, value in vars(owner).items()
            if not (name.startswith("__") and isinstance(owner, ModuleType)) and (_acts(value) or _content(value))
        }
        self._owners.append((label, owner, kept))


def _acts(value: object) -> bool:
    return callable(value) or isinstance(value, classmethod | staticmethod | property)


def _content(value: object) -> object:
    """What may change of a value without its becoming another one."""
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    if isinstance(value, FunctionType):
        return value.__code__, value.__defaults__
    return repr(value) if isinstance(value, dict | list | set) and len(value) < 100 else None


def _described(value: object) -> str:
    inner = getattr(value, "__func__", value)
    code = getattr(inner, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno} {code.co_name}" if code is not None else repr(value)[:200]


def _plugin_frame() -> FrameType | None:
    """The innermost frame of a plugin on this thread's stack."""
    return next((frame for frame in _frames() if _is_plugin(frame)), None)


def _asked_by_plugin() -> bool:
    """Whether what asks, through the standard library, is neither an installed library nor the harness."""
    for frame in _frames():
        if _is_plugin(frame):
            return True
        file = frame.f_code.co_filename
        if file.startswith((*_LIBRARIES, _HARNESS)):
            return False
        if not file.startswith((*_STANDARD, "<frozen")):
            return True
    return True


def _is_plugin(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and (name.startswith(PLUGINS) or name in _installed())


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") != __name__:
            yield frame
        frame = frame.f_back


@cache
def _installed() -> frozenset[str]:
    """The modules of plugins that installed packages bring."""
    from importlib.metadata import entry_points

    found = (point for group in ("bench.methods", "bench.datasets") for point in entry_points(group=group))
    return frozenset(point.module for point in found)
