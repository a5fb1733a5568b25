"""A patient to make films of: CT numbers and labels on one grid, from a CT or from labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int16
from torch import Tensor

from xreg.errors import FileError, ShapeError, XregError
from xreg.io import VoxelGrid
from xreg.io.tensors import load_tensors, save_tensors
from xreg.shape.blocks import commonest
from xreg.shape.deform import base_points, blurred
from xreg.shape.schemes import scheme as scheme_of

SCHEMA = "xreg.shape-patient/1"
FILE = "patient.safetensors"
AIR, FAT, SOFT, BONE, CORTEX = -1000.0, -90.0, 45.0, 250.0, 650.0  # HU
_FLESH = 45.0  # mm from the outermost bones of a slice to the skin
_RIM = 12.0  # mm of fat under it


@dataclass(frozen=True, eq=False)
class Patient:
    """CT numbers [D, H, W] (float32) and labels (int16, numbers of ``scheme``) on ``grid``.

    known: bool [L], labels that the annotation could hold; None: all.  The background's entry is true.
    Raises ShapeError for parts that do not fit together or labels that the scheme does not know.
    """

    hu: Float[Tensor, "D H W"]
    labels: Int16[Tensor, "D H W"]
    grid: VoxelGrid
    name: str
    scheme: str = "all"
    known: Bool[Tensor, " L"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hu", self.hu.to(torch.float32))
        object.__setattr__(self, "labels", self.labels.to(torch.int16))
        for what, tensor in (("hu", self.hu), ("labels", self.labels)):
            if tuple(tensor.shape) != self.grid.shape:
                raise ShapeError(f"{what} must have the grid's shape {self.grid.shape}, got {tensor.shape}")
        if not bool(self.hu.isfinite().all()):
            raise ShapeError(f"{self.name}: CT numbers must be finite")
        known = scheme_of(self.scheme)
        known.require(self.labels, self.name)
        if self.known is not None and tuple(self.known.shape) != (len(known),):
            raise ShapeError(f"known must be bool [{len(known)}], got {tuple(self.known.shape)}")

    @classmethod
    def from_labels(
        cls,
        labels: Int16[Tensor, "D H W"],
        grid: VoxelGrid,
        name: str,
        *,
        scheme: str = "all",
        known: Bool[Tensor, " L"] | None = None,
    ) -> Patient:
        """A patient without a CT: bones of mean density with a shell of cortex, in a body of soft tissue.

        The body is an ellipse in each slice across k, about the bones of that slice and 45 mm wider, with a
        rim of fat.  No organs, no air inside.
        """
        return cls(_phantom(labels, grid), labels, grid, name, scheme, known)

    def to(self, device: torch.device | str) -> Patient:
        """The patient with its tensors on ``device``."""
        known = None if self.known is None else self.known.to(device)
        return replace(self, hu=self.hu.to(device), labels=self.labels.to(device), known=known)

    def on(self, grid: VoxelGrid) -> Patient:
        """The patient on another grid, which may be oblique to its own; air and background beyond its own.

        Where the new voxels are larger by half or more, CT numbers are averaged and labels decided by
        majority over blocks of old voxels first.
        """
        factor = round(
            min(new / old for new, old in zip(sorted(grid.spacing), sorted(self.grid.spacing), strict=True))
        )
        source = self.binned(factor) if factor > 1 else self
        points = sample_points(grid, source.grid, torch.eye(4, dtype=torch.float64), self.hu.device)
        hu, labels = source.at(points)
        return replace(self, hu=hu, labels=labels, grid=grid)

    def at(self, points: Float[Tensor, "d h w 3"]) -> tuple[Float[Tensor, "d h w"], Int16[Tensor, "d h w"]]:
        """CT numbers and labels at points in grid_sample's coordinates (`sample_points`)."""
        return self.hu_at(points), self.labels_at(points)

    def hu_at(self, points: Float[Tensor, "d h w 3"]) -> Float[Tensor, "d h w"]:
        """CT numbers, trilinear; air beyond the grid."""
        above = (self.hu - AIR)[None, None]
        return F.grid_sample(above, points[None], padding_mode="zeros", align_corners=True)[0, 0] + AIR

    def labels_at(self, points: Float[Tensor, "d h w 3"]) -> Int16[Tensor, "d h w"]:
        """Labels of the nearest voxels; background beyond the grid."""
        known = {"mode": "nearest", "padding_mode": "zeros", "align_corners": True}
        return F.grid_sample(self.labels.float()[None, None], points[None], **known)[0, 0].to(torch.int16)

    def binned(self, n: int) -> Patient:
        """Blocks of n³ voxels: the mean of the CT numbers, the commonest label (the smaller on a tie)."""
        if n > min(self.hu.shape):
            raise ShapeError(
                f"{self.name}: has {min(self.hu.shape)} voxels along an axis, too few for blocks of {n}"
            )
        hu = F.avg_pool3d(self.hu[None, None], n)[0, 0]
        return replace(self, hu=hu, labels=commonest(self.labels, n), grid=self.grid.binned(n))

    def save(self, folder: str | PathLike) -> None:
        """Write ``patient.safetensors`` into a folder that exists, atomically; CT numbers as int16."""
        hu = self.hu.round().clamp(-32768, 32767).to(torch.int16)
        tensors = {"hu": hu, "labels": self.labels, "known": self.known}
        facts = {"name": self.name, "scheme": self.scheme, "grid": self.grid.to_dict()}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_tensors(Path(folder) / FILE, kept, facts, schema=SCHEMA)

    @classmethod
    def load(cls, folder: str | PathLike) -> Patient:
        """Read what `save` wrote.  Raises FileError where it is missing or damaged."""
        file, remedy = Path(folder) / FILE, "run xreg shape prepare again"
        tensors, facts = load_tensors(file, schema=SCHEMA, what="a patient", remedy=remedy)
        try:
            grid = VoxelGrid.from_dict(facts["grid"])
            known = tensors.get("known")
            return cls(tensors["hu"], tensors["labels"], grid, facts["name"], facts["scheme"], known)
        except (KeyError, TypeError, XregError) as error:
            raise FileError(f"{file}: lacks an entry or holds a wrong one ({error}); {remedy}") from error


def sample_points(
    grid: VoxelGrid, source: VoxelGrid, source_from_world: Tensor, device: torch.device
) -> Float[Tensor, "d h w 3"]:
    """Where a grid's voxels, moved by ``source_from_world`` (4×4, mm), lie in ``source``: float32.

    In grid_sample's coordinates of ``source``, -1 to 1 from first to last centre.
    """
    index = source.index_from_world @ source_from_world @ grid.affine
    sizes = torch.tensor([max(n - 1, 1) for n in source.size], dtype=torch.float64)
    unit = torch.eye(4, dtype=torch.float64)
    unit[:3, :3], unit[:3, 3] = torch.diag(2.0 / sizes), -1.0
    ends = torch.eye(4, dtype=torch.float64)  # from -1..1 over the new grid to its index
    half = torch.tensor([(n - 1) / 2 for n in grid.size], dtype=torch.float64)
    ends[:3, :3], ends[:3, 3] = torch.diag(half), half
    whole = (unit @ index @ ends).to(torch.float32).to(device)
    return base_points(grid.shape, whole) @ whole[:3, :3].T + whole[:3, 3]


def counted(names: Sequence[object]) -> str:
    """How many patients, and who, for people."""
    return f"{len(names)} patient{'s' * (len(names) != 1)}: {', '.join(map(str, names))}"


def _phantom(labels: Tensor, grid: VoxelGrid) -> Float[Tensor, "D H W"]:
    bone = (labels > 0).float()
    if not bool((bone > 0).any()):
        raise ShapeError("labels hold no bone, so no patient can be made of them")
    shares = blurred(bone[None])[0]  # below one where another tissue is near
    solid = torch.where(shares > 0.95, BONE, CORTEX)
    away = _skin_distance(bone, grid.spacing)
    body = torch.where(away > _RIM, SOFT, torch.where(away > 0, FAT, AIR))
    return torch.where(bone > 0, solid, body)


def _skin_distance(bone: Tensor, spacing: tuple[float, float, float]) -> Float[Tensor, "D H W"]:
    """About how deep (mm) each voxel lies under an ellipse about the bones of its slice; below 0 outside."""
    depth, height, width = bone.shape
    filled = bone.amax((1, 2)) > 0
    rows = torch.arange(depth, device=bone.device)
    nearest = (rows[:, None] - rows[filled][None]).abs().argmin(1)
    normal = []
    half = []
    for axis, n, step in ((1, width, spacing[0]), (2, height, spacing[1])):
        line = torch.arange(n, dtype=torch.float32, device=bone.device)
        seen = bone.amax(axis)[filled] > 0  # [slices, n]
        low = torch.where(seen, line, torch.inf).amin(1)[nearest]
        high = torch.where(seen, line, -torch.inf).amax(1)[nearest]
        ends = torch.stack([low, high])[:, None, :]
        low, high = F.avg_pool1d(F.pad(ends, (4, 4), mode="replicate"), 9, stride=1)[:, 0]
        reach = (high - low) * step / 2 + _FLESH
        normal.append((line - ((low + high) / 2)[:, None]) * step / reach[:, None])
        half.append(reach)
    radius = torch.sqrt(normal[0][:, None, :] ** 2 + normal[1][:, :, None] ** 2)
    return (1.0 - radius) * torch.minimum(half[0], half[1])[:, None, None]
