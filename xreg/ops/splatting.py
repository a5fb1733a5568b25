"""Gaussians to images and to voxels, as differentiable functions on tensors.

A Gaussian is density · exp(−½ |diag(1/scale) Rᵀ (x − mean)|²), with R from a quaternion (x, y, z, w) as roma
has it; its norm does not matter.  Its integral along a ray has a closed form (cuda/splat.cuh), and an image
is the sum over all Gaussians: order does not matter.  Rays are those of `xreg.ops.project`, in the units of
the mean.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.ops import registry
from xreg.ops.project import first_order, pull_back

KINDS = {"exact": 0, "affine": 1, "parallel": 2}
CUTOFF = (
    4.0  # sigmas; what is left out is exp(-8) = 3.4e-4 of a Gaussian's mass in an image, 1.1e-3 in a volume
)


class _Splat(torch.autograd.Function):
    """Image and moments; backward gathers each Gaussian's gradient over its own pixels."""

    @staticmethod
    def forward(mean, scale, rotation, density, rays, height, width, kind, cutoff, moments):
        return torch.ops.xreg.splat(
            mean, scale, rotation, density, rays.contiguous(), height, width, kind, cutoff, moments
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:5], output[0])
        ctx.known = inputs[7:9]

    @staticmethod
    @first_order
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 10
        *gaussians, rays, image = ctx.saved_tensors
        kind, cutoff = ctx.known
        *found, to_rays = torch.ops.xreg.splat_backward(
            grad.contiguous(), *gaussians, rays.contiguous(), kind, cutoff
        )
        if not ctx.needs_input_grad[4]:
            to_rays = None
        elif kind != KINDS["affine"]:
            to_rays = to_rays + _through_length(grad * image, rays)
        return (*found, to_rays, None, None, None, None, None)


def _through_length(weighted: Float[Tensor, "V H W"], rays: Float[Tensor, "V 6 3"]) -> Float[Tensor, "V 6 3"]:
    """Gradient to the rays of an image that is |d| times something, through |d| alone: d / |d|² times it."""
    height, width = weighted.shape[-2:]
    u = torch.arange(width, dtype=rays.dtype, device=rays.device)[:, None]
    v = torch.arange(height, dtype=rays.dtype, device=rays.device)[:, None, None]
    d0, du, dv = (r[:, None, None] for r in rays.detach()[:, 3:].unbind(1))
    d = d0 + u * du + v * dv
    to_d = (d * (weighted / d.square().sum(-1))[..., None]).movedim(-1, 1)
    return pull_back(torch.cat([torch.zeros_like(to_d), to_d], 1))


def splat(
    mean: Float[Tensor, "N 3"],
    scale: Float[Tensor, "N 3"],
    rotation: Float[Tensor, "N 4"],
    density: Float[Tensor, " N"],
    rays: Float[Tensor, "V 6 3"],
    size: tuple[int, int],
    *,
    kind: str = "exact",
    cutoff: float = CUTOFF,
    moments: bool = False,
) -> tuple[Float[Tensor, "V H W"], Float[Tensor, "V 6 H W"]]:
    """Line integrals of Gaussians along the rays of V views, and how each changes with its ray.

    mean, scale (standard deviations, above zero) and rotation: float32 or float64 of one dtype; density: the
    value at the mean, of any sign.  rays: float64, in the units of the mean; those of a pinhole, whose su and
    sv are taken as zero, or of a parallel beam, whose du and dv are.  size: (H, W).

    kind: 'exact' or 'parallel', the closed form; 'affine', the projection taken as linear about each mean, as
    EWA splatting has it (M. Zwicker et al., 2001), for a pinhole.  cutoff: a Gaussian counts where it is less
    than so many sigmas from the ray.  The integral runs along the whole line, not only up to the detector; a
    Gaussian is left out of a view unless its ellipsoid of `cutoff` sigmas lies wholly in front of the source.
    One that is much smaller than a pixel is sampled, not averaged.

    moments: also return ∂I/∂s and ∂I/∂d per ray as `project` does, [V, 6, H, W] (not for 'affine'); otherwise
    [V, 0, H, W].  Gradients: to all four and to the rays (s0, d0, du, dv of a pinhole; s0, su, sv, d0 of a
    parallel beam), with the same bits on any number of threads.  The jump at the cutoff has no gradient.
    """
    registry.load()
    gaussians = (t.contiguous() for t in (mean, scale, rotation, density))
    return _Splat.apply(*gaussians, rays, *size, KINDS[kind], float(cutoff), moments)


class _Voxelize(torch.autograd.Function):
    @staticmethod
    def forward(mean, scale, rotation, density, affine, depth, rows, cols, cutoff):
        return torch.ops.xreg.voxelize(mean, scale, rotation, density, affine, depth, rows, cols, cutoff)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.cutoff = inputs[8]

    @staticmethod
    @first_order
    def backward(ctx, grad):
        *gaussians, affine = ctx.saved_tensors
        found = torch.ops.xreg.voxelize_backward(grad.contiguous(), *gaussians, affine, ctx.cutoff)
        return (*found, None, None, None, None, None)


def voxelize(
    mean: Float[Tensor, "N 3"],
    scale: Float[Tensor, "N 3"],
    rotation: Float[Tensor, "N 4"],
    density: Float[Tensor, " N"],
    affine: Float[Tensor, "4 4"],
    shape: tuple[int, int, int],
    *,
    cutoff: float = CUTOFF,
) -> Float[Tensor, "D H W"]:
    """The sum of Gaussians at voxel centres [D, H, W]; `affine` takes index (i, j, k) to the units of the
    mean.

    Gaussians as in `splat`; each counts up to `cutoff` sigmas from its mean.  Gradients to all four, not to
    the affine, with the same bits on any number of threads.
    """
    registry.load()
    gaussians = (t.contiguous() for t in (mean, scale, rotation, density))
    rows = affine.detach().to("cpu", torch.float64)[:3].contiguous()
    return _Voxelize.apply(*gaussians, rows, *shape, float(cutoff))
