"""Projections of a CT as papers on sparse views simulate them, made by the ray marcher.

The protocol of R²-Gaussian (R. Zha et al., NeurIPS 2024): CT numbers from −1000 to 2000 become densities
from 0 to 1 in a cube with edges of two scene units; the source circles at 5 units from its middle, the
detector of 4×4 units stands at 7; noise is Poisson's on I0 photons and Gaussian of the electronics, in
counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, VolumeError
from xreg.geometry import Rig
from xreg.geometry._numbers import image_size
from xreg.geometry.conventions import CONVENTIONS
from xreg.io.grid import axis_weights
from xreg.io.projections import ProjectionSet
from xreg.io.voxel_grid import VoxelGrid
from xreg.tomography.projector import Projector
from xreg.volume import Volume

HU_RANGE = (-1000.0, 2000.0)
SCENE = 2.0  # scene units along the cube's edge
NOISE = ("tigre", "physical", "none")


@dataclass(frozen=True)
class Protocol:
    """What is simulated; lengths are scene units, of which the cube's edge has two.

    size: voxels along the cube's edge.  views: evenly from ``start`` over ``arc`` degrees, the end left out;
    or ``angles`` (degrees), which replace them.  detector: (height, width) px; detector_side: (height, width)
    units; offset: (right, down), how far the detector is shifted.  sod, sdd: source to middle and to
    detector.

    noise: 'tigre' scales line integrals so that the darkest ray keeps 1/e of its photons, as TIGRE's CTnoise
    and so R²-Gaussian do; 'physical' takes them as they are; 'none'.  photons: I0 (the paper says 1e5, its
    published generator 1e4, which is the default here).  electronic: standard deviation in counts.
    held_out: further views at random angles of the whole circle, without noise.  finer: the march runs on a
    grid so many times finer, and the truth is its mean over each voxel; 1 marches the truth itself, as the
    papers do.  integrator: of the march.
    """

    size: int = 256
    views: int = 50
    arc: float = 360.0
    start: float = 0.0
    angles: tuple[float, ...] | None = None
    detector: tuple[int, int] = (512, 512)
    detector_side: tuple[float, float] = (4.0, 4.0)
    offset: tuple[float, float] = (0.0, 0.0)
    sod: float = 5.0
    sdd: float = 7.0
    noise: str = "tigre"
    photons: float = 1e4
    electronic: float = 10.0
    held_out: int = 0
    finer: int = 1
    integrator: str = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("views", 1), ("finer", 1), ("held_out", 0)):
            if not getattr(self, name) >= least:
                raise GeometryError(f"{name} must be at least {least}, got {getattr(self, name)}")
        self._check_detector()
        if self.angles is not None and not (self.angles and all(map(math.isfinite, self.angles))):
            raise GeometryError(f"angles must be finite degrees, one or more, got {self.angles}")
        if self.noise not in NOISE:
            raise GeometryError(f"noise must be one of {', '.join(NOISE)}, got {self.noise!r}")
        if not 0 < self.photons < math.inf:
            raise GeometryError(f"photons, of a pixel in air, must be positive, got {self.photons}")
        if not 0 <= self.electronic < math.inf:
            raise GeometryError(f"electronic, counts, must be zero or more, got {self.electronic}")
        if not 0 < self.arc <= 360:
            raise GeometryError(f"arc must lie in (0, 360] degrees, got {self.arc}")
        if not math.isfinite(self.start):
            raise GeometryError(f"start must be finite degrees, got {self.start}")
        if not math.sqrt(3) < self.sod < self.sdd < math.inf:
            raise GeometryError(
                f"sod must lie between √3 (outside the cube) and sdd, scene units, got sod {self.sod} and "
                f"sdd {self.sdd}"
            )

    def _check_detector(self) -> None:
        image_size(self.detector, "detector")
        side, offset = tuple(self.detector_side), tuple(self.offset)
        if len(side) != 2 or not all(math.isfinite(v) and v > 0 for v in side):
            raise GeometryError(
                f"detector_side must be two positive edges (height, width), scene units, got {side}"
            )
        if len(offset) != 2 or not all(map(math.isfinite, offset)):
            raise GeometryError(
                f"offset must be two finite shifts (right, down) of the detector, scene units, got {offset}"
            )

    @property
    def degrees(self) -> Float[Tensor, " V"]:
        """The angle of each view, float64."""
        if self.angles is not None:
            return torch.tensor(self.angles, dtype=torch.float64)
        return self.start + self.arc * torch.arange(self.views, dtype=torch.float64) / self.views

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}


@dataclass(frozen=True, eq=False)
class Simulation:
    """projections: with noise; their ``truth`` is the volume (1/mm), ``scale`` 1/mm of density 1.

    Views held out, without noise, are its ``held_out``.  clean: the same views without noise.
    """

    projections: ProjectionSet
    clean: Float[Tensor, "V H W"]


def simulate(volume: Volume, protocol: Protocol | None = None, *, side_mm: float | None = None) -> Simulation:
    """Simulate projections of a CT by marching rays through it.

    volume: a CT with ``energy_kev``, or any volume already in density (see `density_cube`).  side_mm: the
    cube's edge, by default the volume's longest.  The axis of rotation is the world's z through the middle of
    the cube; angles as R²-Gaussian counts them.  Deterministic on the CPU for one seed, which touches no
    global state.  Raises VolumeError, GeometryError.
    """
    protocol = protocol or Protocol()
    fine = density_cube(volume, protocol.size * protocol.finer, side_mm=side_mm)
    grid = VoxelGrid.of(fine)
    truth_grid, mu = grid, fine.mu
    if protocol.finer > 1:
        mu = torch.nn.functional.avg_pool3d(fine.mu[None, None], protocol.finer)[0, 0]
        truth_grid = grid.binned(protocol.finer)
    scale = SCENE / grid.extent[0]
    notes = {"simulation": protocol.to_dict(), "cube_mm": grid.extent[0], "source": dict(volume.provenance)}
    truth = truth_grid.volume(mu * scale, energy_kev=volume.energy_kev, provenance=notes)
    generator = torch.Generator().manual_seed(protocol.seed)
    random = torch.rand(protocol.held_out, generator=generator, dtype=torch.float64).sort().values
    rig = _rig(protocol, protocol.degrees, grid)
    clean = Projector(rig, grid, integrator=protocol.integrator).forward(fine.mu * scale)
    if not float(clean.max()) > 0:
        raise GeometryError("no ray meets anything but air; check the detector's side and offset")
    noisy = add_noise(clean, protocol, generator)
    held_out = None
    if protocol.held_out:
        others = _rig(protocol, 360 * random + protocol.start, grid)
        images = Projector(others, grid, integrator=protocol.integrator).forward(fine.mu * scale)
        held_out = ProjectionSet(images, others, provenance=notes)
    found = ProjectionSet(noisy, rig, truth=truth, scale=scale, held_out=held_out, provenance=notes)
    return Simulation(found, clean)


def density_cube(volume: Volume, size: int, *, side_mm: float | None = None) -> Volume:
    """The CT as densities from 0 (−1000 HU) to 1 (2000 HU) in a cube of size³ voxels; air outside.

    Its axes run near R, A, S; its middle is the volume's.  A volume without ``energy_kev``
    is taken to hold densities already.  Averaged where voxels grow, trilinear where they shrink.
    """
    volume = volume.reoriented()
    if volume.energy_kev is not None:
        low, high = HU_RANGE
        density = ((volume.hu.clamp(low, high) - low) / (high - low)).float()
    else:
        density = volume.mu.detach().float()
        if float(density.min()) < 0 or float(density.max()) > 1:
            raise VolumeError(
                "a volume without energy_kev must hold densities from 0 to 1, got "
                f"{float(density.min()):g} to {float(density.max()):g}; load a CT, or set energy_kev"
            )
    side = float(max(volume.extent) if side_mm is None else side_mm)
    if not (math.isfinite(side) and side > 0):
        raise VolumeError(f"side_mm must be positive, got {side_mm}")
    affine = volume.affine.clone()
    for axis, (n, spacing) in enumerate(zip(volume.size, volume.spacing, strict=True)):
        ratio = side / size / spacing
        first = (n - 1) / 2 - ratio * (size - 1) / 2  # middles coincide
        place = first + ratio * torch.arange(size, dtype=torch.float64)
        weights = axis_weights(n, size, ratio, first, True)
        covered = (place + ratio / 2).clamp_max(n - 0.5) - (place - ratio / 2).clamp_min(-0.5)
        weights = (weights * (covered / ratio).clamp(0, 1)[:, None]).to(density)  # the rest is air
        density = torch.movedim(torch.movedim(density, 2 - axis, -1) @ weights.T, -1, 2 - axis)
        affine[:3, 3] += affine[:3, axis] * first
        affine[:3, axis] *= ratio
    return Volume(density.clamp(0, 1), affine, energy_kev=volume.energy_kev, provenance=volume.provenance)


def add_noise(clean: Float[Tensor, "V H W"], protocol: Protocol, generator: torch.Generator) -> Tensor:
    """Photons and electronics: counts are Poisson's about I0·exp(−p), plus a Gaussian; at least one count.

    Line integrals below zero, which noise makes in air, become zero, as in R²-Gaussian's generator.
    """
    if protocol.noise == "none":
        return clean
    scale = float(clean.max()) if protocol.noise == "tigre" else 1.0
    counts = torch.poisson(protocol.photons * torch.exp(-clean.double().cpu() / scale), generator=generator)
    noise = torch.randn(counts.shape, generator=generator, dtype=torch.float64)
    counts = (counts + protocol.electronic * noise).clamp_min(1.0)
    return (-torch.log(counts / protocol.photons) * scale).clamp_min(0).to(clean)


def _rig(protocol: Protocol, degrees: Tensor, grid: VoxelGrid) -> Rig:
    """The cameras about the middle of the cube, world RAS mm."""
    unit = grid.extent[0] / SCENE
    height, width = protocol.detector
    tool = CONVENTIONS["naf"]
    move = torch.eye(4, dtype=torch.float64)
    move[:3, 3] = -grid.center
    cameras = []
    for angle in torch.deg2rad(degrees).tolist():
        params = tool.params(
            DSD=protocol.sdd * unit,
            DSO=protocol.sod * unit,
            nDetector=(width, height),
            dDetector=(protocol.detector_side[1] * unit / width, protocol.detector_side[0] * unit / height),
            angle=angle,
            offDetector=(protocol.offset[0] * unit, protocol.offset[1] * unit),
        )
        cameras.append(tool.to_camera(params).moved(move))
    return Rig(tuple(cameras))
