"""Views of Gaussians as images to look at, and how far they are from films."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.splat.gaussians import Gaussians


def view_psnr(
    body: Gaussians, images: Float[Tensor, "V H W"], cameras: Any, *, data_range: float | None = None
) -> float:
    """PSNR of views, dB, absolute, less than zero drawn as zero; range: the largest pixel unless given."""
    from xreg.metrics import psnr

    return psnr(draw(body, cameras), images.cpu(), data_range=data_range or float(images.max()))


def draw(body: Gaussians, cameras: Any) -> Float[Tensor, "V H W"]:
    """Views on the host, less than zero drawn as zero."""
    with torch.no_grad():
        return torch.stack([body.render(camera) for camera in cameras]).clamp_min(0).cpu()
