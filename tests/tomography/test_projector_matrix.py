"""The projector as a matrix: transpose, norm, subsets, and what it refuses."""

import pytest
import torch
from scipy import ndimage
from tomography_scene import GRID, body, circle

from xreg import Volume, drr
from xreg.errors import GeometryError, ImageError, VolumeError
from xreg.geometry import Camera, Rig
from xreg.io import VoxelGrid
from xreg.tomography import Projector, usual_binning

SMALL = VoxelGrid.box((5, 6, 7), (70.0, 66.0, 60.0))


def views(count=4, **known):
    return circle(count, isocenter=(0.0, 0.0, 0.0), size=(9, 10), spacing=(14.0, 15.0), **known)


def dense(projector):
    eye = torch.eye(SMALL.shape[0] * SMALL.shape[1] * SMALL.shape[2], dtype=torch.float64)
    return torch.stack([projector.forward(e.reshape(SMALL.shape)).flatten() for e in eye], 1)


@pytest.mark.parametrize("rule", ["joseph", "siddon", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_adjoint_is_the_transpose(rule, dtype):
    projector = Projector(circle(7, secondary=11.0), GRID, integrator=rule)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(GRID.shape, generator=generator, dtype=dtype)
    y = torch.rand(projector.shape, generator=generator, dtype=dtype)
    left = float((projector.forward(x).double() * y).sum())
    right = float((x.double() * projector.adjoint(y)).sum())
    assert left == pytest.approx(right, rel=1e-6 if dtype == torch.float32 else 1e-12)


def test_a_parallel_beam_is_a_view_too():
    camera = Camera.parallel_beam(
        size=(30, 40), spacing=5.0, sdd=600.0, primary=torch.tensor([0.0, 40.0]), isocenter=GRID.center
    )
    projector = Projector(camera, GRID)
    x, y = body().double(), torch.rand(2, 30, 40, dtype=torch.float64)
    assert float((projector.forward(x) * y).sum()) == pytest.approx(
        float((x * projector.adjoint(y)).sum()), rel=1e-12
    )
    with pytest.raises(GeometryError, match="pinhole"):
        Projector(camera, GRID, adjoint="voxel")


def test_forward_is_what_the_renderer_gives():
    camera = circle(5)
    image = Projector(camera, GRID).forward(body())
    other = drr(Volume(body(), GRID.affine), camera, integrator="joseph", storage="float")
    torch.testing.assert_close(image, other, rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_voxels():
    projector = Projector(views(2), SMALL)
    x = torch.rand(SMALL.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(projector.forward, (x,))


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_fast_adjoint_is_close_for_smooth_images(mirrored):
    camera = circle(12, mirrored=mirrored, principal_point=(33.0, 20.0))
    exact, fast = (Projector(camera, GRID, adjoint=rule) for rule in ("exact", "voxel"))
    noise = torch.rand(exact.shape, generator=torch.Generator().manual_seed(3))
    smooth = torch.from_numpy(ndimage.gaussian_filter(noise.numpy(), (0, 3, 3)))
    a, b = exact.adjoint(smooth), fast.adjoint(smooth)
    inside = body() > 0
    assert float((a - b)[inside].norm() / a[inside].norm()) < 0.03


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (2, 40)])
def test_a_detector_of_one_row_is_a_row(size):
    """Voxels that it does not see get nothing."""
    grid = VoxelGrid.box((5, 8, 8), (64.0, 64.0, 64.0))
    thin = [
        Camera.c_arm(sdd=800, sod=500, size=size, spacing=3.0, primary=float(a)) for a in range(0, 360, 30)
    ]
    found = Projector(thin, grid, adjoint="voxel").adjoint(torch.ones(12, *size, dtype=torch.float64))
    assert float(found[[0, -1]].abs().max() if size[0] < 3 else found[:, [0, -1]].abs().max()) == 0.0
    assert float(found[2].max()) > 0


def test_norm_is_the_largest_singular_value():
    projector = Projector(views(), SMALL)
    found = projector.norm(torch.zeros(1, dtype=torch.float64))
    assert found == pytest.approx(float(torch.linalg.matrix_norm(dense(projector), 2)), rel=1e-3)


def test_a_subset_is_some_of_the_rows():
    projector = Projector(circle(6), GRID)
    part = projector.subset([4, 1])
    whole = projector.forward(body())
    torch.testing.assert_close(part.forward(body()), whole[[4, 1]], rtol=0, atol=0)
    assert part.shape == (2, *whole.shape[1:])


def test_only_single_and_double_precision():
    projector = Projector(views(), SMALL)
    for kind in (torch.float16, torch.bfloat16, torch.int32):
        with pytest.raises(VolumeError, match="float32 or float64"):
            projector.forward(torch.ones(SMALL.shape, dtype=kind))
        for rule in ("exact", "voxel"):
            with pytest.raises(ImageError, match="float32 or float64"):
                Projector(views(), SMALL, adjoint=rule).adjoint(torch.ones(projector.shape, dtype=kind))
    with pytest.raises(VolumeError, match="got ndarray"):
        projector.forward(torch.ones(SMALL.shape).numpy())


def test_what_cannot_be_is_refused():
    with pytest.raises(GeometryError, match="mm"):  # metres
        Projector(circle(3, sod=0.04, sdd=0.1), GRID)
    with pytest.raises(GeometryError, match="share an image size"):
        Projector(Rig((circle(1)[0], circle(1, size=(9, 9))[0])), GRID)
    with pytest.raises(VolumeError, match="shape"):
        Projector(circle(2), GRID).forward(torch.zeros(3, 3, 3))
    with pytest.raises(GeometryError, match="integrator"):
        Projector(circle(2), GRID, integrator="trilinear")


@pytest.mark.parametrize(("pixel", "wanted"), [(4.0, 1), (0.8, 1), (0.4, 3), (0.19, 8), (0.001, 50)])
def test_fine_pixels_are_to_be_averaged(pixel, wanted):
    """Voxels of 1 mm in the middle of a C-arm that magnifies twice, and in a beam of half the pixel."""
    grid = VoxelGrid.box(20, 20.0, (3.0, -2.0, 5.0))
    divergent = Camera.c_arm(
        sdd=1000, sod=500, isocenter=grid.center, size=(120, 100), spacing=(pixel, pixel)
    )
    parallel = Camera.parallel_beam(
        sdd=1000, isocenter=grid.center, size=(120, 100), spacing=(pixel / 2, pixel / 2)
    )
    for camera in (divergent, parallel):
        assert usual_binning([camera], grid) == wanted


@pytest.mark.parametrize("rule", ["joseph", "siddon", "exact"])
def test_a_camera_without_a_detector_sees_all_of_the_grid(rule):
    cameras = circle(5, secondary=11.0)
    x = torch.rand(GRID.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ended = Projector(cameras, GRID, integrator=rule).forward(x)
    endless = [camera.replace(sdd=None) for camera in cameras]
    torch.testing.assert_close(
        Projector(endless, GRID, integrator=rule).forward(x), ended, rtol=1e-9, atol=1e-9
    )


def test_that_a_grid_is_seen_at_the_edge_of_a_large_film_is_found():
    """Rows are looked at from the middle outwards, in pieces."""
    small = VoxelGrid.box((2, 2, 2), (4.0, 4.0, 4.0), (0.0, 0.0, 170.0))
    camera = Camera.c_arm(sdd=1000, sod=700, size=(700, 500), spacing=0.7, isocenter=(0.0, 0.0, 0.0))
    v = camera.project(torch.tensor([[0.0, 0.0, 170.0]], dtype=torch.float64))[0, 1]
    assert not 10 < float(v) < 690
    Projector([camera], small)
    with pytest.raises(GeometryError, match="no ray of any view meets"):
        Projector([camera], VoxelGrid.box((2, 2, 2), (4.0, 4.0, 4.0), (0.0, 0.0, 190.0)))
