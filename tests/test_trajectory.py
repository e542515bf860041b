"""Training memoised by epoch: what is shared, what forks, what survives an interruption, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import trajectory
from bench.data.prepared import Prepared
from bench.plan import TrialSpec
from bench.trajectory import Lineage, Segment, Visit, Walk, read_outputs
from bench.trial import walk
from tests.world import World, make_world

ROTATES = "rollingq:beta=0:rho=1:max_rotations=2"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "world", f"vanilla_mt,{ROTATES},concat+pmr,concat+ogm,mmml")


def walk_of(world: World, spec: TrialSpec, folder: Path) -> Walk:
    job = world.job(spec, folder)
    return walk(job, Prepared.open(job.prepared))


def visits(world: World, spec: TrialSpec, folder: Path, snapshot_seconds: float = 1e9) -> list[Visit]:
    folder.mkdir(exist_ok=True)
    way = walk_of(world, spec, folder)
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


def test_a_damaged_snapshot_is_noticed_and_the_one_before_is_used(world: World, tmp_path: Path) -> None:
    spec = spec_of(world, "vanilla_mt")
    undisturbed = visits(world, spec, tmp_path / "t", snapshot_seconds=0)
    segment = tmp_path / "t" / undisturbed[0].segment
    newest = max(segment.glob("snapshot-*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    expected = outputs(tmp_path / "t", undisturbed)
    (segment / "epoch-0002.json").unlink()
    resumed = visits(world, spec, tmp_path / "t", snapshot_seconds=0)
    assert outputs(tmp_path / "t", resumed) == expected


def test_an_epoch_without_its_outputs_is_trained_again(world: World, tmp_path: Path) -> None:
    spec = spec_of(world, "vanilla_mt")
    before = visits(world, spec, tmp_path / "t")
    (tmp_path / "t" / before[1].segment / "epoch-0001.npz").unlink()
    assert [v.trained for v in visits(world, spec, tmp_path / "t")] == [False, True, False]


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
