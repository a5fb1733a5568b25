"""Radiographs: pixels as stored, what they mean, where source and detector stood; each with its origin."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import GeometryError, ImageError
from ..geometry._numbers import as_tensor, tensor64
from .intensity import RELATIONSHIPS, field_mask, linearise
from .provenance import Provenance

if TYPE_CHECKING:
    from ..geometry import Camera

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".dic")
_GEOMETRY = (
    "spacing",
    "sdd",
    "sod",
    "primary",
    "secondary",
    "roll",
    "isocenter",
    "principal_point",
    "mirrored",
)
_AXES = {"R": (0, 1.0), "L": (0, -1.0), "A": (1, 1.0), "P": (1, -1.0), "H": (2, 1.0), "F": (2, -1.0)}


@dataclass(frozen=True, eq=False, repr=False)
class Radiograph:
    """One X-ray image with what is known about it.

    image: float32 [H, W], pixel values as stored (no rescale, no window, no inversion).
    mask: bool [H, W], True where the detector saw the beam.
    spacing: (row, column) in mm at the detector, or None.  sdd, sod: mm from source to detector and to the
        isocentre, or None.  primary, secondary: C-arm angles in degrees (+ LAO, + cranial), or None.
    camera: the view, built where spacing, sdd and sod are known, else None.  Its world is RAS mm with the
        isocentre at the origin until ``with_geometry`` says where it lies; no header states that.
    relationship, sign, full_scale: what pixel values mean, as ``linearise`` takes them.
    provenance: a Provenance for each of these by name.
    """

    image: Float[Tensor, "H W"]
    mask: Bool[Tensor, "H W"]
    spacing: tuple[float, float] | None = None
    sdd: float | None = None
    sod: float | None = None
    primary: float | None = None
    secondary: float | None = None
    camera: Camera | None = None
    relationship: str = "linear"
    sign: int = 1
    full_scale: float | None = None
    provenance: dict[str, Provenance] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_image(self.image, self.mask)
        if self.relationship not in RELATIONSHIPS:
            raise ImageError(
                f"relationship must be one of {', '.join(RELATIONSHIPS)}, got {self.relationship!r}"
            )
        if self.camera is not None and self.camera.size != self.size:
            raise ImageError(f"camera is for images of {self.camera.size} (H, W), this one has {self.size}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.image.shape
        return height, width

    @property
    def line_integrals(self) -> Float[Tensor, "H W"]:
        """Line integrals of attenuation (no unit), float32: ``linearise`` with what the file says."""
        return self.linearised()

    def linearised(
        self, *, i0: float | str = "auto", floor: float = 1e-4, log_gain: float = 1.0
    ) -> Float[Tensor, "H W"]:
        """Line integrals with a known unattenuated value, floor or log gain; see ``linearise``."""
        return linearise(
            self.image,
            self.relationship,
            self.sign,
            i0=i0,
            mask=self.mask,
            floor=floor,
            full_scale=self.full_scale,
            log_gain=log_gain,
        )

    def with_geometry(self, **known: Any) -> Radiograph:
        """The same image with geometry replaced, and the camera built anew.

        known: any of spacing (row, column, or one number; mm at the detector), sdd, sod (mm), primary,
        secondary, roll (degrees), isocenter (world RAS mm, for instance the centre of the CT),
        principal_point (u, v px), mirrored (seen from the detector's side), or camera, which replaces all.
        Raises ImageError for another name or a value that is none, GeometryError for an impossible camera.
        """
        unknown = set(known) - set(_GEOMETRY) - {"camera"}
        if unknown:
            raise ImageError(f"geometry has no {sorted(unknown)}; it has {', '.join(_GEOMETRY)} and camera")
        found = dict(self.provenance)
        for name in _GEOMETRY:
            if known.get(name) is not None:
                found[name] = Provenance(_checked(name, known[name]), "argument", "given by the caller")
        camera = known.get("camera")
        if camera is None:
            camera = _camera(found, self.size)
        else:
            found["camera"] = Provenance("given", "argument", "given by the caller")
        values = {name: _value(found, name) for name in ("spacing", "sdd", "sod", "primary", "secondary")}
        return replace(self, camera=camera, provenance=found, **values)

    def to(self, device: torch.device | str) -> Radiograph:
        """The same radiograph with image, mask and camera on another device."""
        camera = None if self.camera is None else self.camera.to(device)
        return replace(self, image=self.image.to(device), mask=self.mask.to(device), camera=camera)

    def __repr__(self) -> str:
        height, width = self.size
        spacing = (
            "unknown spacing" if self.spacing is None else "×".join(f"{s:.4g}" for s in self.spacing) + " mm"
        )
        parts = [f"{height}×{width} px", spacing]
        parts += [
            f"{name} {value:.4g}"
            for name in ("sdd", "sod", "primary", "secondary")
            if (value := getattr(self, name)) is not None
        ]
        valid = 100.0 * float(self.mask.float().mean())
        parts += [f"{self.relationship} {self.sign:+d}", f"{valid:.0f} % valid"]
        return f"Radiograph({', '.join(parts)}, {'camera' if self.camera is not None else 'no camera'})"


def load_radiograph(
    path: str | PathLike,
    *,
    frame: int = 0,
    intensity: str = "auto",
    sign: int | str = "auto",
    mask: Bool[Tensor, "H W"] | str | PathLike | None = "auto",
    **geometry: Any,
) -> Radiograph:
    """Read a radiograph: DICOM (XA, RF, DX, CR and their like), PNG, TIFF, NPY or 2D NIfTI.

    frame: which frame of a multi-frame file, from 0.
    intensity: "linear" or "log" in the beam, "line_integral", or "auto": what the header says, else linear.
    sign: 1 (a higher value means more beam), −1, or "auto": what the header says, else 1.
    mask: True (or not zero) where valid, as a tensor, an array or an image file; "auto": shutter, collimator
        and padding of the header, or the dark surround of a round field; None: every pixel.
    geometry: as in ``Radiograph.with_geometry``; it wins over the header.

    Raises FileError, ImageError (not an image, colour, NaN, constant, wrong dimensions), BackendError (a
    decoder is missing), GeometryError; doubtful header values give an InputWarning.
    """
    source = Path(path)
    if intensity != "auto" and intensity not in RELATIONSHIPS:
        raise ImageError(f'intensity must be "auto" or one of {", ".join(RELATIONSHIPS)}, got {intensity!r}')
    if sign not in ("auto", 1, -1):
        raise ImageError(f'sign must be 1, -1 or "auto", got {sign!r}')
    if source.is_file() and source.stat().st_size and _seems_dicom(source):
        from .dicom_xray import read_dicom_xray

        pixels, found, valid = read_dicom_xray(source, frame=frame, masked=_is_auto(mask))
    else:
        pixels, found = _read_plain(source, frame)
        valid = None
    image = torch.from_numpy(np.ascontiguousarray(pixels).astype(np.float32))
    _check_pixels(image, source)
    for name, value in (("relationship", intensity), ("sign", sign)):
        if value != "auto":
            found[name] = Provenance(value, "argument", "given by the caller")
    stated = "computed" if valid is None else "header"
    found["mask"] = Provenance(None, stated if _is_auto(mask) else "argument", "which pixels are valid")
    dark_is_low = _value(found, "sign") > 0 and _value(found, "relationship") != "line_integral"
    keep = _mask(mask, image, valid, dark_is_low=dark_is_low)
    known = {name: _value(found, name) for name in ("relationship", "sign", "full_scale")}
    return Radiograph(image, keep, provenance=found, **known).with_geometry(**geometry)


def _seems_dicom(file: Path) -> bool:
    from .dicom import is_dicom

    return is_dicom(file) or file.suffix.lower() in _DICOM_SUFFIXES


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def _read_plain(source: Path, frame: int) -> tuple[np.ndarray, dict[str, Provenance]]:
    from .images import read_image

    loaded = read_image(source, frame=frame)
    kind = loaded.pixels.dtype
    narrow = kind.kind in "iu" and kind.itemsize <= 2  # wider kinds are never filled to their end
    top = float(np.iinfo(kind).max) if narrow else None
    scale = f"largest value of {kind}" if narrow else f"{kind} is wider than films; the largest valid pixel"
    found = {
        "relationship": Provenance(
            "linear", "default", f"{loaded.kind} files do not say; linear in the beam"
        ),
        "sign": Provenance(1, "default", f"{loaded.kind} files do not say; a higher value means more beam"),
        "full_scale": Provenance(top, "computed" if narrow else "default", scale),
        "mirrored": Provenance(False, "default", f"{loaded.kind} files do not say; as the camera sees it"),
    }
    if loaded.spacing is not None:
        found["spacing"] = Provenance(
            loaded.spacing, "fallback", "voxel size of the file, taken at the detector"
        )
    return loaded.pixels, found


def _check_pixels(image: Tensor, source: Path) -> None:
    low, high = (float(v) for v in image.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(
            f"{source}: pixels must be finite, got {int((~image.isfinite()).sum())} NaN or infinite "
            f"of {image.numel()}; repair the file"
        )
    if low == high:
        raise ImageError(f"{source}: every pixel is {low:g}; a constant image shows no anatomy")


def _check_image(image: Any, mask: Any) -> None:
    if (
        not isinstance(image, Tensor)
        or image.ndim != 2
        or not image.is_floating_point()
        or image.numel() == 0
    ):
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ImageError(f"image must be a floating tensor [H, W], got {shape}")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != image.shape:
        raise ImageError(
            f"mask must be a bool tensor of the image's shape {tuple(image.shape)}, got "
            f"{getattr(mask, 'dtype', type(mask).__name__)} of shape {tuple(getattr(mask, 'shape', ()))}"
        )
    if not bool(mask.any()):
        raise ImageError("mask leaves no valid pixel; it must be True where the detector saw the beam")


def _mask(mask: Any, image: Tensor, valid: np.ndarray | None, *, dark_is_low: bool) -> Tensor:
    if mask is None:
        return torch.ones(image.shape, dtype=torch.bool)
    if _is_auto(mask):
        if valid is not None:
            return torch.from_numpy(valid)
        return field_mask(image) if dark_is_low else torch.ones(image.shape, dtype=torch.bool)
    if isinstance(mask, (str, PathLike)):
        from .images import read_image

        mask = torch.from_numpy(np.ascontiguousarray(read_image(mask).pixels != 0))
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "biuf":
        mask = as_tensor(mask)
    whole = isinstance(mask, Tensor) and not mask.is_floating_point() and not mask.is_complex()
    return mask != 0 if whole else mask


def _value(found: dict[str, Provenance], name: str) -> Any:
    return found[name].value if name in found else None


def _checked(name: str, value: Any) -> Any:
    if name == "mirrored":
        return bool(value)
    count = {"spacing": 2, "principal_point": 2, "isocenter": 3}.get(name, 1)
    try:
        many = tensor64(value, name).flatten().tolist()
    except GeometryError as error:
        raise ImageError(str(error)) from error
    if name == "spacing" and len(many) == 1:
        many *= 2
    positive = name in ("spacing", "sdd", "sod")
    if len(many) != count or not all(math.isfinite(v) and (v > 0 or not positive) for v in many):
        kind = "positive mm" if positive else "finite"
        raise ImageError(f"{name} must be {count} number(s), {kind}, got {value!r}")
    return many[0] if count == 1 else tuple(many)


def _camera(found: dict[str, Provenance], size: tuple[int, int]) -> Camera | None:
    """Build the C-arm view where everything is known, and note how the image lies on the detector."""
    known = {name: _value(found, name) for name in _GEOMETRY}
    if any(known[name] is None for name in ("spacing", "sdd", "sod")):
        return None
    from ..geometry import Camera

    for name in ("primary", "secondary", "roll"):
        if known[name] is None:
            found[name] = Provenance(0.0, "default", "not known; 0 degrees is assumed")
            known[name] = 0.0
    if known["isocenter"] is None:
        known["isocenter"] = (0.0, 0.0, 0.0)
        found["isocenter"] = Provenance(known["isocenter"], "default", "the origin of the world, RAS mm")
    straight = Camera.c_arm(size=size, **{**known, "roll": 0.0, "mirrored": False})
    _lay_on_detector(found, known, straight)
    return Camera.c_arm(size=size, **known)


def _lay_on_detector(found: dict[str, Provenance], known: dict[str, Any], straight: Camera) -> None:
    """Take mirroring and roll from PatientOrientation, each unless the caller gave it."""
    letters = _value(found, "patient_orientation")
    if letters is None:
        return
    axes = straight.world_from_camera[:3, :2]
    columns, rows = (_direction(part) @ axes for part in letters)
    turned = float(columns[0] * rows[1] - columns[1] * rows[0])
    if abs(turned) < 0.3:
        return
    mirrored = turned < 0.0
    right = -columns if mirrored else columns
    given = found["mirrored"].source == "argument"
    if given and known["mirrored"] != mirrored:  # flipped left to right since: the rows still lie as stated
        right = torch.stack([rows[1], -rows[0]])
    roll = round(math.degrees(math.atan2(float(right[1]), float(right[0]))) / 90.0) * 90.0
    note = f"PatientOrientation {letters[0]}\\{letters[1]} against the axes of the view"
    tag = found["patient_orientation"].tag
    if not given:
        known["mirrored"] = mirrored
        found["mirrored"] = Provenance(mirrored, "header", note, tag)
    if found["roll"].source != "argument":
        known["roll"] = roll
        found["roll"] = Provenance(roll, "header", note + ", to a quarter turn", tag)


def _direction(letters: str) -> Tensor:
    """Direction in RAS of DICOM's letters, the first the strongest: "L", "LF", "PHL"."""
    vector = torch.zeros(3, dtype=torch.float64)
    for weight, letter in zip((1.0, 0.5, 0.25), letters, strict=False):
        axis, sign = _AXES[letter]
        vector[axis] += sign * weight
    return vector / vector.norm()
