"""A line integral of a trilinear field in float64, written without a look at the kernels: slow and plain.

A ray is cut where it crosses a plane of voxel centres; between two cuts the field is a cubic in t, which four
Gauss points integrate with room to spare.  Outside the grid the voxels are zero.
"""

import numpy as np

NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)


def trilinear(voxels: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value [N] and gradient [N, 3] (per voxel) at positions [N, 3] = (x, y, z); voxels are [z, y, x]."""
    size = np.array(voxels.shape[::-1])
    low = np.floor(x).astype(np.int64)
    f = x - low
    value, gradient = np.zeros(len(x)), np.zeros((len(x), 3))
    for corner in np.ndindex(2, 2, 2):
        at = low + corner
        inside = ((at >= 0) & (at < size)).all(1)
        i, j, k = np.where(inside[:, None], at, 0).T
        v = np.where(inside, voxels[k, j, i], 0.0).astype(np.float64)
        share = np.where(corner, f, 1.0 - f)
        sign = np.where(corner, 1.0, -1.0)
        value += v * share.prod(1)
        for a in range(3):
            b, c = (a + 1) % 3, (a + 2) % 3
            gradient[:, a] += v * sign[a] * share[:, b] * share[:, c]
    return value, gradient


def cuts(size: np.ndarray, s: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Sorted t in [0, 1] of all crossings of each ray, [R, K]."""
    found = [np.zeros((len(s), 1)), np.ones((len(s), 1))]
    for a in range(3):
        planes = np.arange(-1, size[a] + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (planes - s[:, a, None]) / d[:, a, None]
        found.append(np.clip(np.nan_to_num(t, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0))
    return np.sort(np.concatenate(found, 1), 1)


def integrate(voxels: np.ndarray, s: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Without the ray's length in mm: ∫ mu dt [R], ∫ ∇mu dt [R, 3] and ∫ t ∇mu dt [R, 3] of rays s + t d."""
    total, a, b = np.zeros(len(s)), np.zeros((len(s), 3)), np.zeros((len(s), 3))
    t = cuts(np.array(voxels.shape[::-1]), s, d)
    middle, half = (t[:, 1:] + t[:, :-1]) / 2, (t[:, 1:] - t[:, :-1]) / 2
    rays, segments = np.nonzero(half > 0)
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        at = middle[rays, segments] + node * half[rays, segments]
        w = weight * half[rays, segments]
        value, gradient = trilinear(voxels, s[rays] + at[:, None] * d[rays])
        np.add.at(total, rays, w * value)
        np.add.at(a, rays, w[:, None] * gradient)
        np.add.at(b, rays, (w * at)[:, None] * gradient)
    return total, a, b


def line_integrals(voxels: np.ndarray, linear: np.ndarray, s: np.ndarray, d: np.ndarray) -> np.ndarray:
    """∫ mu dl [R]; linear: millimetres from voxel steps."""
    return integrate(voxels, s, d)[0] * np.linalg.norm(d @ linear.T, axis=1)


def derivatives(
    voxels: np.ndarray, linear: np.ndarray, s: np.ndarray, d: np.ndarray, s_dot: np.ndarray, d_dot: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Line integrals [R] and their change [R, P] where rays change by s_dot, d_dot [R, P, 3]."""
    total, a, b = integrate(voxels, s, d)
    step = d @ linear.T
    length = np.linalg.norm(step, axis=1)
    length_dot = np.einsum("ri,rpi->rp", step, d_dot @ linear.T) / length[:, None]
    inside = np.einsum("ri,rpi->rp", a, s_dot) + np.einsum("ri,rpi->rp", b, d_dot)
    return total * length, length[:, None] * inside + total[:, None] * length_dot
