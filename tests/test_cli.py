"""The command line as people and programs use it: what it prints, what it leaves alone, what it refuses to import."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import scoring
from bench.store import Store
from tests.commandline import DONE, NO_MIRROR, SMALL, CommandLine, InThisProcess
from tests.world import DATASET

COMMANDS = (
    *("run", "tune", "plan", "report", "ladder", "analyse", "verify", "status", "prune", "sync", "ui"),
    *("list", "cost", "check", "doctor", "data", "data list", "data prepare", "data verify", "data audit"),
)
CELL = {
    "method": str,
    "label": str,
    "dataset": str,
    "protocol": str,
    "metric": str,
    "mean": float,
    "low": float,
    "high": float,
    "n_seeds": int,
    "n_folds": int,
    "trial_ids": list,
    "accuracy_mean": float,
    "accuracy_low": float,
    "accuracy_high": float,
}
"""What a report's cells promise to programs; a value that cannot be known is null."""


@pytest.fixture(scope="module")
def module_patch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, module_patch: pytest.MonkeyPatch) -> CommandLine:
    """A folder in which a small sweep is finished."""
    base = tmp_path_factory.mktemp("cli")
    bench = CommandLine(base, tmp_path_factory.getbasetemp() / "command-line-prepared", base / "raw", module_patch)
    answer = bench.run("--methods", "audio,visual,ensemble,rollingq,concat", "--seeds", "2")
    assert answer.code == DONE, answer.err
    return bench


@pytest.fixture
def bench(tmp_path: Path, done: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """An empty folder of its own."""
    return CommandLine(tmp_path, done.prepared, tmp_path / "raw", monkeypatch)


def has(entry: dict[str, Any], **kinds: type) -> None:
    """The entry has these keys, and under them values of these types."""
    for key, kind in kinds.items():
        assert key in entry, f"{key} is missing from {sorted(entry)}"
        assert isinstance(entry[key], kind), f"{key} is {entry[key]!r}"


def test_a_second_run_does_nothing_and_says_so(done: CommandLine) -> None:
    before = _times(done.results)
    answer = done.run("--methods", "audio,visual,ensemble,rollingq,concat", "--seeds", "2")
    assert answer.code == DONE
    assert "nothing to do: all 8 trials are there" in answer.out
    assert "| rollingq " in answer.out
    assert _times(done.results) == before


def _times(results: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in sorted(results.glob("trials/*/*"))}


def test_a_larger_request_trains_only_what_is_new(bench: CommandLine) -> None:
    assert bench.run("--methods", "audio").code == DONE
    before = _times(bench.results)
    answer = bench.run("--methods", "audio,concat", "--seeds", "2")
    assert "3 of 4 trials to train" in answer.out
    assert before.items() <= _times(bench.results).items()


def test_two_spellings_are_one_trial(bench: CommandLine) -> None:
    spellings = "rollingq:rho=2,vanilla_mt+rollingq:rho=2.0,rollingq:rho=2:beta=0.3"
    plan = bench.plan("--methods", spellings)
    assert plan["trials"] == 1
    assert len({row["method"] for row in plan["rows"]}) == 1
    assert [row["label"] for row in plan["rows"]] == spellings.split(",")
    assert bench.plan("--methods", "audio,unimodal:modality=audio")["trials"] == 1


def test_a_setting_given_apart_is_the_setting_given_in_the_name(bench: CommandLine) -> None:
    apart = bench.plan("--methods", "rollingq", "--set", "rollingq.rho=2")
    inside = bench.plan("--methods", "rollingq:rho=2")
    (bench.folder / "bench.yaml").write_text("settings: {rollingq: {rho: 2}}\n")
    assert apart["missing"] == inside["missing"] == bench.plan("--methods", "rollingq")["missing"]


def test_the_ensemble_is_computed_from_the_stored_logits_of_its_seed(done: CommandLine) -> None:
    cells = {cell["method"]: cell for cell in done("report", "--format", "json").json["cells"]}
    ensemble, store = cells["ensemble"], Store(done.results)
    parts = {store.read(i, "record.json")["seed"]: [] for i in ensemble["trial_ids"]}  # type: ignore[var-annotated]  # filled below
    for trial in ensemble["trial_ids"]:
        record = store.read(trial, "record.json")
        logits = store.arrays(trial, "logits.npz")["test"][record["selected_epoch"]]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        parts[record["seed"]].append(shifted / shifted.sum(axis=1, keepdims=True))
    assert [len(each) for each in parts.values()] == [2, 2]
    target = _test_targets(done)
    expected = [100 * float((sum(each).argmax(axis=1) == target).mean()) for each in parts.values()]
    assert ensemble["values"] == pytest.approx(expected)
    assert ensemble["mean"] == pytest.approx(np.mean(expected))
    assert set(ensemble["trial_ids"]) == {*cells["unimodal:modality=audio"]["trial_ids"], *_ids(cells, "visual")}


def _ids(cells: dict[str, Any], modality: str) -> Sequence[str]:
    found: Sequence[str] = cells[f"unimodal:modality={modality}"]["trial_ids"]
    return found


def _test_targets(bench: CommandLine) -> np.ndarray:
    from bench.data.prepared import Prepared

    (folder,) = (f.parent for f in bench.prepared.glob("planted-*/manifest.json") if "collapse" in f.read_text())
    return scoring.Truth.of(Prepared.open(folder), "honest", 0).targets["test"]


def test_the_score_that_is_reported_is_that_of_the_whole_test_split(done: CommandLine) -> None:
    cells = {cell["method"]: cell for cell in done("report", "--format", "json").json["cells"]}
    store, target = Store(done.results), _test_targets(done)
    for trial, value in zip(cells["concat"]["trial_ids"], cells["concat"]["values"], strict=True):
        record, logits = store.read(trial, "record.json"), store.arrays(trial, "logits.npz")
        chosen = logits["test"][record["selected_epoch"]]
        assert len(chosen) == len(target) == record["split_sizes"]["test"]
        assert value == pytest.approx(100 * (chosen.argmax(axis=1) == target).mean())


def test_report_as_json(done: CommandLine) -> None:
    report = done("report", "--format", "json").json
    has(report, cells=list, skipped=list, tables=list)
    assert [cell["label"] for cell in report["cells"]] == ["audio", "visual", "ensemble", "rollingq", "concat"]
    for cell in report["cells"]:
        has(cell, **CELL)
        assert cell["low"] <= cell["mean"] <= cell["high"]
        assert cell["mean"] == cell["accuracy_mean"]
        assert (cell["n_seeds"], cell["n_folds"], cell["metric"], cell["protocol"]) == (2, 1, "accuracy", "honest")
        assert len(cell["trial_ids"]) == (4 if cell["label"] == "ensemble" else 2)
    assert next(c["method"] for c in report["cells"] if c["label"] == "rollingq").startswith("vanilla_mt+rollingq")
    assert all(Path(table).is_file() for table in report["tables"])
    assert {".md", ".csv", ".tex"} <= {Path(table).suffix for table in report["tables"]}


def test_report_as_text_is_a_table_with_intervals_and_seeds(done: CommandLine) -> None:
    answer = done("report")
    assert answer.code == DONE
    for text in ("| audio", "| ensemble", "95 % interval", "Seeds 0, 1", "Parameters"):
        assert text in answer.out


def test_run_as_json_prints_the_report_and_nothing_else(done: CommandLine) -> None:
    answer = done.run("--methods", "audio,visual,ensemble,rollingq,concat", "--seeds", "2", "--format", "json")
    assert answer.code == DONE
    assert answer.json["cells"] == done("report", "--format", "json").json["cells"]
    assert "nothing to do" in answer.err


def test_plan_as_json(done: CommandLine) -> None:
    plan = done.plan("--methods", "audio,ensemble,concat+ogm")
    has(plan, id=str, rows=list, skipped=list, trials=int, missing=list, unusable=list, config=dict)
    assert (plan["trials"], len(plan["missing"])) == (3, 1)
    for row in plan["rows"]:
        has(row, label=str, method=str, dataset=str, dataset_label=str, protocol=str, metric=str, groups=list)
        for group in row["groups"]:
            has(group, fold=int, seed=int, trials=list)
    assert [row["derived"] for row in plan["rows"]] == [None, "ensemble", None]
    has(plan["config"], methods=list, datasets=list, seeds=list, recipe=dict, execute=dict, tracking=dict)
    assert plan["config"]["recipe"]["epochs"] == 3


def test_plan_says_what_is_skipped_and_why(bench: CommandLine) -> None:
    plan = bench.plan("--methods", "audio,touch,concat", "--datasets", f"{DATASET},{DATASET}:modalities=5")
    (skipped,) = plan["skipped"]
    assert skipped["label"] == "touch"
    assert "no modality 'touch' (it has audio, visual)" in skipped["reason"]


def test_list_as_json(done: CommandLine) -> None:
    found = done("list", "--format", "json").json
    methods = {entry["name"]: entry for entry in found["methods"]}
    assert {"concat", "vanilla_mt", "rollingq", "ogm", "ensemble"} <= set(methods)
    for entry in methods.values():
        has(entry, name=str, kind=str, about=str, requires=list, paper=str, reference=str, settings=list, origin=str)
    rollingq = methods["rollingq"]
    assert (rollingq["kind"], rollingq["home"]) == ("strategy", "vanilla_mt")
    assert "an attention site" in rollingq["requires"]
    (beta,) = (setting for setting in rollingq["settings"] if setting["name"] == "beta")
    assert (beta["type"], beta["default"], beta["low"], beta["high"]) == ("float", 0.3, 0.0, 2.0)
    datasets = {entry["name"]: entry for entry in found["datasets"]}
    for entry in datasets.values():
        has(entry, name=str, kind=str, title=str, source=str, licence=str, known_faults=list, usable=bool, reason=str)
    assert datasets["planted"]["usable"] is True
    assert datasets["crema_d"]["usable"] is False
    assert "AudioWAV" in datasets["crema_d"]["reason"]
    assert [list(done("list", what, "--format", "json").json) for what in ("methods", "datasets")] == [
        ["methods"],
        ["datasets"],
    ]


def test_cost_as_json(done: CommandLine) -> None:
    rows = done("cost", "--datasets", DATASET, "--methods", "concat,rollingq", "--format", "json").json
    assert [row["label"] for row in rows] == ["concat", "rollingq"]
    numbers = ("params_m", "gflops_published_convention", "true_gflops_per_sample")
    for row in rows:
        has(row, label=str, method=str, dataset=str, **dict.fromkeys(numbers, float))
    assert all(rows[1][name] > rows[0][name] > 0 for name in numbers)


def test_status_and_doctor_as_json(done: CommandLine) -> None:
    status = done("status", "--format", "json").json
    has(status, results=str, trials=int, rows=list, failures=dict)
    for row in status["rows"]:
        has(row, label=str, dataset=str, finished=int, failed=int, missing=int)
    for entry in done("doctor", "--format", "json").json:
        has(entry, name=str, ok=bool, found=str)


@pytest.mark.parametrize("command", ["list", "plan", "report", "cost", "status", "doctor", "data list"])
def test_what_is_shown_as_json_is_also_shown_to_people(done: CommandLine, command: str) -> None:
    options = {
        "plan": ["--no-time", *SMALL, *NO_MIRROR, "--methods", "audio"],
        "cost": ["--datasets", DATASET, "--methods", "sum"],
    }
    answer = done(*command.split(), *options.get(command, []))
    assert answer.code == DONE, answer.err
    assert len(answer.out.splitlines()) > 1
    assert not answer.out.lstrip().startswith(("{", "["))


def test_all_data_sets_says_which_are_not_usable_and_what_would_mend_them(
    bench: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only `planted` is prepared here: the others that need no files would take half a minute."""
    from bench.data import selection

    monkeypatch.setattr(selection, "listed", lambda: ["crema_d", "planted", "kinetics_sounds"])
    words = [
        "--datasets",
        "all",
        "--methods",
        "audio",
        "--set",
        "planted.preset=collapse",
        "--set",
        "planted.samples=96",
    ]
    words += ["--set", "planted.classes=3", "--set", "planted.tokens=4", *NO_MIRROR]
    plan = bench("plan", "--no-time", *words, "--format", "json").json
    assert [row["dataset_label"] for row in plan["rows"]] == ["planted"]
    reasons = {entry["dataset"]: entry["reason"] for entry in plan["unusable"]}
    assert set(reasons) == {"crema_d", "kinetics_sounds"}
    assert "AudioWAV" in reasons["crema_d"]
    shown = bench("plan", "--no-time", *words).out
    assert "not usable here: crema_d: " in shown
    assert "not usable here: kinetics_sounds: " in shown


METHOD = '''
"""A method of the user's."""

from torch import nn

from bench import api
from bench.api import Fusion, Output


class Mine(Fusion):
    """The sum of the features."""

    def __init__(self, settings, task):
        super().__init__(settings, task)
        self.head = nn.Linear(task.dim, task.num_outputs)

    def forward(self, tokens):
        """Logits of the sum."""
        features = {m: t.pooled for m, t in tokens.items()}
        return Output(self.head(sum(features.values())), features)
'''


def test_editing_a_method_makes_its_own_trials_stale_and_no_others(bench: CommandLine) -> None:
    methods = bench.folder / "methods"
    methods.mkdir()
    file = methods / "mine.py"
    file.write_text(METHOD)
    request = ["--methods", "mine,mine+ogm,concat"]
    assert bench.run(*request).code == DONE
    assert bench.plan(*request)["missing"] == []
    file.write_text(
        METHOD.replace("A method of", "# not a comment\nStill a method of").replace("of the sum", "of a sum")
    )
    file.write_text(f"# A comment.\n{file.read_text()}\n# Another.\n")
    assert bench.plan(*request)["missing"] == []
    file.write_text(METHOD.replace("sum(features.values())", "2 * sum(features.values())"))
    plan = bench.plan(*request)
    stale = {row["label"] for row in plan["rows"] if set(row["groups"][0]["trials"]) & set(plan["missing"])}
    assert stale == {"mine", "mine+ogm"}
    file.write_text(METHOD)
    assert bench.plan(*request)["missing"] == []


def test_a_new_method_file_is_seen_at_once_and_a_broken_one_stays_visible(bench: CommandLine) -> None:
    methods = bench.folder / "methods"
    methods.mkdir()
    (methods / "mine.py").write_text(METHOD)
    (methods / "broken.py").write_text("import nothing_of_this_name\n")
    found = {entry["name"]: entry for entry in bench("list", "methods", "--format", "json").json["methods"]}
    assert found["mine"]["kind"] == "fusion"
    assert found["mine"]["origin"] == str(methods / "mine.py")
    assert found["broken"]["kind"] == "broken"
    assert "nothing_of_this_name" in found["broken"]["reason"]
    assert "broken.py cannot be imported" in bench("list", "methods").out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help_that_names_its_options(done: CommandLine, command: str) -> None:
    answer = done(*command.split(), "--help")
    assert answer.code == DONE
    assert "Usage: " in answer.out
    assert f"{command} [OPTIONS]" in answer.out
    if command not in ("", "data"):
        assert "--config" in answer.out


HEAVY = ("torch", "timm", "mlflow", "optuna", "pandas", "numpy", "scipy", "sklearn", "librosa", "av", "matplotlib")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, contextlib, io\n"
        "from bench.cli import main\n"
        "sys.argv = ['bench', 'run', '--help']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_mlflow_shows_trials_while_the_sweep_runs_and_all_of_them_after(bench: CommandLine) -> None:
    """A sweep of the real kind, with MLflow on, asked through MLflow's own search from beside it."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{bench.results / 'mlflow.db'}"
    seen: list[tuple[int, str]] = []

    class Slowly(InThisProcess):
        """Waits before the last trial until the first one is visible."""

        guarded = False

        def run(self, jobs: Any) -> Any:
            finished = 0
            for event in super().run(jobs):
                yield event
                finished += type(event).__name__ == "Finished"
                if finished == 1 and not seen:
                    seen.append(_first_seen(MlflowClient(uri), bench.results))

    bench.executor = Slowly
    answer = bench("run", *SMALL, "--seeds", "1", "--methods", "audio,concat")
    assert answer.code == DONE, answer.err
    assert seen == [(1, "RUNNING")]
    client = MlflowClient(uri)
    trials, parents = _mlflow(client, "trial"), _mlflow(client, "sweep")
    assert sorted(run.info.status for run in trials) == ["FINISHED", "FINISHED"]
    assert [run.info.status for run in parents] == ["FINISHED"]
    for run in trials:
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert {"val_accuracy", "test_accuracy"} <= {name.replace("/", "_") for name in run.data.metrics}
    again = bench("run", *SMALL, "--seeds", "1", "--methods", "audio,concat")
    assert "nothing to do" in again.out
    assert "0 trials added" in bench("sync").out


def _mlflow(client: Any, kind: str) -> list[Any]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`bench.kind` = '{kind}'"))


def _first_seen(client: Any, results: Path) -> tuple[int, str]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (results / "mlflow.db").is_file():
            finished = [run for run in _mlflow(client, "trial") if run.info.status == "FINISHED"]
            if finished:
                return len(finished), _mlflow(client, "sweep")[0].info.status
        time.sleep(0.1)
    return 0, "nothing was seen"
