"""Where bones start by a network's maps of their thickness: the middles of their shadows, triangulated.

Where the masks of two films cross, a visual hull is wider than its bone, mostly behind it, and its middle is
off by centimetres where a view is turned.  The middle of a bone's thickness, though, is its own middle's
image (exactly for parallel beams).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.errors import ShapeError
from xreg.geometry import Camera
from xreg.shape.meeting import Ray, meeting, ray_at
from xreg.shape.networks.views import pixel_mm
from xreg.shape.scene import Scene
from xreg.shape.schemes import Scheme

_AROUND = 1.2  # of a bone's reach, within which its thickness counts for its middle
_SEARCHES = 4  # for that
_ALIKE = 0.5  # cosine of both sides' maps from which a film does not tell them apart
_LOOSE = 0.01  # what the place before counts for, against a film's ray
_ASKEW = 0.15  # of the way from one side to the other, what it goes to the front or the head at most
_MOST_MM = 25.0  # from where the probabilities put a bone: a middle further away is a mistake's


@torch.no_grad()
def started_by_maps(
    scene: Scene, thickness: Float[Tensor, "V L H W"], cameras: Sequence[Camera], names: Scheme
) -> Scene:
    """A scene whose bones start where the middles of their thickness in the films meet.

    thickness: of each label, mm, in the films of ``cameras``.  Films from the side share a hip's or a rib's
    thickness between left and right: where both maps are alike, only the middle of both is taken from them.
    Half from the side, a network may take one side for the other: patients are not turned as far as that.
    Raises ShapeError for cameras of other films.
    """
    for maps, camera in zip(thickness, cameras, strict=True):
        if tuple(maps.shape[-2:]) != tuple(camera.size):
            raise ShapeError(
                f"maps of {tuple(maps.shape[-2:])} px (H, W) have cameras of {tuple(camera.size)} px; give "
                "those of the films that the network read"
            )
    places = scene.place.clone()
    pixels = [pixel_mm(camera, scene.grid.center) for camera in cameras]
    for bones in _both_sides(scene, names):
        maps = thickness[:, [scene.numbers[bone] for bone in bones]]
        if float(maps.flatten(2).amax(2).min()) <= 0:
            continue
        reach = _AROUND * max(float(scene.size[b]) * float(scene.shapes[b].reach.max()) for b in bones)
        apart = float((places[bones[0]] - places[bones[-1]]).norm()) / 2
        views = list(zip(maps, cameras, pixels, strict=True))
        whole = [ray_at(camera, _middle(part.sum(0), (reach + apart) / px)) for part, camera, px in views]
        found = [_met(whole, places[bones].mean(0))] * len(bones)
        if len(bones) > 1:
            clear = [view for view in views if _told_apart(view[0])]
            for n, middle in enumerate(found):
                own = [ray_at(camera, _middle(part[n], reach / px)) for part, camera, px in clear]
                found[n] = _met(own, middle)
        for n, bone in enumerate(bones):
            if float((found[n] - places[bone]).norm()) >= _MOST_MM:
                found[n] = places[bone]
        places[bones] = torch.stack(found if len(bones) == 1 else _abreast(*found))
    return replace(scene, place=places)


def _both_sides(scene: Scene, names: Scheme) -> list[list[int]]:
    """Bones of the scene, each with its other side where that is there."""
    at = {number: bone for bone, number in enumerate(scene.numbers)}
    pairs = {tuple(sorted({n, int(names.mirror[n])} & at.keys())) for n in at}
    return [[at[number] for number in pair] for pair in sorted(pairs)]


def _abreast(a: Float[Tensor, " 3"], b: Float[Tensor, " 3"]) -> list[Float[Tensor, " 3"]]:
    """Both sides' places (RAS), with the line between them along the patient's own axis or nearly so."""
    middle, half = (a + b) / 2, (a - b) / 2
    askew, most = half[1:].norm(), _ASKEW * half[0].abs()
    half = torch.cat([half[:1], half[1:] * (most / askew.clamp_min(1e-6)).clamp_max(1.0)])
    return [middle + half, middle - half]


def _told_apart(maps: Float[Tensor, "2 H W"]) -> bool:
    """Whether a film tells both sides apart."""
    return float(F.cosine_similarity(*maps.flatten(1), dim=0)) < _ALIKE


def _middle(shown: Float[Tensor, "H W"], reach: float) -> Float[Tensor, " 2"]:
    """Pixel (u, v) of the middle of what lies within ``reach`` px of it: networks leave crumbs elsewhere."""
    v, u = (torch.arange(n, dtype=torch.float32) for n in shown.shape)
    weight = shown.square()
    for _ in range(_SEARCHES + 1):
        total = weight.sum().clamp_min(1e-9)
        at = torch.stack([(weight.sum(0) * u).sum(), (weight.sum(1) * v).sum()]) / total
        near = ((v - at[1]).abs() < reach)[:, None] & ((u - at[0]).abs() < reach)
        weight = shown * near
    return at


def _met(rays: Sequence[Ray], start: Float[Tensor, " 3"]) -> Float[Tensor, " 3"]:
    """The point nearest to all rays; of several, as in the depth of a single one, nearest to ``start``."""
    across, known = meeting(rays)
    loose = _LOOSE * torch.eye(3, dtype=torch.float64)
    return torch.linalg.solve(across + loose, known + _LOOSE * start.double()).float()
