"""`bench analyse` as people and programs use it, through to the report and MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.errors import ResultsError
from bench.store import read_json
from tests.commandline import DONE, NO_MIRROR, SMALL, SOME_FAILED, WRONG_REQUEST, CommandLine

ONCE = ("--set", "recipe.epochs=1")
ASKED = (*SMALL, "--seeds", "1", *ONCE)


@pytest.fixture(scope="module")
def module_patch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, module_patch: pytest.MonkeyPatch) -> CommandLine:
    """A folder in which one multimodal and one unimodal row are finished."""
    base = tmp_path_factory.mktemp("analyse")
    made = CommandLine(base, tmp_path_factory.getbasetemp() / "command-line-prepared", base / "raw", module_patch)
    answer = made.run("--methods", "audio,concat", *ONCE)
    assert answer.code == DONE, answer.err
    return made


def test_it_answers_once_and_joins_the_report(bench: CommandLine) -> None:
    words = ("analyse", "missing,gradients", "--methods", "audio,concat", *ASKED, *NO_MIRROR)
    answer = bench(*words)
    assert answer.code == DONE, answer.err
    assert "2 measurements to make, 1 at a time, 0 are there" in answer.out
    assert "skipped by missing: audio on" in answer.out
    assert "without visual" in answer.out
    again = bench("analyse", "missing", *words[2:])
    assert "0 measurements to make, 1 at a time, 1 are there" in again.out
    (figure,) = (bench.results / "figures").glob("gradients*.svg")
    assert figure.read_text().startswith("<svg")
    for table in ("missing", "gradients"):
        assert {f.suffix for f in (bench.results / "tables").glob(f"analysis_{table}.*")} == {".md", ".csv", ".tex"}
    report = bench("report")
    assert "# Missing modality at test" in report.out
    page = (bench.results / "report.html").read_text()
    assert 'id="analysis-missing"' in page
    assert "norm of the gradient of the mean loss over a branch" in page


def test_programs_read_unrounded_rows(bench: CommandLine) -> None:
    words = ("--methods", "concat", *ASKED, *NO_MIRROR, "--set", "missing.seed=1", "--format", "json")
    answer = bench("analyse", "missing", *words)
    assert answer.code == DONE, answer.err
    (missing,) = answer.json["analyses"]
    assert (answer.json["missing"], answer.json["failed"]) == ([], 0)
    lines = missing["tables"]["missing"]
    assert len(lines) == 2 * 3
    assert lines[0]["drop"] == pytest.approx(lines[0]["clean"] - lines[0]["score"])
    assert all(Path(file).is_file() for file in missing["files"])
    assert read_json(bench.results / "analyses" / "missing" / "request.json")["settings"] == {"seed": 1}


def test_what_is_not_finished_is_named_with_what_trains_it(bench: CommandLine) -> None:
    none = bench("analyse", "missing", "--methods", "sum", *ASKED, *NO_MIRROR)
    assert none.code == WRONG_REQUEST
    assert "none of 1 trials is finished; `bench run --methods sum --datasets" in none.err
    some = bench("analyse", "missing", "--methods", "concat,sum", *ASKED, *NO_MIRROR)
    assert some.code == SOME_FAILED
    assert "1 trials are not finished and left out; `bench run --methods concat,sum" in some.out
    assert "0 measurements failed, 1 trials are missing" in some.err


def test_what_does_not_exist_is_refused(bench: CommandLine) -> None:
    for words, expected in (
        (("nois",), "unknown analysis 'nois'. Did you mean 'noise'?"),
        (("noise", "--set", "noise.level=1"), "unknown setting 'level'. Did you mean 'levels'?"),
        (("noise", "--set", "missing.seed=1"), "missing is not among what is asked for"),
        (("missing", "--methods", "audio"), "nothing is left to analyse"),
    ):
        answer = bench("analyse", *words, *ASKED, *NO_MIRROR)
        assert answer.code == WRONG_REQUEST, words
        assert expected in answer.err


def test_mlflow_is_told_and_may_be_down(bench: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is told is held in tests/test_tracking.py."""
    told: list[tuple[Path, str | None]] = []
    monkeypatch.setattr("bench.tracking.mirror_analyses", lambda store, uri: told.append((store.folder, uri)))
    words = ("analyse", "missing", "--methods", "concat", *ASKED, "--set", "tracking.uri=sqlite:///there.db")
    assert bench(*words).code == DONE
    assert told == [(bench.results, "sqlite:///there.db")]

    def down(*_: object) -> None:
        raise ResultsError("MLflow at there cannot be used: no route")

    monkeypatch.setattr("bench.tracking.mirror_analyses", down)
    answer = bench(*words)
    assert answer.code == DONE
    assert "warning: MLflow at there cannot be used: no route; `bench sync` repairs it" in answer.out + answer.err
