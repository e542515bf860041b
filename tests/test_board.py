"""What a table may claim: tiers, bold, placebo, power, fairness, published values, LaTeX and the page."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import stats
from bench.data.splits import split_positions
from bench.report.board import board_of
from bench.report.build import Report, build, strict
from bench.report.cell import Cell, Samples
from bench.report.collect import collect
from bench.report.compare import Comparer
from bench.report.figures import curves, dots
from bench.report.html import page
from bench.report.layout import Section, Table, escaped
from bench.report.power import Need, detect
from bench.report.published import fates, published
from bench.report.tables import tables
from bench.requested import truths
from bench.stats import Sizes
from bench.store import Store
from tests import stored
from tests.world import make_world

SAMPLES = 400


def cell(method: str, hits: Sequence[np.ndarray], label: str = "", **changes: Any) -> Cell:
    """A row of one fold whose seeds are right where `hits` say."""
    samples = {(0, seed): Samples(one, np.arange(len(one)) // 2) for seed, one in enumerate(hits)}
    values = tuple(100 * float(one.mean()) for one in hits)
    base = Cell(
        method=method,
        label=label or method,
        dataset="planted",
        dataset_label="planted",
        protocol="honest",
        metric="accuracy",
        mean=float(np.mean(values)),
        low=float(np.mean(values)) - 1,
        high=float(np.mean(values)) + 1,
        n_seeds=len(hits),
        n_folds=1,
        values=values,
        seeds=tuple(range(len(hits))),
        folds=(0,) * len(hits),
        wanted=len(hits),
        splits={0: "5b117"},
        sizes=Sizes(1600, SAMPLES),
        modalities=("audio", "visual"),
        samples=samples,
    )
    return dataclasses.replace(base, **changes)


def hits(rate: float, seeds: int = 5, stream: int = 0) -> list[np.ndarray]:
    """Every seed right on the same share of the samples, and on a few of its own."""
    rng = np.random.default_rng(stream)
    easy = np.arange(SAMPLES) < rate * SAMPLES
    return [easy ^ (rng.random(SAMPLES) < 0.02) for _ in range(seeds)]


def board(*cells: Cell) -> Any:
    return board_of(cells)


def text_of(*cells: Cell) -> str:
    return tables(cells)["accuracy"].markdown


def test_rows_fall_into_tiers_and_only_a_lone_best_row_is_bold() -> None:
    """Two rows alike, one far below: tiers 1, 1, 2 and no bold; without its twin the best row is bold."""
    first, twin, bad = cell("mbt", hits(0.8)), cell("mmml", hits(0.8, stream=1)), cell("sum", hits(0.5))
    assert board(bad, first, twin).tiers == {0: 2, 1: 1, 2: 1}
    assert board(bad, first, twin).winner is None
    assert "**" not in text_of(bad, first, twin)
    assert board(bad, first).winner == 1
    assert first.mean is not None
    assert f"**{first.mean:.1f}**" in text_of(bad, first)
    made = tables((bad, first))
    assert rf"\textbf{{{first.mean:.1f}}}" in made["accuracy"].latex
    assert rf"\textbf{{{first.mean:.1f} [" in made["paper"].latex
    values = made["accuracy"].values
    assert values["tier"].to_list() == [2, 1]
    assert values["significant"].to_list() == [False, True]


def test_one_training_each_is_never_bold() -> None:
    """However large the difference, a single seed says nothing of the methods."""
    cells = cell("mbt", hits(0.9, seeds=1)), cell("sum", hits(0.2, seeds=1))
    found = board(*cells)
    assert (found.tiers, found.winner) == ({0: 1, 1: 2}, None)
    assert any("nothing is bold" in note for note in found.notes)
    assert "**" not in text_of(*cells)


def test_lucky_seeds_are_no_difference() -> None:
    """Both rows are right on 40 to 90 % of the samples, whichever seed came up: one tier, although means differ."""
    rates = {"mbt": (0.9, 0.5, 0.85), "sum": (0.5, 0.8, 0.4)}
    cells = [cell(name, [hits(rate, 1)[0] for rate in of_seeds]) for name, of_seeds in rates.items()]
    assert cells[0].mean is not None
    assert cells[1].mean is not None
    assert cells[0].mean - cells[1].mean > 15
    assert board(*cells).tiers == {0: 1, 1: 1}


def test_the_published_protocol_is_never_ranked() -> None:
    """No tiers, no bold, and the caption says why."""
    cells = [cell(name, hits(rate), protocol="published") for name, rate in (("mbt", 0.9), ("sum", 0.3))]
    found = board(*cells)
    assert (found.tiers, found.winner, found.claims) == ({}, None, ())
    assert "chosen on test" in text_of(*cells)
    assert "Tier" not in tables(cells)["accuracy"].sections[0].frame.columns


def test_errors_are_compared_with_less_being_better_and_correlations_are_not() -> None:
    """A mean absolute error of 0.5 against 0.9: tier 1 is the smaller; Pearson is no mean over samples."""
    rng = np.random.default_rng(0)
    rows = []
    for name, error in (("sum", 0.9), ("mbt", 0.5)):
        each = [-np.abs(error + 0.1 * rng.normal(size=SAMPLES)).astype(np.float32) for _ in range(3)]
        values = tuple(float(-one.mean()) for one in each)
        rows.append(cell(name, each, metric="mae", mean=float(np.mean(values)), values=values))
    found = board(*rows)
    assert found.tiers == {0: 2, 1: 1}
    assert found.winner == 1
    assert found.claims[0].compared.difference.mean == pytest.approx(0.4, abs=0.02)
    assert found.claims[0].compared.mcnemar is None
    assert any("mae (median" in note for note in found.notes)
    correlated = [dataclasses.replace(row, metric="pearson", samples={}) for row in rows]
    assert board(*correlated).tiers == {}
    assert any("no mean over samples" in note for note in board(*correlated).notes)


def test_without_samples_there_are_no_tiers_and_the_caption_says_what_helps() -> None:
    """Targets were never at hand for one row."""
    known, unknown = cell("mbt", hits(0.9)), cell("sum", hits(0.3), samples={})
    assert board(known, unknown).tiers == {}
    assert "prepare the data set here" in text_of(known, unknown)


def test_rows_are_paired_over_the_seeds_both_have() -> None:
    """Seeds 0 to 4 against 0 and 1: two trainings; none in common: no comparison."""
    first, second = cell("mbt", hits(0.8)), cell("sum", hits(0.7, seeds=2))
    pair = Comparer().compare(first, second)
    assert pair is not None
    assert (pair.trainings, pair.num_seeds) == (2, 2)
    assert pair.wins.mean == 1.0
    expected = np.mean([first.samples[0, s].score.mean() - second.samples[0, s].score.mean() for s in (0, 1)])
    assert pair.difference.mean == pytest.approx(100 * expected)
    apart = dataclasses.replace(second, samples={(0, 7): second.samples[0, 0]})
    assert Comparer().compare(first, apart) is None
    shuffled = dataclasses.replace(second, samples={(0, 0): Samples(np.ones(SAMPLES, bool), np.arange(SAMPLES))})
    assert Comparer().compare(first, shuffled) is None


def test_several_folds_are_compared_by_the_corrected_t() -> None:
    """Fold differences of 2, 3 and 4 points with a test part of a quarter of train: error sqrt(1/3 + 1/4)."""
    rows = []
    for name, rates in (("mbt", (62, 73, 84)), ("sum", (60, 70, 80))):
        each = {(f, 0): Samples(np.arange(100) < right, np.arange(100)) for f, right in enumerate(rates)}
        values = tuple(float(right) for right in rates)
        rows.append(
            cell(
                name, hits(0.5, 3), samples=each, values=values, folds=(0, 1, 2), seeds=(0,) * 3, sizes=Sizes(400, 100)
            )
        )
    pair = Comparer().compare(*rows)
    assert pair is not None
    assert pair.difference.mean == pytest.approx(3)
    assert pair.difference.error == pytest.approx((1 / 3 + 1 / 4) ** 0.5)
    assert (pair.trainings, pair.num_seeds, pair.noise) == (3, 1, None)


def test_the_comparisons_table_holds_each_pair_once() -> None:
    """The best row against the others, and strategies against their fusion: no pair twice, p under Holm."""
    rows = [cell("concat", hits(0.6)), cell("concat+pmr", hits(0.8), "pmr"), cell("concat+ogm", hits(0.7), "ogm")]
    table = tables(rows)["comparisons"]
    pairs = list(zip(table.values["label"], table.values["against"], strict=True))
    assert pairs == [("pmr", "concat"), ("pmr", "ogm"), ("ogm", "concat")]
    assert (table.values["p_holm"] >= table.values["p"]).all()
    assert table.sections[0].frame["Difference"].to_list()[0].startswith("+")
    assert "bootstrap over whole groups" in table.markdown


def test_placebo_rows_give_the_false_discovery_rate() -> None:
    """One placebo below its base in 3 of 3 trainings, one above in 5 of 5: 5 of 8, 1 of 2 rows; else how to get it."""
    base = cell("concat", hits(0.6))
    low = cell("concat+placebo:width=0.0", hits(0.4, seeds=3), "concat+placebo:width=0")
    high = cell("concat+placebo", hits(0.8, stream=3))
    (note,) = [n for n in board(base, low, high).notes if "false-discovery" in n]
    assert "in 5 of 8 paired trainings (62%), by their mean in 1 of 2 rows, significantly in 1." in note
    assert note in tables((base, low, high))["paper"].markdown
    (missing,) = [n for n in board(base, cell("mbt", hits(0.7))).notes if "false-discovery" in n]
    assert "concat+placebo:width=0,concat+placebo:width=0.1" in missing


def test_the_caption_says_what_could_have_been_seen() -> None:
    """The median of the comparisons' own detectable differences; rows nearer than theirs are no proof of equality."""
    rows = [cell("mbt", hits(0.8)), cell("mmml", hits(0.8, stream=1)), cell("sum", hits(0.3))]
    found = board(*rows)
    detectable = [claim.compared.difference.detectable(alpha=0.025) for claim in found.claims]
    (power,) = [note for note in found.notes if note.startswith("Smallest difference")]
    assert f"{np.median(detectable):.2g} points" in power
    assert "400 test samples a fold, 5 paired trainings, 2 comparisons" in power
    (silence,) = [note for note in found.notes if note.startswith("Underpowered")]
    assert "mmml" in silence or "mbt" in silence
    assert "sum" not in silence


def full(**changes: Any) -> list[Cell]:
    """A board with nothing missing."""
    rows = [
        cell("unimodal:modality=audio", hits(0.5), "audio"),
        cell("unimodal:modality=visual", hits(0.5), "visual"),
        cell("ensemble", hits(0.6), derived=True, tuning={"trials": 0, "epochs": 0}),
        cell("concat", hits(0.6)),
        cell("mbt", hits(0.7)),
    ]
    return [dataclasses.replace(row, **changes) if row.method == "mbt" else row for row in rows]


def problems(cells: Sequence[Cell]) -> list[str]:
    return strict(Report(tuple(cells), (), {}, ()))


def test_a_fair_report_has_no_problems() -> None:
    assert problems(full()) == []
    assert problems([row for row in full() if row.method != "concat"] + [cell("sum", hits(0.6))]) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tuning": {"trials": 50, "epochs": 900}}, r"unequal tuning budgets: .*concat: 0 trials.*mbt: 50 trials"),
        ({"seeds": (0, 1, 2, 3, 7)}, r"unequal seeds: .*mbt: 0, 1, 2, 3, 7"),
        ({"note": "3 of 5 finished"}, "mbt is not finished: 3 of 5 finished"),
        ({"splits": {0: "other"}}, "2 sections that cannot be compared"),
    ],
)
def test_what_is_unfair_is_named(changes: dict[str, Any], says: str) -> None:
    assert any(re.search(says, line) for line in problems(full(**changes)))


@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        ("unimodal:modality=audio", "no row for audio alone"),
        ("unimodal:modality=visual", "no row for visual alone"),
        ("concat", "no late fusion; add concat or sum"),
        ("ensemble", "add ensemble"),
    ],
)
def test_simple_rows_are_mandatory(left_out: str, says: str) -> None:
    (problem,) = problems([row for row in full() if row.method != left_out])
    assert problem.startswith("planted (honest): ")
    assert says in problem


def test_a_concat_with_a_strategy_is_no_late_fusion() -> None:
    rows = [dataclasses.replace(row, method="concat+ogm") if row.method == "concat" else row for row in full()]
    assert any("no late fusion" in line for line in problems(rows))


def test_tuning_budgets_are_read_from_the_request_and_shown(tmp_path: Path) -> None:
    """50 trials of 300 epochs in all beside an untuned row."""
    store = Store(tmp_path / "results")
    tuned, plain = stored.spec("mbt"), stored.spec("sum")
    for spec in (tuned, plain):
        stored.store_trial(store, spec)
    request = stored.request([("mbt", [[tuned]]), ("sum", [[plain]])])
    request["rows"][0]["tuned"] = {"trials": 50, "trained_epochs": 300, "studies": ["one"]}
    report = build(store, request)
    frame = report.tables["cost"].sections[0].frame
    assert frame["Tuning trials"].to_list() == ["50", "0"]
    assert frame["Tuning epochs"].to_list() == ["300", "0"]
    assert any("unequal tuning budgets" in line for line in strict(report))


def on_crema(method: str, protocol: str, values: tuple[float, ...], **changes: Any) -> Cell:
    low, high = min(values), max(values)
    about = {"dataset": "crema_d", "protocol": protocol, "mean": float(np.mean(values)), "values": values}
    return cell(method, hits(0.5, len(values)), low=low, high=high, **about, **changes)


def test_published_values_stand_beside_what_became_of_them() -> None:
    """Vanilla MT: 48.8 published, 50 reproduced, 44 honest; settings do not hide a row; others have no value."""
    rows = [
        on_crema("vanilla_mt", "published", (49.0, 50.0, 51.0)),
        on_crema("vanilla_mt", "honest", (43.0, 44.0, 45.0)),
        on_crema("vanilla_mt+rollingq:rho=2.0", "published", (52.0, 52.0)),
        on_crema("unimodal:modality=audio", "honest", (40.0, 41.0), label="audio"),
        on_crema("sum", "published", (50.0, 50.0)),
    ]
    first, second, third = fates(rows)
    assert (first.published.value, second.published.value, third.published.value) == (48.8, 51.9, 47.6)
    assert first.not_reproduced == pytest.approx((1.2, 0.2, 2.2))
    gap = first.protocol_gap
    assert gap is not None
    assert gap.mean == pytest.approx(-6)
    assert gap.low is not None
    assert gap.low == pytest.approx(-6 - 2.776445 * (2 / 3) ** 0.5, abs=1e-4)
    assert third.not_reproduced is None
    made = tables(rows)
    shown = made["published"].sections[0].frame
    assert shown.iloc[0].to_list() == [
        "vanilla_mt", "48.8", "50.0 [49.0, 51.0]", "44.0 [43.0, 45.0]", "+1.2 [+0.2, +2.2]", "-6.0 [-8.3, -3.7]",
    ]  # fmt: skip
    assert "Table 1" in made["published"].sections[0].caption
    assert made["accuracy"].sections[0].frame["Published"].to_list() == ["48.8", "51.9", ""]
    assert "published" not in tables(full())


def test_every_published_value_is_that_of_the_source() -> None:
    """Spot checks of every table, by row; MOSEI has no audio row."""
    mosei = on_crema("mmml:readout=attn+rollingq", "published", (60.0,))
    assert published(dataclasses.replace(mosei, dataset="cmu_mosei:modalities=text|visual")).value == 63.2  # type: ignore[union-attr]
    assert published(dataclasses.replace(mosei, dataset="cmu_mosei", method="unimodal:modality=audio")) is None
    assert published(mosei, "GFLOPs of a batch of 64") is None
    jmt = on_crema("jmt", "published", (60.0,))
    assert published(jmt).value == 50.7  # type: ignore[union-attr]
    assert published(jmt, "GFLOPs of a batch of 64").value == 1494.87  # type: ignore[union-attr]
    assert published(dataclasses.replace(jmt, metric="mae")) is None


def test_detect_says_how_many_seeds_and_folds(tmp_path: Path) -> None:
    """Without history the binomial bound of the test part; with stored rows their own spread and discordance."""
    world = make_world(tmp_path, "audio,visual", seeds="2")
    request = world.sweep().record_request()
    count = len(split_positions(world.datasets[0].prepared.index)["test"])
    edge = 100 * stats.detectable_difference(count)
    for points, seeds in ((1.01 * edge, 1), (0.99 * edge, None)):
        (bound,) = detect(points, world.store, request, world.datasets)
        assert (bound.points, bound.seeds, bound.folds) == (points, seeds, 1)
        assert f"binomial bound for {count} test samples" in bound.basis
    assert all(outcome.status == "finished" for outcome in world.run())
    (known,) = detect(95.0, world.store, request, world.datasets)
    assert known.basis == "from the spread and the discordance of one pair of stored rows"
    first, second = collect(world.store, request, truths(world.datasets))
    pair = Comparer().compare(first, second)
    assert pair is not None
    assert pair.noise is not None
    assert known.seeds == pair.noise.seeds_for(95.0)
    assert known.seeds is not None
    assert known.seeds >= 2


def test_a_need_reads_as_a_sentence() -> None:
    need = Need("crema_d", 1.0, None, 5, 8, "why")
    assert str(need) == (
        "crema_d: to see 1 points: no number of seeds is enough on one fold; 8 seeds on each of 5 folds (why)"
    )
    assert str(Need("a", 2.5, 1, 1, None, "why")) == "a: to see 2.5 points: 1 seed on one fold (why)"


def test_samples_are_kept_so_that_a_report_needs_no_data_later(tmp_path: Path) -> None:
    """The second collection has no targets and the same samples; a damaged file reads as missing."""
    store = Store(tmp_path / "results")
    spec = stored.spec()
    stored.store_trial(store, spec)
    asked = stored.request([("concat", [[spec]])])
    assert collect(store, asked)[0].samples == {}
    (fresh,) = collect(store, asked, lambda _: stored.truth())
    assert fresh.samples[0, 0].score.tolist() == [True] * 12 + [False] * 8
    (kept,) = collect(store, asked)
    assert np.array_equal(kept.samples[0, 0].score, fresh.samples[0, 0].score)
    assert np.array_equal(kept.samples[0, 0].group, np.arange(20))
    (file,) = (store.folder / "derived").glob("*.npz")
    file.write_bytes(file.read_bytes()[:50])
    assert collect(store, asked)[0].samples == {}


def test_samples_know_their_groups(tmp_path: Path) -> None:
    """Groups of the prepared data arrive at the samples; a planted sample is its own group."""
    truth = dataclasses.replace(stored.truth(), groups={"test": np.repeat(["b", "a"], 10)})
    store = Store(tmp_path / "results")
    spec = stored.spec()
    stored.store_trial(store, spec)
    (row,) = collect(store, stored.request([("concat", [[spec]])]), lambda _: truth)
    assert row.samples[0, 0].group.tolist() == [1] * 10 + [0] * 10


AWKWARD = ("a_b%c&d#e$f{g}h~i^j\\k", "p<0.05 > x|y", "50 % ± 1")


def awkward_table() -> Table:
    import pandas as pd

    frame = pd.DataFrame([{"Method": text, "Accuracy (%)": "1_0"} for text in AWKWARD])
    section = Section(
        "x_y (honest)", "100 % of #1. A & B", frame, ("p < 0.05 & more",), frozenset({(1, "Accuracy (%)")})
    )
    return Table("t", "T", (section,), frame)


def all_latex() -> str:
    crema = [on_crema("vanilla_mt", p, (49.0, 50.0)) for p in ("published", "honest")]
    made = tables([*full(), *crema])
    assert set(made) == {"accuracy", "cost", "paper", "comparisons", "selection", "published"}
    return "\n".join([awkward_table().latex, *(table.latex for table in made.values())])


def test_latex_is_balanced_and_escaped() -> None:
    """Braces match, every environment is closed, and no special character stands alone."""
    text = all_latex()
    bare = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    opened, closed = (re.findall(rf"\\{what}{{(\w+)}}", text) for what in ("begin", "end"))
    assert sorted(opened) == sorted(closed)
    assert not re.search(r"(?<!\\)[%#$_^~]", text.replace(r"$\pm$", ""))
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) >= 1
    assert escaped("a_b%") == r"a\_b\%"
    assert r"\textbf{1\_0}" in text


def test_latex_compiles(tmp_path: Path) -> None:
    """With booktabs, in a plain article."""
    engine = next((name for name in ("tectonic", "pdflatex", "xelatex", "lualatex") if shutil.which(name)), None)
    if engine is None:
        pytest.skip("no TeX is installed")
    source = tmp_path / "paper.tex"
    source.write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + all_latex() + "\\end{document}\n"
    )
    words = (
        [engine, source.name]
        if engine == "tectonic"
        else [engine, "-interaction=nonstopmode", "-halt-on-error", source.name]
    )
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stdout[-3000:]


class _Reader(html.parser.HTMLParser):
    """Tags that are open, what refers elsewhere, and the ids."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input", "path", "use", "rect", "circle", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.look(attrs)

    def look(self, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.ids += [v or "" for k, v in attrs if k == "id"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def drawn() -> list[Cell]:
    """A board with curves, in which a label looks like markup."""
    lines = {"AIR": (0.1, 0.5, -0.2), "mass audio": (0.6, 0.7, 0.5), "mass visual": (0.4, 0.3, 0.5)}
    return [*full(label="mbt <b>&$x$"), cell("vanilla_mt", hits(0.7), curves=lines)]


def test_the_page_stands_alone_and_is_the_same_every_time() -> None:
    """Tags are closed, ids are unique, nothing is loaded from elsewhere, labels are text."""
    cells = drawn()
    skipped = [{"label": "pmr", "dataset": "planted", "reason": "it needs <classes>"}]
    text = page(cells, tables(cells), skipped, ["unequal seeds"])
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    assert all(reference.startswith("#") for reference in reader.references)
    assert {reference[1:] for reference in reader.references} <= set(reader.ids)
    assert "<b>" not in text
    assert "it needs &lt;classes&gt;" in text
    assert "unequal seeds" in text
    assert text.count("<svg") == 2
    assert text == page(cells, tables(cells), skipped, ["unequal seeds"])


def test_figures_show_every_row_and_every_training() -> None:
    """A label per row and a mark per mean; curves for those that have a site only."""
    cells = drawn()
    figure = dots(cells, "one")
    for label in ("audio", "ensemble", "vanilla_mt"):
        assert f">{label}</text>" in figure
    assert figure == dots(cells, "one")
    assert "currentColor" in figure
    assert "vanilla_mt" in curves(cells, "two")
    assert curves(full(), "three") == ""
    assert dots([cell("mbt", hits(0.5), mean=None)], "four") == ""
