"""Rigid motions: 4×4 matrices, their logarithms, and steps between them.

Transforms are named ``a_from_b`` and act on column vectors; lengths are millimetres and angles radians.
A tangent is ξ = (ω, v): three rotation components (rad), then three translation components (mm), with
exp(ξ) = [[exp(hat ω), V(ω) v], [0, 1]]. Every function takes leading batch dimensions, keeps the dtype and
device of its input, and has finite derivatives at zero, at tiny angles and up to π.

Formulas: J. Solà, J. Deray, D. Atchuthan, "A micro Lie theory for state estimation in robotics" (2018), with
the components ordered rotation first; series of x/2·cot(x/2) from the Bernoulli numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import GeometryError
from xreg.geometry._numbers import as_tensor, broadcast_shapes, tensor64

# Below θ² = 0.25 the series is used. Eight terms leave an error below 1e-17 there, and at θ = 0.5 the closed
# forms have lost less than two digits of double precision to cancellation.
_SERIES_BELOW = 0.25
_SIN_OVER = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(9))  # sin θ / θ
_COS_OVER = tuple((-1) ** k / math.factorial(2 * k + 2) for k in range(9))  # (1 − cos θ) / θ²
_CUBE_OVER = tuple((-1) ** k / math.factorial(2 * k + 3) for k in range(9))  # (θ − sin θ) / θ³
_BERNOULLI = (1 / 6, 1 / 30, 1 / 42, 1 / 30, 5 / 66, 691 / 2730, 7 / 6, 3617 / 510, 43867 / 798)
_COT_OVER = tuple(b / math.factorial(2 * k + 2) for k, b in enumerate(_BERNOULLI))  # (1 − θ/2·cot θ/2) / θ²


def hat(omega: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the skew matrix with hat(a) b = a × b; linear, so gradients are exact."""
    x, y, z = omega.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).reshape(*omega.shape[:-1], 3, 3)


def from_rt(
    rotation: Float[Tensor, "*batch 3 3"], translation: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """Assemble [[R, t], [0, 1]]; the batch dimensions of the two broadcast, and both carry gradients."""
    batch = broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    dtype = torch.promote_types(rotation.dtype, translation.dtype)
    top = torch.cat(
        [
            rotation.to(dtype).expand(*batch, 3, 3),
            translation.to(dtype).expand(*batch, 3).unsqueeze(-1),
        ],
        dim=-1,
    )
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=dtype, device=top.device).expand(*batch, 1, 4)
    return torch.cat([top, last], dim=-2)


def from_translation(translation: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4 4"]:
    """Return the pure translation by ``translation`` (mm)."""
    return from_rt(torch.eye(3, dtype=translation.dtype, device=translation.device), translation)


def from_euler(
    angles: Float[Tensor, "*batch n"] | Sequence[float],
    order: str = "ZXY",
    translation: Float[Tensor, "*batch 3"] | None = None,
    *,
    degrees: bool = False,
) -> Float[Tensor, "*batch 4 4"]:
    """Build a transform from Euler angles, translation applied after the rotation: p ↦ R p + t.

    ``order`` is read as in scipy and roma: capitals are intrinsic, so "ZXY" is Rz(a0)·Rx(a1)·Ry(a2). Angles
    are radians unless ``degrees``. Python numbers become float64. Angles and translation carry gradients.
    """
    import roma  # imported here: it costs a second that most users of this module never need

    if not isinstance(angles, Tensor):
        angles = tensor64(angles, "angles")
    if not order or not (set(order) <= set("XYZ") or set(order) <= set("xyz")):
        raise GeometryError(f"order must name axes, as 'ZXY' (intrinsic) or 'zxy' (extrinsic), got {order!r}")
    if angles.shape[-1:] != (len(order),):
        raise GeometryError(
            f"angles must have shape [..., {len(order)}] for order {order!r}, got {tuple(angles.shape)}"
        )
    rotation = roma.euler_to_rotmat(order, angles, degrees=degrees)
    if translation is None:
        translation = torch.zeros(3, dtype=rotation.dtype, device=rotation.device)
    return from_rt(rotation, translation)


def inverse(transform: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Return b_from_a for a rigid a_from_b: [[Rᵀ, −Rᵀt], [0, 1]]. That it is rigid is not checked."""
    rt = transform[..., :3, :3].transpose(-1, -2)
    return from_rt(rt, -(rt @ transform[..., :3, 3:]).squeeze(-1))


def compose(*transforms: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Multiply left to right, ``compose(a_from_b, b_from_c) = a_from_c``; batch dimensions broadcast."""
    if not transforms:
        raise GeometryError("compose needs at least one transform of shape [..., 4, 4], got none")
    product = transforms[0]
    for transform in transforms[1:]:
        product = product @ transform
    return product


def apply(
    transform: Float[Tensor, "*batch 4 4"], points: Float[Tensor, "*batch n 3"]
) -> Float[Tensor, "*batch n 3"]:
    """Move points: R p + t, mm. Batch dimensions broadcast; both arguments carry gradients."""
    return rotate(transform, points) + transform[..., None, :3, 3]


def rotate(
    transform: Float[Tensor, "*batch 4 4"], vectors: Float[Tensor, "*batch n 3"]
) -> Float[Tensor, "*batch n 3"]:
    """Turn directions: R v, without the translation. Batch dimensions broadcast; both carry gradients."""
    return vectors @ transform[..., :3, :3].transpose(-1, -2)


def exp(xi: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 4 4"]:
    """Map a tangent (rad, mm) to its rigid motion; smooth everywhere, derivatives of every order finite."""
    omega, v = xi[..., :3], xi[..., 3:]
    theta2 = (omega * omega).sum(-1)
    a, b, c = _exp_coefficients(theta2)
    skew = hat(omega)
    square = skew @ skew
    eye = torch.eye(3, dtype=xi.dtype, device=xi.device)
    rotation = eye + a[..., None, None] * skew + b[..., None, None] * square
    left = eye + b[..., None, None] * skew + c[..., None, None] * square
    return from_rt(rotation, (left @ v[..., None]).squeeze(-1))


def log(transform: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 6"]:
    """Return the tangent of a rigid motion, rotation angle in [0, π].

    Right to rounding at zero, at tiny angles and near π, where the axis comes from the symmetric part of R.
    At exactly π both signs of the axis are right: one of them is returned, with the derivative of its branch.
    """
    omega = so3_log(transform[..., :3, :3])
    theta2 = (omega * omega).sum(-1)
    skew = hat(omega)
    eye = torch.eye(3, dtype=transform.dtype, device=transform.device)
    inverse_left = eye - 0.5 * skew + _log_coefficient(theta2)[..., None, None] * (skew @ skew)
    return torch.cat([omega, (inverse_left @ transform[..., :3, 3:]).squeeze(-1)], dim=-1)


def so3_log(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Return the rotation vector (rad) of a rotation matrix, by the quaternion with the largest component.

    The quaternion is used up to scale, so no square root can meet zero. Source of the four candidates:
    S. W. Shepperd, "Quaternion from rotation matrix", J. Guidance and Control 1 (1978).
    """
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, yz, zx = m[..., 1, 0] + m[..., 0, 1], m[..., 2, 1] + m[..., 1, 2], m[..., 0, 2] + m[..., 2, 0]
    ww = 1 + xx + yy + zz
    rows = [(ww, wx, wy, wz), (wx, 1 + xx - yy - zz, xy, zx), (wy, xy, 1 - xx + yy - zz, yz)]
    rows.append((wz, zx, yz, 1 - xx - yy + zz))
    candidates = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    best = torch.stack([ww, xx * 2 - ww + 2, yy * 2 - ww + 2, zz * 2 - ww + 2], dim=-1).argmax(-1)
    index = best[..., None, None].expand(*best.shape, 1, 4)
    q = torch.gather(candidates, -2, index).squeeze(-2)
    q = torch.where(q[..., :1] < 0, -q, q)
    w, xyz = q[..., 0], q[..., 1:]
    s2 = (xyz * xyz).sum(-1)
    return xyz * _angle_over_sine(s2, w)[..., None]


def retract(
    pose: Float[Tensor, "*batch 4 4"],
    xi: Float[Tensor, "*batch 6"],
    center: Float[Tensor, "*batch 3"] | Sequence[float] = (0.0, 0.0, 0.0),
) -> Float[Tensor, "*batch 4 4"]:
    """Step from ``pose`` (a_from_b) by ``xi`` about ``center``: T(c)·exp(ξ)·T(−c)·pose.

    ``center`` is a point in frame a (mm). With the anatomy's own centre there, a rotation turns it in place
    and ``v`` alone moves it. Pose, tangent and centre carry gradients.
    """
    return about(exp(xi), center) @ pose


def about(
    transform: Float[Tensor, "*batch 4 4"], center: Float[Tensor, "*batch 3"] | Sequence[float]
) -> Float[Tensor, "*batch 4 4"]:
    """Return T(c)·transform·T(−c), the same motion done about ``center`` (mm) instead of the origin."""
    center = as_tensor(center, dtype=transform.dtype, device=transform.device)
    moved = (transform[..., :3, :3] @ center[..., None]).squeeze(-1)
    return from_rt(transform[..., :3, :3], transform[..., :3, 3] + center - moved)


def adjoint(transform: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 6 6"]:
    """Return Ad with transform·exp(ξ)·transform⁻¹ = exp(Ad ξ), for ξ = (ω, v): [[R, 0], [hat(t) R, R]]."""
    rotation = transform[..., :3, :3]
    lower = hat(transform[..., :3, 3]) @ rotation
    top = torch.cat([rotation, torch.zeros_like(rotation)], dim=-1)
    return torch.cat([top, torch.cat([lower, rotation], dim=-1)], dim=-2)


def interpolate(
    start: Float[Tensor, "*batch 4 4"],
    end: Float[Tensor, "*batch 4 4"],
    fraction: float | Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch 4 4"]:
    """Go along the geodesic start·exp(s·log(start⁻¹·end)) for the fraction s: ``start`` at 0, ``end`` at 1.

    Fractions outside [0, 1] extrapolate. All three arguments carry gradients.
    """
    xi = log(inverse(start) @ end)
    fraction = as_tensor(fraction, dtype=xi.dtype, device=xi.device)
    return start @ exp(fraction[..., None] * xi)


def geodesic_distance(
    first: Float[Tensor, "*batch 4 4"],
    second: Float[Tensor, "*batch 4 4"],
    center: Float[Tensor, 3] | None = None,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return (angle in rad, distance in mm) between two transforms of the same frames.

    The distance is that between the images of ``center`` (mm, in the frame that both map from), by default of
    the origin, |t₂ − t₁|; a body's middle gives one that does not depend on where its origin lies. At equal
    poses the gradient is zero.
    """
    angle = _safe_norm(so3_log(first[..., :3, :3].transpose(-1, -2) @ second[..., :3, :3]))
    shift = second[..., :3, 3] - first[..., :3, 3]
    if center is not None:
        shift = shift + rotate(second - first, center.to(shift)[None])[..., 0, :]
    return angle, _safe_norm(shift)


def nearest_rigid(transform: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Replace the 3×3 part by the nearest rotation (Frobenius), for matrices typed with few digits."""
    import roma

    return from_rt(roma.special_procrustes(transform[..., :3, :3]), transform[..., :3, 3])


def require_rigid(
    transform: Float[Tensor, "*batch 4 4"], name: str, *, tolerance: float | None = None
) -> Float[Tensor, "*batch 4 4"]:
    """Return ``transform`` unchanged if each matrix is rigid with det +1, else raise GeometryError naming it.

    ``tolerance`` bounds |RᵀR − I| entry by entry; by default 1e-5 in float64 and 1e-4 in float32.
    """
    if not isinstance(transform, Tensor) or not transform.is_floating_point():
        kind = transform.dtype if isinstance(transform, Tensor) else type(transform).__name__
        raise GeometryError(f"{name} must be a floating point tensor of shape [..., 4, 4], got {kind}")
    if transform.shape[-2:] != (4, 4):
        raise GeometryError(f"{name} must have shape [..., 4, 4], got {tuple(transform.shape)}")
    if tolerance is None:
        tolerance = 1e-5 if transform.dtype == torch.float64 else 1e-4
    matrix = transform.detach()
    if not bool(torch.isfinite(matrix).all()):
        raise GeometryError(f"{name} must be finite, but holds NaN or infinity; check what produced it")
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=matrix.dtype, device=matrix.device)
    if not bool((matrix[..., 3, :] == last).all()):
        row = matrix[..., 3, :].reshape(-1, 4)[0].tolist()
        raise GeometryError(
            f"{name} must have the last row (0, 0, 0, 1), got {row}; is it transposed (row vectors)?"
        )
    rotation = matrix[..., :3, :3]
    eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    off = (rotation.transpose(-1, -2) @ rotation - eye).abs().amax() if rotation.numel() else eye[0, 1]
    if float(off) > tolerance:
        raise GeometryError(
            f"{name} must hold a rotation, but RᵀR differs from the identity by {float(off):.3g} "
            f"(allowed {tolerance:.0e}); remove scale or shear, or round-off with se3.nearest_rigid"
        )
    if bool((_determinant(rotation) < 0).any()):
        raise GeometryError(
            f"{name} must have determinant +1, but holds a reflection (determinant −1); no pose holds a "
            "reflection here: a mirrored image is a Camera with mirrored=True"
        )
    return transform


def _determinant(m: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    return (m[..., 0, :] * torch.linalg.cross(m[..., 1, :], m[..., 2, :])).sum(-1)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Evaluate Σ c_k xᵏ by Horner's rule."""
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _split(theta2: Tensor) -> tuple[Bool[Tensor, "*batch"], Tensor, Tensor]:
    """Return (use the series?, θ² for the series, θ for the closed form); neither branch can make a NaN."""
    small = theta2 < _SERIES_BELOW
    return small, torch.where(small, theta2, 0.0), torch.where(small, 1.0, theta2).sqrt()


def _exp_coefficients(theta2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sin θ/θ, (1 − cos θ)/θ² and (θ − sin θ)/θ³ as smooth functions of θ²."""
    small, near, theta = _split(theta2)
    sine, half = theta.sin(), (theta / 2).sin()
    closed = (sine / theta, 2 * (half / theta) ** 2, (theta - sine) / theta**3)
    series = (_SIN_OVER, _COS_OVER, _CUBE_OVER)
    a, b, c = (torch.where(small, _polynomial(s, near), f) for s, f in zip(series, closed, strict=True))
    return a, b, c


def _log_coefficient(theta2: Tensor) -> Tensor:
    """Return (1 − (θ/2)·cot(θ/2))/θ², the factor of hat(ω)² in V⁻¹; finite on [0, 2π)."""
    small, near, theta = _split(theta2)
    half = theta / 2
    closed = (1 - half * half.cos() / half.sin()) / theta**2
    return torch.where(small, _polynomial(_COT_OVER, near), closed)


def _angle_over_sine(s2: Tensor, w: Tensor) -> Tensor:
    """Return 2·atan2(s, w)/s for s² = |xyz|², w ≥ 0, a quaternion of any scale; smooth at s = 0."""
    small = s2 < 0.01 * w * w
    safe_w = torch.where(small, w, 1.0)
    ratio2 = torch.where(small, s2, 0.0) / safe_w**2
    series = 2 * _polynomial([(-1) ** k / (2 * k + 1) for k in range(9)], ratio2) / safe_w
    s = torch.where(small, 1.0, s2).sqrt()
    return torch.where(small, series, 2 * torch.atan2(s, w) / s)


def _safe_norm(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Return |x| with a zero gradient at x = 0, scaled so that tiny values do not underflow."""
    scale = x.detach().abs().amax(-1, keepdim=True)
    zero = scale == 0
    y = torch.where(zero, 0.0, x / torch.where(zero, 1.0, scale))
    square = torch.where(zero.squeeze(-1), 1.0, (y * y).sum(-1))
    return torch.where(zero.squeeze(-1), 0.0, square.sqrt()) * scale.squeeze(-1)
