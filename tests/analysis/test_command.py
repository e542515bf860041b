"""`bench analyse` as people and programs use it, through to the report and MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import tracking
from bench.store import Store
from tests.commandline import DONE, NO_MIRROR, SMALL, SOME_FAILED, WRONG_REQUEST, CommandLine
from tests.world import DATASET

ASKED = (*SMALL, "--seeds", "1")


@pytest.fixture(scope="module")
def module_patch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, module_patch: pytest.MonkeyPatch) -> CommandLine:
    """A folder in which one multimodal and one unimodal row are finished."""
    base = tmp_path_factory.mktemp("analyse")
    made = CommandLine(base, tmp_path_factory.getbasetemp() / "command-line-prepared", base / "raw", module_patch)
    answer = made.run("--methods", "audio,concat")
    assert answer.code == DONE, answer.err
    return made


def test_it_answers_once_and_joins_the_report(bench: CommandLine) -> None:
    words = ("analyse", "missing,contribution", "--methods", "audio,concat", *ASKED, *NO_MIRROR)
    answer = bench(*words)
    assert answer.code == DONE, answer.err
    assert "2 measurements to make on cpu, 0 are there" in answer.out
    assert "skipped by missing: audio on" in answer.out
    assert "without visual" in answer.out
    assert "0 measurements to make on cpu, 2 are there" in bench(*words).out
    (figure,) = (bench.results / "figures").glob("contribution*.svg")
    assert figure.read_text().startswith("<svg")
    for table in ("missing", "contribution"):
        assert {f.suffix for f in (bench.results / "tables").glob(f"analysis_{table}.*")} == {".md", ".csv", ".tex"}
    report = bench("report")
    assert "# Missing modality at test" in report.out
    page = (bench.results / "report.html").read_text()
    assert 'id="analysis-missing"' in page
    assert "Shapley values of the accuracy" in page


def test_programs_read_unrounded_rows(bench: CommandLine) -> None:
    answer = bench(
        "analyse", "noise", "--methods", "concat", *ASKED, *NO_MIRROR, "--set", "noise.levels=1", "--format", "json"
    )
    assert answer.code == DONE, answer.err
    (noise,) = answer.json["analyses"]
    assert (answer.json["missing"], answer.json["failed"]) == ([], 0)
    lines = noise["tables"]["noise"]
    assert {line["level"] for line in lines} == {1.0}
    assert len(lines) == 3 * 2 * 2
    assert lines[0]["drop"] == pytest.approx(lines[0]["clean"] - lines[0]["score"])
    assert all(Path(file).is_file() for file in noise["files"])


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


def test_mlflow_has_the_numbers_on_the_run_of_the_trial(bench: CommandLine) -> None:
    from mlflow import MlflowClient

    answer = bench("analyse", "missing", "--methods", "concat", *ASKED)
    assert answer.code == DONE, answer.err
    assert "warning" not in answer.err + answer.out
    store = Store(bench.results)
    (file,) = [f for f in (bench.results / "analyses" / "missing").glob("*-*.json") if "request" not in f.name]
    content = json.loads(file.read_text())["content"]
    client = MlflowClient(tracking_uri=tracking.default_uri(store))
    experiment = client.get_experiment_by_name(DATASET)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`bench.trial_id` = '{content['trial']}'")
    expected = {
        f"analysis/missing/missing/{m}/{fill}": x
        for m, fills in content["values"]["missing"].items()
        for fill, x in fills.items()
    }
    assert expected.items() <= run.data.metrics.items()
    assert run.info.status == "FINISHED"
    assert [a.path for a in client.list_artifacts(run.info.run_id, "analyses")] != []
    assert tracking.mirror_analyses(store) == 0
