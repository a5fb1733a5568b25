"""How well a network guesses on films that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.regression import losses
from xreg.regression.films import FilmSource
from xreg.regression.network import ERROR_UNIT, PoseNet, Prediction
from xreg.regression.settings import TrainSettings

_BATCH = 32
_APART = 0x5EED  # keeps the looks of held-out films apart from those of training


@dataclass(frozen=True)
class Validation:
    """Errors on held-out films.

    degrees, in_plane_mm, depth_mm: medians of the turn, and of the middle's shift across and along the beam.
    score: what early stopping looks at, the mean length of the error in units of ERROR_UNIT.  calibration
    [6]: by what variances must be multiplied for errors to have the deviations that the network states.
    """

    degrees: float
    in_plane_mm: float
    depth_mm: float
    score: float
    calibration: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "calibration": list(self.calibration)}


class HeldOut:
    """Films at fixed poses with fixed looks, made once."""

    def __init__(self, sources: Sequence[FilmSource], settings: TrainSettings) -> None:
        self.images, self.rotation, self.place = [], [], []
        share = math.ceil(settings.held_out / len(sources))
        for number, source in enumerate(sources):
            generator = torch.Generator().manual_seed(_APART + number)
            for x in source.box.spread(share, _APART + number).split(_BATCH):
                batch = source.take(x, generator)
                self.images.append(batch.images)
                self.rotation.append(batch.rotation.float())
                self.place.append(batch.place.float())

    @torch.no_grad()
    def judge(self, net: PoseNet) -> Validation:
        """Errors of a network on all of them."""
        was = net.training
        net.eval()
        errors, spreads = [], []
        for images, rotation, place in zip(self.images, self.rotation, self.place, strict=True):
            found = Prediction(*(part.cpu() for part in net(images)))
            errors.append(losses.tangent(found, rotation, place))
            spreads.append(found.log_variance)
        net.train(was)
        return summary(torch.cat(errors), torch.cat(spreads))


def summary(error: Float[Tensor, "N 6"], log_variance: Float[Tensor, "N 6"]) -> Validation:
    """Medians and calibration of tangent errors (rad, mm)."""
    turn, across, depth = error[:, :3].norm(dim=1), error[:, 3:5].norm(dim=1), error[:, 5].abs()
    units = losses.in_units(error)
    ratio = (units.square() * torch.exp(-log_variance)).mean(0).clamp(1e-3, 1e3)
    return Validation(
        math.degrees(float(turn.median())),
        float(across.median()),
        float(depth.median()),
        float(losses.double_geodesic(units)),
        tuple(ratio.tolist()),
    )


def covariance_of(log_variance: Float[Tensor, " 6"], calibration: Sequence[float]) -> Float[Tensor, "6 6"]:
    """Covariance of the tangent (rad, mm) along the camera's axes, float64."""
    unit = torch.tensor([ERROR_UNIT[0]] * 3 + [ERROR_UNIT[1]] * 3, dtype=torch.float64)
    scale = torch.tensor(list(calibration), dtype=torch.float64)
    return torch.diag(log_variance.double().cpu().exp() * scale * unit.square())
