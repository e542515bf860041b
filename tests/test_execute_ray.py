"""Trials on Ray: a real cluster of one worker on this machine, started once for the whole file."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.config import RayConfig
from bench.errors import RequestError
from bench.execute.events import EpochDone, Event, Started
from bench.execute.ray import LOOPBACK, RayExecutor
from tests.world import make_world

METHODS = "concat+ogm,rollingq:beta=0:max_rotations=2"


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    """Starting Ray takes seconds, and so does its first worker."""
    with RayExecutor(RayConfig(), "cpu", slots=1) as made:
        yield made


def processes() -> dict[int, str]:
    """This process and all that descend from it, by number, with their command lines."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it ended meanwhile
            continue
    found = [os.getpid()]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return {number: command_line(number) for number in found}


def command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def listening(process: int) -> Iterator[str]:
    """The addresses at which a process waits for connections."""
    sockets = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        try:
            sockets.add(str(link.readlink()))
        except OSError:
            continue
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                words = bytes.fromhex(local.split(":")[0])
                in_order = b"".join(
                    words[i : i + 4][::-1] for i in range(0, len(words), 4)
                )  # the kernel's 32-bit words
                yield socket.inet_ntop(family, in_order)


def test_results_are_those_of_this_process_and_come_back_while_it_trains(tmp_path: Path, executor: RayExecutor) -> None:
    alone = make_world(tmp_path / "alone", METHODS)
    alone.run()
    world = make_world(tmp_path / "w", METHODS)
    events: list[Event] = []
    outcomes = list(world.sweep().run(executor, events.append))
    assert [o.status for o in outcomes] == ["finished", "finished"], outcomes
    assert world.results() == alone.results()
    assert len(world.results()) == 2
    kinds = [type(event).__name__ for event in events]
    assert kinds == ["Started", "EpochDone", "EpochDone", "EpochDone", "Finished"] * 2
    assert isinstance(events[0], Started)
    assert events[0].slot.endswith(" cpu")


def test_a_worker_that_dies_takes_one_trial_and_nothing_listens_beyond_loopback(
    tmp_path: Path, executor: RayExecutor
) -> None:
    """It is killed after its first epoch: that this is known here then shows that events come while it trains."""
    world = make_world(tmp_path / "w", "vanilla_mt,concat", "recipe.epochs=30")
    heard: dict[str, set[str]] = {}
    killed: list[int] = []

    def kill(event: Event) -> None:
        if isinstance(event, EpochDone) and not killed:
            family = processes()
            heard.update({command: set(listening(number)) for number, command in family.items()})
            (worker,) = (number for number, command in family.items() if command.startswith("ray::train"))
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    first, second = world.sweep().run(executor, kill)
    assert (first.status, second.status) == ("killed", "finished"), (first, second)
    failure = world.store.failure(first.spec.id)
    assert failure is not None
    assert "the process that Ray gave it died" in failure["text"]
    assert {kind for kind in ("raylet", "gcs_server", "ray::train") if any(kind in c for c in heard)} == {
        "raylet",
        "gcs_server",
        "ray::train",
    }
    ours = {address for addresses in heard.values() for address in addresses}
    assert len(ours) > 0
    assert ours <= {LOOPBACK, f"::ffff:{LOOPBACK}"}, heard
    assert [o.status for o in world.sweep().run(executor)] == ["finished"]


@pytest.mark.slow
def test_leaving_early_frees_the_cluster(tmp_path: Path, executor: RayExecutor) -> None:
    world = make_world(tmp_path / "w", "concat", "recipe.epochs=2000")

    def interrupt(event: Event) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(world.sweep().run(executor, interrupt))
    short = make_world(tmp_path / "v", "audio")
    assert [o.status for o in short.sweep().run(executor)] == ["finished"]


@pytest.mark.usefixtures("executor")
def test_what_the_cluster_has_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"execute.device: cuda:1: Ray gives out the devices; allowed here: auto"):
        RayExecutor(RayConfig(), "cuda:1")
    monkeypatch.setattr(RayExecutor, "_start", lambda *_: None)
    monkeypatch.setattr(RayExecutor, "close", lambda *_: None)
    with pytest.raises(RequestError, match=r"a trial takes 2 CPUs and 0 GPUs .*; the cluster has 1 and 0"):
        RayExecutor(RayConfig(cpus=2), "cpu")
    with pytest.raises(RequestError, match="the Ray cluster has no GPU"):
        RayExecutor(RayConfig(), "cuda")


@pytest.mark.usefixtures("executor")
def test_nothing_is_reported_and_no_folder_or_file_is_shipped() -> None:
    from ray import get_runtime_context

    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
    shipped = get_runtime_context().runtime_env
    assert {key for key in ("working_dir", "py_modules", "pip", "uv") if shipped.get(key)} == set()
