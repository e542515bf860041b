"""Prepared arrays: complete or refused, the same however they were made, and damage is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_set import Small

from bench.api import DataError
from bench.data.prepared import Prepared, find, prepare

HERE = Path(__file__).parent


def small(**settings: object) -> Small:
    return Small(Small.Settings(**settings))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.npy")}


def test_shared_sources_are_stored_once(tmp_path: Path) -> None:
    prepared = prepare("small", small(), "c0de", Path("raw"), tmp_path)
    assert prepared.array("audio").shape == (20, 5, 3)
    assert prepared.array("audio").dtype == np.float16
    assert prepared.array("visual").shape == (40, 4, 4)
    assert prepared.mask("audio").shape == (20, 5)
    assert prepared.mask("visual") is None
    assert prepared.rows("audio").tolist() == [k // 2 for k in range(40)]
    assert prepared.targets().tolist() == [k % 3 for k in range(40)]
    assert prepared.targets().dtype == np.int64
    item = small().read(Path("raw"), "visual", "v7")
    assert (prepared.array("visual")[7] == item.values).all()
    assert not prepared.array("visual").flags.writeable
    assert prepared.spec == small().describe(Path("raw"))
    assert prepared.index["k"].tolist() == list(range(40))


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    first = prepare("small", small(), "c0de", Path("raw"), tmp_path)
    calls: list[int] = []
    before = (first.folder / "manifest.json").stat().st_mtime_ns
    again = prepare("small", small(), "c0de", Path("raw"), tmp_path, progress=lambda done, _: calls.append(done))
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)
    assert calls == []
    assert (first.folder / "manifest.json").stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == [first.folder.name]


def test_equal_content_has_an_equal_fingerprint_and_other_content_another(tmp_path: Path) -> None:
    one = prepare("small", small(), "c0de", Path("raw"), tmp_path / "one")
    two = prepare("small", small(), "0ther", Path("elsewhere"), tmp_path / "two")
    other = prepare("small", small(count=38), "c0de", Path("raw"), tmp_path / "one")
    assert one.fingerprint == two.fingerprint
    assert one.folder.name != two.folder.name
    assert other.fingerprint != one.fingerprint
    assert len(one.fingerprint) == 16


def test_find_knows_only_what_is_complete(tmp_path: Path) -> None:
    assert find("small", small(), "c0de", Path("raw"), tmp_path) is None
    prepare("small", small(), "c0de", Path("raw"), tmp_path)
    assert find("small", small(), "c0de", Path("raw"), tmp_path) is not None
    assert find("small", small(), "edited", Path("raw"), tmp_path) is None
    assert find("small", small(count=38), "c0de", Path("raw"), tmp_path) is None


def test_several_processes_write_the_same_bytes(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    serial = prepare("small", small(), "c0de", Path("raw"), tmp_path / "1")
    parallel = prepare(
        "small", small(), "c0de", Path("raw"), tmp_path / "2", workers=2, progress=lambda *p: done.append(p)
    )
    assert contents(serial.folder) == contents(parallel.folder)
    assert serial.fingerprint == parallel.fingerprint
    assert done[-1] == (60, 60)


def test_a_killed_preparation_leaves_no_process_behind_and_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"count": 60, "seconds": 0.05}
    script = (
        "import os, sys; from pathlib import Path; from bench.data import reading; reading.CHUNK_ITEMS = 2\n"
        "from small_set import Small; from bench.data.prepared import prepare\n"
        "class Told(Small):\n"
        "    def read(self, root, modality, key):\n"
        "        Path(sys.argv[1], f'pid{os.getpid()}').touch()\n"
        "        return super().read(root, modality, key)\n"
        "if __name__ == '__main__':\n"
        f"    told = Told(Told.Settings(**{slow}))\n"
        "    prepare('small', told, 'c0de', Path('raw'), Path(sys.argv[1], 'store'), workers=2)"
    )
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path)], env=environment)
    journal = ""
    while child.poll() is None and journal.count("audio") < 4:
        time.sleep(0.01)
        journal = "".join(p.read_text() for p in (tmp_path / "store").glob(".*.partial/journal.jsonl"))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list((tmp_path / "store").glob("small-*")), "it was complete before it was killed"
    workers = [int(p.name.removeprefix("pid")) for p in tmp_path.glob("pid*")]
    assert workers
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)

    read: list[str] = []
    original = Small.read

    def counted(self: Small, root: Path, modality: str, key: str) -> object:
        read.append(key)
        return original(self, root, modality, key)

    monkeypatch.setattr(Small, "read", counted)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    resumed = prepare("small", small(**slow), "c0de", Path("raw"), tmp_path / "store")
    assert 0 < len(read) <= 90 - 8
    whole = prepare("small", small(**slow), "c0de", Path("raw"), tmp_path / "whole")
    assert contents(resumed.folder) == contents(whole.folder)
    assert resumed.fingerprint == whole.fingerprint


def test_unreadable_sources_are_named_and_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare("small", small(unreadable="a3|v20"), "c0de", Path("raw"), tmp_path)
    text = str(caught.value)
    assert "2 sources" in text
    assert "3 of 40 samples" in text
    assert "raw/a3.wav: cut short" in text
    assert find("small", small(unreadable="a3|v20"), "c0de", Path("raw"), tmp_path) is None


def test_missing_samples_are_left_out_when_allowed_and_counted(tmp_path: Path) -> None:
    prepared = prepare("small", small(unreadable="a3|v20"), "c0de", Path("raw"), tmp_path, allow_missing=True)
    kept = [k for k in range(40) if k not in (6, 7, 20)]
    assert prepared.index["k"].tolist() == kept
    assert prepared.targets().tolist() == [k % 3 for k in kept]
    assert prepared.rows("visual").tolist() == kept
    assert prepared.manifest["counts"]["left_out"] == 3
    assert [u["key"] for u in prepared.manifest["unreadable"]] == ["a3", "v20"]


def test_one_in_a_hundred_is_tolerated_unless_embedded(tmp_path: Path) -> None:
    assert len(prepare("small", small(count=100, unreadable="v5"), "c0de", Path("raw"), tmp_path).index) == 99

    class Embedded(Small):
        embedded = True

    with pytest.raises(DataError, match="0 are tolerated"):
        prepare("other", Embedded(Small.Settings(count=100, unreadable="v5")), "c0de", Path("raw"), tmp_path)


def test_mended_sources_are_read_again_after_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"unreadable": "a3"}
    with pytest.raises(DataError, match="cut short"):
        prepare("small", small(**settings), "c0de", Path("raw"), tmp_path)
    read: list[str] = []

    def mended(self: Small, root: Path, modality: str, key: str) -> object:
        read.append(key)
        return small().read(root, modality, key) if self.settings.unreadable else original(self, root, modality, key)

    original = Small.read
    monkeypatch.setattr(Small, "read", mended)
    prepared = prepare("small", small(**settings), "c0de", Path("raw"), tmp_path)
    assert read.count("a3") == 2  # once for the set, once inside for its values
    assert set(read) == {"a3"}
    assert len(prepared.index) == 40


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"audio a4: 1 of 15 values are NaN or infinite"):
        prepare("small", small(poisoned="a4"), "c0de", Path("raw"), tmp_path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    prepared = prepare("small", small(), "c0de", Path("raw"), tmp_path)
    assert prepared.verify() == []
    file = prepared.folder / "visual.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert prepared.verify() == ["visual.npy"]
    mended = prepare("small", small(), "c0de", Path("raw"), tmp_path, overwrite=True)
    assert mended.verify() == []


@pytest.mark.parametrize("file", ["audio.npy", "mask_audio.npy", "targets.npy", "index.parquet", "manifest.json"])
def test_a_missing_or_short_file_is_named_and_prepared_again(tmp_path: Path, file: str) -> None:
    prepared = prepare("small", small(), "c0de", Path("raw"), tmp_path)
    (prepared.folder / file).write_bytes((prepared.folder / file).read_bytes()[:-7])
    with pytest.raises(DataError, match=rf"{file}.*`bench data prepare small`"):
        Prepared.open(prepared.folder)
    (prepared.folder / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: is missing; `bench data prepare small`"):
        Prepared.open(prepared.folder)
    again = prepare("small", small(), "c0de", Path("raw"), tmp_path)
    assert again.fingerprint == prepared.fingerprint


def test_the_manifest_says_where_it_comes_from(tmp_path: Path) -> None:
    prepared = prepare("small", small(), "c0de", Path("raw"), tmp_path)
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    assert manifest["code"] == "c0de"
    assert manifest["settings"]["count"] == 40
    assert manifest["counts"]["splits"] == {"train": 20, "val": 10, "test": 10}
    assert set(manifest["files"]) == {"audio.npy", "mask_audio.npy", "visual.npy", "targets.npy", "index.parquet"}
    assert manifest["versions"]["numpy"] == np.__version__


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.data.filling.shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(DataError, match="GB are free"):
        prepare("small", small(), "c0de", Path("raw"), tmp_path)
    assert not list(tmp_path.glob(".*.partial"))
