"""Clinical measures of labelled bones, each with its doubt, or the reason why it is not in view.

`measure` takes a label map, and further label maps of the same patient that say how sure the shape is;
`measure_probabilities` draws these from a probability volume.  Definitions stand in the modules.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float, Integer
from torch import Tensor

from ...io.voxel_grid import VoxelGrid
from ..schemes import Scheme
from .femur import femur_measures
from .field import Bones
from .pelvis import pelvic_measures, sacral_plate
from .ribcage import ribcage_volume
from .spine import curves, fit_bodies, heights
from .uncertainty import draw_labels
from .value import Measure, Measures

__all__ = ["Measure", "Measures", "draw_labels", "measure", "measure_probabilities"]


def measure(
    labels: Integer[Tensor, "D H W"],
    grid: VoxelGrid,
    scheme: str | Scheme = "all",
    *,
    samples: Iterable[Integer[Tensor, "D H W"]] = (),
) -> Measures:
    """All measures of a label map [D, H, W] on a grid (RAS mm), in the numbers of a scheme.

    samples: other label maps of the patient on this grid, as likely as this one; the standard deviation over
    them is the doubt of each measure (two are the least).  Raises ShapeError.
    """
    own = _of(labels, grid, scheme)
    others = [_of(sample, grid, scheme) for sample in samples]
    return own.with_spread(others) if others else own


def measure_probabilities(
    probabilities: Float[Tensor, "L D H W"],
    grid: VoxelGrid,
    scheme: str | Scheme = "all",
    *,
    count: int = 16,
    correlation_mm: float = 10.0,
    seed: int = 0,
) -> Measures:
    """All measures of the likeliest label map of a probability volume, with the spread of drawn ones.

    ``count``, ``correlation_mm`` and ``seed`` as in `draw_labels`.  Raises ShapeError.
    """
    drawn = draw_labels(probabilities, grid, count=count, correlation_mm=correlation_mm, seed=seed)
    return measure(probabilities.argmax(0), grid, scheme, samples=drawn)


def _of(labels: Integer[Tensor, "D H W"], grid: VoxelGrid, scheme: str | Scheme) -> Measures:
    bones = Bones(labels, grid, scheme)
    bodies = fit_bodies(bones)
    plate = sacral_plate(bones, bodies)
    femurs = [item for side in ("left", "right") for item in femur_measures(bones, side)]
    return Measures(
        (
            *heights(bodies),
            *curves(bodies, plate),
            *pelvic_measures(bones, plate),
            *femurs,
            ribcage_volume(bones),
        )
    )
