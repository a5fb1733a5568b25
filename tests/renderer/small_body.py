"""A small body in air and a view of it, for the tests of `drr` and `drr_with_jacobian`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from xreg import Camera, Volume, se3

EXACT = {"integrator": "exact", "storage": "float"}
INTEGRATORS = ["trilinear", "joseph", "siddon", "exact"]
SIZE = (22, 30)


def make_volume(dtype: torch.dtype = torch.float64, **words: Any) -> Volume:
    """Two ellipsoids with a slope in them, three voxels of air around; an oblique LAS grid; two labels."""
    size = np.array([24, 28, 32])
    z, y, x = (2 * np.indices(size).reshape(3, -1) / (size - 1)[:, None] - 1).reshape(3, *size)
    body = (x / 0.78) ** 2 + (y / 0.7) ** 2 + (z / 0.72) ** 2 < 1
    bone = ((x - 0.25) / 0.3) ** 2 + ((y + 0.2) / 0.25) ** 2 + ((z - 0.1) / 0.5) ** 2 < 1
    mu = np.where(body, 0.019 + 0.003 * x - 0.002 * y + 0.001 * z, 0.0) + np.where(bone, 0.024, 0.0)
    affine = se3.from_euler((9.0, -6.0, 4.0), "ZXY", degrees=True)
    affine[:3, :3] = affine[:3, :3] @ torch.diag(torch.tensor([-2.2, 2.0, 3.1], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([40.0, -30.0, -25.0])
    labels = torch.from_numpy(body.astype(np.int16) + bone.astype(np.int16))
    return Volume(torch.from_numpy(mu).to(dtype), affine, **({"labels": labels, "energy_kev": 70.0} | words))


def view(volume: Volume, **words: Any) -> Camera:
    """A C-arm about the volume with nothing special about it."""
    known = {
        "sdd": 1020.0,
        "sod": 700.0,
        "size": SIZE,
        "spacing": (4.1, 3.7),
        "primary": 25.0,
        "secondary": -12.0,
    }
    return Camera.c_arm(**(known | {"isocenter": volume.center, "principal_point": (15.3, 9.8)} | words))


def small_pose(seed: int = 0) -> Tensor:
    """A motion of the body by a few degrees and millimetres."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.05] * 3 + [4.0] * 3, dtype=torch.float64)
    return se3.exp(torch.randn(6, generator=generator, dtype=torch.float64) * scale)


def close(found: Tensor, expected: Tensor, limit: float) -> None:
    """Relative L2."""
    assert found.shape == expected.shape
    assert float(expected.norm()) > 0
    assert float((found.double() - expected.double()).norm() / expected.double().norm()) <= limit
