"""The operators on Gaussians in plain torch: slow, short, and independent of the kernels.

The image is evaluated as in the textbook, from a, b and c of the quadratic along a ray, and differentiated by
autograd.  All are worked out in float64, whatever comes in: c − b²/a cancels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from xreg.ops.reference import pixel_rays

EXACT, AFFINE, PARALLEL = range(3)
CHUNK = 1 << 21  # pairs of a Gaussian and a pixel, or a voxel, held at a time


def _axes(rotation: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of quaternions (x, y, z, w)."""
    x, y, z, w = (rotation / rotation.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _whiten(scale: Tensor, rotation: Tensor) -> Tensor:
    """W [N, 3, 3] with |W (x − mean)| the number of sigmas."""
    return _axes(rotation).transpose(-1, -2) / scale[..., None]


def _basis(rays: Tensor, kind: int) -> Tensor:
    """Rays with zeros where the kind has them: su and sv of a pinhole, du and dv of a parallel beam."""
    keep = torch.ones(6, 1, dtype=rays.dtype, device=rays.device)
    keep[(4 if kind == PARALLEL else 1) : (6 if kind == PARALLEL else 3)] = 0
    return rays * keep


def _in_front(mean: Tensor, whiten: Tensor, rays: Tensor, kind: int, cutoff: float) -> Tensor:
    """[V, N]: whether a Gaussian's ellipsoid lies wholly in front of the source's plane."""
    if kind == PARALLEL:
        return torch.ones(len(rays), len(mean), dtype=torch.bool, device=mean.device)
    s0, d0, du, dv = rays[:, 0], rays[:, 3], rays[:, 4], rays[:, 5]
    normal = torch.linalg.cross(du, dv)
    normal = normal * (d0 * normal).sum(-1, keepdim=True).sign()
    depth = ((mean - s0[:, None]) * normal[:, None]).sum(-1)
    widths = torch.linalg.solve(whiten.transpose(-1, -2), normal[:, None, :, None])[..., 0]  # Wᵀ⁻¹ n
    return depth > cutoff * (1 + 1e-6) * widths.norm(dim=-1)


def _exact(gaussians: tuple[Tensor, ...], s: Tensor, d: Tensor, cutoff: float) -> Tensor:
    """Each Gaussian's integral along each ray, [N, R]."""
    mean, whiten, density = gaussians
    p = torch.einsum("nij,nrj->nri", whiten, mean[:, None] - s)
    q = torch.einsum("nij,rj->nri", whiten, d)
    a, b, c = (q * q).sum(-1), (p * q).sum(-1), (p * p).sum(-1)
    e = c - b * b / a
    value = density[:, None] * d.norm(dim=-1) * (2 * torch.pi / a).sqrt() * torch.exp(-0.5 * e)
    return torch.where(e.detach() < cutoff**2, value, 0.0)


def _affine(gaussians: tuple[Tensor, ...], rays: Tensor, pixels: Tensor, cutoff: float) -> Tensor:
    """The same by a Gaussian in the image for each, of one view's rays [6, 3] at pixels (u, v) [R, 2]."""
    mean, whiten, density = gaussians
    d0, du, dv = rays[3:]
    r = mean - rays[0]
    inverse = torch.linalg.inv(torch.stack([du, dv, d0], 1))
    x, y, t = (r @ inverse.T).unbind(-1)  # r = t (d0 + u du + v dv)
    zero = torch.zeros_like(t)
    slope = torch.stack(
        [torch.stack([1 / t, zero, -x / t**2], -1), torch.stack([zero, 1 / t, -y / t**2], -1)], -2
    )
    spread = torch.linalg.inv(whiten.transpose(-1, -2) @ whiten)
    slope = slope @ inverse
    precision = torch.linalg.inv(slope @ spread @ slope.transpose(-1, -2))
    away = pixels - torch.stack([x / t, y / t], -1)[:, None]
    e = torch.einsum("nri,nij,nrj->nr", away, precision, away)
    wr = (whiten @ r[..., None])[..., 0]
    weight = density * (2 * torch.pi) ** 0.5 * r.norm(dim=-1) / wr.norm(dim=-1)
    return torch.where(e.detach() < cutoff**2, weight[:, None] * torch.exp(-0.5 * e), 0.0)


def _render(tensors: tuple[Tensor, ...], rays: Tensor, size: tuple[int, int], kind: int, cutoff: float):
    """(view, part of its pixels, their image [R], sources, directions) of every view, a few at a time."""
    mean, scale, rotation, density = (t.double() for t in tensors)
    whiten = _whiten(scale, rotation)
    basis = _basis(rays, kind)
    front = _in_front(mean.detach(), whiten.detach(), basis.detach(), kind, cutoff)
    step = max(1, CHUNK // max(1, len(mean)))
    v, u = torch.meshgrid(
        *(torch.arange(n, dtype=rays.dtype, device=rays.device) for n in size), indexing="ij"
    )
    pixels = torch.stack([u.reshape(-1), v.reshape(-1)], -1)
    s, d = (r.reshape(len(rays), -1, 3) for r in pixel_rays(basis, *size))
    for view in range(len(rays)):
        seen = front[view]
        kept = (mean[seen], whiten[seen], density[seen])
        for first in range(0, pixels.shape[0], step):
            part = slice(first, first + step)
            if kind == AFFINE:
                yield view, part, _affine(kept, basis[view], pixels[part], cutoff).sum(0), None, None
            else:
                sp, dp = s[view, part], d[view, part]
                if torch.is_grad_enabled() and not sp.requires_grad:
                    sp, dp = sp.requires_grad_(), dp.requires_grad_()
                yield view, part, _exact(kept, sp, dp, cutoff).sum(0), sp, dp


def splat(mean, scale, rotation, density, rays, height, width, kind, cutoff, moments):
    """The operator of the same name (`xreg.ops.splatting.splat`)."""
    tensors = tuple(t.detach() for t in (mean, scale, rotation, density))
    image = mean.new_zeros((len(rays), height * width))
    jac = mean.new_zeros((len(rays), 6 if moments else 0, height * width))
    with torch.set_grad_enabled(moments):
        for view, part, values, s, d in _render(tensors, rays.detach(), (height, width), kind, cutoff):
            image[view, part] = values.detach().to(mean.dtype)
            if moments and values.requires_grad:
                jac[view, :, part] = torch.cat(torch.autograd.grad(values.sum(), (s, d)), 1).T.to(mean.dtype)
    return image.reshape(-1, height, width), jac.reshape(len(rays), -1, height, width)


def splat_backward(cotangent, mean, scale, rotation, density, rays, kind, cutoff):
    """The operator of the same name.  As the kernel's, without what |d| as a factor has of the gradient."""
    size = cotangent.shape[1:]
    flat = cotangent.reshape(len(rays), -1).double()
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (mean, scale, rotation, density, rays)]
        total = flat.new_zeros(())
        for view, part, values, _, d in _render(tuple(leaves[:4]), leaves[4], size, kind, cutoff):
            if d is not None:  # the length once more, and once less, of which only one is differentiated
                length = d.norm(dim=-1)
                values = values * (length.detach() / length)
            total = total + (values * flat[view, part]).sum()
        if not total.requires_grad:
            return tuple(torch.zeros_like(t) for t in leaves)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True))


def _slabs(
    tensors: tuple[Tensor, ...], affine: Tensor, shape: tuple[int, int, int], cutoff: float
) -> Iterator:
    """(voxels, their values) for parts of the flat volume."""
    mean, scale, rotation, density = (t.double() for t in tensors)
    whiten = _whiten(scale, rotation)
    depth, rows, cols = shape
    affine = affine.to(mean.device)
    step = max(1, CHUNK // max(1, len(mean)))
    for first in range(0, depth * rows * cols, step):
        n = torch.arange(first, min(first + step, depth * rows * cols), device=mean.device)
        index = torch.stack([n % cols, n // cols % rows, n // (cols * rows)], -1).double()
        x = index @ affine[:, :3].T + affine[:, 3]
        e = torch.einsum("nij,nrj->nri", whiten, x - mean[:, None]).square().sum(-1)
        yield n, torch.where(e.detach() < cutoff**2, density[:, None] * torch.exp(-0.5 * e), 0.0).sum(0)


def voxelize(mean, scale, rotation, density, affine, depth, rows, cols, cutoff):
    """The operator of the same name."""
    volume = mean.new_zeros(depth * rows * cols)
    with torch.no_grad():
        for n, values in _slabs((mean, scale, rotation, density), affine, (depth, rows, cols), cutoff):
            volume[n] = values.to(mean.dtype)
    return volume.reshape(depth, rows, cols)


def voxelize_backward(cotangent, mean, scale, rotation, density, affine, cutoff):
    """The operator of the same name."""
    flat = cotangent.reshape(-1).double()
    leaves = [t.detach().requires_grad_() for t in (mean, scale, rotation, density)]
    found = [torch.zeros_like(t) for t in leaves]
    with torch.enable_grad():
        for n, values in _slabs(tuple(leaves), affine, tuple(cotangent.shape), cutoff):
            parts = torch.autograd.grad((values * flat[n]).sum(), leaves, retain_graph=True)
            found = [a + b for a, b in zip(found, parts, strict=True)]
    return tuple(found)
