"""`xreg register`: finds the pose of a CT in a radiograph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    C_ARM_WORDS,
    CT_NAMES,
    PATH,
    c_arm_options,
    check_folder,
    check_one_view,
    ct_options,
    ct_text,
    load_ct,
    read_camera,
    read_pose,
    shared,
    split,
    view_text,
)
from xreg.cli.terminal import Clock, Tell, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.geometry import Camera
    from xreg.io import Radiograph
    from xreg.registration import RegistrationResult
    from xreg.volume import Volume

_NEGATIVE = -0.3  # score at the start below which a film is the negative of what is rendered


@verb("register", "Find the pose of a CT in a radiograph.")
@click.argument("ct", type=PATH)
@click.argument("film", type=PATH)
@shared("output", "Folder for pose.json, pose.tfm, overlay.png, result.json.", required=True)
@click.option(
    "--init", type=PATH, help="Pose to start from (JSON or .tfm).  [default: as the CT's header says]"
)
@c_arm_options
@click.option(
    "--intensity",
    type=click.Choice(["auto", "linear", "log", "line_integral"]),
    default="auto",
    show_default=True,
    help="What pixel values of FILM are; line integrals are what drr writes.",
)
@click.option(
    "--sign",
    type=click.Choice(["auto", "1", "-1"]),
    default="auto",
    show_default=True,
    help="1: brighter is more beam.",
)
@click.option(
    "--film-mask", type=PATH, help="Image that is not zero where FILM is valid.  [default: from the film]"
)
@shared("frame", "Frame of FILM, from 0.")
@ct_options
def command(terminal: Terminal, ct: Path, film: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Find where the anatomy of CT is in the radiograph FILM, starting from a rough pose.

    \b
        xreg register ct.nii.gz film.tif --camera cam.json --init pose.json -o out/

    FILM is DICOM, PNG, TIFF or NPY. A DICOM film may bring its own view; C-arm words given here win over its
    header. The pose is world_from_body in RAS mm: it moves the CT, as its header places it, to where the film
    shows it. pose.tfm holds the same for 3D Slicer. Exit code 3 says that the result was rejected: read why,
    and do not use the pose.
    """
    known, options = split(options, CT_NAMES)
    check_one_view(options)
    if options["size"] is not None:
        raise click.UsageError("--size is for drr; the film has a size of its own.")
    check_folder(output)
    clock = Clock()
    with terminal.working(f"reading {ct}"), clock.part("read"):
        volume = load_ct(ct, known)
        radiograph = _read_film(film, volume, options)
        start = None if options["init"] is None else read_pose(options["init"])
    with terminal.working("registering") as tell, clock.part("register"):
        found = run(volume, radiograph, start, tell)
    made = {
        "method": "xreg register",
        "ct": str(ct),
        "film": str(film),
        "init": options["init"] and str(options["init"]),
    }
    result = _result(found, radiograph, made, clock)
    with terminal.working("drawing"), clock.part("picture"):
        picture = _picture(volume, radiograph, found)
    _write(output, found, radiograph.camera, made, picture, result)
    lines = [("CT", ct_text(volume, ct)), ("film", _film_text(film, radiograph))]
    terminal.lines([*lines, ("view", view_text(radiograph.camera)), *_found_lines(found, result)])
    return result


def _read_film(path: Path, volume: Volume, options: dict[str, Any]) -> Radiograph:
    """The film with its camera: of --camera, of the C-arm words, or of its header."""
    from xreg.errors import ImageError
    from xreg.io import load_radiograph

    words = {name: options[name] for name in C_ARM_WORDS if name != "size" and options[name] is not None}
    if options["camera"] is not None:
        words = {"camera": read_camera(options["camera"])}
    else:
        words["isocenter"] = options["isocenter"] or tuple(volume.center.tolist())
    radiograph = load_radiograph(
        path,
        frame=options["frame"],
        intensity=options["intensity"],
        sign="auto" if options["sign"] == "auto" else int(options["sign"]),
        mask="auto" if options["film_mask"] is None else options["film_mask"],
        **words,
    )
    if radiograph.camera is None:
        missing = [name for name in ("spacing", "sdd", "sod") if getattr(radiograph, name) is None]
        flags = ", ".join("--" + name for name in missing)
        raise ImageError(f"{path}: does not say {', '.join(missing)}; give --camera, or {flags}")
    return radiograph


def run(volume: Volume, film: Radiograph, start: Tensor | None, tell: Tell) -> RegistrationResult:
    """Register, and tell each step that was taken."""
    from xreg.registration import register

    def on_step(step: Any) -> None:
        tell(f"binned {step.bin}×, {step.renders} renders, score {step.score:.3f}", key=step.level)

    return register(volume, film, film.camera, start, on_step=on_step)


def _picture(volume: Volume, film: Radiograph, found: RegistrationResult) -> Any:
    from xreg.cli.sheets import Sheet

    sheet = Sheet(volume, film.camera, film.line_integrals, film.mask)
    verdict = "accepted" if found.accepted else "REJECTED"
    first, last = found.trajectory[0], found.trajectory[-1]
    return sheet.before_after(
        first.world_from_body,
        found.world_from_body,
        f"score {first.score:.3f} (binned {first.bin}x{first.bin})",
        f"score {last.score:.3f}, {verdict}",
        f"xreg register: {verdict}",
        found.reason,
    )


def deviations(found: RegistrationResult) -> dict[str, list[float]]:
    """One standard deviation of the pose about its centre: degrees about and millimetres along x, y, z."""
    spread = found.covariance.diagonal().clamp_min(0.0).sqrt()
    return {"degrees": [math.degrees(v) for v in spread[:3].tolist()], "mm": spread[3:].tolist()}


def save_result_pose(folder: Path, found: RegistrationResult, camera: Camera, made: dict[str, Any]) -> None:
    """Write the pose of a registration as pose.json and pose.tfm."""
    from xreg import __version__
    from xreg.io import PoseRecord, save_pose, save_tfm

    record = PoseRecord(
        found.world_from_body,
        camera=camera,
        covariance=found.covariance,
        center=found.center,
        score=found.score,
        accepted=found.accepted,
        reason=found.reason,
        provenance={**made, "xreg": __version__, "renders": found.renders},
    )
    save_pose(folder / "pose.json", record)
    save_tfm(folder / "pose.tfm", found.world_from_body)


def _result(
    found: RegistrationResult, film: Radiograph, made: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    from xreg.ops.registry import backend

    return {
        "status": "done" if found.accepted else "rejected",
        **made,
        "world_from_body": found.world_from_body.tolist(),
        "center": found.center.tolist(),
        "covariance": found.covariance.tolist(),
        "deviation": deviations(found),
        "score": found.score,
        "accepted": found.accepted,
        "reason": found.reason,
        "renders": found.renders,
        "steps": len(found.trajectory),
        "hint": _hint(found),
        "valid": float(film.mask.float().mean()),
        "camera": film.camera.to_dict(),
        "backend": backend(),
        "seconds": {**clock.parts, "stages": dict(found.seconds)},
    }


def _hint(found: RegistrationResult) -> str | None:
    """What to try, where film and render were each other's negative from the beginning."""
    if found.accepted or found.trajectory[0].score > _NEGATIVE:
        return None
    return "at the start film and render are negatives: try --intensity line_integral, or --sign -1"


def _write(
    output: Path, found: Any, camera: Camera, made: dict[str, Any], picture: Any, result: dict[str, Any]
) -> None:
    from xreg import __version__
    from xreg.io import write_json
    from xreg.pictures import save_picture

    output.mkdir(parents=True, exist_ok=True)
    save_result_pose(output, found, camera, made)
    save_picture(output / "overlay.png", picture)
    write_json(output / "result.json", {"schema": "xreg.result/1", "xreg": __version__, **result})
    result["files"] = [str(output / name) for name in ("pose.json", "pose.tfm", "overlay.png", "result.json")]


def _film_text(path: Path, film: Radiograph) -> str:
    height, width = film.size
    valid = 100.0 * float(film.mask.float().mean())
    return f"{path}: {height}×{width} px, {valid:.0f} % in the beam, {film.relationship} {film.sign:+d}"


def _found_lines(found: RegistrationResult, result: dict[str, Any]) -> list[tuple[str, str]]:
    import torch

    from xreg.geometry import se3

    def numbers(values: list[float], digits: int) -> str:
        return ", ".join(f"{v:.{digits}f}" for v in values)

    turn, _ = se3.geodesic_distance(torch.eye(4, dtype=torch.float64), found.world_from_body)
    home = se3.apply(se3.inverse(found.world_from_body), found.center[None])[0]
    moved = numbers((found.center - home).tolist(), 2)
    spread = result["deviation"]
    deviation = f"{numbers(spread['degrees'], 3)}° and {numbers(spread['mm'], 3)} mm"
    seconds = result["seconds"]["register"]
    hint = [("hint", result["hint"])] if result["hint"] else []
    return [
        ("pose", f"turned {math.degrees(float(turn)):.2f}°, centre moved by {moved} mm (R, A, S)"),
        ("±", f"{deviation} (one standard deviation, about and along R, A, S)"),
        ("verdict", f"{'accepted' if found.accepted else 'REJECTED'}: {found.reason}"),
        *hint,
        ("time", f"{seconds:.2f} s for {found.renders} renders ({result['backend']})"),
        ("files", ", ".join(result["files"])),
    ]
