"""`xreg recon`: a volume from projections by a classical method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, binned, check_file, said_of, shared
from xreg.cli.terminal import Clock, Tell, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.io import ProjectionSet, VoxelGrid
    from xreg.tomography import Iteration

METHODS = ("fdk", "sirt", "os-sart", "cgls", "fista-tv")
WINDOWS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")


@verb("recon", "Reconstruct a volume from projections.")
@click.argument("projections", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Volume to write, .nii or .nii.gz, in 1/mm.")
@click.option("--method", type=click.Choice(METHODS), default="fista-tv", show_default=True)
@click.option("--size", type=int, help="Voxels along the cube.  [default: the grid that the set states]")
@click.option("--side-mm", type=float, help="The cube's edge, with --size where the set states no grid.")
@click.option(
    "--center", type=float, nargs=3, metavar="X Y Z", help="Middle of that cube, mm.  [default: the origin]"
)
@click.option("--window", type=click.Choice(WINDOWS), default="hann", show_default=True, help="FDK's filter.")
@click.option("--iterations", type=int, help="At most.  [default: by method]")
@click.option("--subsets", type=int, help="Subsets of views.  [default: one for three views, 8 at most]")
@click.option("--weight", type=float, help="Of total variation.  [default: by noise and number of views]")
@click.option("--seconds", type=float, help="Time budget of an iterative method.")
@shared("binning", "Mean of n×n pixels first.  [default: 1 for FDK, else what leaves 1.3 pixels a voxel]")
@click.option("--unit-mm", type=float, help="Millimetres in R²-Gaussian's unit of length.")
@click.option("--i0", type=float, help="Unattenuated value of a DICOM run.  [default: from the image]")
def command(terminal: Terminal, projections: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Reconstruct PROJECTIONS: a folder of `xreg splat simulate` or R²-Gaussian, a NAF pickle, RTK's
    geometry XML beside its stack, or a rotating DICOM run.

    FDK needs a circular scan, the others take any views. Where the set holds the true volume, PSNR and SSIM
    are printed on the absolute scale.

    \b
        xreg recon scan -o ct.nii.gz --method fdk
    """
    import torch

    from xreg.io import load_projections, save_volume

    if not output.name.endswith((".nii", ".nii.gz")):
        raise click.BadParameter(f"{output} must end in .nii or .nii.gz.", param_hint="'-o'")
    check_file(output)
    clock = Clock()
    given = {name: options[name] for name in ("unit_mm", "i0") if options[name] is not None}
    with terminal.working(f"reading {projections}"), clock.part("read"):
        scan = load_projections(projections, **given)
        grid, one_pass = _grid(scan, options), options["method"] == "fdk"
        scan, n = binned(scan, grid, options["binning"] or (1 if one_pass else None))
    with terminal.working(options["method"]) as tell, clock.part("reconstruct"):
        mu = _reconstruct(scan, grid, options, tell)
    quality = _quality(scan, grid, mu)
    energy = None if scan.truth is None else scan.truth.energy_kev
    notes = {"method": options["method"], "projections": str(projections)}
    save_volume(output, grid.volume(mu, energy_kev=energy, provenance=notes))
    low, high = (float(v) for v in torch.aminmax(mu))
    size, spacing = ("×".join(f"{v:.4g}" for v in each) for each in (grid.size, grid.spacing))
    lines = [
        ("scan", f"{projections}: {said_of(scan, n)}"),
        ("volume", f"{output}: {size} voxels of {spacing} mm, {low:.4g} to {high:.4g} /mm"),
        ("method", f"{options['method']}, {clock.parts['reconstruct']:.1f} s"),
    ]
    if quality:
        lines.append(
            ("against the truth", f"{quality['psnr_db']:.2f} dB, SSIM {quality['ssim']:.3f} (absolute)")
        )
    terminal.lines(lines)
    return {
        "projections": str(projections),
        "output": str(output),
        "method": options["method"],
        "views": len(scan),
        "binning": n,
        "size": list(grid.size),
        "spacing_mm": list(grid.spacing),
        "unit": "1/mm",
        "range": [low, high],
        "quality": quality,
        "seconds": {name: round(value, 3) for name, value in clock.parts.items()},
    }


def _grid(scan: ProjectionSet, options: dict[str, Any]) -> VoxelGrid:
    from xreg.io import VoxelGrid

    size, side = options["size"], options["side_mm"]
    if scan.grid is not None and side is None and not options["center"]:
        return scan.grid if size is None else VoxelGrid.box(size, max(scan.grid.extent), scan.grid.center)
    if size is None or side is None:
        raise click.UsageError("the set states no grid: give --size and --side-mm (and --center).")
    return VoxelGrid.box(size, side, options["center"] or (0.0, 0.0, 0.0))


def _reconstruct(scan: ProjectionSet, grid: VoxelGrid, options: dict[str, Any], tell: Tell) -> Tensor:
    from xreg.tomography import (
        USUAL_PASSES,
        Filter,
        Projector,
        cgls,
        fdk,
        fista_tv,
        os_sart,
        ray_weights,
        sirt,
        usual_subsets,
    )

    def step(done: Iteration) -> None:
        text = f"{done.number} of {done.of}, residual {done.residual:.4f}"
        tell(text, key=done.number, done=done.number, total=done.of)

    method, images = options["method"], scan.images
    if method == "fdk":
        return fdk(images, scan.cameras, grid, filter=Filter(options["window"]))
    parallel = any(camera.parallel for camera in scan.cameras)
    exact = method in ("cgls", "fista-tv") or parallel
    projector = Projector(scan.cameras, grid, adjoint="exact" if exact else "voxel")
    known = {"on_iteration": step, "seconds": options["seconds"]}
    if options["iterations"]:
        known["iterations"] = options["iterations"]
    groups = {"subsets": options["subsets"] or usual_subsets(len(scan))}
    if method == "fista-tv":
        known = {"iterations": USUAL_PASSES, "rays": ray_weights(images), **known}
        return fista_tv(projector, images, weight=options["weight"], **known, **groups)
    if method == "os-sart":
        return os_sart(projector, images, **known, **groups)
    return {"sirt": sirt, "cgls": cgls}[method](projector, images, **known)


def _quality(scan: ProjectionSet, grid: VoxelGrid, mu: Tensor) -> dict[str, float] | None:
    """PSNR and SSIM of densities (range 1 in the source's unit), where the truth is on this grid."""
    from xreg.metrics import psnr, ssim_volume

    truth = scan.truth
    if truth is None or scan.scale is None or truth.shape != grid.shape:
        return None
    if not bool((truth.affine - grid.affine).abs().max() < 1e-6):
        return None
    density, other = mu / scan.scale, truth.mu / scan.scale
    return {"psnr_db": psnr(density, other), "ssim": ssim_volume(density, other), "data_range": 1.0}
