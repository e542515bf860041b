"""Both protocols and the ladder on files in CREMA-D's layout, from one command each."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import pytest
from raw_layouts import write_crema_d

from bench.report.ladder import BY_SEED, ONE_NUMBER, PUBLISHED, SAME, STEPS
from tests.commandline import DONE, NO_MIRROR, WRONG_REQUEST, CommandLine

NAMES = [step.name for step in STEPS]
CREMA = "crema_d:size=32"
SMALL = ("encoder.dim=16", "encoder.depth=1", "encoder.heads=2", "encoder.weights=none", "recipe.epochs=2")


def test_one_command_on_files_in_crema_ds_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench run` prints published, reproduced and honest; `bench ladder` the ladder, and finds all trained again."""
    write_crema_d(tmp_path / "raw" / "CREMA-D", "frames")
    bench = CommandLine(tmp_path, tmp_path / "prepared", tmp_path / "raw", monkeypatch)
    words = ("--methods", "vanilla_mt", "--seeds", "2", *(w for s in SMALL for w in ("--set", s)), *NO_MIRROR)
    run = bench("run", "--datasets", CREMA, "--protocol", "honest,published", *words)
    assert run.code == DONE, run.err
    (line,) = rows(bench.results / "tables" / "published.csv")
    assert float(line["published"]) == 48.8
    assert all(line[name] for name in ("reproduced", "honest", "not_reproduced_low", "protocol_gap_low"))
    assert "| Method     |   Published |" in run.out

    climb = ("ladder", "--dataset", CREMA, "--folds", "0,1", "--trials", "1", *words)
    first = bench(*climb)
    assert first.code == DONE, first.err
    found = rows(bench.results / "tables" / "ladder-crema_d.csv")
    assert [row["rung"] for row in found] == [PUBLISHED, *NAMES, "total"]
    removed = [float(row["removes"]) for row in found[1:]]
    assert sum(removed[:-1]) == pytest.approx(removed[-1], abs=1e-9)
    printed = [[c.strip() for c in text.split("|")] for text in first.out.splitlines() if text.startswith("| ")]
    points = [Decimal(row[4]) for row in printed[2:]]
    assert sum(points[:-1]) == points[-1]
    assert [row["paired"] for row in found][1:-1] == [ONE_NUMBER, BY_SEED, SAME, BY_SEED, SAME, BY_SEED]
    assert float(found[1]["score"]) == pytest.approx(float(line["reproduced"]))
    assert float(found[4]["score"]) == pytest.approx(float(line["honest"]))
    files = [bench.results / "tables" / f"ladder-crema_d.{kind}" for kind in ("md", "csv", "tex")]
    files.append(bench.results / "figures" / "ladder-crema_d.svg")
    written = [file.read_bytes() for file in files]

    again = bench(*climb)
    assert "nothing to do" in again.out
    for file in files:
        file.unlink()
    assert bench("report").code == DONE
    assert [file.read_bytes() for file in files] == written
    both = bench("ladder", "--dataset", f"{CREMA},planted", *words)
    assert both.code == WRONG_REQUEST
    assert "one data set" in both.err


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))
