"""The results folder: whole or not at all, in the order things were asked for, and sound or noticed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.errors import ResultsError
from bench.report.build import build
from bench.requested import request_of_stored
from bench.store import Store, read_sealed, write_json, write_sealed
from tests import stored


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def test_the_latest_sweep_is_the_last_one_asked_for_whatever_the_clock_says(store: Store) -> None:
    for name in ("first", "second", "third"):
        store.write_sweep(name, {"id": name, "rows": []})
    for age, name in enumerate(("third", "second", "first")):
        os.utime(store.folder / "sweeps" / f"{name}.json", (age, age))
    latest = store.latest_sweep()
    assert latest is not None
    assert latest["id"] == "third"
    store.write_sweep("first", {"id": "first", "rows": []})
    assert [sweep["id"] for sweep in store.sweeps()] == ["second", "third", "first"]


def test_a_trial_copied_only_in_part_is_not_finished(store: Store) -> None:
    trial = stored.store_trial(store, stored.spec())
    assert store.has(trial)
    (store.trial(trial) / "logits.npz").unlink()
    assert not store.has(trial)
    assert store.finished() == []


def test_a_half_written_trial_is_not_listed(store: Store) -> None:
    trial = stored.store_trial(store, stored.spec())
    shutil.copytree(store.trial(trial), store.folder / "trials" / f".{trial}.x7")
    assert store.finished() == [trial]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"content": {"a": 1}}', b'{"content": {"a": 2}, "sha256": "0"}']
)
def test_sealed_json_that_is_damaged_reads_as_missing(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "x.json"
    assert read_sealed(file) is None
    write_sealed(file, {"a": 1, "b": [0.1, 1e-300]})
    assert read_sealed(file) == {"a": 1, "b": [0.1, 1e-300]}
    file.write_bytes(damage)
    assert read_sealed(file) is None


def test_a_write_that_fails_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    with pytest.raises(ResultsError, match=r"gone/x\.json: cannot be written: No such file or directory"):
        write_json(tmp_path / "gone" / "x.json", {"a": 1})
    assert (tmp_path / "x.json").read_text() == '{\n "a": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_the_trials_of_two_machines_copied_together_make_one_table(tmp_path: Path) -> None:
    """Ten of twenty right on one machine and twelve on the other, each with a seed of its own: 55 % over two seeds."""
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    stored.store_trial(here, stored.spec(seed=0), test=(6, 10, 14))
    stored.store_trial(there, stored.spec(seed=1), test=(6, 12, 14))
    shutil.copytree(there.folder / "trials", here.folder / "trials", dirs_exist_ok=True)
    (cell,) = build(here, request_of_stored(here)).cells
    assert (cell.n_seeds, cell.seeds) == (2, (0, 1))
    assert cell.mean == pytest.approx(55.0)
