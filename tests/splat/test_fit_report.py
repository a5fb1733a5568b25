"""What is said of a fit: the views that were held out, by the detector as it was found."""

from dataclasses import replace

import pytest
import torch
from test_gaussian_fit import GRID, ball

from xreg.geometry import Camera, Rig
from xreg.io.projections import ProjectionSet
from xreg.splat import Gaussians
from xreg.splat.fitting import FitResult
from xreg.splat.poses import Correction
from xreg.splat.report import comparison, held_out_cameras, measure
from xreg.splat.views import corrected


def circle(angles: torch.Tensor) -> Rig:
    return Rig(
        tuple(
            Camera.c_arm(
                sdd=900.0, sod=600.0, size=(32, 36), spacing=6.0, primary=angles, isocenter=GRID.center
            )
        )
    )


@pytest.fixture
def found() -> tuple[FitResult, ProjectionSet]:
    """A fit that found the detector 2.5 px aside and 3 % farther away, by which all films were made."""
    body = Gaussians.from_volume(GRID.volume(0.02 * ball(30, (5, 0, 8))), 200)
    common, still = torch.tensor([2.5, -1.5, 0.03], dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    fitted, others = (circle(torch.arange(n, dtype=torch.float64) * 360 / n + 7) for n in (4, 3))
    true = [[corrected(c, still, common, GRID.center) for c in rig] for rig in (fitted, others)]
    with torch.no_grad():
        films = [torch.stack([body.render(c) for c in cameras]) for cameras in true]
    scan = ProjectionSet(films[0], fitted, GRID, held_out=ProjectionSet(films[1], others))
    correction = replace(Correction.none(4), common=common)
    return FitResult(body, GRID, tuple(true[0]), 0, (), correction=correction), scan


def test_held_out_views_are_drawn_with_the_detector_that_was_found(found) -> None:
    result, scan = found
    assert measure(result, scan)["held_out_views_db"] > 100
    nominal = measure(replace(result, correction=Correction.none(4)), scan)
    assert nominal["held_out_views_db"] < 40
    shown = comparison(result, scan)
    assert float(abs(shown.astype(float) - comparison(replace(result, correction=None), scan)).max()) > 20


def test_cameras_stay_as_they_are_where_nothing_common_was_found(found) -> None:
    result, scan = found
    plain = held_out_cameras(replace(result, correction=Correction.none(4)), scan)
    assert all(one is other for one, other in zip(plain, scan.held_out.cameras, strict=True))
