"""Small scenes of Gaussians and views that the splatter's tests share, float64; no number is round or
zero.
"""

import torch
from torch import Tensor

SIZE = (19, 37)  # no multiple of the kernels' tiles
KINDS = ("exact", "affine", "parallel")
GRID_SHAPE = (13, 14, 19)  # depth, rows, columns
AFFINE = torch.tensor(
    [[0.9, 0.1, 0.05, -9.2], [0.05, -1.2, -0.1, 7.1], [0.02, 0.2, 1.5, -10.3], [0, 0, 0, 1]],
    dtype=torch.float64,
)

Scene = tuple[Tensor, Tensor, Tensor, Tensor]  # mean, scale, rotation, density


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(count: int = 7, seed: int = 0, size: tuple[float, float] = (0.7, 3.7)) -> Scene:
    """Gaussians about the origin, all axes different, one density below zero, quaternions of any norm."""
    mean, rotation = 6.0 * random(count, 3, seed=seed), random(count, 4, seed=seed + 1)
    share = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    density = share[:, 3] + 0.2
    if count > 2:
        density[2] = -0.4
    return mean, size[0] + (size[1] - size[0]) * share[:, :3], rotation, density


def pinhole(pitch: float = 1.45, source=(-80.3, 5.1, 7.2), detector=(60.4, 3.3, -2.1)) -> Tensor:
    """Rays [6, 3]; rows and columns not quite at right angles."""
    s, c = torch.tensor(source, dtype=torch.float64), torch.tensor(detector, dtype=torch.float64)
    du = pitch * torch.tensor([0.21, 1.0, 0.07], dtype=torch.float64)
    dv = pitch * torch.tensor([-0.08, 0.13, 0.97], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    return torch.stack([s, zero, zero, c - s - 0.47 * SIZE[1] * du - 0.52 * SIZE[0] * dv, du, dv])


def parallel() -> Tensor:
    rays = pinhole()
    s0, d0, du, dv = rays[0], rays[3], rays[4], rays[5]
    middle = d0 + 0.47 * SIZE[1] * du + 0.52 * SIZE[0] * dv
    zero = torch.zeros(3, dtype=torch.float64)
    return torch.stack([s0 - 0.47 * SIZE[1] * du - 0.52 * SIZE[0] * dv, du, dv, middle, zero, zero])


def views(kind: str, count: int = 2) -> Tensor:
    """[V, 6, 3]: the view of a kind, and others near it."""
    base = parallel() if kind == "parallel" else pinhole()
    used = (base.abs().sum(1, keepdim=True) > 0).double()
    return torch.stack([base + 0.05 * n * used * random(6, 3, seed=40 + n) for n in range(count)])


def used_rows(kind: str) -> list[int]:
    """The rows of a bundle that a kind reads."""
    return [0, 1, 2, 3] if kind == "parallel" else [0, 3, 4, 5]


def as_float(tensors: Scene) -> Scene:
    return tuple(t.float() for t in tensors)


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖, or ‖a‖ where b is zero."""
    size = float(b.double().norm())
    return float((a.double() - b.double()).norm()) / (size if size > 0 else 1.0)
