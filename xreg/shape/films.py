"""Films of a CT as networks see them: rendered by our projector, stored in a few bits, brought to 0..1.

The films that Swin-X2S ships are parallel projections of max(HU, 0), in HU·mm, held at 32767 and stretched to
8 bits.  (Measured on them: a ray's grey value is a sum over its voxels of a curve that is 0 up to 0 HU and
straight above.)  `FilmLook` has that as its default, and a film model with physics beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int16
from torch import Tensor

from xreg.attenuation import hu_to_mu
from xreg.errors import ImageError, ShapeError
from xreg.geometry import Camera
from xreg.geometry.c_arm import beam_angles
from xreg.io import VoxelGrid
from xreg.renderer import drr
from xreg.volume import Volume
from xreg.xray.film import FilmSettings, expose

AP = (0.0, -1.0, 0.0)  # beam directions, RAS: image columns then grow to the patient's left …
LATERAL = (-1.0, 0.0, 0.0)  # … and to the front, as in Swin-X2S; rows to the feet in both
CEILING = 32767.0  # HU·mm, the largest 16-bit number
_QUANTILES = (0.005, 0.995)
_AT_ONCE = 1 << 20  # pixels whose neighbours are looked at together
_SPECKLE = 0.4  # of the film's range, from which a pixel is no neighbour of those about it
_AIR = -1000.0
_PLAIN = FilmSettings(photons=math.inf, scatter=0.0, blur=0.0)


@dataclass(frozen=True)
class FilmLook:
    """How line integrals become a film.

    kind: "threshold" adds up max(HU - threshold_hu, 0) along the ray in HU·mm and holds it at ``ceiling``;
    "physics" makes attenuation at ``energy_kev`` of the HU and a film of it by ``film`` (`xreg.xray.expose`).
    bits: levels of the stored film, from its lowest to its highest value; None: stored as it is.
    wrap: overshoot of an edge filter, as a part of the step, that is stored modulo the range, as when an
    8-bit film is resampled by splines: speckle at sharp edges.  0: none.
    """

    kind: Literal["threshold", "physics"] = "threshold"
    threshold_hu: float = 0.0
    ceiling: float = CEILING
    energy_kev: float = 70.0
    film: FilmSettings = _PLAIN
    bits: int | None = 8
    wrap: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("threshold", "physics"):
            raise ImageError(f'kind of a film must be "threshold" or "physics", got {self.kind!r}')
        if not (-1024 <= self.threshold_hu <= 3000 and self.ceiling > 0 and 0 <= self.wrap <= 2):
            raise ImageError(
                f"a film needs threshold_hu in -1024..3000, ceiling above 0 HU·mm and wrap in 0..2, got "
                f"{self.threshold_hu}, {self.ceiling}, {self.wrap}"
            )
        if self.bits not in (None, 8, 12, 16):
            raise ImageError(f"bits must be 8, 12, 16 or None, got {self.bits!r}")


def make_films(
    hu: Float[Tensor, "D H W"],
    grid: VoxelGrid,
    cameras: Sequence[Camera],
    look: FilmLook = FilmLook(),
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "V H W"]:
    """Stored films, 0 to 1, of CT numbers on a grid, one a camera; bright where attenuation is high.

    generator: for the photons of a "physics" film that counts them.  All cameras have one size.  Without bits
    gradients flow to ``hu``.  Raises GeometryError where no camera sees the grid, ShapeError where one does
    not, ImageError.
    """
    require_one_size(cameras)
    body = _integrand(hu, grid, look)
    films = []
    for number, camera in enumerate(cameras):
        line = drr(body, camera, integrator="joseph").to(torch.float32)
        if not bool((line.detach() > 0).any()):
            raise ShapeError(
                f"camera {number} sees no part of the anatomy; aim it at {grid.center.tolist()} (RAS mm)"
            )
        line = line.clamp_max(1.0) if look.kind == "threshold" else expose(line, look.film, generator)
        films.append(line)
    return torch.stack([_stored(film, look) for film in films])


def normalise(films: Float[Tensor, "*views H W"]) -> Float[Tensor, "*views H W"]:
    """Films of any range, bright where attenuation is high, as networks take them: float32, 0 to 1.

    Speckle (pixels far from the median of their neighbours) is replaced by that median; then the 0.5 % and
    99.5 % quantiles of each film become 0 and 1.  Training and inference both call this.  Applied to its own
    result it changes little.  No gradient.  Raises ImageError for films that are not finite or have no
    contrast.
    """
    values = torch.as_tensor(films).detach().to(torch.float32)
    if values.ndim < 2 or min(values.shape[-2:]) < 3:
        raise ImageError(f"films must be [..., H, W] of at least 3 × 3 px, got shape {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ImageError("films must be finite; mask or fill pixels that are not")
    flat = despeckle(values.reshape(-1, *values.shape[-2:]))
    low, high = _quantiles(flat.flatten(1))
    wide = low >= high  # so dark, or so small an object, that quantiles meet: its whole range then
    low = torch.where(wide, flat.amin((1, 2)), low)
    high = torch.where(wide, flat.amax((1, 2)), high)
    if bool((low >= high).any()):
        raise ImageError(f"film {int((low >= high).nonzero()[0])} has one value everywhere; nothing is on it")
    scaled = (flat - low[:, None, None]) / (high - low)[:, None, None]
    return scaled.clamp(0.0, 1.0).reshape(values.shape)


def _quantiles(values: Float[Tensor, "V N"]) -> Float[Tensor, "2 V"]:
    """As `torch.quantile`, which takes no more than 16 million values."""
    ranked = values.sort(dim=1).values
    at = values.new_tensor(_QUANTILES, dtype=torch.float64) * (values.shape[1] - 1)
    low = at.long()
    share = (at - low).to(values)[:, None]
    return torch.lerp(ranked[:, low].T, ranked[:, (low + 1).clamp_max(values.shape[1] - 1)].T, share)


def despeckle(films: Float[Tensor, "V H W"]) -> Float[Tensor, "V H W"]:
    """Replace pixels further than 0.4 of a film's range from the median of the 5 × 5 about them."""
    padded = F.pad(films[:, None], (2, 2, 2, 2), mode="reflect")
    count, height, width = films.shape
    rows = max(1, _AT_ONCE // (count * width))  # 25 numbers a pixel are held
    around = torch.cat(
        [
            F.unfold(padded[:, :, top : top + rows + 4], 5).median(dim=1).values.reshape(count, -1, width)
            for top in range(0, height, rows)
        ],
        dim=1,
    )
    extent = films.amax((1, 2), keepdim=True) - films.amin((1, 2), keepdim=True)
    return torch.where((films - around).abs() > _SPECKLE * extent, around, films)


def facing_camera(
    grid: VoxelGrid,
    direction: Any = AP,
    *,
    size: tuple[int, int] | None = None,
    sdd: float | None = None,
    sod: float | None = None,
    tilt: tuple[float, float] = (0.0, 0.0),
    margin: float = 1.0,
) -> Camera:
    """A view along ``direction`` (world) that shows the whole grid, parallel, or from a source.

    tilt: degrees about the patient's axis and then up or down, added to the direction's C-arm angles.  sdd,
    sod (mm): source to detector and to the grid's middle; without them the beam is parallel.  size: (H, W),
    by default about a voxel a pixel.  margin: how much wider the field is than the grid needs.
    """
    primary, secondary = beam_angles(torch.as_tensor(direction, dtype=torch.float64))
    angles = {"primary": primary + tilt[0], "secondary": secondary + tilt[1], "isocenter": grid.center}
    voxel = min(grid.spacing)
    reach = float(torch.linalg.vector_norm(grid.box_corners - grid.center, dim=-1).max())
    if (sdd is None) != (sod is None):
        raise ImageError("a perspective view needs both sdd and sod (mm), a parallel one neither")
    if sod is not None and sod <= reach:
        raise ImageError(f"sod must lie beyond the grid, {reach:.0f} mm from its middle, got {sod} mm")
    if sdd is None:
        make = partial(Camera.parallel_beam, sdd=2 * reach, **angles)
    else:
        make = partial(Camera.c_arm, sdd=sdd, sod=sod, **angles)
    probe = make(size=(3, 3), spacing=1.0)
    half = (probe.project(grid.box_corners) - 1.0).abs().amax(0) * margin  # mm at the detector
    if size is None:
        wide = voxel if sdd is None else voxel * sdd / sod
        size = tuple(max(8, math.ceil(2 * float(half[axis]) / wide)) for axis in (1, 0))
    pitch = max(2 * float(half[1]) / size[0], 2 * float(half[0]) / size[1])
    return make(size=size, spacing=pitch)


def label_thickness(
    labels: Int16[Tensor, "D H W"], grid: VoxelGrid, camera: Camera, count: int
) -> Float[Tensor, "L H W"]:
    """How far each ray runs in each label, mm: one channel a number 0 .. count - 1 (0 is what has no label).

    Borders are soft: a sample gives each of its eight voxels' labels its share.  One march for all.
    """
    return _label_march(torch.ones(grid.shape), labels, grid, camera, count)


def label_depth(
    labels: Int16[Tensor, "D H W"],
    grid: VoxelGrid,
    camera: Camera,
    thickness: Float[Tensor, "L H W"],
) -> Float[Tensor, "L H W"]:
    """Mean distance of each label from the camera's plane z = 0 (its source), mm; 0 off the label's image.

    thickness: what `label_thickness` gave; a pixel with less than 0.01 mm of a label is off it.
    """
    index = [torch.arange(n, dtype=torch.float64) for n in grid.shape]
    row = (camera.camera_from_world.cpu() @ grid.affine)[2]
    depth = row[2] * index[0][:, None, None] + row[1] * index[1][:, None] + row[0] * index[2] + row[3]
    least = float(depth.min())
    moment = _label_march((depth - least + 1.0).float(), labels, grid, camera, thickness.shape[0])
    return torch.where(thickness > 0.01, moment / thickness.clamp_min(0.01) + (least - 1.0), 0.0)


def require_one_size(cameras: Sequence[Camera]) -> None:
    """ImageError unless cameras are single views of one size."""
    sizes = {tuple(camera.size) for camera in cameras}
    if len(sizes) != 1 or any(camera.batch_shape for camera in cameras):
        raise ImageError(f"films of a sample have one size (H, W), one view a camera; got {sorted(sizes)}")


def _label_march(values: Tensor, labels: Tensor, grid: VoxelGrid, camera: Camera, count: int) -> Tensor:
    if int(labels.max()) >= count:
        raise ShapeError(f"labels go up to {int(labels.max())}, and there are {count} channels")
    volume = Volume(values.to(labels.device), grid.affine, labels)
    image = drr(volume, camera, integrator="joseph", storage="float", labels="soft")
    return F.pad(image, (0, 0, 0, 0, 0, count - image.shape[0]))


def _integrand(hu: Tensor, grid: VoxelGrid, look: FilmLook) -> Volume:
    values = torch.as_tensor(hu).to(torch.float32)
    if tuple(values.shape) != grid.shape:
        raise ShapeError(f"hu must have the grid's shape {grid.shape}, got {tuple(values.shape)}")
    if look.kind == "threshold":
        mu = (values - look.threshold_hu).clamp_min(0.0) / look.ceiling
    else:
        mu = hu_to_mu(values.clamp_min(_AIR), look.energy_kev)
    if not bool((mu.detach() > 0).any()):
        raise ShapeError(f"no voxel is denser than {look.threshold_hu:g} HU; is ``hu`` in CT numbers?")
    return grid.volume(mu)


def _stored(film: Tensor, look: FilmLook) -> Tensor:
    """Stretched to 0..1 from the film's lowest to its highest value, in whole levels where bits are given."""
    low, high = film.aminmax()
    film = (film - low) / (high - low).clamp_min(1e-12)
    if look.wrap > 0:
        kernel = torch.tensor([0.25, 0.5, 0.25], dtype=film.dtype, device=film.device)
        padded = F.pad(film[None, None], (1, 1, 1, 1), mode="replicate")
        soft = F.conv2d(padded, torch.outer(kernel, kernel)[None, None])[0, 0]
        film = film + look.wrap * (film - soft)
    if look.bits is None:
        return film.clamp(0.0, 1.0) if look.wrap == 0 else film.remainder(1.0)
    levels = 2**look.bits
    return (film * (levels - 1)).round().remainder(levels).detach() / (levels - 1)
