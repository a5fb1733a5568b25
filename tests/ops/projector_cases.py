"""Small volumes and bundles of rays that the projector's tests share.

All in voxel coordinates (x, y, z), as the kernels take them.  The volume has another number of voxels
along each axis, its metric has shear, and no bundle's size is a multiple of the kernels' packets.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xreg.ops import registry
from xreg.ops.project import INTEGRATORS, metric_of

SHAPE = (11, 13, 17)  # depth, rows, columns
SIZE = (7, 9)  # height, width of an image
STEPS = 61
LINEAR = torch.tensor([[0.8, 0.05, 0.0], [-0.1, 1.1, 0.2], [0.0, -0.15, 1.9]], dtype=torch.float64)
METRIC = metric_of(LINEAR)
MIDDLE = np.array([8.0, 6.0, 5.0])  # of the grid


def random_volume(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Positive float64 noise, so that a wrong neighbour shows."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def random_labels(channels: int, seed: int = 1, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """int16 labels in [-1, channels]: one value too low and one too high among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, channels + 1, shape, generator=generator, dtype=torch.int16)


def cone(source: Sequence[float], detector: Sequence[float], pitch: float, size=SIZE) -> Tensor:
    """The rays [6, 3] of a pinhole at `source` whose detector is centred at `detector`."""
    s, c = np.asarray(source, float), np.asarray(detector, float)
    du, dv = _across(c - s, pitch)
    d0 = c - s - (size[1] - 1) / 2 * du - (size[0] - 1) / 2 * dv
    zero = np.zeros(3)
    return torch.from_numpy(np.stack([s, zero, zero, d0, du, dv]))


def parallel(start: Sequence[float], direction: Sequence[float], su, sv, size=SIZE) -> Tensor:
    """The rays [6, 3] of a parallel beam; its source plane is centred at `start`."""
    s, d, su, sv = (np.asarray(x, float) for x in (start, direction, su, sv))
    s0 = s - (size[1] - 1) / 2 * su - (size[0] - 1) / 2 * sv
    zero = np.zeros(3)
    return torch.from_numpy(np.stack([s0, su, sv, d, zero, zero]))


def _across(beam: np.ndarray, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """Two directions across a beam, not quite at right angles to it nor to each other."""
    helper = np.eye(3)[np.argmin(np.abs(beam))]
    u = np.cross(beam, helper)
    v = np.cross(beam, u)
    u, v = pitch * u / np.linalg.norm(u), pitch * v / np.linalg.norm(v)
    return u + 0.05 * v + 0.01 * pitch * helper, v - 0.03 * u


def skew(seed: int = 3) -> Tensor:
    """Neither pinhole nor parallel: source and direction both move with the pixel; no number is zero."""
    rays = cone([-25.3, 2.1, 14.2], [36.1, 9.7, -3.4], 2.7)
    generator = torch.Generator().manual_seed(seed)
    return rays + 0.2 * torch.rand(rays.shape, generator=generator, dtype=torch.float64)


def face_grazers() -> Tensor:
    """Rays along x, at and about the borders of the grid and of the empty voxel around it, in y."""
    return parallel([-9.3, 6.0, 5.27], [35.9, 0.0, 0.0], [0.0, 1.7499, 0.0], [0.0, 0.0, 1.9971])


BEAMS: dict[str, Tensor] = {
    "along +x": cone([-40.2, 5.1, 4.3], [33.7, 7.3, 5.9], 2.9),
    "along -x": cone([57.7, 6.8, 5.4], [-22.3, 5.3, 4.6], 2.9),
    "along +y": cone([7.2, -41.9, 4.7], [9.1, 29.8, 5.8], 3.1),
    "along -y": cone([8.9, 55.2, 5.6], [6.7, -20.4, 4.1], 3.1),
    "along +z": cone([8.8, 5.2, -38.4], [7.3, 7.1, 25.5], 3.3),
    "along -z": cone([7.4, 6.9, 49.1], [8.7, 5.5, -16.2], 3.3),
    "oblique": cone([-23.1, -19.7, -15.3], [38.3, 31.9, 24.6], 4.1),
    "oblique back": cone([40.6, -17.3, 24.8], [-21.9, 28.4, -15.7], 4.1),
    "detector inside": cone([-30.4, 9.3, 7.1], [9.27, 5.63, 4.71], 1.3),
    "source inside": cone([6.31, 7.77, 3.59], [37.1, -12.3, 21.8], 5.3),
    "both inside": cone([3.13, 9.41, 2.27], [12.83, 3.47, 8.61], 0.9),
    "short": cone([7.13, 6.23, 5.31], [7.59, 6.47, 5.52], 0.05),
    "parallel": parallel([-20.3, -9.1, 17.4], [52.7, 31.3, -25.9], [1.2, -2.1, 0.3], [0.7, 0.4, 1.9]),
    "parallel to x": parallel([-9.7, 6.13, 4.87], [36.3, 0.0, 0.0], [0.0, 1.83, 0.0], [0.0, 0.0, 1.91]),
    "parallel to -y": parallel([8.21, 24.7, 5.17], [0.0, -39.1, 0.0], [2.37, 0.0, 0.0], [0.0, 0.0, 1.93]),
    "parallel to z": parallel([7.83, 6.19, -8.3], [0.0, 0.0, 29.9], [2.39, 0.0, 0.0], [0.0, 1.87, 0.0]),
    "zero in y": parallel([-19.6, 6.07, -10.1], [55.3, 0.0, 33.7], [0.0, 1.71, 0.0], [-0.9, 0.0, 1.4]),
    "faces": face_grazers(),
    "mostly missing": cone([-31.7, 4.9, 6.2], [41.1, 8.3, 3.7], 19.7),
    "skew": skew(),
}
MISSES: dict[str, Tensor] = {
    "beside": cone([-40.2, 55.1, 4.3], [33.7, 57.3, 5.9], 0.9),
    "behind the source": cone([-12.2, 5.1, 4.3], [-83.7, 7.3, 5.9], 2.9),
    "before the volume": cone([-40.2, 5.1, 4.3], [-3.7, 7.3, 5.9], 0.4),
    "flat, beside": parallel([-9.7, 6.13, 24.87], [36.3, 0.0, 0.0], [0.0, 1.83, 0.0], [0.0, 0.0, 0.91]),
}


def stack(*rays: Tensor) -> Tensor:
    """Views [V, 6, 3]."""
    return torch.stack(rays)


def run_op(mu: Tensor, rays: Tensor, integrator: str, *, scale=1.0, size=SIZE, steps=STEPS, moments=True):
    """The compiled operator itself: image [V, H, W] and moments [V, 6, H, W]."""
    registry.load()
    rays = rays if rays.dim() == 3 else rays[None]
    code = INTEGRATORS[integrator]
    return torch.ops.xreg.project(mu, scale, rays, METRIC, *size, code, steps, moments)


def quantise(mu: Tensor) -> tuple[Tensor, float]:
    """int16 voxels and their scale."""
    scale = float(mu.abs().max()) / 32767
    return (mu / scale).round().to(torch.int16), scale


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖, or ‖a‖ where b is zero."""
    a, b = a.detach().double(), b.detach().double()
    size = float(b.norm())
    return float((a - b).norm()) / (size if size > 0 else 1.0)
