"""One training or test case: films with their cameras, and the labels on a grid that they are to give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor

from xreg.errors import FileError, ImageError, ShapeError, XregError
from xreg.geometry import Camera
from xreg.io import VoxelGrid, write_json
from xreg.io.tensors import load_tensors, save_tensors
from xreg.shape.blocks import commonest
from xreg.shape.schemes import SCHEMES, Scheme

SCHEMA = "xreg.shape-sample/1"
TENSORS, FACTS = "sample.safetensors", "sample.json"


@dataclass(frozen=True, eq=False)
class Sample:
    """Films of a patient and, where known, the labels of the anatomy that they show.

    films: float32 [V, H, W], 0 to 1 as `films.normalise` gives them, bright where attenuation is high.
    cameras: one a film, of the film's size, world RAS mm; a parallel beam is a camera too.
    labels: int16 [D, H, W] on ``grid``, numbers of ``scheme``; None for a patient without them.
    known: bool [L], which labels this patient's annotation could hold (a file of vertebrae says nothing about
    ribs, so a voxel that is 0 there may be rib); None: all.  The background's entry is always true.

    Raises ImageError for films, ShapeError for labels, grid, scheme and known that do not fit together.
    """

    films: Float[Tensor, "V H W"]
    cameras: tuple[Camera, ...]
    labels: Int16[Tensor, "D H W"] | None
    grid: VoxelGrid
    scheme: str
    patient: str
    known: Bool[Tensor, " L"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        _check_films(self.films, self.cameras)
        if self.scheme not in SCHEMES:
            raise ShapeError(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if not self.patient:
            raise ShapeError("patient must be a name, so that folds can be made by patient; got an empty one")
        _check_labels(self.labels, self.known, self.grid, SCHEMES[self.scheme])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels, by number."""
        return SCHEMES[self.scheme].names

    def binned(self, n: int) -> Sample:
        """Labels of blocks of n³ voxels, the commonest of each (`commonest`); films as they are."""
        labels = None if self.labels is None else commonest(self.labels, n)
        return replace(self, labels=labels, grid=self.grid.binned(n))

    def to(self, device: torch.device | str) -> Sample:
        """The sample with films, labels, known and cameras on ``device``."""
        labels = None if self.labels is None else self.labels.to(device)
        known = None if self.known is None else self.known.to(device)
        cameras = tuple(camera.to(device) for camera in self.cameras)
        return replace(self, films=self.films.to(device), cameras=cameras, labels=labels, known=known)

    def save(self, folder: str | PathLike) -> None:
        """Write ``sample.safetensors`` (all of it, with a checksum) and ``sample.json`` (for people).

        The folder is made where it is missing.  Each file is written atomically.  Raises FileError.
        """
        place = Path(folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{place}: cannot be made a folder: {error.strerror or error}") from error
        tensors = {"films": self.films, "labels": self.labels, "known": self.known}
        facts = {
            "patient": self.patient,
            "scheme": self.scheme,
            "names": list(self.names),
            "grid": self.grid.to_dict(),
            "cameras": [camera.to_dict() for camera in self.cameras],
        }
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_tensors(place / TENSORS, kept, facts, schema=SCHEMA)
        present = [] if self.labels is None else self.labels.unique().tolist()
        people = {"present": [self.names[n] for n in present if n], "films": list(self.films.shape)}
        write_json(place / FACTS, {"schema": SCHEMA, **facts, **people})

    @classmethod
    def load(cls, folder: str | PathLike) -> Sample:
        """Read what `save` wrote, checked.  Raises FileError for a file that is missing or damaged."""
        file = Path(folder) / TENSORS
        remedy = "run xreg shape prepare again"
        tensors, facts = load_tensors(file, schema=SCHEMA, what="a training sample", remedy=remedy)
        try:
            scheme = facts["scheme"]
            if scheme in SCHEMES and list(SCHEMES[scheme].names) != facts["names"]:
                raise FileError(
                    f"{file}: its scheme {scheme!r} has other names than this version's; {remedy}"
                )
            return cls(
                films=tensors["films"],
                cameras=tuple(Camera.from_dict(camera) for camera in facts["cameras"]),
                labels=tensors.get("labels"),
                grid=VoxelGrid.from_dict(facts["grid"]),
                scheme=scheme,
                patient=facts["patient"],
                known=tensors.get("known"),
            )
        except FileError:
            raise
        except (KeyError, TypeError) as error:
            raise FileError(f"{file}: lacks an entry or holds a wrong one ({error}); {remedy}") from error
        except XregError as error:
            raise FileError(f"{file}: {error}; {remedy}") from error


def _check_films(films: Any, cameras: tuple[Camera, ...]) -> None:
    if not isinstance(films, Tensor) or films.dtype != torch.float32 or films.ndim != 3 or not films.numel():
        what = f"{films.dtype} {tuple(films.shape)}" if isinstance(films, Tensor) else type(films).__name__
        raise ImageError(f"films must be a float32 tensor [V, H, W], got {what}")
    low, high = (float(v) for v in films.aminmax())
    if not (low >= 0.0 and high <= 1.0):  # and not with NaN
        raise ImageError(
            f"films must lie in 0..1, bright where attenuation is high; got {low:g} to {high:g}: use "
            "xreg.shape.films.normalise"
        )
    if len(cameras) != films.shape[0]:
        raise ImageError(f"there must be one camera a film, got {len(cameras)} for {films.shape[0]} films")
    for number, camera in enumerate(cameras):
        if camera.batch_shape or tuple(camera.size) != tuple(films.shape[-2:]):
            raise ImageError(
                f"camera {number} must be one view of {tuple(films.shape[-2:])} px (H, W), the films' size, "
                f"got batch {tuple(camera.batch_shape)} of {tuple(camera.size)}"
            )


def _check_labels(labels: Any, known: Any, grid: VoxelGrid, scheme: Scheme) -> None:
    count = len(scheme.names)
    if known is not None and (
        known.dtype != torch.bool or tuple(known.shape) != (count,) or not bool(known[0])
    ):
        raise ShapeError(
            f"known must be bool [{count}], one entry a label of scheme {scheme.name!r}, true for the "
            f"background, got {known.dtype} {tuple(known.shape)}"
        )
    if labels is None:
        return
    if labels.dtype != torch.int16 or tuple(labels.shape) != grid.shape:
        raise ShapeError(
            f"labels must be int16 of the grid's shape {grid.shape}, got {labels.dtype} {tuple(labels.shape)}"
        )
    present = labels.unique()
    if int(present[0]) < 0 or int(present[-1]) >= count:
        raise ShapeError(
            f"labels must be numbers of scheme {scheme.name!r}, 0 to {count - 1}, got {int(present[0])} to "
            f"{int(present[-1])}"
        )
    if known is not None and not bool(known[present.long().to(known.device)].all()):
        wrong = [scheme.names[n] for n in present.tolist() if not bool(known[n])]
        raise ShapeError(f"labels hold {', '.join(wrong)}, which known says this annotation cannot hold")
