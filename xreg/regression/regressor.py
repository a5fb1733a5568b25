"""A trained network, ready to guess: film in, pose with its covariance out."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import FileError, ImageError, VolumeError, XregError
from xreg.geometry import Camera, se3
from xreg.geometry.c_arm import half_turns
from xreg.registration.views import parts_of
from xreg.regression import checkpoint
from xreg.regression.canonical import Canonical, about_beam, normalise
from xreg.regression.films import require_same_ct
from xreg.regression.network import PoseNet, make_network
from xreg.regression.ranges import PoseRange, pose_of
from xreg.regression.settings import TrainSettings
from xreg.regression.validation import covariance_of
from xreg.volume import Volume

LEAST_COVERAGE = 0.05  # part of the network's field that a film must fill
ROLLS = (-8.0, 8.0)  # degrees by which a film is turned for a second opinion


@dataclass(frozen=True)
class PoseGuess:
    """What a network makes of a film.

    world_from_body [4, 4] float64, RAS mm.  covariance [6, 6]: of the tangent (rad, mm) of
    `se3.retract(world_from_body, ξ, center)`, as in a `RegistrationResult`.  center: where the guess puts the
    body's middle, world mm.  checks: `coverage`, the part of the network's field that the film fills;
    `outside`, by how much of half its range the guess leaves it; `focal`, the film's focal length over the
    network's, each in parts of their own field.  how: 'film', 'rolled by ...' or 'from behind'.
    """

    world_from_body: Float[Tensor, "4 4"]
    covariance: Float[Tensor, "6 6"]
    center: Float[Tensor, " 3"]
    checks: dict[str, float] = field(default_factory=dict)
    how: str = "film"

    @property
    def sigma(self) -> Float[Tensor, " 6"]:
        """Standard deviations about and along the world's axes (rad, mm)."""
        return self.covariance.diagonal().clamp_min(0).sqrt()

    def along(self, camera: Camera) -> Float[Tensor, " 6"]:
        """Standard deviations about and along a camera's axes (rad, mm)."""
        return turned(self.covariance, camera.camera_from_world[:3, :3]).diagonal().clamp_min(0).sqrt()


def turned(covariance: Float[Tensor, "6 6"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "6 6"]:
    """The covariance of a tangent about one point, told along other axes."""
    both = torch.block_diag(rotation, rotation).to(covariance)
    return both @ covariance @ both.T


class Regressor:
    """A network with all that it was trained for."""

    def __init__(self, net: PoseNet, facts: dict[str, Any], source: str, device: torch.device) -> None:
        self.net, self.facts, self.source, self.device = net.eval(), facts, source, device
        self.box = PoseRange.from_dict(facts["range"])
        self.canonical = Canonical.from_dict(facts["camera"])
        self._passed: weakref.ref[Volume] | None = None
        known = facts.get("validation")
        self.calibration: Sequence[float] = known["calibration"] if known else [1.0] * 6

    @classmethod
    def load(cls, folder: str | PathLike, *, device: torch.device | str = "cpu") -> Regressor:
        """The network that `train` left in a folder.  FileError where it is missing or damaged."""
        file = Path(folder)
        file = file / checkpoint.MODEL if file.is_dir() or not file.suffix else file
        tensors, facts = checkpoint.load(file)
        checkpoint.require(facts, ("volumes", "range", "camera", "settings", "validation"), file)
        device = torch.device(device)
        try:
            settings = TrainSettings.from_dict(facts["settings"])
            box = PoseRange.from_dict(facts["range"])
            net = make_network(settings.network, box, settings.size, 0)
            net.load_state_dict(tensors)
        except (XregError, RuntimeError, TypeError, KeyError) as error:
            raise FileError(f"{file}: is not a network that this xreg can make ({error})") from error
        return cls(net.to(device), facts, str(file), device)

    def require(self, volume: Volume) -> None:
        """VolumeError unless this network was trained on this CT; the last one that passed is remembered."""
        if self._passed is None or self._passed() is not volume:
            require_same_ct(self.facts["volumes"], volume, self.source)
            self._passed = weakref.ref(volume)

    @property
    def center(self) -> Float[Tensor, " 3"]:
        """The middle of the CT that it was trained on, RAS mm; VolumeError where there were several."""
        if len(self.facts["volumes"]) > 1:
            raise VolumeError(
                f"{self.source}: was trained on several CTs; say by center= where the middle of yours is"
            )
        one = self.facts["volumes"][0]
        index = torch.tensor([(n - 1) / 2 for n in reversed(one["shape"])], dtype=torch.float64)
        return se3.apply(torch.tensor(one["affine"], dtype=torch.float64), index[None])[0]

    def guess(
        self, film: Any, camera: Camera | None = None, mask: Any = None, *, center: Tensor | None = None
    ) -> PoseGuess:
        """The pose that one film shows.

        film: line integrals [H, W] of any gain and offset (a tensor, array or `Radiograph`, which brings its
        camera and mask).  center: the volume's middle, RAS mm, by default that of the network's own CT.
        GeometryError for a parallel beam, ImageError for a film that does not fit its camera or hardly fills
        the network's field.
        """
        return self.guesses(film, camera, mask, center=center, rolls=(), behind=False)[0]

    @torch.no_grad()
    def guesses(
        self,
        film: Any,
        camera: Camera | None = None,
        mask: Any = None,
        *,
        center: Tensor | None = None,
        rolls: Sequence[float] = ROLLS,
        behind: bool = True,
    ) -> list[PoseGuess]:
        """The plain guess, then its variants: of the film turned by `rolls` degrees, and seen from behind."""
        film, camera, mask = _parts(film, camera, mask)
        center = self.center if center is None else center.detach().cpu().double()
        turns = (0.0, *rolls)
        seen = [self.canonical.resample(film, camera, mask, roll=roll) for roll in turns]
        images, known = (torch.stack(part) for part in zip(*seen, strict=True))
        coverage = known.float().mean((-1, -2))
        if float(coverage[0]) < LEAST_COVERAGE:
            raise ImageError(
                f"film fills only {100 * float(coverage[0]):.1f} % of the field that the network knows "
                f"({self.canonical.size} px at a focal length of {self.canonical.focal:.0f} px); check its "
                "camera (pixel spacing, sdd) and mask"
            )
        found = self.net(normalise(images, known).to(self.device))
        rotation, place = found.rotation.cpu().double(), found.place.cpu().double()
        own, guesses = self.canonical.focal / self.canonical.size, []
        for n, roll in enumerate(turns):
            pose = self.canonical.back(camera, pose_of(rotation[n], place[n], center), roll=roll)
            spread = covariance_of(found.log_variance[n], self.calibration)
            turn = camera.world_from_camera[:3, :3].cpu() @ about_beam(roll)[:3, :3]
            checks = {
                "coverage": float(coverage[n]),
                "outside": self.box.excess(rotation[n], place[n]),
                "focal": float(camera.focal.mean()) / max(camera.size) / own,
            }
            middle = se3.apply(pose, center[None])[0]
            how = f"rolled by {roll:g}°" if roll else "film"
            guesses.append(PoseGuess(pose, turned(spread, turn), middle, checks, how))
        return guesses + (self._behind(guesses[0], camera) if behind else [])

    @staticmethod
    def _behind(guess: PoseGuess, camera: Camera) -> list[PoseGuess]:
        """A guess seen from behind: turned half about the detector's two axes."""
        found = []
        for turn in half_turns(camera.world_from_camera[:3, :3].cpu()):
            pose = se3.about(turn, guess.center) @ guess.world_from_body
            spread = turned(guess.covariance, turn[:3, :3])
            found.append(replace(guess, world_from_body=pose, covariance=spread, how="from behind"))
        return found


def _parts(film: Any, camera: Camera | None, mask: Any) -> tuple[Any, Camera, Any]:
    """Film, camera and mask from what a user has."""
    film, camera, mask = parts_of(film, camera, mask)
    if camera is None:
        raise ImageError("a guess needs the film's camera: pass one, or a radiograph whose header has one")
    return film, camera, mask
