"""The adversary: plugin code that reaches for test targets is refused, recorded as tainted, and in no table."""

from __future__ import annotations

import csv
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from bench import guard, plugins, scoring
from bench import sweep as sweeping
from bench.api import Batch, Inputs
from bench.data.manifest import INDEX, MANIFEST, TARGETS
from bench.data.prepared import Prepared
from bench.execute.events import EpochDone, Event, Finished, Jobs
from bench.execute.inline import InlineExecutor
from bench.execute.local import LocalExecutor
from bench.guard import Places
from bench.report import fairness
from bench.report.collect import collect
from bench.report.tables import tables
from bench.retention import forget
from bench.scoring import Truth
from bench.store import Store, npz
from bench.sweep import Outcome
from bench.tracking import sync
from tests.commandline import CommandLine, InThisProcess, forget_plugins
from tests.stored import request, spec, store_trial
from tests.training import training_of
from tests.world import InProcess, World, make_world

TAINTED = 3
METHOD = '''"""A method that is not content with what it is given."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from bench.api import Strategy

{top}


class Curious(Strategy):
    """Looks where it should not."""

    home = "concat"

    def epoch_start(self, run):
        if run.epoch == 1:
            {inside}

    def decide(self, history):
        {decide}
        return None
'''
LINE = 'np.load("{targets}")'
"""What careless code would do."""


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Notes of this test end with it: here one process plays many."""
    guard.install()
    monkeypatch.setattr(guard._guard(), "_notes", [])
    yield
    guard.notes()


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """What the folder of a prepared data set looks like, beside a second one."""
    for name in ("one-1", "two-2"):
        folder = tmp_path / "prepared" / name
        folder.mkdir(parents=True)
        np.save(folder / TARGETS, np.arange(5))
        np.save(folder / "audio.npy", np.zeros((5, 2)))
        (folder / MANIFEST).write_text("{}")
        (folder / INDEX).write_text("")
    results = tmp_path / "results"
    for file in ("trials/0/scores.json", "trials/0/weights.safetensors", "trajectories/0/epoch-0000.npz", "derived/0"):
        (results / file).parent.mkdir(parents=True, exist_ok=True)
        (results / file).write_text("")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "labels.csv").write_text("id,label\n")
    return tmp_path / "prepared" / "one-1"


def places(prepared: Path) -> Places:
    top = prepared.parent.parent
    return Places.of([prepared.parent], top / "results", [top / "raw"])


def as_plugin(code: str, folder: Path, **names: object) -> None:
    """Run code as a method's file would."""
    text = code.replace("FOLDER", str(folder)).replace("TOP", str(folder.parent.parent))
    exec(compile(text, "methods/curious.py", "exec"), {"__name__": "bench.plugins.methods.curious", **names})


OPENINGS = {
    "numpy": "import numpy; numpy.load('FOLDER/targets.npy')",
    "numpy mapped": "import numpy; numpy.load('FOLDER/targets.npy', mmap_mode='r')",
    "memmap": "import numpy; numpy.memmap('FOLDER/targets.npy', dtype='u1', mode='r')",
    "fromfile": "import numpy; numpy.fromfile('FOLDER/targets.npy', dtype='u1')",
    "builtin": "open('FOLDER/targets.npy', 'rb').read()",
    "bytes": "open(b'FOLDER/targets.npy', 'rb').read()",
    "pathlib": "import pathlib; pathlib.Path('FOLDER/targets.npy').read_bytes()",
    "descriptor": "import os; os.open('FOLDER/targets.npy', os.O_RDONLY)",
    "relative to a folder": "import os; os.open('targets.npy', os.O_RDONLY, dir_fd=os.open('FOLDER', os.O_RDONLY))",
    "relative": "import os; open(os.path.relpath('FOLDER/targets.npy'), 'rb')",
    "another set": "open('FOLDER/../two-2/targets.npy', 'rb')",
    "symbolic link": "import os; os.symlink('FOLDER/targets.npy', 'TOP/link'); open('TOP/link', 'rb')",
    "linked folder": "import os; os.symlink('FOLDER', 'TOP/other'); open('TOP/other/targets.npy', 'rb')",
    "hard link": "import os; os.link('FOLDER/targets.npy', 'TOP/hard'); open('TOP/hard', 'rb')",
    "renamed": "import os; os.rename('FOLDER/targets.npy', 'TOP/moved'); open('TOP/moved', 'rb')",
    "copied": "import shutil; shutil.copyfile('FOLDER/targets.npy', 'TOP/copy')",
    "pandas": "import pandas; pandas.read_csv('FOLDER/targets.npy')",
    "mmap": "import mmap; mmap.mmap(open('FOLDER/targets.npy', 'rb').fileno(), 0)",
    "scores": "open('TOP/results/trials/0/scores.json')",
    "derived scores": "open('TOP/results/derived/0')",
    "database": "import sqlite3; open('TOP/results/mlflow.db', 'w'); sqlite3.connect('TOP/results/mlflow.db')",
    "index": "import pandas; pandas.read_parquet('FOLDER/index.parquet')",
    "raw file": "open('TOP/raw/labels.csv')",
    "program": "import subprocess; subprocess.run(['cat', 'FOLDER/targets.npy'], capture_output=True)",
    "program without a name": "import subprocess; subprocess.run('cat FOLDER/*', shell=True, capture_output=True)",
    "shell": "import os; os.system('true')",
    "pipe": "import os; os.popen('true')",
    "spawned": "import multiprocessing as m; m.get_context('spawn').Process(target=print).start()",
}


@pytest.mark.parametrize("code", OPENINGS.values(), ids=OPENINGS)
def test_what_a_plugin_opens_in_training_is_refused_and_noted(prepared: Path, code: str) -> None:
    with guard.watching(places(prepared)), pytest.raises(guard.ForbiddenError):
        as_plugin(code, prepared)
    note = guard.notes()[0]
    assert note.module == "bench.plugins.methods.curious"
    assert note.where == "methods/curious.py:1 in <module>"
    assert note.watched


@pytest.mark.parametrize(
    "code",
    [
        "import threading; t = threading.Thread(target=open, args=['FOLDER/targets.npy']); t.start(); t.join()",
        "import concurrent.futures as c; c.ThreadPoolExecutor().submit(open, 'FOLDER/targets.npy').exception()",
        "import os; pid = os.fork() or os._exit(bool(open('FOLDER/targets.npy'))); os.waitpid(pid, 0)",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=open, args=['FOLDER/targets.npy'])\n"
        "p.start(); p.join()",
    ],
    ids=["thread", "pool", "fork", "forked process"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_threads_and_forks_are_watched_too(prepared: Path, code: str) -> None:
    with guard.watching(places(prepared)):
        if "os.fork" in code:
            code = code.replace("bool(open('FOLDER/targets.npy'))", "look()")
        as_plugin(code, prepared, look=lambda: _look(prepared))
    assert [note.what.split(":")[0] for note in guard.notes()] == ["opened the targets of a prepared data set"]


def _look(prepared: Path) -> int:
    try:
        (prepared / TARGETS).open("rb").close()
    except guard.ForbiddenError:
        return 1
    return 0


@pytest.mark.parametrize(
    "code",
    [
        "import numpy; numpy.load('FOLDER/audio.npy', mmap_mode='r')",
        "open('TOP/results/trials/0/weights.safetensors')",
        "open('TOP/results/trajectories/0/epoch-0000.npz')",
        "open('TOP/mine.npy', 'w')",
        "open('TOP/targets.npy', 'w')",
        "import os; os.listdir('FOLDER')",
        "import os; os.open('TOP/targets.npy', os.O_CREAT | os.O_WRONLY)",
    ],
)
def test_what_a_method_may_open_is_not_noted(prepared: Path, code: str) -> None:
    with guard.watching(places(prepared)):
        as_plugin(code, prepared)
    assert guard.notes() == ()


def test_the_harness_reads_the_index_and_a_data_set_its_raw_files(prepared: Path) -> None:
    with guard.watching(places(prepared)):
        (prepared / INDEX).read_text()
        (prepared.parent.parent / "raw" / "labels.csv").read_text()
    guard.install(places(prepared))
    names = {"__name__": "bench.plugins.datasets.curious"}
    exec(f"open('{prepared.parent.parent}/raw/labels.csv')", names)
    assert guard.notes() == ()


def test_the_parent_may_read_targets_and_its_plugins_may_not(prepared: Path) -> None:
    """It is not refused there, because a plan must not break half-way; but it is known."""
    guard.install(places(prepared))
    np.load(prepared / TARGETS)
    assert guard.notes() == ()
    as_plugin("import numpy; numpy.load('FOLDER/targets.npy')", prepared)
    assert [(note.module, note.watched) for note in guard.notes()] == [("bench.plugins.methods.curious", False)]


def test_an_evaluation_batch_has_no_targets_and_training_has_those_of_train() -> None:
    """What a fusion is given, in training and in evaluation alike, are inputs; only `Batch` has targets: of train."""
    assert set(Inputs.__dataclass_fields__) == {"values", "masks"}
    training = training_of("concat")
    seen: list[object] = []
    training.model.register_forward_pre_hook(lambda _, given: seen.extend(given))
    training.evaluate(np.arange(5))
    assert [type(given) for given in seen] == [Inputs]
    assert all(isinstance(batch, Batch) and batch.target is not None for batch, _ in training.sweep())
    assert not hasattr(training, "prepared")
    assert len(training.targets) == len(training.positions)


@pytest.fixture
def adversary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """A world in which the method `curious` does something at its import, inside the second epoch, or in `decide`."""
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__])

    def make(inside: str = "pass", decide: str = "pass", top: str = "", methods: str = "curious") -> World:
        targets = make_world(tmp_path / "w", "concat").datasets[0].prepared.folder / TARGETS
        (tmp_path / "methods").mkdir()
        parts = (part.replace("{targets}", str(targets)) for part in (top, inside, decide))
        text = METHOD.format(**dict(zip(("top", "inside", "decide"), parts, strict=True)))
        (tmp_path / "methods" / "curious.py").write_text(text)
        plugins.use_folder(tmp_path)
        return make_world(tmp_path / "w", methods)

    yield make
    sys.modules.pop("bench.plugins.methods.curious", None)
    forget_plugins()


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


@pytest.mark.parametrize(
    "where",
    [
        {"inside": LINE},
        {"decide": LINE},
        {"top": LINE},
        {"inside": "run.reader.dataset.samples(Path())"},
    ],
    ids=["in a step", "in decide", "at import", "data set object"],
)
def test_a_trial_that_looks_is_tainted_and_nothing_of_it_is_stored(
    adversary: Callable[..., World], where: dict[str, str]
) -> None:
    world = adversary(**where)
    outcome = only(world.run())
    assert outcome.status == "tainted", outcome.text
    assert "curious.py:" in outcome.text
    assert ("targets.npy" in outcome.text) or ("asked the data set Planted for its samples" in outcome.text)
    assert world.store.finished() == []
    failure = world.store.failure(outcome.spec.id)
    assert failure is not None
    assert failure["cause"] == "tainted"
    assert list(world.store.trajectories.glob("*/epoch-*")) == []
    assert list(world.store.trajectories.glob("*/*.pt")) == []


def test_a_tainted_process_trains_nothing_else(adversary: Callable[..., World]) -> None:
    world = adversary(inside=LINE, methods="curious,audio")
    outcomes = world.run()
    assert {o.spec.method: o.status for o in outcomes} == {
        "concat+curious": "tainted",
        "unimodal:modality=audio": "killed",
    }
    assert "tainted this training process" in outcomes[1].text


def test_what_a_plugin_swallows_is_noted_all_the_same(adversary: Callable[..., World]) -> None:
    swallowed = "import contextlib\n            with contextlib.suppress(Exception): " + LINE
    assert only(adversary(inside=swallowed).run()).status == "tainted"


PATCHES = {
    "function": "import bench.scoring as s; s.score = lambda logits, target, kind, scale=None: {'accuracy': 1.0}",
    "method": "import bench.scoring as s; s.Truth.score = lambda self, split, logits: {'accuracy': 1.0}",
    "code": "import bench.store as s; s.npz.__code__ = (lambda arrays: b'').__code__",
    "table": "import bench.scoring as s; s.MAXIMISED['accuracy'] = False",
    "store": "import bench.store as s; s.Store.write_trial = lambda self, *given: None",
    "sweep": "import bench.sweep as s; s.scores_of = lambda *given: {}",
    "targets": "import bench.data.prepared as s; s.Prepared.targets = lambda self: np.zeros(9)",
    "numpy": "np.stack = lambda arrays: arrays[0]",
}


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the patches below replace comes back."""
    owners = (scoring, scoring.Truth, Store, sweeping, Prepared, np)
    for owner, name in zip(owners, ("score", "score", "write_trial", "scores_of", "targets", "stack"), strict=True):
        monkeypatch.setattr(owner, name, vars(owner)[name])
    monkeypatch.setattr(npz, "__code__", npz.__code__)
    monkeypatch.setitem(scoring.MAXIMISED, "accuracy", True)


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_a_patch_of_what_scores_breaks_its_seal(patch: str) -> None:
    assert sweeping.SEAL.broken() == []
    exec(patch, {"np": np})
    assert sweeping.SEAL.broken()


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("where", ["top", "decide"])
def test_a_scorer_patched_in_the_parents_process_taints(adversary: Callable[..., World], where: str) -> None:
    world = adversary(**{where: PATCHES["function"]})
    outcome = only(list(world.sweep().run(InlineExecutor(["cpu"]))))
    assert outcome.status == "tainted"
    assert "what scores was changed in the parent process: bench.scoring.score is now" in outcome.text
    assert "curious.py" in outcome.text
    assert world.store.finished() == []


def test_the_targets_of_test_are_read_after_the_epoch_was_selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    made = Truth.of.__func__  # type: ignore[attr-defined]  # a class method's function

    def of(kind: type[Truth], *given: object, **named: object) -> Truth:
        truth = made(kind, *given, **named)
        seen.append(sorted(truth.targets))
        return truth

    monkeypatch.setattr(Truth, "of", classmethod(of))
    monkeypatch.setattr(sweeping, "SEAL", guard.Seal())
    world = make_world(tmp_path / "w", "concat")

    def observe(event: Event) -> None:
        if isinstance(event, EpochDone | Finished):
            seen.append(type(event).__name__)

    list(world.sweep().run(InlineExecutor(["cpu"]), observe))
    assert seen == [["val"], "EpochDone", "EpochDone", "EpochDone", "Finished", ["test", "train", "val"]]


class Removing(InProcess):
    """An executor under which an epoch of a trial is found tainted elsewhere, just before the trial ends."""

    def __init__(self, store: Store, epoch: int) -> None:
        self.store, self.name, self.done = store, f"*/epoch-{epoch:04d}.json", False

    def run(self, jobs: Jobs) -> Iterator[Event]:
        for event in super().run(jobs):
            if isinstance(event, Finished) and not self.done:
                (file,) = self.store.trajectories.glob(self.name)
                file.unlink()
                self.done = True
            yield event


def test_an_innocent_trial_is_trained_again_where_it_shared_epochs(tmp_path: Path) -> None:
    world, other = make_world(tmp_path / "w", "concat"), make_world(tmp_path / "v", "concat")
    other.run()
    selected = other.store.read(other.plan.trials[0].id, "record.json")["selected_epoch"]
    removing = Removing(world.store, (selected + 1) % 3)
    assert only(list(world.sweep().run(removing))).status == "finished"
    assert len(list(world.store.trajectories.glob(removing.name))) == 1
    assert world.results() == other.results()


def test_only_what_was_trained_is_forgotten_unless_the_code_is_in_the_lineage(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", "concat")
    world.run()
    (segment,) = world.store.trajectories.iterdir()
    files = len(list(segment.glob("epoch-*")))
    forget(world.store, {segment.name: []}, ["no such code"])
    assert len(list(segment.glob("epoch-*"))) == files
    forget(world.store, {segment.name: [2]}, [])
    assert sorted(file.name[:10] for file in segment.glob("epoch-*.json")) == ["epoch-0000", "epoch-0001"]
    forget(world.store, {segment.name: []}, [world.plan.trials[0].fusion.code])
    assert list(segment.glob("epoch-*")) == []


def test_inline_trials_are_marked_and_share_no_epoch_with_others(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", "concat")
    assert only(list(world.sweep().run(InlineExecutor(["cpu"])))).status == "finished"
    record = world.store.read(world.plan.trials[0].id, "record.json")
    assert record["guard"] == "unguarded"
    other = make_world(tmp_path / "v", "concat")
    other.run()
    guarded = other.store.read(world.plan.trials[0].id, "record.json")
    assert guarded["guard"] == "guarded"
    assert not set(record["segments"]) & set(guarded["segments"])
    assert world.results() == other.results()


def test_a_table_marks_unguarded_trials_and_strict_refuses_them(tmp_path: Path) -> None:
    store, one = Store(tmp_path / "results"), spec("concat")
    store_trial(store, one)
    record = store.trial(one.id) / "record.json"
    record.write_text(record.read_text()[:-1] + ', "guard": "unguarded"}')
    cells = collect(store, request([("concat", [[one]])]))
    assert cells[0].note == "1 trained unguarded, in one process with the targets"
    assert "trained unguarded" in "".join(table.markdown for table in tables(cells).values())
    assert any("concat was not watched: 1 trained unguarded" in problem for problem in fairness.problems(cells))


def test_a_debugger_that_is_left_ends_the_sweep(adversary: Callable[..., World]) -> None:
    world = adversary(inside="import bdb; raise bdb.BdbQuit")
    with pytest.raises(KeyboardInterrupt):
        list(world.sweep().run(InlineExecutor(["cpu"])))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    (tmp_path / "w").mkdir()
    return CommandLine(tmp_path / "w", tmp_path / "prepared", tmp_path / "data", monkeypatch, executor=InThisProcess)


def test_a_tainted_trial_is_in_no_table_and_the_command_exits_with_3(bench: CommandLine) -> None:
    assert bench.run("--methods", "concat").code == 0
    (targets,) = bench.prepared.glob(f"*/{TARGETS}")
    (bench.folder / "methods").mkdir()
    parts = {"top": "", "inside": LINE.replace("{targets}", str(targets)), "decide": "pass"}
    (bench.folder / "methods" / "curious.py").write_text(METHOD.format(**parts))
    answer = bench.run("--methods", "concat,curious")
    assert answer.code == TAINTED, answer
    assert "1 trials failed, 1 of them tainted" in answer.err
    (failure,) = (bench.results / "failures").glob("*.json")
    assert not (bench.results / "trials" / failure.stem).exists()
    shown = {file: file.read_text() for file in (*(bench.results / "tables").iterdir(), bench.results / "report.html")}
    assert {file.suffix for file in shown} == {".md", ".csv", ".tex", ".html"}
    rows = {(f.name, row["label"]): row for f in shown if f.suffix == ".csv" for row in csv.DictReader(f.open())}
    assert _measured(rows["accuracy.csv", "concat"].values())
    assert not _measured(rows["accuracy.csv", "curious"].values())
    lines = [line for text in shown.values() for line in text.splitlines() if "curious" in line]
    assert len(lines) > 5
    assert not _measured(lines)
    assert not [file.name for file, text in shown.items() if failure.stem in text]
    status = bench("status")
    assert f"({failure.stem}): tainted" in status.out
    assert "opened the targets of a prepared data set" in status.out


@pytest.mark.slow
def test_a_tainted_trial_has_no_metric_in_mlflow(adversary: Callable[..., World]) -> None:
    world = adversary(inside=LINE)
    assert only(world.run()).status == "tainted"
    sync(world.store)
    assert _mlflow_runs(world.store.folder) == {world.plan.trials[0].id: []}


def _measured(texts: Iterable[str]) -> list[str]:
    """Those that hold a number with decimals, as everything measured is shown."""
    return [text for text in texts if re.search(r"\d\.\d", text)]


def _mlflow_runs(results: Path) -> dict[str, list[str]]:
    """The metrics of every mirrored trial."""
    with closing(sqlite3.connect(results / "mlflow.db")) as database:
        tags = database.execute("select run_uuid, value from tags where key = 'bench.trial_id'").fetchall()
        return {
            trial: [row[0] for row in database.execute("select distinct key from metrics where run_uuid = ?", [run])]
            for run, trial in tags
        }


@pytest.mark.slow
def test_a_tainted_training_process_is_replaced(adversary: Callable[..., World]) -> None:
    """With real processes: the innocent trial after it runs in a new one, and what was noted names the line."""
    world = adversary(inside=LINE, methods="curious,audio")
    with LocalExecutor(["cpu"]) as executor:
        (slot,) = executor._slots
        first = slot.process.pid
        outcomes = {o.spec.method: o for o in world.sweep().run(executor)}
        assert slot.process.pid != first
    assert {method: o.status for method, o in outcomes.items()} == {
        "concat+curious": "tainted",
        "unimodal:modality=audio": "finished",
    }
    assert "curious.py:22 in epoch_start: opened the targets" in outcomes["concat+curious"].text
    assert world.store.finished() == [outcomes["unimodal:modality=audio"].spec.id]
