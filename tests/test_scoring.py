"""Scores against scikit-learn and against hand-worked cases, and what they may not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error

from bench.scoring import MAXIMISED, Truth, best, improves, macro_f1, pearson, score, sentiment, weighted_f1

SIZES = st.tuples(st.integers(2, 6), st.integers(1, 60), st.integers(0, 2**32 - 1))
"""Classes, samples, seed."""


def drawn(sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right about half of the time, and targets."""
    classes, samples, seed = sizes
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, samples)
    return rng.normal(size=(samples, classes)) + np.eye(classes)[target], target


def test_a_case_worked_out_by_hand() -> None:
    logits = np.array([[3.0, 1, 0], [0, 2, 1], [1, 0, 5], [2, 1, 0]])
    scores = score(logits, np.array([0, 1, 1, 2]), "classes")
    assert scores["accuracy"] == 0.5
    # F1: class 0 has 1 hit, 2 predicted, 1 true: 2/3; class 1: 1 hit, 1, 2: 2/3; class 2: no hit: 0.
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


@given(SIZES)
def test_classes_are_scored_as_scikit_learn_does(sizes: tuple[int, int, int]) -> None:
    logits, target = drawn(sizes)
    predicted, found = logits.argmax(axis=1), score(logits, target, "classes")
    assert found["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    # Without `labels` scikit-learn averages over the classes in target or prediction, and so do we.
    assert found["macro_f1"] == pytest.approx(f1_score(target, predicted, average="macro", zero_division=0.0))


@given(SIZES)
def test_regression_is_scored_as_scikit_learn_and_scipy_do(sizes: tuple[int, int, int]) -> None:
    _, samples, seed = sizes
    rng = np.random.default_rng(seed)
    value, target = rng.normal(size=(samples + 2, 1)), rng.normal(size=samples + 2)
    found = score(value, target, "regression")
    assert set(found) == {"mae", "pearson"}
    assert found["mae"] == pytest.approx(mean_absolute_error(target, value[:, 0]))
    assert found["pearson"] == pytest.approx(pearsonr(value[:, 0], target).statistic)


def test_sentiment_worked_out_by_hand() -> None:
    value, target = np.array([-2.6, -0.4, 0.2, 3.7, -0.1]), np.array([-3.0, 0.0, 1.0, 3.0, 0.5])
    found = sentiment(value, target, (-3.0, 3.0))
    assert found["acc2"] == pytest.approx(3 / 5)  # signs - - + + - against - + + + +
    assert found["acc7"] == pytest.approx(4 / 5)  # -3 0 0 3 0 against -3 0 1 3 0: halves go to the even number
    assert found["acc2_nonzero"] == pytest.approx(3 / 4)
    predicted, truth = value >= 0, target >= 0
    assert found["f1"] == pytest.approx(f1_score(truth, predicted, average="weighted"))


def test_sentiment_without_a_target_that_is_not_zero_has_no_score_for_those() -> None:
    found = sentiment(np.array([0.5, -0.5]), np.array([0.0, 0.0]), (-3.0, 3.0))
    assert set(found) == {"acc2", "f1", "acc7"}


@given(SIZES)
def test_weighted_f1_is_scikit_learns(sizes: tuple[int, int, int]) -> None:
    logits, target = drawn(sizes)
    predicted, truth = logits[:, 0] > 0, target > 0
    expected = f1_score(truth, predicted, average="weighted", zero_division=0.0)
    assert weighted_f1(predicted, truth) == pytest.approx(expected)


def test_every_score_has_a_direction() -> None:
    found: dict[str, Any] = score(np.eye(3), np.arange(3), "classes")
    found |= score(np.eye(3)[:, :1], np.array([1.0, -1.0, 0.5]), "regression", (-3.0, 3.0))
    assert set(found) == set(MAXIMISED)
    assert [name for name, maximised in MAXIMISED.items() if not maximised] == ["mae"]


@given(SIZES, st.randoms(use_true_random=False))
def test_a_score_does_not_depend_on_the_order_of_samples(sizes: tuple[int, int, int], random: Any) -> None:
    logits, target = drawn(sizes)
    order = list(range(len(target)))
    random.shuffle(order)
    for kind, scale in (("classes", None), ("regression", (-3.0, 3.0))):
        goal = target.astype(np.float64) if kind == "regression" else target
        shuffled = score(logits[order], goal[order], kind, scale)  # type: ignore[arg-type]  # a Literal in a loop
        assert shuffled == pytest.approx(score(logits, goal, kind, scale))  # type: ignore[arg-type]  # likewise


@given(SIZES, st.data())
def test_an_accuracy_is_not_the_mean_of_its_batches(sizes: tuple[int, int, int], data: st.DataObject) -> None:
    logits, target = drawn(sizes)
    cut = data.draw(st.integers(0, len(target)))
    parts = [(logits[:cut], target[:cut]), (logits[cut:], target[cut:])]
    hits = sum(score(x, t, "classes")["accuracy"] * len(t) for x, t in parts if len(t))
    assert score(logits, target, "classes")["accuracy"] == pytest.approx(hits / len(target))


def test_equal_logits_count_for_the_first_class() -> None:
    assert score(np.zeros((3, 3)), np.array([0, 1, 2]), "classes")["accuracy"] == pytest.approx(1 / 3)


def test_a_class_that_occurs_nowhere_does_not_lower_the_macro_f1() -> None:
    predicted = target = np.array([0, 1, 0])
    assert macro_f1(predicted, target, 5) == 1.0
    assert macro_f1(np.array([0, 4, 0]), target, 5) == pytest.approx(1 / 3)


def test_a_constant_has_no_correlation() -> None:
    assert pearson(np.ones(4), np.arange(4.0)) == 0.0


@pytest.mark.parametrize(
    ("metric", "scores", "first"),
    [("accuracy", [0.1, 0.5, 0.5, 0.2], 1), ("mae", [0.3, 0.1, 0.2, 0.1], 1), ("accuracy", [0.5], 0)],
)
def test_of_equally_good_epochs_the_first_counts(metric: str, scores: list[float], first: int) -> None:
    assert best(scores, metric) == first
    so_far, chosen = None, -1
    for epoch, value in enumerate(scores):
        if improves(value, so_far, metric):
            so_far, chosen = value, epoch
    assert chosen == first


def truth(val: int = 4) -> Truth:
    target = np.array([0, 1, 2, 0, 1])
    return Truth({"train": target, "val": target[:val], "test": target}, "classes", "accuracy")


def test_a_whole_split_is_scored_or_nothing() -> None:
    with pytest.raises(ValueError, match="test has 5 samples and 4 were scored"):
        truth().score("test", np.zeros((4, 3)))


def test_the_epoch_is_chosen_on_val_and_is_the_last_where_there_is_none() -> None:
    right, wrong = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[1, 2, 0, 1]]
    assert truth().best_epoch([wrong, right, right, wrong]) == 1
    assert truth(val=0).best_epoch([np.zeros((0, 3))] * 3) == 2


def test_scores_are_plain_numbers() -> None:
    found = score(np.eye(3, dtype=np.float32), np.arange(3), "classes")
    assert all(type(value) is float for value in found.values())
