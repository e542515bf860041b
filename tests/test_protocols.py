"""Protocols share trials where they share a split, selection is read off stored logits, and splits are never mixed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench import stats
from bench.config import load
from bench.data.selection import select
from bench.errors import RequestError
from bench.plan import TrialSpec, make_plan
from bench.protocols import PROTOCOLS, SELECTIONS, ProtocolName, Split, of_split
from bench.report.board import board_of
from bench.report.build import Report, build
from bench.report.cell import Cell, to_json
from bench.report.collect import collect
from bench.report.published import Fate, Published
from bench.report.sections import caption
from bench.stats import Interval, Sizes
from bench.store import Store
from tests import stored
from tests.commandline import DONE, WRONG_REQUEST, CommandLine
from tests.world import DATASET, make_world


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def one_truth(_: Any) -> Any:
    return stored.truth()


def vectors(folder: Path) -> str:
    """The text of a data set of 40 vectors whose published lists have 32 for train and 8 for test."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {m: rng.normal(size=(40, 4)).astype(np.float32) for m in ("audio", "visual")}
    arrays["published_split"] = np.repeat(["train", "test"], [32, 8])
    np.savez(folder / "vectors.npz", label=np.arange(40) % 2, **arrays)
    return f"arrays:path={folder / 'vectors.npz'}"


def test_every_name_that_can_be_typed_is_a_protocol() -> None:
    assert set(PROTOCOLS) == set(get_args(ProtocolName))
    assert {p.split for p in PROTOCOLS.values()} == set(get_args(Split))
    assert all(p.selection in SELECTIONS and p.version >= 1 for p in PROTOCOLS.values())
    assert {of_split(split).split for split in get_args(Split)} == set(get_args(Split))
    assert (PROTOCOLS["honest"].split, PROTOCOLS["honest"].selection) == ("honest", "val-best")
    assert (PROTOCOLS["published"].split, PROTOCOLS["published"].selection) == ("published", "test-best")


def test_protocols_that_share_a_split_share_their_trials(tmp_path: Path) -> None:
    wanted = "protocol=honest,published,carved_test_best,carved_val_best"
    plan = make_world(tmp_path / "world", "concat", wanted, datasets=vectors(tmp_path)).plan
    trial = {row.protocol: row.groups[0][0] for row in plan.rows}
    assert len(plan.rows) == 4
    assert trial["carved_test_best"].id == trial["carved_val_best"].id
    assert len({spec.id for spec in trial.values()}) == len(plan.trials) == 3
    assert {name: spec.split for name, spec in trial.items()} == {n: PROTOCOLS[n].split for n in trial}
    assert (trial["published"].num_train, trial["carved_val_best"].num_train) == (32, 28)


def test_a_data_set_without_lists_is_skipped_with_its_reason(tmp_path: Path) -> None:
    plan = make_world(tmp_path / "world", "concat,sum", "protocol=honest,published").plan
    assert [row.protocol for row in plan.rows] == ["honest", "honest"]
    (skipped,) = plan.skipped
    assert (skipped.label, skipped.dataset) == ("protocol published", DATASET)
    assert "no published lists" in skipped.reason
    with pytest.raises(RequestError, match=r"nothing is left to run:\n  protocol published on planted.*no published"):
        make_world(tmp_path / "world", "concat", "protocol=published")


def test_published_lists_are_one_fold_whatever_the_honest_protocol_runs(tmp_path: Path) -> None:
    config, sources = load(None, {"methods": "concat", "protocol": "honest,published", "folds": "0,2"}, ())
    (selected,), _ = select([vectors(tmp_path)], tmp_path, tmp_path / "prepared", {})
    index = selected.prepared.index.assign(split="")  # as where the honest split is drawn by group
    drawn = dataclasses.replace(selected, prepared=dataclasses.replace(selected.prepared, index=index))
    honest, published = make_plan(config, sources, [drawn]).rows
    assert [group[0].fold for group in honest.groups] == [0, 0, 0, 2, 2, 2]
    assert [group[0].fold for group in published.groups] == [0, 0, 0]


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "honest"])
def test_only_honest_rows_are_ranked(store: Store, protocol: str) -> None:
    """Two rows far apart, 100 and 5 %: a board under `honest`, none elsewhere."""
    rows = []
    for method, right in (("concat", 20), ("sum", 1)):
        specs = [stored.spec(method, seed=seed) for seed in range(3)]
        for spec in specs:
            stored.store_trial(store, spec, test=(right,) * 3)
        rows.append((method, [[spec] for spec in specs]))
    cells = collect(store, stored.request(rows), one_truth)
    assert board_of(cells).tiers == {0: 1, 1: 2}
    others = [dataclasses.replace(cell, protocol=protocol) for cell in cells]
    assert (board_of(others).tiers, board_of(others).claims) == ({}, ())
    assert board_of(others).notes[0].startswith("Not ranked: ")
    assert f"Protocol {protocol}, version 1" in caption(others)


def two_seeds(store: Store, **changes: Any) -> list[list[TrialSpec]]:
    """Val-best, last and test-best: 60, 70 and 75 % for the one seed, 50, 85 and 90 % for the other."""
    specs = [stored.spec(seed=seed, **changes) for seed in range(2)]
    stored.store_trial(store, specs[0], val=(4, 10, 8, 2), test=(6, 12, 15, 14))
    stored.store_trial(store, specs[1], val=(9, 1, 2, 3), test=(10, 18, 12, 17))
    return [[spec] for spec in specs]


def test_inflation_is_test_best_minus_val_best_paired_by_training(store: Store) -> None:
    report = build(store, stored.request([("concat", two_seeds(store))]), one_truth)
    (cell,) = report.cells
    assert dict(cell.selections) == {
        "val-best": pytest.approx((60, 50)),
        "last": pytest.approx((70, 85)),
        "test-best": pytest.approx((75, 90)),
    }
    low, high = scipy_stats.ttest_1samp([15, 40], 0).confidence_interval()
    line = report.tables["selection"].values.iloc[0]
    shown = line[["val_best", "last", "test_best", "inflation", "low", "high"]]
    assert shown.to_list() == pytest.approx([55, 77.5, 82.5, 27.5, low, high])
    assert report.tables["selection"].sections[0].frame.iloc[0].to_list()[:5] == [
        "concat", "55.0", "77.5", "82.5", "+27.5",
    ]  # fmt: skip


def test_inflation_stands_in_the_audit_table_alone(store: Store) -> None:
    report = build(store, stored.request([("concat", two_seeds(store))]), one_truth)
    named = {name for name, table in report.tables.items() if "82.5" in table.markdown or "nflation" in table.markdown}
    assert named == {"selection"}
    assert "82.5" not in str(to_json(report.cells))
    assert "selections" not in to_json(report.cells)[0]


def test_the_audit_is_kept_and_takes_targets_once(store: Store) -> None:
    asked = stored.request([("concat", two_seeds(store))])
    (blind,) = collect(store, asked)
    assert blind.selections == {}
    (seen,) = collect(store, asked, one_truth)
    (later,) = collect(store, asked)
    assert later.selections == seen.selections != {}


def test_folds_take_the_corrected_interval_of_the_inflation(store: Store) -> None:
    specs = [stored.spec(fold=fold) for fold in range(2)]
    for spec, right in zip(specs, (14, 18), strict=True):
        stored.store_trial(store, spec, test=(0, 12, right))
    line = (
        build(store, stored.request([("concat", [[s] for s in specs])]), one_truth).tables["selection"].values.iloc[0]
    )
    expected = stats.interval([10, 30], folds=(0, 1), sizes=Sizes(80, 20))
    assert (line["inflation"], line["low"], line["high"]) == pytest.approx(tuple(expected))


def test_without_val_there_is_no_inflation(store: Store) -> None:
    spec = stored.spec(split="published")
    stored.store_trial(store, spec)
    no_val = dataclasses.replace(stored.truth(), targets={**stored.truth().targets, "val": np.zeros(0)})
    report = build(store, stored.request([("concat", [[spec]])]), lambda _: no_val)
    line = report.tables["selection"].values.iloc[0]
    assert (line["last"], line["test_best"]) == pytest.approx((70, 70))
    assert line[["val_best", "inflation"]].isna().all()


def test_a_derived_row_has_its_parts_at_their_own_epochs(store: Store) -> None:
    """Test-best: the epochs with 20 and 18 right; val-best: those with 2 and 4."""
    parts = [stored.spec("unimodal"), stored.spec("unimodal", num_train=81)]
    stored.store_trial(store, parts[0], val=(9, 1, 1), test=(2, 20, 5))
    stored.store_trial(store, parts[1], val=(1, 9, 1), test=(18, 4, 5))
    asked = stored.request([("ensemble", [parts])])
    asked["rows"][0]["method"] = "ensemble"
    (cell,) = collect(store, asked, one_truth)
    mixed = {rule: values[0] for rule, values in cell.selections.items()}
    assert mixed["test-best"] >= 90  # 18 are right in both parts
    assert mixed["last"] == pytest.approx(25)  # both get the same five right
    assert mixed["val-best"] == pytest.approx(cell.mean)
    assert mixed["val-best"] <= 20


def two_splits(store: Store) -> dict[str, Any]:
    """Two rows of one data set, fold and protocol, of which one lacks samples that the other has."""
    specs = [stored.spec("concat", split_hash="aaaa0000"), stored.spec("sum", split_hash="bbbb1111")]
    for spec in specs:
        stored.store_trial(store, spec)
    return stored.request([(spec.method, [[spec]]) for spec in specs])


def test_different_effective_splits_are_refused_and_named(store: Store) -> None:
    asked = two_splits(store)
    with pytest.raises(RequestError, match=r"planted \(honest\), fold 0: concat: aaaa0000; sum: bbbb1111") as refused:
        build(store, asked)
    assert "--allow-mixed" in str(refused.value)
    assert not (store.folder / "tables").exists()
    assert notes(build(store, asked, allow_mixed=True)) == {
        "Different effective splits (--allow-mixed): planted (honest), fold 0: concat: aaaa0000; sum: bbbb1111."
    }


def notes(report: Report) -> set[str]:
    """The first note of every section of the boards."""
    return {s.notes[0] for name in ("accuracy", "cost", "paper") for s in report.tables[name].sections}


def test_different_splits_inside_one_row_are_refused(store: Store) -> None:
    """As when folders of results are copied together."""
    specs = [stored.spec(seed=0, split_hash="aaaa0000"), stored.spec(seed=1, split_hash="bbbb1111")]
    for spec in specs:
        stored.store_trial(store, spec)
    asked = stored.request([("concat", [[spec] for spec in specs])])
    with pytest.raises(RequestError, match="fold 0: concat: aaaa0000 and bbbb1111"):
        build(store, asked)
    build(store, asked, allow_mixed=True)


def test_other_folds_protocols_and_data_sets_are_no_mixture(store: Store) -> None:
    specs = [stored.spec(), stored.spec(fold=1), stored.spec(split="published", split_hash="cccc")]
    specs.append(stored.spec(data="av_digits", split_hash="dddd", fingerprint="e"))
    for spec in specs:
        stored.store_trial(store, spec)
    build(store, stored.request([("concat", [[spec]]) for spec in specs]))


def test_bench_report_refuses_a_mixture_until_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = CommandLine(tmp_path, tmp_path / "prepared", tmp_path / "raw", monkeypatch)
    store = Store(bench.results)
    asked = two_splits(store)
    store.write_sweep(asked["id"], asked)
    refused = bench("report")
    assert refused.code == WRONG_REQUEST
    assert "concat: aaaa0000; sum: bbbb1111" in refused.err
    allowed = bench("report", "--allow-mixed")
    assert allowed.code == DONE
    assert "Different effective splits (--allow-mixed)" in allowed.out


def test_honest_minus_reproduced_takes_no_plain_t_over_folds() -> None:
    """One seed on two folds: variance 200 times 1/2 + 20/80, one degree of freedom; the reproduction has no spread."""
    about: dict[str, Any] = {"method": "concat", "label": "concat", "dataset": "crema_d", "dataset_label": "crema_d"}
    about |= {"metric": "accuracy", "sizes": Sizes(80, 20)}
    honest = Cell(**about, protocol="honest", mean=70, values=(60, 80), seeds=(0, 0), folds=(0, 1), n_folds=2)
    ours = Cell(**about, protocol="published", mean=50, values=(50, 50), seeds=(0, 1), folds=(0, 0), n_folds=1)
    gap = Fate(Published("crema_d", "concat", "accuracy", 49.3, ""), "concat", ours, honest).protocol_gap
    assert gap is not None
    assert gap.mean == 20
    half = scipy_stats.t.ppf(0.975, 1) * (200 * 0.75) ** 0.5
    assert (gap.low, gap.high) == pytest.approx((20 - half, 20 + half))


def test_a_difference_of_means_is_welchs_over_seeds() -> None:
    a, b = (50.0, 52.0, 57.0), (40.0, 41.0)
    found = stats.difference_of_means(stats.interval(a), 3, stats.interval(b), 2)
    assert found == pytest.approx(stats.unpaired_difference(a, b))
    assert stats.difference_of_means(stats.interval(a), 3, stats.interval(b[:1]), 1) == Interval(13, None, None)
