"""`bench plan` from outside: what it says of time and disk, and that it leaves no result."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli.planning import duration, size
from tests.commandline import NO_MIRROR, SMALL, CommandLine

WORDS = (*SMALL, *NO_MIRROR, "--methods", "vanilla_mt,rollingq", "--seeds", "2")


@pytest.fixture
def bench(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    shared = tmp_path_factory.getbasetemp() / "command-line-prepared"
    return CommandLine(tmp_path, shared, tmp_path / "raw", monkeypatch)


def test_time_and_disk_are_told_and_nothing_is_stored(bench: CommandLine) -> None:
    answer = bench("plan", *WORDS, "--format", "json").json
    expected = answer["forecast"]["trials"]
    assert expected["trials"] == len(answer["missing"]) == 4
    assert 0 < expected["epochs"] <= expected["epochs_alone"]
    assert expected["seconds"] > 0
    assert expected["bytes"] > 0
    assert not list((bench.results / "trials").iterdir())
    assert not list((bench.results / "trajectories").iterdir())
    again = bench("plan", *WORDS)
    assert "epochs to train" in again.out
    assert "never ran here" not in again.err  # the calibration was kept


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")])
def test_a_time_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (2500, "2.5 kB"), (12.3e6, "12.3 MB"), (3e9, "3.0 GB")])
def test_a_size_has_one_decimal(count: float, text: str) -> None:
    assert size(count) == text
