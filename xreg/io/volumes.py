"""From files to a Volume and back: CT numbers told from attenuation, label maps put beside them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attenuation import check_energy
from ..errors import FileError, InputWarning, VolumeError
from ..volume import Volume
from .grid import check_finite
from .labels import header_table, label_names, load_labels, require_same_grid
from .nifti import read_nifti, write_nifti

_UNITS = ("hu", "mu", "auto")
_WATER_PER_CM, _MOST_ABOVE = 0.12, 0.02  # 1/mm and part of the voxels: water has 0.2 in 1/cm, 0.02 in 1/mm
_SMALLEST_MM = 1.0  # longest edge of a CT, below which its affine may not be in mm
_LARGEST_MU = 2.0  # 1/mm; bone at 20 keV has 0.8, steel at 60 keV 0.9


def load_volume(
    path: str | PathLike,
    *,
    mask: str | PathLike | None = None,
    label_names: Mapping[int, str] | str | PathLike | None = None,
    energy_kev: float = 70.0,
    ct_energy_kev: float = 70.0,
    units: str = "hu",
    rescale: tuple[float, float] | None = None,
    series_uid: str | None = None,
    recursive: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Volume:
    """Read a CT: a NIfTI file, a folder of DICOM slices, or one multi-frame DICOM file.

    mask: NIfTI label map on the same grid; label_names: mapping, CSV or JSON (default: what its header has).
    energy_kev, ct_energy_kev: effective energies (keV) of the attenuation wanted and of the scan.
    units: what a NIfTI file holds, "hu" (CT numbers), "mu" (1/mm, stated at ``energy_kev``) or "auto" (told
    from the range; refused where unclear).  rescale: (slope, intercept) that turn its values into CT numbers,
    for 8-bit exports.  series_uid, recursive: for DICOM folders with several series or sub-folders.
    Values that cannot be what ``units`` says are refused; ``provenance`` records every choice.
    Raises FileError and VolumeError.
    """
    if units not in _UNITS:
        raise VolumeError(f'units must be "hu", "mu" or "auto", got {units!r}')
    if dtype not in (torch.float32, torch.float64):
        raise VolumeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    check_energy(energy_kev)
    check_energy(ct_energy_kev, "ct_energy_kev")
    source = Path(path)
    values, affine, notes = _read(source, units, series_uid, recursive)
    units = "hu" if notes["format"] == "DICOM CT" else units
    if values.dtype != torch.int16 or dtype != torch.float32 or rescale is not None:
        values = values.to(dtype)  # and int16 becomes float32 on the way to µ
    units = _told_units(values, units, rescale, source)
    _warn_of_scale(values, affine, units, source)
    if rescale is not None:
        values = values * rescale[0] + rescale[1]
    notes = {**notes, "units": units, "rescale": rescale}
    labels, names = _labels_beside(mask, label_names, values.shape, affine, source)
    if mask is not None:
        notes["mask"] = str(mask)
    known = {"labels": labels, "label_names": names, "energy_kev": energy_kev, "provenance": notes}
    try:
        if units == "mu":
            return Volume(values.to(dtype), affine, **known)
        return Volume.from_hu(values, affine, ct_energy_kev=ct_energy_kev, **known)
    except VolumeError as error:  # which knows voxels, and not the file that they came from
        raise VolumeError(f"{source}: {error}") from error


def _read(
    source: Path, units: str, series_uid: str | None, recursive: bool
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Stored values [D, H, W], affine and notes, from NIfTI by its name and from DICOM otherwise."""
    if not source.exists():
        raise FileError(f"{source}: no such file or folder; expected a CT (NIfTI file or DICOM folder)")
    if source.is_file() and source.name.lower().endswith((".nii", ".nii.gz")):
        if series_uid is not None:
            raise VolumeError(f"{source}: is NIfTI, which has no series; series_uid is for DICOM folders")
        grid = read_nifti(source)
        return torch.from_numpy(grid.values), grid.affine, {"format": "NIfTI", **grid.notes}
    if units == "mu":
        raise VolumeError(f'{source}: a DICOM CT holds CT numbers; units="mu" is for NIfTI files')
    from .dicom_ct import load_dicom_ct

    return load_dicom_ct(source, series_uid=series_uid, recursive=recursive)


def save_volume(
    path: str | PathLike, volume: Volume, *, units: str = "mu", labels: str | PathLike | None = None
) -> None:
    """Write a volume as NIfTI, atomically: float32 in 1/mm (units="mu") or int16 CT numbers (units="hu").

    ``labels``: a second path, for the label map with its names in the header.  Raises FileError, VolumeError.
    """
    if units not in ("mu", "hu"):
        raise VolumeError(f'units must be "mu" or "hu", got {units!r}')
    if labels is not None and volume.labels is None:
        raise VolumeError("labels= names a file for the label map, but this volume has no labels")
    if units == "mu":
        values = volume.mu.detach().cpu().to(torch.float32).numpy()
        energy = (
            "an unknown energy" if volume.energy_kev is None else f"{check_energy(volume.energy_kev):g} keV"
        )
        description = f"xreg mu in 1/mm at {energy}"
    else:
        values = volume.hu.detach().cpu().round().clamp(-32768, 32767).to(torch.int16).numpy()
        description = f"xreg CT numbers (HU) at {volume.ct_energy_kev:g} keV"
    write_nifti(path, values, volume.affine, description=description)
    if labels is not None:
        table = [header_table(volume.label_names)] if volume.label_names else []
        write_nifti(
            labels, volume.labels.cpu().numpy(), volume.affine, description="labels", extensions=table
        )


def _labels_beside(
    mask: Any, names: Any, shape: tuple[int, ...], affine: Tensor, ct: Path
) -> tuple[Tensor | None, dict[int, str]]:
    if mask is None:
        return None, label_names(names)
    label_map = load_labels(mask, names=names)
    require_same_grid(label_map, shape, affine, mask, ct)
    return label_map.labels, label_map.names


def _told_units(values: Tensor, units: str, rescale: tuple[float, float] | None, source: Path) -> str:
    """Decide what values are, and refuse what they cannot be."""
    low, high = check_finite(values, f"{source}: the voxels")
    if rescale is not None:
        if (
            units == "mu"
            or len(rescale) != 2
            or not all(math.isfinite(r) for r in rescale)
            or rescale[0] <= 0
        ):
            raise VolumeError(
                "rescale must be two finite numbers, slope > 0 and intercept, that lead to HU, with "
                f'units="hu"; got {rescale}'
            )
        low, high = low * rescale[0] + rescale[1], high * rescale[0] + rescale[1]
    seems = _seems(low, high)
    if units == "auto":
        if seems not in ("hu", "mu"):
            raise VolumeError(f'{source}: {_range(low, high)} {seems}; say units="hu" or units="mu"')
        units = seems
    if units == "mu" and high > _LARGEST_MU:
        raise VolumeError(
            f"{source}: values {low:g} to {high:g} cannot be attenuation in 1/mm (bone has 0.05 at 70 keV); "
            'CT numbers are units="hu", and 1/cm has to be divided by 10'
        )
    if units == "hu" and seems != "hu":
        why = "look like attenuation in 1/mm (or 1/cm, to be divided by 10)" if seems == "mu" else seems
        text = f"{source}: {_range(low, high)} {why}"
        text += '; units="mu" is for 1/mm, rescale=(slope, intercept) for exports'
        if low >= 0 and high <= 255:
            raise VolumeError(text)
        warnings.warn(text, InputWarning, stacklevel=4)
    return units


def _warn_of_scale(values: Tensor, affine: Tensor, units: str, source: Path) -> None:
    """InputWarning for what looks like 1/cm, and for a grid that looks like metres."""
    if units == "mu":
        part = int((values > _WATER_PER_CM).sum()) / values.numel()
        if part > _MOST_ABOVE:
            warnings.warn(
                f"{source}: {100 * part:.0f} % of the voxels are above {_WATER_PER_CM} per mm; water has "
                "0.02 at 70 keV, so these look like 1/cm, which has to be divided by 10",
                InputWarning,
                stacklevel=4,
            )
    edges = affine[:3, :3].norm(dim=0) * torch.tensor(values.shape[::-1], dtype=affine.dtype)
    if float(edges.max()) < _SMALLEST_MM:
        size = "×".join(f"{edge:.3g}" for edge in edges.tolist())
        text = f"{source}: the CT is {size} mm large; its affine has to be in mm, not in m"
        warnings.warn(text, InputWarning, stacklevel=4)


def _range(low: float, high: float) -> str:
    return f"values {low:g} to {high:g} do not look like CT numbers (air −1000, water 0): they"


def _seems(low: float, high: float) -> str:
    if low < -100.0:
        return "hu"
    if low >= 0.0 and 0.0 < high <= _LARGEST_MU:
        return "mu"
    if low >= 0.0 and high <= 255.0:
        return "seem to be an 8-bit export"
    if low >= 0.0:
        return "have no voxel below water, and may be offset by 1000 or 1024"
    return "hu" if high > 255.0 else "have no air and no bone"
