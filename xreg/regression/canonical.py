"""The camera that a network knows, films of any detector brought to it, and poses brought back.

A pinhole film samples a function of ray directions, so films of two detectors at one source differ by an
affine map of pixel coordinates alone; the distance to the detector does not enter but through the focal
length in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import GeometryError, ImageError
from xreg.geometry import Camera
from xreg.geometry._numbers import as_tensor
from xreg.geometry.pixel_grid import bin_map
from xreg.regression.ranges import PoseRange

_FINEST = 4  # at most so many samples a pixel and axis are taken after binning
_COVERED = 0.5  # part of a pixel that must be valid
_CLIP = 2.5  # standard deviations beyond which a pixel counts as this far
_LIMIT = 4.0  # of what a network is shown


@dataclass(frozen=True)
class Canonical:
    """A square pinhole camera: focal length in px, and rows = columns = size; centred, not mirrored."""

    focal: float
    size: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.focal) and self.focal > 0 and int(self.size) == self.size >= 16):
            raise GeometryError(
                f"a canonical camera needs a positive focal length (px) and at least 16 px, got {self}"
            )

    @classmethod
    def of(cls, box: PoseRange, size: int) -> Canonical:
        """The one whose detector is that of a pose range."""
        return cls(box.sdd / (box.field / size), size)

    @property
    def camera(self) -> Camera:
        """As a Camera at the origin of its own frame: world_from_body is then camera_from_body.

        It has no distance to the detector: rays end behind the volume.
        """
        middle = (self.size - 1) / 2
        k = torch.tensor([[self.focal, 0, middle], [0, self.focal, middle], [0, 0, 1]], dtype=torch.float64)
        return Camera(k, torch.eye(4, dtype=torch.float64), (self.size, self.size))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them."""
        return {"focal_px": self.focal, "size": self.size}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Canonical:
        """Read what `to_dict` wrote."""
        if not isinstance(data, Mapping) or set(data) != {"focal_px", "size"}:
            raise GeometryError(f"a canonical camera needs the entries focal_px and size, got {data!r}")
        return cls(float(data["focal_px"]), int(data["size"]))

    def resample(
        self,
        film: Float[Tensor, "H W"],
        camera: Camera,
        mask: Bool[Tensor, "H W"] | None = None,
        *,
        roll: float = 0.0,
    ) -> tuple[Float[Tensor, "S S"], Bool[Tensor, "S S"]]:
        """A film as this camera at the same source sees it, and which of its pixels are known.

        film: any values; camera: its pinhole, stored image (mirrored or not).  mask: true where the film is
        valid.  roll: degrees by which the canonical camera is turned about the principal ray.  Where pixels
        grow, the film is averaged over the new pixel.  Pixels that are less than half covered are unknown
        and zero.  GeometryError for a parallel beam or a batch, ImageError for a film that does not fit.
        """
        film, valid = _checked(film, camera, mask)
        user_from_own = camera.image_matrix.cpu() @ about_beam(roll)[:3, :3] @ torch.linalg.inv(self.camera.K)
        stack = torch.stack([film * valid, valid])
        stack, user_from_own = _binned(stack, user_from_own)
        total, known = self._averaged(stack, user_from_own)
        covered = known > _COVERED
        return torch.where(covered, total / known.clamp_min(1e-6), 0.0), covered

    def _averaged(self, stack: Tensor, user_from_own: Tensor) -> tuple[Tensor, Tensor]:
        """Means over this camera's pixels of bilinear samples that lie at most about a pixel apart."""
        n = min(_FINEST, max(1, math.ceil(_growth(user_from_own) - 1e-9)))
        fine = (torch.arange(self.size * n, dtype=torch.float64) + 0.5) / n - 0.5
        v, u = torch.meshgrid(fine, fine, indexing="ij")
        at = torch.stack([u, v, torch.ones_like(u)], -1) @ user_from_own.T
        height, width = stack.shape[-2:]
        place = torch.stack([(2 * at[..., 0] + 1) / width - 1, (2 * at[..., 1] + 1) / height - 1], -1)
        place = place.to(stack)[None]
        seen = F.grid_sample(stack[None], place, "bilinear", "zeros", align_corners=False)
        total, known = F.avg_pool2d(seen, n)[0] if n > 1 else seen[0]
        return total, known

    def back(
        self, camera: Camera, canonical_from_body: Float[Tensor, "*b 4 4"], *, roll: float = 0.0
    ) -> Float[Tensor, "*b 4 4"]:
        """world_from_body for a film's camera of a pose in this camera (turned by roll, as in `resample`)."""
        turn = about_beam(roll).to(canonical_from_body)
        return camera.world_from_camera.to(canonical_from_body) @ turn @ canonical_from_body


def about_beam(degrees: float) -> Float[Tensor, "4 4"]:
    """The turn from a rolled camera to the one it was rolled from."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return turn


def _checked(film: Any, camera: Camera, mask: Any) -> tuple[Tensor, Tensor]:
    if camera.parallel or camera.batch_shape:
        what = "a parallel beam" if camera.parallel else f"a batch of {tuple(camera.batch_shape)} cameras"
        raise GeometryError(f"a pose network needs one film of a pinhole camera, got {what}")
    film = as_tensor(film).detach().float()
    if tuple(film.shape) != tuple(camera.size):
        raise ImageError(
            f"film must have the camera's size {tuple(camera.size)} (H, W), got {tuple(film.shape)}"
        )
    valid = torch.ones_like(film, dtype=torch.bool) if mask is None else as_tensor(mask).bool()
    if valid.shape != film.shape:
        raise ImageError(f"mask must have the film's shape {tuple(film.shape)}, got {tuple(valid.shape)}")
    valid = valid.to(film.device) & film.isfinite()
    return torch.where(valid, film, 0.0), valid.float()


def _growth(user_from_own: Float[Tensor, "3 3"]) -> float:
    """How many film pixels a canonical pixel spans, along the longer way."""
    return float(user_from_own[:2, :2].norm(dim=0).amax())


def _binned(stack: Float[Tensor, "2 H W"], user_from_own: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks of pixels averaged first, where a canonical pixel spans many; those at the rim are filled up."""
    n = int(_growth(user_from_own) // 2)
    if n < 2:
        return stack, user_from_own
    height, width = stack.shape[-2:]
    stack = F.pad(stack, (0, -width % n, 0, -height % n))
    _, (su, ou, sv, ov) = bin_map(tuple(stack.shape[-2:]), n)
    change = torch.tensor([[su, 0, ou], [0, sv, ov], [0, 0, 1]], dtype=torch.float64)
    return F.avg_pool2d(stack, n), change @ user_from_own


def normalise(
    images: Float[Tensor, "B S S"], known: Bool[Tensor, "B S S"] | None = None
) -> Float[Tensor, "B S S"]:
    """Films without their gain and offset: zero mean, unit deviation, what is far from the rest pulled in.

    known: pixels that count; the others become 0.  A film without contrast becomes 0.
    """
    weight = torch.ones_like(images) if known is None else known.to(images)
    count = weight.sum((-1, -2), keepdim=True).clamp_min(1.0)

    def standard(x: Tensor) -> Tensor:
        mean = (x * weight).sum((-1, -2), keepdim=True) / count
        away = (x - mean) * weight
        spread = (away.square().sum((-1, -2), keepdim=True) / count).sqrt()
        least = 1e-6 * (mean.abs() + 1e-12)
        return torch.where(spread > least, away / torch.maximum(spread, least), 0.0)

    first = standard(images).clamp(-_CLIP, _CLIP)
    return standard(first).clamp(-_LIMIT, _LIMIT)
