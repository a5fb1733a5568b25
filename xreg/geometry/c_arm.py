"""The angles of a C-arm, as DICOM names them, and the rotation that they mean.

World is RAS+ (x to the patient's right, y anterior, z to the head); the patient lies supine with the head at
+z. At primary = secondary = 0 the patient faces the detector: the source is posterior, the detector
anterior. Primary turns about z and is positive towards LAO (the detector moves to the patient's left, −x);
secondary then tilts the detector towards the head when positive (cranial). Angles are degrees.

Source: DICOM PS3.3, C.8.7.5 (XA Positioner), PositionerPrimaryAngle (0018,1510), SecondaryAngle (0018,1511).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.geometry import se3

# Camera axes in the world at 0/0, as columns: x to the patient's right, y to the feet, z anterior.
_AXES_AT_ZERO = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))


def gantry_rotation(
    primary: Float[Tensor, "*batch"],
    secondary: Float[Tensor, "*batch"],
    roll: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation part of world_from_camera: Rz(primary)·Rx(secondary)·B·Rz(roll).

    B holds the camera axes at 0/0 (x to the patient's right, y to the feet, z anterior); ``roll`` turns the
    camera about its own viewing axis. Degrees; batch dimensions broadcast; all carry gradients.
    """
    primary, secondary, roll = torch.broadcast_tensors(primary, secondary, roll)
    cp, sp = _cos_sin(primary)
    cs, ss = _cos_sin(secondary)
    cr, sr = _cos_sin(roll)
    o, i = torch.zeros_like(cp), torch.ones_like(cp)
    rz = _matrix(cp, -sp, o, sp, cp, o, o, o, i)
    rx = _matrix(i, o, o, o, cs, -ss, o, ss, cs)
    turn = _matrix(cr, -sr, o, sr, cr, o, o, o, i)
    axes = torch.tensor(_AXES_AT_ZERO, dtype=cp.dtype, device=cp.device)
    return rz @ rx @ axes @ turn


def gantry_angles(
    rotation: Float[Tensor, "*batch 3 3"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return (primary, secondary, roll) in degrees of a world_from_camera rotation: gantry_rotation undone.

    Secondary lies in [−90, 90]. At ±90 only primary ± roll is defined, and roll is then given as zero.
    """
    right, down, beam = rotation.unbind(-1)
    flat = torch.hypot(beam[..., 0], beam[..., 1])
    secondary = torch.atan2(beam[..., 2], flat)
    pole = flat < 1e-9
    x, y = torch.where(pole, right[..., 0], beam[..., 1]), torch.where(pole, right[..., 1], -beam[..., 0])
    primary = torch.atan2(y, x)
    roll = torch.where(
        pole,
        torch.zeros_like(flat),
        torch.atan2(-right[..., 2], torch.where(pole, torch.ones_like(flat), -down[..., 2])),
    )
    return torch.rad2deg(primary), torch.rad2deg(secondary), torch.rad2deg(roll)


def beam_angles(
    direction: Float[Tensor, "*batch 3"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Return (primary, secondary) in degrees of a beam that runs along ``direction`` (world, any length)."""
    x, y, z = direction.unbind(-1)
    return torch.rad2deg(torch.atan2(-x, y)), torch.rad2deg(torch.atan2(z, torch.hypot(x, y)))


def half_turns(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "2 4 4"]:
    """Return half turns about the detector's v and u axes: each shows a body from behind.

    rotation: that of world_from_camera.  The turns are in the world, about its origin (`se3.about`).
    """
    axes = rotation.T[[1, 0]]
    return se3.exp(torch.cat([math.pi * axes, torch.zeros_like(axes)], dim=-1))


def _cos_sin(degrees: Tensor) -> tuple[Tensor, Tensor]:
    radians = torch.deg2rad(degrees)
    return radians.cos(), radians.sin()


def _matrix(*entries: Tensor) -> Float[Tensor, "*batch 3 3"]:
    return torch.stack(entries, dim=-1).reshape(*entries[0].shape, 3, 3)
