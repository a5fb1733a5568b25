"""`xreg recon`: a volume from projections by a classical method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, POSITIVE, Number, check_file, said_of, shared
from xreg.cli.scans import ONE_OR_MORE, check_outside, read_scan, scan_options
from xreg.cli.terminal import Clock, Tell, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.io import ProjectionSet, VoxelGrid
    from xreg.tomography import Iteration

TAKES = {  # of the options that not every method has
    "fdk": ("window", "extend"),
    "sirt": ("iterations", "seconds"),
    "os-sart": ("iterations", "subsets", "seconds"),
    "cgls": ("iterations", "seconds"),
    "fista-tv": ("iterations", "subsets", "weight", "seconds"),
}
WINDOWS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")


@verb("recon", "Reconstruct a volume from projections.")
@click.argument("projections", type=PATH)
@shared("output", "Volume to write, .nii or .nii.gz, in 1/mm.", required=True)
@click.option("--method", type=click.Choice(list(TAKES)), default="fista-tv", show_default=True)
@click.option("--window", type=click.Choice(WINDOWS), help="FDK's filter.  [default: hann]")
@click.option(
    "--extend", type=Number(0, 2), metavar="PART",
    help="Continue FDK's rows by so much of their length, where the detector cuts the object.  [default: 0]",
)  # fmt: skip
@click.option("--iterations", type=ONE_OR_MORE, help="At most.  [default: by method]")
@click.option(
    "--subsets", type=ONE_OR_MORE, help="Subsets of views.  [default: one for three views, 8 at most]"
)
@click.option(
    "--weight",
    type=Number(min=0),
    help="Of total variation.  [default: by noise and number of views]",
)
@click.option("--seconds", type=POSITIVE, help="Time budget of an iterative method.")
@shared("binning", "Mean of n×n pixels first.  [default: 1 for FDK, else what leaves 1.3 pixels a voxel]")
@shared("device")
@scan_options
def command(terminal: Terminal, projections: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Reconstruct PROJECTIONS: a folder of `xreg splat simulate` or R²-Gaussian, a NAF pickle, RTK's
    geometry XML beside its stack, or a rotating DICOM run.

    FDK needs a circular scan, the others take any views. Where the set holds the true volume, PSNR and SSIM
    are printed on the absolute scale.

    \b
        xreg recon scan -o ct.nii.gz --method fdk
    """
    import torch

    from xreg.io import save_volume

    _check_options(options)
    if not output.name.endswith((".nii", ".nii.gz")):
        raise click.BadParameter(f"{output} must end in .nii or .nii.gz.", param_hint="'-o'")
    check_outside(output, projections, options["stack"])
    check_file(output)
    clock = Clock()
    binning = 1 if options["method"] == "fdk" and options["binning"] is None else options["binning"]
    with terminal.working(f"reading {projections}"), clock.part("read"):
        scan, grid, n = read_scan(projections, options, binning=binning)
    with terminal.working(options["method"]) as tell, clock.part("reconstruct"):
        mu = _reconstruct(scan.to(options["device"]), grid, options, tell).cpu()
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


def _check_options(options: dict[str, Any]) -> None:
    """UsageError for an option that the method does not have."""
    method = options["method"]
    names = {name for each in TAKES.values() for name in each}
    for name in sorted(names - set(TAKES[method])):
        if options[name] is not None:
            others = ", ".join(other for other, takes in TAKES.items() if name in takes)
            raise click.UsageError(f"--{name} is for {others}, and not for {method}.")


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
        filter = Filter(options["window"] or "hann", extend=options["extend"] or 0.0)
        return fdk(images, scan.cameras, grid, filter=filter)
    parallel = any(camera.parallel for camera in scan.cameras)
    exact = method in ("cgls", "fista-tv") or parallel
    projector = Projector(scan.cameras, grid, adjoint="exact" if exact else "voxel")
    known = {"on_iteration": step, "seconds": options["seconds"]}
    if options["iterations"] is not None:
        known["iterations"] = options["iterations"]
    subsets = options["subsets"]
    groups = {"subsets": usual_subsets(len(scan)) if subsets is None else subsets}
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
