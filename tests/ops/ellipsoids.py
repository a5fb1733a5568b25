"""A small CT that looks like one: air, soft tissue, lungs and bone, with a texture."""

import numpy as np
import torch

from xreg import Volume, se3


def phantom() -> Volume:
    """Ellipsoids of soft tissue, lung and bone with a smooth texture, in air; the grid is oblique."""
    size = np.array([40, 72, 64])  # z, y, x
    z, y, x = (2 * np.indices(size).reshape(3, -1) / (size - 1)[:, None] - 1).reshape(3, *size)
    noise = np.random.default_rng(4).normal(size=size)
    smooth = np.fft.ifftn(np.fft.fftn(noise) * np.exp(-60 * sum(f**2 for f in frequencies(size)))).real
    mu = np.zeros(size)
    for (cx, cy, cz), (rx, ry, rz), value in [
        ((0, 0, 0), (0.85, 0.75, 0.9), 0.019),
        ((-0.4, 0.05, 0), (0.27, 0.45, 0.7), 0.005),
        ((0.4, 0.05, 0.1), (0.25, 0.4, 0.65), 0.005),
        ((0.05, -0.5, 0), (0.13, 0.15, 0.95), 0.041),
        ((0.1, 0.2, -0.2), (0.2, 0.25, 0.3), 0.021),
    ]:
        mu[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1] = value
    mu *= 1 + 0.1 * smooth / smooth.std()
    affine = se3.from_euler((12.0, -7.0, 5.0), "ZXY", degrees=True)
    affine[:3, :3] = affine[:3, :3] @ torch.diag(torch.tensor([-4.1, 3.7, 6.2], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([110.0, -120.0, -80.0])
    return Volume(torch.from_numpy(mu).float(), affine)


def frequencies(size: np.ndarray) -> list[np.ndarray]:
    return np.meshgrid(*(np.fft.fftfreq(n) for n in size), indexing="ij")
