"""The DeepFluoro data set: six pelves as CT with 366 films, whose poses are known; one HDF5 file.

R. Grupp et al., "Automatic annotation of hip anatomy in fluoroscopy for robust and efficient 2D/3D
registration", IJCARS 15 (2020); the full-resolution file `ipcai_2020_full_res_data.h5`, whose layout its
repository describes.  The file is LPS mm; this module is where it meets RAS mm.

World: the frame that the file calls the camera's world, turned into RAS.  One calibrated camera sees all
films, mirrored, and each film's truth is the inverse of its `cam-to-pelvis-vol`.  Pixels are read as stored:
`rot-180-for-up` says how people like to see a film, and changes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import BackendError, FileError, XregError
from xreg.geometry import Camera, se3
from xreg.geometry.conventions import deepfluoro, lps
from xreg.io import Radiograph
from xreg.io.files import require_file
from xreg.volume import Volume

if TYPE_CHECKING:
    from xreg.io.landmarks import Landmarks, PixelLandmarks

PARAMS = "proj-params"
_FLOAT32 = 1e-4  # rounding that a rigid matrix of the file may have
_WHAT = "the full-resolution file of DeepFluoro (HDF5)"


@dataclass(frozen=True, eq=False)
class Projection:
    """One film of a specimen.

    film: pixels in the beam (linear), its mask without the collimator's border, and the camera.
    world_from_body [4, 4]: the truth, RAS mm.  landmarks: px of the film as stored, also off its edge.
    upside_down: whether people turn it by 180° to look at it.
    """

    film: Radiograph
    world_from_body: Float[Tensor, "4 4"]
    landmarks: PixelLandmarks
    upside_down: bool


class DeepFluoroFile:
    """The open file; a context manager.  FileError where it is none, BackendError without h5py."""

    def __init__(self, path: str | PathLike) -> None:
        try:
            import h5py
        except ImportError as error:
            raise BackendError(
                f"{path}: reading HDF5 needs the package h5py: pip install 'xreg[evaluate]'"
            ) from error
        self.path = require_file(path, _WHAT)
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise FileError(f"{self.path}: is not HDF5 or damaged ({error}); expected {_WHAT}") from error
        if PARAMS not in self._file:
            self.close()
            raise FileError(f"{self.path}: has no group {PARAMS!r}; expected {_WHAT}")

    def __enter__(self) -> DeepFluoroFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def specimens(self) -> tuple[str, ...]:
        """The specimens, such as "17-1882"."""
        return tuple(sorted(name for name in self._file if name != PARAMS))

    def projections(self, specimen: str) -> tuple[str, ...]:
        """The numbers of a specimen's films, such as "005"."""
        return tuple(sorted(self._group(f"{self._specimen(specimen)}/projections")))

    def camera(self) -> Camera:
        """The one camera of all films, mirrored; world: the file's camera world in RAS mm."""
        values = {
            "intrinsic": self._array(f"{PARAMS}/intrinsic", (3, 3)),
            "extrinsic": self._rigid(f"{PARAMS}/extrinsic"),
            "cam_to_pelvis_vol": np.eye(4),  # so that the world is the camera's, and poses move the body
            "num_rows": int(self._array(f"{PARAMS}/num-rows", ())),
            "num_cols": int(self._array(f"{PARAMS}/num-cols", ())),
            "pixel_row_spacing": float(self._array(f"{PARAMS}/pixel-row-spacing", ())),
            "pixel_col_spacing": float(self._array(f"{PARAMS}/pixel-col-spacing", ())),
        }
        return self._named(lambda: deepfluoro.to_camera(deepfluoro.DeepFluoro(**values)))

    def volume(self, specimen: str, *, energy_kev: float = 70.0, ct_energy_kev: float = 70.0) -> Volume:
        """A specimen's CT with its segmentation, RAS mm."""
        name = self._specimen(specimen)
        hu, affine = self._image(f"{name}/vol")
        labels, names = None, {}
        if f"{name}/vol-seg/image" in self._file:
            labels, other = self._image(f"{name}/vol-seg/image")
            if labels.shape != hu.shape or np.abs(other - affine).max() > 1e-3:
                raise FileError(
                    f"{self.path}: {name}/vol-seg is not on the grid of {name}/vol: {labels.shape} voxels "
                    f"against {hu.shape}"
                )
            labels, names = torch.from_numpy(labels.astype(np.uint8)), self._label_names(name)
        return self._named(
            lambda: Volume.from_hu(
                torch.from_numpy(hu.astype(np.float32)),
                torch.from_numpy(affine),
                energy_kev=energy_kev,
                ct_energy_kev=ct_energy_kev,
                labels=labels,
                label_names=names,
                provenance={
                    "format": "DeepFluoro HDF5",
                    "file": str(self.path),
                    "specimen": name,
                    "units": "hu",
                },
            )
        )

    def landmarks(self, specimen: str) -> Landmarks:
        """The specimen's anatomical landmarks, RAS mm in the CT."""
        from xreg.io.landmarks import Landmarks

        where = f"{self._specimen(specimen)}/vol-landmarks"
        names = tuple(sorted(self._group(where)))
        points = [lps.flip_points(self._array(f"{where}/{name}", (3,))) for name in names]
        return Landmarks(names, torch.from_numpy(np.array(points).reshape(-1, 3)))

    def projection(
        self, specimen: str, number: str | int, *, half_voxel: bool = False, crop_px: int = 50
    ) -> Projection:
        """One film with its truth.

        half_voxel: move the truth by minus half a voxel along each axis of the CT (LPS), as later programs on
        rg2/xReg do, to undo how the renderer placed voxels when the poses were found; off, the matrices are
        taken as they are.  The two are 0.87 mm apart.
        crop_px: how wide a border of the film, darkened by the collimator, is masked out.
        """
        from xreg.io.landmarks import PixelLandmarks

        number = f"{number:03d}" if isinstance(number, int) else number
        name = self._specimen(specimen)
        if number not in (known := self.projections(name)):
            raise FileError(
                f"{self.path}: {name} has no projection {number!r}; it has {known[0]} to {known[-1]}"
                if known
                else f"{self.path}: {name} has no projections"
            )
        where = f"{name}/projections/{number}"
        marks = tuple(sorted(self._group(f"{where}/gt-landmarks")))
        pixels = [self._array(f"{where}/gt-landmarks/{mark}", (2,)) for mark in marks]
        return Projection(
            self._film(where, crop_px),
            self._truth(name, where, half_voxel),
            PixelLandmarks(marks, torch.from_numpy(np.array(pixels).reshape(-1, 2))),
            bool(self._array(f"{where}/rot-180-for-up", ())),
        )

    def _truth(self, name: str, where: str, half_voxel: bool) -> Float[Tensor, "4 4"]:
        volume_from_world = self._rigid(f"{where}/gt-poses/cam-to-pelvis-vol")
        if half_voxel:
            shift = -0.5 * self._array(f"{name}/vol/spacing", (3,))
            volume_from_world = volume_from_world.copy()
            volume_from_world[:3, 3] += shift
        return torch.from_numpy(lps.conjugate(se3.inverse(torch.from_numpy(volume_from_world)).numpy()))

    def _film(self, where: str, crop_px: int) -> Radiograph:
        camera = self.camera()
        height, width = camera.size
        image = self._array(f"{where}/image/pixels", (height, width), np.float32)
        if not 0 <= crop_px < min(height, width) / 2:
            raise FileError(
                f"{self.path}: crop_px must leave something of {height}×{width} px, got {crop_px}"
            )
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[crop_px : height - crop_px, crop_px : width - crop_px] = True
        return self._named(
            lambda: Radiograph(
                torch.from_numpy(image),
                mask,
                spacing=tuple(camera.spacing.tolist()),
                sdd=float(camera.sdd),
                camera=camera,
                relationship="linear",
                sign=1,
            )
        )

    def _label_names(self, specimen: str) -> dict[int, str]:
        where = f"{specimen}/vol-seg/labels-def"
        if where not in self._file:
            return {}
        named = {}
        for number, item in self._file[where].items():
            text = np.asarray(item[()]).reshape(-1)[0]
            named[int(number)] = text.decode() if isinstance(text, bytes) else str(text)
        return named

    def _image(self, where: str) -> tuple[np.ndarray, Float[np.ndarray, "4 4"]]:
        """Voxels [D, H, W] of an image group, and its affine from (column, row, slice) to RAS mm."""
        pixels = self._raw(f"{where}/pixels")
        if pixels.ndim != 3:
            raise FileError(
                f"{self.path}: {where}/pixels must be [slices, rows, columns], got {pixels.shape}"
            )
        affine = np.eye(4)
        affine[:3, :3] = self._array(f"{where}/dir-mat", (3, 3)) * self._array(f"{where}/spacing", (3,))
        affine[:3, 3] = self._array(f"{where}/origin", (3,))
        return pixels, lps.RAS_FROM_LPS @ affine

    def _specimen(self, name: str) -> str:
        if name not in self.specimens:
            raise FileError(f"{self.path}: has no specimen {name!r}; it has {', '.join(self.specimens)}")
        return name

    def _group(self, where: str) -> Any:
        if where not in self._file:
            raise FileError(f"{self.path}: has no group {where!r}; expected {_WHAT}")
        return self._file[where]

    def _raw(self, where: str) -> np.ndarray:
        if where not in self._file:
            raise FileError(f"{self.path}: has no data {where!r}; expected {_WHAT}")
        try:
            return np.asarray(self._file[where][()])
        except (OSError, TypeError, ValueError) as error:
            raise FileError(f"{self.path}: {where} could not be read: {error}") from error

    def _array(self, where: str, shape: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
        """Numbers of a shape; columns [n, 1], as the file writes vectors, become [n]."""
        found = self._raw(where)
        count = int(np.prod(shape))
        loose = len(shape) < 2
        if found.dtype.kind not in "iufb" or (found.size != count if loose else found.shape != shape):
            raise FileError(
                f"{self.path}: {where} must be numbers of shape {shape}, got {found.dtype} of {found.shape}"
            )
        return found.astype(dtype, order="C").reshape(shape)

    def _rigid(self, where: str) -> Float[np.ndarray, "4 4"]:
        """A rigid matrix, with the rounding of float32 taken out."""
        matrix = torch.from_numpy(self._array(where, (4, 4)))
        self._named(lambda: se3.require_rigid(matrix, where, tolerance=_FLOAT32))
        return se3.nearest_rigid(matrix).numpy()

    def _named(self, make: Callable[[], Any]) -> Any:
        """``make()``, with the file's name in front of what it complains about."""
        try:
            return make()
        except XregError as error:
            raise type(error)(f"{self.path}: {error}") from error
