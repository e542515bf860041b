"""Pickles that others wrote, read without running anything in them: arrays, text, numbers and plain containers.

The opcodes are interpreted here; no name in the file is ever imported. The file is mapped, not loaded, and an array
is a view of it, so that several processes share one copy. What a file can make this allocate is bounded by its size
and by the number of its opcodes: lengths and shapes are held against the bytes that are there.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from bench.api import DataError

MOST_OPCODES = 5_000_000
"""A data set of arrays needs a few per sample; each can make at most one small object."""
COPIED = 4
"""How many times its own size a file may have copied (text to bytes, lists to object arrays)."""
SLACK = 1 << 20
"""Bytes that may be copied whatever the size of the file."""
SMALL = 4096
"""Bytes up to which a Python 2 string is text; a longer one is the content of an array."""

ADMITTED = {
    f"{module} {name}": f"{kind}"
    for modules, name, kind in (
        (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", "array"),
        (("numpy.core.multiarray", "numpy._core.multiarray"), "scalar", "scalar"),
        (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", "view"),
        (("numpy",), "ndarray", "ndarray"),
        (("numpy",), "dtype", "dtype"),
        (("_codecs",), "encode", "encode"),
        (("collections",), "OrderedDict", "mapping"),
        (("builtins", "__builtin__"), "bytes", "bytes"),
    )
    for module in modules
}
"""The names a file may hold, and what stands for each here."""

DTYPE = re.compile(r"[<>|=]?(?:[?bBhHiIlLqQefdO]|b1|O[48]|[iu][1248]|f[248]|[SU][1-9]\d{0,5})")
OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
TEXTS = {"STRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
"""With the numbers, the opcodes that push their argument."""
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PAYLOADS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
"""Opcodes that push bytes, and the width of their length."""
OLD_STRINGS = {"SHORT_BINSTRING": 1, "BINSTRING": 4}
GETS, PUTS = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
WITH_ARGUMENT = NUMBERS | TEXTS | GETS | PUTS | {"PROTO", "FRAME", "GLOBAL"}


def load(path: Path) -> Any:
    """What a pickle holds, as dicts, lists, tuples, text, numbers, bytes and read-only arrays that map the file.

    Raises DataError, naming the byte, for anything else: other classes or functions, arrays of other types, lengths
    that the file does not have, or more work than a file of arrays can need.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    source = _Source(content)
    try:
        return _Machine(source).run()
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        said = error.args[0] if error.args else type(error).__name__
        raise DataError(
            f"{path}: byte {source.position}: {said}; allowed is a pickle of arrays, text, numbers and plain containers"
        ) from error


class _Source(io.RawIOBase):
    """A mapped file with a position; what `pickletools` reads arguments from."""

    def __init__(self, content: mmap.mmap) -> None:
        super().__init__()
        self.content, self.view, self.position = content, memoryview(content), 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes, fewer at the end."""
        return bytes(self.take(min(size, len(self.view) - self.position)))

    def readline(self, size: int | None = -1) -> bytes:
        """The rest of the line."""
        end = self.content.find(b"\n", self.position)
        return self.read((end + 1 if end >= 0 else len(self.view)) - self.position)

    def take(self, size: int) -> memoryview:
        """The next bytes without a copy; ValueError if there are not as many."""
        left = len(self.view) - self.position
        if not 0 <= size <= left:
            raise ValueError(f"{size} bytes are announced and {left} are left")
        self.position += size
        return self.view[self.position - size : self.position]


@dataclass(frozen=True)
class _Name:
    """An admitted name, standing for what it would import."""

    kind: str


@dataclass(eq=False)
class _Unbuilt:
    """An array or dtype whose state is still to come, and the memo entries that hold it."""

    kind: str
    dtype: np.dtype[Any] | None = None
    memoised: list[int] = field(default_factory=list)


class _Machine:
    """The pickle machine, less everything that could run or import code."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.budget = COPIED * len(source.view) + SLACK
        self.reduce: Mapping[str, Callable[..., Any]] = {
            "array": lambda *_: _Unbuilt("array"),
            "dtype": _dtype,
            "scalar": lambda dtype, raw: self._array((), dtype, False, raw).item(),
            "view": lambda raw, dtype, shape, order: self._array(shape, dtype, order == "F", raw),
            "encode": self._encoded,
            "mapping": lambda pairs=(): _filled({}, [x for pair in pairs for x in pair]),
            "bytes": lambda: b"",
        }
        self.actions: Mapping[str, Callable[[], object]] = {
            "MARK": lambda: self.marks.append(len(self.stack)),
            "POP": self._pop,
            "POP_MARK": self._above_mark,
            "DUP": lambda: self.stack.append(self.stack[-1]),
            "EMPTY_LIST": lambda: self.stack.append([]),
            "EMPTY_DICT": lambda: self.stack.append({}),
            "LIST": lambda: self.stack.append(self._above_mark()),
            "TUPLE": lambda: self.stack.append(tuple(self._above_mark())),
            "DICT": lambda: self.stack.append(_filled({}, self._above_mark())),
            "TUPLE1": lambda: self.stack.append(tuple(self._taken(1))),
            "TUPLE2": lambda: self.stack.append(tuple(self._taken(2))),
            "TUPLE3": lambda: self.stack.append(tuple(self._taken(3))),
            "APPEND": lambda: self._extend(self._taken(1)),
            "APPENDS": lambda: self._extend(self._above_mark()),
            "SETITEM": lambda: self._set(self._taken(2)),
            "SETITEMS": lambda: self._set(self._above_mark()),
            "MEMOIZE": lambda: self._memoise(len(self.memo)),
            "STACK_GLOBAL": lambda: self.stack.append(_admitted(" ".join(map(str, self._taken(2))))),
            "REDUCE": self._reduce,
            "BUILD": self._build,
        }

    def run(self) -> Any:
        """The object that the file describes."""
        for _ in range(MOST_OPCODES):
            code = self.source.read(1).decode("latin1")
            if not code:
                raise ValueError("the file ends before the pickle does")
            opcode = OPCODES.get(code)
            name = opcode.name if opcode else repr(code)
            if name == "STOP":
                return self.stack.pop()
            if name in PAYLOADS:
                self.stack.append(self._payload(PAYLOADS[name]))
            elif name in OLD_STRINGS:
                raw = self._payload(OLD_STRINGS[name])
                self.stack.append(str(raw, "latin1") if len(raw) <= SMALL else raw)
            elif name in self.actions:
                self.actions[name]()
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            else:
                self._with_argument(name, opcode)
        raise ValueError(f"more than {MOST_OPCODES:,} opcodes")

    def _with_argument(self, name: str, opcode: pickletools.OpcodeInfo | None) -> None:
        if opcode is None or opcode.arg is None or name not in WITH_ARGUMENT:
            raise ValueError(f"opcode {name} is not admitted")
        argument = opcode.arg.reader(cast(Any, self.source))
        if name in NUMBERS or name in TEXTS:
            self.stack.append(argument)
        elif name in GETS:
            self.stack.append(self.memo[argument])
        elif name in PUTS:
            self._memoise(argument)
        elif name == "GLOBAL":
            self.stack.append(_admitted(argument))

    def _payload(self, width: int) -> bytes | memoryview:
        raw = self.source.take(int.from_bytes(self.source.take(width), "little"))
        return bytes(raw) if len(raw) <= SMALL else raw

    def _pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _taken(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ValueError("the stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _above_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError(f"items for a {type(self.stack[-1]).__name__}, which is no list")
        self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise ValueError(f"entries for a {type(self.stack[-1]).__name__}, which is no dict")
        _filled(self.stack[-1], items)

    def _memoise(self, key: int) -> None:
        self.memo[key] = self.stack[-1]
        if isinstance(self.stack[-1], _Unbuilt):
            self.stack[-1].memoised.append(key)

    def _reduce(self) -> None:
        name, arguments = self._taken(2)
        if not isinstance(name, _Name) or name.kind not in self.reduce or not isinstance(arguments, tuple):
            raise ValueError(f"a {type(name).__name__} is called")
        self.stack.append(self.reduce[name.kind](*arguments))

    def _build(self) -> None:
        unbuilt, state = self._taken(2)
        if not isinstance(unbuilt, _Unbuilt) or not isinstance(state, tuple):
            raise ValueError(f"a state for a {type(unbuilt).__name__}")
        built = self._array(*state[-4:]) if unbuilt.kind == "array" else _with_byte_order(unbuilt, state)
        for key in unbuilt.memoised:
            self.memo[key] = built
        self.stack.append(built)

    def _array(self, shape: Any, dtype: Any, fortran: Any, raw: Any) -> np.ndarray:
        """A view of the bytes in the file; object arrays are made from a list."""
        if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or len(shape) > 8:
            raise ValueError("an array without a shape or dtype")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array whose shape is not made of whole numbers")
        count = math.prod(shape)
        if dtype.kind == "O":
            if not isinstance(raw, list) or len(raw) != count:
                raise ValueError(f"an array of {count} objects without as many objects")
            self._spend(8 * count)
            flat = np.empty(count, dtype=object)
            for position, item in enumerate(raw):
                flat[position] = item
            return flat.reshape(shape, order="F" if fortran else "C")
        if isinstance(raw, str):
            raw = self._encoded(raw)
        if not isinstance(raw, bytes | memoryview) or len(raw) != count * dtype.itemsize:
            found = len(raw) if isinstance(raw, bytes | memoryview) else "no"
            raise ValueError(f"an array of {list(shape)} x {dtype.itemsize} bytes with {found} bytes of content")
        if count == 0:
            return np.empty(shape, dtype)
        if dtype.kind == "U" and np.frombuffer(raw, np.dtype("u4").newbyteorder(dtype.byteorder)).max() > 0x10FFFF:
            raise ValueError("an array of text with characters that do not exist")
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")

    def _encoded(self, text: str, encoding: str = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ValueError("an encoding other than that of bytes")
        self._spend(len(text))
        return text.encode("latin1")

    def _spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise ValueError(f"more than {COPIED} times the size of the file would be copied")


def _admitted(name: str) -> _Name:
    if name not in ADMITTED:
        raise ValueError(f"the name {name[:80]!r} is not admitted")
    return _Name(ADMITTED[name])


def _dtype(code: Any, *_: Any) -> _Unbuilt:
    if not isinstance(code, str) or not DTYPE.fullmatch(code):
        raise ValueError("an array of a type that is no number, text or object")
    return _Unbuilt("dtype", np.dtype("O" if "O" in code else code))


def _with_byte_order(unbuilt: _Unbuilt, state: tuple[Any, ...]) -> np.dtype[Any]:
    if unbuilt.dtype is None or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise ValueError("an array of records")
    if state[1] not in ("<", ">", "|", "="):
        raise ValueError("an array of an unknown byte order")
    return unbuilt.dtype if state[1] in "|=" else unbuilt.dtype.newbyteorder(state[1])


def _filled(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """`target` with alternating keys and values; keys are scalars, for hashing nested tuples would recurse."""
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not (key is None or isinstance(key, str | int | float)):
            raise ValueError(f"a dict with a {type(key).__name__} as key")
        target[key] = value
    return target
