"""The views of a command: checked, and read from files, or from the words of a C-arm."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import C_ARM_WORDS, per_film

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.geometry import Camera
    from xreg.volume import Volume


def check_views(view: Mapping[str, Any], count: int) -> None:
    """UsageError where the options of ``views_options`` cannot be those of so many films."""
    given = check_one_view(view)
    if "size" in given:
        raise click.UsageError("--size is for drr; the film has a size of its own.")
    if len(view["camera"]) > 1 or count == 1:
        per_film(view["camera"], count, "--camera")
    wrong = [name for name in given if name != "isocenter"]
    if count > 1 and wrong:
        raise click.UsageError(
            f"{_flags(wrong)} describes one view, and there are {count} films: give --camera once a film, or "
            "one rig. DICOM films may bring their own views."
        )


def check_view(view: Mapping[str, Any]) -> None:
    """UsageError where the options of ``c_arm_options`` give no view, or two."""
    given = check_one_view(view)
    missing = [name for name in ("sdd", "sod", "size", "spacing") if name not in given]
    if view.get("camera") is None and missing:
        raise click.UsageError(f"The view is not known: give --camera, or {_flags(missing)} as well.")


def check_one_view(view: Mapping[str, Any]) -> list[str]:
    """The words of a C-arm that were given; UsageError where there is a camera beside them."""
    given = [name for name in (*C_ARM_WORDS, "isocenter") if view.get(name) is not None]
    if view.get("camera") and given:
        raise click.UsageError(f"--camera says all about the view; leave out {_flags(given)}.")
    return given


def make_camera(view: Mapping[str, Any], isocenter: Any = (0.0, 0.0, 0.0)) -> Camera:
    """The camera that the options of ``c_arm_options`` describe, by default about ``isocenter`` (RAS mm).

    Where no file gives it and the CT is not read yet, the default shows at least whether it can be made.
    """
    from xreg.geometry import Camera

    check_view(view)
    if view.get("camera") is not None:
        return read_camera(view["camera"])
    words = {name: view[name] for name in C_ARM_WORDS if view.get(name) is not None}
    return Camera.c_arm(isocenter=view.get("isocenter") or isocenter, **words)


def read_view(options: Mapping[str, Any]) -> tuple[Camera, Tensor | None]:
    """Camera and pose, before the CT: what is small comes first, and its mistakes at once."""
    return make_camera(options), None if options["pose"] is None else read_pose(options["pose"])


def aimed(camera: Camera, options: Mapping[str, Any], volume: Volume, pose: Tensor | None) -> Camera:
    """The camera of ``read_view`` about the CT's middle, where nothing says what about."""
    camera = camera if options["camera"] else make_camera(options, volume.center)
    warn_inside(volume, camera, pose)
    return camera


def warn_inside(volume: Volume, camera: Camera, pose: Tensor | None = None) -> None:
    """InputWarning where the source lies inside the CT, as it does where a view is told in cm or m."""
    from xreg.errors import InputWarning
    from xreg.geometry import se3
    from xreg.io import VoxelGrid

    if camera.parallel:
        return
    home = camera.source.detach().double().cpu()
    home = home if pose is None else se3.apply(se3.inverse(pose), home[None])[0]
    index = se3.apply(VoxelGrid.of(volume).index_from_world.cpu(), home[None])[0]
    if all(-0.5 < i < n - 0.5 for i, n in zip(index.tolist(), volume.size, strict=True)):
        text = "the source lies inside the CT; distances and spacing of a view are mm, and so is an affine"
        warnings.warn(text, InputWarning, stacklevel=2)


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def read_camera(path: Path) -> Camera:
    """A camera from JSON: xreg's own, the one inside a pose, or the parameters of another tool."""
    from xreg.io.poses import read_camera as read

    return read(path)


def read_cameras(paths: tuple[Path, ...], count: int, flag: str = "--camera") -> list[Camera | None]:
    """A camera a film, from as many files or from one rig; None each where no file was given."""
    from xreg.errors import FileError
    from xreg.io import load_rig, read_json

    if not paths:
        return [None] * count
    data = read_json(paths[0], "a camera or a rig (JSON)") if len(paths) == 1 else None
    if not isinstance(data, dict) or not str(data.get("schema", "")).startswith("xreg.rig/"):
        if len(paths) != count:
            raise FileError(
                f"{paths[0]}: is one camera, and there are {count} films; give {flag} once a film, or a "
                'rig (JSON of schema "xreg.rig/1")'
            )
        return [read_camera(path) for path in paths]
    rig = load_rig(paths[0])
    if len(rig) != count:
        raise FileError(f"{paths[0]}: is a rig of {len(rig)} cameras, and there are {count} films")
    return list(rig)


def read_pose(path: Path) -> Tensor:
    """world_from_body [4, 4] (RAS mm) from xreg's JSON or an ITK text transform."""
    from xreg.io.poses import read_pose as read

    return read(path)


def view_text(camera: Camera) -> str:
    """A camera in the words of a C-arm, on one line."""
    height, width = camera.size
    primary, secondary, roll = (round(float(a), 6) + 0.0 for a in camera.angles)  # no −0
    parts = [f"primary {primary:.4g}°, secondary {secondary:.4g}°"]
    if abs(roll) > 0.05:
        parts.append(f"roll {roll:.4g}°")
    if camera.sdd is not None:
        row, column = camera.spacing.tolist()
        parts.append(f"sdd {float(camera.sdd):.5g} mm")
        parts.append(f"{height}×{width} px of {row:.4g}×{column:.4g} mm")
    else:
        parts.append(f"{height}×{width} px")
    if camera.mirrored:
        parts.append("mirrored")
    if camera.parallel:
        parts.append("parallel")
    return ", ".join(parts)
