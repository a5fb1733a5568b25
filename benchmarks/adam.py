"""The baseline: xvr's refinement recipe, with only the renderer exchanged for xreg's.

From xvr's source (register/base.py, losses/gmncc.py, and nanodrr's metrics that it uses): Adam on three Euler
angles and a translation about the volume's middle, learning rates 1e-2 (rad) and 1 (mm), halved at each
scale; ReduceLROnPlateau (factor 0.1, patience 5, threshold 1e-4), a scale ends at the third learning rate's
plateau or after 500 iterations; maximised is ½ mNCC([whole, 9], weights ½) + ½ NCC(11) of Sobel gradients,
patches at every pixel; images stretched to [0, 1]; the border of the film is cropped.  Scales 4, 2, 1 of 256
px: xvr's 24, 12, 6 of DeepFluoro's 1436 px are the same 60, 120 and 240 px.

Differences: xvr turns about the same point but along the camera's axes, by Euler angles in its papers and by
a rotation vector in its present source; it starts Adam within 1e-8 of zero, here exactly there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from films import Case
from jaxtyping import Float
from torch import Tensor

import xreg
from xreg.errors import XregError
from xreg.geometry import Camera, se3
from xreg.metrics import mtre
from xreg.volume import Volume

SCALES = (4, 2, 1)
ITERATIONS = 500
RATE_TURN, RATE_MOVE = 1e-2, 1.0  # rad, mm
FACTOR, PATIENCE, THRESHOLD, PLATEAUS = 0.1, 5, 1e-4, 2
EPS_IMAGE, EPS_GRADIENT = 1e-4, 1e-7
SAMPLES = 500


@dataclass
class AdamRun:
    """What one run did: mTRE (mm) and pixels of every render, in order, and the pose at the end."""

    errors: list[float]
    pixels: list[int]
    seconds: float
    final: float
    failed: str = ""

    def renders_until(self, limit: float) -> int | None:
        """Renders up to the first pose that is as good as a limit (mm)."""
        return next((n + 1 for n, e in enumerate(self.errors) if e <= limit), None)


def patch_ncc(a: Float[Tensor, "C H W"], b: Float[Tensor, "C H W"], window: int | None, eps: float) -> Tensor:
    """Mean over all patches (stride 1) of their NCC, in float64 by box sums."""
    a, b = a.double(), b.double()
    mean = (lambda x: x.mean((-1, -2), keepdim=True)) if window is None else (lambda x: _box(x, window))
    a, b = a - a.mean((-1, -2), keepdim=True), b - b.mean((-1, -2), keepdim=True)
    ma, mb = mean(a), mean(b)
    va, vb = (mean(a * a) - ma * ma).clamp_min(0) + eps, (mean(b * b) - mb * mb).clamp_min(0) + eps
    return ((mean(a * b) - ma * mb) / (va * vb).sqrt()).mean()


def _box(x: Float[Tensor, "C H W"], window: int) -> Float[Tensor, "C h w"]:
    rows = F.avg_pool2d(x[None], (window, 1), stride=1)
    return F.avg_pool2d(rows, (1, window), stride=1)[0]


def sobel(image: Float[Tensor, "H W"]) -> Float[Tensor, "2 H W"]:
    """Sobel derivatives, zero outside."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=image.dtype)
    return F.conv2d(image[None, None], torch.stack([kernel, kernel.T])[:, None], padding=1)[0]


def stretch(image: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """To [0, 1]."""
    return (image - image.min()) / (image.max() - image.min() + 1e-6)


def similarity(film: Float[Tensor, "H W"], image: Float[Tensor, "H W"]) -> Tensor:
    """xvr's gmncc."""
    film, image = stretch(film), stretch(image)
    whole = patch_ncc(film[None], image[None], None, EPS_IMAGE)
    local = patch_ncc(film[None], image[None], 9, EPS_IMAGE)
    edges = patch_ncc(sobel(film), sobel(image), 11, EPS_GRADIENT)
    return 0.5 * (0.5 * whole + 0.5 * local) + 0.5 * edges


def crop_to_mask(case: Case) -> tuple[Tensor, Camera]:
    """The film inside its collimator, a multiple of the coarsest scale."""
    rows, columns = case.mask.any(1).nonzero()[:, 0], case.mask.any(0).nonzero()[:, 0]
    top, left = int(rows[0]), int(columns[0])
    height = (int(rows[-1]) + 1 - top) // SCALES[0] * SCALES[0]
    width = (int(columns[-1]) + 1 - left) // SCALES[0] * SCALES[0]
    film = case.film[top : top + height, left : left + width]
    return film, case.camera.crop(top, left, height, width)


def register_with_adam(volume: Volume, case: Case, points: Float[Tensor, "N 3"]) -> AdamRun:
    """Run the recipe from a case's start, noting the error at every render."""
    began = time.perf_counter()
    film, camera = crop_to_mask(case)
    middle = se3.apply(case.start, volume.center[None])[0]
    angles = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    run = AdamRun([], [], 0.0, float("nan"))

    def pose() -> Tensor:
        turn = se3.from_euler(angles, "ZXY")
        rotation = turn[:3, :3]
        top = torch.cat([rotation, (middle + shift - rotation @ middle)[:, None]], 1)
        return torch.cat([top, turn[3:].detach()]) @ case.start

    for stage, scale in enumerate(SCALES):
        target = F.avg_pool2d(film[None], scale)[0]
        try:
            _climb(volume, target, camera.bin(scale), (angles, shift), pose, stage, run, case.truth, points)
        except XregError as error:  # the volume left the beam
            run.failed = str(error)
            break
    run.final = mtre(pose().detach(), case.truth, points)
    run.seconds = time.perf_counter() - began
    return run


def _climb(volume, target, camera, parameters, pose, stage, run: AdamRun, truth, points) -> None:
    """One scale."""
    rates = (RATE_TURN, RATE_MOVE)
    groups = [{"params": [p], "lr": r / 2**stage} for p, r in zip(parameters, rates, strict=True)]
    optimiser = torch.optim.Adam(groups, maximize=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "max", FACTOR, PATIENCE, THRESHOLD)
    lowest, plateaus = float("inf"), 0
    for _ in range(ITERATIONS):
        optimiser.zero_grad()
        at = pose()
        run.errors.append(mtre(at.detach(), truth, points))
        run.pixels.append(camera.size[0] * camera.size[1])
        score = similarity(target, xreg.drr(volume, camera, at, samples=SAMPLES))
        score.backward()
        optimiser.step()
        schedule.step(score.detach())
        rate = min(schedule.get_last_lr())
        if rate < lowest:
            lowest, plateaus = rate, plateaus + 1
        if plateaus > PLATEAUS:
            return
