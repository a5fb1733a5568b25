"""Films whose pose is known, and how far a pose is from the truth.

The film comes from another integrator than registration uses (Siddon on float voxels, not Joseph on
int16), on a detector twice as fine that is averaged in intensity, with quantum noise, a scatter-like
background, a curve and gain that registration does not know, and a collimator.  `random_look` draws these
anew for each film and lays metal tools over it that no mask shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

import xreg
from xreg.geometry import Camera, se3
from xreg.volume import Volume

SDD, SOD, FIELD_MM = 1020.0, 850.0, 400.0
BONE_PER_MM = 0.028


@dataclass(frozen=True)
class Look:
    """What makes a film of an ideal image.

    photons: per pixel in air.  scatter: part of the open beam, low in frequency.  gamma, gain, offset: the
    curve of the line integrals as the film shows them.  blades: covered at the top, bottom, left, right,
    parts of the side.  tools: metal rods as (u, v, angle, length, width), parts of the side and radians.
    """

    photons: float = 2.0e4
    scatter: float = 0.02
    gamma: float = 0.85
    gain: float = 1.3
    offset: float = 0.2
    blades: tuple[float, float, float, float] = (12 / 256, 8 / 256, 10 / 256, 16 / 256)
    tools: tuple[tuple[float, float, float, float, float], ...] = ()


TOOL = 2.5  # line integral through a tool


def random_look(seed: int) -> Look:
    """A film's look drawn at random, with one or two tools in view."""
    rng = np.random.default_rng(10_000 + seed)
    tools = tuple(
        (
            *rng.uniform(0.25, 0.75, 2),
            rng.uniform(0, math.pi),
            rng.uniform(0.2, 0.5),
            rng.uniform(0.012, 0.04),
        )
        for _ in range(rng.integers(1, 3))
    )
    return Look(
        photons=float(10 ** rng.uniform(3.5, 4.7)), scatter=float(rng.uniform(0, 0.05)),
        gamma=float(rng.uniform(0.7, 1.2)), gain=float(rng.uniform(0.5, 2.0)),
        offset=float(rng.uniform(-0.3, 0.5)), blades=tuple(rng.uniform(0, 0.12, 4)), tools=tools,
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One registration problem: a film with its mask and camera, the true pose and the start."""

    film: Float[Tensor, "H W"]
    mask: Bool[Tensor, "H W"]
    camera: Camera
    truth: Float[Tensor, "4 4"]
    start: Float[Tensor, "4 4"]
    primary: float
    secondary: float


def make_case(
    volume: Volume,
    size: int,
    seed: int,
    offset: tuple[float, float] = (20.0, 10.0),
    *,
    look: Look = Look(),
    field_mm: float = FIELD_MM,
) -> Case:
    """A random view (±40°, ±15°), a random true pose, and a start off by up to (mm, degrees) on each axis."""
    rng = np.random.default_rng(seed)
    primary, secondary = rng.uniform(-40, 40), rng.uniform(-15, 15)
    camera = Camera.c_arm(
        sdd=SDD, sod=SOD, primary=primary, secondary=secondary, size=(size, size), spacing=field_mm / size,
        isocenter=volume.center,
    )  # fmt: skip
    truth = se3.retract(torch.eye(4, dtype=torch.float64), _twist(rng, 10.0, 5.0), volume.center)
    middle = se3.apply(truth, volume.center[None])[0]
    start = se3.retract(truth, _twist(rng, *offset), middle)
    film, mask = take(volume, camera, truth, seed, look)
    return Case(film, mask, camera, truth, start, float(primary), float(secondary))


def _twist(rng: np.random.Generator, mm: float, degrees: float) -> Tensor:
    turn = rng.uniform(-1, 1, 3) * math.radians(degrees)
    return torch.from_numpy(np.concatenate([turn, rng.uniform(-mm, mm, 3)]))


def take(
    volume: Volume, camera: Camera, pose: Tensor, seed: int, look: Look = Look()
) -> tuple[Tensor, Tensor]:
    """A film [H, W] and its mask."""
    height, width = camera.size
    fine = camera.resize((2 * height, 2 * width))
    ideal = xreg.drr(volume, fine, pose, integrator="siddon", storage="float")
    beam = F.avg_pool2d(torch.exp(-ideal - TOOL * _tools(fine.size, look))[None], 2)[0]
    counts = torch.poisson(beam * look.photons, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    seen = counts / look.photons + look.scatter * (1 - 0.4 * x**2 - 0.3 * y**2)
    film = (-torch.log(seen.clamp_min(1e-4))).clamp_min(0) ** look.gamma * look.gain + look.offset
    top, bottom, left, right = (
        round(b * n) for b, n in zip(look.blades, (height, height, width, width), strict=True)
    )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : height - bottom, left : width - right] = True
    return torch.where(mask, film, torch.tensor(0.1)), mask


def _tools(size: tuple[int, int], look: Look) -> Tensor:
    """1 where a tool is."""
    height, width = size
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    found = torch.zeros(size)
    for at_u, at_v, angle, length, thick in look.tools:
        along = (u - at_u) * math.cos(angle) + (v - at_v) * math.sin(angle)
        across = -(u - at_u) * math.sin(angle) + (v - at_v) * math.cos(angle)
        found[(along.abs() < length / 2) & (across.abs() < thick / 2)] = 1.0
    return found


@lru_cache(maxsize=4)
def bone_points(volume: Volume, count: int = 400) -> Float[Tensor, "N 3"]:
    """Random voxels of bone, mm, the same ones each time."""
    index = (volume.mu > BONE_PER_MM).nonzero()
    chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(1))[:count]
    return se3.apply(volume.affine, index[chosen].flip(1).double())
