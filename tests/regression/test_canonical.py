"""Films of other detectors in the network's camera, against closed forms and against renders."""

import pytest
import torch
from hypothesis import given, settings, strategies
from small_training import BOX, body

import xreg
from xreg.errors import GeometryError, ImageError
from xreg.geometry import Camera, se3
from xreg.regression import Canonical, normalise

OWN = Canonical.of(BOX, 64)


def ray_slopes(camera: Camera) -> torch.Tensor:
    """(x/z, y/z) of the rays of a camera's pixels, [H, W, 2]."""
    height, width = camera.size
    v, u = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (height, width)), indexing="ij")
    points = camera.unproject(torch.stack([u, v], -1).reshape(-1, 2), 1.0)
    local = se3.apply(camera.camera_from_world, points)
    return (local[:, :2] / local[:, 2:]).reshape(height, width, 2)


@given(
    size=strategies.tuples(strategies.integers(150, 320), strategies.integers(150, 320)),
    sdd=strategies.floats(900, 1400),
    spacing=strategies.floats(2.6, 5.0),
    shift=strategies.tuples(strategies.floats(-9, 9), strategies.floats(-9, 9)),
    mirrored=strategies.booleans(),
    roll=strategies.floats(-20, 20),
)
@settings(max_examples=12, deadline=None)
def test_a_linear_film_is_resampled_exactly(size, sdd, spacing, shift, mirrored, roll) -> None:
    """What is linear in the ray's slopes stays so under averaging and bilinear interpolation."""
    middle = ((size[1] - 1) / 2 + shift[0], (size[0] - 1) / 2 + shift[1])
    camera = Camera.c_arm(
        sdd=sdd, sod=700, primary=20, size=size, spacing=(spacing, 1.1 * spacing), principal_point=middle,
        mirrored=mirrored,
    )  # fmt: skip
    slopes = ray_slopes(camera)
    film = 3 + 8 * slopes[..., 0] - 5 * slopes[..., 1]
    found, known = OWN.resample(film, camera, roll=roll)
    turn = torch.deg2rad(torch.tensor(roll, dtype=torch.float64))
    x, y = ray_slopes(OWN.camera).unbind(-1)
    x, y = turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y
    outside = torch.nn.functional.pad((~known).float()[None], (2, 2, 2, 2), value=1.0)
    interior = torch.nn.functional.max_pool2d(outside, 5, 1)[0] == 0  # pixels that are wholly covered
    assert int(interior.sum()) > 500
    assert torch.allclose(found.double()[interior], (3 + 8 * x - 5 * y)[interior], atol=2e-4)


@pytest.mark.parametrize("form", ["reversed", "big endian"])
def test_arrays_of_any_layout_are_films(form: str) -> None:
    camera = Camera.c_arm(sdd=1000, sod=700, size=(90, 100), spacing=4.0)
    film = torch.rand(90, 100, generator=torch.Generator().manual_seed(0))
    valid = torch.zeros(90, 100, dtype=torch.bool)
    valid[5:80, 7:] = True
    if form == "reversed":
        given = [x.numpy()[::-1, ::-1].copy()[::-1, ::-1] for x in (film, valid)]
    else:
        given = [film.numpy().astype(">f4"), valid.numpy().astype(">i2")]
    wanted = OWN.resample(film, camera, valid)
    assert all(map(torch.equal, OWN.resample(given[0], camera, given[1]), wanted))


@pytest.mark.parametrize("pixels", [64, 200, 1000])
def test_a_film_of_another_detector_shows_the_same(pixels: int) -> None:
    """Against a render by the canonical camera itself, at the same source."""
    volume = body()
    x = torch.tensor([[12.0, -4.0, 3.0, 9.0, -14.0, 20.0]], dtype=torch.float64)
    camera_from_body = BOX.pose(x, volume.center)[0]
    own = xreg.drr(volume, OWN.camera.resize((256, 256)), camera_from_body, integrator="joseph")
    own = torch.nn.functional.avg_pool2d(own[None], 4)[0]  # pixels are areas
    other = Camera.c_arm(
        sdd=1180, sod=760, primary=-17, secondary=9, size=(pixels, pixels), spacing=480 / pixels,
        principal_point=(0.51 * pixels, 0.47 * pixels),
    )  # fmt: skip
    pose = other.world_from_camera @ camera_from_body
    assert torch.allclose(OWN.back(other, camera_from_body), pose)
    film = xreg.drr(volume, other.replace(sdd=None), pose, integrator="joseph")
    found, known = OWN.resample(film, other)
    off = (found - own)[known].square().mean().sqrt() / own.std()
    assert float(known.float().mean()) > 0.9
    assert float(off) < (0.05 if pixels == 64 else 0.012)


def test_a_rolled_film_is_that_of_a_rolled_camera() -> None:
    volume = body()
    camera_from_body = BOX.pose(BOX.spread(1)[0], volume.center)
    camera = OWN.camera.resize((256, 256))
    film = xreg.drr(volume, camera, camera_from_body, integrator="joseph")
    found, known = OWN.resample(film, camera, roll=15.0)
    # the pose that the rolled camera would see, brought back, is the one that the film was taken at
    turned = se3.from_euler([15.0], "Z", degrees=True)
    seen = se3.inverse(turned) @ camera_from_body
    assert torch.allclose(OWN.back(camera, seen, roll=15.0), camera_from_body)
    expected = xreg.drr(volume, camera, seen, integrator="joseph")
    expected = torch.nn.functional.avg_pool2d(expected[None], 4)[0]
    assert float((found - expected)[known].square().mean().sqrt() / expected.std()) < 0.012


def test_pixels_outside_the_mask_do_not_enter() -> None:
    camera = Camera.c_arm(sdd=1020, sod=850, size=(300, 300), spacing=400 / 300)
    film = torch.full((300, 300), 2.0)
    mask = torch.zeros(300, 300, dtype=torch.bool)
    mask[40:260, 70:] = True
    film[~mask] = torch.nan
    found, known = OWN.resample(film, camera, mask)
    assert torch.allclose(found[known], torch.tensor(2.0), atol=1e-5)
    assert bool((found[~known] == 0).all())
    assert float(known.float().mean()) == pytest.approx(220 / 300 * 230 / 300, abs=0.02)


def test_what_cannot_be_resampled() -> None:
    camera = Camera.c_arm(sdd=1020, sod=850, size=(30, 40), spacing=9.0)
    with pytest.raises(ImageError, match="size"):
        OWN.resample(torch.zeros(40, 30), camera)
    with pytest.raises(ImageError, match="mask"):
        OWN.resample(torch.zeros(30, 40), camera, torch.ones(3, 3))
    beam = Camera.parallel_beam(size=(30, 40), spacing=9.0, sdd=1000)
    with pytest.raises(GeometryError, match="parallel"):
        OWN.resample(torch.zeros(30, 40), beam)
    for wrong in ({"focal": -1.0, "size": 64}, {"focal": 10.0, "size": 3}):
        with pytest.raises(GeometryError):
            Canonical(**wrong)


@given(gain=strategies.floats(0.05, 50), offset=strategies.floats(-20, 20))
@settings(max_examples=20, deadline=None)
def test_normalised_films_do_not_know_gain_and_offset(gain: float, offset: float) -> None:
    films = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    known = torch.ones(2, 32, 32, dtype=torch.bool)
    known[0, :10] = False
    spoiled = torch.where(known, gain * films + offset, 1e4)  # what is not known does not matter
    assert torch.allclose(normalise(films, known), normalise(spoiled, known), atol=1e-6)
    assert bool((normalise(films, known)[~known] == 0).all())


def test_a_film_without_contrast_becomes_zero() -> None:
    assert bool((normalise(torch.full((1, 32, 32), 7.0)) == 0).all())
