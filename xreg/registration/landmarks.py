"""A pose from landmarks: points of the body and where films show them, some of them wrongly."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xreg.errors import BackendError, GeometryError, RegistrationError
from xreg.geometry import Camera, se3
from xreg.geometry._numbers import as_tensor, tensor64
from xreg.registration.reprojection import Sights, minimise, normal_matrix, sights_of, starts

TOLERANCE_MM = 4.0  # at the detector: how far a careful hand misses a landmark at most
TOLERANCE_SHARE = 0.01  # of the image's diagonal, where the detector's size is not known
LEAST_SHARE = 0.5  # of the sights must agree
CONVINCING = 0.8  # of the sights: where OpenCV's pose explains as many, no other consensus is sought
HUBER = 0.5  # tolerances
SUBSETS, SUBSET, ROTATIONS, CANDIDATES = 128, 4, 12, 6
AT_ONCE = 24  # subsets that are fitted together
MISSED = 1e-3  # probability of no subset without a wrong point, at which drawing ends
COLLINEAR = 0.02  # spread across a line, as a part of that along it
BEYOND = 1.1  # of the source-to-detector distance: nothing lies behind the detector
OTHER_DEGREES = 5.0  # between poses that count as different


@dataclass(frozen=True, eq=False)
class LandmarkPose:
    """A pose found from landmarks.

    world_from_body: [4, 4] float64.  inliers: [N] (or [views, N]), the points that it explains.
    residuals_px: of the same shape, reprojection error, NaN where a point is not seen.  rms_px: over inliers.
    covariance: [6, 6] of the tangent (rad, mm) of se3.retract(pose, ξ, center), from the normal equations and
    the inliers' residuals; None where the landmarks leave a direction open (the depth of a single parallel
    view).  center: world mm.  others: poses that explain the same inliers within the tolerance and are turned
    by more than 5° from this one (points near a plane allow two); try all, as `register_best` does.
    """

    world_from_body: Float[Tensor, "4 4"]
    inliers: Bool[Tensor, "*views N"]
    residuals_px: Float[Tensor, "*views N"]
    rms_px: float
    covariance: Float[Tensor, "6 6"] | None
    center: Float[Tensor, " 3"]
    others: tuple[Float[Tensor, "4 4"], ...] = ()


def pose_from_landmarks(
    points: Any,
    pixels: Any,
    camera: Any,
    *,
    seen: Any = None,
    ransac_px: float | None = None,
    min_points: int = 4,
    backend: str = "auto",
) -> LandmarkPose:
    """Find the pose under which points of the body fall where a film shows them, in spite of wrong ones.

    points: [N, 3] RAS mm of the body.  pixels: (u, v) of the film as stored [N, 2]; several views of one
    moment: one such list a view, with a `Rig` or as many cameras.  seen: [N] or one list a view, False where
    a film does not show the point (its pixel then counts for nothing; by default all are shown).  Mirrored,
    skewed and non-square pixels are as the camera says; lenses do not exist here.

    ransac_px: reprojection error beyond which a point is taken as wrong; by default 4 mm at the detector (1 %
    of the diagonal where the camera has no sdd).  min_points: that must agree, and half of what is seen must
    in any case.  backend: "opencv" draws the consensus by OpenCV's RANSAC (the extra ``landmarks``; pinholes
    only; of points in a plane it may find none), "own" by ours, "auto" by OpenCV where it is installed, and
    by ours too unless most sights agree with that.  All are deterministic.  Whatever drew it, the consensus
    is then refined over all views at once with Huber's loss, and gives way to a better one of the same
    sights.

    RegistrationError, which says what to do, where points are too few, on one line, not finite, or do not
    agree with any pose before the sources.
    """
    problem = _Problem(points, pixels, camera, seen, ransac_px, min_points)
    if backend not in ("auto", "opencv", "own"):
        raise RegistrationError(f'backend must be "auto", "opencv" or "own", got {backend!r}')
    found = None
    if backend == "opencv" or (backend == "auto" and _cv2() is not None):
        found = problem.consensus(problem.opencv_candidates(required=backend == "opencv"))
    if backend == "own" or (backend == "auto" and not problem.convinced(found)):
        found = problem.own_consensus(found)
    return problem.answer(problem.better(found))


class _Problem:
    """One call, checked: sights of all views one after another."""

    def __init__(self, points: Any, pixels: Any, camera: Any, seen: Any, ransac_px: Any, least: int) -> None:
        self.points = _array(points, "points", 3)
        self.single, self.cameras, self.pixels, self.seen = _views(self.points, pixels, camera, seen)
        self.tolerance = [_tolerance(c, ransac_px) for c in self.cameras]
        self.least = max(int(least), 4 if len(self.cameras) == 1 else 3)
        self.sights = sights_of(self.points, self.pixels, self.cameras, self.seen, self.tolerance)
        self.number = torch.cat([s.nonzero()[:, 0] for s in self.seen])  # the point of each sight
        self.view = torch.cat([torch.full((int(s.sum()),), n) for n, s in enumerate(self.seen)])
        self._require_spread(self.number, "seen")
        if len(self.sights) < SUBSET:
            raise RegistrationError(
                f"{len(self.sights)} sights of landmarks do not fix a pose: at least {SUBSET} are needed"
            )

    def convinced(self, pose: Tensor | None) -> bool:
        """Whether so many sights agree with a pose that others need not be drawn."""
        return self.enough(pose) and float(self._within(pose).double().mean()) >= CONVINCING

    def better(self, pose: Tensor | None) -> Float[Tensor, "4 4"] | None:
        """The pose, or a better one that explains all that it explains: points of a plane have two."""
        if not self.enough(pose):
            return pose
        return self.consensus(
            self._fitted(self.sights.take(self._within(pose).nonzero()[:, 0]), 4, HUBER), pose
        )

    def own_consensus(self, rival: Tensor | None) -> Float[Tensor, "4 4"] | None:
        """The best of poses that fit four sights each, and of one that fits all in the mean."""
        found = self.consensus(self._fitted(self.sights, 4, HUBER), rival)
        drawn = _subsets(len(self.sights))
        for first in range(0, len(drawn), AT_ONCE):
            chunk = drawn[first : first + AT_ONCE]
            poses = self._fitted(self.sights.take(chunk), 2, math.inf).reshape(-1, 4, 4)
            found = self.consensus(poses, found)
            share = float(self._within(found).double().mean())
            if (1 - share**SUBSET) ** (first + len(chunk)) < MISSED:
                break
        return found

    def _fitted(self, sights: Sights, keep: int, huber: float) -> Float[Tensor, "*b keep 4 4"]:
        """The best poses for sights, from all rotations."""
        poses, _ = starts(sights, ROTATIONS, _identity())
        for left, iterations in ((max(keep, ROTATIONS // 3), 4), (keep, 12)):
            poses, cost = minimise(sights.batch(), poses, huber=huber, iterations=iterations)
            order = cost.argsort(dim=-1)[..., :left]
            poses = torch.gather(poses, -3, order[..., None, None].expand(*order.shape, 4, 4))
        return poses

    def opencv_candidates(self, *, required: bool) -> Float[Tensor, "C 4 4"]:
        """A pose for each pinhole view that sees four points or more, by OpenCV's RANSAC over P3P."""
        cv2 = _cv2()
        if cv2 is None:
            raise BackendError(
                "backend 'opencv' needs OpenCV: pip install 'xreg[landmarks]', or take backend='own'"
            )
        found = []
        for camera, pixels, seen, most in zip(
            self.cameras, self.pixels, self.seen, self.tolerance, strict=True
        ):
            if camera.parallel or int(seen.sum()) < SUBSET:
                continue
            k, flat = _without_skew(camera, pixels[seen])
            ok, turn, move, _ = cv2.solvePnPRansac(
                self.points[seen].numpy(), flat, k, None,
                iterationsCount=1000, reprojectionError=most, confidence=0.9999, flags=cv2.SOLVEPNP_AP3P,
            )  # fmt: skip
            if not ok:
                continue
            rotation = torch.from_numpy(np.ascontiguousarray(cv2.Rodrigues(turn)[0])).double()
            local = se3.from_rt(rotation, torch.from_numpy(np.ascontiguousarray(move[:, 0])).double())
            if bool(torch.isfinite(local).all()):
                found.append(se3.nearest_rigid(camera.world_from_camera.detach().cpu() @ local))
        if required and not found and all(c.parallel for c in self.cameras):
            raise RegistrationError("OpenCV knows no parallel beam: take backend='own'")
        return torch.stack(found) if found else torch.zeros(0, 4, 4, dtype=torch.float64)

    def consensus(self, candidates: Tensor, rival: Tensor | None = None) -> Float[Tensor, "4 4"] | None:
        """The candidate that most sights agree with, refined on these; None without a candidate."""
        if len(candidates):
            order = self._score(candidates).argsort()[:CANDIDATES]
            candidates = self._refined(candidates[order])
        if rival is not None:
            candidates = torch.cat([candidates, rival[None]])
        if not len(candidates):
            return None
        return candidates[self._score(candidates).argmin()]

    def _refined(self, poses: Float[Tensor, "C 4 4"]) -> Float[Tensor, "C 4 4"]:
        """Poses refined on the sights that they explain, until these stay the same."""
        within = self._within(poses)
        for _ in range(8):
            poses, _ = minimise(self.sights, poses, within.double(), huber=HUBER, iterations=30)
            now = self._within(poses)
            if bool((now == within).all()):
                break
            within = now
        return poses

    def _within(self, poses: Tensor) -> Bool[Tensor, "*b M"]:
        return self.sights.residuals(poses).norm(dim=-1) <= 1

    def _score(self, poses: Tensor) -> Float[Tensor, "*b"]:
        """Squared distances in tolerances, each at most one: less is better."""
        return self.sights.residuals(poses).square().sum(-1).clamp_max(1.0).sum(-1)

    def enough(self, pose: Tensor | None) -> bool:
        """Whether a pose explains as many landmarks as it has to."""
        if pose is None:
            return False
        within = self._within(pose)
        return (
            len(set(self.number[within].tolist())) >= self.least
            and int(within.sum()) >= max(SUBSET, LEAST_SHARE * len(self.sights))
        )  # fmt: skip

    def answer(self, pose: Tensor | None) -> LandmarkPose:
        """The pose with what is known about it, or why there is none."""
        if pose is None or not self.enough(pose):
            count = 0 if pose is None else int(self._within(pose).sum())
            raise RegistrationError(
                f"no pose explains the landmarks: at best {count} of {len(self.sights)} fall within "
                f"{max(self.tolerance):.3g} px, and {self._needed()} must. Check that names (left and right) "
                "and pixels belong together, that the camera is the film's (mirrored, spacing), and ransac_px"
            )
        pose = self._at_home(pose)
        within = self._within(pose)
        self._require_spread(self.number[within], "left after wrong ones were put aside")
        self._require_before_detector(pose)
        residuals = self.sights.residuals(pose).norm(dim=-1) * self.sights.tolerance
        rms = float(residuals[within].square().mean().sqrt())
        center = se3.apply(pose, self.points[self.number[within]].mean(0, keepdim=True))[0]
        spread = self._covariance(pose, within, center)
        shape = (len(self.cameras), len(self.points))
        inliers, distances = torch.zeros(shape, dtype=torch.bool), torch.full(shape, torch.nan).double()
        inliers[self.view, self.number], distances[self.view, self.number] = within, residuals
        if self.single:
            inliers, distances = inliers[0], distances[0]
        return LandmarkPose(pose, inliers, distances, rms, spread, center, self._others(pose, within))

    def _at_home(self, pose: Tensor) -> Tensor:
        """The pose with the depth of the body's own frame, where a single parallel beam does not tell it."""
        if len(self.cameras) > 1 or not self.cameras[0].parallel:
            return pose
        beam = self.cameras[0].world_from_camera.detach().cpu()[:3, 2]
        shift = (self.points - se3.apply(pose, self.points)).mean(0)
        return se3.from_translation((shift @ beam) * beam) @ pose

    def _needed(self) -> int:
        return max(self.least, SUBSET, math.ceil(LEAST_SHARE * len(self.sights)))

    def _covariance(self, pose: Tensor, within: Tensor, center: Tensor) -> Tensor | None:
        """From the normal equations and the residuals' noise; few residuals count with a third tolerance."""
        s = self.sights.residuals(pose).norm(dim=-1)[within]
        weights = (HUBER / s.clamp_min(1e-300)).clamp_max(1.0)
        doubt = 2.0  # residuals' worth of believing in a third of the tolerance
        freedom = max(2 * len(s) - 6, 0)
        noise = (float((weights * s * s).sum()) + doubt / 9) / (freedom + doubt)
        matrix = normal_matrix(self.sights.take(within.nonzero()[:, 0]), pose, weights, center)
        size = matrix.diagonal().sqrt()
        scaled = matrix / size[:, None] / size
        if not bool(torch.isfinite(scaled).all()) or float(torch.linalg.eigvalsh(scaled)[0]) < 1e-12:
            return None
        spread = noise * torch.linalg.inv(scaled) / size[:, None] / size
        return 0.5 * (spread + spread.T)

    def _others(self, pose: Tensor, within: Tensor) -> tuple[Tensor, ...]:
        sights = self.sights.take(within.nonzero()[:, 0])
        poses = self._fitted(sights, ROTATIONS, HUBER)
        largest = sights.residuals(poses).norm(dim=-1)
        poses = poses[(largest.amax(-1) <= 1).nonzero()[:, 0]]
        found = [pose]
        for other in poses:
            turns = [float(se3.geodesic_distance(other, known)[0]) for known in found]
            if min(turns) > math.radians(OTHER_DEGREES) and self._before_detector(other):
                found.append(other)
        return tuple(found[1:])

    def _require_spread(self, numbers: Tensor, which: str) -> None:
        points = self.points[numbers.unique()]
        if len(points) < self.least:
            raise RegistrationError(
                f"{len(points)} landmarks are {which}, and {self.least} are needed; place more of them"
            )
        along, across = torch.linalg.svdvals(points - points.mean(0))[:2].tolist()
        if across < COLLINEAR * along or along < 1e-6:
            raise RegistrationError(
                f"the {len(points)} landmarks that are {which} lie on one line (or in one point), about "
                "which the body can turn unseen; add one well away from it"
            )

    def _before_detector(self, pose: Tensor) -> bool:
        middle = self.points[self.number.unique()].mean(0, keepdim=True)
        for camera in self.cameras:
            if camera.parallel or camera.sdd is None:
                continue
            depth = float(se3.apply(camera.camera_from_world.detach().cpu() @ pose, middle)[0, 2])
            if depth > BEYOND * float(camera.sdd):
                return False
        return True

    def _require_before_detector(self, pose: Tensor) -> None:
        if not self._before_detector(pose):
            raise RegistrationError(
                "the landmarks would lie behind the detector: the image of the body is smaller than it can "
                "be. Check the pixel spacing and sdd of the camera, and that points are in mm"
            )


def _subsets(count: int) -> Int[Tensor, "S 4"]:
    """All subsets of four, shuffled, or as many at random; the same each time."""
    rng = np.random.default_rng(0)
    if math.comb(count, SUBSET) <= SUBSETS:
        drawn = rng.permutation(list(itertools.combinations(range(count), SUBSET)))
    else:
        drawn = np.stack([rng.choice(count, SUBSET, replace=False) for _ in range(SUBSETS)])
    return torch.from_numpy(drawn)


def _identity() -> Tensor:
    return torch.eye(4, dtype=torch.float64)


def _cv2() -> Any:
    """OpenCV, or None where it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def _without_skew(camera: Camera, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] without skew and pixels [n, 2] of the image as the pinhole sees it: OpenCV knows no other."""
    k = camera.K.detach().cpu().clone()
    u, v = pixels.unbind(-1)
    if camera.mirrored:
        u = camera.size[1] - 1 - u
    u = u - k[0, 1] * (v - k[1, 2]) / k[1, 1]
    k[0, 1] = 0.0
    return k.numpy(), torch.stack([u, v], dim=-1).numpy()


def _tolerance(camera: Camera, ransac_px: float | None) -> float:
    if ransac_px is not None:
        if not (math.isfinite(ransac_px) and ransac_px > 0):
            raise RegistrationError(f"ransac_px must be a positive number of pixels, got {ransac_px}")
        return float(ransac_px)
    if camera.parallel or camera.sdd is not None:
        return TOLERANCE_MM / float(camera.spacing.mean())
    return TOLERANCE_SHARE * math.hypot(*camera.size)


def _array(value: Any, name: str, width: int) -> Tensor:
    try:
        found = tensor64(value, name, rows=True).detach().cpu()
    except GeometryError as error:
        raise RegistrationError(str(error)) from error
    if found.ndim != 2 or found.shape[1] != width:
        raise RegistrationError(f"{name} must have shape [N, {width}], got {list(found.shape)}")
    if name == "points" and not bool(torch.isfinite(found).all()):
        raise RegistrationError("points must be finite (RAS mm), but hold NaN or infinity; leave these out")
    return found


def _views(
    points: Tensor, pixels: Any, camera: Any, seen: Any
) -> tuple[bool, list[Camera], list[Tensor], list[Tensor]]:
    """Whether it is one view given as such, cameras, pixels [N, 2] a view, and what is seen [N] a view."""
    several = not isinstance(camera, Camera) or (hasattr(pixels, "ndim") and pixels.ndim == 3)
    cameras = [camera] if isinstance(camera, Camera) else list(camera)
    pixels, seen = (list(pixels), seen) if several else ([pixels], None if seen is None else [seen])
    seen = [None] * len(pixels) if seen is None else list(seen)
    if not cameras or not len(cameras) == len(pixels) == len(seen):
        raise RegistrationError(
            f"each view needs its camera, pixels and seen: got {len(cameras)}, {len(pixels)} and {len(seen)}"
        )
    if any(c.batch_shape for c in cameras):
        raise RegistrationError("pose_from_landmarks takes one camera a view, got a batch; index it first")
    found, shown = [], []
    for pixel, mask in zip(pixels, seen, strict=True):
        pixel = _array(pixel, "pixels", 2)
        mask = torch.ones(len(pixel), dtype=torch.bool) if mask is None else as_tensor(mask).bool().cpu()
        if not len(pixel) == len(mask) == len(points) or mask.ndim != 1:
            raise RegistrationError(
                f"each view needs a pixel (and seen) for each of the {len(points)} points, got {len(pixel)} "
                f"and {list(mask.shape)}; match them by name first (xreg.io.match_landmarks)"
            )
        if not bool(torch.isfinite(pixel[mask]).all()):
            raise RegistrationError(
                "pixels hold NaN or infinity where a point is seen: it may lie behind the source. Say with "
                "seen which points a film shows, or leave these out"
            )
        found.append(pixel)
        shown.append(mask)
    return not several, cameras, found, shown
