"""Rows over data sets: ranks by hand, pairs against scipy, and silence where nothing could be significant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.report.across import across, table
from bench.report.cell import Cell
from bench.report.html import page
from bench.report.ranks import critical_difference
from bench.report.tables import tables


def cells(
    scores: Mapping[str, Sequence[float | None]], metric: str = "accuracy", protocol: str = "honest"
) -> list[Cell]:
    """One cell per method and data set."""
    return [
        Cell(method, method, f"set{d}", f"set{d}", protocol, metric, mean=mean)
        for method, means in scores.items()
        for d, mean in enumerate(means)
    ]


def test_ranks_by_hand() -> None:
    """On three data sets a is 1st, 1st and tied 1st; b 2nd, 3rd and tied 1st; c 3rd, 2nd and 3rd."""
    (found,) = across(cells({"b": [70, 60, 80], "c": [60, 65, 70], "a": [80, 75, 80]}))
    assert [cell.method for cell in found.rows] == ["a", "b", "c"]
    assert found.ranks == pytest.approx((3.5 / 3, 6.5 / 3, 8 / 3))
    assert found.p == pytest.approx(scipy_stats.friedmanchisquare([80, 75, 80], [70, 60, 80], [60, 65, 70]).pvalue)
    assert {(p.row, p.against): p.ahead for p in found.pairs} == {(0, 1): 2, (0, 2): 3, (1, 2): 2}
    shown = table([found]).sections[0].frame
    assert shown["Mean rank"].tolist() == ["1.17", "2.17", "2.67"]
    assert shown["set1"].tolist() == ["75.0", "60.0", "65.0"]


def test_of_errors_the_smallest_is_best() -> None:
    (found,) = across(cells({"a": [0.5, 0.6, 0.7], "b": [0.4, 0.5, 0.6]}, "mae"))
    assert [cell.method for cell in found.rows] == ["b", "a"]
    assert found.ranks == (1.0, 2.0)
    assert found.p is None  # Friedman's test needs three rows


def test_pairs_are_wilcoxons_under_holm() -> None:
    rng = np.random.default_rng(0)
    scores = {name: (50 + k + rng.normal(0, 1.2, 12)).tolist() for k, name in enumerate("abc")}
    (found,) = across(cells(scores))
    by_pair = [scipy_stats.wilcoxon(scores[a], scores[b]).pvalue for a, b in ("ba", "ca", "cb")]
    order = {(found.rows[p.row].method, found.rows[p.against].method): p for p in found.pairs}
    tested = [order[pair].test.p for pair in (("b", "a"), ("c", "a"), ("c", "b"))]
    assert tested == pytest.approx(by_pair)
    assert max(p.adjusted for p in found.pairs) <= 1
    assert min(p.adjusted for p in found.pairs) == pytest.approx(3 * min(by_pair))


@pytest.mark.parametrize(("datasets", "verdict"), [(5, "underpowered"), (6, "significant")])
def test_five_data_sets_are_too_few_for_any_pair(datasets: int, verdict: str) -> None:
    """A win on each of five has p = 1/16, on each of six 1/32."""
    (found,) = across(cells({"a": [60.0 + 2 * d for d in range(datasets)], "b": [50.0 + d for d in range(datasets)]}))
    (pair,) = found.pairs
    assert pair.test.p == pytest.approx(2.0 ** (1 - datasets))
    assert pair.verdict == verdict
    shown = table([found]).sections
    assert shown[1].frame["Verdict"].tolist() == [verdict]
    assert ("takes 6 data sets" in " ".join(shown[0].notes)) == (verdict == "underpowered")


def test_among_many_pairs_it_takes_more_data_sets() -> None:
    """Six data sets show one pair; with three rows, 3/32 is above 0.05 and nothing may be called different."""
    (found,) = across(cells({name: [50.0 + 10 * k + d * (k + 1) for d in range(6)] for k, name in enumerate("abc")}))
    assert all(pair.underpowered and not pair.significant for pair in found.pairs)
    assert found.cliques == [(0, 2)]


def test_a_bar_joins_rows_that_are_not_told_apart() -> None:
    """a and b change places, c is far below both on every one of ten data sets."""
    a, b = [80 + (d % 2) for d in range(10)], [80.5] * 10
    (found,) = across(cells({"a": a, "b": b, "c": [20.0 + d for d in range(10)]}))
    assert found.cliques == [(0, 1)]
    figure = critical_difference(found, "ranks")
    assert figure.startswith("<svg")
    assert len(re.findall("stroke-width: 3.5", figure)) == 1
    for text in ("a (1.50)", "b (1.50)", "c (3.00)"):
        assert text in figure
    assert figure == critical_difference(found, "ranks")


def test_rows_that_some_data_sets_lack_are_left_out() -> None:
    """Two rows on four sets; a third on two of them. A set that has none of them is left out, not the rows."""
    made = cells(
        {"a": [1.0, 2, 3, None], "b": [2.0, 3, 5, None], "c": [3.0, 4, None, None], "d": [None, None, None, 1]}
    )
    (found,) = across(made)
    assert found.datasets == ("set0", "set1", "set2")
    assert {cell.method for cell in found.rows} == {"a", "b"}


def test_two_data_sets_or_one_row_say_nothing() -> None:
    assert across(cells({"a": [1.0, 2], "b": [2.0, 3]})) == []
    assert across(cells({"a": [1.0, 2, 3]})) == []
    assert across(cells({"a": [1.0, 2, 3], "b": [2.0, 3, 4]}, protocol="published")) == []


def test_the_report_has_the_section_only_where_there_is_one() -> None:
    few, enough = (cells({"a": [60.0, 70, 80][:n], "b": [50.0, 40, 45][:n]}) for n in (2, 3))
    assert "across" not in tables(few)
    made = tables(enough)
    assert '<h2 id="across">' in page(enough, made, ())
    assert "Mean rank over 3 data sets" in page(enough, made, ())
    assert '<h2 id="across">' not in page(few, tables(few), ())
    assert made["across"].csv.splitlines()[0].startswith("metric,label,method,against")
