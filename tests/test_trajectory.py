"""Training memoised by epoch: what is shared, what forks, what survives an interruption, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bench import trajectory
from bench.api import EpochRecord
from bench.data.prepared import Prepared
from bench.plan import TrialSpec
from bench.segments import sound_weights
from bench.train import Training
from bench.trajectory import BusyError, Lineage, Segment, Visit, Walk, read_outputs, weights_file
from bench.trial import walk
from tests.world import World, make_world

ROTATES = "rollingq:beta=0:rho=1:max_rotations=2"
ROTATING = "vanilla_mt+rollingq"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "world", f"vanilla_mt,{ROTATES},concat+pmr,concat+ogm,mmml")


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


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def cut(file: Path) -> None:
    """Keep the first half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def snapshots(segment: Path) -> list[str]:
    """The stored states of a segment, without their hashes."""
    return sorted(file.name.rsplit("-", 1)[0] for file in segment.glob("*.pt"))


def walk_of(world: World, spec: TrialSpec, folder: Path, companions: Sequence[TrialSpec] = ()) -> Walk:
    job = dataclasses.replace(world.job(spec, folder), companions=tuple(c.strategies for c in companions))
    return walk(job, Prepared.open(job.prepared))


def visits(
    world: World,
    spec: TrialSpec,
    folder: Path,
    snapshot_seconds: float = 1e9,
    companions: Sequence[TrialSpec] = (),
) -> list[Visit]:
    folder.mkdir(exist_ok=True)
    way = walk_of(world, spec, folder, companions)
    way.snapshot_seconds = snapshot_seconds
    way._snapshot_due = 0.0 if snapshot_seconds == 0 else way._snapshot_due
    return list(way.epochs())


def outputs(folder: Path, walked: list[Visit]) -> list[dict[str, bytes]]:
    read = [read_outputs(folder, v.segment, v.record.epoch) for v in walked]
    return [{name: array.tobytes() for name, array in epoch.items()} for epoch in read]


def spec_of(world: World, start: str) -> TrialSpec:
    return next(s for s in world.plan.trials if s.method.startswith(start))


def test_methods_that_act_alike_share_their_epochs_until_one_acts(world: World, tmp_path: Path) -> None:
    plain = visits(world, spec_of(world, "vanilla_mt"), tmp_path / "t")
    rolling = visits(world, spec_of(world, "vanilla_mt+rollingq"), tmp_path / "t")
    assert [v.trained for v in plain] == [True, True, True]
    assert rolling[0].record.actions
    assert [v.trained for v in rolling] == [False, True, True]
    assert rolling[0].segment == plain[0].segment
    assert rolling[1].segment != plain[1].segment


def test_a_forked_trial_equals_the_same_trial_trained_alone(world: World, tmp_path: Path) -> None:
    visits(world, spec_of(world, "vanilla_mt"), tmp_path / "shared")
    forked = visits(world, spec_of(world, "vanilla_mt+rollingq"), tmp_path / "shared")
    alone = visits(world, spec_of(world, "vanilla_mt+rollingq"), tmp_path / "alone")
    assert outputs(tmp_path / "shared", forked) == outputs(tmp_path / "alone", alone)
    rotations = [next(iter(v.record.sites.values())).num_rotations for v in alone]
    assert rotations == [0, 1, 2]


@pytest.mark.parametrize("method", ["vanilla_mt+rollingq", "concat+pmr", "concat+ogm", "mmml"])
@pytest.mark.parametrize("snapshot_seconds", [0, 1e9], ids=["from a snapshot", "from the start"])
def test_an_interrupted_trial_goes_on_bit_for_bit(
    world: World, tmp_path: Path, method: str, snapshot_seconds: float
) -> None:
    spec = spec_of(world, method)
    undisturbed = visits(world, spec, tmp_path / "undisturbed")
    broken = tmp_path / "broken"
    broken.mkdir()
    way = walk_of(world, spec, broken)
    way.snapshot_seconds, way._snapshot_due = snapshot_seconds, 0.0 if snapshot_seconds == 0 else 1e18
    first = way.epochs()
    for _ in range(2):
        next(first)
    del way, first
    resumed = visits(world, spec, broken, snapshot_seconds)
    assert outputs(broken, resumed) == outputs(tmp_path / "undisturbed", undisturbed)
    for v, u in zip(resumed, undisturbed, strict=True):
        assert v.record.losses == u.record.losses
        assert v.record.actions == u.record.actions


def test_a_damaged_snapshot_is_noticed_and_the_one_before_is_used(
    world: World, tmp_path: Path, trained: list[int]
) -> None:
    spec = spec_of(world, "vanilla_mt")
    undisturbed = visits(world, spec, tmp_path / "t", snapshot_seconds=0, companions=[spec_of(world, ROTATING)])
    expected = outputs(tmp_path / "t", undisturbed)
    segment = tmp_path / "t" / undisturbed[0].segment
    state = torch.load(next(segment.glob("fork-0000-*.pt")), weights_only=True)
    Segment(tmp_path / "t", trajectory.lineage_of(spec, ("val", "test"), "cpu")).write_snapshot(1, state, "resume")
    flip(next(segment.glob("resume-0001-*.pt")))
    (segment / "epoch-0002.json").unlink()
    trained.clear()
    resumed = visits(world, spec, tmp_path / "t")
    assert outputs(tmp_path / "t", resumed) == expected
    assert trained == [1, 2]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_damaged_epoch_is_trained_again(
    world: World, tmp_path: Path, suffix: str, damage: str, trained: list[int]
) -> None:
    spec = spec_of(world, "vanilla_mt")
    before = visits(world, spec, tmp_path / "t")
    expected = outputs(tmp_path / "t", before)
    file = tmp_path / "t" / before[1].segment / f"epoch-0001.{suffix}"
    {"flip": flip, "cut": cut, "remove": Path.unlink}[damage](file)
    trained.clear()
    again = visits(world, spec, tmp_path / "t")
    assert [v.trained for v in again] == [False, True, False]
    assert trained == [0, 1]
    assert outputs(tmp_path / "t", again) == expected


def test_what_an_action_logged_is_taken_again_when_it_is_damaged(world: World, tmp_path: Path) -> None:
    spec = spec_of(world, ROTATING)
    before = visits(world, spec, tmp_path / "t")
    flip(tmp_path / "t" / before[1].segment / "fork.json")
    again = visits(world, spec, tmp_path / "t")
    assert [v.record.diagnostics for v in again] == [v.record.diagnostics for v in before]
    assert before[0].record.diagnostics


def test_a_planned_fork_goes_on_from_the_state_before_the_action(
    world: World, tmp_path: Path, trained: list[int]
) -> None:
    plain, rolling = spec_of(world, "vanilla_mt"), spec_of(world, ROTATING)
    visits(world, plain, tmp_path / "t", companions=[rolling])
    trained.clear()
    forked = visits(world, rolling, tmp_path / "t")
    assert trained == [1, 2]
    assert outputs(tmp_path / "t", forked) == outputs(tmp_path / "alone", visits(world, rolling, tmp_path / "alone"))


def test_a_trial_that_acts_leaves_its_state_to_those_that_do_not(
    world: World, tmp_path: Path, trained: list[int]
) -> None:
    plain, rolling = spec_of(world, "vanilla_mt"), spec_of(world, ROTATING)
    visits(world, rolling, tmp_path / "t", companions=[plain])
    trained.clear()
    went_on = visits(world, plain, tmp_path / "t")
    assert trained == [1, 2]
    assert outputs(tmp_path / "t", went_on) == outputs(tmp_path / "alone", visits(world, plain, tmp_path / "alone"))


def test_a_state_is_kept_only_where_a_planned_trial_parts(world: World, tmp_path: Path) -> None:
    plain, rolling = spec_of(world, "vanilla_mt"), spec_of(world, ROTATING)
    (segment,) = {v.segment for v in visits(world, plain, tmp_path / "one", companions=[rolling])}
    assert snapshots(tmp_path / "one" / segment) == ["fork-0000", "resume-0002"]
    (segment,) = {v.segment for v in visits(world, plain, tmp_path / "two", companions=[plain])}
    assert snapshots(tmp_path / "two" / segment) == ["resume-0002"]


def test_only_the_newest_state_to_resume_from_is_kept(world: World, tmp_path: Path) -> None:
    way = walk_of(world, spec_of(world, "vanilla_mt"), tmp_path)
    way.snapshot_seconds, way._snapshot_due = 0.0, 0.0
    kept = [snapshots(tmp_path / visit.segment) for visit in way.epochs()]
    assert kept == [["resume-0000"], ["resume-0001"], ["resume-0002"]]


def test_an_epoch_in_training_elsewhere_is_left_to_its_trainer(
    world: World, tmp_path: Path, trained: list[int]
) -> None:
    plain, rolling = spec_of(world, "vanilla_mt"), spec_of(world, ROTATING)
    first = walk_of(world, plain, tmp_path, [rolling]).epochs()
    next(first)
    with pytest.raises(BusyError) as busy:
        visits(world, plain, tmp_path)
    assert busy.value.epoch == 1
    assert [v.trained for v in visits(world, rolling, tmp_path)] == [False, True, True]
    list(first)
    assert [v.trained for v in visits(world, plain, tmp_path)] == [False, False, False]
    assert sorted(trained) == [0, 1, 1, 2, 2]


def test_a_walk_that_ends_early_lets_go_of_its_locks(world: World, tmp_path: Path) -> None:
    spec = spec_of(world, ROTATING)
    first = walk_of(world, spec, tmp_path).epochs()
    next(first), next(first)
    first.close()
    assert [v.trained for v in visits(world, spec, tmp_path)] == [False, False, True]


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_weights_that_are_gone_are_made_again(world: World, tmp_path: Path, epoch: int, damage: str) -> None:
    spec = spec_of(world, ROTATING)
    walked = visits(world, spec, tmp_path)
    file = weights_file(tmp_path, walked[epoch].segment, epoch)
    expected = file.read_bytes()
    {"flip": flip, "remove": Path.unlink}[damage](file)
    assert sound_weights(tmp_path, walked[epoch].segment, epoch) is None
    way = walk_of(world, spec, tmp_path)
    list(way.epochs())
    way.restore(epoch)
    assert file.read_bytes() == expected
    assert sound_weights(tmp_path, walked[epoch].segment, epoch) == file


def test_all_methods_of_a_seed_start_from_the_same_encoders(world: World, tmp_path: Path) -> None:
    states = {}
    for method in ("vanilla_mt", "concat+ogm", "mmml"):
        training = walk_of(world, spec_of(world, method), tmp_path).start()
        states[method] = {k: v for k, v in training.model.state_dict().items() if k.startswith("encoders.")}
    first, *rest = states.values()
    for other in rest:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_the_lineage_depends_on_what_acts_inside_an_epoch_and_on_nothing_else(world: World) -> None:
    def key(start: str) -> str:
        return trajectory.lineage_of(spec_of(world, start), ("val", "test"), "cpu").key

    assert key("vanilla_mt") == key("vanilla_mt+rollingq")
    assert len({key("concat+pmr"), key("concat+ogm"), key("vanilla_mt")}) == 3


def test_a_strategy_edited_after_it_acted_does_not_reuse_what_the_old_code_made(world: World, tmp_path: Path) -> None:
    spec = spec_of(world, "vanilla_mt+rollingq")
    visits(world, spec, tmp_path / "t")
    way = walk_of(world, spec, tmp_path / "t")
    ((strategy, _),) = way.strategies.values()
    way.strategies = {"rollingq": (strategy, "0" * 64)}
    assert [v.trained for v in way.epochs()] == [False, True, True]


def test_a_segment_of_another_lineage_is_another_folder(tmp_path: Path) -> None:
    one, two = Lineage({"seed": 0}), Lineage({"seed": 1})
    assert Segment(tmp_path, one).folder != Segment(tmp_path, two).folder
    assert one.key == Lineage({"seed": 0}).key
