"""The films of a registration: checked, brought to a level's resolution, and compared with renders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import ImageError, RegistrationError
from xreg.geometry import Camera
from xreg.geometry._numbers import as_tensor
from xreg.registration.anatomy import Anatomy, anatomy_of
from xreg.registration.settings import Level, Settings
from xreg.registration.unknowns import State, Unknowns, ViewFreedom
from xreg.similarity import Evidence, combine, evaluate

FOOTPRINT = 0.02  # part of the densest ray above which a pixel is in a body's shadow
COVERED = 0.5  # part of a coarse pixel that must be valid
FEWEST = 8  # coarse pixels that a film's shorter side keeps, where it has as many


@dataclass(frozen=True)
class View:
    """A film at full resolution, which of its pixels count, and its camera.

    level: what was subtracted from the film, so that single precision holds its contrast.
    """

    film: Float[Tensor, "H W"]
    mask: Bool[Tensor, "H W"]
    camera: Camera
    level: float = 0.0


@dataclass(frozen=True)
class Target:
    """A view at one level: binned pixels, and how a camera is made to fit them.

    Renders are made `n / pool` times coarser than the film and averaged by `pool`, so that coarse pixels
    are areas.  cut: the part of the film that is looked at, (top, left, height, width) in its own pixels.
    """

    film: Float[Tensor, "H W"]
    mask: Bool[Tensor, "H W"]
    cut: tuple[int, int, int, int]
    n: int
    pool: int

    def to(self, device: torch.device) -> Target:
        """The same where images are made, so that they are compared there."""
        film, mask = (x.to(device, non_blocking=True) for x in (self.film, self.mask))
        return replace(self, film=film, mask=mask)

    def fine(self, camera: Camera) -> Camera:
        """The camera of the renders."""
        return camera.crop(*self.cut).bin(self.n // self.pool)

    def average(self, images: Float[Tensor, "C H W"]) -> Float[Tensor, "C h w"]:
        """Renders brought to the film's pixels."""
        return F.avg_pool2d(images, self.pool) if self.pool > 1 else images


def parts_of(film: Any, camera: Camera | None, mask: Any) -> tuple[Any, Camera | None, Any]:
    """Film, camera and mask of a `Radiograph`, unless camera and mask are given; else these as they are."""
    if not hasattr(film, "line_integrals"):
        return film, camera, mask
    camera = film.camera if camera is None else camera
    return film.line_integrals, camera, film.mask if mask is None else mask


def check_view(film: Any, mask: Any, camera: Camera | None) -> View:
    """A view from what a user has: a film as an array or a `Radiograph`, and its camera."""
    film, camera, mask = parts_of(film, camera, mask)
    if camera is None:
        raise RegistrationError("register needs a camera: pass one, or a radiograph whose header has one")
    if camera.batch_shape:
        raise RegistrationError(
            f"register takes one camera a film, got a batch of shape {tuple(camera.batch_shape)}"
        )
    film = _numbers_of(film, "film").double()
    if tuple(film.shape) != tuple(camera.size):
        raise ImageError(
            f"film must have the camera's size {tuple(camera.size)} (H, W), got {tuple(film.shape)}; crop or "
            "bin the camera along with the film (camera.crop, camera.bin)"
        )
    valid = torch.ones(film.shape, dtype=torch.bool) if mask is None else _numbers_of(mask, "mask")
    if valid.is_floating_point() and not bool(torch.isfinite(valid).all()):
        raise ImageError("mask holds NaN or infinite pixels; make it true where a pixel counts")
    valid = valid.bool()
    if valid.shape != film.shape:
        raise ImageError(f"mask must have the film's shape {tuple(film.shape)}, got {tuple(valid.shape)}")
    if not bool(torch.isfinite(film[valid]).all()):
        raise ImageError("film holds NaN or infinite pixels; mask them out or repair them")
    level = film[valid].mean()
    if not bool(valid.any()) or float(film[valid].std()) < 1e-12 * max(1.0, abs(float(level))):
        raise ImageError("film has no contrast inside the mask: every valid pixel is the same")
    # poses and cameras stay on the host; a level's `Target` goes where its images are made
    return View(torch.where(valid, film - level, 0.0).float(), valid, camera.to("cpu"), float(level))


def _numbers_of(value: Any, name: str) -> Tensor:
    """A film or mask as a tensor of real numbers on the host."""
    try:
        found = as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ImageError(f"{name} must be an image of numbers [H, W], got {value!r:.80}") from error
    if found.is_complex():
        raise ImageError(f"{name} must hold real numbers, got {found.dtype}")
    return found


def check_views(film: Any, mask: Any, camera: Any) -> list[View]:
    """The views of one film, or of several with as many cameras (a list or a `Rig`)."""
    if not isinstance(film, (list, tuple)):
        if camera is not None and not isinstance(camera, Camera):
            raise RegistrationError("one film takes one camera; give several films as a list")
        return [check_view(film, mask, camera)]
    cameras = [camera] if isinstance(camera, Camera) else list(camera or [None] * len(film))
    masks = [None] * len(film) if mask is None else list(mask)
    if not film or not len(film) == len(cameras) == len(masks):
        raise RegistrationError(
            f"several views need as many films, cameras and masks, got {len(film)}, {len(cameras)} and "
            f"{len(masks)}"
        )
    return [check_view(f, m, c) for f, m, c in zip(film, masks, cameras, strict=True)]


def pixel_at(camera: Camera, point: Float[Tensor, " 3"]) -> float:
    """How many mm at a world point a pixel of a view covers."""
    depth = (
        1.0
        if camera.parallel
        else float((camera.camera_from_world @ torch.cat([point, point.new_ones(1)]))[2])
    )
    return abs(depth) / float(camera.focal.mean())


def binning(view: View, level: Level) -> int:
    """How many pixels of the film a level takes as one, along each axis.

    A long and narrow film is binned less, so that something is left of its shorter side.
    """
    if level.pixels is None:
        return 1
    longer, shorter = max(view.camera.size), min(view.camera.size)
    return max(1, min(math.ceil(longer / level.pixels), shorter // FEWEST))


def target_of(view: View, level: Level) -> Target:
    """The view binned to a level's resolution: means over the valid pixels of each block.

    A block counts where half of it is valid and the rest are scattered pixels or thin lines; one that lies
    across the edge of the field does not, for its mean would belong to another place.
    """
    n = binning(view, level)
    pool = 2 if n % 2 == 0 and n >= 4 else 1
    height, width = (s // n * n for s in view.camera.size)
    film, mask = view.film[:height, :width], view.mask[:height, :width].float()
    if any(term.kind == "ssd" for term in level.terms):  # compares values, not only contrast
        film = film + view.level
    small, known, inside = F.avg_pool2d(torch.stack([film * mask, mask, _without_specks(mask)]), n)
    # A whole block is not divided by a one that pooling has rounded.
    small = torch.where(known > 0.999, small, small / known.clamp_min(1e-6))
    return Target(small, (known >= COVERED) & (inside > 0.999), (0, 0, height, width), n, pool)


def _without_specks(mask: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """The mask with holes of up to two pixels' width filled; its outer edge stays."""
    grown = F.max_pool2d(mask[None], 3, 1, 1)
    return 1 - F.max_pool2d(1 - grown, 3, 1, 1)[0]


def in_shadow(
    target: Target, unknowns: Unknowns, state: State, view: int, margin: float, settings: Settings
) -> Target:
    """The part of a target that lies within margin (mm at the body) of a body's shadow."""
    camera = target.fine(unknowns.camera(state, view))
    image = sum(anatomy_of(body.volume, settings.beam).render(camera, pose).cpu()
                for body, pose in zip(unknowns.bodies, state.poses, strict=True))  # fmt: skip
    image = target.average(image[None])[0]
    pixel = pixel_at(camera, unknowns.center(state, 0)) * target.pool
    reach = max(1, round(margin / pixel))
    shadow = F.max_pool2d((image > FOOTPRINT * image.max()).float()[None], 2 * reach + 1, 1, reach)[0] > 0.5
    return _cropped(replace(target, mask=target.mask & shadow))


def _cropped(target: Target) -> Target:
    """The target cut to where its mask is true: a bone in a large film need not cost as much as the film."""
    if not bool(target.mask.any()):
        return target
    rows, columns = (target.mask.any(axis).nonzero().flatten() for axis in (1, 0))
    (top, bottom), (left, right) = (
        _with_border(at, n) for at, n in zip((rows, columns), target.mask.shape, strict=True)
    )
    part, n = (slice(top, bottom), slice(left, right)), target.n
    return replace(
        target,
        film=target.film[part],
        mask=target.mask[part],
        cut=(target.cut[0] + top * n, target.cut[1] + left * n, (bottom - top) * n, (right - left) * n),
    )


def _with_border(at: Tensor, size: int) -> tuple[int, int]:
    """From the first to the last of some indices, with a pixel around for the Sobel kernel."""
    return max(int(at[0]) - 1, 0), min(int(at[-1]) + 2, size)


def look(
    targets: Sequence[Target], unknowns: Unknowns, state: State, level: Level, settings: Settings
) -> Evidence:
    """What all views say about a state."""
    parts = [
        _look_at(target, unknowns, state, number, level, settings) for number, target in enumerate(targets)
    ]
    whole = combine(parts, [1 / len(parts)] * len(parts))
    return replace(whole, parts=tuple(parts))


def _look_at(
    target: Target, unknowns: Unknowns, state: State, view: int, level: Level, settings: Settings
) -> Evidence:
    free = unknowns.freedom_of(view)
    camera = target.fine(unknowns.camera(state, view))
    image, blocks, changes = 0.0, [], 0.0
    for number, (body, pose) in enumerate(zip(unknowns.bodies, state.poses, strict=True)):
        anatomy = anatomy_of(body.volume, settings.beam)
        more = (
            None
            if free is None
            else _camera_rays(anatomy, target, unknowns.cameras[view], *free, state, pose)
        )
        one, jacobian = anatomy.render_with_jacobian(
            camera, pose, center=unknowns.center(state, number), more=more
        )
        if blocks:  # on the device of the first body
            one, jacobian = one.to(image), jacobian.to(image)
        image = image + one
        blocks.append(jacobian[:6])
        changes = changes + jacobian[6:]
    columns = list(range(6 * len(blocks)))
    if free is not None:
        blocks.append(changes)
        columns += [6 * len(unknowns.bodies) + k for k in range(free[1].start, free[1].stop)]
    both = target.average(torch.cat([image[None], *blocks])).to(target.film.device)
    found = evaluate(both[0], both[1:], target.film, target.mask, level.terms, robust=settings.robust)
    return _spread(found, columns, unknowns.count)


def _camera_rays(
    anatomy: Anatomy,
    target: Target,
    camera: Camera,
    freedom: ViewFreedom,
    at: slice,
    state: State,
    pose: Tensor,
) -> Float[Tensor, "K 6 3"]:
    """Derivatives of the rays in a body by central differences of a view's unknowns.

    Rays are eighteen float64 numbers a view, so this costs nothing and is good to nine digits.
    """
    rows, here = [], state.changes[at]
    for k, sigma in enumerate(freedom.sigmas):
        h = torch.zeros_like(here)
        h[k] = 1e-4 * sigma
        ends = [anatomy.rays(target.fine(freedom.camera(camera, here + way * h)), pose) for way in (1, -1)]
        rows.append((ends[0] - ends[1]) / (2 * h[k]))
    return torch.stack(rows)


def _spread(evidence: Evidence, columns: list[int], count: int) -> Evidence:
    """An evidence about some unknowns as one about all."""
    if len(columns) == count:
        return evidence
    at = torch.tensor(columns)
    gradient = torch.zeros(count, dtype=torch.float64)
    hessian, scatter = (
        torch.zeros(count, count, dtype=torch.float64),
        torch.zeros(count, count, dtype=torch.float64),
    )
    gradient[at] = evidence.gradient
    hessian[at[:, None], at] = evidence.hessian
    scatter[at[:, None], at] = evidence.scatter
    return replace(evidence, gradient=gradient, hessian=hessian, scatter=scatter)
