"""`bench plan` from outside: what it says of time and disk, and that it leaves no result."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.cli.planning import duration, size
from tests.commandline import DONE, NO_MIRROR, SMALL, WRONG_REQUEST, CommandLine

WORDS = (*SMALL, *NO_MIRROR, "--methods", "vanilla_mt,rollingq", "--seeds", "2")


@pytest.fixture
def bench(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    shared = tmp_path_factory.getbasetemp() / "command-line-prepared"
    return CommandLine(tmp_path, shared, tmp_path / "raw", monkeypatch)


def test_time_and_disk_are_told_and_nothing_is_stored(bench: CommandLine) -> None:
    answer = bench("plan", *WORDS, "--format", "json").json
    assert "forecast" in answer, bench("plan", *WORDS).err
    expected = answer["forecast"]["trials"]
    assert expected["trials"] == len(answer["missing"]) == 4
    assert 0 < expected["epochs"] <= expected["epochs_alone"]
    assert expected["seconds"] > 0
    assert expected["bytes"] > 0
    assert [file.name for file in bench.results.iterdir()] == ["calibration.json"]
    again = bench("plan", *WORDS)
    assert "epochs to train" in again.out
    assert "never ran here" not in again.err  # the calibration was kept


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")])
def test_a_time_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (2500, "2.5 kB"), (12.3e6, "12.3 MB"), (3e9, "3.0 GB")])
def test_a_size_has_one_decimal(count: float, text: str) -> None:
    assert size(count) == text


def test_a_folder_that_cannot_be_written_can_be_looked_at(bench: CommandLine) -> None:
    assert bench.run("--methods", "audio").code == DONE
    mounted = subprocess.run(["mount", "--bind", bench.results, bench.results], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.decode().strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", bench.results], check=True)
        assert bench.plan("--methods", "audio")["missing"] == []
        assert bench("plan", *WORDS).code == DONE
        assert bench("status").code == DONE
        refused = bench.run("--methods", "visual")
        assert refused.code == WRONG_REQUEST
        assert "cannot be written" in refused.err
    finally:
        subprocess.run(["umount", bench.results], check=True)


def test_what_is_prepared_is_listed_as_usable_without_its_raw_files(bench: CommandLine) -> None:
    (bench.folder / "datasets").mkdir()
    (bench.folder / "datasets" / "pairs.py").write_text(PAIRS)
    bench.data_root.mkdir()
    raw = bench.data_root / "pairs.txt"
    raw.write_text("made elsewhere")
    assert bench("data", "prepare", "pairs").code == DONE
    raw.unlink()
    listed = {entry["name"]: entry for entry in bench("data", "list", "--format", "json").json}
    assert listed["pairs"]["usable"]
    shutil.rmtree(bench.prepared)
    refused = bench("data", "prepare", "pairs")
    assert refused.code == WRONG_REQUEST
    assert refused.err.count("pairs: ") == 1


PAIRS = '''
"""Ninety pairs of vectors, once a file is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.api import DataSet, DataSpec, EncoderSpec, Item, ModalitySpec, Sample


class Pairs(DataSet):
    """Ninety pairs of vectors, once a file is there."""

    title = "Pairs"

    def unusable(self, root: Path) -> str | None:
        """The reason, if the file is not there."""
        return None if (root / "pairs.txt").is_file() else f"pairs: there is no pairs.txt in {root}"

    def describe(self, root: Path) -> DataSpec:
        """Two vectors of four values."""
        vector = ModalitySpec(EncoderSpec("vector"), (4,), (4,), "float32")
        return DataSpec({"left": vector, "right": vector}, 3)

    def samples(self, root: Path) -> list[Sample]:
        """Three classes."""
        return [Sample(f"s{k}", float(k % 3), {m: f"{m}{k}" for m in ("left", "right")}) for k in range(90)]

    def read(self, root: Path, modality: str, key: str) -> Item:
        """Noise."""
        return Item(np.random.default_rng(len(key)).normal(size=4).astype(np.float32))
'''
