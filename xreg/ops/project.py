"""The projector as differentiable functions on tensors.

Everything here is in voxel coordinates: a view is six 3-vectors (s0, su, sv, d0, du, dv), pixel (u, v)
has the source s0 + u su + v sv and the direction d0 + u du + v dv, and x(t) = s + t d runs from the
source (t = 0) to the detector (t = 1).  The line integral is I = |M d| ∫ mu(x(t)) dt with M the
millimetres of a voxel step.
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xreg.ops import registry

INTEGRATORS = {"trilinear": 0, "joseph": 1, "siddon": 2, "exact": 3}


def metric_of(linear: Float[Tensor, "3 3"]) -> Float[Tensor, "6"]:
    """MᵀM of the affine's linear part M (mm from index), as (xx, xy, xz, yy, yz, zz), float64 on the host."""
    m = linear.detach().to("cpu", torch.float64)
    g = m.T @ m
    return torch.stack([g[0, 0], g[0, 1], g[0, 2], g[1, 1], g[1, 2], g[2, 2]])


def pull_back(
    weighted: Float[Tensor, "V 6 H W"],
) -> Float[Tensor, "V 6 3"]:
    """Gradient to the rays [V, 6, 3] from the gradient to each pixel's source and direction.

    The transpose of (s0 + u su + v sv, d0 + u du + v dv); sums run in float64.
    """
    height, width = weighted.shape[-2:]
    columns = weighted.sum(-2, dtype=torch.float64)
    rows = weighted.sum(-1, dtype=torch.float64)
    u = torch.arange(width, dtype=torch.float64, device=weighted.device)
    v = torch.arange(height, dtype=torch.float64, device=weighted.device)
    moments = torch.stack([columns.sum(-1), columns @ u, rows @ v], 1)  # [V, (1, u, v), 6]
    return torch.cat([moments[..., :3], moments[..., 3:]], 1)


def push_forward(
    moments: Float[Tensor, "V 6 H W"], rays_dot: Float[Tensor, "V P 6 3"]
) -> Float[Tensor, "V P H W"]:
    """Directional derivatives of the image along P changes of its rays: the Jacobian images.

    `moments` is the second result of `project`, `rays_dot[v, p]` the derivative of view v's rays with
    respect to parameter p.  Linear in both; nothing is marched again.
    """
    views, params = rays_dot.shape[:2]
    height, width = moments.shape[-2:]
    flat = moments.reshape(views, 6, -1)
    # [V, (1, u, v), P, (s, d)]: what a pixel's moments are multiplied with
    c = torch.cat([rays_dot[:, :, :3], rays_dot[:, :, 3:]], -1).permute(0, 2, 1, 3)
    c = c.to(moments.device, moments.dtype, non_blocking=True)  # cameras are often on the host
    u = torch.arange(width, dtype=moments.dtype, device=moments.device)
    v = torch.arange(height, dtype=moments.dtype, device=moments.device)[:, None]
    parts = torch.bmm(c.reshape(views, 3 * params, 6), flat).reshape(views, 3, params, height, width)
    return parts[:, 0] + parts[:, 1] * u + parts[:, 2] * v


class _Final(torch.autograd.Function):
    """Passes a gradient on, and refuses to be differentiated."""

    @staticmethod
    def forward(gradient, *sources):
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(
            "xreg: the projector has first derivatives only, so its gradient cannot be differentiated again. "
            "Detach the gradient, or take Jacobian images with moments=True and push_forward"
        )


def first_order(backward):
    """As torch's once_differentiable, but it also refuses where the incoming gradient is a constant.

    There the gradient still depends on what was saved, and torch would take it for a constant in silence.
    """

    @functools.wraps(backward)
    def run(ctx, *grads):
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        sources = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad]
        return tuple(g if g is None else _Final.apply(g, *sources) for g in found)

    return run


class _Project(torch.autograd.Function):
    """Image and moments; the image's gradient comes from the moments, without a second march."""

    @staticmethod
    def forward(mu, rays, scale, metric, height, width, integrator, steps, moments):
        return torch.ops.xreg.project(
            mu, scale, rays.contiguous(), metric, height, width, integrator, steps, moments
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        mu, rays, scale, metric, _, _, integrator, steps, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(rays, metric, output[1], mu)
        ctx.beam = (scale, integrator, steps)

    @staticmethod
    @first_order
    def backward(ctx, grad, _):
        rays, metric, moments, mu = ctx.saved_tensors
        scale, integrator, steps = ctx.beam
        to_mu = to_rays = None
        if grad is not None and ctx.needs_input_grad[0]:
            to_mu = torch.ops.xreg.backproject(
                grad.contiguous(), scale, *mu.shape, None, False, rays.contiguous(), metric, integrator, steps
            )
        if grad is not None and ctx.needs_input_grad[1]:
            to_rays = pull_back(grad[:, None] * moments)
        return to_mu, to_rays, None, None, None, None, None, None, None


def project(
    mu: Float[Tensor, "D H W"] | Int[Tensor, "D H W"],
    rays: Float[Tensor, "V 6 3"],
    metric: Float[Tensor, "6"],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
    integrator: str = "trilinear",
    steps: int = 500,
    moments: bool = False,
) -> tuple[Float[Tensor, "V H W"], Float[Tensor, "V 6 H W"]]:
    """Line integrals of a volume along the rays of V views, and how each changes with its ray.

    mu: int16, float32 or float64 voxels (attenuation in 1/mm is scale times the voxel); contiguous.
    rays: float64, voxel coordinates.  metric: from `metric_of`.  size: (H, W) of the images.
    integrator: 'trilinear' (fixed step: `steps` samples from source to detector), 'joseph', 'siddon' or
    'exact'.  moments: also return ∂I/∂s and ∂I/∂d per ray, [V, 6, H, W]; otherwise [V, 0, H, W].

    Gradients: to mu (the exact transpose of the projection) where it is floating, and to rays (exact
    derivative of the same sum).  Results are float32, or float64 for float64 voxels.
    """
    registry.load()
    want = moments or (rays.requires_grad and torch.is_grad_enabled())
    return _Project.apply(mu, rays, scale, metric, *size, INTEGRATORS[integrator], steps, want)


class _ProjectLabels(torch.autograd.Function):
    @staticmethod
    def forward(mu, rays, labels, scale, metric, height, width, integrator, steps, channels, soft):
        return torch.ops.xreg.project_labels(
            mu, scale, labels, channels, soft, rays.contiguous(), metric, height, width, integrator, steps
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        mu, rays, labels, scale, metric, _, _, integrator, steps, _, soft = inputs
        ctx.save_for_backward(mu, rays, labels, metric)
        ctx.beam = (scale, integrator, steps, soft)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        mu, rays, labels, metric = ctx.saved_tensors
        scale, integrator, steps, soft = ctx.beam
        grad, rays = grad.contiguous(), rays.contiguous()
        to_mu = to_rays = None
        if ctx.needs_input_grad[0]:
            to_mu = torch.ops.xreg.backproject(
                grad, scale, *mu.shape, labels, soft, rays, metric, integrator, steps
            )
        if ctx.needs_input_grad[1]:
            to_rays = pull_back(
                torch.ops.xreg.label_moments(grad, mu, scale, labels, soft, rays, metric, integrator, steps)
            )
        return to_mu, to_rays, *[None] * 9


def project_labels(
    mu: Float[Tensor, "D H W"] | Int[Tensor, "D H W"],
    labels: Int[Tensor, "D H W"],
    rays: Float[Tensor, "V 6 3"],
    metric: Float[Tensor, "6"],
    size: tuple[int, int],
    *,
    channels: int,
    soft: bool = False,
    scale: float = 1.0,
    integrator: str = "trilinear",
    steps: int = 500,
) -> Float[Tensor, "V C H W"]:
    """Line integrals sorted by label: one image a label in one march; they add up to `project`'s.

    labels: int16; a value outside [0, channels) is left out.  soft: each voxel of a sample counts for its
    own label (differentiable, anti-aliased); otherwise a sample counts for the label of the nearest voxel,
    and its gradient has no part from the moving border.  Gradients to mu and rays, by a second march.
    The rest as in `project`.
    """
    registry.load()
    return _ProjectLabels.apply(
        mu, rays, labels, scale, metric, *size, INTEGRATORS[integrator], steps, channels, soft
    )
