"""The ensemble's probabilities are the mean of its parts'."""

from __future__ import annotations

import numpy as np
import pytest

from bench import plugins


@pytest.fixture
def ensemble():
    return plugins.load("methods", "ensemble").plugin()


def test_is_computed_from_every_modality_alone(ensemble):
    assert ensemble.parts(("audio", "visual")) == ["unimodal:modality=audio", "unimodal:modality=visual"]


def test_two_certain_parts_against_one_another_by_hand(ensemble):
    quarter = np.log([[1.0, 3.0]]).astype(np.float32)  # probabilities 1/4, 3/4
    half = np.zeros((1, 2), dtype=np.float32)  # 1/2, 1/2
    assert np.exp(ensemble.combine([quarter, half], "classes")) == pytest.approx(np.array([[0.375, 0.625]]))


@pytest.mark.parametrize("count", [2, 3])
def test_a_softmax_of_the_result_is_the_mean_probability(ensemble, count):
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(7, 4)).astype(np.float32) for _ in range(count)]
    probabilities = [np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in logits]
    combined = ensemble.combine(logits, "classes")
    assert combined.dtype == np.float32
    assert np.exp(combined) == pytest.approx(np.mean(probabilities, axis=0), abs=1e-6)
    assert np.exp(combined).sum(axis=1) == pytest.approx(np.ones(7), abs=1e-6)


def test_shifting_the_logits_of_one_part_changes_nothing(ensemble):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 5, 3))
    shifted = ensemble.combine([one + 50, other], "classes")
    assert shifted == pytest.approx(ensemble.combine([one, other], "classes"), abs=1e-5)


def test_logits_far_beyond_the_range_of_exp_stay_finite(ensemble):
    far = np.array([[2000.0, -2000.0]], dtype=np.float32)
    combined = ensemble.combine([far, far], "classes")
    assert combined == pytest.approx(np.array([[0.0, -4000.0]]))


def test_regression_takes_the_mean(ensemble):
    parts = [np.array([[1.0], [2.0]]), np.array([[3.0], [-2.0]])]
    assert ensemble.combine(parts, "regression") == pytest.approx(np.array([[2.0], [0.0]]))
