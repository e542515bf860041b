"""Every mistake a user can make ends in one text that says where, what was found and what is allowed, and in exit 2.

A trial that fails is recorded with its cause and ends in exit 1, Ctrl-C in 130; what is finished stays finished.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.execute.events import Event, Finished, Jobs
from bench.store import Store
from tests.commandline import (
    DONE,
    INTERRUPTED,
    NO_MIRROR,
    SMALL,
    SOME_FAILED,
    WRONG_REQUEST,
    Answer,
    CommandLine,
    InThisProcess,
)
from tests.world import DATASET


@pytest.fixture
def bench(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """An empty folder to work in; prepared arrays are shared by the whole session, as they are between projects."""
    shared = tmp_path_factory.getbasetemp() / "command-line-prepared"
    work = tmp_path / "work"
    work.mkdir()
    return CommandLine(work, shared, tmp_path / "raw", monkeypatch)


def refused(answer: Answer, *says: str) -> None:
    """Exit 2, nothing on standard output, and an error that says all of this."""
    assert answer.code == WRONG_REQUEST, answer
    assert answer.out == ""
    assert "Traceback" not in answer.err
    for text in says:
        assert text in answer.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--methods", "rolingq"],
            ["--methods: unknown method 'rolingq'", "Did you mean 'rollingq'?", "Known: audio, "],
        ),
        (["--methods", "concat+ogn"], ["unknown method 'ogn'", "Did you mean 'ogm'?"]),
        (
            ["--datasets", "plantd"],
            ["--datasets: unknown data set 'plantd'", "Did you mean 'planted'?", "Known: arrays"],
        ),
        (["--methods", "rollingq:betta=1"], ["rollingq: unknown setting 'betta'. Did you mean 'beta'?", "Known: air"]),
        (["--datasets", "planted:sampels=9"], ["planted: unknown setting 'sampels'. Did you mean 'samples'?"]),
        (["--set", "rolingq.beta=1"], ["--set rolingq.beta", "Did you mean 'rollingq'?"]),
        (["--set", "recipe.epoch=1"], ["--set recipe.epoch: unknown key 'epoch'. Did you mean 'epochs'?"]),
        (
            ["--methods", "concat+rollingq"],
            ["'concat+rollingq' is not possible", "requires an attention site", "provides"],
        ),
        (["--methods", "vanilla_mt+concat"], ["--methods", "concat"]),
        (["--methods", "rollingq:rho=fast"], ["rollingq:rho=fast: expected a finite number, found 'fast'"]),
        (["--methods", "rollingq:max_rotations=1.5"], ["rollingq:max_rotations=1.5: expected a whole number"]),
        (["--methods", "rollingq:beta=7"], ["rollingq:beta=7", "must lie in 0.0 to 2.0"]),
        (["--methods", "rollingq:rotation=skew"], ["expected one of plane, svd, found 'skew'"]),
        (["--set", "recipe.lr=fast"], ["--set recipe.lr", "valid number", "found 'fast'"]),
        (["--set", "recipe.epochs=0"], ["--set recipe.epochs", "greater than or equal to 1", "found 0"]),
        (["--set", "recipe.precision=fp8"], ["--set recipe.precision", "'fp32', 'bf16' or 'fp16'", "found 'fp8'"]),
        (["--methods", ""], ["--methods", "the list is empty"]),
        (["--datasets", ""], ["--datasets", "the list is empty"]),
        (["--seeds", "0"], ["--seeds", "at least one seed is needed"]),
        (["--folds", "9"], ["there is no fold 9"]),
        (["--protocol", "test_best"], ["--protocol", "'honest'", "found 'test_best'"]),
        (["--config", "no.yaml"], ["no.yaml: there is no such file; name one with --config"]),
        (["--format", "yaml"], ["--format", "'yaml'", "'text', 'json'"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong_and_what_is_allowed(
    bench: CommandLine, options: list[str], says: list[str]
) -> None:
    dataset = [] if "--datasets" in options else ["--datasets", DATASET]
    refused(bench("plan", "--no-time", *dataset, *options), *says)
    assert list(bench.folder.glob("results/trials/*")) == []


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("methods: [concat, rolingq]\n", "1:19", "unknown method 'rolingq'. Did you mean 'rollingq'?"),
        ("metods: [concat]\n", "1:1", "unknown key 'metods'. Did you mean 'methods'?"),
        ("recipe:\n  epochs: many\n", "2:11", "valid integer"),
        ("datasets: [plantd]\n", "1:12", "unknown data set 'plantd'. Did you mean 'planted'?"),
        ("methods: []\n", "1:10", "the list is empty"),
        ("methods:\n  - concat+rollingq\n", "2:5", "requires an attention site"),
        ("methods:\n  - vanilla_mt\n  - rollingq:rho=x\n", "3:5", "expected a finite number, found 'x'"),
        ("methods: [concat\n", "2:9", "expected ',' or ']'"),
    ],
)
def test_a_mistake_in_bench_yaml_is_told_with_file_line_and_column(
    bench: CommandLine, text: str, at: str, says: str
) -> None:
    file = bench.folder / "bench.yaml"
    file.write_text(text if "datasets" in text else f"{text}datasets: ['{DATASET}']\n")
    refused(bench("run"), f"error: {file}:{at}: ", says)


@pytest.mark.parametrize(("word", "says"), [("plot", "No such command 'plot'"), ("list", "expected methods, datasets")])
def test_a_command_that_does_not_exist_is_refused(bench: CommandLine, word: str, says: str) -> None:
    refused(bench(word, "nothing"), says)


@pytest.mark.parametrize("device", ["cuda:63", "tpu", "cpu:1", "cuda:x"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_done(bench: CommandLine, device: str) -> None:
    refused(bench.run("--device", device), f"--device {device}: ", "allowed here: auto, cpu")
    assert not bench.results.exists()


def an_npz(file: Path, **changes: Any) -> None:
    """Sixty samples of two modalities and three classes, with some arrays replaced."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "audio": rng.normal(size=(60, 4)).astype(np.float32),
        "visual": rng.normal(size=(60, 3)).astype(np.float32),
        "label": np.arange(60) % 3,
    }
    np.savez(file, **(arrays | changes))


HOLED = np.zeros((60, 4))
HOLED[7, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"audio": np.array([{}] * 60, dtype=object)}, "array 'audio' cannot be read"),
        ({"visual": np.zeros((59, 3))}, "'visual' has 59 rows, but there are 60 targets"),
        ({"audio": HOLED}, "1 of 240 values of 'audio' are NaN or infinite"),
        ({"label": np.zeros((60, 2))}, "'label' has shape [60, 2]; allowed: one value per sample"),
        ({"label": np.zeros(60, dtype=int)}, "a task needs two classes"),
        ({"split": np.array(["train", "exam"] * 30)}, "'split' holds 'exam'; allowed: "),
        ({"mask_audio": np.ones((60, 4), dtype=bool)}, "'mask_audio' has shape [60, 4]"),
    ],
    ids=["objects", "lengths", "nan", "target", "one class", "split", "mask"],
)
def test_a_wrong_npz_is_refused_with_the_array_that_is_wrong(
    bench: CommandLine, changes: dict[str, Any], says: str
) -> None:
    an_npz(bench.folder / "mine.npz", **changes)
    refused(bench("run", "--datasets", "arrays:path=mine.npz", *NO_MIRROR), "mine.npz: ", says)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no file "), (b"", "this is no .npz file"), (b"PK\x03\x04 cut short", "this is no .npz file")],
    ids=["missing", "empty", "cut short"],
)
def test_a_file_that_is_no_npz_is_refused(bench: CommandLine, content: bytes | None, says: str) -> None:
    if content is not None:
        (bench.folder / "mine.npz").write_bytes(content)
    refused(bench("run", "--datasets", "arrays:path=mine.npz", *NO_MIRROR), "mine.npz", says)


def test_an_unknown_array_is_told_with_those_there_are(bench: CommandLine) -> None:
    an_npz(bench.folder / "mine.npz")
    answer = bench("plan", "--datasets", "arrays:path=mine.npz:target=lable")
    refused(answer, "no array 'lable' for target. Did you mean 'label'?", "audio, label, visual")


@pytest.mark.parametrize(("name", "needed"), [("crema_d", "AudioWAV"), ("kinetics_sounds", "kinetics_sounds")])
def test_raw_files_that_are_missing_are_named_with_their_source(bench: CommandLine, name: str, needed: str) -> None:
    answer = bench("run", "--datasets", name, *NO_MIRROR)
    refused(answer, f"--datasets: {name}: ", needed, str(bench.data_root))


@pytest.fixture
def prepared(bench: CommandLine, tmp_path: Path) -> Path:
    """The folder of a prepared data set that no other test uses."""
    bench.prepared = tmp_path / "prepared"
    bench.plan("--methods", "sum")
    (folder,) = (manifest.parent for manifest in bench.prepared.glob("*/manifest.json"))
    return folder


@pytest.mark.parametrize("file", ["audio.npy", "manifest.json", "index.parquet"])
def test_prepared_files_that_are_gone_or_cut_short_are_written_again(
    bench: CommandLine, prepared: Path, file: str
) -> None:
    whole = (prepared / "audio.npy").read_bytes()
    (prepared / file).write_bytes((prepared / file).read_bytes()[:99])
    (prepared / "visual.npy").unlink()
    bench.plan("--methods", "sum")
    assert (prepared / "audio.npy").read_bytes() == whole
    assert bench("data", "verify", DATASET).code == DONE


def test_a_prepared_file_with_other_content_is_named_with_what_mends_it(bench: CommandLine, prepared: Path) -> None:
    for name in ("audio.npy", "index.parquet"):
        file = prepared / name
        file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))
        answer = bench("data", "verify", DATASET)
        assert answer.code != DONE
        assert str(file) in answer.out + answer.err
    refused(bench.run("--methods", "sum"), f"{prepared / 'index.parquet'}: ", "`bench data prepare planted")


def test_a_results_folder_that_cannot_be_used_is_refused_before_training(bench: CommandLine) -> None:
    file = bench.folder / "results"
    file.write_text("a file where a folder should be")
    for command in (["run", *SMALL, *NO_MIRROR], ["report"]):
        refused(bench(*command), f"{file}: results cannot be written here: Not a directory")
    refused(bench("status"), f"{file}: results cannot be read here: it is not a folder")


def test_a_damaged_record_is_named_and_the_other_commands_still_work(bench: CommandLine) -> None:
    assert bench.run("--methods", "audio,visual").code == DONE
    record = sorted(bench.results.glob("trials/*/record.json"))[0]
    record.write_text("{")
    for command in ("report", "sync"):
        refused(bench(command), str(record), "cannot be read")
    assert bench("status").code == DONE


def test_nothing_to_report_says_what_makes_results(bench: CommandLine) -> None:
    refused(bench("report"), "nothing was run here yet", "bench run")


@pytest.fixture
def finished(bench: CommandLine) -> Callable[[], dict[str, float]]:
    """The stored trials and when they were written."""
    # A trial in the making has a folder whose name begins with a dot.
    return lambda: {f.parent.name: f.stat().st_mtime_ns for f in bench.results.glob("trials/[!.]*/record.json")}


def test_a_loss_that_is_not_finite_ends_its_trial_and_not_the_sweep(
    bench: CommandLine, finished: Callable[[], dict[str, float]]
) -> None:
    assert bench.run("--methods", "audio").code == DONE
    before = finished()
    answer = bench.run("--methods", "concat,sum", "--set", "recipe.lr=1e9", "--format", "json")
    assert answer.code == SOME_FAILED
    assert "2 trials failed; `bench status` says why" in answer.err
    cells = {cell["method"]: cell for cell in answer.json["cells"]}
    assert {method: set(cell["failures"].values()) for method, cell in cells.items()} == {
        "concat": {"non-finite loss"},
        "sum": {"non-finite loss"},
    }
    assert [cell["mean"] for cell in cells.values()] == [None, None]
    failures = bench("status", "--format", "json").json["failures"].values()
    assert {failure["cause"] for failure in failures} == {"non-finite loss"}
    assert all(re.search(r"epoch \d+: .*joint = (nan|inf)", failure["text"]) for failure in failures)
    assert finished() == before


def test_a_failed_trial_is_tried_again_and_then_no_longer_failed(bench: CommandLine) -> None:
    breaking = bench.folder / "break"
    breaking.touch()
    methods = bench.folder / "methods"
    methods.mkdir()
    (methods / "brittle.py").write_text(BRITTLE.format(flag=str(breaking)))
    first = bench.run("--methods", "brittle,audio")
    assert first.code == SOME_FAILED
    assert "brittle on planted" in first.err
    assert "failed: error: RuntimeError: as asked" in first.err
    ((failure),) = bench("status", "--format", "json").json["failures"].values()
    assert "as asked" in failure["text"]
    assert "brittle.py" in failure["text"]
    breaking.unlink()
    second = bench.run("--methods", "brittle,audio")
    assert second.code == DONE
    assert "1 of 2 trials to train" in second.out
    assert bench("status", "--format", "json").json["failures"] == {}


BRITTLE = '''
from pathlib import Path

from torch import nn

from bench import api
from bench.api import Fusion, Output


class Brittle(Fusion):
    """Breaks while a file is there."""

    def __init__(self, settings, task):
        super().__init__(settings, task)
        self.head = nn.Linear(task.dim, task.num_outputs)

    def forward(self, tokens):
        if self.training and Path({flag!r}).exists():
            raise RuntimeError("as asked")
        features = {{m: t.pooled for m, t in tokens.items()}}
        return Output(self.head(sum(features.values())), features)
'''


class InterruptedAfterOne(InThisProcess):
    """Ctrl-C as soon as the first trial is stored."""

    def run(self, jobs: Jobs) -> Iterator[Event]:
        for event in super().run(jobs):
            yield event
            if isinstance(event, Finished):
                raise KeyboardInterrupt


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(
    bench: CommandLine, finished: Callable[[], dict[str, float]]
) -> None:
    bench.executor = InterruptedAfterOne
    stopped = bench.run("--methods", "audio,visual,concat")
    assert stopped.code == INTERRUPTED
    assert "the same command goes on" in stopped.err
    assert "Traceback" not in stopped.err
    before = finished()
    assert len(before) == 1
    bench.executor = InThisProcess
    again = bench.run("--methods", "audio,visual,concat")
    assert again.code == DONE
    assert "2 of 3 trials to train" in again.out
    assert before.items() <= finished().items()
    assert len(finished()) == 3


HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from bench.cli import main; main()"
"""A suite that runs in the background ignores Ctrl-C, and so do its children unless they say otherwise."""


def test_ctrl_c_in_a_terminal_ends_the_training_processes_too(
    bench: CommandLine, tmp_path: Path, finished: Callable[[], dict[str, float]]
) -> None:
    """The real executor, and the signal sent to the whole process group as a terminal does.

    What a training process stored is bit for bit what this process makes of the same request.
    """
    bench.plan("--methods", "audio")
    words = [*SMALL, "--seeds", "1", *NO_MIRROR, "--set", "recipe.epochs=40", "--set", "execute.slots=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", HEARING, "run", *words, "--methods", "audio,mbt:layers=12"],
        cwd=bench.folder,
        env={**os.environ, "BENCH_PREPARED": str(bench.prepared), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _wait_for(lambda: len(finished()) == 1, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    ((trial),) = finished()
    _wait_for(lambda: not _group_lives(process.pid), None)
    (tmp_path / "other").mkdir()
    here = dataclasses.replace(bench, folder=tmp_path / "other")
    assert here("run", *words, "--methods", "audio").code == DONE
    one, other = (Store(b.results).arrays(trial, "logits.npz") for b in (bench, here))
    assert all(np.array_equal(one[split], other[split]) for split in ("val", "test"))


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, "the command ended before it was interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
