"""`drr` and `drr_with_jacobian` say what cannot be rendered, and refuse nothing else."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_body import EXACT, make_volume, view

from xreg import Beam, Camera, Volume, drr, drr_with_jacobian, se3
from xreg.errors import GeometryError, VolumeError
from xreg.ops.project import metric_of, project
from xreg.renderer import rays_in_volume


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"integrator": "simpson"}, "one of trilinear, joseph, siddon, exact, got 'simpson'"),
        ({"samples": 1}, "samples must be a whole number of at least 2, got 1"),
        ({"samples": 250.0}, "whole number"),
        ({"storage": "float16"}, "'int16' or 'float', got 'float16'"),
    ],
)
def test_beams_that_cannot_be(volume: Volume, words: dict, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        Beam(**words)
    with pytest.raises(GeometryError, match=message):
        drr(volume, view(volume), **words)


def test_poses_that_cannot_be(volume: Volume) -> None:
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    for pose in (
        mirror,
        2 * torch.eye(4),
        torch.eye(3),
        torch.full((4, 4), math.nan),
        np.diag([1.0, 1, -1, 1]),
    ):
        with pytest.raises(GeometryError, match="world_from_body"):
            drr(volume, view(volume), pose)
        with pytest.raises(GeometryError, match="world_from_body"):
            drr_with_jacobian(volume, view(volume), pose)


@pytest.mark.parametrize("offset", [(900.0, 0.0, 0.0), (0.0, 0.0, -900.0)], ids=["beside", "below"])
def test_a_volume_outside_the_beam(volume: Volume, offset: tuple[float, ...]) -> None:
    away = se3.from_translation(torch.tensor(offset, dtype=torch.float64))
    with pytest.raises(GeometryError, match="outside the beam of every view"):
        drr(volume, view(volume), away)


def test_a_volume_behind_the_source_or_the_detector(volume: Volume) -> None:
    camera = view(volume, primary=0.0, secondary=0.0)
    for millimetres in (-1500.0, 1500.0):
        away = se3.from_translation(torch.tensor([0.0, millimetres, 0.0], dtype=torch.float64))
        with pytest.raises(GeometryError, match="outside the beam of every view"):
            drr(volume, camera, away)


@settings(max_examples=80, deadline=None)
@given(
    sdd=st.floats(30.0, 400.0),
    share=st.floats(0.02, 1.0),
    angles=st.tuples(st.floats(0.0, 360.0), st.floats(-80.0, 80.0)),
    offset=st.tuples(*[st.floats(-80.0, 80.0)] * 3),
    spacing=st.floats(0.3, 8.0),
)
def test_nothing_visible_is_refused(
    sdd: float, share: float, angles: tuple, offset: tuple, spacing: float
) -> None:
    """Source and detector anywhere, in the volume too: an image that is not empty comes out."""
    volume = make_volume()
    camera = view(
        volume,
        sdd=sdd,
        sod=share * sdd,
        primary=angles[0],
        secondary=angles[1],
        isocenter=volume.center + torch.tensor(offset, dtype=torch.float64),
        size=(5, 6),
        spacing=spacing,
        principal_point=None,
    )
    metric = metric_of(volume.affine[:3, :3])
    expected, _ = project(volume.mu, rays_in_volume(volume, camera)[None], metric, (5, 6), integrator="exact")
    try:
        image = drr(volume, camera, **EXACT)
    except GeometryError:
        image = torch.zeros(5, 6, dtype=torch.float64)
    torch.testing.assert_close(image, expected[0], atol=1e-12, rtol=0)


def test_one_view_of_several_may_miss(volume: Volume) -> None:
    away = se3.from_translation(torch.tensor([900.0, 0.0, 0.0], dtype=torch.float64))
    images = drr(volume, view(volume), torch.stack([torch.eye(4, dtype=torch.float64), away]))
    assert float(images[0].max()) > 0.5
    assert not images[1].any()


def test_labels_that_cannot_be(volume: Volume) -> None:
    with pytest.raises(VolumeError, match="'hard' or 'soft', got 'fuzzy'"):
        drr(volume, view(volume), labels="fuzzy")
    with pytest.raises(VolumeError, match=r"needs a volume with labels; load it with mask="):
        drr(make_volume(labels=None), view(volume), labels="hard")


def test_no_view_at_all(volume: Volume) -> None:
    none = torch.empty(0, 4, 4, dtype=torch.float64)
    with pytest.raises(GeometryError, match="empty list"):
        drr(volume, [])
    with pytest.raises(GeometryError, match=r"batch \(0,\), which has none"):
        drr(volume, view(volume), none)
    with pytest.raises(GeometryError, match="which has none"):
        drr_with_jacobian(volume, view(volume), none)


def test_numpy_views_give_the_image_of_their_values(volume: Volume) -> None:
    mu, affine, pose = (
        volume.mu.numpy(),
        volume.affine.numpy(),
        se3.exp(torch.full((6,), 0.01).double()).numpy(),
    )
    expected = drr((mu, affine), view(volume), pose)
    backwards, big = np.ascontiguousarray(mu[::-1, :, ::-1])[::-1, :, ::-1], mu.astype(">f8")
    turned = np.ascontiguousarray(pose[::-1])[::-1]
    for values, grid, place in ((backwards, affine, turned), (big, affine.astype(">f8"), pose.astype(">f8"))):
        np.testing.assert_array_equal(drr((values, grid), view(volume), place), expected)


def test_what_is_no_view_or_volume(volume: Volume) -> None:
    camera = view(volume)
    for wrong in (None, "camera.json", [camera, None]):
        with pytest.raises(GeometryError, match="a Camera, a Rig or a list of cameras"):
            drr(volume, wrong)
    for wrong in (None, (volume.mu,), volume.mu):
        with pytest.raises(VolumeError, match=r"drr takes a Volume, or \(mu, affine\)"):
            drr(wrong, camera)
    poses, two = torch.eye(4, dtype=torch.float64).expand(3, 4, 4), Camera.stack([camera, camera])
    for render in (drr, drr_with_jacobian):
        with pytest.raises(GeometryError, match=r"the batch \(3,\) do not broadcast .* batch \(2,\)"):
            render(volume, two, poses)
    image, _ = drr_with_jacobian(volume, camera, poses[0], center=[0.0, 0.0, 0.0])
    assert image.shape == camera.size
    assert Beam(samples=np.int64(100)).samples == 100
