"""A 16-bit volume in a card's textures, where Joseph's rule reads a sample by one fetch.

An option for those who render one volume many times on a card; nothing uses it by itself.  The layout of the
textures is in `cuda/atlas.cuh`.
"""

import weakref

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from xreg.ops import registry


class Atlas:
    """Voxels as textures, prepared once; the memory is the card's and is freed with the object.

    voxels: int16, contiguous, on the card; attenuation is scale times the voxel.  -32768 counts as -32767.
    RuntimeError where there is no CUDA library or the volume does not fit the card's textures.
    """

    def __init__(self, voxels: Int16[Tensor, "D H W"], scale: float) -> None:
        if not voxels.is_cuda:
            raise RuntimeError(f"xreg: a texture atlas needs voxels on a CUDA card, got {voxels.device}")
        if (reason := registry.cuda_reason()) is not None:
            raise RuntimeError(f"xreg: a texture atlas needs the CUDA library, but {reason}")
        self.scale, self.device = scale, voxels.device
        self.handle = torch.ops.xreg_cuda.atlas_new(voxels)
        self.close = weakref.finalize(self, torch.ops.xreg_cuda.atlas_free, self.handle)

    def project(
        self,
        rays: Float[Tensor, "V 6 3"],
        metric: Float[Tensor, "6"],
        size: tuple[int, int],
        *,
        moments: bool = False,
    ) -> tuple[Float[Tensor, "V H W"], Float[Tensor, "V 6 H W"]]:
        """As `xreg.ops.project.project` with integrator='joseph'; carries no gradients."""
        if not self.close.alive:
            raise RuntimeError("xreg: this texture atlas has been closed")
        if rays.device != self.device:
            raise RuntimeError(f"xreg: the rays are on {rays.device} and the atlas on {self.device}")
        return torch.ops.xreg_cuda.atlas_project(self.handle, self.scale, rays, metric, *size, moments)
