"""Tables hold what was stored: every number here is counted by hand from twenty samples."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy_stats

from bench.report.build import Report, build
from bench.report.cell import Cell, to_json
from bench.report.collect import collect
from bench.store import Store
from tests import stored


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def one_truth(_: Any) -> Any:
    return stored.truth()


def three_seeds(store: Store, method: str, test: list[int], **kind: Any) -> list[list[Any]]:
    """Trials of three seeds, of which the second epoch is selected and gets `test` samples right."""
    specs = [stored.spec(method, seed=seed) for seed in range(3)]
    for spec, right in zip(specs, test, strict=True):
        stored.store_trial(store, spec, test=(1, right, 20), **kind)
    return [[spec] for spec in specs]


def test_a_cell_is_the_mean_over_seeds_at_the_selected_epoch(store: Store) -> None:
    """12, 14 and 16 of 20: 60, 70 and 80 %; the 20 of 20 of the last epoch were not selected on val."""
    groups = three_seeds(store, "vanilla_mt", [12, 14, 16], site=True)
    (cell,) = collect(store, stored.request([("vanilla_mt", groups)]))
    low, high = scipy_stats.ttest_1samp([60, 70, 80], 0).confidence_interval()
    assert (cell.mean, cell.low, cell.high) == pytest.approx((70, low, high))
    assert (cell.accuracy_mean, cell.accuracy_low, cell.accuracy_high) == (cell.mean, cell.low, cell.high)
    assert cell.values == pytest.approx((60, 70, 80))
    assert (cell.n_seeds, cell.n_folds, cell.wanted) == (3, 1, 3)
    assert cell.trial_ids == tuple(group[0].id for group in groups)
    assert cell.unimodal == pytest.approx({"audio": 50, "visual": 25})
    assert cell.air == pytest.approx(0.6 - 0.25)
    assert cell.attention_mass == {"audio": 0.75, "visual": 0.25}
    assert cell.cost["published_gflops"] == 32.0
    assert cell.cost["step_ms"] == pytest.approx(40)
    assert cell.note == ""


def test_macro_f1_by_hand(store: Store) -> None:
    """The first 12 of 20 right: three hits per class, five predicted and five true, so F1 is 0.6 everywhere."""
    spec = stored.spec()
    stored.store_trial(store, spec)
    (cell,) = collect(store, stored.request([("concat", [[spec]])]))
    assert cell.macro_f1 == pytest.approx(60)
    assert (cell.mean, cell.low, cell.high) == (pytest.approx(60), None, None)
    assert cell.air is None
    assert cell.attention_mass == {}


def test_folds_take_the_corrected_interval(store: Store) -> None:
    """60 and 80 % on two folds: variance 200 times 1/2 + 20/80, and one degree of freedom."""
    specs = [stored.spec(fold=fold) for fold in range(2)]
    for spec, right in zip(specs, (12, 16), strict=True):
        stored.store_trial(store, spec, test=(0, right, 0))
    (cell,) = collect(store, stored.request([("concat", [[spec] for spec in specs])]))
    assert (cell.n_seeds, cell.n_folds) == (1, 2)
    assert cell.high is not None
    assert cell.mean == pytest.approx(70)
    assert cell.high - 70 == pytest.approx(scipy_stats.t.ppf(0.975, 1) * (200 * 0.75) ** 0.5)


def test_an_unfinished_row_says_how_much_is_there(store: Store) -> None:
    """One of three seeds finished and one failed; a row without any is null and still a row."""
    specs = [stored.spec(seed=seed) for seed in range(3)]
    stored.store_trial(store, specs[0])
    store.write_failure(specs[1].id, {"cause": "out of memory", "text": "", "spec": specs[1].to_json()})
    asked = stored.request([("concat", [[spec] for spec in specs]), ("sum", [[stored.spec("sum")]])])
    started, nothing = collect(store, asked)
    assert started.note == "1 of 3 finished; failed: out of memory"
    assert started.failures == {specs[1].id: "out of memory"}
    assert started.n_seeds == 1
    assert (nothing.mean, nothing.accuracy_mean, nothing.trial_ids) == (None, None, ())
    assert nothing.note == "0 of 1 finished"


def test_a_derived_row_is_scored_once_from_its_parts(store: Store) -> None:
    """Both parts right on the first ten, audio alone on ten more: tied logits go to the smaller class.

    Part one gets 20 of 20 at its selected epoch, part two 10 of 20; the second time no targets are needed.
    """
    parts = [stored.spec("unimodal", encoders={}), stored.spec("unimodal", num_train=81)]
    stored.store_trial(store, parts[0], val=(1, 9, 2), test=(0, 20, 0))
    stored.store_trial(store, parts[1], val=(9, 1, 2), test=(10, 0, 0))
    asked = stored.request([("ensemble", [parts])])
    asked["rows"][0]["method"] = "ensemble"
    (unknown,) = collect(store, asked)
    assert unknown.mean is None
    assert "not scored" in unknown.note
    (cell,) = collect(store, asked, one_truth)
    tie_goes_to_the_target = sum(1 for sample in range(10, 20) if sample % 4 < (sample + 1) % 4)
    assert cell.mean == pytest.approx(100 * (10 + tie_goes_to_the_target) / 20)
    assert cell.cost["params"] == 2 * stored.COST["params"]
    assert cell.note == ""
    assert collect(store, asked) == [cell]
    (kept,) = [file for file in (store.folder / "derived").glob("*.json") if not file.name.startswith("audit-")]
    assert json.loads(kept.read_text())["selected_epochs"] == [1, 0]


def test_the_published_protocol_takes_the_best_epoch_on_test(store: Store) -> None:
    """Epoch 1 is best on val with 12 right, epoch 2 on test with 14: published 70 %, honest 60 %."""
    honest, published = stored.spec(), stored.spec(split="published")
    for spec in (honest, published):
        stored.store_trial(store, spec)
    asked = stored.request([("concat", [[honest]]), ("concat", [[published]])])
    cells = collect(store, asked, one_truth)
    assert [cell.mean for cell in cells] == pytest.approx([60, 70])
    assert cells == collect(store, asked)
    assert {s.title for s in build(store, asked).tables["paper"].sections} == {
        "planted (honest)",
        "planted (published)",
    }


def rows_of(report: Report, table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.tables[table].csv)))


def test_the_tables_keep_the_users_order_and_are_written(store: Store) -> None:
    """Labels as typed in the order asked; numbers rounded in Markdown and whole in CSV; pipes are escaped."""
    groups = {name: three_seeds(store, name, [12, 13, 16]) for name in ("sum", "concat")}
    asked = stored.request(
        [("zeta|one", groups["sum"]), ("concat", groups["concat"])],
        skipped=[{"label": "pmr", "dataset": "planted", "reason": "it needs classes"}],
    )
    report = build(store, asked)
    assert [row["label"] for row in rows_of(report, "paper")] == ["zeta|one", "concat"]
    assert float(rows_of(report, "accuracy")[0]["mean"]) == pytest.approx(100 * 41 / 60)
    lines = report.tables["paper"].markdown.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines if line.startswith("| ")][1:] == [r"zeta\|one", "concat"]
    assert any("68.3 [42.5, 94.2] |" in line and "| 2.00 |" in line.replace("  ", "") for line in map(_squeezed, lines))
    assert "- pmr on planted: it needs classes" in report.paper_markdown
    assert "effective split fold 0: 5b11700000000000" in report.tables["accuracy"].markdown
    assert "best val epoch" in report.tables["cost"].markdown
    tables = ("accuracy", "cost", "paper", "comparisons", "selection")
    assert {path.name for path in report.paths} == {
        "report.html",
        *(f"{table}.{suffix}" for table in tables for suffix in ("md", "csv", "tex")),
    }
    for path in report.paths:
        assert path.is_file()
    assert (store.folder / "tables" / "paper.csv").read_text() == report.tables["paper"].csv
    before = {path: path.read_bytes() for path in report.paths}
    assert {path: path.read_bytes() for path in build(store, asked).paths} == before


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def test_different_splits_and_recipes_never_share_a_section(store: Store) -> None:
    """Two rows on other splits and one of another recipe: three sections; a row without trials opens none."""
    base = stored.spec()
    other_split = stored.spec("sum", split_hash="0ther0ther0ther0")
    other_recipe = stored.spec("mbt", recipe=dataclasses.replace(base.recipe, epochs=9, lr=0.5))
    for spec in (base, other_split, other_recipe):
        stored.store_trial(store, spec)
    names = ("concat", "sum", "mbt", "mmml")
    specs = (base, other_split, other_recipe, stored.spec("mmml"))
    report = build(store, stored.request([(n, [[s]]) for n, s in zip(names, specs, strict=True)]), allow_mixed=True)
    sections = report.tables["paper"].sections
    assert [list(section.frame["Method"]) for section in sections] == [["concat", "mmml"], ["sum"], ["mbt"]]
    assert "Recipe small, 3 epochs." in sections[0].caption
    assert "Recipe small, 9 epochs, lr=0.5." in sections[2].caption


def test_latex_is_escaped(store: Store) -> None:
    """Underscores, percent signs and the like are text in LaTeX."""
    spec = stored.spec("vanilla_mt")
    stored.store_trial(store, spec)
    latex = build(store, stored.request([("vanilla_mt", [[spec]])])).tables["paper"].latex
    assert r"vanilla\_mt & 60.0 & 2.00 & 32.00 \\" in latex
    assert r"Accuracy (\%)" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1


def test_json_cells_hold_null_for_what_cannot_be(store: Store) -> None:
    """The promised fields are there, as plain values."""
    spec = stored.spec()
    stored.store_trial(store, spec)
    report = build(store, stored.request([("concat", [[spec]]), ("sum", [[stored.spec("sum")]])]))
    first, second = json.loads(json.dumps(report.to_json()))["cells"]
    promised = "method label dataset protocol metric mean low high n_seeds n_folds trial_ids"
    assert {*promised.split(), "accuracy_mean", "accuracy_low", "accuracy_high"} <= first.keys()
    assert (first["mean"], first["low"], first["accuracy_low"]) == (pytest.approx(60), None, None)
    assert first["trial_ids"] == [spec.id]
    assert second["mean"] is None
    assert to_json([Cell("m", "m", "d", "d", "honest", "mae")])[0]["accuracy_mean"] is None


def test_small_costs_keep_their_digits(store: Store) -> None:
    """Below one, three significant digits; above, two decimals."""
    spec = stored.spec()
    stored.store_trial(store, spec, cost={**stored.COST, "params": 8_228, "thop_gmacs": 0.0000125})
    frame = build(store, stored.request([("concat", [[spec]])])).tables["cost"].sections[0].frame
    shown = dict(frame.iloc[0])
    assert (shown["Parameters (M)"], shown["GFLOPs as published"]) == ("0.00823", "0.0016")
    assert (shown["thop parameters (M)"], shown["True GFLOPs"]) == ("1.90", "0.625")


def test_a_trial_without_costs_leaves_them_blank(store: Store) -> None:
    """Costs that were not measured are blank, not zero."""
    spec = stored.spec()
    stored.store_trial(store, spec, cost={})
    report = build(store, stored.request([("concat", [[spec]])]))
    shown = report.tables["cost"].sections[0].frame.iloc[0].to_list()
    assert shown == ["concat", "", "", "", "", "", "", "", "40.0", "3", "3", "0", "0"]
