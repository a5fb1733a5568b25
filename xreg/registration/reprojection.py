"""How far points fall from where films show them, for many poses at once, and poses that make it less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xreg.geometry import Camera, se3

NEAREST = 1.0  # mm before the source: a point that is nearer has no image
_DAMPING = (1e-3, 1e-9, 1e6)  # at the start, least, most
_GROW, _SHRINK = 8.0, 0.2
_STILL = 1e-9  # rad, mm: a step that moves nothing
_FLOOR = 1e-9  # of the largest entry of the diagonal: directions that nothing determines stay where they are


@dataclass(frozen=True, eq=False)
class Sights:
    """Points seen in views, one after another; leading dimensions are a batch of such lists.

    points: [..., M, 3] mm of the body.  pixels: [..., M, 2].  image: [..., M, 2, 3], the upper rows of the
    view's matrix from (x/z, y/z, 1) to stored pixels, which holds a mirrored image and skew.
    local_from_world: [..., M, 3, 4].  parallel: [..., M].  tolerance: [..., M] px that count as one.
    """

    points: Float[Tensor, "*b M 3"]
    pixels: Float[Tensor, "*b M 2"]
    image: Float[Tensor, "*b M 2 3"]
    local_from_world: Float[Tensor, "*b M 3 4"]
    parallel: Bool[Tensor, "*b M"]
    tolerance: Float[Tensor, "*b M"]

    def take(self, index: Int[Tensor, ...]) -> Sights:
        """The sights of an index into a list without a batch; an index [B, K] makes a batch of B lists."""
        return Sights(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def batch(self) -> Sights:
        """The same with one more dimension before the list, to go with several poses each."""
        return Sights(*(getattr(self, name).unsqueeze(_where(name)) for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return self.points.shape[-2]

    def local(self, poses: Float[Tensor, "*b 4 4"]) -> tuple[Tensor, Tensor]:
        """Points in the world and in their views' frames [..., M, 3] at poses."""
        world = se3.apply(poses, self.points)
        frame = self.local_from_world
        return world, (frame[..., :3] @ world[..., None])[..., 0] + frame[..., 3]

    def residuals(self, poses: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b M 2"]:
        """Projected less seen, in tolerances; infinite where a point is not in front of its source."""
        _, local = self.local(poses)
        flat, ahead = self._flat(local)
        pixels = (self.image[..., :2] @ flat[..., None])[..., 0] + self.image[..., 2]
        found = (pixels - self.pixels) / self.tolerance[..., None]
        return torch.where(ahead[..., None], found, torch.inf)

    def jacobian(
        self, poses: Float[Tensor, "*b 4 4"], center: Float[Tensor, "*b 3"]
    ) -> Float[Tensor, "*b M 2 6"]:
        """Derivatives of the residuals by ξ in se3.retract(pose, ξ, center) at ξ = 0."""
        world, local = self.local(poses)
        flat, _ = self._flat(local)
        eye = torch.eye(3, dtype=world.dtype).expand(*world.shape[:-1], 3, 3)
        moves = torch.cat([-se3.hat(world - center[..., None, :]), eye], dim=-1)
        moves = self.local_from_world[..., :3] @ moves  # of the point in its view's frame
        along = torch.where(self.parallel, 0.0, 1.0)[..., None, None]
        slope = moves[..., :2, :] - along * flat[..., None] * moves[..., 2:, :]
        slope = slope / torch.where(self.parallel, 1.0, self._depth(local))[..., None, None]
        return self.image[..., :2] @ slope / self.tolerance[..., None, None]

    def _flat(self, local: Tensor) -> tuple[Tensor, Tensor]:
        ahead = self.parallel | (local[..., 2] > NEAREST)
        return local[..., :2] / torch.where(self.parallel, 1.0, self._depth(local))[..., None], ahead

    def _depth(self, local: Tensor) -> Tensor:
        return local[..., 2].clamp_min(NEAREST)


def sights_of(
    points: Float[Tensor, "N 3"],
    pixels: Sequence[Float[Tensor, "N 2"]],
    cameras: Sequence[Camera],
    seen: Sequence[Bool[Tensor, " N"]],
    tolerance: Sequence[float],
) -> Sights:
    """The sights of all views one after another, each with the points that it sees."""
    parts = []
    for camera, found, shown, most in zip(cameras, pixels, seen, tolerance, strict=True):
        count = int(shown.sum())
        parts.append(
            (
                points[shown],
                found[shown],
                camera.image_matrix.detach().cpu()[:2].expand(count, 2, 3),
                camera.camera_from_world.detach().cpu()[:3].expand(count, 3, 4),
                torch.full((count,), camera.parallel),
                torch.full((count,), float(most), dtype=torch.float64),
            )
        )
    return Sights(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def minimise(
    sights: Sights,
    poses: Float[Tensor, "*b 4 4"],
    weights: Float[Tensor, "*b M"] | None = None,
    *,
    huber: float = math.inf,
    iterations: int = 20,
) -> tuple[Float[Tensor, "*b 4 4"], Float[Tensor, "*b"]]:
    """Levenberg-Marquardt from many poses at once: poses of least reprojection error, and their costs.

    The cost is Huber's of each sight's distance in tolerances: quadratic to ``huber``, linear beyond.
    weights: of the sights, by default one.  A step that does not lower the cost is not taken.
    """
    weights = torch.ones(sights.points.shape[:-1], dtype=torch.float64) if weights is None else weights
    here = sights.residuals(poses)
    cost = _cost(here, weights, huber)
    damping = torch.full(cost.shape, _DAMPING[0], dtype=torch.float64)
    for _ in range(iterations):
        center = _middle(sights, poses, weights)
        step = _step(sights, poses, center, weights * _pull(here, huber), damping)
        trial = se3.retract(poses, step, center)
        there = sights.residuals(trial)
        value = _cost(there, weights, huber)
        better = value < cost
        poses = torch.where(better[..., None, None], trial, poses)
        here = torch.where(better[..., None, None], there, here)
        settled = (better & (cost - value <= 1e-12 * value)) | (step.abs().amax(-1) < _STILL)
        cost = torch.where(better, value, cost)
        damping = (damping * torch.where(better, _SHRINK, _GROW)).clamp(_DAMPING[1], _DAMPING[2])
        if bool(settled.all()):
            break
    return poses, cost


def normal_matrix(
    sights: Sights, pose: Float[Tensor, "4 4"], weights: Float[Tensor, " M"], center: Float[Tensor, " 3"]
) -> Float[Tensor, "6 6"]:
    """JᵀWJ of a pose, for its covariance."""
    rows = sights.jacobian(pose, center)
    return torch.einsum("mki,m,mkj->ij", rows, weights, rows)


def starts(
    sights: Sights, keep: int, nominal: Float[Tensor, "4 4"]
) -> tuple[Float[Tensor, "*b keep 4 4"], Float[Tensor, "*b keep"]]:
    """The best of sixty poses turned evenly over all rotations, each moved to where it fits best, and costs.

    With a rotation given, the rays fix the translation by linear equations.  What they do not fix (the depth
    in a single parallel beam) is as in ``nominal``.  Costs are infinite behind a source.
    """
    turns = even_rotations()
    wide = sights.batch()
    world = wide.points @ turns.transpose(-1, -2)
    frame = wide.local_from_world
    inverse = torch.linalg.inv(wide.image[..., :2])
    flat = (inverse @ (wide.pixels - wide.image[..., 2])[..., None])[..., 0]
    along = torch.where(wide.parallel, 0.0, 1.0)[..., None]
    # Pinhole: x - x̂ z = 0; parallel: x - x̂ = 0, with (x, y, z) = R (p + t) + c in the view's frame.
    rows = frame[..., :2, :3] - (along * flat)[..., None] * frame[..., 2:, :3]
    shift = frame[..., :2, 3] - along * flat * frame[..., 2:, 3] - (1 - along) * flat
    right = -((rows @ world[..., None])[..., 0] + shift)
    normal = torch.einsum("...mki,...mkj->...ij", rows, rows)
    vector = torch.einsum("...mki,...mk->...i", rows, right)
    middle = wide.points.mean(-2, keepdim=True)
    home = (se3.apply(nominal, middle) - middle @ turns.transpose(-1, -2))[..., 0, :]
    weak = 1e-9 * normal.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    t = _solved(normal + weak * torch.eye(3, dtype=torch.float64), vector + weak[..., 0] * home)
    poses = se3.from_rt(turns.expand(*t.shape[:-1], 3, 3), t)
    cost = _cost(wide.residuals(poses), torch.ones((), dtype=torch.float64), math.inf)
    cost, order = cost.sort(dim=-1)
    index = order[..., :keep, None, None].expand(*order.shape[:-1], keep, 4, 4)
    return torch.gather(poses, -3, index), cost[..., :keep]


@cache
def even_rotations() -> Float[Tensor, "60 3 3"]:
    """The rotations of the icosahedron, the identity first: no rotation is further than 45° from one."""
    golden = (1 + math.sqrt(5)) / 2
    axis = torch.tensor([0.0, 1.0, golden], dtype=torch.float64)
    fifth = se3.exp(torch.cat([axis / axis.norm() * 2 * math.pi / 5, torch.zeros(3).double()]))[:3, :3]
    third = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    found = [torch.eye(3, dtype=torch.float64)]
    for turn in found:  # which grows while it is walked, until the group is closed
        for other in (fifth @ turn, third @ turn):
            if all(float((other - known).abs().max()) > 1e-6 for known in found):
                found.append(other)
    return torch.stack(found)


def _where(name: str) -> int:
    """The dimension before that of the list."""
    return {"parallel": -2, "tolerance": -2, "points": -3, "pixels": -3}.get(name, -4)


def _distance(residuals: Tensor) -> Tensor:
    return residuals.square().sum(-1).sqrt()


def _cost(residuals: Tensor, weights: Tensor, huber: float) -> Tensor:
    s = _distance(residuals)
    each = (
        0.5 * s * s if math.isinf(huber) else torch.where(s <= huber, 0.5 * s * s, huber * (s - 0.5 * huber))
    )
    return torch.where(weights > 0, weights * each, 0.0).sum(-1)


def _pull(residuals: Tensor, huber: float) -> Tensor:
    """Huber's weights; none where a point has no image."""
    s = _distance(residuals)
    return torch.where(torch.isfinite(s), (huber / s.clamp_min(1e-300)).clamp_max(1.0), 0.0)


def _middle(sights: Sights, poses: Tensor, weights: Tensor) -> Tensor:
    share = weights / weights.sum(-1, keepdim=True).clamp_min(1e-300)
    return se3.apply(poses, (sights.points * share[..., None]).sum(-2, keepdim=True))[..., 0, :]


def _step(sights: Sights, poses: Tensor, center: Tensor, weights: Tensor, damping: Tensor) -> Tensor:
    rows = sights.jacobian(poses, center)
    here = torch.nan_to_num(sights.residuals(poses), posinf=0.0)
    weighted = rows * weights[..., None, None]
    normal = torch.einsum("...mki,...mkj->...ij", weighted, rows)
    gradient = torch.einsum("...mki,...mk->...i", weighted, here)
    size = normal.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()  # rad and mm made alike
    scaled = normal / size[..., :, None] / size[..., None, :]
    eye = torch.eye(6, dtype=torch.float64)
    return -_solved(scaled + (damping[..., None, None] + _FLOOR) * eye, gradient / size) / size


def _solved(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.linalg.solve_ex(matrix, vector[..., None])[0][..., 0]
