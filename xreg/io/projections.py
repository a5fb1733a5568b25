"""Sets of projections: images, cameras and what is known about them, in memory and as a folder.

The folder holds `projections.json` (schema "xreg.projections/1": cameras, units, provenance),
`projections.npy` (float32 [V, H, W], line integrals), and where they are known `truth.nii.gz` (1/mm) and a
folder `held_out` of the same kind.  The whole folder appears in one step.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import FileError, GeometryError, ImageError, InputWarning
from ..geometry import Rig
from ..volume import Volume
from .files import read_json, require_file, write_json
from .voxel_grid import VoxelGrid

SCHEMA = "xreg.projections/1"
UNITS = "line integrals of attenuation, no unit; cameras and volumes in RAS mm, attenuation in 1/mm"
_JSON, _IMAGES, _TRUTH, _HELD_OUT = "projections.json", "projections.npy", "truth.nii.gz", "held_out"
_OPAQUE = 30.0  # exp(-30): no detector measures that
_PLAIN = 1.05  # largest value of intensities scaled by their beam


@dataclass(frozen=True, eq=False)
class ProjectionSet:
    """V projections of one object.

    images: float32 or float64 [V, H, W], line integrals of attenuation: ∫ µ dl with µ in 1/mm and l in mm, so
    without unit; 0 is air.  cameras: a `Rig` of V views of that image size; world RAS mm, or the tool's own
    right-handed frame in mm (``provenance`` says which).  grid: the voxels that the source states for the
    object, if any.  truth: the object itself (1/mm), if known.  scale: 1/mm that the source's unit of density
    is worth, where it has one of its own; divide by it to compare with the source.  held_out: views that
    were set aside for testing.  provenance: anything that JSON holds.

    Raises ImageError for NaN or infinite pixels (naming the views), images of another shape, or values that
    no line integral has (above 30); GeometryError where cameras and images do not fit.  Images that look like
    intensities, bright where there is air, get an InputWarning.
    """

    images: Float[Tensor, "V H W"]
    cameras: Rig
    grid: VoxelGrid | None = None
    truth: Volume | None = None
    scale: float | None = None
    held_out: ProjectionSet | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rig = self.cameras if isinstance(self.cameras, Rig) else Rig(tuple(self.cameras))
        object.__setattr__(self, "cameras", rig)
        object.__setattr__(self, "provenance", dict(self.provenance))
        if self.grid is None and self.truth is not None:
            object.__setattr__(self, "grid", VoxelGrid.of(self.truth))
        _check_images(self.images)
        sizes = sorted({camera.size for camera in rig})
        if len(rig) != len(self.images) or sizes != [tuple(self.images.shape[1:])]:
            raise GeometryError(
                f"projections {list(self.images.shape)} [V, H, W] need as many cameras of that size, got "
                f"{len(rig)} of sizes {sizes} (H, W)"
            )
        if any(camera.batch_shape for camera in rig):
            raise GeometryError("the cameras of a projection set must be single views, got a batch")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, views: Sequence[int]) -> ProjectionSet:
        """Some of the views, by number; the rest as it is."""
        views = list(views)
        return replace(self, images=self.images[views], cameras=Rig(tuple(self.cameras[i] for i in views)))

    def binned(self, n: int) -> ProjectionSet:
        """Means over blocks of n×n pixels, with cameras to fit; held-out views too.

        GeometryError for blocks larger than the images.
        """
        rig = self.cameras.map(lambda camera: camera.bin(n))
        height, width = (m // n * n for m in self.images.shape[1:])
        images = torch.nn.functional.avg_pool2d(self.images[:, None, :height, :width], n)[:, 0]
        held_out = None if self.held_out is None else self.held_out.binned(n)
        return replace(self, images=images, cameras=rig, held_out=held_out)

    def to(self, device: torch.device | str) -> ProjectionSet:
        """The set with its images on ``device``; cameras stay on the host, where they are cheapest."""
        return replace(self, images=self.images.to(device))


def save_projections(folder: str | PathLike, projections: ProjectionSet, *, overwrite: bool = False) -> None:
    """Write a set as a folder, which appears whole or not at all.

    overwrite: replace a folder that is such a set; another folder is never touched.  Raises FileError.
    """
    target = Path(folder)
    if target.exists() and not (overwrite and (target / _JSON).is_file()):
        hint = "pass overwrite=True to replace it" if (target / _JSON).is_file() else "it is not such a set"
        raise FileError(f"{target}: exists already; {hint}, or choose another name")
    if not target.parent.is_dir():
        raise FileError(f"{target}: the folder {target.parent} does not exist; make it first")
    mark = secrets.token_hex(6)
    new, old = (target.parent / f".{mark}.{word}.{target.name}" for word in ("new", "old"))
    try:
        _fill(new, projections)
        if target.exists():
            target.rename(old)
        new.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise FileError(f"{target}: could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _fill(folder: Path, projections: ProjectionSet) -> None:
    from .files import atomic_write
    from .volumes import save_volume

    folder.mkdir()
    images = projections.images.detach().cpu().float().numpy()
    with atomic_write(folder / _IMAGES) as temporary:
        np.save(temporary, images, allow_pickle=False)
    if projections.truth is not None:
        save_volume(folder / _TRUTH, projections.truth, units="mu")
    if projections.held_out is not None:
        _fill(folder / _HELD_OUT, projections.held_out)
    grid = projections.grid
    data = {
        "schema": SCHEMA,
        "units": UNITS,
        "images": {"file": _IMAGES, "shape": list(images.shape), "sha256": _digest(folder / _IMAGES)},
        "cameras": projections.cameras.to_dict(),
        "grid": None if grid is None else grid.to_dict(),
        "truth": _about_truth(folder / _TRUTH, projections.truth),
        "energy_kev": None if projections.truth is None else projections.truth.energy_kev,
        "scale": projections.scale,
        "held_out": None if projections.held_out is None else _HELD_OUT,
        "provenance": projections.provenance,
    }
    write_json(folder / _JSON, data)


def _about_truth(path: Path, truth: Volume | None) -> dict[str, str] | None:
    return None if truth is None else {"file": path.name, "units": "1/mm", "sha256": _digest(path)}


def load_projection_folder(folder: str | PathLike) -> ProjectionSet:
    """Read what `save_projections` wrote.

    FileError for a part that is missing, does not fit, or is not the one that was written (SHA-256).
    """
    root = Path(folder)
    if not (root / _JSON).is_file():
        raise FileError(f"{root}: has no {_JSON}; it is no projection set, or was never finished")
    data = read_json(root / _JSON, f"a projection set (schema {SCHEMA})")
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise FileError(f"{root / _JSON}: expected schema {SCHEMA!r}, got {found!r}")
    try:
        about, cameras, grid = data["images"], data["cameras"], data["grid"]
        images = load_array(root / _IMAGES, tuple(about["shape"]))
        _check_digest(root / _IMAGES, str(about["sha256"]))
        if grid is not None:
            grid = VoxelGrid.from_dict(grid)
        truth = None
        if data["truth"]:
            _check_digest(root / _TRUTH, data["truth"].get("sha256"))
            truth = _load_truth(root / _TRUTH, grid, data.get("energy_kev"))
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{root / _JSON}: an entry is missing or wrong ({error})") from error
    held_out = load_projection_folder(root / _HELD_OUT) if data.get("held_out") else None
    return ProjectionSet(
        torch.from_numpy(images), Rig.from_dict(cameras), grid, truth, data.get("scale"), held_out,
        data.get("provenance") or {},
    )  # fmt: skip


def load_array(path: Path, shape: tuple[int, ...] | None = None) -> Float[np.ndarray, "*shape"]:
    """A .npy file as float32 in this machine's byte order, never unpickled.

    FileError where it is cut short, of objects, or of another shape.
    """
    require_file(path, "an array (.npy)")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FileError(
            f"{path}: cannot be read as .npy ({error}); it may be truncated or hold objects"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise FileError(
            f"{path}: expected an array of real numbers, got {getattr(array, 'dtype', type(array))}"
        )
    if shape is not None and array.shape != shape:
        raise FileError(f"{path}: expected shape {shape}, got {array.shape}")
    return np.ascontiguousarray(array, dtype=np.float32)


def _load_truth(path: Path, grid: VoxelGrid, energy_kev: float | None) -> Volume:
    """On the grid that the JSON states, since NIfTI rounds an affine to float32."""
    from .nifti import read_nifti

    values = torch.from_numpy(np.ascontiguousarray(read_nifti(path).values)).float()
    return grid.volume(values, energy_kev=energy_kev)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_digest(path: Path, said: str | None) -> None:
    """FileError where a file is not the one that was written; said: None where a set kept no digest."""
    if said is not None and _digest(require_file(path, f"what {_JSON} beside it names")) != said:
        raise FileError(f"{path}: differs from what {_JSON} says (sha256); copy the folder anew")


def _check_images(images: Tensor) -> None:
    if (
        not isinstance(images, Tensor)
        or images.ndim != 3
        or images.dtype not in (torch.float32, torch.float64)
        or not images.numel()
    ):
        kind = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ImageError(f"projections must be a floating tensor [V, H, W], float32 or float64, got {kind}")
    bad = ~torch.isfinite(images).flatten(1).all(1)
    if bool(bad.any()):
        raise ImageError(
            f"{int((~torch.isfinite(images)).sum())} pixels are NaN or infinite, in views "
            f"{bad.nonzero().flatten().tolist()[:10]}; replace them, or leave these views out"
        )
    if float(images.max()) > _OPAQUE:
        raise ImageError(
            f"projections reach {float(images.max()):g}, and a line integral of {_OPAQUE:g} lets no photon "
            "through: they look like stored intensities, or have another unit of length. Turn "
            "intensities into line integrals with xreg.io.linearise (−ln(I / I0)); scale lengths to mm"
        )
    if looks_like_intensities(images):
        warnings.warn(
            "the projections look like intensities I / I0 and not like line integrals: they are brightest at "
            "the borders, where there should be air (0). If they are, use −ln(I / I0) (xreg.io.linearise)",
            InputWarning,
            stacklevel=4,
        )


def looks_like_intensities(images: Float[Tensor, "V H W"]) -> bool:
    """Whether images lie in [0, 1] and are brighter at their left and right borders than in the middle."""
    low, high = float(images.min()), float(images.max())
    width = images.shape[-1]
    if low < 0 or high > _PLAIN or width < 8:
        return False
    border = torch.cat([images[..., :1], images[..., -1:]], -1).median()
    middle = images[..., 3 * width // 8 : 5 * width // 8].median()
    return bool(border > 0.7 * high) and bool(middle < 0.8 * border)
