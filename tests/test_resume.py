"""Killed at any moment and run again, a sweep ends in the same weights, outputs, scores and rotations, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import plugins
from tests.world import DATASET, TINY, World, make_world

ROTATES = "rollingq:beta=0:max_rotations=3"
METHODS = f"vanilla_mt,{ROTATES},concat+pmr,concat+ogm"
FOUR_EPOCHS = "recipe.epochs=4"


def killed_at_write(world: World, number: int) -> bool:
    """Run a sweep in a process that gets SIGKILL at its n-th write to disk; False if it ended before."""
    child = os.fork()
    if child == 0:
        sync, writes = os.fsync, iter(range(10**6))

        def dying(handle: int) -> None:
            if next(writes) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(handle)

        os.fsync = dying  # type: ignore[assignment]
        with contextlib.suppress(BaseException):
            world.run()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_killed_at_writes_of_every_kind(tmp_path: Path) -> None:
    """Every write is three: the file twice and its folder. So these fall into epochs, states and results alike."""
    undisturbed = make_world(tmp_path / "undisturbed", METHODS, FOUR_EPOCHS)
    undisturbed.run()
    expected = undisturbed.results()
    assert len(expected) == 4
    rotated = json.loads(next(r for name, r in expected.items() if "rollingq" in name)["epochs"])
    assert [next(iter(epoch["sites"].values()))["num_rotations"] for epoch in rotated] == [0, 1, 2, 3]
    world = make_world(tmp_path / "killed", METHODS, FOUR_EPOCHS)
    kills = sum(killed_at_write(world, number) for number in (4, 17, 31, 40, 44, 62))
    assert kills == 6
    world.run()
    assert world.results() == expected


class Command:
    """`bench run` in processes of its own, on the data a world has prepared."""

    def __init__(self, world: World, methods: str, log: Path) -> None:
        self.results, self.log = world.folder / "results", log
        settings = [*TINY, FOUR_EPOCHS, "tracking.mlflow=false", "execute.slots=1"]
        options = ["--methods", methods, "--datasets", DATASET, "--seeds", "1", "--format", "json"]
        options += [word for each in settings for word in ("--set", each)]
        places = ["--results", str(self.results), "--prepared", str(world.folder.parent / "prepared")]
        self.words = [sys.executable, "-m", "bench", "run", *options, *places]

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.words, stdout=log, stderr=log, cwd=self.results.parent)

    def run(self) -> int:
        return self.start().wait(timeout=240)


def children_of(process: int) -> list[int]:
    """The processes that a process has started and that train: those with the marks of a spawned child."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, seconds: float = 120) -> bool:
    """Wait until something is so; False if the process ended before."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        if process is not None and process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def command(tmp_path: Path) -> Iterator[tuple[World, Command]]:
    world = make_world(tmp_path / "killed", METHODS, FOUR_EPOCHS)
    world.folder.mkdir(exist_ok=True)
    yield world, Command(world, METHODS, tmp_path / "log")
    plugins.find.cache_clear()


def stored_epochs(world: World) -> int:
    return len(list(world.store.trajectories.glob("*/epoch-*.json")))


def test_a_killed_run_leaves_no_process_and_the_next_one_ends_as_if_nothing_had_been(
    command: tuple[World, Command], tmp_path: Path
) -> None:
    world, bench = command
    parent = bench.start()
    assert wait_for(lambda: stored_epochs(world) >= 2, parent), bench.log.read_text()
    orphans = children_of(parent.pid)
    assert len(orphans) == 1
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(is_alive(child) for child in orphans), seconds=10)
    assert bench.run() == 0, bench.log.read_text()
    undisturbed = make_world(tmp_path / "undisturbed", METHODS, FOUR_EPOCHS)
    undisturbed.run()
    assert len(undisturbed.results()) == 4
    assert world.results() == undisturbed.results()


@pytest.mark.slow
def test_child_killed_and_interrupted(command: tuple[World, Command], tmp_path: Path) -> None:
    """Ctrl-C ends parent and child and says 130; killing the child costs one trial, which the next run makes good."""
    undisturbed = make_world(tmp_path / "undisturbed", METHODS, FOUR_EPOCHS)
    undisturbed.run()
    world, bench = command
    parent = bench.start()
    assert wait_for(lambda: stored_epochs(world) > 0, parent), bench.log.read_text()
    children = children_of(parent.pid)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=60) == 130
    assert not any(is_alive(child) for child in children)
    parent, before = bench.start(), stored_epochs(world)
    assert wait_for(lambda: stored_epochs(world) > before, parent), bench.log.read_text()
    for child in children_of(parent.pid):
        os.kill(child, signal.SIGKILL)
    assert parent.wait(timeout=240) == 1
    failures = [world.store.failure(spec.id) for spec in world.plan.trials if not world.store.has(spec.id)]
    assert [(f["cause"], "signal 9" in f["text"]) for f in failures if f] == [("killed", True)]
    assert bench.run() == 0, bench.log.read_text()
    assert world.results() == undisturbed.results()
    assert not list((world.folder / "results" / "failures").iterdir())


@pytest.mark.slow
def test_twenty_kills_over_every_method(tmp_path: Path) -> None:
    """Every method there is, two slots, killed at random moments: the parent, or its children."""
    methods = f"all,{ROTATES},rollingq:beta=0:max_rotations=3:rotation=svd"
    undisturbed = make_world(tmp_path / "undisturbed", methods, FOUR_EPOCHS)
    undisturbed.run()
    world = make_world(tmp_path / "killed", methods, FOUR_EPOCHS)
    world.folder.mkdir(exist_ok=True)
    bench, chance, kills = Command(world, methods, tmp_path / "log"), random.Random(0), 0
    bench.words = [word.replace("execute.slots=1", "execute.slots=2") for word in bench.words]
    while kills < 20:
        parent, before = bench.start(), stored_epochs(world)
        started = wait_for(lambda: stored_epochs(world) > before, parent)  # noqa: B023  # called at once
        time.sleep(chance.random())
        victims = [parent.pid] if chance.random() < 0.5 else children_of(parent.pid)
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        assert parent.wait(timeout=600) in (0, 1, -signal.SIGKILL), bench.log.read_text()
        kills += 1
        if not started:  # all is done: begin again
            assert world.results() == undisturbed.results()
            world = make_world(tmp_path / f"killed{kills}", methods, FOUR_EPOCHS)
            world.folder.mkdir(exist_ok=True)
            bench = Command(world, methods, tmp_path / "log")
    assert bench.run() == 0, bench.log.read_text()
    assert world.results() == undisturbed.results()
