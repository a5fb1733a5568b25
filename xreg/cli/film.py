"""A radiograph for the demo, taken by other means than registration uses.

Registration renders with fixed steps through quantised voxels at one photon energy.  The film is made by
exact intersection with voxels of constant value (Siddon), in float, on a detector three times as fine that
is then averaged in intensity, at another energy; and then as a detector sees it: scatter, quantum noise,
blur, a heel effect, gain and gamma, and a collimator that leaves the rest black.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.geometry import Camera
    from xreg.volume import Volume


@dataclass(frozen=True)
class FilmRecipe:
    """How the film is taken.

    finer: detector elements a pixel, along each side.  energy_kev: effective, of the film's beam.
    photons: in a pixel of the unattenuated beam.  scatter: share of the mean primary intensity, spread wide.
    blur: of the detector, px.  heel: how much the beam weakens from one side to the other.  gamma, gain,
    offset: stored value = gain · intensity^gamma + offset.  blades: what the collimator covers at the left,
    right, top and bottom, in parts of the image; ``tilt`` turns it, degrees.
    """

    finer: int = 3
    energy_kev: float = 58.0
    photons: float = 2.0e4
    scatter: float = 0.4
    blur: float = 0.5
    heel: float = 0.25
    gamma: float = 0.8
    gain: float = 14000.0
    offset: float = 300.0
    blades: tuple[float, float, float, float] = (0.06, 0.04, 0.07, 0.05)
    tilt: float = 3.0

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values."""
        return {"integrator": "siddon", "voxels": "float32", **asdict(self)}


def take_film(
    volume: Volume, camera: Camera, world_from_body: Tensor, *, seed: int, recipe: FilmRecipe = FilmRecipe()
) -> Float[np.ndarray, "H W"]:
    """The film as stored, float32 [H, W]: a power of the beam, exactly 0 behind the collimator."""
    from scipy import ndimage

    from xreg.renderer import drr

    rng = np.random.default_rng(seed)
    height, width = camera.size
    n = recipe.finer
    fine = drr(
        volume.at_energy(recipe.energy_kev),
        camera.resize((n * height, n * width)),
        world_from_body,
        integrator="siddon",
        storage="float",
    ).numpy()
    primary = np.exp(-fine.astype(np.float64)).reshape(height, n, width, n).mean((1, 3))
    field = _field(height, width, recipe)
    scattered = ndimage.gaussian_filter(primary * field, 0.12 * width, mode="constant")
    beam = (primary + recipe.scatter * scattered) * _heel(height, width, recipe)
    counted = rng.poisson(beam * field * recipe.photons) / recipe.photons
    seen = ndimage.gaussian_filter(counted, recipe.blur)
    stored = recipe.gain * seen**recipe.gamma + recipe.offset
    return np.where(field > 0.02, stored, 0.0).astype(np.float32)


def _field(height: int, width: int, recipe: FilmRecipe) -> Float[np.ndarray, "H W"]:
    """How much of the beam passes between the blades: 1 inside, 0 outside, a pixel or two of penumbra."""
    v, u = np.mgrid[:height, :width].astype(float)
    angle = np.radians(recipe.tilt)
    x, y = u - (width - 1) / 2, v - (height - 1) / 2
    x, y = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    left, right, top, bottom = recipe.blades
    inside = np.minimum.reduce(
        [
            x + width / 2 - left * width,
            width / 2 - right * width - x,
            y + height / 2 - top * height,
            height / 2 - bottom * height - y,
        ]
    )
    return np.clip(inside / 1.5 + 0.5, 0.0, 1.0)


def _heel(height: int, width: int, recipe: FilmRecipe) -> Float[np.ndarray, "H W"]:
    """A smooth fall of the beam towards one side."""
    v, u = np.mgrid[:height, :width].astype(float)
    place = (u / width + 0.4 * v / height) / 1.4
    return 1.0 - recipe.heel * place**1.5
