"""R²-Gaussian's recipe on this project's kernels, as a baseline: random views, one at a time, first order.

From the published description (R. Zha et al., NeurIPS 2024): points from an FDK volume, densities times 0.15,
scales from the three nearest neighbours; L1 + 0.25 (1 − SSIM) + 0.05 TV on a random block of 32³; rates that
fall tenfold over 30,000 steps; from step 500 to 15,000, every 100, Gaussians whose projections are pulled
by more than 5e-5 are cloned or split with half their density.  The projection is the affine one.  Gradients
are those of these kernels, which are right where the published voxeliser's are not.

Lengths are scene units (the cube's edge has two), densities go from 0 to 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import roma
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from xreg.ops.splatting import splat, voxelize
from xreg.splat.losses import random_block, ssim_views
from xreg.splat.views import views_of
from xreg.tomography import fdk

STEPS, POINTS, MOST = 30_000, 50_000, 500_000
DENSITY_FROM, INIT_DENSITY = 0.05, 0.15
RATES = {"mean": 2e-4, "density": 1e-2, "scale": 5e-3, "rotation": 1e-3}
FALL = 0.1  # of the rates, over all steps
GROW = range(500, 15_000, 100)
PULL, LARGE, FAINT = 5e-5, 0.1, 1e-5  # of a projection, a scale (units), a density
SSIM, TV, BLOCK = 0.25, 0.05, 32
SCALES = (1e-3, 1.0)  # least and most, units


@dataclass(frozen=True)
class Look:
    """Where the recipe stands."""

    step: int
    count: int
    seconds: float


class R2Recipe:
    """One fit: `run` until a budget or all steps are spent, then `volume`."""

    def __init__(self, scan: Any, *, seed: int = 0, points: int = POINTS, steps: int = STEPS) -> None:
        self.scan, self.grid, self.steps = scan, scan.grid, steps
        self.half = max(scan.grid.extent) / 2
        self.views = views_of(scan, scan.grid, 0.0, seed, by_noise=False)
        unit = scan.scale * self.half
        self.films, self.unit = self.views.films / unit, unit
        self.random = torch.Generator().manual_seed(seed)
        self.center = scan.grid.center.float()
        self.cameras = [c.camera_from_world for c in self.views.cameras]
        self.step_number = 0
        self._adopt(self._points(points))
        self.rays = torch.cat([c.ray_basis(None)[None] for c in self.views.cameras])
        self._clear()

    # ---- the parameters: activations as in the paper's code: softplus for densities, a sigmoid for scales

    def _points(self, count: int) -> dict[str, Tensor]:
        mu = fdk(self.views.films, self.views.cameras, self.grid) / self.scan.scale
        dense = (mu > DENSITY_FROM).nonzero()
        pick = dense[torch.randperm(len(dense), generator=self.random)[:count]]
        affine = self.grid.affine.float()
        place = pick.flip(1).float() @ affine[:3, :3].T + affine[:3, 3]
        mean = (place - self.center) / self.half
        near, _ = cKDTree(mean.numpy()).query(mean.numpy(), k=4)
        scale = torch.from_numpy(np.sqrt((near[:, 1:] ** 2).mean(1))).float().clamp(2 * SCALES[0], 0.5)
        density = (mu[pick.unbind(1)] * INIT_DENSITY).clamp_min(1e-4)
        return {
            "mean": mean,
            "scale": _logit(scale)[:, None].repeat(1, 3),
            "rotation": torch.tensor([[0.0, 0, 0, 1]]).repeat(len(mean), 1),
            "density": torch.log(torch.expm1(density)),
        }

    def _adopt(self, values: dict[str, Tensor], moments: dict[str, Tensor] | None = None) -> None:
        self.values = {n: v.detach().clone().requires_grad_() for n, v in values.items()}
        self.adam = torch.optim.Adam(
            [{"params": [v], "lr": RATES[n], "name": n} for n, v in self.values.items()], eps=1e-15
        )
        for name, value in self.values.items():
            first, second = moments[name] if moments else (torch.zeros_like(value), torch.zeros_like(value))
            self.adam.state[value] = {
                "step": torch.tensor(float(self.step_number)), "exp_avg": first, "exp_avg_sq": second
            }  # fmt: skip

    def _millimetres(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        v = self.values
        scale = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.sigmoid(v["scale"])
        density = functional.softplus(v["density"]) * self.scan.scale
        return self.center + self.half * v["mean"], scale * self.half, v["rotation"], density

    def _clear(self) -> None:
        count = len(self.values["density"])
        self.pull, self.seen = torch.zeros(count), torch.zeros(count)

    # ---- steps

    def run(self, seconds: float | None, clock: Callable[[], float] = time.process_time) -> Look:
        begun = clock()
        while self.step_number < self.steps and (seconds is None or clock() - begun < seconds):
            self.step()
        return Look(self.step_number, len(self.values["density"]), clock() - begun)

    def step(self) -> None:
        self.step_number += 1
        fall = FALL ** min(1.0, self.step_number / self.steps)
        for group in self.adam.param_groups:
            group["lr"] = RATES[group["name"]] * fall
        n = int(torch.randint(len(self.films), (1,), generator=self.random))
        tensors = self._millimetres()
        image, _ = splat(*tensors, self.rays[n : n + 1], self.views.size, kind="affine")
        image, film = image / self.unit, self.films[n : n + 1]
        loss = (image - film).abs().mean() + SSIM * (1 - ssim_views(image, film, 1.0))
        affine, shape = random_block(self.grid.affine, self.grid.shape, BLOCK, self.random)
        block = voxelize(*tensors, affine, shape) / self.scan.scale
        loss = loss + TV * sum(block.diff(dim=d).abs().mean() for d in range(3))
        self.adam.zero_grad()
        loss.backward()
        self._watch(n)
        self.adam.step()
        if self.step_number in GROW:
            self.grow()

    def _watch(self, n: int) -> None:
        """Add up how far each projection is pulled, in half image widths: that of 3D Gaussian Splatting."""
        pose, camera = self.cameras[n], self.views.cameras[n]
        turn = pose[:3, :3].float()
        depth = (self.center + self.half * self.values["mean"].detach()) @ turn[2] + float(pose[2, 3])
        grad = self.values["mean"].grad @ turn.T / self.half  # by millimetres, in the camera's axes
        spread = torch.tensor(camera.size[::-1]) / 2 / camera.focal.float()
        self.pull += (grad[:, :2] * depth[:, None] * spread).norm(dim=1)
        self.seen += 1

    def grow(self) -> None:
        """Clone the small and split the large of those that are pulled; drop the faint."""
        with torch.no_grad():
            mean_pull = self.pull / self.seen.clamp_min(1)
            _, scale, rotation, density = self._millimetres()
            scale, density = scale / self.half, density / self.scan.scale
            room = MOST - len(density)
            chosen = (mean_pull >= PULL).nonzero()[:, 0][: max(room, 0)]
            large = scale.amax(1) > LARGE
            parts = [{n: v.detach().clone() for n, v in self.values.items()}]
            parts[0]["density"][chosen] = _inverse_softplus(0.5 * density[chosen])
            more = {n: v[chosen].clone() for n, v in parts[0].items()}
            split = large[chosen]
            for part, rows in ((parts[0], chosen[split]), (more, split.nonzero()[:, 0])):
                away = torch.randn(len(rows), 3, generator=self.random) * scale[chosen[split]]
                part["mean"][rows] += roma.quat_action(rotation[chosen[split]], away)
                part["scale"][rows] = _logit(scale[chosen[split]] / 1.6)
            parts.append(more)
            keep = torch.cat([density, 0.5 * density[chosen]]) > FAINT
            values = {n: torch.cat([p[n] for p in parts])[keep] for n in more}
            moments = {n: self._moments(n, len(chosen), keep) for n in more}
        self._adopt(values, moments)
        self._clear()

    def _moments(self, name: str, more: int, keep: Tensor) -> tuple[Tensor, Tensor]:
        state = self.adam.state[self.values[name]]
        fresh = torch.zeros_like(self.values[name][:1]).expand(more, *self.values[name].shape[1:])
        return tuple(torch.cat([state[key], fresh])[keep] for key in ("exp_avg", "exp_avg_sq"))

    # ---- results

    def volume(self) -> Tensor:
        """Voxels, 1/mm."""
        with torch.no_grad():
            return voxelize(*self._millimetres(), self.grid.affine, self.grid.shape)

    def render(self, camera: Any) -> Tensor:
        """One view, line integrals."""
        with torch.no_grad():
            rays = camera.ray_basis(None)[None]
            return splat(*self._millimetres(), rays, camera.size, kind="affine")[0][0]


def _logit(scale: Tensor) -> Tensor:
    return torch.logit(((scale - SCALES[0]) / (SCALES[1] - SCALES[0])).clamp(1e-4, 1 - 1e-4))


def _inverse_softplus(density: Tensor) -> Tensor:
    return torch.log(torch.expm1(density.clamp_min(1e-7)))
