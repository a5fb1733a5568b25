"""How a sacrum lies between the hips: their joints hardly move, and people differ by little.

Seen from the side both hips and the sacrum cover each other, and films alone leave the sacrum's tilt and its
way to the front or the head open.  In the frame of the hips its middle lies within some millimetres of the
same place in the patients of `docs/shape_trials.md`, and its tilt within some degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import roma
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import se3
from xreg.shape.centroids import whole_boxes
from xreg.shape.schemes import Scheme

if TYPE_CHECKING:
    from xreg.shape.sources import Member

PELVIS = ("sacrum", "hip_left", "hip_right")
_FEWEST = 64  # voxels of a bone
_OFF_MM, _TWIST, _TILT = 4.0, 0.07, 0.1  # standard deviations: mm, and turns about other axes and this, rad


@dataclass(frozen=True)
class PelvicRing:
    """Where a sacrum lies, for hips that lie as an atlas has them.

    offset: from the middle of both hips' middles to its middle (RAS), in units of the hips' size.  tilt: its
    turn about the axis to the right (rad), from how an atlas has it; positive, its upper end is further back.
    """

    offset: tuple[float, float, float]
    tilt: float

    @classmethod
    def of(cls, patients: Iterable[Member], names: Scheme) -> PelvicRing | None:
        """The mean of patients with all three bones whole; None without one, or in other schemes.

        An atlas has hips and sacra as its patients do on average, with some that lack the others.
        """
        if not set(PELVIS) <= set(names.names):
            return None
        found = [{name: one for name, one in _bones(p, names) if name in PELVIS} for p in patients]
        rings = [bones for bones in found if len(bones) == len(PELVIS)]
        if not rings:
            return None
        usual = {
            name: float(np.mean([bones[name].tilt for bones in found if name in bones])) for name in PELVIS
        }
        hips = (usual["hip_left"] + usual["hip_right"]) / 2
        offsets, tilts = zip(*(_within(bones, hips) for bones in rings), strict=True)
        more = float(np.mean(tilts)) - (usual["sacrum"] - hips)
        return cls(tuple(np.mean(offsets, 0).tolist()), -more)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"offset": list(self.offset), "tilt": self.tilt}

    @classmethod
    def from_json(cls, known: dict[str, Any] | None) -> PelvicRing | None:
        """What `to_json` gave; None of None.  KeyError, TypeError where it is another thing."""
        return None if known is None else cls(tuple(known["offset"]), float(known["tilt"]))

    def off(
        self, places: Float[Tensor, "3 3"], turns: Float[Tensor, "3 3"], size: Tensor
    ) -> Float[Tensor, ""]:
        """How far a sacrum lies from where the hips say, in squared standard deviations, summed.

        places: mm, of sacrum, left and right hip.  turns: theirs, from how the atlas has them, rotation
        vectors (rad).  size: the hips', mm.  Gradients flow to all.
        """
        middle, turn = (places[1] + places[2]) / 2, (turns[1] + turns[2]) / 2
        offset = places.new_tensor(self.offset) * size
        wanted = middle + roma.rotvec_to_rotmat(turn) @ offset
        right = F.normalize(places[2].detach() - places[1].detach(), dim=0)
        twist = turns[0] - turn
        tilt = twist @ right
        across = twist - tilt * right
        return (
            ((places[0] - wanted) / _OFF_MM).square().sum()
            + (across / _TWIST).square().sum()
            + ((tilt - self.tilt) / _TILT).square()
        )


@dataclass(frozen=True)
class _Bone:
    """A bone's middle (RAS mm), size (mm), and its longest axis' tilt in the sagittal plane (rad).

    A tilt is positive to the front at the upper end.
    """

    middle: np.ndarray
    size: float
    tilt: float


def _bones(patient: Member, names: Scheme) -> Iterable[tuple[str, _Bone]]:
    """A patient's whole bones."""
    labels = patient.labels.cpu().numpy()
    for number, box in whole_boxes(labels, _FEWEST):
        if names.names[number] not in PELVIS:
            continue
        index = np.argwhere(labels[box] == number) + [s.start for s in box]
        points = se3.apply(patient.grid.affine.cpu(), torch.from_numpy(index[:, ::-1].astype(float))).numpy()
        middle = points.mean(0)
        side = (points - middle)[:, 1:]
        along = np.linalg.eigh(side.T @ side)[1][:, -1]
        tilt = math.atan(along[0] / along[1]) if abs(along[1]) > 1e-9 else math.pi / 2
        yield names.names[number], _Bone(middle, (len(index) * patient.grid.voxel_mm3) ** (1 / 3), tilt)


def _within(bones: dict[str, _Bone], usual: float) -> tuple[np.ndarray, float]:
    """The sacrum's offset between hips tilted to ``usual``, in their size, and its tilt to them."""
    sacrum, left, right = (bones[name] for name in PELVIS)
    tilt = (left.tilt + right.tilt) / 2
    turn = roma.rotvec_to_rotmat(torch.tensor([tilt - usual, 0.0, 0.0], dtype=torch.float64)).numpy()
    offset = turn @ (sacrum.middle - (left.middle + right.middle) / 2) / ((left.size + right.size) / 2)
    return offset * [0.0, 1.0, 1.0], sacrum.tilt - tilt
