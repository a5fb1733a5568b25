"""`xreg register`: finds the pose of a CT in one radiograph or several."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    C_ARM_WORDS,
    CT_NAMES,
    PATH,
    check_folder,
    check_unread,
    ct_options,
    ct_text,
    inputs_of,
    load_ct,
    per_film,
    shared,
    split,
    views_options,
)
from xreg.cli.starts import Start, check_start, find_start, solve, start_options, teller
from xreg.cli.terminal import Clock, Tell, Terminal, short
from xreg.cli.verb import verb
from xreg.cli.view import check_views, read_cameras, view_text, warn_inside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from xreg.geometry import Camera
    from xreg.io import Radiograph
    from xreg.registration import RegistrationResult
    from xreg.volume import Volume

_NEGATIVE = -0.3  # score at the start below which a film is the negative of what is rendered
_STARTS = """\b
Kinds of start (one of them):
  (none)                     where the CT's header puts it, if right to about 20 mm and 10 degrees
  --init POSE                a pose that is as near; repeated, the best answer is kept
  --landmarks P --pixels Q   the same points in the CT and in the film, some may be wrong
  --model DIR                the guess of a network that xreg train made of this CT
  --search                   nothing is known: looks through a box, for up to a minute

\b
What -o OUT holds afterwards:
  pose.json    world_from_body, covariance, score, verdict     pose.tfm  for 3D Slicer
  overlay.png  before and after (overlay_1.png, ... a film)    result.json  all that --json prints
  rig.json     the cameras, where there are several films

Exit codes: 0 accepted, 1 failed, 2 wrong usage, 3 found but rejected."""


@verb("register", "Find the pose of a CT in one radiograph or several.", epilog=_STARTS)
@click.argument("ct", type=PATH)
@click.argument("film", type=PATH, nargs=-1, required=True)
@shared("output", "Folder for the results; see below.", required=True)
@start_options
@click.option(
    "--restarts",
    type=click.IntRange(0, 100),
    metavar="N",
    help="Searches from beside the answer that shall confirm it; 0 saves their time, and then an answer must "
    "be surer by itself.  [default: 2, with which the verdict was calibrated]",
)
@views_options
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
    "--film-mask",
    type=PATH,
    multiple=True,
    help="Image that is not zero where FILM is valid. Once a film.  [default: from the film]",
)
@shared("frame", "Frame of FILM, from 0; once for all, or once a film.", multiple=True, default=(0,))
@shared("device")
@ct_options
def command(
    terminal: Terminal, ct: Path, film: tuple[Path, ...], output: Path, **options: Any
) -> dict[str, Any]:
    """Find where the anatomy of CT is in the radiograph FILM, or in several of one moment.

    \b
        xreg register ct.nii.gz film.tif --camera cam.json --init pose.json -o out/
        xreg register ct.nii.gz film.tif --camera cam.json --model net/ -o out/
        xreg register ct.nii.gz film.png --sdd 1020 --sod 850 --spacing 0.4 0.4 --search -o out/
        xreg register ct.nii.gz film.dcm --landmarks pts.mrk.json --pixels px.csv -o out/
        xreg register ct.nii.gz ap.dcm lat.dcm --camera rig.json --restarts 3 -o out/

    FILM is DICOM, PNG, TIFF, NPY or NIfTI. Its view comes from --camera, from C-arm words (--sdd to
    --mirrored), or from its own DICOM header; words win over the header. The pose is world_from_body in RAS
    mm: it moves the CT, as its header places it, to where the film shows it. Exit code 3 says that the result
    was rejected: read why, and do not use the pose.
    """
    known, options = split(options, CT_NAMES)
    check_views(options, len(film))
    check_start(options, len(film))
    options["film_mask"] = per_film(options["film_mask"], len(film), "--film-mask")
    options["frame"] = per_film(options["frame"], len(film), "--frame", spread=True)
    check_folder(output)
    check_unread(output, [*_files(len(film)), "rig.json"], inputs_of({**known, **options}, CT=ct, FILM=film))
    clock = Clock()
    with terminal.working(f"reading {ct}"), clock.part("read"):
        volume = load_ct(ct, known)
        films = _read_films(film, volume, options)
        for radiograph in films:
            warn_inside(volume, radiograph.camera)
        start = find_start(options, films, terminal)
    with terminal.working("registering") as tell, clock.part("register"):
        found, start = solve(volume.to(options["device"]), films, start, options, tell)
    made = {
        "method": "xreg register",
        "ct": str(ct),
        "film": _one_or_all([str(path) for path in film]),
        "init": _one_or_all([str(path) for path in options["init"]]),
        "start": {"kind": start.kind, **start.facts},
    }
    result = _result(found, films, made, clock, options["device"])
    with terminal.working("drawing"), clock.part("picture"):
        pictures = [_picture(volume, radiograph, found) for radiograph in films]
    _write(output, found, films, made, pictures, result)
    terminal.lines(
        [("CT", ct_text(volume, ct)), *_view_lines(film, films), *_found_lines(found, start, result)]
    )
    return result


def _one_or_all(values: list[str]) -> str | list[str] | None:
    return values if len(values) > 1 else next(iter(values), None)


def _read_films(paths: Sequence[Path], volume: Volume, options: dict[str, Any]) -> list[Radiograph]:
    """The films with their cameras: of --camera, of the C-arm words, or of their headers."""
    cameras = read_cameras(options["camera"], len(paths))
    films = zip(paths, cameras, options["film_mask"], options["frame"], strict=True)
    return [
        _read_film(path, volume, options, camera, mask=mask, frame=frame)
        for path, camera, mask, frame in films
    ]


def _read_film(
    path: Path,
    volume: Volume,
    options: dict[str, Any],
    camera: Camera | None,
    *,
    mask: Path | None,
    frame: int,
) -> Radiograph:
    from xreg.errors import ImageError
    from xreg.io import load_radiograph

    words = {name: options[name] for name in C_ARM_WORDS if name != "size" and options[name] is not None}
    if camera is not None:
        words = {"camera": camera}
    else:
        words["isocenter"] = options["isocenter"] or tuple(volume.center.tolist())
    radiograph = load_radiograph(
        path,
        frame=frame,
        intensity=options["intensity"],
        sign="auto" if options["sign"] == "auto" else int(options["sign"]),
        mask="auto" if mask is None else mask,
        **words,
    )
    if radiograph.camera is None:
        missing = [name for name in ("spacing", "sdd", "sod") if getattr(radiograph, name) is None]
        flags = ", ".join("--" + name for name in missing)
        raise ImageError(f"{path}: does not say {', '.join(missing)}; give --camera, or {flags}")
    return radiograph


def run(volume: Volume, film: Radiograph, start: Tensor | None, tell: Tell) -> RegistrationResult:
    """Register one film from one start, and tell each step that was taken."""
    from xreg.registration import register

    return register(volume, film, film.camera, start, on_step=teller(tell))


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


def save_result_pose(
    folder: Path, found: RegistrationResult, camera: Camera | None, made: dict[str, Any]
) -> None:
    """Write the pose of a registration as pose.json and pose.tfm; camera: None for several views."""
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
        provenance={**made, "xreg": __version__, "renders": found.renders, "verdict": _verdict(found)},
    )
    save_pose(folder / "pose.json", record)
    save_tfm(folder / "pose.tfm", found.world_from_body)


def _result(
    found: RegistrationResult, films: Sequence[Radiograph], made: dict[str, Any], clock: Clock, device: str
) -> dict[str, Any]:
    from xreg.ops.registry import backend

    cameras = [film.camera.to_dict() for film in films]
    valid = [float(film.mask.float().mean()) for film in films]
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
        "verdict": _verdict(found),
        "renders": found.renders,
        "steps": len(found.trajectory),
        "hint": _hint(found),
        **(
            {"valid": valid[0], "camera": cameras[0]}
            if len(films) == 1
            else {"valid": valid, "cameras": cameras}
        ),
        "backend": backend(device),
        "seconds": {**clock.parts, "stages": dict(found.seconds)},
    }


def _verdict(found: RegistrationResult) -> dict[str, Any] | None:
    """What the acceptance rests on: a probability, of being within how much, and what was measured."""
    if found.verdict is None:
        return None
    return {
        "accepted": found.accepted,
        "probability": found.verdict.probability,
        "tolerance_mm": found.verdict.tolerance_mm,
        "evidence": dict(found.verdict.evidence),
    }


def _hint(found: RegistrationResult) -> str | None:
    """What to try, where film and render were each other's negative from the beginning."""
    if found.accepted or found.trajectory[0].score > _NEGATIVE:
        return None
    return "at the start film and render are negatives: try --intensity line_integral, or --sign -1"


def _write(
    output: Path,
    found: RegistrationResult,
    films: Sequence[Radiograph],
    made: dict[str, Any],
    pictures: Sequence[Any],
    result: dict[str, Any],
) -> None:
    from xreg import __version__
    from xreg.geometry import Rig
    from xreg.io import save_rig, write_json
    from xreg.pictures import save_picture

    output.mkdir(parents=True, exist_ok=True)
    one, names = len(films) == 1, _overlays(len(films))
    files = _files(len(films))
    earlier = _earlier_files(output) - set(files)
    for name in ("result.json", *earlier):  # the record first: it never tells of other files than its own
        (output / name).unlink(missing_ok=True)
    save_result_pose(output, found, films[0].camera if one else None, made)
    if not one:
        save_rig(output / "rig.json", Rig(tuple(film.camera for film in films)))
    for name, picture in zip(names, pictures, strict=True):
        save_picture(output / name, picture)
    write_json(output / "result.json", {"schema": "xreg.result/1", "xreg": __version__, **result})
    result["files"] = [str(output / name) for name in files]


def _files(films: int) -> list[str]:
    """What is written, in this order."""
    return ["pose.json", "pose.tfm", *(["rig.json"] if films > 1 else []), *_overlays(films), "result.json"]


def _overlays(films: int) -> list[str]:
    return ["overlay.png"] if films == 1 else [f"overlay_{n + 1}.png" for n in range(films)]


def _earlier_files(output: Path) -> set[str]:
    """What an earlier run wrote that depends on the number of films, as its result.json tells."""
    from xreg.errors import FileError
    from xreg.io import read_json

    try:
        before = read_json(output / "result.json")
    except FileError:  # no earlier run, or not one that ended
        return set()
    if not isinstance(before, dict) or before.get("method") != "xreg register":
        return set()
    films = len(before["film"]) if isinstance(before.get("film"), list) else 1
    return {*_overlays(films), *(["rig.json"] if films > 1 else [])}


def _view_lines(paths: Sequence[Path], films: Sequence[Radiograph]) -> list[tuple[str, str]]:
    lines = []
    for n, (path, film) in enumerate(zip(paths, films, strict=True)):
        number = f" {n + 1}" if len(films) > 1 else ""
        lines += [(f"film{number}", _film_text(path, film)), (f"view{number}", view_text(film.camera))]
    return lines


def _film_text(path: Path, film: Radiograph) -> str:
    height, width = film.size
    valid = 100.0 * float(film.mask.float().mean())
    return f"{path}: {height}×{width} px, {valid:.0f} % in the beam, {film.relationship} {film.sign:+d}"


def _found_lines(found: RegistrationResult, start: Start, result: dict[str, Any]) -> list[tuple[str, str]]:
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
        ("start", start.text),
        ("pose", f"turned {math.degrees(float(turn)):.2f}°, centre moved by {moved} mm (R, A, S)"),
        ("±", f"{deviation} (one standard deviation, about and along R, A, S)"),
        ("verdict", f"{'accepted' if found.accepted else 'REJECTED'}: {found.reason}"),
        *_evidence_lines(result["verdict"]),
        *hint,
        ("time", f"{seconds:.2f} s for {found.renders} renders ({result['backend']})"),
        ("files", ", ".join(result["files"])),
    ]


def _evidence_lines(verdict: dict[str, Any] | None) -> list[tuple[str, str]]:
    if verdict is None:
        return []
    from xreg.registration.trust import chance

    share, within = chance(verdict["probability"]), verdict["tolerance_mm"]
    measured = ", ".join(f"{name} {short(value)}" for name, value in verdict["evidence"].items())
    return [
        ("trust", f"{share} that the pose is within {within:g} mm (mean over the anatomy)"),
        ("evidence", measured),
    ]
