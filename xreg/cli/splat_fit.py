"""`xreg splat fit` and `xreg splat render`: Gaussians from projections, and radiographs of Gaussians."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import (
    NUMBER,
    PATH,
    POSITIVE,
    SEED,
    check_apart,
    check_file,
    check_folder,
    check_output,
    said_of,
    shared,
)
from xreg.cli.scans import check_outside, read_scan, scan_options
from xreg.cli.terminal import Clock, Tell, Terminal
from xreg.cli.verb import given, verb
from xreg.cli.view import read_camera, read_pose

if TYPE_CHECKING:
    from xreg.splat.fitting import Report

CHECKPOINT = "checkpoint.safetensors"


@verb("fit", "Fit X-ray Gaussians to projections.")
@click.argument("projections", type=PATH)
@shared("output", "Folder for the results.", required=True)
@click.option("--init", type=click.Choice(["tv", "fdk", "uniform"]), default="tv", show_default=True)
@click.option("--prior", type=PATH, help="CT of the same place to begin with, in place of --init.")
@shared(
    "units", "What a NIfTI prior holds: CT numbers or 1/mm.  [default: told from the range]",
    default=None, show_default=False,
)  # fmt: skip
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Most Gaussians.  [default: one to 10 voxels or 16 rays, at least 2000]",
)
@click.option(
    "--voxels", type=click.Choice(["samples", "linear"]), default="samples", show_default=True,
    help="What voxels stand for: 'linear' where the projections were marched through voxels of this grid.",
)  # fmt: skip
@click.option("--seconds", type=POSITIVE, help="Time budget.")
@click.option(
    "--iterations",
    type=click.IntRange(min=0),
    help="Most steps on views.  [default: 200, or what --seconds allows]",
)
@scan_options
@click.option("--poses", is_flag=True, help="Refine the pose of every view.")
@click.option("--intrinsics", is_flag=True, help="With --poses: also the detector's offset and distance.")
@click.option("--held-out", type=NUMBER, default=0.02, show_default=True, help="Part of the rays kept out.")
@shared("binning")
@shared("device")
@click.option("--resume", is_flag=True, help=f"Go on from OUTPUT/{CHECKPOINT}.")
@click.option("--overwrite", is_flag=True, help="Begin anew where OUTPUT holds an earlier fit.")
@click.option("--seed", type=SEED, default=0, show_default=True)
def fit(terminal: Terminal, projections: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Fit Gaussians to PROJECTIONS (what `xreg recon` reads), and write them (.safetensors, .ply), their
    volume, metrics, a comparison, a turntable and checkpoint.safetensors into a folder. An earlier fit there
    is kept: --resume goes on with it from that checkpoint, --overwrite takes its place.

    \b
        xreg splat fit scan -o fitted --seconds 60
    """
    from xreg.errors import GaussianError
    from xreg.splat import FitSettings
    from xreg.splat import fit as run
    from xreg.splat.report import FILES, write_report
    from xreg.volume import Volume

    files = (CHECKPOINT, *FILES)
    _check_options(projections, output, files, options)
    check_folder(output)
    check_output(output, options, files, what="an earlier fit", error=GaussianError)
    names = ("init", "count", "voxels", "seconds", "iterations", "poses", "intrinsics", "held_out", "seed")
    settings = FitSettings(**{name: options[name] for name in names})
    clock, prior = Clock(), options["prior"]
    with terminal.working(f"reading {projections}"), clock.part("read"):
        scan, grid, n = read_scan(projections, options, binning=options["binning"])
        scan = scan.to(options["device"])
        prior = None if prior is None else Volume.load(prior, units=options["units"] or "auto")
    with _made(output):
        with terminal.working("fitting") as tell, clock.part("fit"):
            result = run(
                scan, settings, grid=grid, prior=prior, checkpoint=output / CHECKPOINT,
                resume=options["resume"],
                tell=lambda report: _told(tell, report, settings.seconds, [output / name for name in FILES]),
            )  # fmt: skip
        with terminal.working("writing"), clock.part("write"):
            metrics = write_report(output, result, scan)
    first, last = ("scan", f"{projections}: {said_of(scan, n)}"), ("written", str(output))
    terminal.lines([first, *_lines(result, metrics), last])
    return {
        "projections": str(projections), "binning": n, "output": str(output), "files": list(FILES), **metrics,
        "settings": settings.to_dict(), "phases": result.seconds,
        "seconds": {name: round(value, 3) for name, value in clock.parts.items()},
    }  # fmt: skip


@verb("render", "Render a radiograph of X-ray Gaussians.")
@click.argument("gaussians", type=PATH)
@shared("output", "Image of line integrals, .tif (or .png, a picture).", required=True)
@click.option("--camera", type=PATH, required=True, help="Camera: JSON of xreg or of another tool.")
@click.option("--pose", type=PATH, help="Where the body is.  [default: where its file says]")
@click.option("--mode", type=click.Choice(["exact", "affine"]), default="exact", show_default=True)
def render(terminal: Terminal, gaussians: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Render GAUSSIANS (.safetensors or .ply) as a camera sees them.

    \b
        xreg splat render fitted/gaussians.safetensors -o view.tif --camera camera.json
    """
    import torch

    from xreg.io import save_image
    from xreg.splat import Gaussians

    read = {"GAUSSIANS": gaussians, "--camera": options["camera"], "--pose": options["pose"]}
    check_apart({"-o": output}, read)
    check_file(output)
    clock = Clock()
    with clock.part("read"):
        body, camera = Gaussians.load(gaussians), read_camera(options["camera"])
        pose = None if options["pose"] is None else read_pose(options["pose"])
    body.require_in_beam([camera], pose)
    with torch.no_grad(), clock.part("render"):
        image = body.render(camera, pose, mode=options["mode"])
    save_image(output, image.numpy())
    low, high = (float(v) for v in torch.aminmax(image))
    size = "×".join(map(str, camera.size))
    terminal.lines(
        [
            ("Gaussians", f"{gaussians}: {len(body)}"),
            ("image", f"{output}: {size} px, {low:.4g} to {high:.4g}"),
        ]
    )
    return {
        "gaussians": str(gaussians), "output": str(output), "count": len(body), "size": list(camera.size),
        "range": [low, high], "seconds": {name: round(value, 4) for name, value in clock.parts.items()},
    }  # fmt: skip


def _check_options(projections: Path, output: Path, files: tuple[str, ...], options: dict[str, Any]) -> None:
    """UsageError for options that do not go together, or by which the fit would write over what it reads."""
    if options["intrinsics"] and not options["poses"]:
        raise click.UsageError("--intrinsics goes with --poses.")
    if options["units"] and not options["prior"]:
        raise click.UsageError("--units goes with --prior.")
    if options["prior"] and given("init"):
        raise click.UsageError("--prior takes the place of --init: give one.")
    check_outside(output, projections, options["stack"])
    check_apart(
        {"-o": output} | {f"-o ({name})": output / name for name in files},
        {"PROJECTIONS": projections, "--projections": options["stack"], "--prior": options["prior"]},
    )


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it; where the block raises, those that are still empty go again."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def _told(tell: Tell, report: Report, budget: float | None, earlier: list[Path]) -> None:
    """Show where a fit is.  Once a new one has written its checkpoint, an earlier one's results go."""
    if report.phase == "views" and report.step == 0:
        for path in earlier:
            path.unlink(missing_ok=True)
    text = f"{report.phase}: {report.step}, {report.count} Gaussians, {report.seconds:.1f} s"
    if report.held_out is not None:
        text += f", held-out rays {report.held_out:.5f}"
    share = report.step / max(report.of, 1) if budget is None else min(1.0, report.seconds / budget)
    tell(text, key=(report.phase, report.step), done=round(1000 * share), total=1000)


def _lines(result: Any, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("Gaussians", f"{len(result.gaussians)}, {result.steps} steps, {result.seconds['total']:.1f} s")]
    views = f"fitted {metrics['views_db']:.2f} dB"
    if "held_out_views_db" in metrics:
        views += (
            f", held out {metrics['held_out_views_db']:.2f} dB (absolute; "
            f"{metrics['held_out_views_min_max_db']:.2f} stretched by each view's extremes)"
        )
    lines.append(("views", views))
    if "psnr_3d_db" in metrics:
        text = f"{metrics['psnr_3d_db']:.2f} dB, SSIM {metrics['ssim_3d']:.3f} (absolute)"
        lines.append(("against the truth", text))
    if "poses" in metrics:
        poses = metrics["poses"]
        lines.append(("poses", f"moved by {poses['degrees_rms']:.2f}°, {poses['mm_rms']:.2f} mm (rms)"))
    return lines
