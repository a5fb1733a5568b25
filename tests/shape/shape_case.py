"""A small body of four bones with films, for tests of networks."""

import builtins
import importlib
from pathlib import Path

import torch

from xreg.geometry import Camera
from xreg.io import VoxelGrid
from xreg.shape.film_cases import FilmVariation
from xreg.shape.films import normalise
from xreg.shape.patients import Patient
from xreg.shape.samples import Sample
from xreg.shape.schemes import SCHEMES
from xreg.shape.shipped import grid_camera

SPINE = SCHEMES["spine"]
STILL = FilmVariation(
    (4.0, 4.0),
    (1.0, 1.0),
    aspect=0,
    degrees=0,
    bend=0,
    body=0,
    gamma=1,
    shade=0,
    veil=0,
    sharpness=0,
    noise=0,
)
SHAPE = (32, 24, 24)
SPACING = 4.0


def body(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Four ellipsoids, L1 (20) to L4 (23) from the top, a little elsewhere for each seed."""
    shift = torch.rand(3, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    depth, height, width = shape
    k, j, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    labels = torch.zeros(shape, dtype=torch.int16)
    for n in range(4):
        at = torch.tensor([depth * (0.8 - 0.2 * n), height * 0.5, width * 0.45 + n]) + shift
        inside = ((k - at[0]) / 2.6) ** 2 + ((j - at[1]) / 4) ** 2 + ((i - at[2]) / 5) ** 2 < 1
        labels[inside] = 20 + n
    return labels


def grid(shape: tuple[int, int, int] = SHAPE) -> VoxelGrid:
    return VoxelGrid.box(shape, [n * SPACING for n in reversed(shape)], (10.0, -5.0, 20.0))


def films_of(labels: torch.Tensor, space: VoxelGrid, cameras: tuple[Camera, ...]) -> torch.Tensor:
    from xreg.shape.films import make_films

    hu = torch.where(labels > 0, 600.0 + 30.0 * labels, 20.0)
    return normalise(make_films(hu, space, cameras))


def sample(
    patient: str = "a", seed: int = 0, *, cameras: tuple[Camera, ...] | None = None, known=None
) -> Sample:
    space = grid()
    cameras = (grid_camera(space, 1), grid_camera(space, 0)) if cameras is None else cameras
    labels = body(seed)
    return Sample(films_of(labels, space, cameras), cameras, labels, space, "spine", patient, known)


def prepare(folder: Path, *names: str) -> None:
    """Samples with their patients beside them, as `xreg shape prepare` leaves them."""
    for n, name in enumerate(names):
        case = sample(name, n)
        case.save(folder / name)
        Patient.from_labels(case.labels, case.grid, name, scheme="spine").save(folder / name)


def c_arms(size: tuple[int, int] = (48, 40)) -> tuple[Camera, ...]:
    """Two perspective views, neither square to the other."""
    known = {"sdd": 1000.0, "sod": 700.0, "size": size, "spacing": 4.0, "isocenter": (10.0, -5.0, 20.0)}
    return tuple(Camera.c_arm(primary=p, secondary=s, **known) for p, s in ((5, 3), (80, -4)))


def missing(monkeypatch, package: str) -> None:
    """Make imports of a package fail."""
    plain_import, plain_module = builtins.__import__, importlib.import_module

    def fail(name: str, *words, **known):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return plain_import(name, *words, **known)

    def fail_module(name: str, *words):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return plain_module(name, *words)

    monkeypatch.setattr(builtins, "__import__", fail)
    monkeypatch.setattr("xreg.optional.import_module", fail_module)
