"""What a DICOM X-ray header says about geometry and intensity, and how far it can be trusted.

Rules follow DICOM PS3.3: C.8.7.5 (XA positioner), C.8.11.4 (detector: field of view against physical
detector), C.8.19 (Enhanced XA), C.8.11.3.1.2 (pixel intensity relationship).  Angles are a rough start only.
"""

from __future__ import annotations

import warnings
from typing import Any

from ..errors import FileError, InputWarning
from .dicom import Header
from .provenance import Provenance

_PATIENT_PLANE = ("GEOMETRY", "FIDUCIAL")
# primary angle of a named view, where none is stated: the detector lies on the side that is named last
_VIEW_ANGLE = {"PA": 0.0, "AP": 180.0, "LL": 90.0, "RL": -90.0}
_RELATIONSHIP = {"LIN": "linear", "LOG": "log"}


def read_header(header: Header, size: tuple[int, int]) -> dict[str, Provenance]:
    """Collect spacing, sdd, sod, angles, mirrored, principal_point, and what pixel values mean.

    size: (height, width) of the stored image.  Doubtful values come with an InputWarning and a note; values
    that are no such numbers are ignored with both, and the next place to look decides.
    """
    found = {"sdd": _distance(header, "DistanceSourceToDetector", "source to detector")}
    found["sod"] = _source_to_isocentre(header, found["sdd"].value)
    found["spacing"] = _spacing(header, size, found["sdd"].value, found["sod"].value)
    found["primary"] = _angle(header, "PositionerPrimaryAngle", "PositionerPrimaryAngleIncrement")
    found["secondary"] = _angle(header, "PositionerSecondaryAngle", "PositionerSecondaryAngleIncrement")
    found["principal_point"] = _principal_point(header, size, found["spacing"].value)
    found["mirrored"] = _mirrored(header)
    found["patient_orientation"] = _patient_orientation(header)
    found |= _intensity(header)
    return found


def _warn(header: Header, text: str) -> None:
    warnings.warn(f"{header.source}: {text}", InputWarning, stacklevel=2)


def usable_numbers(
    header: Header, keyword: str, count: int | None, *, positive: bool = False
) -> tuple[tuple[float, ...] | None, str, str]:
    """(numbers, tag, note): None where absent or unusable, with an InputWarning and what was ignored."""
    try:
        value, tag = header.numbers(keyword, count)
    except FileError as error:
        about = str(error).removeprefix(f"{header.source}: ")
        _warn(header, f"{about}; it is ignored")
        return None, "", f"; ignored: {about}"
    if value is not None and positive and min(value) <= 0.0:
        about = f"{keyword} {tag} must be positive mm (row, column), got {list(value)}"
        _warn(header, f"{about}; it is ignored")
        return None, tag, f"; ignored: {about}"
    return value, tag, ""


def usable_number(header: Header, keyword: str) -> tuple[float | None, str, str]:
    """(number, tag, note), as ``usable_numbers``."""
    value, tag, ignored = usable_numbers(header, keyword, 1)
    return (None if value is None else value[0]), tag, ignored


def _distance(header: Header, keyword: str, what: str) -> Provenance:
    value, tag, ignored = usable_number(header, keyword)
    if value is None:
        return Provenance(None, "default", f"the header does not state the distance from {what}{ignored}")
    if value <= 0.0:
        _warn(header, f"{keyword} {tag} is {value:g} mm, not a distance; it is ignored")
        return Provenance(None, "default", f"{keyword} is {value:g} mm and was ignored", tag)
    return Provenance(value, "header", f"{keyword}, mm", tag)


def _source_to_isocentre(header: Header, sdd: float | None) -> Provenance:
    notes = ""
    for keyword in ("DistanceSourceToIsocenter", "DistanceSourceToPatient"):
        found = _distance(header, keyword, "source to isocentre")
        if found.value is None:
            notes += f"; {found.note}" if "ignored" in found.note else ""
            continue
        if sdd is not None and found.value >= sdd:
            _warn(
                header,
                f"{keyword} {found.tag} is {found.value:g} mm, beyond the detector at {sdd:g} mm; ignored",
            )
            notes += f"; ignored: {keyword} {found.value:g} mm, beyond the detector"
            continue
        return found
    factor, tag, ignored = usable_number(header, "EstimatedRadiographicMagnificationFactor")
    notes += ignored
    if factor is not None and factor > 1.0 and sdd is not None:
        note = f"source to detector / EstimatedRadiographicMagnificationFactor = {sdd:g} / {factor:g}, mm"
        return Provenance(sdd / factor, "computed", note + notes, tag)
    note = "the header does not state the distance from source to isocentre"
    return Provenance(None, "default", note + notes)


def _spacing(header: Header, size: tuple[int, int], sdd: float | None, sod: float | None) -> Provenance:
    value, tag, ignored = usable_numbers(header, "ImagerPixelSpacing", 2, positive=True)
    if value is not None:
        return Provenance(value, "header", "at the detector, mm", tag)
    value, tag, more = usable_numbers(header, "PixelSpacing", 2, positive=True)
    if value is not None:
        return _plain_spacing(header, (value[0], value[1]), tag, ignored, (sdd, sod))
    ignored += more
    value, tag, more = usable_numbers(header, "NominalScannedPixelSpacing", 2, positive=True)
    if value is not None:
        note = "NominalScannedPixelSpacing: of the scanned film or plate"
        _warn(header, f"no ImagerPixelSpacing; {note}")
        return Provenance(value, "fallback", note + ignored, tag)
    return Provenance(None, "default", f"the header states no pixel spacing{ignored}{more}")


def _plain_spacing(
    header: Header,
    value: tuple[float, float],
    tag: str,
    ignored: str,
    distances: tuple[float | None, float | None],
) -> Provenance:
    """PixelSpacing at the detector, or brought there from the plane of the patient; distances: sdd, sod."""
    sdd, sod = distances
    calibration, calibration_tag = header.text("PixelSpacingCalibrationType")
    if calibration in _PATIENT_PLANE and sdd and sod:
        factor = sdd / sod
        note = (
            f"PixelSpacing × {factor:.4g}: CalibrationType {calibration} means the plane of the patient, "
            "here taken as the isocentre"
        )
        _warn(header, f"no ImagerPixelSpacing; detector spacing = {note}")
        found = (value[0] * factor, value[1] * factor)
        return Provenance(found, "computed", note + ignored, f"{tag}{calibration_tag}")
    plane = f"CalibrationType {calibration}" if calibration else "no CalibrationType"
    note = f"PixelSpacing, taken to be at the detector ({plane}); it may be in the plane of the patient"
    _warn(header, f"no ImagerPixelSpacing; {note}; pass spacing= if you know it")
    return Provenance(value, "fallback", note + ignored, tag)


def _angle(header: Header, keyword: str, increments: str) -> Provenance:
    start, tag, ignored = usable_number(header, keyword)
    steps, step_tag, unread = usable_numbers(header, increments, None)
    note = f"degrees; a rough start, often off by several{unread}"
    if start is None:
        view, view_tag = header.text("ViewPosition")
        if keyword == "PositionerPrimaryAngle" and view in _VIEW_ANGLE:
            known = f"from ViewPosition {view}, degrees{ignored}"
            return Provenance(_VIEW_ANGLE[view], "computed", known, view_tag)
        return Provenance(0.0, "default", f"the header states no {keyword}; 0 degrees is assumed{ignored}")
    if steps is None:
        return Provenance(start, "header", note, tag)
    frames = int(header.number("NumberOfFrames")[0] or 1)
    if len(steps) < frames:  # which frames they are for is not said
        _warn(header, f"{increments} {step_tag} has {len(steps)} values for {frames} frames, and is not used")
    if len(steps) < frames or header.frame >= len(steps):
        return Provenance(start, "header", note, tag)
    text = f"{keyword} + increment of frame {header.frame}, {note}"
    return Provenance(start + steps[header.frame], "header", text, f"{tag}{step_tag}")


def _principal_point(
    header: Header, size: tuple[int, int], spacing: tuple[float, float] | None
) -> Provenance:
    """Projection of the isocentre in the stored image, (u, v) px with pixel centres at integers.

    PositionOfIsocenterProjection counts detector elements from the centre of the first one; the field of view
    begins at FieldOfViewOrigin, is binned to image pixels, turned clockwise, then flipped.
    """
    position, tag, ignored = usable_numbers(header, "PositionOfIsocenterProjection", 2)
    origin, origin_tag, no_origin = usable_numbers(header, "FieldOfViewOrigin", 2)
    element, element_tag, no_element = usable_numbers(header, "DetectorElementSpacing", 2, positive=True)
    turn, turn_tag, no_turn = _rotation(header)
    ignored += no_origin + no_element + no_turn
    if position is not None and element is not None and spacing is None:
        ignored += f"; {element_tag} says nothing of binning without the pixels' spacing"
    if position is None or ignored:  # half of a chain of conversions places the isocentre wrongly
        middle = "the middle of the image, as plain XA assumes (PS3.17 FFF.2.1.5.2)"
        return Provenance(None, "default", middle + ignored, tag)
    height, width = size if turn in (0, 180) else (size[1], size[0])  # before the turn
    binning = (1.0, 1.0)
    if element is not None:
        row, column = spacing if turn in (0, 180) else (spacing[1], spacing[0])
        binning = (row / element[0], column / element[1])
    origin = origin or (0.0, 0.0)
    r, c = ((position[a] + 0.5 - origin[a]) / binning[a] - 0.5 for a in (0, 1))
    r, c = {
        0: (r, c),
        90: (c, height - 1 - r),
        180: (height - 1 - r, width - 1 - c),
        270: (width - 1 - c, r),
    }[turn]
    flip, flip_tag = header.text("FieldOfViewHorizontalFlip")
    if flip == "YES":
        c = size[1] - 1 - c
    flipped = ", flipped" if flip == "YES" else ""
    note = (
        f"PositionOfIsocenterProjection {list(position)} with FieldOfViewOrigin {list(origin)}, "
        f"{binning[0]:g}×{binning[1]:g} elements a pixel, turned {turn}°{flipped}"
    )
    return Provenance((c, r), "header", note, f"{tag}{origin_tag}{element_tag}{turn_tag}{flip_tag}")


def _rotation(header: Header) -> tuple[int, str, str]:
    """(degrees, tag, note): 0 where absent or unusable; the note then says what was ignored."""
    value, tag, ignored = usable_number(header, "FieldOfViewRotation")
    if value is None:
        return 0, "", ignored
    if value not in (0.0, 90.0, 180.0, 270.0):
        about = f"FieldOfViewRotation {tag} must be 0, 90, 180 or 270 degrees, got {value:g}"
        _warn(header, f"{about}; it is ignored")
        return 0, tag, f"; ignored: {about}"
    return int(value), tag, ""


def _mirrored(header: Header) -> Provenance:
    flip, tag = header.text("FieldOfViewHorizontalFlip")
    if flip == "YES":
        return Provenance(False, "header", "FieldOfViewHorizontalFlip YES: seen from the source's side", tag)
    view, view_tag = header.text("ViewPosition")
    if view == "AP":
        return Provenance(
            False, "default", "ViewPosition AP: shown as the viewer faces the patient", view_tag
        )
    note = "an X-ray image is seen from the detector's side, towards the source (PS3.3 C.8.19.6.13.1)"
    return Provenance(True, "header" if flip == "NO" else "default", note, tag)


def _patient_orientation(header: Header) -> Provenance:
    value, tag = header.text("PatientOrientation")
    parts = value.split("\\")
    if len(parts) != 2 or not all(part and set(part) <= set("LRAPHF") for part in parts):
        return Provenance(None, "default", "the header states no usable PatientOrientation", tag)
    return Provenance(tuple(parts), "header", "directions of growing column and growing row", tag)


def _intensity(header: Header) -> dict[str, Provenance]:
    word, tag = header.text("PixelIntensityRelationship")
    if word in _RELATIONSHIP:
        relationship = Provenance(_RELATIONSHIP[word], "header", f"PixelIntensityRelationship {word}", tag)
    else:
        said = f"PixelIntensityRelationship {word}" if word else "no PixelIntensityRelationship"
        if word:
            _warn(header, f"{said} {tag} is not a relation to the beam; values are taken as linear in it")
        relationship = Provenance("linear", "default", f"{said}; taken as linear in the beam", tag)
    sign_value, sign_tag, ignored = usable_number(header, "PixelIntensityRelationshipSign")
    if sign_value in (1.0, -1.0):
        sign = Provenance(int(sign_value), "header", "PixelIntensityRelationshipSign", sign_tag)
    else:
        note = f"not stated; a higher value is taken to mean more beam{ignored}"
        sign = Provenance(1, "default", note, sign_tag)
        modality, _ = header.text("Modality")
        if modality not in ("XA", "RF"):
            _warn(
                header,
                f"modality {modality or 'unknown'} without PixelIntensityRelationshipSign; a higher value "
                "is taken to mean more beam: pass sign=-1 if bone is bright in the stored values",
            )
    bits, bits_tag, _ = usable_number(header, "BitsStored")
    signed, _, _ = usable_number(header, "PixelRepresentation")
    top: Any = None if bits is None else float(2 ** (int(bits) - (1 if signed else 0)) - 1)
    return {
        "relationship": relationship,
        "sign": sign,
        "full_scale": Provenance(top, "header" if top else "default", "largest storable value", bits_tag),
    }
