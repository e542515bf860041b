"""Oracles O6 and O7: the rotations themselves, by hand and as properties over all dimensions."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

rollingq = importlib.import_module("bench.plugins.methods.rollingq")
plane, svd = rollingq.plane_rotation, rollingq.svd_rotation

COORDINATE = st.floats(-10, 10, allow_subnormal=False)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unit(v: Tensor) -> Tensor:
    return v.double() / v.double().norm()


def random_orthogonal(dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator)).Q


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two vectors of one dimension with directions at least 1e-3 away from opposite."""
    dim = draw(st.integers(2, 12))
    x, y = (vector(*draw(st.lists(COORDINATE, min_size=dim, max_size=dim))) for _ in range(2))
    assume(float(x.norm()) > 1e-3)
    assume(float(y.norm()) > 1e-3)
    assume(float((unit(x) + unit(y)).norm()) > 1e-3)
    return x, y


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def assert_rotation(r: Tensor, x: Tensor, y: Tensor, tolerance: float = 1e-10) -> None:
    """Orthogonal, of determinant one, taking the direction of x to that of y."""
    close(r.T @ r, torch.eye(len(x), dtype=r.dtype), tolerance)
    assert float(torch.linalg.det(r)) == pytest.approx(1, abs=tolerance)
    close(r @ unit(x).to(r.dtype), unit(y).to(r.dtype), tolerance)


def test_third_turns_by_hand():
    r = plane(vector(1, 0, 0), vector(1, 2, 2) / 3)
    close(r, torch.tensor([[1, -2, -2], [2, 2, -1], [2, -1, 2]], dtype=torch.float64) / 3)
    assert float(r.trace()) == pytest.approx(5 / 3)


@pytest.mark.parametrize("rotation", [plane, svd])
def test_in_two_dimensions_there_is_only_one_rotation(rotation):
    angle = 2 * math.pi / 3
    r = rotation(vector(1, 0), vector(math.cos(angle), math.sin(angle)))
    close(r, torch.tensor([[-0.5, -0.8660254037844386], [0.8660254037844386, -0.5]], dtype=torch.float64))


def test_two_turns_are_not_one():
    e = torch.eye(3, dtype=torch.float64)
    product = plane(e[1], e[2]) @ plane(e[0], e[1])
    close(product, torch.tensor([[0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64))
    direct = plane(e[0], e[2])
    close(direct, torch.tensor([[0, 0, -1], [0, 1, 0], [1, 0, 0]], dtype=torch.float64))
    close(product @ e[0], direct @ e[0])


@settings(deadline=None, max_examples=60)
@given(pairs(), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 100))
def test_the_plane_rotation_is_the_smallest(pair, a, b, seed):
    x, y = pair
    r, dim = plane(x, y), len(x)
    assert_rotation(r, x, y)
    close(plane(a * x, b * y), r)
    close(plane(y, x), r.T)
    cosine = float(unit(x) @ unit(y))
    assert float(r.trace()) == pytest.approx(dim - 2 + 2 * cosine, abs=1e-10)
    distance = float((r - torch.eye(dim, dtype=r.dtype)).square().sum())
    assert distance == pytest.approx(4 * (1 - cosine), abs=1e-10)
    q = random_orthogonal(dim, seed)[0]
    assert float((r @ q).norm()) == pytest.approx(1, abs=1e-10)
    plain = torch.linalg.qr(torch.stack([x, y], dim=1)).Q
    off = q - plain @ (plain.T @ q)
    if float(torch.linalg.svdvals(torch.stack([unit(x), unit(y)])).min()) > 1e-6:
        close(r @ off, off)
    turn = random_orthogonal(dim, seed + 1)
    close(plane(turn @ x, turn @ y), turn @ r @ turn.T)


@settings(deadline=None, max_examples=60)
@given(pairs())
def test_the_svd_rotation_is_a_rotation_that_reaches_its_target(pair):
    x, y = pair
    assert_rotation(svd(x, y), x, y)


@settings(deadline=None, max_examples=30)
@given(pairs())
def test_float32_loses_no_more_than_its_digits(pair):
    x, y = (v.float() for v in pair)
    assert_rotation(plane(x, y).float(), x, y, tolerance=1e-5)


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_the_same_vector_is_left_exactly_where_it_is(dim):
    x = torch.linspace(0.3, 2, dim, dtype=torch.float64)
    assert torch.equal(plane(x, x), torch.eye(dim, dtype=torch.float64))


def test_the_svd_rotation_is_no_identity_even_where_nothing_is_to_turn():
    x = torch.linspace(-1, 2, 16, dtype=torch.float64)
    assert float((svd(x, x) - torch.eye(16, dtype=torch.float64)).norm()) > 1


@pytest.mark.parametrize("dim", [2, 3, 20])
@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-7, 9.9e-7, 1.1e-6, 1e-5, 1e-4, 1e-2])
def test_close_to_the_antipode_it_stays_a_rotation(dim, angle):
    x = unit(torch.linspace(1, -0.7, dim, dtype=torch.float64))
    aside = torch.zeros(dim, dtype=torch.float64)
    aside[0], aside[-1] = x[-1], -x[0]
    y = -math.cos(angle) * x + math.sin(angle) * unit(aside - (aside @ x) * x)
    assert_rotation(plane(x, y), x, y, tolerance=1e-9)
    assert torch.equal(plane(x, y), plane(x, y))


def test_one_dimension_cannot_be_turned():
    with pytest.raises(ValueError, match="at least two dimensions"):
        plane(vector(2), vector(-1))
    with pytest.raises(ValueError, match="at least two dimensions"):
        svd(vector(2), vector(-1))


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_a_vector_without_direction_is_an_error(bad):
    with pytest.raises(ValueError, match="zero or not finite"):
        plane(vector(bad, 0), vector(1, 0))


def test_at_real_width_the_plane_rotation_turns_only_its_plane():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 768, dtype=torch.float64, generator=generator)
    r = plane(x, y)
    assert_rotation(r, x, y)
    v = torch.randn(768, dtype=torch.float64, generator=generator)
    plain = torch.linalg.qr(torch.stack([x, y], dim=1)).Q
    off = v - plain @ (plain.T @ v)
    close(r @ off, off)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.5, math.pi - 1e-9, math.pi])
def test_angles_are_exact_at_both_ends(angle):
    x, y = vector(1, 0), vector(math.cos(angle), math.sin(angle))
    assert rollingq.angle_degrees(x, y) == pytest.approx(math.degrees(angle), rel=1e-9, abs=1e-13)
