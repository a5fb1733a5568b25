"""FDK: absolute values, every kind of scan, and itk-rtk on the same projections."""

import importlib.metadata
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tomography_scene import GRID, MU, ball, body, circle

from xreg.errors import GeometryError, ImageError, InputWarning
from xreg.geometry import Camera, Rig
from xreg.geometry.conventions import CONVENTIONS
from xreg.io import VoxelGrid
from xreg.tomography import Filter, Projector, fdk, orbit_of
from xreg.tomography.fdk import redundancy

MIDDLE = (slice(9, 19), slice(6, 26), slice(7, 29))


def error(found, truth):
    return float((found - truth)[MIDDLE].norm() / truth[MIDDLE].norm())


def reconstructed(camera, **known):
    return fdk(Projector(camera, GRID).forward(body()), camera, GRID, **known)


SCANS = {
    "circle": circle(),
    "backwards": circle(primary=-torch.arange(60.0) * 6),
    "mirrored": circle(mirrored=True),
    "short": circle(60, 220),
    "short, backwards": circle(primary=-torch.arange(60.0) * 3.7),
    "short, mirrored": circle(60, 220, mirrored=True),
    "three quarters": circle(60, 290),
    "half fan": circle(90, principal_point=(4.0, 21.5), size=(44, 40)),
    "half fan, other side": circle(90, principal_point=(35.0, 21.5), size=(44, 40)),
    "half fan, mirrored": circle(90, principal_point=(4.0, 21.5), size=(44, 40), mirrored=True),
    "shifted a little": circle(principal_point=(33.0, 25.0), size=(56, 64)),
    "rolled": circle(roll=90.0, size=(60, 44), spacing=(4.5, 5.0)),
    "uneven": circle(primary=torch.cat([torch.arange(0.0, 180, 4), torch.arange(180.0, 360, 8)])),
}


@pytest.mark.parametrize("name", SCANS)
def test_values_are_absolute(name):
    found = reconstructed(SCANS[name])
    assert error(found, body()) < 0.13
    core = ball(30) * (1 - ball(14, (15, -14, 9))) * (1 - ball(11, (-22, 8, -12))) == 1
    assert float(found[core].mean()) == pytest.approx(MU, rel=0.006)


def test_order_of_views_does_not_matter():
    camera = circle(30)
    images = Projector(camera, GRID).forward(body())
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    again = fdk(images[shuffled], camera[shuffled], GRID)
    torch.testing.assert_close(fdk(images, camera, GRID), again, rtol=0, atol=2e-8)


def test_any_axis_and_place():
    """The scan carried elsewhere by a rigid motion gives the same voxels."""
    from xreg.geometry import se3

    move = se3.exp(torch.tensor([0.4, -0.9, 1.3, 40.0, 90.0, -35.0], dtype=torch.float64))
    camera = circle(40)
    moved = VoxelGrid(GRID.shape, se3.inverse(move) @ GRID.affine)
    images = Projector(camera, GRID).forward(body())
    torch.testing.assert_close(
        fdk(images, camera.moved(move), moved), fdk(images, camera, GRID), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("arc", [205.0, 220.0, 260.0, 330.0])
def test_each_line_of_an_arc_counts_once(arc):
    """A ray at angle β, fan γ is met again from β + π + 2γ, fan −γ (Parker)."""
    width, views = 41, 901
    half = math.radians(9.0)
    orbit = orbit_of(circle(views, arc, size=(3, width)))
    fans = torch.linspace(-half, half, width, dtype=torch.float64).expand(views, -1)
    weights = redundancy(orbit, fans)
    beta = (orbit.angles - orbit.start) % (2 * math.pi)
    order = beta.argsort()
    beta, weights = beta[order].numpy(), weights[order].numpy()
    for column in (0, 7, 20, 33, 40):
        gamma = float(fans[0, column])
        again = (beta + math.pi + 2 * gamma) % (2 * math.pi)
        met = again <= beta[-1]
        other = np.interp(again, beta, weights[:, width - 1 - column], right=0.0)
        total = weights[:, column] + np.where(met, other, 0.0)
        assert np.abs(total - 1).max() < 5e-3


def test_an_arc_of_a_displaced_detector_is_told_of():
    """Where both sides see the whole object nothing is lost, and nothing is said."""
    wide = circle(60, 230, principal_point=(41.5, 21.5))
    assert error(reconstructed(wide), body()) < 0.13
    cut = circle(60, 230, size=(44, 44), principal_point=(33.5, 21.5))
    with pytest.warns(InputWarning, match="displaced and the scan is an arc.*fista_tv and os_sart"):
        found = reconstructed(cut)
    assert error(found, body()) > 0.4  # it is as bad as it says


def test_a_grid_that_no_ray_meets_is_refused_by_all():
    away = VoxelGrid.box(8, 40.0, (0.0, 0.0, 900.0))
    camera = circle(3)
    images = torch.ones(3, 44, 60)
    with pytest.raises(GeometryError, match="no ray of any view meets the grid"):
        fdk(images, camera, away)
    for adjoint in ("exact", "voxel"):  # of os_sart, sirt, cgls and fista_tv
        with pytest.raises(GeometryError, match="no ray of any view meets the grid"):
            Projector(camera, away, adjoint=adjoint)
    corner = VoxelGrid.box(8, 40.0, GRID.center + torch.tensor([0.0, 0.0, 88.0]))
    assert float(Projector(camera, corner).forward(torch.ones(corner.shape)).max()) > 0


@pytest.mark.parametrize("window", ["ramp", "shepp-logan", "cosine", "hamming", "hann"])
def test_windows_leave_low_frequencies_alone(window):
    response = Filter(window).response(512, 2.0)
    frequency = torch.fft.rfftfreq(512, 2.0).double()
    torch.testing.assert_close(response[4:9], frequency[4:9], rtol=8e-3, atol=1e-6)
    assert float(response[-1]) <= float(Filter().response(512, 2.0)[-1]) + 1e-12
    assert float(Filter(window, 0.5).response(512, 2.0)[140:].abs().max()) == 0.0


def test_extending_a_cut_object_helps():
    camera = circle(90, size=(44, 22))  # the ball does not fit
    images = Projector(camera, GRID).forward(body())
    core = ball(18) == 1
    cut, extended = (fdk(images, camera, GRID, filter=Filter(extend=e))[core].mean() for e in (0.0, 1.0))
    assert abs(float(extended) - MU) < 0.6 * abs(float(cut) - MU)


def test_a_limited_arc_says_so():
    with pytest.warns(InputWarning, match="incomplete"):
        reconstructed(circle(40, 120))


def test_the_distance_to_the_detector_does_not_matter():
    """A film's geometry is the focal length in pixels; where the rays end is the projector's business."""
    views = list(circle(12))
    images = Projector(views, GRID).forward(body())
    assert torch.equal(fdk(images, [c.replace(sdd=None) for c in views], GRID), fdk(images, views, GRID))


def test_what_is_no_circle_is_refused():
    images = torch.zeros(12, 44, 60)
    tilt = torch.arange(12.0) * 3
    with pytest.raises(GeometryError, match="not on a circle"):
        fdk(images, circle(12, secondary=tilt), GRID)
    with pytest.raises(GeometryError, match="misses the isocentre"):
        fdk(images, circle(12, secondary=15.0), GRID)
    with pytest.raises(GeometryError, match="lean"):
        fdk(images, circle(12, roll=20.0), GRID)
    with pytest.raises(GeometryError, match="three pinhole views"):
        fdk(images[:2], circle(2), GRID)
    with pytest.raises(GeometryError, match="does not see the axis"):
        fdk(images, circle(12, principal_point=(-9.0, 20.0)), GRID)
    with pytest.raises(GeometryError, match="inside the volume"):
        fdk(images, circle(12, sod=0.04, sdd=0.1), GRID)
    with pytest.raises(ImageError, match="projections must be a floating tensor"):
        fdk(images[:11], circle(12), GRID)
    images[3, 5, 5] = torch.nan
    with pytest.raises(ImageError, match=r"NaN.*views \[3\]"):
        fdk(images, circle(12), GRID)


def test_an_orbit_is_found():
    orbit = orbit_of(circle(36, 360))
    torch.testing.assert_close(orbit.center, GRID.center, rtol=0, atol=1e-9)
    torch.testing.assert_close(orbit.axis.abs(), torch.tensor([0.0, 0.0, 1.0]).double(), rtol=0, atol=1e-12)
    assert orbit.radius == pytest.approx(600.0)
    assert orbit.full
    assert not orbit.sideways
    torch.testing.assert_close(orbit.widths, torch.full((36,), 2 * math.pi / 36).double())


RTK_SCANS = {
    "circle": (360.0, 60, 0.0, 96),
    "short": (220.0, 60, 0.0, 96),
    "half fan": (360.0, 60, 100.0, 64),
}


@pytest.mark.slow  # loading itk alone takes most of a minute of one core
@pytest.mark.parametrize("name", RTK_SCANS)
def test_as_itk_rtk(name, tmp_path):
    if not any(d.metadata["Name"] == "itk-rtk" for d in importlib.metadata.distributions()):
        pytest.skip("needs itk-rtk: pip install itk-rtk")
    arc, views, shift, width = RTK_SCANS[name]
    grid = VoxelGrid.box((30, 40, 40), (200.0, 200.0, 150.0))
    tool = CONVENTIONS["rtk"]
    params = [
        tool.params(
            sid=600.0, sdd=900.0, gantry_angle=n * arc / views, size=(width, 70), spacing=(5.0, 4.0),
            origin=(-(width - 1) / 2 * 5.0, -69 * 2.0), proj_offset_x=shift, patient_position=None,
        )
        for n in range(views)
    ]  # fmt: skip
    rig = Rig(tuple(tool.to_camera(p) for p in params))
    images = Projector(rig, grid).forward(body(grid))
    theirs = _rtk(tmp_path, params, images.numpy(), grid, {"short": arc < 360, "displaced": shift != 0})
    inside = (slice(6, 24), slice(8, 32), slice(8, 32))
    ours = fdk(images, rig, grid)
    assert float((ours - theirs)[inside].norm() / theirs[inside].norm()) < 1e-4


def _rtk(folder, params, images, grid, kind):
    """FDK of itk-rtk; in another process, since its libraries do not bear this one."""
    views = [[p.sid, p.sdd, p.gantry_angle, p.proj_offset_x, p.proj_offset_y] for p in params]
    source, target = folder / "in.npz", folder / "out.npy"
    np.savez(
        source, views=views, images=images, spacing=params[0].spacing, origin=params[0].origin,
        voxel=grid.spacing, size=grid.size, first=grid.affine[:3, 3].numpy(), **kind,
    )  # fmt: skip
    worker = Path(__file__).with_name("rtk_fdk.py")
    subprocess.run([sys.executable, worker, source, target], check=True, timeout=400)
    return torch.from_numpy(np.load(target))


def test_oblong_pixels_and_a_batch_camera_are_a_rig():
    camera = circle(20)
    images = Projector(camera, GRID).forward(body())
    rig = Rig(tuple(Camera(c.K, c.camera_from_world, c.size, c.sdd) for c in camera))
    torch.testing.assert_close(fdk(images, rig, GRID), fdk(images, camera, GRID), rtol=0, atol=0)
