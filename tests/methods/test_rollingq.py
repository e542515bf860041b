"""Oracles O1 to O5, O8 and O13 of RollingQ: every step by hand, and what a rotation does to a real model."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping

import pytest
import torch
from fakes import MODALITIES, TinyRun, means_of, strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bench.api import Action, EpochRecord, SiteMeans, SiteRecord, TaskSpec, attention_imbalance

rollingq = importlib.import_module("bench.plugins.methods.rollingq")

SITE = "attention.site"
TASK = TaskSpec(MODALITIES[:2], dict.fromkeys(MODALITIES[:2], 8), 3, 48)


class GivenMeans(TinyRun):
    """A real model whose measurement is replaced by known queries and mean keys [sample, dim]."""

    def __init__(self, query: Tensor, keys: Mapping[str, Tensor]) -> None:
        super().__init__("vanilla_mt", len(keys))
        self.site = self.model.fusion.sites()[SITE]
        self.site.rotation = torch.eye(query.shape[1], dtype=torch.float64)
        self.query, self.keys = query, keys

    def site_means(self, site: str) -> SiteMeans:
        return means_of(self.site(self.query), self.keys)


def two_samples() -> GivenMeans:
    """O1: two samples in the plane, mean keys as the specification averages them."""
    audio = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    visual = torch.tensor([[-1.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    return GivenMeans(torch.tensor([[2.0, 0.0]] * 2, dtype=torch.float64), {"audio": audio, "visual": visual})


def four_dimensions() -> GivenMeans:
    """O2: one sample in four dimensions."""
    keys = {"audio": torch.tensor([[4.0, 3, 0, 0]]).double(), "visual": torch.tensor([[0.0, 3, 4, 0]]).double()}
    return GivenMeans(torch.tensor([[3.0, 0, 0, 0]]).double(), keys)


def rotate(run: TinyRun, rho: float, rotation: str = "plane", anchor: str = "normalised") -> None:
    values = {"site": SITE, "rho": rho, "rotation": rotation, "anchor": anchor, "air": "dataset"}
    strategy("rollingq", run.task).apply(run, Action("rollingq", "rotate", values))


def air(run: TinyRun) -> float:
    return attention_imbalance(run.site_means(SITE).cosines)


def record(
    cosines: Mapping[str, float], last_batch: Mapping[str, float] | None = None, num_rotations: int = 0
) -> SiteRecord:
    same = dict.fromkeys(cosines, 0.5)
    return SiteRecord(cosines, same, same, same, 0.0, 1.0, num_rotations, last_batch or cosines)


def history(**sites: SiteRecord) -> list[EpochRecord]:
    old = EpochRecord(0, {"joint": 1.0}, 0.1, {"one": record({"audio": 1.0, "visual": -1.0})})
    return [old, EpochRecord(1, {"joint": 1.0}, 0.1, sites)]


ROTATING = {"audio": 0.4, "visual": -0.2}


def decide(sites: Mapping[str, SiteRecord], **values: object) -> Action | None:
    return strategy("rollingq", TinyRun("vanilla_mt").task, **values).decide(history(**sites))


@pytest.mark.parametrize(
    ("x", "alpha"),
    [
        (-2.0, 0.982013790),
        (-1.0, 0.880797078),
        (-0.5, 0.731058579),
        (-0.1, 0.549833997),
        (0.0, 0.5),
        (0.1, 0.450166003),
        (0.5, 0.268941421),
        (1.0, 0.119202922),
        (2.0, 0.017986210),
    ],
)
def test_alpha_from_rho_times_air(x, alpha):
    weights = rollingq.anchor_weights({"audio": x / 2, "visual": -x / 2}, 1.0)
    assert weights["audio"] == pytest.approx(alpha, abs=1e-9)
    assert weights["audio"] + weights["visual"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("cosines", "rho", "expected"),
    [
        ((0.3, -0.2), 1.7, (0.154465, 0.845535)),
        ((0.3, -0.1), 1.7, (0.204240, 0.795760)),
        ((0.3, -0.1, 0.1), 1.7, (0.145559, 0.567126, 0.287315)),
    ],
)
def test_alpha_by_hand_for_two_and_three_modalities(cosines, rho, expected):
    weights = rollingq.anchor_weights(dict(zip(MODALITIES, cosines, strict=False)), rho)
    assert tuple(weights.values()) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2), st.floats(0, 500))
def test_for_two_modalities_alpha_is_the_paper_s(cosines, rho):
    a, v = cosines
    weights = rollingq.anchor_weights({"audio": a, "visual": v}, rho)
    assert weights["audio"] == pytest.approx(0.5 * (1 + math.tanh(-rho * (a - v))), abs=1e-12)
    swapped = rollingq.anchor_weights({"visual": v, "audio": a}, rho)
    assert swapped == weights


def test_air_is_the_mean_of_cosines_and_not_a_cosine_of_means():
    run = two_samples()
    means = run.site_means(SITE)
    assert air(run) == pytest.approx(1.154320, abs=1e-6)
    of_means = [float(F.cosine_similarity(means.query, k, dim=0)) for k in means.keys.values()]
    assert of_means[0] - of_means[1] == pytest.approx(1.148278, abs=1e-6)


@pytest.mark.parametrize("rotation", ["plane", "svd"])
@pytest.mark.parametrize(
    ("rho", "alpha", "turned", "degrees", "cosine", "sine", "after"),
    [
        (0.0, 0.500000, (0.649073, 1.891746), 71.0625, 0.324536, 0.945873, 0.113186),
        (0.5, 0.239701, (-0.095845, 1.997702), 92.7468, -0.047922, 0.998851, -0.331393),
        (1.0, 0.090410, (-0.453172, 1.947982), 103.0962, -0.226586, 0.973991, -0.530758),
        (5.0, 0.000010, (-0.632438, 1.897373), 108.4344, -0.316219, 0.948686, -0.627228),
    ],
)
def test_every_step_in_the_plane(rotation, rho, alpha, turned, degrees, cosine, sine, after):
    run = two_samples()
    rotate(run, rho, rotation)
    assert run.logged["rollingq/alpha/audio"] == [pytest.approx(alpha, abs=1e-6)]
    assert run.logged["rollingq/air_before"] == [pytest.approx(1.154320, abs=1e-6)]
    assert run.logged["rollingq/angle_degrees"] == [pytest.approx(degrees, abs=1e-4)]
    expected = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    torch.testing.assert_close(run.site.rotation, expected, atol=1e-6, rtol=0)
    query = run.site_means(SITE).query
    torch.testing.assert_close(query, torch.tensor(turned, dtype=torch.float64), atol=2e-6, rtol=0)
    assert air(run) == pytest.approx(after, abs=1e-6)
    assert int(run.site.num_rotations) == 1


@pytest.mark.parametrize(("rho", "turned"), [(0.0, (0.742781, 1.856953)), (1.0, (-0.428603, 1.953535))])
def test_the_raw_anchor_weighs_keys_by_their_norms(rho, turned):
    run = two_samples()
    rotate(run, rho, anchor="raw")
    query = run.site_means(SITE).query
    torch.testing.assert_close(query, torch.tensor(turned, dtype=torch.float64), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("rho", "alpha", "turned", "first_row", "after"),
    [
        (0.0, 0.5, (1.455214, 2.182821, 1.455214, 0), (0.485071, -0.727607, -0.485071, 0), 0.0),
        (1.0, 0.167982, (0.444912, 1.986433, 2.203665, 0), (0.148304, -0.662144, -0.734555, 0), -0.469001),
    ],
)
def test_every_step_in_four_dimensions(rho, alpha, turned, first_row, after):
    run = four_dimensions()
    assert air(run) == pytest.approx(0.8)
    rotate(run, rho)
    assert run.logged["rollingq/alpha/audio"] == [pytest.approx(alpha, abs=1e-6)]
    query = run.site_means(SITE).query
    torch.testing.assert_close(query, torch.tensor(turned, dtype=torch.float64), atol=2e-6, rtol=0)
    row = torch.tensor(first_row, dtype=torch.float64)
    torch.testing.assert_close(run.site.rotation[0], row, atol=1e-6, rtol=0)
    assert air(run) == pytest.approx(after, abs=1e-6)
    if rho == 0:
        rows = [[0.727607, 0.643511, -0.237659, 0], [0.485071, -0.237659, 0.841560, 0], [0, 0, 0, 1]]
        torch.testing.assert_close(run.site.rotation[1:], torch.tensor(rows).double(), atol=1e-6, rtol=0)
        assert run.logged["rollingq/angle_degrees"] == [pytest.approx(60.9829, abs=1e-4)]


def test_the_sum_of_logits_is_what_the_cosine_says():
    q = torch.tensor([1.0, 2, 0, -1])
    keys = torch.tensor([[1.0, 0, 2, 1], [3, 1, 0, 0], [0, 2, 1, -1]])
    means = means_of(q.unsqueeze(0), {"audio": keys.mean(dim=0, keepdim=True)})
    assert means.cosines["audio"] == pytest.approx(0.700140, abs=1e-6)
    assert means.query_norm == pytest.approx(2.449490, abs=1e-6)
    norm = float(means.keys["audio"].norm())
    assert norm == pytest.approx(1.943651, abs=1e-6)
    total = float((keys @ q).sum() / 2)
    assert total == pytest.approx(5.0)
    assert total == pytest.approx(3 / 2 * means.query_norm * norm * means.cosines["audio"])


@pytest.mark.parametrize(
    ("gamma", "rho_air", "norm", "after"),
    [
        (0.5, 0.0, None, (0.866025, 0.866025)),
        (0.5, 0.5, 0.896319, (0.707862, 0.965649)),
        (0.5, 1.0, 0.946048, (0.591515, 0.994029)),
        (0.0, 1.0, None, None),
        (-0.5, 1.0, None, None),
    ],
)
def test_cosines_after_a_rotation(gamma, rho_air, norm, after):
    keys = {"audio": torch.tensor([1.0, 0, 0]), "visual": torch.tensor([gamma, math.sqrt(1 - gamma**2), 0])}
    weights = rollingq.anchor_weights({"audio": rho_air / 2, "visual": -rho_air / 2}, 1.0)
    anchor = rollingq.anchor_direction(keys, weights)
    found = [float(anchor @ k.double()) for k in keys.values()]
    total = sum(w * k for w, k in zip(weights.values(), keys.values(), strict=True)).norm()
    expected_gap = -math.tanh(rho_air) * (1 - gamma) / float(total)
    assert found[0] - found[1] == pytest.approx(expected_gap, abs=1e-6)
    if norm is not None:
        assert float(total) == pytest.approx(norm, abs=1e-6)
    if after is not None:
        assert found == pytest.approx(after, abs=1e-6)
    if gamma == 0.0:
        assert expected_gap == pytest.approx(-0.856853, abs=1e-6)
    if gamma == -0.5:
        assert expected_gap == pytest.approx(-1.380268, abs=1e-6)


@pytest.mark.parametrize("anchor", ["normalised", "raw"])
def test_the_anchor_does_not_depend_on_the_order_of_modalities(anchor):
    keys = {m: torch.randn(6, generator=torch.Generator().manual_seed(i)) for i, m in enumerate(MODALITIES)}
    weights = rollingq.anchor_weights({"audio": 0.4, "visual": -0.1, "text": 0.2}, 1.3)
    there = rollingq.anchor_direction(keys, weights, anchor)
    back = rollingq.anchor_direction(dict(reversed(keys.items())), weights, anchor)
    torch.testing.assert_close(there, back)


def test_scaling_the_keys_of_a_modality_changes_only_the_raw_anchor():
    keys = {"audio": torch.tensor([1.0, 2.0]), "visual": torch.tensor([-1.0, 1.0])}
    scaled = keys | {"audio": 3 * keys["audio"]}
    weights = {"audio": 0.4, "visual": 0.6}
    torch.testing.assert_close(rollingq.anchor_direction(scaled, weights), rollingq.anchor_direction(keys, weights))
    raw = [rollingq.anchor_direction(k, weights, "raw") for k in (keys, scaled)]
    assert not torch.allclose(*raw)


def test_below_beta_and_at_the_limit_nothing_is_decided():
    reached = record(ROTATING)  # AIR is 0.6 up to rounding
    assert decide({"one": reached}, beta=0.59) is not None
    assert decide({"one": reached}, beta=0.61) is None
    assert decide({"one": reached}, max_rotations=0) is None
    assert decide({"one": record(ROTATING, num_rotations=1)}) is None
    assert decide({"one": record(ROTATING, num_rotations=2)}, max_rotations=3) is not None
    assert decide({}) is None


def test_the_trigger_is_reached_at_beta_and_for_either_sign():
    at = record({"audio": -0.25, "visual": 0.25})
    assert decide({"one": at}, beta=0.5) is not None
    assert decide({"one": at}, beta=0.5, preset="released") is None
    assert decide({"one": at}, beta=0.49, preset="released") is not None
    assert decide({"one": record({"audio": 0.1, "visual": 0.1})}, beta=0.0) is not None


def test_three_modalities_trigger_by_their_range():
    three = record({"audio": 0.1, "visual": 0.5, "text": -0.25})
    assert decide({"one": three}, beta=0.75) is not None
    assert decide({"one": three}, beta=0.76) is None


def test_an_imbalance_that_is_no_number_decides_nothing():
    assert decide({"one": record({"audio": math.nan, "visual": 0.1})}, beta=0.0) is None


def test_of_several_sites_the_first_that_may_is_rotated():
    quiet, spent, ready = record({"audio": 0.0, "visual": 0.0}), record(ROTATING, num_rotations=1), record(ROTATING)
    action = decide({"one": quiet, "two": spent, "three": ready, "four": ready}, progressive=False)
    assert action is not None
    assert action.values["site"] == "three"


def test_what_decided_is_no_part_of_the_action():
    sites = {"one": record(ROTATING)}
    keys = {decide(sites, beta=b, max_rotations=n).key() for b in (0.1, 0.3, 0.5) for n in (1, 3)}
    assert len(keys) == 1
    others = [decide(sites, rho=2.0), decide(sites, rotation="svd"), decide(sites, anchor="raw")]
    assert len(keys | {a.key() for a in others} | {decide(sites, air="last_batch").key()}) == 5


def test_the_action_is_plain_and_survives_json():
    action = decide({"one": record(ROTATING, {"audio": 0.9, "visual": -0.2})}, air="last_batch")
    assert action is not None
    assert json.loads(json.dumps(action.values)) == action.values
    assert action.values["cosines"] == {"audio": 0.9, "visual": -0.2}


def test_the_last_batch_decides_and_weighs_where_it_is_asked_to():
    calm_there = record(ROTATING, {"audio": 0.0, "visual": 0.1})
    assert decide({"one": calm_there}, air="last_batch") is None
    run = two_samples()
    action = decide({SITE: record(ROTATING, {"audio": 0.25, "visual": -0.25})}, air="last_batch", rho=2.0)
    assert action is not None
    strategy("rollingq", run.task).apply(run, action)
    assert run.logged["rollingq/alpha/audio"] == [pytest.approx(0.119202922)]
    assert run.logged["rollingq/air_before"] == [0.5]


def test_released_is_svd_on_the_last_batch():
    sites = {"one": record(ROTATING)}
    assert decide(sites, preset="released") == decide(sites, rotation="svd", air="last_batch")


def test_the_action_and_not_the_settings_determines_the_rotation():
    one, other = two_samples(), two_samples()
    action = decide({SITE: record(ROTATING)}, rho=0.5)
    assert action is not None
    strategy("rollingq", one.task, rho=5.0, anchor="raw").apply(one, action)
    strategy("rollingq", other.task, rho=0.5).apply(other, action)
    assert torch.equal(one.site.rotation, other.site.rotation)


def test_a_second_rotation_goes_on_top_of_the_first():
    run = two_samples()
    rotate(run, 1.0)
    first = run.site.rotation.clone()
    before = run.site_means(SITE)
    rotate(run, 1.0)
    turn = rollingq.plane_rotation(before.query, run.site_means(SITE).query)
    torch.testing.assert_close(run.site.rotation, turn @ first)
    assert int(run.site.num_rotations) == 2
    assert run.logged["rollingq/air_before"][1] == pytest.approx(-0.530758, abs=1e-6)


def test_wherever_the_query_points_it_ends_at_the_same_anchor():
    ends = []
    for angle in (0.0, 1.0, 2.5):
        run = two_samples()
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
        run.query = run.query @ turn.T
        rotate(run, 0.0)
        ends.append(run.site_means(SITE).query)
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])


@pytest.mark.parametrize(
    ("query", "audio", "visual"),
    [
        ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)),
        ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0)),
        ((0.0, 1.0), (1.0, 0.0), (-1.0, 0.0)),
        ((0.0, 1.0), (1.0, 0.0), (-1.0, 1e-7)),
        ((math.nan, 1.0), (1.0, 0.0), (0.0, 1.0)),
    ],
)
def test_without_a_direction_the_model_is_left_alone_and_it_is_said(query, audio, visual):
    keys = {"audio": torch.tensor([audio]).double(), "visual": torch.tensor([visual]).double()}
    run = GivenMeans(torch.tensor([query]).double(), keys)
    rotate(run, 0.0)
    assert run.logged["rollingq/skipped"] == [1.0]
    assert "rollingq/angle_degrees" not in run.logged
    assert torch.equal(run.site.rotation, torch.eye(2, dtype=torch.float64))
    assert int(run.site.num_rotations) == 0


def trained(modalities: int = 2) -> TinyRun:
    """A small transformer after two epochs, in evaluation mode."""
    run = TinyRun("vanilla_mt", modalities)
    run.train()
    run.model.eval()
    return run


def logits(run: TinyRun) -> Tensor:
    with run.quiet():
        return run.model(run.batch(torch.arange(48)).inputs).logits


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_in_a_model_the_gap_becomes_what_the_formula_says(modalities, rho):
    run = trained(modalities)
    before = run.site_means(SITE)
    loss_before, unrotated = run.task.loss(logits(run), run.target), logits(run)
    rotate(run, rho)
    after = run.site_means(SITE)
    units = {m: F.normalize(k, dim=0) for m, k in after.keys.items()}
    for m, key in before.keys.items():
        torch.testing.assert_close(after.keys[m], key)
    assert after.query_norm == pytest.approx(before.query_norm, rel=1e-6)
    cosines = {m: float(F.normalize(after.query, dim=0) @ u) for m, u in units.items()}
    weights = rollingq.anchor_weights(before.cosines, rho)
    total = torch.stack([w * units[m] for m, w in weights.items()]).sum(dim=0)
    expected = {m: float(total @ u / total.norm()) for m, u in units.items()}
    assert cosines == pytest.approx(expected, abs=1e-5)
    if modalities == 2:
        gamma = float(units["audio"] @ units["visual"])
        gap = -math.tanh(rho * attention_imbalance(before.cosines)) * (1 - gamma) / float(total.norm())
        assert cosines["audio"] - cosines["visual"] == pytest.approx(gap, abs=1e-5)
    assert not torch.allclose(logits(run), unrotated, atol=1e-6)
    assert torch.isfinite(run.task.loss(logits(run), run.target))
    assert torch.isfinite(loss_before)


def test_both_rotations_give_the_same_logits_where_all_samples_share_a_query():
    one, other = trained(), trained()
    assert torch.equal(logits(one), logits(other))
    rotate(one, 1.0, "plane")
    rotate(other, 1.0, "svd")
    assert not torch.allclose(one.model.fusion.sites()[SITE].rotation, other.model.fusion.sites()[SITE].rotation)
    torch.testing.assert_close(logits(one), logits(other), atol=1e-5, rtol=0)


def test_a_saved_model_stays_rotated():
    run, other = trained(), TinyRun("vanilla_mt")
    unrotated = logits(run)
    rotate(run, 1.0)
    other.model.load_state_dict(run.model.state_dict())
    assert torch.equal(logits(other), logits(run))
    assert not torch.allclose(logits(other), unrotated, atol=1e-6)
    assert int(other.model.fusion.sites()[SITE].num_rotations) == 1


def test_the_rotation_can_be_folded_into_the_query_projection():
    run = trained()
    rotate(run, 1.0)
    rotated = logits(run)
    site = run.model.fusion.sites()[SITE]
    query = run.model.fusion.attention.query
    with torch.no_grad():
        query.weight.copy_(site.rotation @ query.weight)
        query.bias.copy_(site.rotation @ query.bias)
        site.rotation.copy_(torch.eye(site.dim))
    torch.testing.assert_close(logits(run), rotated, atol=1e-5, rtol=0)


def test_training_goes_on_after_a_rotation():
    run = trained()
    rotate(run, 1.0)
    losses = run.train()
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


ADAPTIVE = {"cooldown": 2, "release": 0.5, "settle": 4}


def due(*course: tuple[float, int], **given: float) -> bool:
    """Whether to rotate after epochs with these AIRs, each with the number of rotations before it."""
    cosines = [{"audio": value / 2, "visual": -value / 2} for value, _ in course]
    return rollingq.rotation_is_due(cosines, [count for _, count in course], 0.4, **{**ADAPTIVE, **given})


def rotations_of(curve: list[float], rebound: float = -0.5) -> list[int]:
    """Epochs after which the adaptive schedule rotates where AIR follows a curve that starts anew each time.

    Every rotation hands the lead over (AIR x rebound), after which the curve goes on from its first value.
    """
    course, rotated, position = [(curve[0], 0)], [], 0
    for epoch in range(len(curve) * 3):
        count = len(rotated)
        if due(*course):
            rotated.append(epoch)
            course.append((course[-1][0] * rebound, count + 1))
            position = -1
        else:
            position = min(position + 1, len(curve) - 1)
            course.append((curve[position], count))
    return rotated


def test_adaptive_waits_for_beta_however_long():
    assert not due((0.1, 0), (0.2, 0), (0.39, 0))
    assert due((0.1, 0), (0.2, 0), (0.41, 0))
    assert due((-0.41, 0))
    assert rotations_of([0.1] * 9) == []


def test_adaptive_takes_turning_over_for_no_relapse():
    """A rotation by rho > 0 hands the lead to the other modality, which is what it is for."""
    assert not due((0.9, 0), (-0.6, 1), (-0.6, 1), (-0.6, 1), (-0.5, 1))
    assert due((0.9, 0), (-0.6, 1), (-0.6, 1), (0.6, 1))


def test_adaptive_takes_a_lead_that_grows_out_of_balance_for_an_imbalance():
    assert not due((0.9, 0), (-0.3, 1), (-0.3, 1), (-0.6, 1))
    assert due((0.9, 0), (-0.3, 1), (-0.1, 1), (-0.6, 1))
    assert not due((0.9, 0), (-0.3, 1), (-0.1, 1), (-0.6, 1), release=0.0)


def test_adaptive_cools_down_after_every_rotation():
    assert not due((0.9, 0), (0.8, 1))
    assert due((0.9, 0), (0.8, 1), (0.8, 1))
    assert due((0.9, 0), (0.8, 1), cooldown=1)
    assert not due((0.9, 0), (0.8, 1), (0.8, 1), (0.8, 2))
    assert not due((0.9, 0), (0.8, 1), (0.8, 1), (0.8, 1), cooldown=4)


def test_adaptive_ends_when_air_stays_small():
    calm = [(0.1, 1)] * 4
    assert not due((0.9, 0), *calm, (0.9, 1))
    assert due((0.9, 0), *calm[:3], (0.9, 1))
    assert due((0.9, 0), *calm, (0.9, 1), settle=5)
    assert due(*[(0.1, 0)] * 9, (0.9, 0))  # before the first rotation nothing has settled
    assert due((0.9, 0), (0.1, 1), (0.3, 1), (0.1, 1), (0.1, 1), (0.1, 1), (0.9, 1))  # not in a row


def test_adaptive_rotates_as_often_as_the_query_relapses():
    assert rotations_of([0.1, 0.3, 0.5, 0.7, 0.9]) == [2, 6, 10, 14]
    assert rotations_of([0.1, 0.1, 0.1, 0.1, 0.1, 0.5]) == [5]  # by then it has settled


def test_adaptive_follows_the_modality_that_leads_where_there_are_three():
    names = ("audio", "visual", "text")
    before, same, other = ((0.8, 0.1, 0.0), (0.7, 0.1, 0.0), (0.1, 0.8, 0.0))

    def with_last(last: tuple[float, ...]) -> bool:
        course = [dict(zip(names, values, strict=True)) for values in (before, other, last)]
        return rollingq.rotation_is_due(course, [0, 1, 1], 0.4, **ADAPTIVE)

    assert with_last(same)
    assert not with_last(other)


def course_of(*airs: tuple[float, int], num_epochs: int = 30) -> list[EpochRecord]:
    """Records of one site with these AIRs and numbers of rotations."""
    sites = [record({"audio": a / 2, "visual": -a / 2}, num_rotations=n) for a, n in airs]
    return [EpochRecord(e, {}, 0.1, {"one": site}, num_epochs=num_epochs) for e, site in enumerate(sites)]


def test_the_adaptive_schedule_decides_by_the_records_and_not_by_the_limit():
    adaptive = strategy("rollingq", TinyRun("vanilla_mt").task, schedule="adaptive", max_rotations=1)
    fixed = strategy("rollingq", TinyRun("vanilla_mt").task, max_rotations=1)
    relapse = course_of((0.9, 0), (-0.5, 1), (0.8, 1))
    assert fixed.decide(relapse) is None
    action = adaptive.decide(relapse)
    assert action == fixed.decide(course_of((0.9, 0)))  # the same act: who decided is no part of it
    assert adaptive.decide(relapse) == action
    assert adaptive.decide(relapse[:2]) is None


def test_an_adaptive_rotation_leaves_epochs_to_learn_from_it():
    adaptive = strategy("rollingq", TinyRun("vanilla_mt").task, schedule="adaptive", cooldown=3)
    assert adaptive.decide(course_of((0.1, 0), (0.9, 0), num_epochs=5)) is not None
    assert adaptive.decide(course_of((0.1, 0), (0.9, 0), num_epochs=4)) is None
    assert adaptive.decide(course_of((0.9, 0), num_epochs=0)) is not None  # not known


def test_released_is_never_adaptive():
    released = strategy("rollingq", TinyRun("vanilla_mt").task, preset="released", schedule="adaptive")
    assert released.decide(course_of((0.9, 0), (-0.5, 1), (0.8, 1))) is None


@settings(deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=40), st.integers(1, 6))
def test_an_adaptive_schedule_never_costs_more_passes_than_it_says(airs, cooldown):
    plugin = rollingq.RollingQ
    chosen = plugin.Settings(schedule="adaptive", cooldown=cooldown, beta=0.0)
    adaptive, count, given_so_far = plugin(chosen, TASK), 0, []
    for epoch, air_now in enumerate(airs[:-1] or airs):
        given_so_far.append((air_now, count))
        history_now = course_of(*given_so_far, num_epochs=len(airs))
        count += epoch + 1 < len(airs) and adaptive.decide(history_now) is not None
    assert count <= plugin.extra_passes(chosen, len(airs)).forwards
