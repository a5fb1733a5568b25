"""`xreg splat`: X-ray Gaussians, their fit to projections, and the simulation of scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    CT_NAMES,
    NUMBER,
    PATH,
    SEED,
    check_folder,
    ct_options,
    ct_text,
    load_ct,
    shared,
    split,
)
from xreg.cli.scans import ONE_OR_MORE, SIZE
from xreg.cli.splat_fit import fit, render
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.verb import given, verb

if TYPE_CHECKING:
    from xreg.tomography import Simulation
    from xreg.volume import Volume


@click.group("splat", short_help="X-ray Gaussians: simulate scans, fit, render.")
def command() -> None:
    """X-ray Gaussians and the scans that they are fitted to."""


@verb("simulate", "Simulate projections of a CT by R²-Gaussian's protocol.")
@click.argument("ct", type=PATH)
@shared("output", "Folder to write; it must not exist.", required=True)
@click.option("--size", type=SIZE, default=256, show_default=True, help="Voxels along the cube.")
@click.option("--views", type=ONE_OR_MORE, default=50, show_default=True, help="Views, evenly over the arc.")
@click.option("--arc", type=NUMBER, default=360.0, show_default=True, help="Degrees, 360 is a full turn.")
@click.option("--start", type=NUMBER, default=0.0, show_default=True, help="Of the first view, degrees.")
@click.option("--angle", "angles", type=NUMBER, multiple=True, help="Of one view; replaces views and arc.")
@click.option(
    "--detector", type=SIZE, nargs=2, metavar="H W", default=(512, 512), show_default=True, help="Pixels."
)
@click.option(
    "--detector-side", type=NUMBER, nargs=2, metavar="H W", default=(4.0, 4.0), show_default=True,
    help="Edges in scene units (the cube's edge has two); small ones cut the object.",
)  # fmt: skip
@click.option(
    "--offset",
    type=NUMBER,
    nargs=2,
    metavar="RIGHT DOWN",
    default=(0.0, 0.0),
    help="Detector shift, scene units.",
)
@click.option("--side-mm", type=NUMBER, help="The cube's edge.  [default: the CT's longest]")
@click.option("--noise", type=click.Choice(["tigre", "physical", "none"]), default="tigre", show_default=True)
@click.option("--photons", type=NUMBER, default=1e4, show_default=True, help="I0, photons a pixel in air.")
@click.option(
    "--electronic", type=NUMBER, default=10.0, show_default=True, help="Noise of the counts, its sd."
)
@click.option(
    "--held-out", type=click.IntRange(min=0), default=0, show_default=True,
    help="Further views, without noise.",
)  # fmt: skip
@click.option(
    "--finer", type=ONE_OR_MORE, default=1, show_default=True, help="March on a grid so many times finer."
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@ct_options
def simulate(terminal: Terminal, ct: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Simulate projections of CT, and write them with their cameras and the true volume as a folder.

    CT numbers from −1000 to 2000 become densities from 0 to 1 in a cube; the source circles at 5 scene units,
    the detector stands at 7. Rays are marched through the voxels. 'tigre' noise scales line integrals so that
    the darkest ray keeps 1/e of its photons, as R²-Gaussian's generator does.

    \b
        xreg splat simulate ct.nii.gz -o scan --views 50 --held-out 50
    """
    from xreg.errors import FileError
    from xreg.io import save_projections
    from xreg.tomography import Protocol
    from xreg.tomography import simulate as run

    known, options = split(options, CT_NAMES)
    fine = options["size"] * options["finer"]
    if fine > SIZE.max:
        raise click.UsageError(
            f"--size {options['size']} times --finer {options['finer']} is {fine} voxels along the cube; at "
            f"most {SIZE.max} can be."
        )
    _check_used(options)
    check_folder(output)
    if output.exists():
        raise FileError(f"{output}: exists already; choose another name")
    if not output.parent.is_dir():
        raise FileError(f"{output}: the folder {output.parent} does not exist; make it first")
    side, angles = options.pop("side_mm"), options.pop("angles")
    protocol = Protocol(**options, angles=tuple(angles) or None)
    clock = Clock()
    with terminal.working(f"reading {ct}"), clock.part("read"):
        volume = _read(ct, known)
    with terminal.working(f"marching {len(protocol.degrees)} views"), clock.part("project"):
        found = run(volume, protocol, side_mm=side)
    with clock.part("write"):
        save_projections(output, found.projections)
    result = _result(ct, output, found, clock)
    shape = "×".join(str(n) for n in result["shape"])
    terminal.lines(
        [
            ("CT", ct_text(volume, ct)),
            ("cube", f"{protocol.size}³ voxels, {result['cube_mm']:.5g} mm"),
            ("density 1", f"{result['scale']:.4g} /mm"),
            ("projections", f"{shape}, line integrals up to {result['largest']:.4g}; {result['noise']}"),
            ("written", f"{output} ({', '.join(f'{n} {s:.1f} s' for n, s in clock.parts.items())})"),
        ]
    )
    return result


def _check_used(options: dict[str, Any]) -> None:
    """UsageError for an option that is without effect beside the others."""
    random = () if options["held_out"] else ("seed",)  # it draws the views held out as well
    if options["noise"] == "none" and (wrong := given("photons", "electronic", *random)):
        raise click.UsageError(f"{', '.join(wrong)}: for noise, and --noise is none; leave that out.")
    first = () if options["held_out"] else ("start",)
    if options["angles"] and (wrong := given("views", "arc", *first)):
        raise click.UsageError(f"--angle says where each view is; leave out {', '.join(wrong)}.")


def _read(path: Path, known: dict[str, Any]) -> Volume:
    """The CT, as stated at its own energy: densities follow its CT numbers, and so does their truth.

    UsageError for an energy that those numbers do not depend on.
    """
    volume = load_ct(path, known)
    if volume.provenance["units"] == "mu":
        idle, why = "ct_energy", "holds attenuation in 1/mm, whose energy is --energy"
    else:
        idle, why = "energy", "holds CT numbers, of which densities are made at any energy"
    if wrong := given(idle):
        raise click.UsageError(f"{wrong[0]} changes nothing: {path} {why}; leave it out.")
    return volume.at_energy(volume.ct_energy_kev)


def _result(ct: Path, output: Path, found: Simulation, clock: Clock) -> dict[str, Any]:
    kept = found.projections
    about = kept.provenance["simulation"]
    noise = "no noise"
    if about["noise"] != "none":
        noise = f"{about['noise']} noise, I0 {about['photons']:g}, {about['electronic']:g} counts electronic"
    return {
        "ct": str(ct),
        "output": str(output),
        "shape": list(kept.images.shape),
        "largest": float(found.clean.max()),
        "noise_std": float((kept.images - found.clean).std()),
        "noise": noise,
        "cube_mm": kept.provenance["cube_mm"],
        "scale": kept.scale,
        "held_out": 0 if kept.held_out is None else len(kept.held_out),
        "protocol": about,
        "seconds": {name: round(value, 3) for name, value in clock.parts.items()},
    }


command.add_command(simulate)
command.add_command(fit)
command.add_command(render)
