"""What the machine does to a sweep: every fault ends in a text or a recorded failure, and the next run goes on."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import plugins
from bench.errors import ResultsError
from bench.execute.events import EpochDone, Event
from bench.execute.local import LocalExecutor
from bench.store import Store
from tests.world import InProcess, World, make_world

GREEDY = '''"""Takes more memory than there is address space when a batch has more than eight samples."""

from __future__ import annotations

import torch
from torch import nn

from bench.api import Fusion, Output


class Greedy(Fusion):
    """Concatenation that wastes memory."""

    def __init__(self, settings, task):
        super().__init__(settings, task)
        self.head = nn.Linear(sum(task.dims.values()), task.num_outputs)

    def forward(self, tokens):
        features = {m: t.pooled for m, t in tokens.items()}
        joint = torch.cat(list(features.values()), dim=1)
        if len(joint) > 8:
            torch.empty(2**56)
        return Output(self.head(joint), features)
'''


def after_an_epoch(do: Callable[[], None]) -> Callable[[Event], None]:
    """An observer that does something once, when the first epoch of a sweep is stored."""
    todo = [do]

    def observe(event: Event) -> None:
        if isinstance(event, EpochDone) and todo:
            todo.pop()()

    return observe


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """The results folder of a world `w` on a file system of its own; give mount options."""
    place = tmp_path / "w" / "results"
    place.mkdir(parents=True)

    def mount(options: str) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def same_as_undisturbed(world: World, tmp_path: Path, methods: str) -> bool:
    undisturbed = make_world(tmp_path / "undisturbed", methods)
    undisturbed.run()
    return bool(world.results()) and world.results() == undisturbed.results()


def test_a_full_disk_is_said_and_the_next_run_goes_on(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    place = small_disk("size=100k")
    world = make_world(tmp_path / "w", "audio,concat")
    with pytest.raises(ResultsError, match=f"{place}.*cannot be written: No space left on device"):
        world.run()
    stored = len(list(world.store.trajectories.glob("*/epoch-*.json")))
    small_disk("remount,size=64m")
    world.run()
    assert stored > 0
    assert same_as_undisturbed(world, tmp_path, "audio,concat")


def test_a_read_only_folder_is_refused_before_anything_runs(small_disk: Callable[[str], Path]) -> None:
    place = small_disk("size=1m")
    Store(place)
    small_disk("remount,ro")
    with pytest.raises(ResultsError, match=r"results: results cannot be written here: Read-only file system"):
        Store(place)


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    """One training process for the whole module: starting it takes seconds."""
    with LocalExecutor(["cpu"]) as made:
        yield made


def test_a_killed_process_takes_one_trial_and_is_replaced(tmp_path: Path, executor: LocalExecutor) -> None:
    world = make_world(tmp_path / "w", "audio,concat")
    (slot,) = executor._slots
    first = slot.process.pid

    def kill() -> None:
        slot.process.kill()

    outcomes = list(world.sweep().run(executor, after_an_epoch(kill)))
    assert [(o.spec.method, o.status) for o in outcomes] == [
        ("unimodal:modality=audio", "killed"),
        ("concat", "finished"),
    ]
    failure = world.store.failure(outcomes[0].spec.id)
    assert failure is not None
    assert f"signal {int(signal.SIGKILL)}" in failure["text"]
    assert "--set recipe.batch_size=16" in failure["text"]
    assert slot.process.pid != first
    assert [o.status for o in world.sweep().run(executor)] == ["finished"]
    assert same_as_undisturbed(world, tmp_path, "audio,concat")


def test_a_results_folder_removed_while_running_is_said(tmp_path: Path, executor: LocalExecutor) -> None:
    world = make_world(tmp_path / "w", "audio,visual,concat")
    results = world.store.folder
    with pytest.raises(ResultsError, match=str(results)):
        list(world.sweep().run(executor, after_an_epoch(lambda: shutil.rmtree(results))))
    assert not results.exists()
    assert [o.status for o in make_world(tmp_path / "w", "concat").sweep().run(executor)] == ["finished"]


def test_out_of_memory_says_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "greedy.py").write_text(GREEDY)
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__])
    plugins.use_folder(tmp_path)
    world = make_world(tmp_path / "w", "greedy,concat")
    outcomes = {o.spec.method: o for o in world.run()}
    plugins.names.cache_clear()
    plugins.find.cache_clear()
    assert outcomes["concat"].status == "finished"
    assert outcomes["greedy"].status == "out of memory"
    assert "--set recipe.batch_size=8 --set recipe.eval_batch_size=8" in outcomes["greedy"].text
    fits = make_world(tmp_path / "w", "greedy", "recipe.batch_size=8", "recipe.eval_batch_size=8")
    assert [o.status for o in fits.run()] == ["finished"]


def test_data_removed_while_running_is_recorded_as_such(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", "audio,concat")
    folder = world.datasets[0].prepared.folder
    outcomes = list(world.sweep().run(InProcess(), after_an_epoch(lambda: shutil.rmtree(folder))))
    assert outcomes[-1].status == "data"
    assert str(folder) in outcomes[-1].text
