"""Whether films and cameras fit each other, and the grid that they see together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, ImageError
from xreg.geometry import Camera
from xreg.geometry._numbers import as_tensor
from xreg.io.voxel_grid import VoxelGrid
from xreg.shape.meeting import Ray, meeting, ray_at
from xreg.shape.prepare import upright

# Correlation of the steps of both profiles.  The eight published patients have .91 to .997; films of two
# patients have .75 at most (56 pairs).
AGREE = 0.82
_SCALES = (0.67, 0.75, 0.83, 0.9, 1.0, 1.11, 1.2, 1.33, 1.5)
_GAIN = 0.15  # by which another scale must do better to be named
_SAMPLES = 80  # along the common axis
_SAME_WAY = 5.0  # degrees between beams, under which two films say the same
MOST_VOXELS = 160  # about, along the longest edge
_FITS = 2**26  # voxels, as many as a usual computer has memory for
_LEAST_SLOPE = 0.3  # of a camera's pixels a mm: below it an axis runs along the beam


@dataclass(frozen=True)
class Agreement:
    """How well two films agree along the axis that both beams cross at right angles.

    correlation: of the steps of the mean attenuation along that axis, which is the same in both films where
    beams are parallel and nearly so where they are not.  scale: how large the second film shows things, over
    the first; the factor that suits best, with the correlation that it gives.
    """

    films: tuple[int, int]
    correlation: float
    scale: float
    scaled_correlation: float

    @property
    def warning(self) -> str:
        """What a user should know, or an empty text."""
        a, b = self.films
        if self.correlation >= AGREE:
            return ""
        what = f"films {a} and {b} disagree along their common axis (correlation {self.correlation:.2f}"
        if self.scaled_correlation > max(self.correlation + _GAIN, AGREE):
            return (
                f"{what}), and film {b} seems to show things {self.scale:g} times as large as film {a} (then "
                f"{self.scaled_correlation:.2f}): check the pixel spacings of the cameras"
            )
        return f"{what}; {AGREE} is the least): of two patients, of two moments, or with wrong cameras?"


def check_films(films: Sequence[Tensor], cameras: Sequence[Camera]) -> Float[Tensor, "V H W"]:
    """Films in one stack.

    ImageError where sizes differ from each other or from the cameras', or where values are not finite.
    """
    films = [as_tensor(film) for film in films]
    if not films or len(films) != len(cameras):
        raise ImageError(
            f"there must be one camera a film, got {len(films)} films and {len(cameras)} cameras"
        )
    for number, (film, camera) in enumerate(zip(films, cameras, strict=True)):
        if film.ndim != 2 or camera.batch_shape or tuple(camera.size) != tuple(film.shape):
            raise ImageError(
                f"film {number} has {'×'.join(map(str, film.shape))} px (H×W) and its camera "
                f"{'×'.join(map(str, camera.size))}; give the camera of this file, or resize one to the other"
            )
    if len({tuple(film.shape) for film in films}) > 1:
        sizes = ", ".join("×".join(map(str, film.shape)) for film in films)
        raise ImageError(
            f"films must have one size (H×W), got {sizes} px; crop or bin them with their cameras"
        )
    stack = torch.stack([film.to(torch.promote_types(film.dtype, torch.float32)) for film in films])
    for number, film in enumerate(stack):
        if not bool(film.isfinite().all()):
            count = int((~film.isfinite()).sum())
            raise ImageError(f"film {number} has {count} values that are not finite; fill or crop them")
    return stack


def facing_point(cameras: Sequence[Camera], center: Sequence[float] | None = None) -> Float[Tensor, " 3"]:
    """The world point (RAS mm) that cameras face: the nearest to their middle rays, or ``center``.

    Raises GeometryError where that point does not lie in each film, where beams run the same way, so that
    there is no such point, or for one perspective film without ``center``.
    """
    rays = [_middle_ray(camera) for camera in cameras]
    if center is not None:
        point = torch.as_tensor(center, dtype=torch.float64)
    elif len(cameras) == 1:
        if not cameras[0].parallel:
            raise GeometryError(
                "one perspective film does not say how far the patient is: give the middle of the grid "
                "(center=X,Y,Z in RAS mm), or a grid"
            )
        point = rays[0][0] + rays[0][1] * float(cameras[0].sdd) / 2
    else:
        point = _nearest(rays)
    for number, camera in enumerate(cameras):
        u, v = camera.project(point[None])[0].tolist()
        height, width = camera.size
        if not (-0.5 <= u <= width - 0.5 and -0.5 <= v <= height - 0.5):
            place = [round(x) for x in point.tolist()]
            if center is not None:
                raise GeometryError(
                    f"the middle of the grid, {place} (RAS mm), lies outside what film {number} shows: give "
                    "one that all films show (center=X,Y,Z or a grid), or leave it out"
                )
            gap = max((_gap(a, b) for a, b in combinations(rays, 2)), default=0.0)
            raise GeometryError(
                f"the cameras do not face one point: {place} (RAS mm) is not in film {number}, and middle "
                f"rays pass each other by {gap:.0f} mm; all cameras must be told in one world"
            )
    return point


def seen_grid(
    cameras: Sequence[Camera],
    point: Float[Tensor, " 3"],
    voxel_mm: float | None = None,
    most_voxels: int = MOST_VOXELS,
) -> VoxelGrid:
    """The upright grid about a point that all films show: i to the left, j to the front, k to the head.

    An edge that no film limits is as long as the longest other.  voxel_mm: by default
    ``most_voxels`` lie along the longest edge.
    """
    limits = torch.full((3,), torch.inf, dtype=torch.float64)
    for camera in cameras:
        at = camera.project(point[None])[0]
        steps = torch.cat([torch.eye(3), -torch.eye(3)]).to(torch.float64)
        slopes = (camera.project(point + steps) - at).abs()
        room = torch.minimum(at + 0.5, torch.tensor(camera.size[::-1], dtype=torch.float64) - 0.5 - at)
        across = slopes.norm(dim=1) > _LEAST_SLOPE * slopes.norm(dim=1).max()
        reach = (room / slopes.clamp_min(1e-9)).amin(1)
        reach = torch.where(across, reach, torch.inf)
        limits = torch.minimum(limits, torch.minimum(reach[:3], reach[3:]))
    longest = limits[limits.isfinite()].max()
    edges = 2 * torch.where(limits.isfinite(), limits, longest)
    voxel = float(edges.max()) / most_voxels if voxel_mm is None else float(voxel_mm)
    if not voxel > 0 or float((edges / voxel).round().prod()) > _FITS:
        raise GeometryError(
            f"voxel_mm must be above 0 and leave a grid that fits into memory, got {voxel_mm}"
        )
    counts = (edges / voxel).round().clamp_min(8)
    return upright(tuple(int(n) for n in counts.flip(0)), voxel, point)


def require_room(grid: VoxelGrid) -> None:
    """GeometryError for a grid of more voxels than a reconstruction has memory for."""
    if math.prod(grid.shape) > _FITS:
        raise GeometryError(
            f"a grid of {'×'.join(map(str, grid.shape))} voxels has more than {_FITS:,}; give a coarser one "
            "(films do not show half a millimetre of depth)"
        )


def agreements(
    films: Float[Tensor, "V H W"], cameras: Sequence[Camera], point: Float[Tensor, " 3"]
) -> tuple[Agreement, ...]:
    """How films agree, pair by pair; pairs whose beams run the same way are left out.

    films: bright where attenuation is high.  Source of the idea: the mass of a slice is the same from any
    side (the zeroth of the conditions of S. Helgason and D. Ludwig).
    """
    return tuple(
        found
        for pair in combinations(range(len(films)), 2)
        if (found := _agreement(pair, films, cameras, point)) is not None
    )


def _agreement(
    pair: tuple[int, int], films: Tensor, cameras: Sequence[Camera], point: Tensor
) -> Agreement | None:
    beams = [_middle_ray(cameras[n])[1] for n in pair]
    axis = torch.linalg.cross(*beams)
    if float(axis.norm()) < np.sin(np.radians(_SAME_WAY)):
        return None
    axis = axis / axis.norm()
    both = [(films[n], cameras[n], torch.linalg.cross(axis, b)) for n, b in zip(pair, beams, strict=True)]
    half = min(_room(camera, point, axis) for _, camera, _ in both)
    places = np.linspace(-half, half, 2 * _SAMPLES)
    first, second = (_profile(film, camera, (point, axis, side), places) for film, camera, side in both)
    found = {}
    for scale in _SCALES:
        inside = np.abs(places * scale) <= half
        other = np.interp(places[inside] * scale, places, second)
        found[scale] = _correlation(_steps(first[inside]), _steps(other))
    best = max(found, key=lambda s: found[s])
    return Agreement(pair, found[1.0], best, found[best])


def _profile(
    film: Tensor, camera: Camera, frame: tuple[Tensor, Tensor, Tensor], places: np.ndarray
) -> np.ndarray:
    """The film's mean across, at places (mm) along an axis through a point."""
    point, axis, side = frame
    half = max(_room(camera, point, side), _room(camera, point, -side))
    across = torch.linspace(-half, half, 2 * _SAMPLES, dtype=torch.float64)
    along = torch.from_numpy(places)
    points = point + along[:, None, None] * axis + across[None, :, None] * side
    size = torch.tensor(camera.size[::-1], dtype=torch.float64)
    at = (2 * camera.project(points.reshape(-1, 3)) + 1) / size - 1
    at = at.nan_to_num(9.0).reshape(1, len(along), -1, 2)
    values = F.grid_sample(film[None, None].double().cpu(), at, align_corners=False)[0, 0]
    inside = (at.abs() <= 1).all(-1)[0]
    return ((values * inside).sum(1) / inside.sum(1).clamp_min(1)).numpy()


def _steps(profile: np.ndarray) -> np.ndarray:
    return np.diff(profile[: len(profile) // 2 * 2].reshape(-1, 2).mean(1))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def _room(camera: Camera, point: Tensor, direction: Tensor) -> float:
    """How far (mm) one can go both ways from a point until the film ends."""
    ends = camera.project(torch.stack([point, point + direction]))
    slope = (ends[1] - ends[0]).abs()
    size = torch.tensor(camera.size[::-1], dtype=torch.float64)
    room = torch.minimum(ends[0] + 0.5, size - 0.5 - ends[0])
    return float((room / slope.clamp_min(1e-9)).min())


def _middle_ray(camera: Camera) -> Ray:
    """A point and the direction of the ray through the middle of the film."""
    height, width = camera.size
    return ray_at(camera, torch.tensor([(width - 1) / 2, (height - 1) / 2]))


def _nearest(rays: list[Ray]) -> Float[Tensor, " 3"]:
    matrix, side = meeting(rays)
    if float(torch.linalg.eigvalsh(matrix)[0]) < np.sin(np.radians(_SAME_WAY)) ** 2 / 2:
        raise GeometryError(
            f"the beams of these films run the same way (within {_SAME_WAY:g}°), so they do not say how deep "
            "the patient lies; give films from two sides, or a center or grid"
        )
    return torch.linalg.solve(matrix, side)


def _gap(a: Ray, b: Ray) -> float:
    """The least distance (mm) of two rays."""
    normal = torch.linalg.cross(a[1], b[1])
    if float(normal.norm()) < 1e-6:
        away = b[0] - a[0]
        return float((away - (away @ a[1]) * a[1]).norm())
    return float(((b[0] - a[0]) @ normal / normal.norm()).abs())
