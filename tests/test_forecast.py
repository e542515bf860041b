"""What a plan will cost, held against what it did cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.calibration import calibrate, kind_of
from bench.errors import RequestError
from bench.execute.events import Event, Jobs
from bench.forecast import epochs_to_train, forecast, study_forecast
from bench.study.record import Search, read_study
from bench.study.space import SearchSpace
from bench.study.tuning import EVALUATED, Budget, Tuning
from tests.world import InProcess, World, make_world

METHODS = "vanilla_mt,rollingq:beta=0:rho=1,rollingq:beta=2:rho=1,rollingq:beta=0.01:rho=1"


def forecast_epochs(world: World) -> dict[str, int]:
    prepared = {s.prepared.fingerprint: s.prepared for s in world.datasets}
    return epochs_to_train(world.sweep().missing(), prepared, world.store, "cpu")


def trained(world: World) -> dict[str, int]:
    return {spec.id: world.store.read(spec.id, "record.json")["trained_epochs"] for spec in world.plan.trials}


def test_epochs_are_exact_where_a_training_that_begins_alike_is_stored(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", METHODS)
    alone = make_world(tmp_path / "world", "vanilla_mt")
    alone.run()
    expected = forecast_epochs(world)
    world.run()
    assert expected == {i: n for i, n in trained(world).items() if i in expected}
    assert sorted(expected.values()) == [0, 0, 2]  # one stays, one acts after the first of three epochs, one like it


def test_records_of_another_seed_stand_in(tmp_path: Path) -> None:
    make_world(tmp_path / "world", "vanilla_mt").run()
    other = make_world(tmp_path / "world", METHODS, seeds="7,8")
    assert sum(forecast_epochs(other).values()) == 2 * (3 + 2)


def test_without_records_a_trial_that_may_act_is_taken_to_do_so_half_way(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", "vanilla_mt,rollingq", "recipe.epochs=6")
    found = forecast_epochs(world)
    assert sorted(found.values()) == [3, 6]


def test_a_study_is_forecast_by_asking_decide_on_stored_records(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", "rollingq")
    spec = world.plan.trials[0]
    points = [{"rollingq.rho": rho, "rollingq.beta": beta} for rho, beta in ((1.0, 1.0), (1.5, 0.05), (1.5, 0.06))]
    space = SearchSpace.of(spec)

    def tuning(count: int) -> Tuning:
        return Tuning(spec, world.datasets[0], world.store, space, Search(eta=0), points[:count])

    list(tuning(1).run(InProcess(), Budget(1)))
    specs = [tuning(3).at(point) for point in points]
    prepared = {s.prepared.fingerprint: s.prepared for s in world.datasets}
    expected = sum(epochs_to_train(specs, prepared, world.store, "cpu", EVALUATED).values())
    assert study_forecast(tuning(3), Budget(3), world.store, ["cpu"], InProcess()).epochs == expected
    before = read_study(world.store, tuning(1).name)
    list(tuning(3).run(InProcess(), Budget(3)))
    after = read_study(world.store, tuning(3).name)
    assert before is not None
    assert after is not None
    assert after.trained_epochs - before.trained_epochs == expected


def test_bytes_are_those_on_disk_and_what_ran_here_needs_no_calibration(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", "concat", "recipe.epochs=6")
    expected = forecast(world.plan.trials, world.datasets, world.store, ["cpu"], executor=InProcess())
    assert (expected.trials, expected.epochs, expected.calibrated) == (1, 6, 1)
    world.run()
    folders = [world.store.trial(world.plan.trials[0].id), *world.store.trajectories.iterdir()]
    used = sum(f.stat().st_size for folder in folders for f in folder.iterdir())
    assert expected.bytes == pytest.approx(used, rel=0.25)
    later = make_world(tmp_path / "world", "concat", "recipe.epochs=6", seeds="3")
    again = forecast(later.plan.trials[1:], later.datasets, later.store, ["cpu"])
    assert (again.trials, again.epochs, again.calibrated) == (2, 12, 0)
    assert again.bytes == pytest.approx(2 * used, rel=0.25)


def test_a_kind_is_what_takes_equally_long(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", METHODS, seeds="2")
    assert len({kind_of(spec) for spec in world.plan.trials}) == 2
    prepared = {s.prepared.fingerprint: s.prepared for s in world.datasets}
    kinds = calibrate(world.plan.trials, prepared, world.store, ["cpu"], InProcess())
    assert set(kinds) == {kind_of(spec) for spec in world.plan.trials}
    for kind in kinds.values():
        assert min(kind.trial_seconds, kind.epoch_bytes, kind.trial_bytes) >= 0
        assert kind.epoch_seconds > 0


def test_a_calibration_is_kept_and_trains_nothing_into_the_results(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", "concat")
    prepared = {s.prepared.fingerprint: s.prepared for s in world.datasets}
    first = calibrate(world.plan.trials, prepared, world.store, ["cpu"], InProcess())
    assert not list(world.store.trajectories.iterdir())
    assert calibrate(world.plan.trials, prepared, world.store, ["cpu"], Refusing()) == first
    with pytest.raises(AssertionError):  # more slots slow each other down
        calibrate(world.plan.trials, prepared, world.store, ["cpu", "cpu"], Refusing())


def test_what_cannot_be_trained_is_said_and_not_guessed(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", "concat", "recipe.lr=1e30")
    prepared = {s.prepared.fingerprint: s.prepared for s in world.datasets}
    with pytest.raises(RequestError, match=r"concat on .* cannot be trained: non-finite loss"):
        calibrate(world.plan.trials, prepared, world.store, ["cpu"], InProcess())


class Refusing:
    """An executor that must not be asked."""

    def run(self, jobs: Jobs) -> Iterator[Event]:
        raise AssertionError("calibrated again")
