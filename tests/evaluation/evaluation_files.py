"""A small body on disk with films of it, and manifests that name them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import xreg
from xreg import Camera, Volume, se3
from xreg.io import save_camera, save_image, save_pose

SPACING = 5.0
POINTS = [[-20.0, 10.0, -15.0], [25.0, -20.0, 30.0], [0.0, 30.0, 10.0], [-30.0, -25.0, 20.0]]


def small_body() -> Volume:
    """A large ellipsoid with ten small ones in it, 36³ voxels, no symmetry."""
    axis = (np.arange(36) - 17.5) * SPACING
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    rng = np.random.default_rng(5)

    def blob(centre, radii):
        r = np.sqrt(sum(((g - c) / h) ** 2 for g, c, h in zip((x, y, z), centre, radii, strict=True)))
        return 1 / (1 + np.exp((r - 1) * min(radii) / 3))

    mu = 0.012 * blob((0, 0, 0), (70, 55, 65))
    for _ in range(10):
        mu += 0.02 * blob(rng.uniform(-1, 1, 3) * (40, 30, 40), rng.uniform(8, 20, 3))
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = -17.5 * SPACING
    return Volume(mu=torch.from_numpy(mu).float(), affine=affine, energy_kev=70.0)


def small_camera(primary: float) -> Camera:
    return Camera.c_arm(sdd=1000, sod=800, primary=primary, size=(64, 64), spacing=(4.0, 4.0))


def pose_of(degrees, mm) -> torch.Tensor:
    xi = torch.tensor([*np.deg2rad(degrees), *mm], dtype=torch.float64)
    return se3.exp(xi)


def write_cases(folder: Path, count: int = 3) -> Path:
    """Write a CT, films, cameras and truths, and a manifest of them with two random starts each."""
    volume = small_body()
    volume.save(folder / "ct.nii.gz")
    cases = []
    for n in range(count):
        name, camera = f"view {n}", small_camera(30.0 * n - 20)
        truth = pose_of((3.0, -2.0 * n, 4.0), (2.0, 5.0 - 4 * n, -3.0))
        save_image(folder / f"film{n}.tif", xreg.drr(volume, camera, truth, integrator="siddon"))
        save_camera(folder / f"camera{n}.json", camera)
        save_pose(folder / f"truth{n}.json", truth)
        film = {"path": f"film{n}.tif", "camera": f"camera{n}.json", "intensity": "line_integral"}
        cases.append({"name": name, "films": [film], "truth": f"truth{n}.json"})
    defaults = {
        "ct": {"path": "ct.nii.gz", "units": "mu"},
        "landmarks": POINTS,
        "starts": {"random": {"mm": 8, "degrees": 4, "count": 2, "seed": 3}},
    }
    return write_manifest(folder / "cases.json", cases, defaults)


def write_manifest(path: Path, cases: list[Any], defaults: Any = None, **more: Any) -> Path:
    data = {"schema": "xreg.cases/1", "cases": cases, **more}
    if defaults is not None:
        data["defaults"] = defaults
    path.write_text(json.dumps(data))
    return path


def answer(pose, **known) -> SimpleNamespace:
    """What a registration answers, as far as an evaluation looks at it."""
    return SimpleNamespace(world_from_body=pose, **known)
