"""What groups tell of classes, by hand, and when a score is too good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.data.priors import Score, group_prior, score_by_group
from bench.report.ceilings import unimodal_scores
from bench.store import Store
from tests import stored


def test_a_group_that_has_one_class_tells_all_of_it() -> None:
    """Four groups of ten, two per class: one bit, and every guess right; shuffled, guesses are little over a half."""
    groups, classes = np.repeat(np.arange(4), 10), np.repeat([0, 1], 20)
    prior = group_prior(groups, classes)
    assert prior is not None
    assert prior.bits == pytest.approx(1.0)
    assert prior.accuracy == 1.0
    assert prior.shuffled_bits < 0.2
    assert 0.5 < prior.shuffled_accuracy < 0.75
    assert prior.p == pytest.approx(1 / 201)


def test_three_quarters_of_a_class_in_a_group_by_hand() -> None:
    """Two groups of 4 with 3:1 and 1:3: 1 - H(1/4) bits, three guesses of four right."""
    prior = group_prior(np.repeat(["a", "b"], 4), np.array([0, 0, 0, 1, 0, 1, 1, 1]))
    assert prior is not None
    assert prior.bits == pytest.approx(1 + 0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert prior.accuracy == 0.75


def test_groups_that_tell_nothing_are_within_the_shuffled() -> None:
    small = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        prior = group_prior(rng.integers(0, 30, 200), rng.integers(0, 5, 200))
        assert prior is not None
        small += prior.p < 0.05
    assert small <= 6


def test_without_groups_or_classes_there_is_no_prior() -> None:
    assert group_prior(np.arange(10), np.arange(10) % 2) is None  # each sample alone
    assert group_prior(np.zeros(10), np.arange(10) % 2) is None
    assert group_prior(np.arange(10) % 2, np.zeros(10, dtype=int)) is None


def test_the_group_alone_is_scored_where_train_knows_it() -> None:
    """Groups a and b with classes 0 and 1 in train; of test, a is right once in two, b once, c is not known."""
    train = (np.array(["a", "a", "b"]), np.array([0, 0, 1]))
    test = (np.array(["a", "a", "b", "c"]), np.array([0, 1, 1, 1]))
    score = score_by_group("test", train, test)
    assert score is not None
    assert (score.accuracy, score.samples) == (pytest.approx(2 / 3), 3)
    assert score_by_group("test", train, (np.array(["c"]), np.array([1]))) is None


@pytest.mark.parametrize(("hits", "samples", "high"), [(357, 357, True), (352, 357, True), (340, 357, False)])
def test_a_score_is_at_the_ceiling_if_its_interval_reaches_it(hits: int, samples: int, high: bool) -> None:
    """352 of 357 is 98.6 %, with an interval up to 99.5 %; 340 is 95.2 %, up to 97.2 %."""
    assert Score.of("audio", "test", hits, samples).at_ceiling == high


def test_stored_unimodal_trials_of_the_same_data_are_looked_at(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed, right in enumerate((20, 12)):
        stored.store_trial(store, stored.spec("unimodal", seed=seed), test=(1, right, 1))
    stored.store_trial(store, stored.spec("unimodal", fingerprint="0ther0ther0ther0"), test=(1, 20, 1))
    stored.store_trial(store, stored.spec("concat"), test=(1, 20, 1))
    found = sorted(unimodal_scores(store, "f1f1f1f1f1f1f1f1"), key=lambda score: score.predictor)
    assert [(s.predictor, s.accuracy, s.at_ceiling) for s in found] == [
        ("unimodal (fold 0, seed 0)", 1.0, True),
        ("unimodal (fold 0, seed 1)", 0.6, False),
    ]
