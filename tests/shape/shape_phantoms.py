"""Bones of known shape, as label maps: bodies between two planes, a hip, a cage of rings.  World RAS mm."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from xreg.io import VoxelGrid
from xreg.shape import SCHEMES

RIGHT, ANTERIOR, UP = np.eye(3)
DEPTH, WIDTH = 34.0, 44.0  # of a body, mm


def turned(axis: Iterable[float], degrees: float) -> np.ndarray:
    """Rotation about an axis."""
    axis = np.asarray(axis, dtype=float) / np.linalg.norm(list(axis))
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


def grid_about(low: Iterable[float], high: Iterable[float], voxel: float, *, codes: str = "RAS") -> VoxelGrid:
    """A grid of cubic voxels that spans a box (mm); codes as RAS or LAS, LPS …"""
    low, high = np.asarray(low, float), np.asarray(high, float)
    count = np.ceil((high - low) / voxel).astype(int)
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        sign = 1 if code in "RAS" else -1
        affine[axis, axis] = sign * voxel
        affine[axis, 3] = low[axis] + 0.37 * voxel if sign > 0 else low[axis] + (count[axis] - 0.63) * voxel
    return VoxelGrid(tuple(count[::-1].tolist()), torch.from_numpy(affine))


def paint(grid: VoxelGrid, bones: dict[str, Callable[[np.ndarray], np.ndarray]]) -> torch.Tensor:
    """Labels (scheme `all`) of voxels whose centres lie in the bones: rules on points [N, 3] (mm)."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    affine = grid.affine.numpy()
    points = np.stack([i, j, k], -1).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    labels = np.zeros(len(points), dtype=np.int16)
    for name, inside in bones.items():
        labels[inside(points)] = SCHEMES["all"].index(name)
    return torch.from_numpy(labels.reshape(grid.shape))


def body(
    center: np.ndarray, turn: np.ndarray, *, height: float = 26.0, wedge: float = 0.0
) -> Callable[[np.ndarray], np.ndarray]:
    """A vertebra: an elliptic body with an arch behind it.

    wedge: what the front lacks in height against the back, mm, by two planes at equal and opposite tilts.
    """

    def inside(points: np.ndarray) -> np.ndarray:
        r, a, u = ((points - center) @ turn).T
        half = 0.5 * (height - wedge * a / DEPTH)
        disc = (2 * r / WIDTH) ** 2 + (2 * a / DEPTH) ** 2 <= 1
        legs = (np.abs(np.abs(r) - 14) <= 4) & (a <= 0) & (a >= -34) & (np.abs(u - 3) <= 5)
        process = (np.abs(r) <= 18) & (a <= -30) & (a >= -40) & (np.abs(u) <= 9)
        spine = (np.abs(r) <= 4) & (a <= -36) & (a >= -64) & (np.abs(u + 4) <= 8)
        return (disc & (np.abs(u) <= half)) | legs | process | spine

    return inside


def sacrum(middle: np.ndarray, slope: float) -> Callable[[np.ndarray], np.ndarray]:
    """A block below a plate (34 mm deep) that falls to the front by ``slope`` degrees; wings and a tail."""
    turn = turned(RIGHT, -slope)  # the plate's normal leans to the front

    def inside(points: np.ndarray) -> np.ndarray:
        r, a, u = ((points - middle) @ turn).T
        block = (np.abs(r) <= 25) & (np.abs(a) <= 17) & (u <= 0) & (u >= -30)
        tail = (np.abs(r) <= 22) & (np.abs(a + 6) <= 10) & (u <= -25) & (u >= -85)
        wings = (np.abs(r) <= 50) & (np.abs(a + 8) <= 10) & (u <= -6) & (u >= -40)
        return block | tail | wings

    return inside


def femur(
    head: np.ndarray,
    side: str,
    *,
    angle: float = 128.0,
    neck: float = 52.0,
    radius: float = 24.0,
    lean: float = 6.0,
) -> Callable[[np.ndarray], np.ndarray]:
    """A ball on a neck on a shaft, whose knee lies inward by ``lean`` degrees from straight down."""
    out = RIGHT if side == "right" else -RIGHT
    down = np.cos(np.radians(lean)) * -UP - np.sin(np.radians(lean)) * out
    across = out - (out @ down) * down
    across /= np.linalg.norm(across)
    axis = np.sin(np.radians(angle)) * across - np.cos(np.radians(angle)) * down
    joint = head + neck * axis

    def inside(points: np.ndarray) -> np.ndarray:
        ball = ((points - head) ** 2).sum(1) <= radius**2
        along = (points - head) @ axis
        bar = (
            (along >= 0)
            & (along <= neck)
            & (np.linalg.norm(points - head - along[:, None] * axis, axis=1) <= 15)
        )
        low = (points - joint) @ down
        shaft = (low >= -15) & (np.linalg.norm(points - joint - low[:, None] * down, axis=1) <= 14)
        return ball | bar | shaft

    return inside


def rib(
    side: str, height: float, half: tuple[float, float], thick: float = 9.0
) -> Callable[[np.ndarray], np.ndarray]:
    """Half an elliptic ring: outer half axes (right, front), 12 mm high."""
    sign = 1 if side == "right" else -1

    def inside(points: np.ndarray) -> np.ndarray:
        r, a, u = points.T
        outer = (r / half[0]) ** 2 + (a / half[1]) ** 2 <= 1
        inner = (r / (half[0] - thick)) ** 2 + (a / (half[1] - thick)) ** 2 < 1
        return outer & ~inner & (np.abs(u - height) <= 6) & (sign * r > 0)

    return inside
