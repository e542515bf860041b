"""Pickles of strangers: arrays come back as they were, and nothing runs, nothing grows beyond the file."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.api import DataError
from bench.data import pickles

ARRAYS = {
    "float64": np.linspace(-1, 1, 600).reshape(3, 20, 10),
    "float32, Fortran order": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "big-endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False]),
    "text": np.array(["abc", "ü$_$12"]),
    "bytes": np.array([b"abc", b"d"]),
    "objects": np.array(["video", 1.5, None], dtype=object),
    "scalar": np.array(3.0),
    "nothing": np.zeros((0, 4)),
    "half": np.array([1.0, np.inf], dtype=np.float16),
}


def written(folder: Path, content: bytes) -> Path:
    (folder / "x.pkl").write_bytes(content)
    return folder / "x.pkl"


def refused(folder: Path, content: bytes) -> str:
    """The reason, given without allocating more than a few times the file."""
    file = written(folder, content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            pickles.load(file)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(content) + (8 << 20)
    finally:
        tracemalloc.stop()
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_survive_every_protocol(tmp_path: Path, name: str, protocol: int) -> None:
    array = ARRAYS[name]
    found = pickles.load(written(tmp_path, pickle.dumps({"a": array, "again": [array]}, protocol)))
    assert found["a"].dtype == array.dtype
    np.testing.assert_array_equal(found["a"], array)
    assert found["again"][0] is found["a"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_survive_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {
        "text": ["a", "ü" * 300, ""],
        "numbers": (1, -5, 2**40, 2**70, 1.5, True, None),
        "bytes": [b"", b"abc"],
        "nested": collections.OrderedDict([("k", [(), (1,), (1, 2), {}])]),
        "scalar": [np.float64(0.1), np.int64(3)],
    }
    assert pickles.load(written(tmp_path, pickle.dumps(content, protocol))) == content


def test_a_python_2_pickle_is_read(tmp_path: Path) -> None:
    raw = np.arange(3000, dtype="<f8").tobytes()
    content = b"\x80\x02}U\x06visioncnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    content += b"(K\x01M\xb8\x0b\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R"
    content += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content += b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tbs."
    np.testing.assert_array_equal(pickles.load(written(tmp_path, content))["vision"], np.arange(3000.0))


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, pickle.dumps({"a": np.ones(4 << 20)}, 4))
    tracemalloc.start()
    found = pickles.load(file)["a"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert not found.flags.writeable
    assert found.sum() == 4 << 20


class Runs:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    for call in (
        (os.system, f"touch {trace}"),
        (eval, f"open({str(trace)!r}, 'w')"),
        (subprocess.Popen, ["touch", trace]),
    ):
        assert "is not admitted" in refused(tmp_path, pickle.dumps([Runs(*call)], protocol))
    assert "is not admitted" in refused(tmp_path, pickle.dumps(Path("x"), protocol))
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", [b"numpy\nload", b"numpy.core.multiarray\nfromfile", b"builtins\ngetattr", b"bench.data.pickles\nload"]
)
def test_no_other_name_of_an_admitted_module(tmp_path: Path, name: bytes) -> None:
    before = set(sys.modules)
    assert "is not admitted" in refused(tmp_path, b"c" + name + b"\n.")
    assert set(sys.modules) == before


def array_opcodes(shape: bytes, raw: bytes, code: bytes = b"f8") -> bytes:
    start = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
    dtype = b"cnumpy\ndtype\nX" + struct.pack("<I", len(code)) + code + b"K\x00K\x01\x87R"
    state = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    return start + shape + dtype + state + raw + b"tb."


TWO_GB = struct.pack("<I", 2**31)
BOMBS = {
    "bytes of 2 GB": b"\x80\x03B" + TWO_GB + b"abc.",
    "bytes of 2**62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "bytes of 2**64 - 1": b"\x80\x04\x8e" + b"\xff" * 8 + b"abc.",
    "a bytearray of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "text of 2 GB": b"\x80\x03X" + TWO_GB + b"abc.",
    "text of 2**40": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    "a number of 2 GB": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "a number with a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
    "a Python 2 string of 2 GB": b"\x80\x02T" + TWO_GB + b".",
    "a frame of 2**40": b"\x80\x04\x95" + struct.pack("<Q", 2**40),
    "an array of 2 GB": array_opcodes(b"J" + struct.pack("<i", 2**28) + b"\x85", b"C\x08abcdefgh"),
    "an array of negative length": array_opcodes(b"J" + struct.pack("<i", -1) + b"\x85", b"C\x08abcdefgh"),
    "an array of nothing, but large": array_opcodes(b"J" + struct.pack("<i", 2**28) + b"\x85", b"C\x00"),
    "an array of objects without objects": array_opcodes(b"J" + struct.pack("<i", 2**28) + b"\x85", b"]", b"O8"),
    "an array of wide text": array_opcodes(b"K\x01\x85", b"C\x04abcd", b"U500000"),
    "an array of a width beyond": array_opcodes(b"K\x01\x85", b"C\x04abcd", b"S999999999"),
    "an array of records": array_opcodes(b"K\x01\x85", b"C\x08abcdefgh", b"f8,f8"),
    "text that does not exist": array_opcodes(b"K\x01\x85", b"C\x04\xff\xff\xff\xff", b"U1"),
    "a memo entry that does not exist": b"\x80\x03j" + struct.pack("<I", 2**31) + b".",
    "a list where a mark should be": b"\x80\x03]e.",
    "nothing on the stack": b"\x80\x03.",
    "no end": pickle.dumps([1, 2, 3])[:-1],
    "cut short": pickle.dumps(np.zeros(1000), 4)[:-100],
    "no pickle": b"PK\x03\x04" + bytes(100),
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02K\x01Q.",
    "an instance": b"(ios\nsystem\n.",
    "a call of a number": b"\x80\x02K\x01K\x02\x85R.",
    "a state for a dict": b"\x80\x02}}b.",
    "a key that nests 50,000 deep": b"\x80\x02})" + b"\x85" * 50_000 + b"K\x01s.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, BOMBS[name])


def test_an_empty_or_absent_file_is_named(tmp_path: Path) -> None:
    for file in (written(tmp_path, b""), tmp_path / "none.pkl", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            pickles.load(file)


def test_one_text_cannot_be_copied_again_and_again(tmp_path: Path) -> None:
    text = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x000"
    again = (
        b"c_codecs\nencode\nq\x01h\x00X\x06\x00\x00\x00latin1\x86R" + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 200
    )
    assert "copied" in refused(tmp_path, b"\x80\x02]" + text + b"(" + again + b"e.")


def test_opcodes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_OPCODES", 1000)
    assert "opcodes" in refused(tmp_path, b"\x80\x02(" + b"}" * 2000 + b"l.")
    assert pickles.load(written(tmp_path, b"\x80\x02(" + b"}" * 900 + b"l.")) == [{}] * 900


def test_deep_nesting_is_no_recursion(tmp_path: Path) -> None:
    found = pickles.load(written(tmp_path, b"\x80\x02)" + b"\x85" * 100_000 + b"."))
    depth = 0
    while found:
        found, depth = found[0], depth + 1
    assert depth == 100_000


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = [
        np.frombuffer(pickle.dumps({"a": a, "b": ["x", 1, (2, None)]}, p), np.uint8)
        for a in ARRAYS.values()
        for p in (0, 2, 4, 5)
    ]
    refusals = 0
    for turn in range(600):
        content = sound[turn % len(sound)].copy()
        content[rng.integers(len(content), size=1 + turn % 3)] = rng.integers(256, size=1 + turn % 3)
        try:
            pickles.load(written(tmp_path, content.tobytes()))
        except DataError:
            refusals += 1
    assert refusals > 100
