"""Gaussians from projections: a first volume, Gaussians near it, then steps on the views themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GaussianError
from xreg.io.projections import ProjectionSet
from xreg.io.voxel_grid import VoxelGrid
from xreg.ops.splatting import splat, voxelize
from xreg.splat.adam import Parameters
from xreg.splat.checkpoint import (
    Progress,
    check_file,
    identity,
    read_checkpoint,
    require_same,
    write_checkpoint,
)
from xreg.splat.control import split_and_prune
from xreg.splat.density import image_maps, solve_density
from xreg.splat.finish import FINISHED, RESERVE, finished_voxels
from xreg.splat.gaussians import Gaussians, widened
from xreg.splat.losses import data_term, random_block, roughness, ssim_views
from xreg.splat.poses import Correction, refine_poses
from xreg.splat.prior import matched_prior, on_grid
from xreg.splat.settings import FitSettings
from xreg.splat.start import (
    default_count,
    first_gaussians,
    first_volume,
    uniform_gaussians,
)
from xreg.splat.views import Views, views_of
from xreg.tomography.tv import USUAL_PASSES, tv_steps, tv_weight
from xreg.volume import Volume

START_SHARE = 0.4  # of the time budget, at most, for the first volume
POSE_STEPS = 20  # on the views, before each round of poses
HAT = 1 / 6  # variance of the hat function that lies between voxels, in voxels²
GROWN_FROM = 2  # Gaussians that are to be split begin as so many times fewer


@dataclass(frozen=True)
class Report:
    """Where a fit is: its phase, steps done and to do, Gaussians, seconds, and the misfit of held-out
    rays."""

    phase: str
    step: int
    of: int
    count: int
    seconds: float
    held_out: float | None = None


Tell = Callable[[Report], Any]


@dataclass(frozen=True, eq=False)
class FitResult:
    """gaussians: those of the best look at the held-out rays.  cameras: as corrected.  history: every look,
    as (step, count, seconds, misfit).  correction: of the poses, None where they were not refined.  seconds:
    by phase.  hat: variance (mm²) by which the Gaussians are wider than the volume's, see `volume`.
    finished: voxels [D, H, W] as `finished_voxels` makes them, 1/mm; None of other starts than FISTA-TV or a
    prior, and of a fit that was told to end.
    """

    gaussians: Gaussians
    grid: VoxelGrid
    cameras: tuple[Any, ...]
    steps: int
    history: tuple[tuple[int, int, float, float], ...]
    seconds: dict[str, float] = field(default_factory=dict)
    correction: Correction | None = None
    hat: float = 0.0
    finished: Float[Tensor, "D H W"] | None = None

    def volume(self) -> Volume:
        """Voxels on the fit's grid, 1/mm: the mean of `gaussian_volume` and the finished voxels."""
        made = self.gaussian_volume()
        if self.finished is None:
            return made
        return replace(made, mu=torch.lerp(made.mu, self.finished.to(made.mu), FINISHED))

    def gaussian_volume(self) -> Volume:
        """Voxels on the fit's grid, 1/mm: the Gaussians alone, at voxel centres.

        With ``voxels='linear'`` they are first freed of what linear interpolation will add: sampled as they
        are, and then interpolated, they would be blurred once more.
        """
        return self._voxelised

    @cached_property
    def _voxelised(self) -> Volume:
        return self.gaussians.widened(-self.hat).to_volume((self.grid.affine, self.grid.shape))


def hat_variance(grid: VoxelGrid) -> float:
    """By what linear interpolation between voxels widens a Gaussian, mm² along each axis.

    GaussianError for voxels that are no cubes, between which it widens more along one axis than another.
    """
    if max(grid.spacing) > 1.01 * min(grid.spacing):
        spacing = "×".join(f"{s:.4g}" for s in grid.spacing)
        raise GaussianError(
            f"voxels='linear' needs voxels that are cubes, got {spacing} mm; use voxels='samples', or a grid "
            "of one spacing"
        )
    return HAT * grid.voxel_mm3 ** (2 / 3)


def fit(
    scan: ProjectionSet,
    settings: FitSettings = FitSettings(),
    *,
    grid: VoxelGrid | None = None,
    prior: Volume | None = None,
    checkpoint: str | PathLike | None = None,
    resume: bool = False,
    tell: Tell | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> FitResult:
    """Fit Gaussians to projections.

    scan: line integrals and cameras, of any geometry.  grid: the box (default: the scan's).  prior: a CT
    of the same place to begin with, in place of ``settings.init``, in any unit of attenuation: it is
    multiplied by what brings it to the films' (`matched_prior`).  checkpoint: a .safetensors file, written
    at every look at the held-out rays; resume: go on from it, with the same bits as without the break.  tell:
    is given a `Report` now and then; True ends the fit.  clock: seconds, for the time budget.

    Same seed, same bits on the CPU, unless bounded by seconds.  Raises GaussianError, GeometryError,
    ImageError, FileError; warns of one view.
    """
    grid = grid or scan.grid
    if grid is None:
        raise GaussianError(
            "a fit needs a box: pass grid=VoxelGrid.box(size, edge_mm), as the set states none"
        )
    check_file(checkpoint, resume)
    run = _Run(scan, settings, grid, checkpoint, tell, clock)
    run.identity = identity(run.views.films, run.nominal, grid, prior)
    if resume:
        run.resume()
    else:
        run.begin(prior)
    run.descend()
    return run.result()


class _Run:
    """One fit: its data, its Gaussians, and where it stands.

    The parameters are those of the voxels; what a view sees of them is wider, see `FitResult.volume`.
    """

    def __init__(self, scan, settings, grid, checkpoint, tell, clock) -> None:
        self.settings, self.grid, self.file = settings, grid, checkpoint
        self._tell, self._clock, self._begun = tell, clock, clock()
        self.views: Views = views_of(
            scan, grid, settings.held_out, settings.seed, by_noise=settings.weigh_rays
        )
        self.nominal, self.energy = self.views.cameras, None if scan.truth is None else scan.truth.energy_kev
        self.correction = Correction.none(len(self.views.films)) if settings.poses else None
        self.count = settings.count or default_count(grid, self.views.films.numel())
        self.weights = self.views.weights
        size = self.views.films.square() if settings.loss == "l2" else self.views.films.abs()
        self.tv = settings.tv * tv_weight(self.views.films)
        self.unit, self.hat = float(size.mean()), hat_variance(grid) if settings.voxels == "linear" else 0.0
        self.seconds: dict[str, float] = {}
        self.progress = Progress(generator=torch.Generator().manual_seed(settings.seed))
        self.peak, self.stopped = 0.0, False
        self.first: Tensor | None = None
        self.identity: dict[str, Any] = {}  # of its data, by which a checkpoint knows them

    # ---- time and talk ----

    @property
    def spent(self) -> float:
        return self._clock() - self._begun + self.progress.seconds_before

    def late(self, share: float = 1.0) -> bool:
        budget = self.settings.seconds
        return self.stopped or (budget is not None and self.spent > share * budget)

    def tell(self, phase: str, step: int, of: int, held_out: float | None = None) -> None:
        if self._tell is not None:
            count = len(self.parameters.values["mean"]) if hasattr(self, "parameters") else 0
            self.stopped |= self._tell(Report(phase, step, of, count, self.spent, held_out)) is True

    # ---- the start ----

    def begin(self, prior: Volume | None) -> None:
        began = self.spent
        self.tell("start", 0, 1)
        if prior is not None:
            prior = matched_prior(prior, self.views, self.grid)
            self.first = on_grid(prior, self.grid)
        self.adopt(self.start(prior))
        self.seconds["start"] = self.spent - began
        if self.settings.poses:
            began = self.spent
            self.align(prior)
            self.seconds["poses"] = self.spent - began
        self.look(0)

    def start(self, prior: Volume | None, init: str | None = None) -> Gaussians:
        s, init = self.settings, init or self.settings.init
        count = self.count // GROWN_FROM if s.grow_every else self.count
        if prior is None and init == "uniform":
            made = uniform_gaussians(self.views, self.grid, count)
            self.peak = float(made.density.max()) * 4
        else:
            if prior is None:
                limit = None if s.seconds is None else START_SHARE * s.seconds
                mu = first_volume(
                    self.views, self.grid, init, seconds=limit,
                    on_pass=lambda n: self.tell("first volume", n, USUAL_PASSES) or self.stopped,
                )  # fmt: skip
                if not float(mu.max()) > 0:
                    raise GaussianError(
                        "the first volume has nothing above zero; check the images and the grid"
                    )
                prior = self.grid.volume(mu)
                self.first = mu if init == "tv" else None
            self.peak = float(prior.mu.max())
            made = first_gaussians(prior, s, count, finished=lambda _: self.late(2 * START_SHARE))
        return replace(made, energy_kev=self.energy, provenance={"fit": s.to_dict()})

    def adopt(self, start: Gaussians) -> None:
        voxel = self.grid.voxel_mm3 ** (1 / 3)
        self.parameters = Parameters(start, self.settings.rates, voxel=voxel, peak=self.peak)
        self.pull = torch.zeros_like(start.density)
        self.rays = self.views.rays(start)

    def align(self, prior: Volume | None) -> None:
        """Rounds of steps on the views, of poses, and of a new start with the cameras as they now are."""
        s = self.settings
        for number in range(s.pose_rounds):
            for _ in range(POSE_STEPS):
                self.step(1.0)
            body = self.parameters.gaussians().widened(self.hat)
            residual = self.misfit(body, self.weights)
            self.correction = refine_poses(
                body, self.views, self.nominal, self.correction, center=self.grid.center,
                intrinsics=s.intrinsics, noise=max(residual, 1e-6),
            )  # fmt: skip
            self.views = replace(self.views, cameras=self.correction.cameras(self.nominal, self.grid.center))
            self.tell("poses", number + 1, s.pose_rounds)
            if prior is None and s.init != "uniform":
                self.adopt(self.start(None, "tv"))  # views that were moved are on no circle, which FDK needs
            else:
                self.rays = self.views.rays(body)
            if self.late(0.6):
                break

    def misfit(self, seen: Gaussians, weights: Float[Tensor, "V H W"]) -> float:
        """Root mean square of the rays that have a weight; seen: Gaussians as wide as views see them."""
        with torch.no_grad():
            image, _ = splat(*seen._tensors(), self.rays, self.views.size, kind=self.kind)
            return float(data_term(image, self.views.films, weights, "l2")) ** 0.5

    @property
    def kind(self) -> str:
        return "parallel" if self.views.kind == "parallel" else self.settings.mode

    # ---- the steps ----

    def descend(self) -> None:
        s, began = self.settings, self.spent
        share, looks = 1 - RESERVE if self.will_finish else 1.0, self.progress
        while looks.step < s.steps and not self.late(share) and not looks.worse_for(s.patience):
            done = self.progress.step / s.steps
            if s.seconds is not None:
                done = max(done, min(1.0, (self.spent - began) / max(share * s.seconds - began, 1e-9)))
            self.step(s.decay**done)
            self.progress.step += 1
            n = self.progress.step
            if s.density_every and n % s.density_every == 0:
                self.solve_density()
            if s.grow_every and n % s.grow_every == 0 and n < 0.7 * s.steps:
                self.grow()
            if n % s.check_every == 0:
                self.look(n)
        if self.progress.step % s.check_every:
            self.look(self.progress.step)
        self.seconds["views"] = self.spent - began

    def step(self, factor: float) -> None:
        """One step on a few views and a block of voxels."""
        s, films = self.settings, self.views.films
        pick = self.progress.next_views(len(films), min(s.views, len(films)))
        with torch.enable_grad():
            tensors = self.parameters.tensors()
            mean, scale, rotation, density = tensors
            scale, density = widened(scale, density, self.hat)
            image, _ = splat(mean, scale, rotation, density, self.rays[pick], self.views.size, kind=self.kind)
            loss = data_term(image, films[pick], self.weights[pick], s.loss) / self.unit
            if s.ssim:
                loss = loss + s.ssim * (1 - ssim_views(image, films[pick], float(films.max())))
            if s.tv:
                affine, shape = random_block(
                    self.grid.affine, self.grid.shape, s.tv_block, self.progress.generator
                )
                block = voxelize(*tensors, affine, shape) / self.peak
                loss = loss + self.tv * roughness(block, tv_steps(self.grid.spacing))
            loss.backward()
        if s.grow_every:
            self.pull += self.parameters.values["mean"].grad.norm(dim=1)
        self.parameters.step(factor, nonnegative=s.nonnegative)

    def solve_density(self) -> None:
        mean, scale, rotation, density = (t.detach() for t in self.parameters.tensors())
        wide, seen = widened(scale, density, self.hat)
        maps = image_maps(mean, wide, rotation, self.rays, self.views.size, kind=self.kind)
        solved = solve_density(
            maps, self.views.films, self.weights, seen, iterations=self.settings.density_iterations
        )
        solved = solved * (wide / scale).prod(1)
        self.parameters.set_density(solved.clamp_min(0) if self.settings.nonnegative else solved)

    def grow(self) -> None:
        s = self.settings
        split_and_prune(self.parameters, self.pull, most=self.count, share=s.grow_share, prune=s.prune)
        self.pull = torch.zeros_like(self.parameters.values["density"].detach())

    def look(self, step: int) -> None:
        """Judge by the held-out rays, or by all where there are none; keep the best, write it down."""
        body = self.parameters.gaussians()
        misfit = self.misfit(body.widened(self.hat), self.views.judges)
        if not misfit < float("inf"):
            raise GaussianError(f"the fit diverged at step {step}; smaller rates may hold it")
        self.progress.note(body, (step, len(body), round(self.spent, 3), misfit))
        if self.file is not None:
            pull = self.pull if self.settings.grow_every else None
            write_checkpoint(
                self.file, self.progress, self.parameters, self.settings, self.state(), first=self.first,
                pull=pull,
            )  # fmt: skip
        self.tell("views", step, self.settings.steps, misfit)

    # ---- to and from the disk ----

    def state(self) -> dict[str, Any]:
        fixed = {"peak": self.peak, "seconds": self.spent, "of": self.identity}
        if self.correction is not None:
            fixed["correction"] = [self.correction.change.tolist(), self.correction.common.tolist()]
        return fixed

    def resume(self) -> None:
        found = read_checkpoint(self.file, self.settings)
        require_same(self.file, found.state["of"], self.identity)
        if self.settings.poses and "correction" in found.state:
            change, common = (torch.tensor(v, dtype=torch.float64) for v in found.state["correction"])
            self.correction = Correction(change, common)
            self.views = replace(self.views, cameras=self.correction.cameras(self.nominal, self.grid.center))
        self.peak, self.first = found.state["peak"], found.first
        start = replace(found.now.to(self.views.films.device), energy_kev=self.energy)
        self.adopt(replace(start, provenance={"fit": self.settings.to_dict()}))
        found.restore(self.parameters)
        if found.pull is not None:
            self.pull = found.pull.to(self.pull)
        self.progress = found.progress
        self.tell("resumed", self.progress.step, self.settings.steps)

    def result(self) -> FitResult:
        best = self.progress.best or self.parameters.gaussians()
        kept = replace(
            best.widened(self.hat), energy_kev=self.energy, provenance={"fit": self.settings.to_dict()}
        )
        found = FitResult(
            kept, self.grid, self.views.cameras, self.progress.step, tuple(self.progress.history),
            correction=self.correction, hat=self.hat,
        )  # fmt: skip
        if self.will_finish and not self.stopped:
            found = replace(found, finished=self.finish(found))
        self.seconds["total"] = self.spent
        return replace(found, seconds=dict(self.seconds))

    @property
    def will_finish(self) -> bool:
        return self.first is not None and self.settings.finish_passes > 0

    def finish(self, found: FitResult) -> Float[Tensor, "D H W"]:
        s, began = self.settings, self.spent
        voxels = finished_voxels(
            self.views, self.grid, found.gaussian_volume().mu, self.first, passes=s.finish_passes,
            seconds=None if s.seconds is None else max(s.seconds - began, 1e-9),
            on_pass=lambda n: self.tell("finish", n, s.finish_passes) or self.stopped,
        )  # fmt: skip
        self.seconds["finish"] = self.spent - began
        return voxels
