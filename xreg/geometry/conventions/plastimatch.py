"""plastimatch's projection file: centre, 3×4 matrix, SAD, SID, normal, extrinsic, intrinsic. World LPS mm.

Column = P₀·x / P₂·x + centre₀ and row = P₁·x / P₂·x + centre₁, pixel centres at integers, row 0 at the end
that VUP points to: a pinhole, not mirrored. Intrinsic is diag(1/pitch₀, 1/pitch₁, 1/SID), and the line of
the normal holds the third row of Extrinsic, which points from the source to the detector. The command line
calls ``-r``, ``-c`` and ``-z`` "row col", but 1.10 takes the column (width) first. Source:
base/proj_matrix.cxx, and its output.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from xreg.errors import GeometryError
from xreg.geometry import se3
from xreg.geometry._numbers import tensor64
from xreg.geometry.camera import Camera
from xreg.geometry.conventions._common import (
    Matrix4,
    Matrix34,
    Pair,
    Params,
    Positive,
    Vector,
    require_mirrored,
    vector,
    view_of,
)
from xreg.geometry.conventions.lps import camera_from_ras, flip_points

_ROUNDING = 1e-6  # the file holds nine digits


@dataclass(frozen=True)
class Plastimatch(Params):
    """The blocks of the file in order, and the image's size in pixels, which the file lacks."""

    tool: ClassVar[str] = "plastimatch"
    image_center: Pair
    matrix: Matrix34
    sad: Positive
    sid: Positive
    nrm: Vector
    extrinsic: Matrix4
    intrinsic: Matrix34
    _: KW_ONLY
    rows: int
    columns: int


def parse(text: str, *, rows: int, columns: int) -> Plastimatch:
    """Read the text of a projection file; GeometryError if blocks are missing."""
    words = text.split()
    try:
        first, second = words.index("Extrinsic"), words.index("Intrinsic")
        head, extrinsic, intrinsic = words[:first], words[first + 1 : second], words[second + 1 :]
        numbers = [np.array(block, dtype=np.float64) for block in (head, extrinsic, intrinsic)]
        if [len(block) for block in numbers] != [19, 16, 12]:
            raise ValueError("wrong count of numbers")
    except ValueError as error:
        raise GeometryError(
            "a plastimatch projection file holds 19 numbers (centre 2, matrix 12, SAD, SID, normal 3), the "
            f"word Extrinsic and 16, the word Intrinsic and 12; this text does not: {error}"
        ) from error
    head_, extrinsic_, intrinsic_ = numbers
    return Plastimatch(
        image_center=head_[:2],
        matrix=head_[2:14].reshape(3, 4),
        sad=head_[14],
        sid=head_[15],
        nrm=head_[16:],
        extrinsic=extrinsic_.reshape(4, 4),
        intrinsic=intrinsic_.reshape(3, 4),
        rows=rows,
        columns=columns,
    )


def write(params: Plastimatch) -> str:
    """Return the text of a projection file, laid out as plastimatch does (nine digits)."""
    p = params

    def lines(rows: tuple[tuple[float, ...], ...]) -> list[str]:
        return [" ".join(f"{value:18.8e}" for value in row) for row in rows]

    blocks = [*lines((p.image_center,)), *lines(p.matrix), *lines(((p.sad,), (p.sid,), p.nrm))]
    blocks += ["Extrinsic", *lines(p.extrinsic), "Intrinsic", *lines(p.intrinsic)]
    return "\n".join(blocks) + "\n"


def to_camera(params: Plastimatch) -> Camera:
    """Return the camera of the image; world RAS mm. GeometryError if the blocks contradict each other."""
    p = params
    intrinsic, extrinsic, matrix = (np.array(m) for m in (p.intrinsic, p.extrinsic, p.matrix))
    product = intrinsic @ extrinsic
    if np.abs(product - matrix).max() > _ROUNDING * np.abs(matrix).max():
        raise GeometryError(
            "matrix of plastimatch must be intrinsic · extrinsic, but they differ; which is right?"
        )
    if min(intrinsic[0, 0], intrinsic[1, 1], p.sid) <= 0:
        raise GeometryError(f"pitch and SID of plastimatch must be positive, got {p.intrinsic}, SID {p.sid}")
    fx, fy = intrinsic[0, 0] / intrinsic[2, 2], intrinsic[1, 1] / intrinsic[2, 2]
    k = [[fx, 0.0, p.image_center[0]], [0.0, fy, p.image_center[1]], [0.0, 0.0, 1.0]]
    pose = se3.require_rigid(tensor64(extrinsic, "extrinsic", rows=True), "extrinsic of plastimatch")
    pose = camera_from_ras(se3.nearest_rigid(pose).numpy())
    return Camera(k, pose, (p.rows, p.columns), p.sid)


def from_camera(camera: Camera, *, isocenter: Vector = (0.0, 0.0, 0.0)) -> Plastimatch:
    """Return the blocks of the file; SAD is the distance from the source to ``isocenter`` (RAS mm)."""
    require_mirrored(camera, False, "plastimatch", "its image is a pinhole's")
    view = view_of(camera, "plastimatch")
    extrinsic = camera_from_ras(camera.camera_from_world.detach().cpu().numpy())
    intrinsic = np.zeros((3, 4))
    np.fill_diagonal(intrinsic, [*(view.focal / view.sdd), 1.0 / view.sdd])
    return Plastimatch(
        image_center=view.center,
        matrix=intrinsic @ extrinsic,
        sad=np.linalg.norm(view.source - vector(isocenter, "isocenter of plastimatch")),
        sid=view.sdd,
        nrm=flip_points(view.beam),
        extrinsic=extrinsic,
        intrinsic=intrinsic,
        rows=view.size[0],
        columns=view.size[1],
    )
