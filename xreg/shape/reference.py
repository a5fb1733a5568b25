"""Surfaces of bones beside reference surfaces of the same patient, as a CT gives them (Open3D)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from xreg.errors import FileError, ShapeError
from xreg.geometry import se3
from xreg.optional import optional
from xreg.shape.meshes import SUFFIXES, surface_package
from xreg.shape.schemes import Scheme

if TYPE_CHECKING:
    from trimesh import Trimesh

REACH_MM = 10.0  # pairs of points further apart do not count in a registration
_POINTS = 5000  # on each surface


@dataclass(frozen=True, eq=False)
class ReferenceFit:
    """A bone against its reference.

    gap_mm: mean distance between both surfaces (both ways) as they lie.  moved_gap_mm: after ``motion``
    [4, 4] (RAS mm), which lays the bone onto the reference; what remains is its shape.  turn_degrees,
    shift_mm: of that motion, at the bone's middle.
    """

    name: str
    gap_mm: float
    moved_gap_mm: float
    turn_degrees: float
    shift_mm: float
    motion: Float64[Tensor, "4 4"]

    @property
    def text(self) -> str:
        """In a line."""
        return (
            f"{self.name}: {self.gap_mm:.1f} mm apart; {self.moved_gap_mm:.1f} mm once moved by "
            f"{self.shift_mm:.1f} mm and turned by {self.turn_degrees:.1f}°"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "gap_mm": self.gap_mm,
            "moved_gap_mm": self.moved_gap_mm,
            "turn_degrees": self.turn_degrees,
            "shift_mm": self.shift_mm,
            "reference_from_bone": self.motion.tolist(),
        }


def read_references(folder: str | PathLike, names: Scheme) -> dict[str, Trimesh]:
    """Surfaces in a folder, NAME.stl or NAME.ply with a bone's name, in RAS mm.

    Other files are passed over.  Raises BackendError without trimesh or Open3D, FileError where no surface
    has a bone's name, or one cannot be read.
    """
    _open3d()
    trimesh = surface_package("trimesh", "trimesh")
    files = {f.stem: f for f in sorted(Path(folder).glob("*")) if f.suffix.lower() in SUFFIXES}
    wanted = [name for name in names.names[1:] if name in files]
    if not wanted:
        raise FileError(
            f"{folder}: holds no surface of a bone; they are named as in the label scheme, say "
            f"{names.names[-1]}.stl or .ply"
        )
    found = {}
    for name in wanted:
        try:
            mesh = trimesh.load_mesh(files[name])
        except Exception as error:  # its readers raise what they like
            raise FileError(f"{files[name]}: cannot be read as a surface ({error})") from error
        if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
            raise FileError(f"{files[name]}: holds no triangles")
        found[name] = mesh
    return found


def compare_surfaces(
    meshes: Mapping[str, Trimesh], references: Mapping[str, Trimesh], *, reach_mm: float = REACH_MM
) -> tuple[ReferenceFit, ...]:
    """Each bone that both have, against its reference; () where they share none.

    A bone that lies further away than ``reach_mm`` on average is brought to the reference's middle first.
    Raises BackendError without Open3D.
    """
    shared = [name for name in meshes if name in references]
    return tuple(_compare(name, meshes[name], references[name], reach_mm) for name in shared)


def align_surface(
    mesh: Trimesh,
    reference: Trimesh,
    *,
    reach_mm: float = REACH_MM,
    start: Float64[Tensor, "4 4"] | None = None,
    seed: int = 0,
) -> tuple[Float64[Tensor, "4 4"], float]:
    """The rigid motion [4, 4] (RAS mm) that lays a surface onto a reference nearby, and the RMS gap after it.

    Open3D's point-to-plane ICP over points of each surface, from ``start`` (as they lie, by default); pairs
    further apart than ``reach_mm`` do not count, nor in the gap.  Raises BackendError without Open3D,
    ShapeError where no pair is near enough.
    """
    o3d = _open3d()
    clouds = []
    for surface in (mesh, reference):
        places, faces = _sampled(surface, seed)
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(places))
        cloud.normals = o3d.utility.Vector3dVector(np.asarray(surface.face_normals[faces]))
        clouds.append(cloud)
    begin = np.eye(4) if start is None else start.numpy()
    rule = o3d.pipelines.registration.TransformationEstimationPointToPlane()
    found = o3d.pipelines.registration.registration_icp(*clouds, reach_mm, begin, rule)
    if not len(found.correspondence_set):
        raise ShapeError(
            f"no point of the surface lies within {reach_mm} mm of the reference; bring it nearer, or reach "
            "further"
        )
    return torch.from_numpy(np.array(found.transformation)), float(found.inlier_rmse)


def surface_gap(mesh: Trimesh, reference: Trimesh, *, seed: int = 0) -> float:
    """Mean distance (mm) of points of each surface from the other, both ways.  BackendError."""
    o3d = _open3d()
    gaps = []
    for one, other in ((mesh, reference), (reference, mesh)):
        scene = o3d.t.geometry.RaycastingScene()
        corners = o3d.core.Tensor(np.asarray(other.vertices, dtype=np.float32))
        scene.add_triangles(corners, o3d.core.Tensor(np.asarray(other.faces, dtype=np.uint32)))
        places = o3d.core.Tensor(_sampled(one, seed)[0].astype(np.float32))
        gaps.append(float(scene.compute_distance(places).numpy().mean()))
    return sum(gaps) / 2


def _compare(name: str, mesh: Trimesh, reference: Trimesh, reach_mm: float) -> ReferenceFit:
    middle = torch.from_numpy(np.array(mesh.centroid))
    motion, gap = torch.eye(4, dtype=torch.float64), surface_gap(mesh, reference)
    moved = gap
    if gap > reach_mm:
        motion = se3.from_translation(torch.from_numpy(np.array(reference.centroid)) - middle)
        moved = _gap_after(mesh, reference, motion)
    found, _ = align_surface(mesh, reference, reach_mm=reach_mm, start=motion)
    after = _gap_after(mesh, reference, found)
    if after < moved:  # planes that slide along each other can leave the points further apart
        motion, moved = found, after
    turn, shift = se3.geodesic_distance(torch.eye(4, dtype=torch.float64), motion, middle)
    return ReferenceFit(name, gap, moved, float(turn.rad2deg()), float(shift), motion)


def _gap_after(mesh: Trimesh, reference: Trimesh, motion: Tensor) -> float:
    return surface_gap(mesh.copy().apply_transform(motion.numpy()), reference)


def _sampled(mesh: Trimesh, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points spread over a surface, and the triangles that they lie in."""
    import trimesh

    places, faces = trimesh.sample.sample_surface(mesh, _POINTS, seed=seed)
    return np.asarray(places), faces


def _open3d() -> Any:
    return optional(
        "open3d", "comparing surfaces with references needs the package open3d: pip install open3d"
    )
