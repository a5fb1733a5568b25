"""`xreg drr`: a digitally reconstructed radiograph of a CT, as an image file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    CT_NAMES,
    INTEGRATORS,
    NUMBER,
    PATH,
    c_arm_options,
    check_apart,
    check_file,
    ct_text,
    labelled_ct_options,
    load_ct,
    shared,
    split,
)
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.verb import given, verb
from xreg.cli.view import aimed, check_view, read_view, view_text

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.geometry import Camera
    from xreg.volume import Volume

IMAGES = (".png", ".tif", ".tiff", ".npy", ".nii", ".nii.gz")
STACKS = (".npy", ".nii", ".nii.gz")


@verb("drr", "Render a radiograph of a CT.")
@click.argument("ct", type=PATH)
@shared(
    "output",
    "Image to write: .png (16 bit, windowed), .tif, .npy or .nii.gz (float32, as they are).",
    required=True,
)
@c_arm_options
@click.option(
    "--pose", type=PATH, help="Pose of the CT in the world (JSON or .tfm).  [default: as its header says]"
)
@click.option("--integrator", type=click.Choice(INTEGRATORS), default="trilinear", show_default=True)
@click.option(
    "--samples",
    type=click.IntRange(min=2),
    default=500,
    show_default=True,
    help="Samples a ray, for trilinear.",
)
@click.option(
    "--labels",
    type=click.Choice(["hard", "soft"]),
    help="One channel a label of --mask, as .npy [C, H, W] or .nii.gz (channels along k).",
)
@click.option(
    "--window", type=NUMBER, nargs=2, metavar="LOW HIGH", help="Values that are black and white in a .png."
)
@click.option("--save-camera", type=PATH, metavar="JSON", help="Write the camera, for register and convert.")
@click.option(
    "--sidecar", is_flag=True, help="Write what was rendered, and the window, as JSON beside the image."
)
@labelled_ct_options
def command(terminal: Terminal, ct: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Render a radiograph of CT: a NIfTI file or a folder of DICOM slices.

    Pixel values are line integrals of attenuation, without unit (0 is air). The view is --camera, or a C-arm
    in DICOM's words:

    \b
        xreg drr ct.nii.gz -o drr.png --sdd 1020 --sod 850 --primary 20 --secondary -5 \\
            --size 512 512 --spacing 0.78 0.78
    """
    known, options = split(options, CT_NAMES)
    check_view(options)
    suffix = _check_names(output, options, known)
    _check_paths(ct, output, suffix, options, known)
    clock = Clock()
    with clock.part("read"):
        camera, pose = read_view(options)
    with terminal.working(f"reading {ct}"), clock.part("read"):
        volume = load_ct(ct, known)
        camera = aimed(camera, options, volume, pose)
    with terminal.working("rendering"), clock.part("render"):
        image = _render(volume, camera, pose, options)
    window = _save(output, suffix, image, camera, options["window"])
    result = _result(ct, output, volume, camera, pose, options, image, window, clock)
    _save_beside(output, suffix, camera, options, result)
    _report(terminal, result, volume, camera)
    return result


def _check_names(output: Path, options: dict[str, Any], ct: dict[str, Any]) -> str:
    """The suffix of the output; UsageError where the options do not go together."""
    name = output.name.lower()
    suffix = next((s for s in sorted(IMAGES, key=len, reverse=True) if name.endswith(s)), None)
    if suffix is None:
        raise click.BadParameter(f"{output} must end in one of {', '.join(IMAGES)}.", param_hint="'-o'")
    if options["labels"] and suffix not in STACKS:
        raise click.BadParameter(
            f"a stack of labels must end in one of {', '.join(STACKS)}.", param_hint="'-o'"
        )
    if options["labels"] and "mask" not in ct:
        raise click.UsageError("--labels needs --mask, the label map of the CT.")
    _check_used(options)
    if options["window"] and suffix != ".png":
        raise click.UsageError("--window is for .png; the other files keep the values as they are.")
    if options["window"] and not -math.inf < options["window"][0] < options["window"][1] < math.inf:
        low, high = options["window"]
        raise click.UsageError(f"--window is LOW HIGH with LOW below HIGH, got {low:g} {high:g}.")
    return suffix


def _check_used(options: dict[str, Any]) -> None:
    """UsageError for an option that is without effect beside the others."""
    if not options["labels"] and (idle := given("mask", "label_names")):
        raise click.UsageError(f"{' and '.join(idle)} is for --labels, hard or soft: give that as well.")
    if options["integrator"] != "trilinear" and given("samples"):
        raise click.UsageError(
            f"--samples is for --integrator trilinear, and not for {options['integrator']}; leave it out."
        )


def _check_paths(ct: Path, output: Path, suffix: str, options: dict[str, Any], known: dict[str, Any]) -> None:
    """FileError where a file cannot be written, UsageError where it would replace another of this run."""
    sidecar = _sidecar(output, suffix) if options["sidecar"] else None
    outputs = {"-o": output, "--save-camera": options["save_camera"], "--sidecar": sidecar}
    inputs = {"CT": ct, "--mask": known.get("mask"), "--label-names": known.get("label_names")}
    inputs |= {"--camera": options["camera"], "--pose": options["pose"]}
    check_apart(outputs, inputs)
    for path in outputs.values():
        if path is not None:
            check_file(path)


def _sidecar(output: Path, suffix: str) -> Path:
    return output.with_name(output.name[: -len(suffix)] + ".json")


def _render(volume: Volume, camera: Camera, pose: Tensor | None, options: dict[str, Any]) -> Tensor:
    from xreg.renderer import drr

    return drr(
        volume,
        camera,
        pose,
        integrator=options["integrator"],
        samples=options["samples"],
        storage="float" if options["integrator"] in ("siddon", "exact") else "int16",
        labels=options["labels"],
    )


def _save(
    output: Path, suffix: str, image: Tensor, camera: Camera, window: tuple[float, float] | None
) -> tuple[float, float] | None:
    """Write the image; returns the window of a PNG."""
    import numpy as np

    from xreg.io import atomic_write, save_image
    from xreg.io.images import write_npy

    pixels = image.detach().cpu().numpy().astype(np.float32)
    if suffix in (".nii", ".nii.gz"):
        _save_nifti(output, pixels, camera)
        return None
    if suffix == ".npy":
        with atomic_write(output) as temporary:
            write_npy(temporary, pixels)
        return None
    if suffix == ".png":
        window = window or (0.0, max(float(pixels.max()), 1e-6))
        save_image(output, pixels, window=window)
        return window
    save_image(output, pixels)
    return None


def _save_nifti(output: Path, pixels: Any, camera: Camera) -> None:
    """As an image in the plane of the detector, mm; channels along k.  It has no place in the patient."""
    import torch

    from xreg.io import write_nifti

    row, column = (1.0, 1.0) if camera.sdd is None else camera.spacing.tolist()
    affine = torch.diag(torch.tensor([column, row, 1.0, 1.0], dtype=torch.float64))
    write_nifti(
        output, pixels.reshape(-1, *camera.size), affine, description="xreg line integrals of attenuation"
    )


def _save_beside(
    output: Path, suffix: str, camera: Camera, options: dict[str, Any], result: dict[str, Any]
) -> None:
    from xreg.io import save_camera, write_json

    if options["save_camera"] is not None:
        save_camera(options["save_camera"], camera)
    if options["sidecar"]:
        path = _sidecar(output, suffix)
        write_json(path, {"schema": "xreg.drr/1", **result})
        result["sidecar"] = str(path)


def _result(ct, output, volume, camera, pose, options, image, window, clock) -> dict[str, Any]:
    from xreg.ops.registry import backend

    low, high = (float(v) for v in image.aminmax())
    return {
        "ct": str(ct),
        "output": str(output),
        "shape": list(image.shape),
        "range": [low, high],
        "window": None if window is None else list(window),
        "unit": "line integral of attenuation, no unit",
        "energy_kev": volume.energy_kev,
        "integrator": options["integrator"],
        "samples": options["samples"] if options["integrator"] == "trilinear" else None,
        "labels": None if not options["labels"] else _channels(options["labels"], volume, image.shape[0]),
        "backend": backend(),
        "camera": camera.to_dict(),
        "world_from_body": None if pose is None else pose.tolist(),
        "seconds": {name: round(value, 4) for name, value in clock.parts.items()},
    }


def _channels(kind: str, volume: Volume, count: int) -> dict[str, Any]:
    names = {n: volume.label_names.get(n, "") for n in range(1, count)}
    return {
        "kind": kind,
        "channels": count,
        "names": {0: "without label"} | {n: t for n, t in names.items() if t},
    }


def _report(terminal: Terminal, result: dict[str, Any], volume: Volume, camera: Camera) -> None:
    low, high = result["range"]
    shape = "×".join(str(n) for n in result["shape"])
    image = f"{result['output']}: {shape}, line integrals {low:.4g} to {high:.4g}"
    if result["window"] is not None:
        image += "; 16 bit, {:.4g} is black and {:.4g} white".format(*result["window"])
    march = result["integrator"]
    if result["samples"]:
        march += f", {result['samples']} samples"
    terminal.lines(
        [
            ("image", image),
            ("CT", ct_text(volume, result["ct"])),
            ("view", view_text(camera)),
            ("march", f"{march}, {result['backend']} kernels, {1000 * result['seconds']['render']:.0f} ms"),
        ]
    )
