"""A small body of ellipsoids with no symmetry, seen by a small C-arm."""

import numpy as np
import pytest
import torch
from poses_of_body import moved

import xreg
from xreg import Camera, Volume

SPACING = 3.0


def ellipsoid(grid, centre, radii, angle):
    x, y, z = (g - c for g, c in zip(grid, centre, strict=True))
    u = np.cos(angle) * x + np.sin(angle) * y
    v = -np.sin(angle) * x + np.cos(angle) * y
    r = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (z / radii[2]) ** 2)
    return 1 / (1 + np.exp((r - 1) * min(radii)))


@pytest.fixture(scope="session")
def body() -> Volume:
    n = (64, 56, 60)
    grid = np.meshgrid(*[(np.arange(k) - (k - 1) / 2) * SPACING for k in n], indexing="ij")
    mu = 0.016 * ellipsoid(grid, (0, 0, 0), (80, 60, 75), 0.2)
    rng = np.random.default_rng(3)
    for _ in range(14):
        centre = rng.uniform(-1, 1, 3) * (50, 35, 50)
        mu += 0.022 * ellipsoid(grid, centre, rng.uniform(6, 22, 3), rng.uniform(0, np.pi))
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = (-100.0, 40.0, 20.0)
    return Volume(mu=torch.from_numpy(mu.transpose(2, 1, 0).copy()).float(), affine=affine)


@pytest.fixture(scope="session")
def camera(body: Volume) -> Camera:
    return Camera.c_arm(
        sdd=1000, sod=700, primary=25, secondary=-8, size=(96, 104), spacing=(3.0, 3.0), isocenter=body.center
    )


@pytest.fixture(scope="session")
def truth(body: Volume):
    return moved(body, (2.0, -3.0, 1.5), (4.0, -6.0, 3.0))


@pytest.fixture(scope="session")
def film(body: Volume, camera: Camera, truth):
    """Rendered by another integrator on finer pixels, with noise, gain and offset."""
    fine = camera.resize((192, 208))
    image = xreg.drr(body, fine, truth, integrator="siddon", storage="float")
    image = torch.nn.functional.avg_pool2d(image[None], 2)[0]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return 1.7 * image + 0.3 + 0.01 * noise
