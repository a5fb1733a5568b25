"""Options of the verbs that read projections: how they are read, and the voxels that are to be filled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import NUMBER, PATH, POSITIVE, binned, check_apart, shared

if TYPE_CHECKING:
    from xreg.io import ProjectionSet, VoxelGrid

ONE_OR_MORE = click.IntRange(min=1)
SIZE = click.IntRange(1, 10_000)  # 10,000³ voxels are beyond any machine, so more is a mistake
_READER = ("unit_mm", "projections", "i0", "log_gain", "sdd", "sod", "spacing")  # as the readers call them
_OPTIONS = (
    click.option(
        "--size", type=SIZE, help="Voxels along a cube.  [default: the grid that the set states]"
    ),
    click.option("--side-mm", type=POSITIVE, help="The cube's edge.  [default: that grid's longest]"),
    click.option(
        "--center", type=NUMBER, nargs=3, metavar="X Y Z",
        help="Middle of the cube, mm.  [default: that grid's, or the origin]",
    ),
    click.option("--unit-mm", type=POSITIVE, help="Millimetres in R²-Gaussian's unit of length."),
    click.option(
        "--projections", "stack", type=PATH, metavar="FILE",
        help="Stack of an RTK geometry.  [default: the only one beside it]",
    ),
    click.option(
        "--i0", type=POSITIVE, help="Unattenuated value of a DICOM run.  [default: from the image]"
    ),
    click.option(
        "--log-gain", type=POSITIVE,
        help="Stored units that a factor e takes, of a DICOM run of logarithms.  [default: 1]",
    ),
    shared("sdd", "Source to detector, of a DICOM run.  [default: its header's]"),
    shared("sod", "Source to isocentre, of a DICOM run.  [default: its header's]"),
    shared("spacing", "Pixels at the detector, mm, of a DICOM run.  [default: its header's]"),
)  # fmt: skip


def scan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how a set of projections is read, and which voxels are meant."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def check_outside(output: Path, projections: Path, stack: Path | None) -> None:
    """UsageError, before any work, where ``output`` would write into the projections that are read."""
    check_apart({"-o": output}, {"PROJECTIONS": projections, "--projections": stack})
    if output.resolve().is_relative_to(projections.resolve()):
        raise click.UsageError(
            f"-o {output} lies inside PROJECTIONS ({projections}), where it could write over what is read; "
            "choose another place."
        )


def read_scan(
    path: Path, options: Mapping[str, Any], *, binning: int | None = None
) -> tuple[ProjectionSet, VoxelGrid, int]:
    """The projections at ``path``, their voxels, and of how many pixels means were taken.

    options: those of `scan_options`.  binning: None for the usual one.
    """
    from xreg.io import load_projections

    given = {**options, "projections": options["stack"]}
    known = {name: given[name] for name in _READER if given[name] is not None}
    scan = load_projections(path, **known)
    grid = grid_of(scan, options)
    scan, n = binned(scan, grid, binning)
    return scan, grid, n


def grid_of(scan: ProjectionSet, options: Mapping[str, Any]) -> VoxelGrid:
    """The voxels as the options say, and what they leave out as the set's own grid has it.

    UsageError where the set states none and the options are too few.
    """
    import torch

    from xreg.io import VoxelGrid

    size, side, center = (options[name] for name in ("size", "side_mm", "center"))
    own = scan.grid
    if own is None:
        if size is None or side is None:
            raise click.UsageError("the set states no grid: give --size and --side-mm (and --center).")
        return VoxelGrid.box(size, side, center or (0.0, 0.0, 0.0))
    if size is None and side is None:
        if not center:
            return own
        affine = own.affine.clone()
        affine[:3, 3] += torch.tensor(center, dtype=torch.float64) - own.center
        return VoxelGrid(own.shape, affine)
    return VoxelGrid.box(size or max(own.shape), side or max(own.extent), center or own.center)
