"""The gap ladder: rungs that add up, and intervals worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy_stats

from bench.config import load
from bench.data.selection import Selected, select
from bench.errors import RequestError
from bench.report.cell import Cell
from bench.report.ladder import BY_SEED, ONE_NUMBER, PUBLISHED, SAME, STEPS, UNPAIRED, Climb, climbs, plan_ladder
from bench.report.ladder_table import build_ladder, figure
from bench.stats import Sizes
from bench.store import Store
from tests import stored
from tests.commandline import WRONG_REQUEST, CommandLine
from tests.world import DATASET

NAMES = [step.name for step in STEPS]


def rung(
    step: str, scores: Mapping[tuple[int, int], float], trained: str, **changes: Any
) -> tuple[Cell, dict[str, Any]]:
    """A cell and its row of the request, from (fold, seed) -> accuracy; `trained` names its trainings."""
    keys = list(scores)
    about: dict[str, Any] = {
        "method": "vanilla_mt",
        "label": "vanilla_mt",
        "dataset": "crema_d",
        "dataset_label": "crema_d",
    }
    cell = Cell(
        **about,
        protocol=next(s.protocol for s in STEPS if s.name == step),
        metric="accuracy",
        mean=1.0,
        values=tuple(scores.values()),
        seeds=tuple(seed for _, seed in keys),
        folds=tuple(fold for fold, _ in keys),
        sizes=Sizes(80, 20),
        **changes,
    )
    groups = [{"fold": f, "seed": s, "trials": [f"{trained}-{f}-{s}"]} for f, s in keys]
    return cell, {"label": "vanilla_mt", "groups": groups}


def climbed(
    *made: tuple[Cell, dict[str, Any]], steps: Sequence[str] = NAMES, dropped: Mapping[str, str] | None = None
) -> Climb:
    cells, rows = zip(*made, strict=True)
    (climb,) = climbs(cells, {"rows": rows, "ladder": {"steps": list(steps), "dropped": dropped or {}}})
    return climb


def whole() -> Climb:
    """Six trained rungs of two seeds, the last on two folds."""
    return climbed(
        rung(NAMES[0], {(0, 0): 50.0, (0, 1): 48.04}, "a"),
        rung(NAMES[1], {(0, 0): 49.0, (0, 1): 46.0}, "b"),
        rung(NAMES[2], {(0, 0): 47.0, (0, 1): 45.0}, "b"),
        rung(NAMES[3], {(0, 0): 40.0, (0, 1): 41.0}, "c"),
        rung(NAMES[4], {(0, 0): 40.0, (0, 1): 41.0}, "c"),
        rung(NAMES[5], {(0, 0): 40.0, (0, 1): 41.0, (1, 0): 44.0, (1, 1): 44.13}, "c"),
    )


def test_rungs_add_up_to_the_total() -> None:
    """48.8 published; means 49.02, 47.5, 46, 40.5, 40.5 and 42.2825."""
    climb = whole()
    removed = [r.removes.mean for r in climb.rungs if r.removes is not None]
    assert removed == pytest.approx([-0.22, 1.52, 1.5, 5.5, 0, -1.7825])
    assert climb.total is not None
    assert climb.total.removes is not None
    assert sum(removed) == pytest.approx(climb.total.removes.mean, abs=1e-12)
    assert [r.name for r in climb.rungs] == [PUBLISHED, *NAMES]


def test_every_interval_says_what_stands_behind_it() -> None:
    climb = whole()
    assert [r.paired for r in climb.rungs] == ["", ONE_NUMBER, BY_SEED, SAME, BY_SEED, SAME, BY_SEED]
    lists, on_val, folds = climb.rungs[1], climb.rungs[3], climb.rungs[6]
    low, high = scipy_stats.ttest_1samp([2, 1], 0).confidence_interval()
    assert on_val.removes == pytest.approx((1.5, low, high))
    assert lists.score.low is not None
    assert lists.score.high is not None
    assert lists.removes == pytest.approx((-0.22, 48.8 - lists.score.high, 48.8 - lists.score.low))
    low, high = scipy_stats.ttest_1samp([40 - 42, 41 - 42.565], 0).confidence_interval()
    assert folds.removes == pytest.approx((-1.7825, low, high))
    assert folds.trainings == 4


def test_other_seeds_are_not_paired() -> None:
    first, second = {(0, 0): 50.0, (0, 1): 48.0, (0, 2): 47.0}, {(0, 0): 45.0, (0, 3): 44.0}
    climb = climbed(rung(NAMES[0], first, "a"), rung(NAMES[3], second, "b"), steps=(NAMES[0], NAMES[3]))
    low, high = scipy_stats.ttest_ind([50, 48, 47], [45, 44], equal_var=False).confidence_interval()
    assert climb.rungs[2].paired == UNPAIRED
    assert climb.rungs[2].removes == pytest.approx((145 / 3 - 44.5, low, high))


def test_a_seed_that_lacks_a_fold_is_left_out_and_a_rung_without_seeds_is_named() -> None:
    cell, row = rung(NAMES[5], {(0, 0): 40.0, (0, 1): 10.0, (1, 0): 44.0}, "c")
    row["groups"].append({"fold": 1, "seed": 1, "trials": ["c-1-1"]})
    empty = rung(NAMES[3], {}, "b", note="2 of 2 not run")
    climb = climbed(rung(NAMES[0], {(0, 0): 50.0}, "a"), empty, (cell, row), steps=(NAMES[0], NAMES[3], NAMES[5]))
    assert climb.rungs[-1].score.mean == 42
    assert climb.rungs[-1].trainings == 2
    assert climb.missing == {NAMES[3]: "2 of 2 not run"}


def test_a_row_without_a_published_number_begins_at_its_first_training() -> None:
    cell, row = rung(NAMES[0], {(0, 0): 50.0}, "a")
    unknown = Cell(**{**{f: getattr(cell, f) for f in cell.__dataclass_fields__}, "method": "sum"})
    climb = climbed((unknown, row), steps=NAMES[:1], dropped={NAMES[4]: "no tuning was asked for"})
    assert [r.name for r in climb.rungs] == [NAMES[0]]
    assert climb.total is None
    assert climb.missing == {PUBLISHED: "none is known for vanilla_mt on crema_d", NAMES[4]: "no tuning was asked for"}


def test_a_tuned_rung_says_how_many_trials_it_took(tmp_path: Path) -> None:
    store, spec = Store(tmp_path / "results"), stored.spec()
    stored.store_trial(store, spec)
    asked = stored.request([("concat", [[spec]])] * 2)
    asked["rows"][1]["tuned"] = {"trials": 7, "trained_epochs": 21}
    asked["ladder"] = {"steps": ["disjoint split", "equal tuning"], "dropped": {}}
    (section,) = build_ladder(store, asked).table.sections
    assert section.caption.count("tuning trials") == 1
    assert "Equal tuning: every row tuned on val with the same budget (" in section.caption
    assert "after selection; 7 tuning trials; seeds 0" in section.caption


def test_several_data_sets_are_refused_before_any_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = CommandLine(tmp_path, tmp_path / "prepared", tmp_path / "raw", monkeypatch)
    answer = bench("ladder", "--dataset", f"{DATASET},av_digits", "--methods", "concat")
    assert answer.code == WRONG_REQUEST
    assert f"a ladder is climbed on one data set, found {DATASET}, av_digits" in answer.err
    assert not bench.prepared.exists()


def test_the_figure_names_every_rung() -> None:
    drawn = figure([whole()], "Accuracy (%)", "ladder")
    assert drawn.startswith("<svg")
    assert all(name in drawn for name in (PUBLISHED, *NAMES, "vanilla_mt"))


def test_different_splits_on_one_rung_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    specs = [stored.spec(seed=0, split_hash="aaaa"), stored.spec(seed=1, split_hash="bbbb")]
    for spec in specs:
        stored.store_trial(store, spec)
    asked = stored.request([("concat", [[spec] for spec in specs])])
    asked["ladder"] = {"steps": ["disjoint split"], "dropped": {}}
    with pytest.raises(RequestError, match="aaaa and bbbb"):
        build_ladder(store, asked)
    (section,) = build_ladder(store, asked, allow_mixed=True).table.sections
    assert any("--allow-mixed" in note for note in section.notes)


def planted(folder: Path) -> Selected:
    return select([DATASET], folder, folder / "prepared", {})[0][0]


def test_what_a_data_set_has_no_use_for_is_dropped_with_its_reason(tmp_path: Path) -> None:
    config, sources = load(None, {"methods": "concat", "datasets": DATASET, "seeds": "2"}, ())
    ladder = plan_ladder(config, sources, planted(tmp_path))
    assert ladder.steps == ("disjoint split",)
    assert list(ladder.dropped) == [name for name in NAMES if name != "disjoint split"]
    assert "no published lists" in ladder.dropped["val carved out"]
    assert "one fold" in ladder.dropped["all seeds and folds"]
    assert ladder.dropped["equal tuning"] == "no tuning was asked for"
