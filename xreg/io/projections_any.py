"""One door for projection sets on disk: the kind is told from what is there."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import FileError
from .projections import ProjectionSet, load_projection_folder

_PICKLES = (".pickle", ".pkl", ".pk", ".p")
_STACKS = (".mha", ".mhd", ".nrrd")


def load_projections(path: str | PathLike, **options: Any) -> ProjectionSet:
    """Read a projection set, of whatever kind.

    A folder with projections.json (xreg's own) or meta_data.json (R²-Gaussian; option unit_mm); a NAF,
    SAX-NeRF or X-Gaussian pickle; RTK's geometry .xml (option projections: the stack, by default the only
    one beside it); a multi-frame DICOM run (options i0, log_gain, relationship, sign and geometry).  Raises
    FileError where it is none of them, and what the readers raise.
    """
    source = Path(path)
    if not source.exists():
        raise FileError(f"{source}: no such file or folder; expected a projection set")
    if source.is_dir():
        if (source / "meta_data.json").is_file() and not (source / "projections.json").is_file():
            from .projections_tools import load_r2_folder

            return load_r2_folder(source, **_known(options, source, "unit_mm"))
        _known(options, source)
        return load_projection_folder(source)
    if source.suffix.lower() in _PICKLES:
        from .projections_tools import load_naf_pickle

        _known(options, source)
        return load_naf_pickle(source)
    if source.suffix.lower() == ".xml":
        from .projections_rtk import load_rtk

        options = _known(options, source, "projections", "patient_position")
        stack = options.pop("projections", None) or _stack_beside(source)
        return load_rtk(source, stack, **options)
    from .dicom import is_dicom

    if is_dicom(source):
        from .projections_rtk import load_dicom_rotation

        return load_dicom_rotation(source, **options)
    raise FileError(
        f"{source}: is no projection set that is known: a folder with projections.json or meta_data.json, a "
        "pickle of NAF's kind, an RTK geometry (.xml) or a multi-frame DICOM file"
    )


def _known(options: dict[str, Any], source: Path, *names: str) -> dict[str, Any]:
    """The options, if this kind of set has them; FileError otherwise."""
    unknown = sorted(set(options) - set(names))
    if unknown:
        has = f"has the options {', '.join(names)}" if names else "has no options"
        raise FileError(f"{source}: a set of this kind {has}, got {', '.join(n + '=' for n in unknown)}")
    return dict(options)


def _stack_beside(geometry: Path) -> Path:
    found = [p for p in sorted(geometry.parent.iterdir()) if p.suffix.lower() in _STACKS]
    if len(found) != 1:
        raise FileError(
            f"{geometry}: needs its stack of projections ({', '.join(_STACKS)}); {len(found)} lie "
            "beside it, so name the one with projections="
        )
    return found[0]
