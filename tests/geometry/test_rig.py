"""Rigs: several views of one world."""

import json

import pytest
import torch
from scipy.optimize import least_squares

from xreg.errors import GeometryError
from xreg.geometry import Camera, Rig, se3


def rig() -> Rig:
    words = {"sdd": 1020.0, "sod": 600.0, "spacing": 0.5}
    return Rig(
        (
            Camera.c_arm(size=(100, 140), **words),
            Camera.c_arm(size=(200, 150), primary=80, mirrored=True, **words),
            Camera.parallel_beam(size=(90, 90), primary=40, secondary=20, **words),
        )
    )


def points(count: int = 5) -> torch.Tensor:
    return 30 * torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_views_project_and_triangulate_back() -> None:
    pixels = rig().project(points())
    assert [p.shape for p in pixels] == [(5, 2)] * 3
    found, misfit = rig().triangulate(pixels)
    torch.testing.assert_close(found, points(), atol=1e-9, rtol=0)
    assert misfit.shape == (5, 3)
    assert float(misfit.max()) < 1e-9


def test_triangulation_minimises_the_misfit_in_pixels() -> None:
    noise = torch.Generator().manual_seed(2)
    pixels = [p + torch.randn(p.shape, generator=noise) for p in rig().project(points())]
    found, misfit = rig().triangulate(pixels)
    for i in range(5):

        def residual(x, i=i):
            x = torch.as_tensor(x)[None]
            return torch.cat([c.project(x)[0] - p[i] for c, p in zip(rig(), pixels, strict=True)]).numpy()

        best = least_squares(residual, points()[i].numpy(), xtol=1e-12, ftol=1e-12)
        assert float((misfit[i] ** 2).sum()) < 2 * best.cost * (1 + 1e-4)
        assert float((found[i] - torch.as_tensor(best.x)).norm()) < 0.01


def test_points_seen_once_or_along_parallel_rays_are_nan() -> None:
    pixels = rig().project(points())
    pixels[0][0] = torch.nan
    pixels[0][1] = pixels[2][1] = torch.nan
    found, misfit = rig().triangulate(pixels)
    assert torch.isnan(misfit[0]).tolist() == [True, False, False]
    torch.testing.assert_close(found[0], points()[0], atol=1e-9, rtol=0)
    assert torch.isnan(found[1]).all()
    torch.testing.assert_close(found[2:], points()[2:], atol=1e-9, rtol=0)
    twice = Rig((rig()[0], rig()[0]))
    assert torch.isnan(twice.triangulate(twice.project(points()))[0]).all()


def test_triangulation_takes_batches_and_gradients() -> None:
    step = se3.exp(0.01 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))
    moved = rig().moved(step)
    pixels = [p.requires_grad_() for p in moved.project(points())]
    found, misfit = moved.triangulate(pixels)
    assert found.shape == (4, 5, 3)
    assert misfit.shape == (4, 5, 3)
    torch.testing.assert_close(found, points().expand(4, 5, 3), atol=1e-9, rtol=0)
    gradients = torch.autograd.grad(found.sum() + misfit.sum(), pixels)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_relations_stay_when_the_world_moves() -> None:
    world_from_body = se3.exp(torch.tensor([0.3, -0.2, 0.5, 10, 20, -30], dtype=torch.float64))
    before, after = rig(), rig().moved(world_from_body)
    torch.testing.assert_close(after.relative(0, 1), before.relative(0, 1))
    torch.testing.assert_close(
        before.relative(0, 1) @ before[1].camera_from_world, before[0].camera_from_world, atol=1e-9, rtol=0
    )
    for p, q in zip(
        after.project(points()), before.project(se3.apply(world_from_body, points())), strict=True
    ):
        torch.testing.assert_close(p, q)


def test_each_camera_can_be_changed_and_written() -> None:
    half = rig().map(lambda camera: camera.bin(2))
    assert [c.size for c in half] == [(50, 70), (100, 75), (45, 45)]
    assert len(half.to("cpu")) == 3
    again = Rig.from_dict(json.loads(json.dumps(half.to_dict())))
    assert again.to_dict() == half.to_dict()


def test_what_is_no_rig_is_refused() -> None:
    one, three = Camera.stack([rig()[0]] * 2), Camera.stack([rig()[0]] * 3)
    for attempt, message in (
        (lambda: Rig(()), "one Camera or more"),
        (lambda: Rig((rig()[0], "camera")), "one Camera or more"),
        (lambda: Rig((one, three)), "broadcast"),
        (lambda: rig().triangulate([torch.zeros(1, 2)]), "one entry a view"),
        (lambda: rig().triangulate([torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(1, 2)]), "same N"),
        (lambda: Rig.from_dict({"schema": "xreg.camera/1"}), "xreg.rig/1"),
        (lambda: Rig.from_dict({"schema": "xreg.rig/1", "cameras": None}), "list"),
    ):
        with pytest.raises(GeometryError, match=message):
            attempt()
