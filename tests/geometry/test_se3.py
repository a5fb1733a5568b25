"""Rigid motions: values against independent references, and gradients where they usually break."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xreg.errors import GeometryError
from xreg.geometry import se3

ANGLES = [0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-3, 0.3, 0.4999, 0.5001, 1.0, 2.5, 3.1, 3.14159, math.pi - 1e-7]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


def tangents(angle: float, dtype: torch.dtype, count: int = 64, reach: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(angle * 1e6) % 1000)
    axis = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    v = reach * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return torch.cat([angle * axis, v], dim=-1).to(dtype)


def series_exp(xi: torch.Tensor) -> torch.Tensor:
    """exp of the 4×4 tangent matrix by scaling and squaring of a long series: nothing shared with se3."""
    matrix = torch.zeros(*xi.shape[:-1], 4, 4, dtype=torch.float64)
    matrix[..., :3, :3] = se3.hat(xi[..., :3].double())
    matrix[..., :3, 3] = xi[..., 3:].double()
    matrix = matrix / 2**6
    term = total = torch.eye(4, dtype=torch.float64).expand_as(matrix)
    for k in range(1, 20):
        term = term @ matrix / k
        total = total + term
    for _ in range(6):
        total = total @ total
    return total


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("angle", ANGLES)
def test_exp_and_log_are_right_at_every_angle(angle: float, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and angle > 3.1415:
        angle = math.pi - 1e-4  # float32 cannot tell closer angles from π
    xi = tangents(angle, dtype)
    motion = se3.exp(xi)
    tolerance = TOLERANCE[dtype]
    reference = series_exp(xi)
    torch.testing.assert_close(
        motion[:, :3, :3], reference[:, :3, :3].to(dtype), atol=tolerance, rtol=0, check_stride=False
    )
    torch.testing.assert_close(motion[:, :3, 3], reference[:, :3, 3].to(dtype), atol=300 * tolerance, rtol=0)
    back = se3.log(motion)
    # Near π the angle is the acute part: a rounding of R by ε turns the axis by ε, never by its root.
    torch.testing.assert_close(back[:, :3], xi[:, :3], atol=10 * tolerance, rtol=0)
    torch.testing.assert_close(back[:, 3:], xi[:, 3:], atol=1000 * tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -2, 3)])
def test_log_at_exactly_pi_returns_one_of_the_two_axes(axis: tuple[int, ...], dtype: torch.dtype) -> None:
    n = torch.tensor(axis, dtype=torch.float64)
    n = n / n.norm()
    rotation = (2 * torch.outer(n, n) - torch.eye(3, dtype=torch.float64)).to(dtype)
    motion = se3.from_rt(rotation, torch.tensor([10.0, 20.0, 30.0], dtype=dtype)).requires_grad_()
    xi = se3.log(motion)
    assert abs(float(xi[:3].detach().norm()) - math.pi) < 10 * TOLERANCE[dtype]
    torch.testing.assert_close(se3.exp(xi), motion, atol=100 * TOLERANCE[dtype], rtol=0)
    (gradient,) = torch.autograd.grad(xi.sum(), motion)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("angle", ANGLES[:-1])
def test_gradients_of_log_after_exp_are_the_identity(angle: float, dtype: torch.dtype) -> None:
    angle = angle if dtype == torch.float64 else min(angle, 3.1)  # float32 may round beyond π
    xi = tangents(angle, dtype, count=4, reach=1.0)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: se3.log(se3.exp(x))))(xi)
    expected = torch.eye(6, dtype=dtype).expand(4, 6, 6)
    torch.testing.assert_close(
        jacobian, expected, atol=3e3 * TOLERANCE[dtype] / max(math.pi - angle, 1e-3), rtol=0
    )


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-3, 0.49, 0.51, 2.0, 3.14])
def test_exp_passes_gradcheck_to_second_order(angle: float) -> None:
    xi = tangents(angle, torch.float64, count=1, reach=1.0).requires_grad_()
    assert torch.autograd.gradcheck(se3.exp, (xi,))
    assert torch.autograd.gradgradcheck(se3.exp, (xi,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_everything_is_finite_at_zero(dtype: torch.dtype) -> None:
    xi = torch.zeros(2, 6, dtype=dtype, requires_grad=True)
    motion = se3.exp(xi)
    angle, distance = se3.geodesic_distance(motion, torch.eye(4, dtype=dtype).expand(2, 4, 4))
    middle = se3.interpolate(motion, se3.exp(xi), 0.5)
    total = motion.sum() + se3.log(motion).sum() + angle.sum() + distance.sum() + middle.sum()
    (gradient,) = torch.autograd.grad(total, xi)
    assert torch.isfinite(gradient).all()
    assert float(angle.detach().abs().max()) == 0.0
    assert float(distance.detach().abs().max()) == 0.0


def test_v_is_coupled_so_that_exp_is_a_screw() -> None:
    # A quarter turn about z while moving along x walks a quarter circle: it ends at (2/π)(1, 1, 0).
    xi = torch.tensor([0, 0, math.pi / 2, 1, 0, 0], dtype=torch.float64)
    end = se3.exp(xi)[:3, 3]
    torch.testing.assert_close(end, torch.tensor([2 / math.pi, 2 / math.pi, 0], dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
    st.lists(st.floats(-1, 1), min_size=6, max_size=6),
    st.lists(st.floats(-200, 200), min_size=3, max_size=3),
)
def test_laws(a: list[float], b: list[float], center: list[float]) -> None:
    first = se3.exp(torch.tensor(a, dtype=torch.float64))
    xi = torch.tensor(b, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(first @ se3.inverse(first), eye, atol=1e-12, rtol=0)
    carried = se3.exp(se3.adjoint(first) @ xi)
    torch.testing.assert_close(first @ se3.exp(xi) @ se3.inverse(first), carried, atol=1e-11, rtol=0)
    # A rotation about a centre keeps the centre; a translation about it is a plain translation.
    c = torch.tensor([center], dtype=torch.float64)
    turned = se3.retract(eye, torch.cat([xi[:3], torch.zeros(3)]), c[0])
    torch.testing.assert_close(se3.apply(turned, c), c, atol=1e-10, rtol=0)
    moved = se3.retract(first, torch.cat([torch.zeros(3), xi[3:]]), c[0])
    torch.testing.assert_close(moved, se3.from_translation(xi[3:]) @ first, atol=1e-10, rtol=0)


def test_interpolate_goes_along_the_geodesic_at_even_pace() -> None:
    start, end = se3.exp(tangents(0.7, torch.float64, 5)), se3.exp(tangents(2.0, torch.float64, 5))
    torch.testing.assert_close(se3.interpolate(start, end, 0.0), start)
    torch.testing.assert_close(se3.interpolate(start, end, torch.ones(5)), end)
    whole, _ = se3.geodesic_distance(start, end)
    third, _ = se3.geodesic_distance(start, se3.interpolate(start, end, 1 / 3))
    torch.testing.assert_close(third, whole / 3)


def test_points_vectors_and_compose_broadcast_over_batches() -> None:
    batch = se3.exp(tangents(0.5, torch.float64, 4))
    points = torch.randn(7, 3, dtype=torch.float64)
    moved = se3.apply(batch, points)
    assert moved.shape == (4, 7, 3)
    torch.testing.assert_close(se3.rotate(batch, points), moved - batch[:, None, :3, 3])
    torch.testing.assert_close(
        se3.apply(se3.compose(batch, se3.inverse(batch)), points), points.expand(4, 7, 3), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("order", ["ZXY", "xyz", "ZYZ"])
def test_euler_angles_are_read_as_scipy_reads_them(order: str) -> None:
    angles = [20.0, -50.0, 130.0]
    motion = se3.from_euler(angles, order, torch.tensor([1.0, 2.0, 3.0]), degrees=True)
    expected = Rotation.from_euler(order, angles, degrees=True).as_matrix()
    torch.testing.assert_close(motion[:3, :3], torch.from_numpy(expected))
    assert motion[:3, 3].tolist() == [1.0, 2.0, 3.0]


def test_distance_is_radians_and_millimetres() -> None:
    step = se3.exp(torch.tensor([0, 0.25, 0, 0, 0, 0], dtype=torch.float64))
    pose = se3.from_translation(torch.tensor([3.0, 0, 4.0], dtype=torch.float64)) @ step
    angle, distance = se3.geodesic_distance(torch.eye(4, dtype=torch.float64), pose)
    assert float(angle) == pytest.approx(0.25, abs=1e-14)
    assert float(distance) == pytest.approx(5.0, abs=1e-14)


def test_nearest_rigid_repairs_rounded_digits() -> None:
    motion = se3.exp(tangents(1.0, torch.float64, 3))
    rounded = (motion * 1e4).round() / 1e4
    with pytest.raises(GeometryError, match="nearest_rigid"):
        se3.require_rigid(rounded, "pose")
    repaired = se3.require_rigid(se3.nearest_rigid(rounded), "pose")
    torch.testing.assert_close(repaired, motion, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[:3], "shape"),
        (lambda t: t * float("nan"), "finite"),
        (lambda t: t.T, "transposed"),
        (lambda t: t @ torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=t.dtype)), "nearest_rigid"),
        (lambda t: t @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=t.dtype)), "mirrored=True"),
        (lambda t: t.long(), "floating point"),
        (lambda t: t.tolist(), "tensor"),
    ],
)
def test_what_is_not_rigid_is_named_and_explained(spoil, message: str) -> None:
    good = se3.exp(torch.tensor([0.1, 0.2, 0.3, 4, 5, 6], dtype=torch.float64))
    assert se3.require_rigid(good, "pose") is good
    with pytest.raises(GeometryError, match=message) as caught:
        se3.require_rigid(spoil(good), "pelvis_from_ct")
    assert "pelvis_from_ct" in str(caught.value)


def test_distance_between_poses_may_be_told_at_a_center():
    generator = torch.Generator().manual_seed(4)
    first, second = (se3.exp(torch.randn(5, 6, generator=generator, dtype=torch.float64)) for _ in range(2))
    center = torch.tensor([30.0, -20.0, 10.0], dtype=torch.float64)
    angle, shift = se3.geodesic_distance(first, second, center)
    expected = (se3.apply(second, center[None]) - se3.apply(first, center[None]))[:, 0].norm(dim=-1)
    torch.testing.assert_close(shift, expected)
    torch.testing.assert_close(angle, se3.geodesic_distance(first, second)[0])
