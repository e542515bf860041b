"""Tuning: what is searched, what a study costs, what survives an interruption, and what tuned rows run with."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest

from bench.config import TUNING_SEEDS, load
from bench.errors import RequestError
from bench.execute.events import EpochDone, Event, Finished, Jobs
from bench.plan import TrialSpec
from bench.study.figures import draw
from bench.study.halving import Halving
from bench.study.journal import Journal
from bench.study.record import Search, Study, TrialOfStudy, read_study
from bench.study.space import Axis, Point, SearchSpace, at
from bench.study.tuned import nothing_to_tune, targets, tuned_settings, with_tuned
from bench.study.tuning import Budget, Tuning
from bench.trajectory import Visit
from bench.trial import run as train
from tests.world import InProcess, World, make_world

NEVER = 2.0
"""An |AIR| that is not reached."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "world", "rollingq")


def tuning(world: World, search: Search | None = None, points: Sequence[Point] | None = None) -> Tuning:
    spec = world.plan.trials[0]
    rho, beta = SearchSpace.of(spec).axes
    wide = SearchSpace((rho, dataclasses.replace(beta, low=0.0, high=NEVER)))
    return Tuning(spec, world.datasets[0], world.store, wide, search, points)


def run(tuned: Tuning, trials: int, epochs: int | None = None) -> Study:
    list(tuned.run(InProcess(), Budget(trials, epochs)))
    study = read_study(tuned.store, tuned.name)
    assert study is not None
    return study


def pairs(*values: tuple[float, float]) -> list[Point]:
    return [{"rollingq.rho": rho, "rollingq.beta": beta} for rho, beta in values]


def told(study: Study) -> list[tuple[object, ...]]:
    """What a study found, without the numbers that an interruption may shift."""
    return [(dict(t.settings), t.state, t.value, list(t.val), t.first_action) for t in study.trials]


def spec_of(world: World, method: str) -> TrialSpec:
    return next(spec for spec in world.plan.trials if spec.method.startswith(method))


def test_a_composition_is_searched_in_its_strategies_and_a_bare_fusion_in_its_own_settings(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", "vanilla_mt,rollingq,ogm,concat")
    names = {m: [a.name for a in SearchSpace.of(spec_of(world, m)).axes] for m in ("vanilla_mt+", "concat+")}
    assert names == {"vanilla_mt+": ["rollingq.rho", "rollingq.beta"], "concat+": ["ogm.alpha"]}
    bare = next(spec for spec in world.plan.trials if spec.method == "vanilla_mt")
    assert [a.name for a in SearchSpace.of(bare).axes] == ["vanilla_mt.dropout"]
    assert SearchSpace.of(next(s for s in world.plan.trials if s.method == "concat")).axes == ()


def test_settings_that_were_typed_are_kept_and_others_can_be_named(world: World) -> None:
    spec = world.plan.trials[0]
    for label in ("rollingq:rho=2", "vanilla_mt+rollingq:rho=2"):
        assert [a.name for a in SearchSpace.of(spec, label).axes] == ["rollingq.beta"]
    assert [a.name for a in SearchSpace.of(spec, only=["vanilla_mt.dropout"]).axes] == ["vanilla_mt.dropout"]
    with pytest.raises(RequestError, match=r"'rollingq.roh'. Did you mean 'rollingq.rho'"):
        SearchSpace.of(spec, only=["rollingq.roh"])


def test_the_defaults_are_a_point_of_the_space_and_that_point_is_the_untuned_trial(world: World) -> None:
    spec = world.plan.trials[0]
    space = SearchSpace.of(spec)
    assert space.defaults == {"rollingq.rho": 1.0, "rollingq.beta": 0.3}
    assert at(spec, space.defaults) == spec
    other = at(spec, {**space.defaults, "rollingq.rho": 2.5})
    assert other.method == "vanilla_mt+rollingq:rho=2.5"
    assert other.id != spec.id


def test_levels_and_grids_by_hand() -> None:
    levels = Axis("m", "x", default=1.2, low=0.0, high=4.0, levels=5)
    assert levels.values == (0.0, 1.0, 1.2, 2.0, 3.0, 4.0)
    log = Axis("m", "y", default=1.0, low=0.01, high=100.0, log=True)
    assert log.spread(3) == [0.01, 1.0, 100.0]
    whole = Axis("m", "z", default=2, low=1, high=3, whole=True)
    assert whole.spread(10) == [1, 2, 3]
    space = SearchSpace((log, whole))
    assert len(space.grid(12)) == 12  # 4 x 3
    assert len(space.grid(8)) == 4  # 2 x 2, because 3 x 3 is more than 8
    assert len(space.combinations(10)) == 30


def test_rungs_and_promotion_by_hand() -> None:
    assert Halving.over(30).rungs(30) == [3, 9, 27]
    assert Halving.over(10).rungs(10) == [1, 3, 9]
    assert Halving.over(30, eta=0).rungs(30) == []
    halving = Halving(1, 3)
    assert halving.promotes(0.2, [], maximised=True)
    assert not halving.promotes(0.2, [0.3], maximised=True)
    assert halving.promotes(0.2, [0.3], maximised=False)
    assert halving.promotes(0.5, [0.9, 0.1, 0.2, 0.3, 0.4], maximised=True)  # second of six: the best third
    assert not halving.promotes(0.4, [0.9, 0.5, 0.1, 0.2, 0.3], maximised=True)
    assert halving.promotes(0.5, [0.5, 0.5], maximised=True)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_stopping_agrees_with_optunas_pruner(direction: str) -> None:
    generator = random.Random(0)
    halving = Halving(1, 3)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    study = optuna.create_study(direction=direction, pruner=pruner)
    reached: dict[int, list[float]] = {1: [], 3: [], 9: []}
    stops = 0
    for _ in range(40):
        trial, best = study.ask(), None
        for epoch in range(1, 11):
            drawn = round(generator.random(), 1)
            better = max if direction == "maximize" else min
            best = drawn if best is None else better(best, drawn)
            trial.report(best, epoch)
            if epoch not in reached:
                continue
            goes_on = halving.promotes(best, reached[epoch], direction == "maximize")
            reached[epoch].append(best)
            assert goes_on == (not trial.should_prune())
            if not goes_on:
                stops += 1
                break
    assert 10 < stops < 40


def test_a_study_begins_with_the_defaults_and_sees_validation_only(world: World) -> None:
    study = run(tuning(world, Search(eta=0)), 3)
    assert [t.state for t in study.trials] == ["finished"] * 3
    assert dict(study.trials[0].settings) == {"rollingq.rho": 1.0, "rollingq.beta": 0.3}
    assert study.spec.seed == TUNING_SEEDS
    assert all(len(t.val) == 3 and t.value == max(t.val) for t in study.trials)
    stored = list(world.store.trajectories.glob("*/epoch-*.npz"))
    assert stored
    for file in stored:
        assert not [name for name in np.load(file).files if name.startswith("test/")]
    assert world.store.finished() == []
    assert not list(world.store.trajectories.glob("*/epoch-*.safetensors"))


def test_seeds_of_tuning_cannot_be_evaluated() -> None:
    with pytest.raises(RequestError, match="kept for `bench tune`"):
        load(None, {"seeds": f"0,{TUNING_SEEDS}"}, ())


def test_equal_decisions_cost_nothing_and_score_the_same(world: World) -> None:
    points = pairs((1.0, NEVER), (2.0, NEVER), (0.5, 0.0), (0.5, 0.01), (1.5, 0.0))
    study = run(tuning(world, Search(eta=0), points), 5)
    assert [t.trained_epochs for t in study.trials] == [3, 0, 2, 0, 2]  # of three epochs, acting after the first
    assert [t.first_action for t in study.trials] == [None, None, 0, 0, 0]
    assert list(study.trials[0].val) == list(study.trials[1].val)
    assert study.trained_epochs == 7


def test_a_budget_of_epochs_begins_no_trial_once_it_is_spent(world: World) -> None:
    points = pairs((1.0, 0.0), (1.5, 0.0), (2.0, 0.0), (2.5, 0.0))
    study = run(tuning(world, Search(eta=0), points), 4, epochs=5)
    assert [t.trained_epochs for t in study.trials] == [3, 2]
    assert len(run(tuning(world, Search(eta=0), points), 4).trials) == 4


def test_the_same_seed_finds_the_same_and_a_larger_budget_goes_on(tmp_path: Path) -> None:
    one, other = (make_world(tmp_path / name, "rollingq") for name in ("one", "other"))
    whole = run(tuning(one), 4)
    run(tuning(other), 2)
    assert told(run(tuning(other), 4)) == told(whole)
    assert told(run(tuning(other), 4)) == told(whole)  # nothing left to do
    third = run(tuning(other, Search(seed=1)), 2)
    assert third.name != whole.name
    assert told(third) != told(whole)[:2]


class Interrupted:
    """An executor that is stopped when it has reported so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def run(self, jobs: Jobs) -> Iterator[Event]:
        while (taken := jobs.take()) is not None:
            trial, make_job = taken
            visits: list[Visit] = []
            with contextlib.suppress(KeyboardInterrupt):
                info = train(make_job("cpu"), partial(self._emit, visits))
            yield from (EpochDone(trial, visit) for visit in visits)
            if self.left == 0:
                raise KeyboardInterrupt
            yield Finished(trial, info)

    def _emit(self, visits: list[Visit], visit: Visit) -> None:
        visits.append(visit)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epochs", [1, 4])
def test_an_interrupted_study_goes_on_as_if_nothing_had_happened(tmp_path: Path, epochs: int) -> None:
    one, other = (make_world(tmp_path / name, "rollingq") for name in ("one", "other"))
    undisturbed = run(tuning(one), 5)
    with pytest.raises(KeyboardInterrupt):
        list(tuning(other).run(Interrupted(epochs), Budget(5)))
    resumed = run(tuning(other), 5)
    assert told(resumed) == told(undisturbed)
    assert resumed.trained_epochs == undisturbed.trained_epochs


def test_two_processes_share_a_study_and_take_over_from_one_that_died(tmp_path: Path) -> None:
    space = SearchSpace((Axis("m", "x", default=1.0, low=0.0, high=2.0),))

    def opened() -> Journal:
        return Journal(tmp_path / "study", "study", space, "random", 0, maximised=True)

    one, other = opened(), opened()
    first, second = one.propose(9), other.propose(9)
    assert first is not None
    assert second is not None
    assert first[0] != second[0]
    one.release()  # as the system does for a process that is killed
    taken = other.propose(9)
    assert taken is not None
    assert taken[1] == first[1]
    assert [t.point for t in other.tried()] == [second[1], first[1]]
    assert other.propose(2) is None


def test_stopped_trials_cost_less_and_the_others_are_trained_as_ever(tmp_path: Path) -> None:
    settings = ("recipe.epochs=9", "recipe.lr=0.05")
    worlds = [make_world(tmp_path / name, "vanilla_mt", *settings) for name in ("whole", "halved")]
    points: list[Point] = [{"vanilla_mt.dropout": dropout} for dropout in (0.0, 0.5, 0.2, 0.4)]
    whole, halved = (
        run(
            Tuning(w.plan.trials[0], w.datasets[0], w.store, SearchSpace.of(w.plan.trials[0]), Search(eta=eta), points),
            4,
        )
        for w, eta in zip(worlds, (0, 3), strict=True)
    )
    assert {t.state for t in halved.trials} == {"finished", "stopped"}
    assert halved.trained_epochs == sum(len(t.val) for t in halved.trials) < whole.trained_epochs == 36
    for short, full in zip(halved.trials, whole.trials, strict=True):
        assert list(short.val) == list(full.val[: len(short.val)])
    assert {len(t.val) for t in halved.trials if t.state == "stopped"} <= {1, 3}


def test_a_trial_that_fails_is_recorded_and_a_study_without_a_score_gives_no_settings(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", "rollingq", "recipe.lr=1e12", "recipe.epochs=2")
    spec = world.plan.trials[0]
    study = run(Tuning(spec, world.datasets[0], world.store, SearchSpace.of(spec)), 1)
    assert study.trials[0].state == "failed"
    assert study.trials[0].cause.startswith("non-finite loss")
    assert study.best() is None
    (target,) = targets(world.plan)
    with pytest.raises(RequestError, match="none of its 1 tuning trials finished"):
        tuned_settings(world.store, target, 1)


def test_tuned_rows_run_with_the_best_of_their_budget_and_rows_without_a_range_say_so(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", "concat,rollingq", seeds="2")
    with pytest.raises(RequestError, match=r"tuned with 0 of 4 trials; `bench tune 'vanilla_mt\+rollingq'"):
        with_tuned(world.plan, world.store, 4)
    rolling = spec_of(world, "vanilla_mt+rollingq")
    study = run(Tuning(rolling, world.datasets[0], world.store, SearchSpace.of(rolling, "rollingq")), 5)
    tuned = with_tuned(world.plan, world.store, 4)
    best = study.best(4)
    assert best is not None
    concat, row = tuned.rows
    assert {spec.method for group in row.groups for spec in group} == {best.method}
    assert [group[0].seed for group in row.groups] == [0, 1]
    assert row.tuned is not None
    assert row.tuned["trials"] == 4
    assert row.tuned["trained_epochs"] == sum(t.trained_epochs for t in study.trials[:4])
    assert concat.groups == world.plan.rows[0].groups
    assert concat.tuned == {"trials": 0, "trained_epochs": 0, "studies": []}
    assert nothing_to_tune(world.plan) == [world.plan.rows[0]]


def test_a_change_of_data_recipe_code_or_range_is_another_study(world: World) -> None:
    spec, space = world.plan.trials[0], SearchSpace.of(world.plan.trials[0])

    def name(spec: TrialSpec = spec, space: SearchSpace = space, search: Search | None = None) -> str:
        return Tuning(spec, world.datasets[0], world.store, space, search).name

    recipe = dataclasses.replace(spec.recipe, epochs=5)
    strategy = dataclasses.replace(spec.strategies[0], code="0" * 64)
    narrow = SearchSpace(tuple(dataclasses.replace(axis, high=1.5) for axis in space.axes))
    names = {
        name(),
        name(dataclasses.replace(spec, recipe=recipe)),
        name(dataclasses.replace(spec, strategies=(strategy,))),
        name(dataclasses.replace(spec, split_hash="0" * 16)),
        name(space=narrow),
        name(search=Search("random")),
    }
    assert len(names) == 6
    assert name(dataclasses.replace(spec, seed=7)) == name()


def test_an_exhaustive_search_says_how_many_trials_it_takes(world: World) -> None:
    study = Tuning(world.plan.trials[0], world.datasets[0], world.store, tuning(world).space, Search("exhaustive"))
    with pytest.raises(RequestError, match="takes 100 trials and 50 are allowed"):
        list(study.run(InProcess(), Budget(50)))


def test_the_smallest_error_wins_where_less_is_better(world: World) -> None:
    trials = [TrialOfStudy(i, {}, "", "finished", value, (value,), 1, None) for i, value in enumerate((0.9, 0.2, 0.4))]
    of_error = Study("s", world.plan.trials[0], SearchSpace(()), Search(), "mae", tuple(trials))
    best = of_error.best()
    assert best is not None
    assert best.number == 1
    of_accuracy = dataclasses.replace(of_error, metric="accuracy").best(1)
    assert of_accuracy is not None
    assert of_accuracy.number == 0


def test_a_study_comes_back_as_it_was_written_and_its_figures_are_the_same_each_time(world: World) -> None:
    study = run(tuning(world), 3)
    again = read_study(world.store, study.name)
    assert again is not None
    assert again.to_json() == study.to_json()
    files = draw(study, world.store)
    assert [f.name.rsplit(study.name + "-", 1)[1] for f in files][-1] == "surface-rho-beta.svg"
    before = [f.read_bytes() for f in files]
    assert [f.read_bytes() for f in draw(study, world.store)] == before
    assert study.importance is None or sum(study.importance.values()) == pytest.approx(1.0)
