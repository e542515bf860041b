"""Noise, missing modalities and contributions of trained models whose truth is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from bench.analysis import kept
from bench.analysis.changes import Draws, Noise, Zero
from bench.analysis.contract import Answer, Measurement, Row
from bench.analysis.contribution import Contribution, coalitions, shapley, share, value
from bench.analysis.kept import Kept, _own_imports, request_in
from bench.analysis.loaded import CLEAN, Condition, LoadedTrial
from bench.analysis.measuring import Inquiry
from bench.analysis.missing import Missing
from bench.analysis.noise import ALL, MODES, PLACES, NoiseGrid, noisy, variants_of
from bench.analysis.registry import resolve
from bench.analysis.showing import show, show_all
from bench.errors import RequestError
from bench.plan import Plan
from bench.store import read_json, write_json
from tests.analysis.asking import opened, trained
from tests.world import World, make_world

SMALL = ("recipe.epochs=5", "encoder.dim=16")
ONE_SIDED = "planted:preset=one_sided:samples=240:classes=4"
SYMMETRIC = "planted:preset=symmetric:samples=240:classes=4"
THREE = "planted:preset=three:samples=64:classes=3:tokens=4"
CHANCE = 0.25
ANALYSES = "noise,missing,contribution"


def asked(world: World, names: str = ANALYSES) -> Inquiry:
    return Inquiry(resolve(names), world.plan, world.store, world.datasets)


def measured(folder: Path, methods: str, data: str, *assign: str, seeds: str = "1", names: str = ANALYSES) -> World:
    """A world that is trained and of which everything was asked."""
    world = trained(folder, methods, *assign, datasets=data, seeds=seeds)
    inquiry = asked(world, names)
    assert [one.problem for one in inquiry.run(["cpu"]) if one.problem] == []
    inquiry.close()
    return world


@pytest.fixture(scope="module")
def one_sided(tmp_path_factory: pytest.TempPathFactory) -> World:
    return measured(tmp_path_factory.mktemp("sided"), "concat", ONE_SIDED, *SMALL)


@pytest.fixture(scope="module")
def symmetric(tmp_path_factory: pytest.TempPathFactory) -> World:
    return measured(tmp_path_factory.mktemp("even"), "concat", SYMMETRIC, *SMALL, seeds="3", names="contribution")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> World:
    methods = "audio,mbt:layers=2,rollingq:beta=0,ensemble"
    return measured(tmp_path_factory.mktemp("three"), methods, THREE, "recipe.epochs=2")


def loaded(world: World, method: str) -> LoadedTrial:
    return opened(world, world.spec(method))


def rows(world: World, name: str) -> list[Row]:
    request = request_in(world.store, name)
    assert request is not None
    return Kept(world.store, resolve(name)[0]).rows(request)


def chance_error(row: Row, times: float = 3.0) -> float:
    """So many standard errors of an accuracy at chance on the test part."""
    assert row.sizes is not None
    return times * (CHANCE * (1 - CHANCE) / row.sizes.test) ** 0.5


@pytest.mark.parametrize("method", ["unimodal:modality=audio", "mbt:layers=2", "vanilla_mt+rollingq:beta=0.0"])
def test_a_loaded_trial_gives_the_stored_outputs_to_the_bit(three: World, method: str) -> None:
    trial = loaded(three, method)
    epoch = trial.record["selected_epoch"]
    assert np.array_equal(trial.logits("test"), three.store.arrays(trial.spec.id, "logits.npz")["test"][epoch])
    samples = three.store.arrays(trial.spec.id, "samples.npz")
    found = trial.evaluate("val", {"": CLEAN})[""]
    for kind, arrays in (("unimodal", found.unimodal), ("mass", found.mass)):
        stored = {k.rsplit("/", 1)[1]: v for k, v in samples.items() if k.startswith(f"selected/val/{kind}/")}
        assert arrays.keys() == stored.keys()
        assert all(np.array_equal(arrays[m], stored[m]) for m in stored)


def test_a_rotated_model_stays_rotated(three: World) -> None:
    trial = loaded(three, "vanilla_mt+rollingq:beta=0.0")
    (site,) = trial.model.fusion.sites().values()
    epoch = trial.record["epochs"][trial.record["selected_epoch"]]
    assert int(site.num_rotations) == next(iter(epoch["sites"].values()))["num_rotations"]


@pytest.mark.parametrize("method", ["mbt:layers=2", "vanilla_mt+rollingq:beta=0.0"])
def test_the_batch_size_changes_nothing_under_noise(three: World, method: str) -> None:
    trial = loaded(three, method)
    draws = Draws(trial.ids, 0)
    conditions = {v: noisy(trial, draws, v, 0.5) for v in variants_of(trial.modalities)}
    whole, parts = (trial.evaluate("test", conditions, size) for size in (256, 11))
    for variant in conditions:
        np.testing.assert_allclose(whole[variant].logits, parts[variant].logits, atol=1e-5)


def test_tokens_that_conditions_share_are_those_of_a_whole_pass(three: World, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = loaded(three, "vanilla_mt+rollingq:beta=0.0")
    draws = Draws(trial.ids, 0)
    conditions = {v: noisy(trial, draws, v, 1.0) for v in variants_of(trial.modalities)} | {("", "", "mix"): CLEAN}
    shared = trial.evaluate("test", conditions)
    monkeypatch.setattr(LoadedTrial, "encodes_apart", False)
    alone = {key: trial.evaluate("test", {key: condition})[key] for key, condition in conditions.items()}
    assert all(np.array_equal(shared[key].logits, alone[key].logits) for key in conditions)


def test_zeros_are_what_the_contract_calls_not_present(three: World) -> None:
    trial = loaded(three, "mbt:layers=2")
    (_, inputs), *_ = trial.batches("test")
    with trial.quiet():
        expected = trial.model(inputs, frozenset({"audio", "text"})).logits.numpy()
    assert np.array_equal(trial.logits("test", Condition(inputs={"visual": Zero()})), expected)


def test_noise_depends_on_seed_sample_and_modality_alone() -> None:
    ids = np.array(["c", "a", "b"])
    draws, like = Draws(ids, 0), torch.zeros(3, 2, 2)
    all_three = draws("audio", like, np.arange(3))
    assert torch.equal(Draws(ids[::-1], 0)("audio", like, np.array([2, 1, 0])), all_three)
    assert torch.equal(draws("audio", like[:1], np.array([1])), all_three[1:2])
    assert not torch.isclose(all_three[0], all_three[1]).any()
    for other in (Draws(ids, 1)("audio", like, np.arange(3)), draws("visual", like, np.arange(3))):
        assert not torch.isclose(other, all_three).any()
    many = draws("audio", torch.zeros(3, 40_000), np.arange(3))
    assert abs(float(many.mean())) < 0.02
    assert abs(float(many.std()) - 1) < 0.02


def test_both_modes_of_noise_by_hand() -> None:
    values, positions = torch.tensor([[1.0, 2.0]]), np.array([0])
    draws = Draws(np.array(["a"]), 0)
    drawn = draws("audio", values, positions)
    add = Noise(draws, "add", 0.5, mean=7.0, std=4.0)("audio", values, positions)
    mix = Noise(draws, "mix", 0.25, mean=8.0, std=4.0)("audio", values, positions)
    assert torch.allclose(add, values + 2 * drawn)
    assert torch.allclose(mix, 0.75 * values + 2 + drawn)


def test_level_zero_changes_nothing_to_the_bit(three: World) -> None:
    for method in ("mbt:layers=2", "vanilla_mt+rollingq:beta=0.0"):
        trial = loaded(three, method)
        clean = trial.logits("test")
        draws = Draws(trial.ids, 0)
        for variant in variants_of(trial.modalities):
            assert np.array_equal(trial.logits("test", noisy(trial, draws, variant, 0.0)), clean), variant


@pytest.mark.parametrize("place", ["input", "tokens"])
def test_noise_in_the_only_informative_modality_leaves_chance(one_sided: World, place: str) -> None:
    """Replaced by noise, the one that tells the class takes everything away; the other takes nothing."""
    (row,) = rows(one_sided, "noise")
    clean = row.interval("clean").mean
    assert clean > CHANCE + 2 * chance_error(row)
    for target in ("audio", ALL):
        assert abs(row.interval("noisy", target, place, "mix", "1").mean - CHANCE) < chance_error(row)
    assert abs(row.interval("noisy", "visual", place, "mix", "1").mean - clean) < chance_error(row)
    half = row.interval("noisy", "audio", place, "mix", "0.5").mean
    assert CHANCE < half < clean


def test_levels_that_are_none_are_refused() -> None:
    for levels, expected in (("a", "expected numbers"), ("0.5|2", "must lie in 0 to 1"), ("nan", "must lie in")):
        with pytest.raises(RequestError, match=expected):
            resolve("noise", [f"noise.levels={levels}"])


def test_the_noise_table_has_drops_and_what_is_retained() -> None:
    """Three trials by hand: 80, 60 and 70 % clean; 20 %, 30 % and all of it less with audio replaced."""
    clean, at_one = (0.8, 0.6, 0.7), (0.6, 0.3, 0.0)
    answers = []
    for seed, (before, after) in enumerate(zip(clean, at_one, strict=True)):
        by_level = {"0.25": before, "0.5": before, "1": after}
        noisy_ = {"audio": {place: dict.fromkeys(MODES, by_level) for place in PLACES}}
        answers.append(Answer(str(seed), 0, seed, Measurement({"clean": before, "noisy": noisy_})))
    row = Row("concat", "concat", "planted", "honest", "accuracy", ("audio", "visual"), tuple(answers), 3)
    (table,) = NoiseGrid().tables([row])
    first = table.values.set_index(["target", "place", "mode", "level"]).loc[("audio", "input", "mix", 1.0)]
    low, high = ttest_1samp([20, 30, 70], 0).confidence_interval()
    assert first[["score", "drop", "drop low", "drop high"]].to_list() == pytest.approx([30, 40, low, high])
    assert first["retained"] == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert len(table.sections) == len(PLACES) * len(MODES)
    (figure,) = NoiseGrid().figures([row]).values()
    assert "audio, tokens, add" in figure
    assert "audio, input, mix" in figure


def test_without_the_only_informative_modality_chance_is_left(one_sided: World) -> None:
    (row,) = rows(one_sided, "missing")
    for fill in ("zero", "mean", "noise"):
        assert abs(row.interval("missing", "audio", fill).mean - CHANCE) < chance_error(row)
        assert abs(row.interval("missing", "visual", fill).mean - row.interval("clean").mean) < chance_error(row)


def test_noise_in_place_of_a_modality_is_the_noise_of_the_grid(one_sided: World) -> None:
    (grid,), (gone,) = rows(one_sided, "noise"), rows(one_sided, "missing")
    for m in ("audio", "visual"):
        assert gone.interval("missing", m, "noise") == grid.interval("noisy", m, "input", "mix", "1")


def test_moments_are_those_of_train_alone(one_sided: World) -> None:
    trial = loaded(one_sided, "concat")
    prepared = one_sided.datasets[0].prepared
    train = prepared.array("audio")[prepared.rows("audio")[trial.positions["train"]]].astype(np.float64)
    found = trial.material.moments("audio")
    assert (found.mean, found.std) == pytest.approx((train.mean(), train.std()))
    np.testing.assert_allclose(found.average.numpy(), train.mean(axis=0), atol=1e-6)


def test_missing_has_a_section_for_every_modality(three: World) -> None:
    (table,) = Missing().tables(rows(three, "missing"))
    assert [section.title.rsplit(" ", 1)[1] for section in table.sections] == ["audio", "visual", "text"]
    assert len(table.values) == 2 * 3 * 3


def game(players: str, worth: dict[str, float]) -> dict[frozenset[str], np.ndarray]:
    return {c: np.array(worth.get("".join(sorted(c)), 0.0)) for c in coalitions(list(players))}


def test_shapley_values_by_hand() -> None:
    """The glove game (one left glove, two right ones), and a game whose third player adds nothing."""
    gloves = shapley(game("abc", {"ab": 1, "ac": 1, "abc": 1}), ["a", "b", "c"])
    np.testing.assert_allclose(gloves, [2 / 3, 1 / 6, 1 / 6])
    dummy = shapley(game("abc", {"a": 1, "b": 2, "ab": 5, "ac": 1, "bc": 2, "abc": 5}), ["a", "b", "c"])
    np.testing.assert_allclose(dummy, [2, 3, 0])


def test_shapley_values_sum_to_what_all_give_beyond_none() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 4):
        players = [f"m{k}" for k in range(count)]
        worth = {c: rng.random(7) for c in coalitions(players)}
        total = worth[frozenset(players)] - worth[frozenset()]
        np.testing.assert_allclose(shapley(worth, players).sum(axis=0), total)


@pytest.mark.parametrize("world", ["one_sided", "three"])
def test_measured_values_sum_to_what_all_give_beyond_none(world: str, request: pytest.FixtureRequest) -> None:
    for row in rows(request.getfixturevalue(world), "contribution"):
        everything = " and ".join(row.modalities)
        for m in row.measurements:
            assert len(m.values["coalitions"]) == 2 ** len(row.modalities)
            total = m.at("coalitions", everything) - m.at("coalitions", "none")
            assert sum(m.values["shapley"].values()) == pytest.approx(total)


def test_all_modalities_together_score_what_was_stored(three: World) -> None:
    for row in rows(three, "contribution"):
        for answer in row.answers:
            stored = three.store.read(answer.trial, "scores.json")["test"]["accuracy"]
            assert answer.measured.at("coalitions", "audio and visual and text") == stored


def test_a_one_sided_task_reads_one_and_nothing(one_sided: World) -> None:
    (row,) = rows(one_sided, "contribution")
    for place, (m, truth) in enumerate((("audio", 1.0), ("visual", 0.0))):
        found = share(row, place, m)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low - 0.02 <= truth <= found.high + 0.02  # the share of a handful of samples
        assert found.high - found.low < 0.3
        assert value(row, place, m).low is not None


def test_a_symmetric_task_reads_half_and_half(symmetric: World) -> None:
    (row,) = rows(symmetric, "contribution")
    found = [share(row, place, m) for place, m in enumerate(("audio", "visual"))]
    bounds = [x for x in found if x is not None and x.low is not None and x.high is not None and x.low < 0.5 < x.high]
    assert len(bounds) == 2
    assert all(0.2 < x.mean < 0.8 for x in bounds)
    assert sum(x.mean for x in bounds) == pytest.approx(1)


def with_samples(row: Row, by_sample: np.ndarray) -> Row:
    """The row with one trial of these per-sample values [modality, sample]."""
    values = {"shapley": dict(zip(row.modalities, by_sample.mean(axis=1).tolist(), strict=True)), "probes": {}}
    arrays = {"by_sample": by_sample, "group": np.arange(by_sample.shape[1])}
    return dataclasses.replace(row, answers=(Answer("0" * 16, 0, 0, Measurement(values, arrays)),))


def test_nothing_learned_has_no_shares(one_sided: World) -> None:
    """The null case: with no modality better than none, a share would be noise over noise."""
    (row,) = rows(one_sided, "contribution")
    coins = np.random.default_rng(0).choice([-0.5, 0.0, 0.5], size=(2, 200))
    assert share(with_samples(row, coins), 0, "audio") is None
    assert share(with_samples(row, coins + 0.3), 0, "audio") is not None


def test_a_trial_that_learned_nothing_leaves_the_row_without_shares(one_sided: World) -> None:
    """All together are surely above nothing, but one of twelve trials has no sum of which there could be a share."""
    (row,) = rows(one_sided, "contribution")
    each = [with_samples(row, np.full((2, 4), worth)).answers[0] for worth in (0.0, *(0.25,) * 11)]
    assert share(dataclasses.replace(row, answers=tuple(each)), 0, "audio") is None
    found = share(dataclasses.replace(row, answers=tuple(each[1:])), 0, "audio")
    assert found is not None
    assert found.mean == 0.5


def test_probe_accuracy_over_epochs_is_the_stored_one(one_sided: World) -> None:
    (row,) = rows(one_sided, "contribution")
    (measured_,) = row.measurements
    curves = measured_.values["probes"]
    scores = one_sided.store.read(row.answers[0].trial, "scores.json")
    assert [len(curve) for curve in curves.values()] == [5, 5]
    at = scores["selected_epoch"]
    assert {m: curve[at] for m, curve in curves.items()} == {
        m: x["accuracy"] for m, x in scores["val_unimodal"].items()
    }
    (figure,) = Contribution().figures([row]).values()
    assert "audio alone" in figure


def changed_file(world: World, name: str) -> Path:
    return sorted((world.store.folder / "analyses" / name).glob("*-*.json"))[0]


def test_each_measurement_is_made_once(one_sided: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(one_sided).questions == 0
    assert (
        Inquiry(
            resolve("noise,missing", ["missing.seed=3"]), one_sided.plan, one_sided.store, one_sided.datasets
        ).questions
        == 1
    )
    monkeypatch.setattr("bench.analysis.kept.code_of", lambda kind: "other" if kind is NoiseGrid else "0")
    assert asked(one_sided).questions == 3


def test_a_damaged_measurement_and_a_trial_trained_again_are_measured_again(one_sided: World) -> None:
    file = changed_file(one_sided, "missing")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"clean": ', b'"clean": 9'))
    assert [a.name for _, analyses in asked(one_sided).pending for a in analyses] == ["missing"]
    file.write_bytes(whole)
    (trial,) = one_sided.plan.trials
    record = one_sided.store.trial(trial.id) / "record.json"
    before = read_json(record)
    write_json(record, {**before, "finished": before["finished"] + 1})
    assert asked(one_sided).questions == 3
    write_json(record, before)
    assert asked(one_sided).questions == 0


def test_rows_it_does_not_apply_to_have_a_reason(three: World) -> None:
    inquiry = asked(three)
    assert {(s["label"], s["reason"].split(",")[0]) for s in inquiry.skipped["contribution"]} == {
        ("audio", "it reads one modality"),
        ("ensemble", "it is made from other rows and has no weights of its own"),
    }
    assert [s["label"] for s in inquiry.skipped["noise"]] == ["ensemble"]
    twice = Plan(tuple(r for row in three.plan.rows for r in (row, row)), ())  # as under two protocols
    assert Inquiry(resolve("contribution"), twice, three.store, three.datasets).skipped == {
        "contribution": inquiry.skipped["contribution"]
    }
    assert [row.label for row in rows(three, "noise")] == ["audio", "mbt:layers=2", "rollingq:beta=0"]


def test_what_is_not_finished_is_named_and_the_rest_answered(one_sided: World) -> None:
    more = make_world(one_sided.folder, "concat,vanilla_mt", *SMALL, datasets=ONE_SIDED)
    inquiry = asked(more)
    assert [spec.method for spec in inquiry.missing] == ["vanilla_mt"]
    assert (inquiry.finished, inquiry.asked, inquiry.questions) == (1, 3, 0)
    alone = asked(make_world(one_sided.folder, "vanilla_mt", *SMALL, datasets=ONE_SIDED))
    with pytest.raises(RequestError, match="none of 1 trials is finished; `bench run` trains them"):
        alone.refuse_if_empty("bench run")


def test_an_analysis_that_fails_is_told_and_the_others_go_on(one_sided: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Measurement:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(Missing, "measure", broken)
    inquiry = Inquiry(
        resolve("missing,contribution", ["missing.seed=7", "contribution.fill=mean"]),
        one_sided.plan,
        one_sided.store,
        one_sided.datasets,
    )
    found = {one.analysis: one.problem for one in inquiry.run(["cpu"])}
    assert found == {"missing": "ZeroDivisionError: by hand", "contribution": ""}


def test_tables_and_figures_are_made_again_from_what_is_kept(one_sided: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoiseGrid, "figures", lambda *_: {"": "<svg>"})  # many panels, which take a second to draw
    shown = show(one_sided.store, resolve(ANALYSES))
    first = {path: path.read_bytes() for one in shown for path in one.paths}
    assert {path.name for path in first if path.suffix == ".csv"} == {f"analysis_{n}.csv" for n in ANALYSES.split(",")}
    assert len([path for path in first if path.suffix == ".svg"]) == 2
    for path in first:
        path.unlink()
    again = show_all(one_sided.store)
    assert {path: path.read_bytes() for one in again for path in one.paths} == first


def test_a_module_taken_whole_is_part_of_the_code() -> None:
    """`from bench.analysis import changes`, as the module that keeps measurements says itself."""
    assert {"bench.analysis.changes", "bench.analysis.loaded", "bench.analysis.contract"} <= set(_own_imports(kept))


def test_what_other_code_measured_is_not_shown_but_said(three: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.analysis.kept.code_of", lambda _: "other")
    (shown,) = show(three.store, resolve("missing"))
    assert shown.tables == ()
    assert "`bench analyse missing` measures" in shown.markdown


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    worlds = [trained(tmp_path / name, "concat,vanilla_mt", *SMALL, datasets=ONE_SIDED) for name in ("one", "two")]
    values = []
    for world, devices in zip(worlds, (["cpu"], ["cpu", "cpu"]), strict=True):
        told = list(asked(world).run(devices))
        assert [one.problem for one in told] == [""] * 6
        kept = {analysis.name: Kept(world.store, analysis) for analysis in resolve(ANALYSES)}
        values.append({(one.analysis, one.spec.id): kept[one.analysis].read(one.spec.id) for one in told})
    assert values[0].keys() == values[1].keys()
    assert all(values[0][key].values == values[1][key].values for key in values[0])  # type: ignore[union-attr]  # none is None
