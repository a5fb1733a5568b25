"""Where a network learns to look: a box of poses about a C-arm, and poses drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError
from xreg.geometry import Camera, se3
from xreg.geometry.c_arm import gantry_angles, gantry_rotation
from xreg.renderer import drr
from xreg.volume import Volume

Interval = tuple[float, float]
ANGLES = ("primary", "secondary", "roll")
OFFSETS = ("lateral", "vertical", "depth")
NAMES = (*ANGLES, *OFFSETS)
SCALE_FLOOR = (math.radians(1.0), 2.0)  # rad, mm: of an interval of no width
SEEN = 0.05  # line integral from which a pixel shows something
_LIMITS = {"primary": 360.0, "secondary": 90.0, "roll": 360.0}
_LOOKS = 64  # coarse poses that must show something of the anatomy


@dataclass(frozen=True)
class PoseRange:
    """A box of poses: how a C-arm's camera may lie to the middle of a volume.

    primary, secondary, roll: (low, high) in degrees, a C-arm's angles as in `Camera.c_arm` (+ is LAO and
    cranial): about the detector's v axis (the patient's own long axis), its u axis, and the beam.  lateral,
    vertical, depth: (low, high) in mm at the body, how far its middle lies from the isocentre along u, v and
    the beam.  sdd, sod: source to detector and to isocentre, mm.  field: side of the (square) detector, mm.
    """

    primary: Interval = (-45.0, 45.0)
    secondary: Interval = (-30.0, 30.0)
    roll: Interval = (-15.0, 15.0)
    lateral: Interval = (-60.0, 60.0)
    vertical: Interval = (-60.0, 60.0)
    depth: Interval = (-80.0, 80.0)
    sdd: float = 1020.0
    sod: float = 850.0
    field: float = 400.0

    def __post_init__(self) -> None:
        for name in NAMES:
            values = tuple(float(v) for v in getattr(self, name))
            limit = _LIMITS.get(name, math.inf)
            fits = len(values) == 2 and all(math.isfinite(v) and abs(v) <= limit for v in values)
            if not fits or values[0] > values[1]:
                unit = "degrees" if name in ANGLES else "mm"
                within = f" within ±{limit:g}" if limit < math.inf else ""
                raise GeometryError(
                    f"the range of {name} must be (low, high) in {unit}{within}, low first, got {values}"
                )
            object.__setattr__(self, name, values)
        for name in ("sdd", "sod", "field"):
            value = float(getattr(self, name))
            if not (math.isfinite(value) and value > 0):
                raise GeometryError(f"{name} of a pose range must be a positive length in mm, got {value}")
            object.__setattr__(self, name, value)
        if self.sod > self.sdd:
            raise GeometryError(f"sod must not exceed sdd, got {self.sod:g} > {self.sdd:g} mm")
        if self.sod + self.depth[0] <= 0:
            raise GeometryError(
                f"the range of depth must keep the body before the source: {self.depth[0]:g} mm is behind it "
                f"at sod {self.sod:g} mm"
            )

    @property
    def low(self) -> Float[Tensor, " 6"]:
        """Lower ends, in the order of NAMES; degrees and mm."""
        return self._ends(0)

    @property
    def high(self) -> Float[Tensor, " 6"]:
        """Upper ends, in the order of NAMES; degrees and mm."""
        return self._ends(1)

    @property
    def middle(self) -> Float[Tensor, " 6"]:
        """The middle of the box; degrees and mm."""
        return 0.5 * (self.low + self.high)

    @property
    def half(self) -> Float[Tensor, " 6"]:
        """Half its widths; degrees and mm."""
        return 0.5 * (self.high - self.low)

    def _ends(self, end: int) -> Float[Tensor, " 6"]:
        return torch.tensor([getattr(self, name)[end] for name in NAMES], dtype=torch.float64)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "N 6"]:
        """Points of the box, uniform, float64: degrees, then mm, in the order of NAMES."""
        x = torch.rand(count, 6, generator=generator, dtype=torch.float64, device=generator.device).cpu()
        return self.low + x * (self.high - self.low)

    def spread(self, count: int, seed: int = 0) -> Float[Tensor, "N 6"]:
        """Points of the box spread evenly (scrambled Sobol numbers of a seed), float64."""
        x = torch.quasirandom.SobolEngine(6, scramble=True, seed=seed).draw(count, dtype=torch.float64)
        return self.low + x * (self.high - self.low)

    def rotation(self, x: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
        """Rotation of camera_from_body at points of the box."""
        return gantry_rotation(x[..., 0], x[..., 1], x[..., 2]).transpose(-1, -2)

    def place(self, x: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3"]:
        """Where the body's middle lies in the camera at points of the box, mm."""
        return x[..., 3:] + x.new_tensor([0.0, 0.0, self.sod])

    def pose(self, x: Float[Tensor, "*b 6"], center: Float[Tensor, " 3"]) -> Float[Tensor, "*b 4 4"]:
        """camera_from_body at points of the box; center: the volume's middle (RAS mm)."""
        return pose_of(self.rotation(x), self.place(x), center.to(x))

    def excess(self, rotation: Float[Tensor, "3 3"], place: Float[Tensor, " 3"]) -> float:
        """How far outside the box a pose lies: 0 inside, 1 by half a width; of its worst coordinate."""
        angles = torch.stack(gantry_angles(rotation.double().T))
        shift = place.double() - torch.tensor([0.0, 0.0, self.sod], dtype=torch.float64)
        away = torch.cat([(angles - self.middle[:3] + 180.0) % 360.0 - 180.0, shift - self.middle[3:]])
        floor = torch.tensor([math.degrees(SCALE_FLOOR[0])] * 3 + [SCALE_FLOOR[1]] * 3, dtype=torch.float64)
        half = torch.maximum(self.half, floor)
        return float(((away.abs() - half) / half).amax().clamp_min(0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PoseRange:
        """Read what `to_dict` wrote."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != known:
            raise GeometryError(f"a pose range needs the entries {sorted(known)}, got {data!r}")
        return cls(**{k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in data.items()})


PRESETS: dict[str, PoseRange] = {
    "chest": PoseRange((-45, 45), (-20, 20), (-15, 15), (-60, 60), (-60, 60), (-80, 80)),
    "pelvis": PoseRange((-45, 45), (-45, 45), (-15, 15), (-80, 80), (-80, 80), (-100, 100), field=300),
    "spine": PoseRange((-95, 95), (-25, 25), (-15, 15), (-60, 60), (-60, 60), (-80, 80), field=300),
    "skull": PoseRange((-95, 95), (-40, 40), (-20, 20), (-50, 50), (-50, 50), (-80, 80), 1200, 800, 300),
    "limb": PoseRange((-95, 95), (-30, 30), (-45, 45), (-60, 60), (-60, 60), (-80, 80), field=300),
}  # fmt: skip


def pose_of(
    rotation: Float[Tensor, "*b 3 3"], place: Float[Tensor, "*b 3"], center: Float[Tensor, " 3"]
) -> Float[Tensor, "*b 4 4"]:
    """camera_from_body that turns the body by `rotation` and puts its middle `center` (mm) at `place`."""
    center = center.to(rotation)
    return se3.from_rt(rotation, place - (rotation @ center[:, None]).squeeze(-1))


def parse_range(start: PoseRange, words: Iterable[str]) -> PoseRange:
    """A range with some intervals replaced, each as 'name=low:high' (or 'name=±reach' as 'name=reach').

    GeometryError for an unknown name, or text that holds no two numbers.
    """
    changes: dict[str, Interval] = {}
    for word in words:
        name, _, text = word.partition("=")
        name = name.strip().lower()
        if name not in NAMES:
            raise GeometryError(f"--range {word!r}: the name must be one of {', '.join(NAMES)}")
        try:
            ends = tuple(float(part) for part in text.split(":"))
        except ValueError as error:
            raise GeometryError(f"--range {word!r}: write it as {name}=low:high, in numbers") from error
        if len(ends) == 1:
            ends = (-abs(ends[0]), abs(ends[0]))
        changes[name] = ends
    return replace(start, **changes)


def require_anatomy(volume: Volume, box: PoseRange, camera: Camera) -> float:
    """The share of coarse poses of a range that show something of a volume.

    camera: the canonical one.  GeometryError where none does: a range that never sees the anatomy.
    """
    small = camera.resize((24, 24))
    poses = box.pose(box.spread(_LOOKS), volume.center)
    try:
        seen = drr(volume, small, poses, integrator="joseph").amax((-1, -2)) > SEEN
    except GeometryError:  # the beam misses the whole box of voxels at each of them
        seen = torch.zeros(1)
    share = float(seen.float().mean())
    if share == 0:
        offsets = ", ".join(f"{n} {getattr(box, n)[0]:g}:{getattr(box, n)[1]:g}" for n in OFFSETS)
        raise GeometryError(
            f"the pose range never sees the anatomy: at {_LOOKS} poses of it the film is empty. Its offsets "
            f"are {offsets} mm from the isocentre to the volume's middle, at sod {box.sod:g}, sdd "
            f"{box.sdd:g} and a field of {box.field:g} mm; take offsets about zero, or a larger field"
        )
    return share
