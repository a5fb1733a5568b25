"""`xreg convert`: cameras and poses between tools."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, check_apart, check_file, shared
from xreg.cli.terminal import Terminal, json_text
from xreg.cli.verb import verb
from xreg.cli.view import read_camera

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.geometry import Camera

OWN = ("xreg", "pose", "itk")
TOOLS = (
    "diffdrr",
    "nanodrr",
    "xvr",
    "deepfluoro",
    "deepdrr",
    "rg2_xreg",
    "rtk",
    "tigre",
    "naf",
    "r2_gaussian",
    "x_gaussian",
    "plastimatch",
    "pytorch3d",
    "autoscoper",
)
TEXT_TOOLS = ("autoscoper", "plastimatch")  # their own files are text
POSES = ("pose", "itk")
_DIFFERENT_PX = 0.5
FORMATS = """\b
xreg         camera as JSON: K, camera_from_world (RAS mm, OpenCV), size, sdd
pose         pose as JSON: world_from_body (RAS mm), as register writes it
itk          pose as an ITK text transform (.tfm), for 3D Slicer
diffdrr      DiffDRR 0.6: radians, centred RAS volume
nanodrr      nanodrr 0.1.7: degrees about an isocentre, RAS
xvr          xvr: DiffDRR from the angles and distances of a DICOM header
deepfluoro   DeepFluoro: calibration and cam-to-pelvis-vol, LPS
deepdrr      DeepDRR 1.2: corner intrinsics and camera3d_from_world
rg2_xreg     rg2/xReg (C++): CameraModel, LPS
rtk          RTK: circular geometry, IEC 61217
tigre        TIGRE: reversed arrays, ZYZ angles, rows upwards
naf          NAF: circular scan
r2_gaussian  R2-Gaussian: meta_data.json
x_gaussian   X-Gaussian
plastimatch  projection matrix file (text), LPS
pytorch3d    PyTorch3D: PerspectiveCameras in NDC, row vectors
autoscoper   Autoscoper, XMALab: MayaCam 2.0 (text)"""


@dataclass(frozen=True)
class View:
    """What was read: a camera as the body sees it, or a pose and the camera it was found in, if known.

    centred: whether --isocenter said where the tool that wrote the file centres its volume.
    """

    camera: Camera | None = None
    world_from_body: Tensor | None = None
    centred: bool = False


@verb("convert", "Convert a camera or a pose between tools.", epilog=FORMATS)
@click.argument("file", type=PATH)
@click.option(
    "--from",
    "source",
    type=click.Choice([*OWN, *TOOLS]),
    metavar="TOOL",
    help="What FILE is.  [default: what it says]",
)
@click.option(
    "--to",
    "target",
    type=click.Choice([*OWN, *TOOLS]),
    metavar="TOOL",
    required=True,
    help="What to make of it.",
)
@shared("output", "File to write.  [default: print its text]")
@shared("camera", "Camera in the world: what turns a pose into a view, and a view into a pose.")
@click.option(
    "--flip",
    type=click.Choice(["none", "rows", "columns"]),
    default="none",
    show_default=True,
    help="Flip the image (flipud, fliplr): some tools store it mirrored. Flip the pixels too.",
)
@shared(
    "isocenter", "Where a tool centres its volume, RAS mm: the one of FILE where that lacks it, and TOOL's."
)
@shared("size", "Of the image, where a plastimatch file lacks it.")
@shared("sdd", "Source to detector, where the file lacks it.")
@click.option(
    "--set",
    "extra",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another word of the target tool, as orientation=PA.",
)
def command(
    terminal: Terminal, file: Path, source: str | None, target: str, output: Path | None, **options: Any
) -> dict:
    """Convert a camera or a pose between tools; TOOL is one of those listed at the end.

    Parameters of a tool are JSON in its own words, with its name as "tool". A tool that keeps the CT fixed
    takes a pose as the camera that the body sees:

    \b
        xreg convert pose.json --to diffdrr --isocenter -13.6 -7.9 -175
        xreg convert diffdrr.json --to pose --camera cam.json -o pose.json
        xreg convert cam.json --to rtk --flip rows
    """
    if output is not None:
        check_file(output)
        check_apart({"-o": output}, {"FILE": file, "--camera": options["camera"]})
    source = source or _tell(file)
    _check_used(file, source, target, options)
    view = _read(file, source, options)
    _check_isocenter(view, source, target, options)
    made = _make(view, target, options, terminal)
    said = _write(made, target, output)
    result = {"file": str(file), "from": source, "to": target, "flip": options["flip"], "result": made}
    if output is None:
        terminal.say(said)
    else:
        terminal.say(f"{output}: {source} to {target}" + _flipped(options["flip"]))
        result["output"] = str(output)
    return result


def _flip(camera: Camera, flip: str) -> Camera:
    if flip == "none":
        return camera
    return camera.flip_rows() if flip == "rows" else camera.flip_columns()


def _flipped(flip: str) -> str:
    if flip == "none":
        return ""
    return f"; flip the pixels with numpy.{'flipud' if flip == 'rows' else 'fliplr'}"


def _tell(file: Path) -> str:
    """What a file says that it is."""
    from xreg.io import read_json

    if file.suffix.lower() == ".tfm":
        return "itk"
    if file.suffix.lower() == ".txt":
        raise click.UsageError(
            f"{file} is text and does not say whose; give --from autoscoper, plastimatch or itk."
        )
    data = read_json(file, "a camera or a pose (JSON)")
    known = data if isinstance(data, dict) else {}
    if known.get("tool") in TOOLS:
        return known["tool"]
    schema = str(known.get("schema", ""))
    for name, prefix in (("pose", "xreg.pose/"), ("xreg", "xreg.camera/")):
        if schema.startswith(prefix):
            return name
    if schema.startswith("xreg.rig/"):
        raise click.UsageError(
            f"{file} is a rig of several cameras; convert takes one: write it to its own file."
        )
    raise click.UsageError(
        f"{file} does not say what it is (schema {schema or None!r}, no known tool); give --from."
    )


def _check_used(file: Path, source: str, target: str, options: dict[str, Any]) -> None:
    """UsageError for an option that this conversion has no use for."""
    pose_in, pose_out = source in POSES, target in POSES
    text = source == "plastimatch" and file.suffix.lower() != ".json"
    idle = {
        "--camera": options["camera"] is not None and pose_in == pose_out,
        "--flip": options["flip"] != "none" and pose_in and pose_out,
        "--set": bool(options["extra"]) and target not in TOOLS,
        "--size": options["size"] is not None and not text,
        "--sdd": options["sdd"] is not None and pose_out,
    }
    if wrong := [flag for flag, unused in idle.items() if unused]:
        raise click.UsageError(
            f"{' and '.join(wrong)} says nothing about {source} to {target}; leave it out."
        )


def _check_isocenter(view: View, source: str, target: str, options: dict[str, Any]) -> None:
    if options["isocenter"] is None or view.centred or "isocenter" in _words(target):
        return
    raise click.UsageError(
        f"--isocenter is not used: the file ({source}) states its own or has none, and {target} has none; "
        "leave it out."
    )


def _words(target: str) -> list[str]:
    """What --set can say of a tool."""
    import inspect

    from xreg.geometry.conventions import CONVENTIONS

    if target not in TOOLS:
        return []
    parameters = inspect.signature(CONVENTIONS[target].from_camera).parameters
    return [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]


def _read(file: Path, source: str, options: dict[str, Any]) -> View:
    from xreg.io import load_camera, load_pose, load_tfm

    given = None if options["camera"] is None else read_camera(options["camera"])
    if source == "itk":
        return View(_long(given, options["sdd"]), load_tfm(file))
    if source == "pose":
        record = load_pose(file)
        return View(_long(given or record.camera, options["sdd"]), record.world_from_body)
    if source == "xreg":
        return View(_long(load_camera(file), options["sdd"]))
    if file.suffix.lower() != ".json" and source in TEXT_TOOLS:
        return View(_long(_read_text(file, source, options), options["sdd"]))
    camera, centred = _read_tool(file, source, options["isocenter"])
    return View(_long(camera, options["sdd"]), centred=centred)


def _long(camera: Camera | None, sdd: float | None) -> Camera | None:
    """The camera with --sdd, where it has no distance of its own."""
    if camera is None or sdd is None:
        return camera
    if camera.sdd is None:
        return camera.replace(sdd=sdd)
    if abs(float(camera.sdd) - sdd) > 1e-3:
        raise click.UsageError(
            f"the view has a source-to-detector distance, {float(camera.sdd):g} mm, and "
            f"--sdd says {sdd:g}; leave --sdd out."
        )
    return camera


def _read_tool(file: Path, source: str, isocenter: Any) -> tuple[Camera, bool]:
    """The camera in JSON of a tool's words, and whether ``isocenter`` was what it lacked."""
    from dataclasses import fields

    from xreg.geometry.conventions import CONVENTIONS, load
    from xreg.io import read_json
    from xreg.io.files import named

    data = read_json(file, f"parameters of {source} (JSON)")
    known = [f.name for f in fields(CONVENTIONS[source].params)]
    lacks = isinstance(data, dict) and "isocenter" in known and "isocenter" not in data
    if centred := lacks and isocenter is not None:
        data = {**data, "isocenter": list(isocenter)}
    with named(file):
        return load(source, data), centred


def _read_text(file: Path, source: str, options: dict[str, Any]) -> Camera:
    """The camera in a tool's own text format."""
    from xreg.geometry.conventions import CONVENTIONS

    text = _text(file, source)
    if source == "plastimatch":
        from xreg.geometry.conventions import plastimatch

        if options["size"] is None:
            raise click.UsageError("A plastimatch file does not say how large the image is; give --size H W.")
        rows, columns = options["size"]
        return CONVENTIONS[source].to_camera(plastimatch.parse(text, rows=rows, columns=columns))
    from xreg.geometry.conventions import autoscoper

    return CONVENTIONS[source].to_camera(autoscoper.parse(text))


def _text(file: Path, source: str) -> str:
    from xreg.errors import FileError
    from xreg.io.files import require_file

    try:
        return require_file(file, f"a file of {source}").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{file}: is not text; expected a file of {source}") from error


def _make(view: View, target: str, options: dict[str, Any], terminal: Terminal) -> dict[str, Any]:
    """The result as plain values: a pose, a camera, or a tool's parameters."""
    if target in POSES:
        return _make_pose(view, target, options, terminal)
    if view.camera is None:
        raise click.UsageError(f"A pose alone is no view, and {target} describes views; give --camera.")
    camera = view.camera if view.world_from_body is None else view.camera.moved(view.world_from_body)
    camera = _flip(camera, options["flip"])
    if target == "xreg":
        return camera.to_dict()
    return _make_tool(camera, target, options)


def _make_tool(camera: Camera, target: str, options: dict[str, Any]) -> dict[str, Any]:
    from xreg.errors import GeometryError
    from xreg.geometry.conventions import save

    allowed, words = _words(target), _extra(options["extra"])
    if options["isocenter"] is not None and "isocenter" in allowed:
        if "isocenter" in words:
            raise click.UsageError("--isocenter and --set isocenter=... exclude each other: give one.")
        words["isocenter"] = options["isocenter"]
    if unknown := [name for name in words if name not in allowed]:
        raise click.UsageError(
            f"{target} has no word {', '.join(unknown)}; it has {', '.join(allowed) or 'none'}."
        )
    try:
        return save(target, camera, **words)
    except GeometryError as error:
        if "mirrored" in str(error) and options["flip"] == "none":
            raise GeometryError(f"{error}. On the command line: --flip rows or --flip columns") from error
        raise


def _extra(pairs: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is JSON is taken as such, otherwise as text."""
    words: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--set takes NAME=VALUE, got {pair!r}.")
        if name in words:
            raise click.UsageError(f"--set gives {name} twice: give it once.")
        try:
            words[name] = json.loads(value)
        except ValueError:
            words[name] = value
    return words


def _make_pose(view: View, target: str, options: dict[str, Any], terminal: Terminal) -> dict[str, Any]:
    """world_from_body: as read, or what brings the view of --camera to the view of the tool."""
    pose = view.world_from_body
    if pose is None:
        if options["camera"] is None:
            raise click.UsageError(
                f"{target} is a pose: give --camera, the camera in the world, from which the pose follows."
            )
        world = read_camera(options["camera"])
        seen = _flip(view.camera, options["flip"])
        _compare(world, seen, terminal)
        pose = world.world_from_camera @ seen.camera_from_world
    return {"name": "world_from_body", "convention": "RAS mm", "matrix": pose.tolist()}


def _compare(world: Camera, seen: Camera, terminal: Terminal) -> None:
    """Refuse a view of another handedness, and warn where the intrinsics are not the camera's."""
    from xreg.errors import GeometryError

    if world.mirrored != seen.mirrored:
        raise GeometryError(
            f"the view is mirrored={seen.mirrored} and --camera mirrored={world.mirrored}: no pose turns one "
            "into the other. The pixels of one are flipped; say so with --flip rows or --flip columns"
        )
    same = world.size == seen.size and float((world.K - seen.K).abs().max()) < _DIFFERENT_PX
    if not same:
        terminal.note(
            f"warning: sizes or intrinsics differ ({world.size} and {seen.size}, "
            f"fx {float(world.K[0, 0]):.6g} and {float(seen.K[0, 0]):.6g} px); the pose is that of the axes"
        )


def _write(made: dict[str, Any], target: str, output: Path | None) -> str:
    """Write the file; returns the text where there is none to write."""
    import torch

    from xreg.io import save_pose, save_tfm, write_json

    if target in POSES:
        pose = torch.tensor(made["matrix"], dtype=torch.float64)
        save = save_pose if target == "pose" else save_tfm
        if output is not None:
            save(output, pose)
            return ""
        with tempfile.TemporaryDirectory() as folder:  # the text is that of the file
            file = Path(folder) / ("pose.json" if target == "pose" else "pose.tfm")
            save(file, pose)
            return file.read_text(encoding="utf-8").rstrip("\n")
    if output is not None and (output.suffix.lower() == ".json" or target not in TEXT_TOOLS):
        write_json(output, made)
        return ""
    if target not in TEXT_TOOLS:
        return json_text(made)
    return _write_text(made, target, output)


def _write_text(made: dict[str, Any], target: str, output: Path | None) -> str:
    from xreg.geometry.conventions import CONVENTIONS, autoscoper, plastimatch
    from xreg.io import atomic_write

    module = autoscoper if target == "autoscoper" else plastimatch
    text = module.write(CONVENTIONS[target].params.from_dict(made))
    if output is not None:
        with atomic_write(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return text
