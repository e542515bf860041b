"""Oracles O1, O2, O4 and O5: where mean keys lie around a query, and where a rotation puts them."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

from bench.analysis.geometry import angles, geometry, imbalance_after, shown
from bench.api import AttentionSite, SiteSample, Tokens, attention_imbalance
from bench.layers import ClassTokenAttention

rollingq = importlib.import_module("bench.plugins.methods.rollingq")


def sample(query: list[list[float]], **keys: list[list[float]]) -> SiteSample:
    ones = {m: torch.ones(len(query)) for m in keys}
    return SiteSample(torch.tensor(query), {m: torch.tensor(k) for m, k in keys.items()}, ones, ones)


def o1() -> list[SiteSample]:
    """Mean keys of oracle O1: K^a = (2, 1), (1, 1) and K^v = (-1, 1), (0, 2), in two batches."""
    first = sample([[2.0, 0.0]], audio=[[2.0, 1.0]], visual=[[-1.0, 1.0]])
    return [first, sample([[2.0, 0.0]], audio=[[1.0, 1.0]], visual=[[0.0, 2.0]])]


def test_o1_by_hand():
    found = geometry(AttentionSite(2), o1())
    np.testing.assert_allclose(found.cosines["audio"], [0.894427, 0.707107], atol=1e-6)
    np.testing.assert_allclose(found.cosines["visual"], [-0.707107, 0], atol=1e-6)
    assert attention_imbalance(found.means) == pytest.approx(1.154320, abs=1e-6)
    np.testing.assert_allclose(found.radii["audio"], [math.sqrt(5), math.sqrt(2)], atol=1e-6)
    # E K^a = (1.5, 1), E K^v = (-0.5, 1.5)
    assert found.ray_cosines["audio"] - found.ray_cosines["visual"] == pytest.approx(1.148278, abs=1e-6)
    assert found.ray_radii == pytest.approx({"audio": math.sqrt(3.25), "visual": math.sqrt(2.5)})
    assert found.key_cosine == pytest.approx(0.75 / math.sqrt(3.25 * 2.5))
    # both clouds: distances 1/2 (audio) and 1/sqrt 2 (visual) from their means
    assert found.distance == pytest.approx(math.hypot(2, 0.5) / math.sqrt((0.25 + 0.5) / 2))
    assert (found.query_norm, found.turned) == pytest.approx((2, 0), abs=1e-6)


def test_keys_that_never_differ_have_no_distance():
    assert geometry(AttentionSite(2), [sample([[1.0, 0.0]], audio=[[1.0, 0.0]], visual=[[0.0, 1.0]])]).distance is None


def test_the_rotation_of_the_query_is_seen():
    site = AttentionSite(2)
    site.rotate(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    assert geometry(site, o1()).turned == pytest.approx(90, abs=1e-4)


def test_angles_are_degrees():
    np.testing.assert_allclose(angles(np.array([1.0000001, 0.5, 0.0, -1.0])), [0, 60, 90, 180], atol=1e-6)


def test_o4_the_sum_of_logits_is_the_length_times_the_cosine():
    """What the site shows of three tokens agrees with their scores: 5.0 = 3 / 2 |q| |k| cos."""
    attention = ClassTokenAttention(4).eval()
    keys = torch.tensor([[1.0, 0, 2, 1], [3, 1, 0, 0], [0, 2, 1, -1]])
    with torch.no_grad():
        for part in (attention.query, attention.key):
            part.weight.copy_(torch.eye(4))
        attention.class_token.copy_(torch.tensor([1.0, 2, 0, -1]))
        tokens = {"audio": Tokens(keys.unsqueeze(0), has_class_token=False)}
        with shown({"here": attention.site}) as seen:
            attention(tokens)
    (found,) = (geometry(attention.site, seen["here"]),)
    assert found.cosines["audio"][0] == pytest.approx(0.700140, abs=1e-6)
    assert found.radii["audio"][0] == pytest.approx(1.943651, abs=1e-6)
    assert found.query_norm == pytest.approx(2.449490, abs=1e-6)
    assert 3 / 2 * found.query_norm * found.radii["audio"][0] * found.cosines["audio"][0] == pytest.approx(5, abs=1e-5)
    assert attention.site.tap is None


def test_cosines_are_the_mean_over_heads():
    site = AttentionSite(4, heads=2)
    found = geometry(site, [sample([[1.0, 0, 0, 1]], audio=[[5.0, 0, 0, -1]], visual=[[0.0, 1, 0, 1]])])
    assert found.means == pytest.approx({"audio": 0.0, "visual": 0.5})


@pytest.mark.parametrize(
    ("gamma", "strength", "gap"),
    [(0.5, 0, 0), (0.5, 0.5, -0.257786), (0.5, 1, -0.402514), (0, 1, -0.856853), (-0.5, 1, -1.380268)],
)
def test_o5_the_gap_after_a_rotation(gamma, strength, gap):
    assert imbalance_after(strength, gamma, 1.0) == pytest.approx(gap, abs=1e-6)
    assert imbalance_after(strength / 2, gamma, 2.0) == pytest.approx(gap, abs=1e-6)
    assert imbalance_after(-strength, gamma, 1.0) == pytest.approx(-gap, abs=1e-6)


def test_o5_opposite_keys_have_no_anchor():
    assert imbalance_after(0.0, -1.0, 1.0) == 0


@pytest.mark.parametrize("rho", [0.0, 0.5, 2.0])
def test_the_predicted_gap_is_what_the_rotation_does(rho):
    """Constant mean keys, any width: rotating by RollingQ's own rotation gives the predicted AIR."""
    query, audio, visual = torch.randn(3, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    before = geometry(
        AttentionSite(12), [SiteSample(query[None], {"audio": audio[None], "visual": visual[None]}, {}, {})]
    )
    weights = rollingq.anchor_weights(before.means, rho)
    anchor = rollingq.anchor_direction({"audio": audio, "visual": visual}, weights)
    turned = rollingq.plane_rotation(query, anchor) @ query
    after = geometry(
        AttentionSite(12), [SiteSample(turned[None], {"audio": audio[None], "visual": visual[None]}, {}, {})]
    )
    expected = imbalance_after(attention_imbalance(before.means), before.key_cosine, rho)
    assert attention_imbalance(after.means) == pytest.approx(expected, abs=1e-10)
