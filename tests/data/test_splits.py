"""Splits: groups stay together, val never comes from test, and the draw does not depend on order."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.api import DataError
from bench.data.splits import num_folds, split_hash, split_positions


def index(groups: list[str], split: list[str] | str = "", **columns: object) -> pd.DataFrame:
    ids = [f"s{k:03d}" for k in range(len(groups))]
    return pd.DataFrame({"sample_id": ids, "group": groups, "split": split, **columns})


def test_a_complete_official_split_is_used_as_it_is() -> None:
    official = index([""] * 6, ["test", "train", "val", "train", "test", "val"])
    positions = split_positions(official)
    assert {name: p.tolist() for name, p in positions.items()} == {"train": [1, 3], "val": [2, 5], "test": [0, 4]}
    assert all(p.dtype == np.int64 for p in positions.values())
    assert num_folds(official) == 1
    with pytest.raises(DataError, match="fold 1 does not exist"):
        split_positions(official, fold=1)


def test_val_is_carved_out_of_train_by_group() -> None:
    groups = [f"g{k // 5}" for k in range(200)]
    given = index(groups, ["train"] * 160 + ["test"] * 40)
    positions = split_positions(given)
    assert positions["test"].tolist() == list(range(160, 200))
    assert len(positions["val"]) == 20  # 12.5 % of 160, in whole groups of five
    assert not {groups[k] for k in positions["val"]} & {groups[k] for k in positions["train"]}
    assert sorted([*positions["train"], *positions["val"]]) == list(range(160))
    published = split_positions(given, kind="published")
    assert len(published["train"]) == 160
    assert len(published["val"]) == 0


def test_val_that_cannot_be_carved_is_refused() -> None:
    with pytest.raises(DataError, match="val cannot be carved out of train"):
        split_positions(index(["one"] * 8 + ["two"] * 2, ["train"] * 8 + ["test"] * 2))


def test_groups_that_cross_are_refused_and_named() -> None:
    crossing = index(["ann", "ann", "bob", "cy"], ["train", "test", "val", "train"])
    with pytest.raises(DataError, match=r"1 groups are in both train and test \(ann\)"):
        split_positions(crossing)
    assert split_positions(crossing, kind="published")["test"].tolist() == [1]


def test_a_shared_source_that_crosses_is_refused() -> None:
    shared = index([""] * 3, ["train", "val", "test"], row_audio=[0, 1, 0], row_visual=[0, 1, 2])
    with pytest.raises(DataError, match="rows of audio are in both train and test"):
        split_positions(shared)


def test_published_lists_may_stand_beside_drawn_folds() -> None:
    groups = [f"actor{k % 10}" for k in range(100)]
    both = index(groups, "", published_split=["train"] * 80 + ["test"] * 15 + [""] * 5)
    assert num_folds(both) == 5
    assert num_folds(both, kind="published") == 1
    published = split_positions(both, kind="published")
    assert [len(published[name]) for name in ("train", "val", "test")] == [80, 0, 15]
    honest = split_positions(both, fold=4)
    assert not {groups[k] for k in honest["test"]} & {groups[k] for k in honest["train"]}


def test_without_lists_there_is_nothing_published() -> None:
    with pytest.raises(DataError, match="no published split"):
        split_positions(index([""] * 10), kind="published")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (["train", "train", "test", ""], "1 of 4 samples have no split"),
        (["train", "train", "train", "val"], "no test samples"),
        (["train", "train", "train", "dev"], "unknown split 'dev'; allowed: train, val, test"),
    ],
)
def test_half_a_split_is_refused(split: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_positions(index([""] * 4, split))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=6, max_size=30),
    seed=st.integers(0, 5),
    shuffle=st.randoms(use_true_random=False),
)
def test_drawn_folds_are_disjoint_cover_all_and_do_not_depend_on_order(sizes: list[int], seed: int, shuffle) -> None:
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    drawn = index(groups)
    order = list(range(len(groups)))
    shuffle.shuffle(order)
    shuffled = drawn.iloc[order].reset_index(drop=True)
    tested: list[int] = []
    for fold in range(num_folds(drawn)):
        positions = split_positions(drawn, fold, seed=seed)
        everything = np.concatenate(list(positions.values()))
        assert sorted(everything) == list(range(len(groups)))
        named = {name: {groups[k] for k in p} for name, p in positions.items()}
        assert not named["train"] & named["val"]
        assert not named["train"] & named["test"]
        assert not named["val"] & named["test"]
        assert all(len(p) for p in positions.values())
        tested += positions["test"].tolist()
        again = split_positions(shuffled, fold, seed=seed)
        assert split_hash(drawn, positions) == split_hash(shuffled, again)
    assert sorted(tested) == list(range(len(groups)))


def test_the_split_hash_tells_effective_splits_apart() -> None:
    whole = index([""] * 6, ["train"] * 3 + ["val", "test", "test"])
    fewer = whole.drop(5).reset_index(drop=True)
    assert split_hash(whole, split_positions(whole)) != split_hash(fewer, split_positions(fewer))


def test_val_carved_out_of_the_published_train_list_keeps_the_leaks() -> None:
    """By sample: the test list stays, the train list is parted, and the groups it shares with test stay in train."""
    groups = [f"g{k % 4}" for k in range(200)]
    leaking = index(groups, published_split=["train"] * 160 + ["test"] * 40)
    published, carved = (split_positions(leaking, kind=kind) for kind in ("published", "carved"))
    assert carved["test"].tolist() == published["test"].tolist()
    assert len(carved["val"]) == 20
    assert sorted([*carved["train"], *carved["val"]]) == published["train"].tolist()
    assert {groups[k] for k in carved["train"]} == {groups[k] for k in carved["val"]} == set(groups)
    own = index(groups, published_split=(["train"] * 140 + ["val"] * 20 + ["test"] * 40))
    assert split_positions(own, kind="carved")["val"].tolist() == list(range(140, 160))
    with pytest.raises(DataError, match="no published split"):
        split_positions(index(groups), kind="carved")
