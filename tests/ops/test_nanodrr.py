"""The same images as nanodrr, from the same voxels and through its own conventions.

Both take the field as trilinear and zero outside, falling off over one voxel, so nothing but sampling and
float32 tells them apart; nanodrr places its samples ray by ray, and ours lie in planes along the detector.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ellipsoids import phantom
from projector_cases import relative
from torch import Tensor

from xreg import Camera, Volume, drr
from xreg.geometry import CONVENTIONS

SAMPLES = 500
VIEWS: dict[str, dict[str, Any]] = {
    "AP": {},
    "45 degrees": {"primary": 45.0},
    "lateral": {"primary": 90.0},
    "oblique": {"primary": -33.0, "secondary": 21.0, "roll": 14.0},
    "shifted principal point": {"primary": 20.0, "principal_point": (61.25, 31.5)},
    "oblong pixels": {"primary": 70.0, "spacing": (3.1, 4.4)},
    "off the centre": {"primary": 10.0, "isocenter": (30.0, -20.0, 25.0)},
    "mirrored": {"primary": 25.0, "mirrored": True},
}


@pytest.fixture(scope="module")
def volume() -> Volume:
    return phantom()


@pytest.fixture(scope="module")
def nanodrr(volume: Volume) -> Callable[[Camera], Tensor]:
    """Renders a camera by nanodrr's torch backend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("nanodrr")
        from nanodrr.camera import make_k_inv, make_rt_inv
        from nanodrr.data import Subject
        from nanodrr.drr import render
        from torchio import ScalarImage

        voxels = volume.mu.permute(2, 1, 0)[None].contiguous()  # torchio has [1, i, j, k]
        subject = Subject.from_images(
            ScalarImage(tensor=voxels, affine=volume.affine.numpy()), convert_to_mu=False
        )

    def run(camera: Camera) -> Tensor:
        p = CONVENTIONS["nanodrr"].from_camera(camera, isocenter=tuple(volume.center.tolist()))
        pose = [torch.tensor(np.array(v)[None], dtype=torch.float32) for v in (p.rotation, p.translation)]
        rt_inv = make_rt_inv(*pose, p.orientation, torch.tensor(np.array(p.isocenter), dtype=torch.float32))
        k_inv = make_k_inv(p.sdd, p.delx, p.dely, p.x0, p.y0, p.height, p.width, dtype=torch.float32)
        sdd = torch.tensor([p.sdd], dtype=torch.float32)
        with torch.no_grad():
            return render(subject, k_inv, rt_inv, sdd, p.height, p.width, SAMPLES, backend="torch")[0, 0]

    return run


def view(volume: Volume, **words: Any) -> Camera:
    known = {"sdd": 1020.0, "sod": 700.0, "size": (72, 100), "spacing": 4.5, "isocenter": volume.center}
    return Camera.c_arm(**(known | words))


@pytest.mark.parametrize("name", VIEWS)
def test_images_agree(volume: Volume, nanodrr: Callable[[Camera], Tensor], name: str) -> None:
    camera = view(volume, **VIEWS[name])
    theirs = nanodrr(camera)
    assert float(theirs.max()) > 1.0
    assert relative(drr(volume, camera, integrator="exact"), theirs) <= 3e-4
    assert relative(drr(volume, camera, integrator="trilinear", samples=SAMPLES), theirs) <= 4e-4


def test_half_a_pixel_would_show(volume: Volume, nanodrr: Callable[[Camera], Tensor]) -> None:
    """The comparison can fail: the other rule for pixel centres is a hundred times as far."""
    camera = view(volume)
    u, v = camera.principal_point.tolist()
    shifted = view(volume, principal_point=(u + 0.5, v + 0.5))
    assert relative(drr(volume, shifted, integrator="exact"), nanodrr(camera)) > 1e-2
    assert relative(drr(volume, camera.flip_columns(), integrator="exact"), nanodrr(camera)) > 1e-2


def test_where_the_detector_cuts_the_volume(volume: Volume, nanodrr: Callable[[Camera], Tensor]) -> None:
    camera = view(volume, primary=40.0, sdd=740.0, spacing=3.3)
    whole = drr(volume, view(volume, primary=40.0, sdd=1480.0, spacing=6.6), integrator="exact")
    theirs = nanodrr(camera)
    assert relative(drr(volume, camera, integrator="exact"), theirs) <= 1e-3
    assert relative(whole, theirs) > 0.1
