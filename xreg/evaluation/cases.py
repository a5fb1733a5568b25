"""Cases, opened: the volume, the films, where the truth is, and where to start from."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import FileError, GeometryError, ImageError
from xreg.evaluation.manifest import CaseSpec, CtSource, FilmSource, Matrix, RandomStarts
from xreg.geometry import Camera, se3
from xreg.io import Radiograph
from xreg.io.poses import read_camera
from xreg.io.poses import read_pose as pose_in_file
from xreg.volume import Volume

VOLUMES_KEPT = 2  # cases of one CT follow each other, and a CT can be a gigabyte


@dataclass(frozen=True, eq=False)
class Case:
    """Everything that one case needs.

    films: each with its mask and camera.  truth [4, 4]: world_from_body.  landmarks [N, 3]: body points, RAS
    mm.  starts: poses [4, 4] to register from.
    """

    name: str
    volume: Volume
    films: tuple[Radiograph, ...]
    truth: Float[Tensor, "4 4"]
    landmarks: Float[Tensor, "N 3"]
    starts: tuple[Float[Tensor, "4 4"], ...]

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The films' cameras."""
        return tuple(film.camera for film in self.films)


class Shelf:
    """Opens cases, and keeps the last volumes, which cases share.  Threads may use one together."""

    def __init__(self, keep: int = VOLUMES_KEPT) -> None:
        self._keep, self._lock = keep, threading.Lock()
        self._volumes: OrderedDict[Any, Volume] = OrderedDict()

    def open(self, spec: CaseSpec) -> Case:
        """Read the files of a case.  Raises what the readers raise; each message names its file."""
        if spec.deepfluoro is not None:
            return self._deepfluoro(spec)
        volume = self.volume(spec.ct, lambda: _read_ct(spec.ct))
        films = tuple(_read_film(film, volume, camera) for film, camera in _with_cameras(spec))
        truth = read_pose(spec.truth)
        points = _points(spec, volume)
        return Case(spec.name, volume, films, truth, points, starts_of(spec, truth, volume.center))

    def volume(self, key: Any, make: Callable[[], Volume]) -> Volume:
        """A volume, read once while it is in use."""
        with self._lock:  # held while reading, so that two threads do not read the same gigabyte
            if key not in self._volumes:
                self._volumes[key] = make()
            self._volumes.move_to_end(key)
            while len(self._volumes) > self._keep:
                self._volumes.popitem(last=False)
            return self._volumes[key]

    def _deepfluoro(self, spec: CaseSpec) -> Case:
        from xreg.evaluation.deepfluoro import DeepFluoroFile

        source = spec.deepfluoro
        with DeepFluoroFile(source.path) as file:
            volume = self.volume((source.path, source.specimen), lambda: file.volume(source.specimen))
            shot = file.projection(
                source.specimen, source.projection, half_voxel=source.half_voxel, crop_px=source.crop_px
            )
            points = (
                file.landmarks(source.specimen).points if spec.landmarks is None else _points(spec, volume)
            )
        starts = starts_of(spec, shot.world_from_body, volume.center)
        return Case(spec.name, volume, (shot.film,), shot.world_from_body, points, starts)


def starts_of(
    spec: CaseSpec, truth: Float[Tensor, "4 4"], center: Float[Tensor, " 3"]
) -> tuple[Float[Tensor, "4 4"], ...]:
    """The poses that a case starts from; center: the body's middle, RAS mm in the CT."""
    if isinstance(spec.starts, RandomStarts):
        return tuple(random_starts(truth, center, spec.starts, spec.name))
    return tuple(read_pose(start) for start in spec.starts)


def random_starts(
    truth: Float[Tensor, "4 4"], center: Float[Tensor, " 3"], how: RandomStarts, name: str = ""
) -> list[Float[Tensor, "4 4"]]:
    """Poses beside the truth, the same for the same seed and case name, and different for other cases.

    Each is turned about the body's middle (center, RAS mm in the body) round an axis of any direction, and
    moved in any direction; the angle is uniform up to `degrees`, the distance up to `mm`.
    """
    digest = hashlib.sha256(f"{how.seed}/{name}".encode()).digest()
    noise = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    middle = se3.apply(truth, center.to(truth)[None])[0]
    found = []
    for _ in range(how.count):
        axes = torch.randn(2, 3, generator=noise, dtype=torch.float64)
        sizes = torch.rand(2, generator=noise, dtype=torch.float64) * torch.tensor(
            [math.radians(how.degrees), how.mm], dtype=torch.float64
        )
        turn, move = axes / axes.norm(dim=1, keepdim=True) * sizes[:, None]
        # Turned in place and then moved: the translation of a tangent alone would be bent by the rotation.
        turned = se3.retract(truth, torch.cat([turn, torch.zeros(3, dtype=torch.float64)]), middle)
        found.append(se3.from_translation(move) @ turned)
    return found


def read_pose(source: Matrix | Path) -> Float[Tensor, "4 4"]:
    """world_from_body [4, 4] (RAS mm) from numbers, from xreg's JSON or from an ITK transform."""
    if not isinstance(source, Path):
        return se3.require_rigid(torch.tensor(source, dtype=torch.float64), "a pose of the manifest")
    return pose_in_file(source)


def grid_points(volume: Volume) -> Float[Tensor, "8 3"]:
    """Eight points where nobody has marked any: the corners of a box half as wide as the grid, RAS mm."""
    return volume.center + 0.5 * (volume.grid_corners - volume.center)


def _points(spec: CaseSpec, volume: Volume) -> Float[Tensor, "N 3"]:
    if spec.landmarks is None:
        return grid_points(volume)
    if not isinstance(spec.landmarks, Path):
        return torch.tensor(spec.landmarks, dtype=torch.float64)
    from xreg.io.landmarks import load_landmarks

    return load_landmarks(spec.landmarks).points.double()


def _read_ct(source: CtSource) -> Volume:
    volume = Volume.load(source.path, mask=source.mask, **dict(source.options))
    return volume.only(source.labels) if source.labels else volume


def _with_cameras(spec: CaseSpec) -> Sequence[tuple[FilmSource, Camera | None]]:
    if spec.rig is None:
        return [(f, None if f.camera is None else read_camera(f.camera)) for f in spec.films]
    from xreg.io import load_rig

    rig = load_rig(spec.rig)
    if len(rig) != len(spec.films):
        raise FileError(
            f"{spec.rig}: has {len(rig)} cameras for the {len(spec.films)} films of {spec.name!r}"
        )
    return list(zip(spec.films, rig, strict=True))


def _read_film(source: FilmSource, volume: Volume, camera: Camera | None) -> Radiograph:
    from xreg.io import load_radiograph

    options = dict(source.options)
    words = dict(options.pop("geometry", ()))
    if camera is not None:
        words = {"camera": camera}
    else:  # a C-arm's world has its origin at the isocentre; the CT's middle is the custom here
        words.setdefault("isocenter", tuple(volume.center.tolist()))
    try:
        film = load_radiograph(
            source.path, mask="auto" if source.mask is None else source.mask, **options, **words
        )
    except (ImageError, GeometryError) as error:
        raise type(error)(
            str(error) if str(source.path) in str(error) else f"{source.path}: {error}"
        ) from error
    if film.camera is None:
        missing = [name for name in ("spacing", "sdd", "sod") if getattr(film, name) is None]
        raise ImageError(
            f"{source.path}: does not say {', '.join(missing)}; give the film a camera in the manifest, or "
            "these words under geometry"
        )
    return film
