"""What a registration solves for: a pose a body, and what may be free about a view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, RegistrationError
from xreg.geometry import Camera, se3
from xreg.geometry._numbers import tensor64
from xreg.registration.anatomy import Anatomy
from xreg.volume import Volume


@dataclass(frozen=True, eq=False)
class Body:
    """A rigid part with a pose of its own: a volume or `Anatomy`, where it starts, and how sure that start
    is.

    init: world_from_body [4, 4] (default: where the volume's affine puts it).  prior: None, or (degrees, mm),
    one standard deviation of the true pose about init, about each axis through the body's middle; both above
    zero.
    """

    volume: Volume | Anatomy
    init: Float[Tensor, "4 4"] | None = None
    prior: tuple[float, float] | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class RelativePrior:
    """That body b stays near its place beside body a: one standard deviation in degrees and mm a axis.

    a_from_b: [4, 4], b's pose as seen from a (default: as the starts have it).  GeometryError for one that is
    not rigid.
    """

    a: int
    b: int
    degrees: float
    mm: float
    a_from_b: Float[Tensor, "4 4"] | None = None

    def __post_init__(self) -> None:
        if self.a_from_b is not None:
            object.__setattr__(self, "a_from_b", _one_pose(self.a_from_b, "a_from_b"))


@dataclass(frozen=True)
class ViewFreedom:
    """What may be wrong with a view's calibration, each as one standard deviation; None is exact.

    focal: relative error of both focal lengths.  principal: px of the film as given, along u and v.
    pose: (degrees, mm) of the camera about its own source.  Each above zero; one ViewFreedom a view.
    """

    view: int
    focal: float | None = None
    principal: float | None = None
    pose: tuple[float, float] | None = None

    @property
    def sigmas(self) -> Float[Tensor, " K"]:
        """The standard deviations of its unknowns, in their order."""
        found = [] if self.focal is None else [self.focal]
        found += [] if self.principal is None else [self.principal] * 2
        if self.pose is not None:
            found += [math.radians(self.pose[0])] * 3 + [self.pose[1]] * 3
        return torch.tensor(found, dtype=torch.float64)

    def camera(self, camera: Camera, change: Float[Tensor, " K"]) -> Camera:
        """The camera with its unknowns changed."""
        k, rest = camera.K, list(change.unbind())
        if self.focal is not None:
            scale = torch.exp(rest.pop(0))
            k = k * torch.stack([torch.stack([scale, scale, scale * 0 + 1])] * 2 + [torch.ones(3)]).to(k)
        if self.principal is not None:
            shift = torch.stack([rest.pop(0), rest.pop(0)]).to(k)
            k = torch.cat([k[:, :2], k[:, 2:] + torch.cat([shift, shift.new_zeros(1)])[:, None]], 1)
        pose = camera.camera_from_world
        if self.pose is not None:
            pose = se3.exp(torch.stack(rest)) @ pose
        return camera.replace(K=k, camera_from_world=pose)


@dataclass(frozen=True, eq=False)
class State:
    """Values of all unknowns: a pose a body, and the changes of the free views one after another."""

    poses: tuple[Float[Tensor, "4 4"], ...]
    changes: Float[Tensor, " K"]


class Unknowns:
    """The layout of the vector of unknowns, and how a step in it changes a state.

    The first 6 M numbers are tangents (rad, mm) of the M bodies about their middles, then come the views'.
    """

    def __init__(
        self,
        bodies: Sequence[Body],
        cameras: Sequence[Camera],
        freedoms: Sequence[ViewFreedom] = (),
        relations: Sequence[RelativePrior] = (),
    ) -> None:
        if not bodies:
            raise RegistrationError("there must be at least one body")
        self.bodies, self.cameras = tuple(bodies), tuple(cameras)
        self.freedoms, self.relations = tuple(freedoms), tuple(relations)
        self._check()
        self.sigmas = torch.cat([torch.zeros(0, dtype=torch.float64), *(f.sigmas for f in self.freedoms)])
        self.start = State(tuple(starting_pose(b) for b in self.bodies), torch.zeros_like(self.sigmas))
        self.count = 6 * len(self.bodies) + len(self.sigmas)

    def _check(self) -> None:
        """RegistrationError for freedoms, relations and priors that cannot be."""
        for freedom in self.freedoms:
            if not 0 <= freedom.view < len(self.cameras) or not len(freedom.sigmas):
                raise RegistrationError(
                    f"{freedom} does not name one of {len(self.cameras)} views and what is free"
                )
            _require_widths(freedom.sigmas.tolist(), f"{freedom}", "None is what is exact")
        views = [freedom.view for freedom in self.freedoms]
        twice = next((view for view in views if views.count(view) > 1), None)
        if twice is not None:
            raise RegistrationError(
                f"view {twice} has {views.count(twice)} ViewFreedoms; give it one that names all that is free"
            )
        for pair in self.relations:
            if pair.a == pair.b or not all(0 <= n < len(self.bodies) for n in (pair.a, pair.b)):
                raise RegistrationError(f"{pair} does not name two of {len(self.bodies)} bodies")
            _require_widths((pair.degrees, pair.mm), f"{pair}", "a small one, as 0.01, ties two bodies")
        for number, body in enumerate(self.bodies):
            if body.prior is not None:
                what = f"the prior of body {number}, {body.prior}"
                _require_widths(body.prior, what, "None is no prior, and a small width holds the body")

    def center(self, state: State, body: int) -> Float[Tensor, " 3"]:
        """Where a state puts a body's middle, world mm."""
        return middle_of(self.bodies[body].volume, state.poses[body])

    def moved(self, state: State, step: Float[Tensor, " N"]) -> State:
        """The state after a step."""
        n = len(self.bodies)
        tangents = step[: 6 * n].reshape(n, 6)
        poses = tuple(  # float64 products of rotations: still rotations to 1e-15
            se3.retract(pose, tangents[i], self.center(state, i)) for i, pose in enumerate(state.poses)
        )
        return State(poses, state.changes + step[6 * n :])

    def freedom_of(self, view: int) -> tuple[ViewFreedom, slice] | None:
        """What is free about a view, and where its unknowns are among the changes."""
        at = 0
        for freedom in self.freedoms:
            size = len(freedom.sigmas)
            if freedom.view == view:
                return freedom, slice(at, at + size)
            at += size
        return None

    def camera(self, state: State, view: int) -> Camera:
        """A view's camera in a state, at the film's full resolution."""
        free = self.freedom_of(view)
        return (
            self.cameras[view] if free is None else free[0].camera(self.cameras[view], state.changes[free[1]])
        )

    def balance(self, length_scale: float) -> Float[Tensor, " N"]:
        """What turns mm at the anatomy's edge, and sigmas of the views, into the unknowns' units."""
        tangent = torch.tensor([1 / length_scale] * 3 + [1.0] * 3, dtype=torch.float64)
        return torch.cat([*[tangent] * len(self.bodies), self.sigmas])

    @property
    def priors(self) -> bool:
        """Whether something is known beforehand."""
        return bool(self.relations or len(self.sigmas) or any(b.prior is not None for b in self.bodies))

    def penalty(self, state: State) -> tuple[float, Float[Tensor, " N"], Float[Tensor, "N N"]]:
        """½ the sum of squared prior residuals, in standard deviations, its gradient and matrix."""
        cost, gradient = 0.0, torch.zeros(self.count, dtype=torch.float64)
        hessian = torch.zeros(self.count, self.count, dtype=torch.float64)
        for residual, rows in self._residuals(state):
            cost += 0.5 * float(residual @ residual)
            gradient += rows.T @ residual
            hessian += rows.T @ rows
        return cost, gradient, hessian

    def _residuals(self, state: State) -> list[tuple[Tensor, Tensor]]:
        """Residuals in standard deviations, with their derivatives."""
        found = []
        for i, body in enumerate(self.bodies):
            if body.prior is not None:
                found.append(self._numeric(state, lambda s, i=i: self._absolute(s, i), [i]))
        for pair in self.relations:
            found.append(self._numeric(state, lambda s, pair=pair: self._relation(s, pair), [pair.a, pair.b]))
        if len(self.sigmas):
            rows = torch.zeros(len(self.sigmas), self.count, dtype=torch.float64)
            rows[:, 6 * len(self.bodies) :] = torch.diag(1 / self.sigmas)
            found.append((state.changes / self.sigmas, rows))
        return found

    def _absolute(self, state: State, i: int) -> Float[Tensor, " 6"]:
        moved = se3.inverse(self.start.poses[i]) @ state.poses[i]
        return _away(moved, self.bodies[i].volume.center, self.bodies[i].prior)

    def _relation(self, state: State, pair: RelativePrior) -> Float[Tensor, " 6"]:
        start = self.start.poses
        expected = se3.inverse(start[pair.a]) @ start[pair.b] if pair.a_from_b is None else pair.a_from_b
        seen = se3.inverse(state.poses[pair.a]) @ state.poses[pair.b]
        return _away(se3.inverse(expected) @ seen, self.bodies[pair.b].volume.center, (pair.degrees, pair.mm))

    def _numeric(self, state: State, residual, bodies: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A residual and its derivative by central differences, which in float64 are good to nine digits."""
        here, h = residual(state), 1e-5
        rows = torch.zeros(len(here), self.count, dtype=torch.float64)
        for i in bodies:
            for k in range(6 * i, 6 * i + 6):
                step = torch.zeros(self.count, dtype=torch.float64)
                step[k] = h
                rows[:, k] = (residual(self.moved(state, step)) - residual(self.moved(state, -step))) / (
                    2 * h
                )
        return here, rows


def middle_of(volume: Volume | Anatomy, pose: Float[Tensor, "4 4"]) -> Float[Tensor, " 3"]:
    """Where a pose puts a volume's middle, world mm."""
    return se3.apply(pose, volume.center.to(pose)[None])[0]


def _require_widths(widths: Sequence[float], what: str, advice: str) -> None:
    """RegistrationError unless all are standard deviations: above zero and finite."""
    if not all(math.isfinite(width) and width > 0 for width in widths):
        raise RegistrationError(f"{what}: standard deviations must be above zero and finite; {advice}")


def starting_pose(body: Body) -> Float[Tensor, "4 4"]:
    """A body's init as a checked float64 pose on the host; the identity where there is none."""
    return _one_pose(torch.eye(4) if body.init is None else body.init, "init")


def _one_pose(value: Any, name: str) -> Float[Tensor, "4 4"]:
    pose = tensor64(value, name, device=torch.device("cpu"), rows=True)
    se3.require_rigid(pose, name)
    if pose.shape != (4, 4):
        raise GeometryError(f"{name} must be one pose [4, 4], got shape {tuple(pose.shape)}")
    return pose


def _away(motion: Float[Tensor, "4 4"], center: Tensor, sigma: tuple[float, float]) -> Float[Tensor, " 6"]:
    """A motion as (turn, shift of the centre) in standard deviations (degrees, mm)."""
    turn = se3.so3_log(motion[:3, :3]) / math.radians(sigma[0])
    shift = se3.apply(motion, center.to(motion)[None])[0] - center.to(motion)
    return torch.cat([turn, shift / sigma[1]])
