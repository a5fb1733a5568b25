"""What a fit of Gaussians may be told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from xreg.errors import GaussianError

STARTS = ("tv", "fdk", "uniform")
LOSSES = ("l2", "l1")
VOXELS = ("samples", "linear")
MOST_STEPS = 200  # on views, where neither steps nor seconds are given


@dataclass(frozen=True)
class FitSettings:
    """Everything that `fit` can be told beyond its data.

    init: where Gaussians come from: 'tv' (FISTA-TV), 'fdk' (Hann window, without what is below zero), or
    'uniform' (a lattice in the box); where poses are refined, starts after the first are by FISTA-TV in place
    of FDK, which needs a circle.  count: most Gaussians; None for one to 10 voxels of the grid or 16
    rays, whichever are fewer, at least 2000.  seconds: time budget; iterations: most steps on views, None for
    200, or as many as the budget allows.  voxel_steps: steps on the first volume's voxels, which put
    Gaussians into place before any ray is cast.

    voxels: what the result's voxels are: 'samples' of the Gaussians at voxel centres; or 'linear', the
    numbers between which linear interpolation gives what the views show (`FitResult.volume`), for projections
    that were marched through interpolated voxels of this very grid, as R²-Gaussian's protocol does.
    finish_passes: after a start with FISTA-TV, passes of it at the end that spare the edges of what was
    found; their voxels count as much as the Gaussians in the result's, for the two err differently.  0 for
    the Gaussians alone.

    weigh_rays: rays count by their noise, which the images tell (`xreg.tomography.ray_weights`), in the first
    volume and in the steps; else all alike.  views: views a step.  loss: 'l2' or 'l1' of rays.  ssim, tv:
    weights beside the data term, which counts in units of the images' mean square (or absolute) value; TV is
    of the volume over its largest value, on random blocks of `tv_block` voxels an edge, and its weight in
    units of `xreg.tomography.tv_weight`, which knows the noise.  rates: Adam's, of mean (in voxels),
    log-scale, rotation and density (in units of the first volume's largest value), falling to `decay` of that
    over the fit.

    density_every: steps between density solves, 0 for none; density_iterations: of CGLS in each.  grow_every:
    steps between splits and prunes, 0 for none; grow_share: of the Gaussians with the largest gradient are
    split at a time.  prune: part of the largest peak times width below which a Gaussian is dropped.
    nonnegative: densities below zero become zero.  mode: 'exact' or 'affine' projection.

    held_out: part of the rays kept out of the fit, which decide which step is kept and when to stop;
    check_every: steps between looks at them; patience: looks without a gain after which it stops.  poses:
    refine every view's pose, in `pose_rounds` rounds; intrinsics: with them one detector offset and one
    distance for all.
    """

    init: str = "tv"
    count: int | None = None
    seconds: float | None = None
    iterations: int | None = None
    voxel_steps: int = 60
    voxels: str = "samples"
    finish_passes: int = 14
    weigh_rays: bool = True
    views: int = 4
    loss: str = "l2"
    ssim: float = 0.0
    tv: float = 3.0
    tv_block: int = 48
    rates: tuple[float, float, float, float] = (0.01, 0.003, 0.003, 0.0015)
    decay: float = 0.1
    density_every: int = 0
    density_iterations: int = 4
    grow_every: int = 0
    grow_share: float = 0.1
    prune: float = 1e-3
    nonnegative: bool = False
    mode: str = "exact"
    held_out: float = 0.02
    check_every: int = 25
    patience: int = 1
    poses: bool = False
    pose_rounds: int = 6
    intrinsics: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.init not in STARTS or self.loss not in LOSSES or self.mode not in ("exact", "affine"):
            raise GaussianError(
                f"init must be one of {', '.join(STARTS)}, loss one of {', '.join(LOSSES)}, mode 'exact' or "
                f"'affine', got init={self.init!r}, loss={self.loss!r}, mode={self.mode!r}"
            )
        if self.voxels not in VOXELS:
            raise GaussianError(f"voxels must be 'samples' or 'linear', got {self.voxels!r}")
        rates = self.rates
        if not (isinstance(rates, tuple | list) and len(rates) == 4 and all(map(_is_rate, rates))):
            raise GaussianError(
                "rates must be four finite numbers of zero or more (mean, log-scale, rotation, density), got "
                f"{rates!r}"
            )
        object.__setattr__(self, "rates", tuple(rates))
        least = {"voxel_steps": 0, "views": 1, "tv_block": 4, "density_every": 0,
                 "density_iterations": 1, "grow_every": 0, "check_every": 1, "patience": 1,
                 "pose_rounds": 1, "finish_passes": 0}  # fmt: skip
        for name, low in least.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low:
                raise GaussianError(
                    f"{name} must be a whole number of at least {low}, got {getattr(self, name)!r}"
                )
        if self.iterations is not None and (not isinstance(self.iterations, int) or self.iterations < 0):
            raise GaussianError(
                f"iterations must be a whole number of zero or more, or None, got {self.iterations!r}"
            )
        if self.count is not None and (not isinstance(self.count, int) or self.count < 1):
            raise GaussianError(
                f"count must be a whole number of Gaussians, at least 1, or None, got {self.count!r}"
            )
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise GaussianError(f"seconds, the time budget, must be positive or None, got {self.seconds!r}")
        if not 0 <= self.held_out < 0.5:
            raise GaussianError(f"held_out, a part of the rays, must lie in [0, 0.5), got {self.held_out}")
        if min(self.ssim, self.tv, self.prune) < 0 or not 0 < self.decay <= 1 or not 0 < self.grow_share <= 1:
            raise GaussianError("ssim, tv and prune must be zero or more, decay and grow_share in (0, 1]")

    @property
    def steps(self) -> int:
        """Most steps on views."""
        if self.iterations is not None:
            return self.iterations
        return MOST_STEPS if self.seconds is None else 1_000_000

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
