"""The views that the projectors are measured on, what is true of them, and how far an image is from it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import xreg
from xreg.geometry import Camera
from xreg.volume import Volume

SDD, SOD = 1020.0, 850.0
VIEWS = {"ap": 0.0, "45": 45.0, "lateral": 90.0}  # degrees, primary angle
# px, mm; w64 is for a quick look and w16 for a dry run
SIZES = {"w200": (200, 2.0), "w512": (512, 0.78), "w64": (64, 6.25), "w16": (16, 25.0)}
EVERY = {"w200": 2, "w512": 4, "w64": 1, "w16": 1}  # errors are taken on every nth pixel of both axes
BORDER_SHARE = 1e-4  # of the densest ray: pixels where the CT's border counts for less are "inside"
FAN = 10.0  # degrees that the views of a batch are spread over


def make_camera(volume: Volume, view: str, size: str) -> Camera:
    """The camera of a view: a C-arm about the middle of the volume."""
    pixels, spacing = SIZES[size]
    return Camera.c_arm(
        sdd=SDD, sod=SOD, primary=VIEWS[view], size=(pixels, pixels), spacing=spacing, isocenter=volume.center
    )


def thinned(camera: Camera, every: int) -> Camera:
    """The camera of every nth pixel of a view: the same rays, fewer of them."""
    scale = torch.diag(torch.tensor([1 / every, 1 / every, 1.0], dtype=camera.K.dtype))
    return replace(camera, K=scale @ camera.K, size=tuple(-(-n // every) for n in camera.size))


def references(volume: Volume, cameras: dict) -> dict:
    """Float64 exact line integrals of each view: up to the detector, and through the whole volume.

    With them comes where the outermost voxels of the CT count for nothing: there is no word on how a volume
    ends, and renderers differ in it where anatomy is cut off.
    """
    fine = volume.to(dtype=torch.float64)
    core = torch.zeros_like(fine.mu)
    core[1:-1, 1:-1, 1:-1] = fine.mu[1:-1, 1:-1, 1:-1]
    core = replace(fine, mu=core)
    exact = {"integrator": "exact", "storage": "float"}
    truths = {}
    for key, camera in cameras.items():
        thin = thinned(camera, EVERY[key[1]])
        for clips in (True, False):
            seen = thin if clips else replace(thin, sdd=None)
            truth = xreg.drr(fine, seen, **exact)
            inside = (truth - xreg.drr(core, seen, **exact)).abs() <= BORDER_SHARE * truth.abs().max()
            truths[key, clips] = truth, inside
    return truths


def relative_error(image: Tensor, truth: Tensor) -> float:
    """Relative L2."""
    return float((image.to(truth) - truth).norm() / truth.norm())


def batch_camera(volume: Volume, view: str, size: str, count: int) -> Camera:
    """The camera of a view, and others about it up to a batch of `count`."""
    pixels, spacing = SIZES[size]
    words = {"sdd": SDD, "sod": SOD, "size": (pixels, pixels), "spacing": spacing, "isocenter": volume.center}
    turns = [FAN * (n % 2 - 0.5) * ((n + 1) // 2) / max(count // 2, 1) for n in range(count)]
    return Camera.stack([Camera.c_arm(**words, primary=VIEWS[view] + turn) for turn in turns])
