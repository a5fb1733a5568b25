"""Filtered back-projection of a circular cone-beam scan.

Source: L. Feldkamp, L. Davis, J. Kress, "Practical cone-beam algorithm", JOSA A 1 (1984).  Redundant rays:
D. Parker, Med. Phys. 9 (1982) for a short scan, with the overscan of M. Silver, Med. Phys. 27 (2000); G.
Wang, Med. Phys. 29 (2002) for a displaced detector.  The ramp is sampled in space: A. Kak, M. Slaney,
"Principles of computerized tomographic imaging", §3.3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, InputWarning
from xreg.geometry import Camera, Rig
from xreg.io.voxel_grid import VoxelGrid
from xreg.tomography.backproject import back_project
from xreg.tomography.orbit import Orbit, orbit_of
from xreg.tomography.projector import check_projections, list_of, require_in_view

WINDOWS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
_OFFSET = (
    0.1  # of the detector's half width: beyond it the blend of a displaced detector uses all the overlap
)
_THIN = 0.02  # of the densest column's mean: below it there is air
_EVEN = 1.0  # px of displacement that is none


@dataclass(frozen=True)
class Filter:
    """What the ramp is multiplied with.

    window: 'ramp' (nothing), 'shepp-logan', 'cosine', 'hamming' or 'hann', over frequencies up to ``cutoff``
    of the detector's Nyquist frequency, zero above.  extend: the share of a row's length by which its ends
    are continued, falling off as a cosine, before it is filtered: for an object that the detector cuts.
    """

    window: str = "ramp"
    cutoff: float = 1.0
    extend: float = 0.0

    def __post_init__(self) -> None:
        if self.window not in WINDOWS:
            raise GeometryError(f"window must be one of {', '.join(WINDOWS)}, got {self.window!r}")
        if not 0 < self.cutoff <= 1 or not 0 <= self.extend <= 2:
            raise GeometryError(
                f"cutoff must lie in (0, 1] and extend in [0, 2], got {self.cutoff} and {self.extend}"
            )

    def response(self, length: int, spacing: float) -> Float[Tensor, " n"]:
        """The filter at the frequencies of an rfft of ``length`` samples, ``spacing`` mm apart: 1/mm."""
        n = torch.arange(length, dtype=torch.float64)
        n = torch.minimum(n, length - n)
        kernel = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp_min(1) * spacing) ** 2, 0.0)
        kernel[0] = 1 / (4 * spacing**2)
        ramp = torch.fft.rfft(kernel).real * spacing
        f = torch.linspace(0, 1, len(ramp), dtype=torch.float64) / self.cutoff
        shape = {
            "ramp": torch.ones_like(f),
            "shepp-logan": torch.sinc(f / 2),
            "cosine": torch.cos(math.pi * f / 2),
            "hamming": 0.54 + 0.46 * torch.cos(math.pi * f),
            "hann": 0.5 + 0.5 * torch.cos(math.pi * f),
        }[self.window]
        return torch.where(f <= 1 + 1e-12, ramp * shape, 0.0)


def fdk(
    images: Float[Tensor, "V H W"],
    cameras: Rig | Camera | Sequence[Camera],
    grid: VoxelGrid,
    *,
    filter: Filter | None = None,
    tolerance: float = 0.01,
) -> Float[Tensor, "d h w"]:
    """Attenuation in 1/mm from the line integrals of a circular scan.

    images [V, H, W]: float32 or float64, kept, as is their device.  cameras: on a circle (`orbit_of`,
    ``tolerance``), in any order, at uneven steps, mirrored or not, with any pixel shape and principal point,
    and the axis along columns or rows.  filter: `Filter()`, a plain ramp, by default.

    A full circle counts each ray half; where the detector is displaced (half fan) rays seen once count whole,
    with a smooth change between (Wang).  An arc of 180° plus the fan angle or more has Parker's weights.
    Less than that is no complete scan: weights are cut short, with an InputWarning; and so is an arc of a
    displaced detector whose narrow side cuts the object.  What lies outside every ray is zero.  Raises
    GeometryError and ImageError.  No gradient.
    """
    filter = filter or Filter()
    views = list_of(cameras)
    require_in_view(views, grid)
    check_projections(images, (len(views), *views[0].size))
    orbit = orbit_of(views, tolerance=tolerance)
    images = images.detach()
    if orbit.sideways:
        images, views = torch.rot90(images, 1, (-2, -1)), [camera.rotate90(1) for camera in views]
    fans = torch.stack([_fan(camera, orbit, float(a)) for camera, a in zip(views, orbit.angles, strict=True)])
    weights = redundancy(orbit, fans)
    if not orbit.full:
        _warn_of_displacement(images, fans)
    left, right = _missing(views)  # beyond a displaced detector's near end, where filtered rows are not zero
    filtered = images.new_empty(*images.shape[:2], images.shape[2] + left + right)
    for i, camera in enumerate(views):
        depth = float(orbit.depth[i])
        image = images[i] * _cosine(camera, images) * weights[i].to(images)
        rows = _filtered(image, filter, depth / float(camera.K[0, 0]), (left, right))
        filtered[i] = rows * (float(orbit.widths[i]) * depth**2)
    views = [camera.pad(0, 0, left, right) for camera in views]
    return back_project(filtered, views, grid)


def redundancy(orbit: Orbit, fans: Float[Tensor, "V w"]) -> Float[Tensor, "V w"]:
    """How much each column's rays count, so that every line through the object counts once in all.

    fans: fan angle of each column, radians, positive where the ray turns counter-clockwise about the axis.
    """
    low, high = fans.amin(-1), fans.amax(-1)
    pitch = (high - low) / max(fans.shape[-1] - 1, 1)
    overlap = torch.minimum(high, -low)
    if bool((overlap <= 0).any()):
        raise GeometryError(
            "the detector does not see the axis of rotation in every view, so most lines are never measured; "
            "check the principal point and the detector offset"
        )
    if not orbit.full:
        return _parker(orbit, fans)
    uneven = (high + low).abs()
    blend = torch.where(uneven > _OFFSET * (high - low) / 2, overlap, 0.25 * overlap)
    side = torch.where(high >= -low, 1.0, -1.0)[:, None]
    far = side * fans  # positive towards the wide side
    rise = (far.abs() - (overlap - blend)[:, None]) / blend[:, None]
    taper = 0.5 * torch.sin(math.pi / 2 * rise.clamp(0, 1)) * far.sign()
    return torch.where((uneven > _EVEN * pitch)[:, None], 0.5 + taper, 0.5)


def _parker(orbit: Orbit, fans: Tensor) -> Tensor:
    """Weights of an arc: a line seen from its two ends counts once in all, and changes smoothly."""
    widest = float(fans.abs().amax())
    delta = (orbit.span - math.pi) / 2
    if delta < widest - math.radians(0.5):
        warnings.warn(
            f"the arc of {math.degrees(orbit.span):.0f}° is less than 180° plus the fan of "
            f"{math.degrees(2 * widest):.0f}°: FDK of it is incomplete. fista_tv and os_sart do better there",
            InputWarning,
            stacklevel=4,
        )
    if delta <= 0:
        return torch.ones_like(fans)
    beta = ((orbit.angles - orbit.start) % (2 * math.pi))[:, None]
    beta = torch.where(beta > orbit.span + 1e-6, 0.0, beta)  # the first view, a rounding before the start
    gamma = fans.clamp(-delta, delta)
    tiny = 1e-9
    up = torch.sin(math.pi / 4 * beta / (delta - gamma).clamp_min(tiny)) ** 2
    down = torch.sin(math.pi / 4 * (math.pi + 2 * delta - beta) / (delta + gamma).clamp_min(tiny)) ** 2
    ones = torch.ones_like(up)
    return torch.where(beta < 2 * (delta - gamma), up, torch.where(beta <= math.pi - 2 * gamma, ones, down))


def _warn_of_displacement(images: Float[Tensor, "V h w"], fans: Float[Tensor, "V w"]) -> None:
    """InputWarning where an arc's detector is displaced, and its wide side sees what the other does not."""
    low, high = fans.amin(-1, keepdim=True), fans.amax(-1, keepdim=True)
    uneven = (high + low).abs() > _OFFSET * (high - low) / 2
    once = uneven & (fans.abs() > torch.minimum(high, -low) + 1e-9)
    columns = images.mean(1).cpu()
    if bool((columns[once] > _THIN * float(columns.max())).any()):
        warnings.warn(
            "the detector is displaced and the scan is an arc: beyond the detector's narrow side most lines "
            "of the object are measured once or never, so FDK of it is wrong. fista_tv and os_sart do better "
            "there",
            InputWarning,
            stacklevel=3,
        )


def _fan(camera: Camera, orbit: Orbit, angle: float) -> Float[Tensor, " w"]:
    """Fan angle of each column; counter-clockwise turns of the central ray are positive."""
    m = camera.image_matrix.detach().cpu()
    x = (torch.arange(camera.size[1], dtype=torch.float64) - m[0, 2]) / m[0, 0]
    pose = camera.world_from_camera.detach().cpu()
    # The central ray turned by a right angle counter-clockwise about the axis.
    sideways = torch.linalg.cross(orbit.axis, pose[:3, 2])
    return torch.atan(x) * torch.sign(pose[:3, 0] @ sideways)


def _cosine(camera: Camera, like: Tensor) -> Tensor:
    """Cosine of each ray against the detector's normal, [H, W]."""
    m = camera.image_matrix.detach().cpu()
    if abs(float(m[0, 1])) > 1e-6:
        raise GeometryError(f"FDK needs pixels without skew, but K[0, 1] is {float(m[0, 1]):g} px")
    height, width = camera.size
    x = (torch.arange(width, dtype=torch.float64) - m[0, 2]) / m[0, 0]
    y = (torch.arange(height, dtype=torch.float64) - m[1, 2]) / m[1, 1]
    return (1 + x * x + y[:, None] ** 2).rsqrt().to(like)


def _missing(cameras: Sequence[Camera]) -> tuple[int, int]:
    """Columns to add on the left and the right until the principal point is in the middle of every view."""
    center = torch.stack([camera.principal_point.detach().cpu()[0] for camera in cameras])
    other = cameras[0].size[1] - 1 - center
    left, right = float((other - center).max()), float((center - other).max())
    return tuple(math.ceil(n) if n > _EVEN else 0 for n in (left, right))


def _filtered(image: Tensor, filter: Filter, spacing: float, more: tuple[int, int]) -> Tensor:
    """Rows convolved with the ramp, and the result for some columns more on the left and the right.

    spacing: mm between columns at the isocentre.
    """
    width = image.shape[-1]
    extra = round(filter.extend * width)
    if extra:
        fall = 0.5 + 0.5 * torch.cos(torch.linspace(0, math.pi, extra + 1).to(image))[1:]
        image = torch.cat([image[:, :1] * fall.flip(0), image, image[:, -1:] * fall], -1)
    left, right = (max(n - extra, 0) for n in more)
    image = torch.nn.functional.pad(image, (left, right))
    length = 1 << math.ceil(math.log2(2 * image.shape[-1]))
    response = filter.response(length, spacing).to(image)
    found = torch.fft.irfft(torch.fft.rfft(image, length) * response, length)
    first = left + extra - more[0]
    return found[..., first : first + more[0] + width + more[1]]
