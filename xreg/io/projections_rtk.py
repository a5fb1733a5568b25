"""RTK's geometry XML with a stack of projections, and the rotational series of a C-arm in DICOM."""

from __future__ import annotations

from os import PathLike
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from ..errors import BackendError, FileError, ImageError
from ..geometry import Rig
from ..geometry.conventions import CONVENTIONS
from .files import require_file
from .intensity import linearise
from .projections import ProjectionSet

_ROOT, _VERSION = "RTKThreeDCircularGeometry", "3"
_ENTRIES = {
    "SourceToIsocenterDistance": "sid",
    "SourceToDetectorDistance": "sdd",
    "GantryAngle": "gantry_angle",
    "ProjectionOffsetX": "proj_offset_x",
    "ProjectionOffsetY": "proj_offset_y",
    "OutOfPlaneAngle": "out_of_plane_angle",
    "InPlaneAngle": "in_plane_angle",
    "SourceOffsetX": "source_offset_x",
    "SourceOffsetY": "source_offset_y",
}
_UNREAD = {"RadiusCylindricalDetector"}


def read_rtk_geometry(path: str | PathLike) -> list[dict[str, float]]:
    """The arguments of ``AddProjection`` (mm, degrees) of each projection in an RTK geometry file.

    Values above the list of projections hold for all.  FileError for another file or version, a cylindrical
    detector, or what is no number.
    """
    file = require_file(path, "an RTK geometry (.xml)")
    text = file.read_text(encoding="utf-8", errors="replace")
    if "<!ENTITY" in text:
        raise FileError(f"{file}: defines XML entities, which no RTK geometry does; it is refused")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise FileError(f"{file}: is not whole XML ({error}); expected an RTK geometry") from error
    if root.tag != _ROOT or root.get("version") != _VERSION:
        raise FileError(
            f"{file}: expected {_ROOT} of version {_VERSION}, got {root.tag} {root.get('version')}; write it "
            "anew with a current RTK"
        )
    shared = _numbers(root, file)
    views = [{**shared, **_numbers(part, file)} for part in root.iter("Projection")]
    short = [n for n, view in enumerate(views) if not {"sid", "sdd"} <= view.keys()]
    if not views or short:
        raise FileError(f"{file}: needs a Projection or more, each with its distances; wrong: {short[:5]}")
    return [{"gantry_angle": 0.0, **view} for view in views]


def _numbers(element: Any, file: Any) -> dict[str, float]:
    found = {}
    for child in element:
        if child.tag in _UNREAD and child.text and _number(child, file) != 0:
            raise FileError(f"{file}: has a {child.tag}, and only flat detectors are read")
        if child.tag in _ENTRIES:
            found[_ENTRIES[child.tag]] = _number(child, file)
    return found


def _number(element: Any, file: Any) -> float:
    try:
        return float(element.text)
    except (TypeError, ValueError) as error:
        raise FileError(f"{file}: {element.tag} must be a number, got {element.text!r}") from error


def load_rtk(
    geometry: str | PathLike, projections: str | PathLike, *, patient_position: str | None = "HFS"
) -> ProjectionSet:
    """Read RTK's geometry XML and its stack of line integrals (.mha, .mhd, .nrrd; needs SimpleITK).

    patient_position: "HFS" puts the world into the patient (RAS mm), None leaves RTK's fixed frame.  Arrays
    stay as they are stored, row 0 the lowest; the cameras say so.  Raises FileError, BackendError,
    ImageError, GeometryError.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise BackendError(
            "reading RTK's projection stacks needs SimpleITK: pip install SimpleITK"
        ) from error
    views = read_rtk_geometry(geometry)
    file = require_file(projections, "a stack of projections (.mha)")
    try:
        stack = SimpleITK.ReadImage(str(file), SimpleITK.sitkFloat32)
    except RuntimeError as error:
        raise FileError(
            f"{file}: SimpleITK cannot read it ({str(error).strip().splitlines()[-1]})"
        ) from error
    if stack.GetDimension() != 3 or not np.allclose(stack.GetDirection(), np.eye(3).ravel(), atol=1e-6):
        raise ImageError(
            f"{file}: expected a 3D stack without rotation, got direction {stack.GetDirection()}"
        )
    images = torch.from_numpy(SimpleITK.GetArrayFromImage(stack))
    if len(images) != len(views):
        raise ImageError(f"{file}: has {len(images)} projections, and {geometry} {len(views)}")
    tool = CONVENTIONS["rtk"]
    known = {
        "size": stack.GetSize()[:2],
        "spacing": stack.GetSpacing()[:2],
        "origin": stack.GetOrigin()[:2],
        "patient_position": patient_position,
    }
    rig = Rig(tuple(tool.to_camera(tool.params(**view, **known)) for view in views))
    notes = {
        "format": "RTK",
        "file": str(file),
        "geometry": str(geometry),
        "patient_position": patient_position,
    }
    return ProjectionSet(images, rig, scale=1.0, provenance=notes)


def load_dicom_rotation(
    path: str | PathLike,
    *,
    i0: float | str = "auto",
    log_gain: float = 1.0,
    relationship: str = "auto",
    sign: int | str = "auto",
    **geometry: Any,
) -> ProjectionSet:
    """Read a multi-frame XA run of a rotating C-arm: angles per frame, intensities turned into line
    integrals.

    i0: the value of the unattenuated beam, or "auto": what one pixel in a thousand of all frames exceeds,
    which leaves an offset where no frame shows air.  log_gain: of a run that is stored as logarithms, how
    many stored units a factor e takes; no header says it.  relationship, sign: as ``linearise`` takes them,
    or "auto": what the header says.  geometry: as in ``Radiograph.with_geometry`` (sod, spacing, isocenter
    …); it wins over the header.  Angles of a header are off by degrees: calibrate before trusting fine
    detail.  World: RAS mm about the isocentre.  Raises FileError, ImageError, GeometryError, BackendError.
    """
    from .dicom import Header, read_dataset, read_pixels
    from .radiograph import Radiograph
    from .xray_header import read_header

    dataset = read_dataset(path)
    pixels = read_pixels(dataset, path)
    if pixels.ndim != 3 or pixels.shape[-1] in (3, 4):
        raise ImageError(
            f"{path}: expected a multi-frame grey image [frames, H, W], got {list(pixels.shape)}"
        )
    images = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    every = torch.ones(images.shape[1:], dtype=torch.bool)
    cameras, films = [], []
    for frame, image in enumerate(images):
        found = read_header(Header(dataset, path, frame), tuple(image.shape))
        film = Radiograph(image, every, provenance=found).with_geometry(**geometry)
        if film.camera is None:
            missing = [n for n in ("spacing", "sdd", "sod") if getattr(film, n) is None]
            named = ", ".join(f"{name}=" for name in missing)
            raise ImageError(f"{path}: the header does not state {', '.join(missing)} (mm); give {named}")
        cameras.append(film.camera)
        films.append(film)
    poses = torch.stack([camera.world_from_camera for camera in cameras])
    if len(cameras) > 1 and float((poses - poses[0]).abs().max()) < 1e-6:
        raise ImageError(f"{path}: all {len(cameras)} frames have the same angles; this is no rotational run")
    about = {name: films[0].provenance[name].value for name in ("relationship", "sign", "full_scale")}
    relationship = about["relationship"] if relationship == "auto" else relationship
    sign = about["sign"] if sign == "auto" else sign
    notes = {"format": "DICOM rotational run", "file": str(path), "i0": i0}
    notes |= {"relationship": relationship, "sign": sign, "log_gain": log_gain}
    try:
        lines = linearise(
            images, relationship, sign, i0=i0, full_scale=about["full_scale"], log_gain=log_gain
        )
        return ProjectionSet(lines, Rig(tuple(cameras)), scale=1.0, provenance=notes)
    except ImageError as error:
        hint = ""
        if relationship == "log" and log_gain == 1.0:
            hint = ". The values are logarithms: pass log_gain=, how many stored units a factor e takes"
        raise ImageError(f"{path}: {error}{hint}") from error
