"""Annotated radiographs of a labelled CT: the film, and for each structure where and how thick it lies in it.

What PAXRay (C. Seibold et al., "Detailed annotations of chest X-rays via CT projection for report
understanding", BMVC 2022) does for chest films, for any labels and any view.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from xreg.errors import FileError, ShapeError
from xreg.geometry import Camera, se3
from xreg.io import VoxelGrid, atomic_write, read_json, save_image, write_json
from xreg.io.tensors import save_tensors
from xreg.pictures import colour, grey, save_picture
from xreg.renderer import drr, pose_of
from xreg.shape.centroids import middles_of
from xreg.shape.films import label_depth, label_thickness
from xreg.volume import Volume

SCHEMA = "xreg.annotation/1"
LEAST_MM = 1.0  # of a structure along a ray, from which its pixel is in the mask
_NAMED = 40  # structures, from which names would hide the film
_EDGE = 0.5  # px: a structure this near to the border of the film, or nearer, is cut off


@dataclass(frozen=True, eq=False)
class Structure:
    """One label in a film.

    box: (u0, v0, u1, v1) px, first and last column and row of its mask; None: no pixel.
    center: its centroid in the world (RAS mm); pixel: that point in the film; in_film: whether it lies there.
    cut: whether the mask touches the border, so that a part may lie outside.
    """

    number: int
    name: str
    pixels: int
    box: tuple[int, int, int, int] | None
    center: tuple[float, float, float]
    pixel: tuple[float, float] | None
    in_film: bool
    cut: bool
    mean_thickness_mm: float
    mean_depth_mm: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(self.__dict__)


@dataclass(frozen=True, eq=False)
class Annotated:
    """A film with its structures, in the order of the channels.

    film: line integrals [H, W], no unit.  thickness: mm of each structure along each ray [S, H, W].
    depth: its mean distance from the camera's plane z = 0 (through the source; where a parallel beam starts),
    mm, 0 off the structure.
    masks: where a structure is at least ``least_mm`` thick; structures overlap, as shadows do.
    """

    film: Float[Tensor, "H W"]
    thickness: Float[Tensor, "S H W"]
    depth: Float[Tensor, "S H W"]
    structures: tuple[Structure, ...]
    camera: Camera
    least_mm: float = LEAST_MM

    @property
    def masks(self) -> Bool[Tensor, "S H W"]:
        """Where each structure shows."""
        return self.thickness >= self.least_mm


def annotate(
    volume: Volume,
    camera: Camera,
    world_from_body: Float[Tensor, "4 4"] | None = None,
    *,
    least_mm: float = LEAST_MM,
    only: Sequence[int] | None = None,
) -> Annotated:
    """Film and annotations of a labelled volume, in one view.

    world_from_body: where the volume is, by default where its affine says.  only: numbers of the structures
    wanted, by default all; those without a voxel are left out.
    Raises ShapeError for a volume without labels, or a view in which none of them shows; GeometryError where
    the camera does not see the volume.
    """
    if volume.labels is None or not bool((volume.labels > 0).any()):
        raise ShapeError("the volume has no labelled voxel; load it with mask=, a label map on its grid")
    pose = pose_of(world_from_body, camera)
    film = drr(volume, camera, pose, integrator="joseph").float()
    # A volume moved by the pose, seen by the camera, is the volume at rest, seen by a camera moved back.
    at_rest = camera.replace(camera_from_world=camera.camera_from_world @ pose.to(camera.device))
    numbers = [n for n in volume.labels.unique().tolist() if n > 0 and (only is None or n in only)]
    if not numbers:
        raise ShapeError(f"none of the structures {list(only or [])} has a voxel in the label map")
    table = torch.zeros(int(volume.labels.max()) + 1, dtype=torch.int16, device=volume.labels.device)
    table[numbers] = torch.arange(1, len(numbers) + 1, dtype=torch.int16, device=table.device)
    compact = table[volume.labels.long()]
    grid = VoxelGrid.of(volume)
    thick = label_thickness(compact, grid, at_rest, len(numbers) + 1)
    depth = label_depth(compact, grid, at_rest, thick)[1:]
    thick = thick[1:]
    middles = se3.apply(pose.cpu(), middles_of(compact, grid, len(numbers) + 1)[1:])
    structures = tuple(
        _structure(n, volume.label_names.get(n, f"label {n}"), middle, (t, d), camera, least_mm)
        for n, middle, t, d in zip(numbers, middles, thick, depth, strict=True)
    )
    if not any(s.pixels for s in structures):
        raise ShapeError(
            "no labelled structure shows in this view: aim the camera at "
            f"{[round(v) for v in middles.mean(0).tolist()]} (RAS mm), or enlarge the film"
        )
    return Annotated(film, thick, depth, structures, camera, least_mm)


def overlay(found: Annotated, *, strength: float = 0.45) -> UInt8[np.ndarray, "H W 3"]:
    """The film with each mask tinted in its colour and outlined, its centroid marked and named."""
    picture = colour(grey(found.film)).astype(np.float32)
    masks = found.masks.cpu().numpy()
    weight = np.zeros(picture.shape[:2], dtype=np.float32)
    tint = np.zeros_like(picture)
    inks = [np.array(ink(n), dtype=np.float32) for n in range(len(masks))]
    for mask, shade in zip(masks, inks, strict=True):
        weight += mask
        tint += mask[..., None] * shade
    some = weight > 0
    mean = tint[some] / weight[some][:, None]
    bright = picture[some].mean(-1, keepdims=True) / 255.0
    picture[some] = (1 - strength) * picture[some] + strength * mean * (0.35 + 0.65 * bright)
    for mask, shade in zip(masks, inks, strict=True):
        picture[outline(mask)] = shade
    shown = [s for s in found.structures if s.in_film and s.pixels]
    for structure in shown:
        _dot(picture, structure.pixel)
    picture = (picture + 0.5).clip(0, 255).astype(np.uint8)
    return _named(picture, shown) if len(shown) <= _NAMED else picture


def ink(number: int) -> tuple[int, int, int]:
    """A colour for the n-th structure; neighbours in the list differ much."""
    r, g, b = colorsys.hsv_to_rgb((number * 0.381966) % 1.0, 0.75, 1.0)
    return round(255 * r), round(255 * g), round(255 * b)


def save_annotated(folder: Path, found: Annotated, *, facts: dict[str, Any] | None = None) -> dict[str, str]:
    """Write a film and its annotations into a folder, which is made; returns the names of the files.

    film.png (16 bit) and film.npy (float32); masks/NUMBER_NAME.png (8 bit, 255 inside); maps.safetensors with
    thickness and depth (float16, mm); overlay.png; annotation.json.  Each is written atomically.  Masks of
    another film that was written there before, as its annotation.json tells, are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    for old in (*_masks_before(folder), folder / "annotation.json"):  # which tells of what lies there
        old.unlink(missing_ok=True)
    film = found.film.detach().cpu().numpy()
    for suffix in ("png", "npy"):
        save_image(folder / f"film.{suffix}", film)
    files = {}
    for structure, mask in zip(found.structures, found.masks.cpu().numpy(), strict=True):
        if structure.pixels:
            name = f"masks/{structure.number:03d}_{_file_name(structure.name)}.png"
            _save_mask(folder / name, mask)
            files[structure.number] = name
    maps = {"thickness_mm": found.thickness.half(), "depth_mm": found.depth.half()}
    order = {"numbers": [s.number for s in found.structures]}
    save_tensors(folder / "maps.safetensors", maps, order, schema=SCHEMA)
    save_picture(folder / "overlay.png", overlay(found))
    structures = [{**s.to_json(), "mask": files.get(s.number)} for s in found.structures]
    record = {
        "schema": SCHEMA,
        **(facts or {}),
        "film": {"file": "film.png", "values": "film.npy", "unit": "line integral of attenuation, no unit",
                 "window": [float(film.min()), float(film.max())]},
        "units": {"pixel": "(u, v), centres at integers", "world": "RAS+ mm"},
        "least_mm": found.least_mm,
        "camera": found.camera.to_dict(),
        "structures": structures,
    }  # fmt: skip
    write_json(folder / "annotation.json", record)
    names = {"annotation": "annotation.json", "film": "film.png", "maps": "maps.safetensors"}
    return {**names, "overlay": "overlay.png"}


def _masks_before(folder: Path) -> list[Path]:
    """Masks that an earlier annotation in this folder names, none where it cannot be read."""
    try:
        record = read_json(folder / "annotation.json")
        names = [Path(one["mask"]).name for one in record["structures"] if one["mask"]]
    except (FileError, KeyError, TypeError):
        return []
    return [folder / "masks" / name for name in names]


def _structure(
    number: int, name: str, middle: Tensor, maps: tuple[Tensor, Tensor], camera: Camera, least_mm: float
) -> Structure:
    thick, depth = maps
    mask = thick >= least_mm
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box, cut = None, False
    height, width = camera.size
    if len(rows):
        box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
        cut = box[0] == 0 or box[1] == 0 or box[2] == width - 1 or box[3] == height - 1
    pixel = camera.project(middle[None])[0]
    seen = bool(pixel.isfinite().all())
    u, v = pixel.tolist()
    inside = seen and -_EDGE <= u <= width - 1 + _EDGE and -_EDGE <= v <= height - 1 + _EDGE
    count = int(mask.sum())
    weight = float(thick[mask].sum()) if count else 0.0
    return Structure(
        number=number,
        name=name,
        pixels=count,
        box=box,
        center=tuple(middle.tolist()),
        pixel=(u, v) if seen else None,
        in_film=inside,
        cut=cut,
        mean_thickness_mm=weight / count if count else 0.0,
        mean_depth_mm=float((depth * thick)[mask].sum()) / weight if count else None,
    )


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a neighbour outside, the film's border being none."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _dot(picture: np.ndarray, pixel: tuple[float, float]) -> None:
    """A white dot with a dark rim at a pixel, drawn in place."""
    rows, columns = np.indices(picture.shape[:2])
    away = np.hypot(columns - pixel[0], rows - pixel[1])
    radius = max(1.5, 0.004 * max(picture.shape[:2]))
    picture[away <= radius + 1.0] = 16.0
    picture[away <= radius] = 255.0


def _named(picture: np.ndarray, shown: Sequence[Structure]) -> UInt8[np.ndarray, "H W 3"]:
    """The picture with names beside the centroids, moved in from the right border."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(max(9, round(0.022 * picture.shape[0])))
    for structure in shown:
        u, v = structure.pixel
        text = structure.name.removeprefix("vertebrae_").replace("_", " ")
        left = min(u + 5, picture.shape[1] - 3 - font.getlength(text))
        look = {"font": font, "anchor": "lm", "stroke_width": 1, "stroke_fill": (16, 16, 16)}
        pen.text((left, v), text, (255, 255, 255), **look)
    return np.asarray(sheet)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name) or "unnamed"


def _save_mask(path: Path, mask: np.ndarray) -> None:
    from PIL import Image

    with atomic_write(path) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")
