"""How well a score separates known samples from others: by hand, against scikit-learn, and where there is nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bench.analysis.detection import confidence, separation


def test_by_hand():
    found = separation(np.array([3.0, 2.0, 2.0, 1.0]), np.array([2.0, 0.0]))
    # 3 > both, each 2 ties one and beats one, 1 beats one: (2 + 1.5 + 1.5 + 1) / 8
    assert found.auroc == pytest.approx(0.75)
    # thresholds 3, 2, 1: precision 1, 3/4, 4/5 with gains in recall 1/4, 1/2, 1/4
    assert found.aupr_in == pytest.approx(1 / 4 + 3 / 8 + 1 / 5)
    # the others first: 0 alone, then three of score 1 or 2 ... precision 1 and 2/5 with gains 1/2 and 1/2
    assert found.aupr_out == pytest.approx(1 / 2 + 1 / 5)
    # 95 % of four samples are four: the threshold is 1
    assert found.fpr95 == pytest.approx(0.5)


@pytest.mark.parametrize("digits", [1, 8], ids=["ties", "no ties"])
@pytest.mark.parametrize("sizes", [(300, 200), (40, 500), (20, 20)])
def test_agrees_with_scikit_learn(sizes, digits):
    rng = np.random.default_rng(sizes[0] + digits)
    known, other = (rng.normal(shift, 1, size).round(digits) for shift, size in zip((0.7, 0.0), sizes, strict=True))
    found = separation(known, other)
    score = np.concatenate([known, other])
    label = np.concatenate([np.ones(len(known)), np.zeros(len(other))])
    assert found.auroc == pytest.approx(roc_auc_score(label, score))
    assert found.aupr_in == pytest.approx(average_precision_score(label, score))
    assert found.aupr_out == pytest.approx(average_precision_score(1 - label, -score))
    false, true, _ = roc_curve(label, score, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(false[np.argmax(true >= 0.95)])


def test_scores_by_hand():
    found = confidence(np.log(np.array([[0.5, 0.25, 0.25], [2.0, 2.0, 4.0]])))
    assert tuple(found) == ("msp", "max_logit", "energy", "entropy")
    np.testing.assert_allclose(found["msp"], [0.5, 0.5])
    np.testing.assert_allclose(found["max_logit"], np.log([0.5, 4.0]))
    np.testing.assert_allclose(found["energy"], np.log([1.0, 8.0]), atol=1e-12)
    np.testing.assert_allclose(found["entropy"], [-1.5 * math.log(2)] * 2)


def test_large_logits_keep_their_order():
    found = confidence(np.array([[1e4, 0.0], [2e4, 0.0]], dtype=np.float32))
    assert all(np.isfinite(values).all() for values in found.values())
    assert found["energy"][0] < found["energy"][1]


def test_the_interval_covers_one_half_where_nothing_differs():
    covered = 0
    for seed in range(200):
        known, other = np.random.default_rng(seed).normal(size=(2, 80))
        found = separation(known, other)
        covered += found.low <= 0.5 <= found.high
    assert 180 <= covered <= 198


def test_perfect_and_hopeless_separation_have_no_spread():
    high, low = np.array([3.0, 4.0, 5.0]), np.array([0.0, 1.0])
    best, worst = separation(high, low), separation(low, high)
    assert (best.auroc, best.low, best.high, best.fpr95, best.aupr_in, best.aupr_out) == (1, 1, 1, 0, 1, 1)
    assert (worst.auroc, worst.fpr95) == (0, 1)


def test_a_single_sample_is_refused():
    with pytest.raises(ValueError, match="two samples on both sides: 1 and 3"):
        separation(np.ones(1), np.ones(3))
