"""A baseline without derivatives: rg2/xReg's recipe, with only the renderer exchanged for xreg's.

From R. Grupp and others, "Automatic annotation of hip anatomy in fluoroscopy for robust and efficient 2D/3D
registration", IJCARS 15 (2020), and the program: patch gradient NCC; CMA-ES of population 100 with deviations
of 15°, 15°, 30° and 50, 50, 100 mm at an eighth of 1436 px (here 128 px of 256), then BOBYQA within ±2.5° and
±5, 5, 10 mm at a quarter (here 256 px).  Theirs starts from landmarks; here from the case's start.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from films import Case
from jaxtyping import Float
from torch import Tensor

import xreg
from xreg.errors import GeometryError
from xreg.geometry import se3
from xreg.metrics import mtre
from xreg.similarity import Term, scores
from xreg.volume import Volume

POPULATION, GENERATIONS = 100, 100
SIGMA = (15.0, 15.0, 30.0, 50.0, 50.0, 100.0)  # degrees about u, v, beam; mm along them
BOX = (2.5, 2.5, 2.5, 5.0, 5.0, 10.0)
TERMS = (Term("gradient", 12),)
EVALUATIONS = 300


@dataclass
class Run:
    """What one run did."""

    renders: int
    seconds: float
    final: float
    failed: str = ""


class Objective:
    """Patch gradient NCC of a case at one resolution, as a function of six numbers about a pose."""

    def __init__(self, volume: Volume, case: Case, n: int, center: Tensor) -> None:
        self.volume, self.camera = volume, case.camera.bin(n)
        self.film = F.avg_pool2d(case.film[None], n)[0]
        self.mask = F.avg_pool2d(case.mask.float()[None], n)[0] > 0.999
        self.axes = case.camera.world_from_camera[:3, :3]
        self.center, self.renders = center, 0

    def pose(self, x: np.ndarray, about: Tensor) -> Float[Tensor, "*b 4 4"]:
        """Six numbers (degrees, mm, along the camera's axes) as a pose."""
        x = torch.tensor(np.array(x), dtype=torch.float64)
        xi = torch.cat([torch.deg2rad(x[..., :3]) @ self.axes.T, x[..., 3:] @ self.axes.T], -1)
        return se3.retract(about, xi, self.center)

    def __call__(self, poses: Float[Tensor, "N 4 4"]) -> Float[Tensor, " N"]:
        self.renders += len(poses)
        found = []
        for part in poses.split(25):
            try:
                images = xreg.drr(self.volume, self.camera, part, integrator="joseph")
                found.append(scores(images, self.film, self.mask, TERMS))
            except GeometryError:
                found.append(torch.full((len(part),), -1.0))
        return torch.cat(found)


def register_with_cmaes(volume: Volume, case: Case, points: Float[Tensor, "N 3"]) -> Run:
    """Run the recipe from a case's start."""
    import nlopt
    from cmaes import CMA

    began = time.perf_counter()
    center = se3.apply(case.start, volume.center[None])[0]
    coarse, fine = (Objective(volume, case, n, center) for n in (2, 1))
    optimiser = CMA(mean=np.zeros(6), sigma=1.0, population_size=POPULATION, seed=0)
    best, value = case.start, -2.0
    for _ in range(GENERATIONS):
        asked = np.stack([optimiser.ask() for _ in range(POPULATION)])
        poses = coarse.pose(asked * np.array(SIGMA), case.start)
        found = coarse(poses)
        optimiser.tell([(x, -float(v)) for x, v in zip(asked, found, strict=True)])
        if float(found.max()) > value:
            value, best = float(found.max()), poses[int(found.argmax())]
        if optimiser.should_stop():
            break
    search = nlopt.opt(nlopt.LN_BOBYQA, 6)
    search.set_lower_bounds([-b for b in BOX])
    search.set_upper_bounds(BOX)
    search.set_maxeval(EVALUATIONS)
    search.set_xtol_abs(1e-3)
    search.set_max_objective(lambda x, _: float(fine(fine.pose(x[None], best))[0]))
    failed = ""
    try:
        best = fine.pose(search.optimize(np.zeros(6)), best)
    except (nlopt.RoundoffLimited, RuntimeError) as error:
        failed = repr(error)
    return Run(
        coarse.renders + fine.renders, time.perf_counter() - began, mtre(best, case.truth, points), failed
    )
