"""The operators in plain torch: slow, short, and independent of the kernels.

They answer where the compiled library is missing, and the tests compare the kernels with them.  The
image is differentiated by autograd through sample positions and lengths, so its gradients share no
formula with the kernels' moments.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

TRILINEAR, JOSEPH, SIDDON, EXACT = range(4)
CHUNK = 1 << 21  # samples held at a time


def pixel_rays(rays: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Source and direction of each pixel, [V, H, W, 3] float64, from the bundle [V, 6, 3]."""
    u = torch.arange(width, dtype=rays.dtype, device=rays.device)[:, None]
    v = torch.arange(height, dtype=rays.dtype, device=rays.device)[:, None, None]
    s0, su, sv, d0, du, dv = (r[:, None, None] for r in rays.unbind(1))
    return s0 + u * su + v * sv, d0 + u * du + v * dv


def _safe(d: Tensor) -> Tensor:
    """d with zeros replaced, for division."""
    return torch.where(d.abs() < 1e-12, torch.ones_like(d), d)


def _crossings(s: Tensor, d: Tensor, size: tuple[int, int, int], shift: float) -> Tensor:
    """Sorted t in [0, 1] where each ray crosses a cell border, [R, planes]; borders at integers - shift."""
    times = []
    for a, n in enumerate(size):
        planes = torch.arange(-1, n + 2, dtype=s.dtype, device=s.device) - shift
        t = (planes - s[:, a : a + 1]) / _safe(d[:, a : a + 1])
        times.append(torch.where(d[:, a : a + 1].abs() < 1e-12, torch.zeros_like(t), t))
    ends = torch.tensor([0.0, 1.0], dtype=s.dtype, device=s.device).expand(len(s), 2)
    return torch.cat([*times, ends], 1).clamp(0.0, 1.0).sort(1).values


def _joseph(s: Tensor, d: Tensor, size: tuple[int, int, int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rays, positions [R, K, 3], weights [R, K]) for each dominant axis."""
    magnitude = d.abs()
    is_x = (magnitude[:, 0] >= magnitude[:, 1]) & (magnitude[:, 0] >= magnitude[:, 2])
    is_y = ~is_x & (magnitude[:, 1] >= magnitude[:, 2])
    for axis, mine in enumerate([is_x, is_y, ~is_x & ~is_y]):
        rows = mine.nonzero()[:, 0]
        if not len(rows):
            continue
        p = torch.arange(size[axis], dtype=s.dtype, device=s.device)
        sa, da = s[rows, axis : axis + 1], d[rows, axis : axis + 1]
        t = (p - sa) / da
        x = [
            p.expand(len(rows), -1) if a == axis else s[rows, a : a + 1] + t * d[rows, a : a + 1]
            for a in range(3)
        ]
        near, far = torch.minimum(sa, sa + da), torch.maximum(sa, sa + da)
        overlap = (torch.minimum(p + 0.5, far) - torch.maximum(p - 0.5, near)).clamp(0.0, 1.0)
        yield rows, torch.stack(x, -1), overlap / da.abs()


def _samples(
    s: Tensor, d: Tensor, size, integrator: int, steps: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rays, positions, weights in t) of every sample; the sum of weight times field is ∫ mu dt."""
    everyone = torch.arange(len(s), device=s.device)
    if integrator == TRILINEAR:
        t = (torch.arange(steps, dtype=s.dtype, device=s.device) + 0.5) / steps
        yield (
            everyone,
            s[:, None] + t[:, None] * d[:, None],
            torch.full_like(t, 1.0 / steps).expand(len(s), -1),
        )
    elif integrator == JOSEPH:
        yield from _joseph(s, d, size)
    else:
        t = _crossings(s, d, size, 0.5 if integrator == SIDDON else 0.0)
        middle, half = (t[:, 1:] + t[:, :-1]) / 2, (t[:, 1:] - t[:, :-1]) / 2
        offsets = [0.0] if integrator == SIDDON else [-(3**-0.5), 3**-0.5]
        for offset in offsets:
            at = middle + offset * half
            yield everyone, s[:, None] + at[..., None] * d[:, None], half * (2 / len(offsets))


def _corners(x: Tensor, size: tuple[int, int, int], nearest: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """(flat index, weight) of each voxel that shares in a sample; weight zero outside the grid."""
    nx, ny, _ = size
    base = (x + 0.5).floor() if nearest else x.floor()
    base = base.detach()
    for corner in range(1 if nearest else 8):
        bits = [(corner >> a) & 1 for a in range(3)]
        weight = torch.ones_like(x[..., 0])
        inside = torch.ones_like(x[..., 0], dtype=torch.bool)
        index = []
        for a, n in enumerate(size):
            i = base[..., a] + bits[a]
            if not nearest:
                f = x[..., a] - base[..., a]
                weight = weight * (f if bits[a] else 1 - f)
            inside = inside & (i >= 0) & (i < n)
            index.append(i.clamp(0, n - 1).long())
        yield (
            (index[2] * ny + index[1]) * nx + index[0],
            torch.where(inside, weight, torch.zeros_like(weight)),
        )


def _integrate(mu: Tensor, s: Tensor, d: Tensor, integrator: int, steps: int, sort=None) -> Tensor:
    """∫ mu dt of each ray [R], or sorted by label [R, C] where sort = (labels, channels, soft)."""
    size = (mu.shape[2], mu.shape[1], mu.shape[0])
    flat = mu.reshape(-1)
    dtype = mu.dtype if mu.is_floating_point() else torch.float32
    columns = sort[1] if sort else 1
    total = torch.zeros(len(s), columns, dtype=dtype, device=s.device)
    for rows, x, w in _samples(s, d, size, integrator, steps):
        value = torch.zeros_like(w, dtype=dtype)
        at, _ = next(_corners(x, size, True))  # of the grid: for a sample outside, at its border
        for index, share in _corners(x, size, integrator == SIDDON):
            part = (share * w).to(dtype) * flat[index].to(dtype)
            if sort and sort[2]:
                total = _sort(total, rows, sort[0].reshape(-1)[index], part, columns)
            else:
                value = value + part
        if sort and not sort[2]:
            total = _sort(total, rows, sort[0].reshape(-1)[at], value, columns)
        elif not sort:
            total = total.index_add(0, rows, value.sum(1, keepdim=True))
    return total if sort else total[:, 0]


def _sort(total: Tensor, rows: Tensor, label: Tensor, part: Tensor, columns: int) -> Tensor:
    label = label.long()
    kept = (label >= 0) & (label < columns)
    target = rows[:, None] * columns + torch.where(kept, label, torch.zeros_like(label))
    value = torch.where(kept, part, torch.zeros_like(part))
    return total.reshape(-1).index_add(0, target.reshape(-1), value.reshape(-1)).reshape(total.shape)


def _length(d: Tensor, metric: Tensor) -> Tensor:
    xx, xy, xz, yy, yz, zz = metric.to(d.device, d.dtype)
    x, y, z = d.unbind(-1)
    return (xx * x * x + yy * y * y + zz * z * z + 2 * (xy * x * y + xz * x * z + yz * y * z)).sqrt()


def _in_chunks(mu: Tensor, s: Tensor, steps: int, integrator: int) -> list[slice]:
    samples = steps if integrator == TRILINEAR else sum(mu.shape) + 8
    n = max(1, CHUNK // samples)
    return [slice(i, i + n) for i in range(0, len(s), n)]


def _render(mu, s, d, metric, integrator, steps, scale, sort=None) -> Tensor:
    value = _integrate(mu, s, d, integrator, steps, sort)
    length = _length(d, metric)
    return (value * (scale * length)[(...,) + (None,) * (value.dim() - 1)].to(value.dtype)).to(value.dtype)


def _moments(mu, rays, metric, height, width, integrator, steps, image_of: Callable) -> Tensor:
    """∂/∂s and ∂/∂d of a scalar image of each pixel's own ray, by autograd, [V, 6, H, W]."""
    s, d = (r.reshape(-1, 3) for r in pixel_rays(rays, height, width))
    parts = []
    for part in _in_chunks(mu, s, steps, integrator):
        with torch.enable_grad():
            sp, dp = s[part].detach().requires_grad_(), d[part].detach().requires_grad_()
            grads = torch.autograd.grad(image_of(part, sp, dp).sum(), (sp, dp), allow_unused=True)
        parts.append(torch.cat([torch.zeros_like(sp) if g is None else g for g in grads], 1))
    dtype = torch.float64 if mu.dtype == torch.float64 else torch.float32
    return torch.cat(parts).reshape(len(rays), height, width, 6).permute(0, 3, 1, 2).to(dtype).contiguous()


def project(mu, scale, rays, metric, height, width, integrator, steps, moments):
    """The operator of the same name (`xreg.ops.project.project`)."""
    s, d = (r.reshape(-1, 3) for r in pixel_rays(rays, height, width))
    with torch.no_grad():
        image = torch.cat(
            [
                _render(mu, s[p], d[p], metric, integrator, steps, scale)
                for p in _in_chunks(mu, s, steps, integrator)
            ]
        ).reshape(len(rays), height, width)
    if not moments:
        return image, image.new_empty((len(rays), 0, height, width))

    def of(_, sp, dp):
        return _render(mu.detach(), sp, dp, metric, integrator, steps, scale)

    return image, _moments(mu, rays, metric, height, width, integrator, steps, of)


def project_labels(mu, scale, labels, channels, soft, rays, metric, height, width, integrator, steps):
    """The operator of the same name."""
    s, d = (r.reshape(-1, 3) for r in pixel_rays(rays, height, width))
    sort = (labels, channels, soft)
    image = torch.cat(
        [
            _render(mu, s[p], d[p], metric, integrator, steps, scale, sort)
            for p in _in_chunks(mu, s, steps, integrator)
        ]
    )
    return image.reshape(len(rays), height, width, channels).permute(0, 3, 1, 2).contiguous()


def label_moments(cotangent, mu, scale, labels, soft, rays, metric, integrator, steps):
    """The operator of the same name."""
    channels, height, width = cotangent.shape[1:]
    weight = cotangent.permute(0, 2, 3, 1).reshape(-1, channels)

    def of(part, sp, dp):
        sort = (labels, channels, soft)
        return _render(mu.detach(), sp, dp, metric, integrator, steps, scale, sort) * weight[part]

    return _moments(mu, rays, metric, height, width, integrator, steps, of)


def backproject(cotangent, scale, depth, rows, cols, labels, soft, rays, metric, integrator, steps):
    """The operator of the same name: the transpose of a linear map, by differentiating it."""
    height, width = cotangent.shape[-2:]
    s, d = (r.reshape(-1, 3) for r in pixel_rays(rays, height, width))
    sort = None if labels is None else (labels, cotangent.shape[1], soft)
    weight = cotangent.reshape(-1) if sort is None else cotangent.permute(0, 2, 3, 1).reshape(len(s), -1)
    volume = cotangent.new_zeros((depth, rows, cols))
    for p in _in_chunks(volume, s, steps, integrator):
        with torch.enable_grad():
            mu = cotangent.new_zeros((depth, rows, cols)).requires_grad_()
            image = _render(mu, s[p], d[p], metric, integrator, steps, scale, sort)
            volume += torch.autograd.grad((image * weight[p]).sum(), mu)[0]
    return volume
