"""A sweep: in which order, what is kept, what comes back, and what others did meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import agenda, retention
from bench.api import EpochRecord
from bench.execute.events import Event, Failed, Finished, Jobs, Started
from bench.locks import claim
from bench.plan import Plan
from bench.retention import Pruned, announced, needed_elsewhere, prune
from bench.segments import snapshot_files
from bench.store import Store
from bench.sweep import Sweep
from bench.train import Training
from bench.trajectory import kin_of
from tests.world import InProcess, World, make_world

ROTATES = "rollingq:beta=0:rho=1:max_rotations=2"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of every epoch that is really trained, those on the way to a state included."""
    epochs: list[int] = []
    train = Training.train

    def noted(self: Training, epoch: int) -> EpochRecord:
        epochs.append(epoch)
        return train(self, epoch)

    monkeypatch.setattr(Training, "train", noted)
    return epochs


def weights(store: Store) -> list[str]:
    return sorted(f"{f.parent.name}/{f.name}" for f in store.trajectories.glob("*/*.safetensors"))


def states(store: Store) -> list[Path]:
    return sorted(f for segment in store.trajectories.iterdir() for f in snapshot_files(segment))


def run_one(world: World) -> None:
    """The first trial of a sweep that is then left, so that nobody tidies up."""
    outcomes = world.sweep().run(InProcess())
    next(outcomes)
    outcomes.close()


def test_trials_that_never_act_run_before_those_that_can_go_on_from_them(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", f"{ROTATES},concat,vanilla_mt", seeds="2")
    assert [(spec.method.split("+")[-1].split(":")[0], spec.seed) for spec in world.sweep().missing()] == [
        ("vanilla_mt", 0),
        ("rollingq", 0),
        ("concat", 0),
        ("vanilla_mt", 1),
        ("rollingq", 1),
        ("concat", 1),
    ]


def test_a_free_slot_takes_a_trial_that_shares_nothing_with_the_one_that_runs(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", f"vanilla_mt,{ROTATES},concat")
    jobs = agenda.Agenda(world.store, world.plan.trials, lambda spec, device: world.job(spec))
    taken = [jobs.take(), jobs.take(), jobs.take()]
    methods = {spec.id: spec.method for spec in world.plan.trials}
    assert [methods[found[0]].split(":")[0] for found in taken if found] == [
        "vanilla_mt",
        "concat",
        "vanilla_mt+rollingq",
    ]
    assert jobs.take() is None
    jobs.close()


def test_no_prefix_is_trained_twice_in_a_sweep(tmp_path: Path, trained: list[int]) -> None:
    """Three epochs of vanilla_mt; both rollingq rotate after the first, alike, and once after the second."""
    world = make_world(tmp_path / "w", f"{ROTATES},rollingq:beta=0:rho=1:max_rotations=1,vanilla_mt")
    outcomes = world.run()
    assert [o.status for o in outcomes] == ["finished"] * 3
    assert sorted(trained) == [0, 1, 1, 2, 2, 2]


def test_a_candidate_finds_the_state_it_parts_from(tmp_path: Path, trained: list[int]) -> None:
    both = make_world(tmp_path / "w", f"vanilla_mt,{ROTATES}")
    first = make_world(tmp_path / "w", "vanilla_mt")
    candidate = next(spec for spec in both.plan.trials if spec.strategies)
    list(Sweep(first.plan, first.datasets, first.store, candidates=[candidate]).run(InProcess()))
    trained.clear()
    both.run()
    assert trained == [1, 2]


def test_a_finished_sweep_keeps_weights_with_its_trials_and_nowhere_else(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", f"vanilla_mt,{ROTATES},concat+pmr")
    world.run()
    assert weights(world.store) == []
    assert all((world.store.trial(spec.id) / "weights.safetensors").is_file() for spec in world.plan.trials)


def test_weights_go_as_soon_as_no_planned_trial_can_select_them(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", f"vanilla_mt,concat,{ROTATES}")
    seen = []
    for outcome in world.sweep().run(InProcess()):
        seen.append((outcome.spec.method.split(":")[0], len({name.split("/")[0] for name in weights(world.store)})))
    # After the first, rollingq may still select from the shared epochs.
    assert seen == [("vanilla_mt", 1), ("vanilla_mt+rollingq", 0), ("concat", 0)]


def test_a_trial_whose_weights_were_removed_gets_them_again(tmp_path: Path) -> None:
    """The first sweep removes the weights of what it shares with a trial that nobody had planned then."""
    alone = make_world(tmp_path / "alone", ROTATES)
    alone.run()
    (expected,) = alone.results().values()
    make_world(tmp_path / "w", "vanilla_mt").run()
    later = make_world(tmp_path / "w", ROTATES)
    later.run()
    # The test is about something only if the selected epoch is one of the shared ones.
    record = later.store.read(later.plan.trials[0].id, "record.json")
    shared = record["segments"][record["selected_epoch"]] == record["segments"][0]
    trial = later.plan.trials[0].id
    assert later.results()[f"{later.plan.trials[0].method}/0"] == expected
    segment = later.store.trajectories / record["segments"][record["selected_epoch"]]
    for file in segment.glob("*.safetensors"):
        file.unlink()
    shutil.rmtree(later.store.trial(trial))
    later.run()
    assert later.results()[f"{later.plan.trials[0].method}/0"] == expected
    assert shared or later.store.has(trial)


def test_pruning_keeps_what_a_missing_trial_needs_and_the_budget(tmp_path: Path) -> None:
    wanted = make_world(tmp_path / "w", f"vanilla_mt,{ROTATES}")
    unwanted = make_world(tmp_path / "w", "concat")
    for world in (wanted, unwanted):
        run_one(world)
    kin = {spec.method.split("+")[0]: kin_of(spec) for spec in (*wanted.plan.trials, *unwanted.plan.trials)}
    assert set(kin) == {"vanilla_mt", "concat"}
    everything = prune(wanted.store, wanted.plan, 10**12)
    assert everything.kept > 0
    assert len({name.split("/")[0] for name in weights(wanted.store)}) == 1
    assert len({file.parent for file in states(wanted.store)}) == 2
    sizes = {file: file.stat().st_size for file in states(wanted.store)}
    room = everything.kept - 1
    tight = prune(wanted.store, wanted.plan, room)
    assert tight.freed > 0
    assert tight.kept <= room
    gone = set(sizes) - set(states(wanted.store))
    needed = {Path(name).parts[0] for name in weights(wanted.store)}
    assert {file.parent.name for file in gone}.isdisjoint(needed)
    assert prune(wanted.store, None, 0) == Pruned(freed=tight.kept, kept=0)


def test_pruning_leaves_alone_what_is_in_training(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", f"vanilla_mt,{ROTATES}")
    run_one(world)
    (segment,) = {file.parent for file in states(world.store)}
    lock = claim(segment / "lock")
    assert lock is not None
    before = states(world.store), weights(world.store)
    assert prune(world.store, None, 0).freed == 0
    assert (states(world.store), weights(world.store)) == before
    lock.release()
    assert prune(world.store, None, 0).kept == 0


def test_pruning_keeps_what_another_process_announced(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", f"vanilla_mt,{ROTATES}")
    run_one(world)
    kept = weights(world.store)
    kins = {kin_of(spec) for spec in world.plan.trials}
    with announced(world.store, kins) as name:
        assert needed_elsewhere(world.store) == kins
        assert needed_elsewhere(world.store, own=name) == set()
        prune(world.store, None, 10**12)
        assert weights(world.store) == kept
    assert needed_elsewhere(world.store) == set()
    prune(world.store, None, 10**12)
    assert weights(world.store) == []


def test_what_a_dead_process_announced_is_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    (store.locks / "run-dead.lock").touch()
    (store.locks / "run-dead.json").write_text('{"kins": ["k"]}')
    assert needed_elsewhere(store) == set()
    assert list(store.locks.iterdir()) == []


def test_scratch_of_dead_processes_is_removed_and_of_living_ones_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    for name in ("dead", "alive"):
        (store.trajectories / name).mkdir()
        (store.trajectories / name / ".epoch-0000.npz.x").touch()
        (store.folder / "trials" / f".{name}.x").mkdir()
    locks = [claim(store.trajectories / "alive" / "lock"), claim(store.locks / "trial-alive.lock")]
    prune(store, None, 0)
    assert [f.parent.name for f in store.trajectories.glob("*/.*")] == ["alive"]
    assert [f.name for f in (store.folder / "trials").iterdir()] == [".alive.x"]
    for lock in locks:
        assert lock is not None
        lock.release()


def test_the_budget_holds_while_a_sweep_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path / "w", "vanilla_mt,concat")
    monkeypatch.setattr(retention, "prune", None)
    sizes = []
    for _ in Sweep(world.plan, world.datasets, world.store, disk=0).run(InProcess()):
        sizes.append(len(states(world.store)))
    assert sizes == [0, 0]


class Meanwhile(InProcess):
    """Another process finishes one trial and fails another while this one trains its first."""

    def __init__(self, world: World, elsewhere: Store) -> None:
        self.world, self.elsewhere, self.taken = world, elsewhere, list[str]()

    def run(self, jobs: Jobs) -> Iterator[Event]:
        for event in super().run(jobs):
            if isinstance(event, Started):
                self.taken.append(event.trial)
            if isinstance(event, Finished) and len(self.taken) == 1:
                _, done, broken = self.world.sweep().plan.trials
                shutil.copytree(self.elsewhere.trial(done.id), self.world.store.trial(done.id))
                failure = {"cause": "data", "text": "no such clip", "time": 0, "spec": broken.to_json()}
                self.world.store.write_failure(broken.id, failure)
            yield event


def test_what_another_process_does_meanwhile_is_noticed(tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", "audio,visual,concat")
    other.run()
    world = make_world(tmp_path / "w", "audio,visual,concat")
    executor = Meanwhile(world, other.store)
    outcomes = list(world.sweep().run(executor))
    assert [(o.spec.method, o.status) for o in outcomes] == [
        (spec.method, status) for spec, status in zip(world.plan.trials, ("finished", "finished", "data"), strict=True)
    ]
    assert executor.taken == [world.plan.trials[0].id]
    assert outcomes[1].scores["val"] == other.store.read(world.plan.trials[1].id, "scores.json")["val"]


def test_a_failure_of_an_earlier_sweep_is_tried_again(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", "concat")
    (spec,) = world.plan.trials
    world.store.write_failure(spec.id, {"cause": "killed", "text": "", "time": 0, "spec": spec.to_json()})
    assert [o.status for o in world.run()] == ["finished"]
    assert world.store.failure(spec.id) is None


class AlwaysDies:
    """An executor whose every training process dies."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def run(self, jobs: Jobs) -> Iterator[Event]:
        while (taken := jobs.take()) is not None:
            taken[1]("cpu")
            self.taken.append(taken[0])
            yield Failed(taken[0], "killed", "signal 9")


def test_a_trial_that_killed_its_process_is_not_tried_again_in_the_same_sweep(tmp_path: Path) -> None:
    world = make_world(tmp_path / "w", "audio,visual")
    executor = AlwaysDies()
    assert [o.status for o in world.sweep().run(executor)] == ["killed", "killed"]
    assert executor.taken == [spec.id for spec in world.plan.trials]
    assert [str(world.store.failure(spec.id) or {})[:19] for spec in world.plan.trials] == ["{'cause': 'killed',"] * 2


def test_a_clock_set_back_makes_no_negative_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path / "w", "concat")
    times = iter(range(1_700_000_000, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(times)))
    (outcome,) = world.run()
    record = world.store.read(outcome.spec.id, "record.json")
    assert 0 < record["seconds"] == record["finished"] - record["started"] < 60


def test_an_empty_plan_does_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    assert list(Sweep(Plan((), ()), [], store).run(InProcess())) == []
