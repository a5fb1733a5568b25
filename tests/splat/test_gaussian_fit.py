"""Fitting Gaussians to projections: quality, determinism, resume, the parts by themselves, bad input."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from xreg.errors import FileError, GaussianError, GeometryError, InputWarning
from xreg.geometry import Camera, Rig
from xreg.io import VoxelGrid
from xreg.io.projections import ProjectionSet
from xreg.metrics import psnr
from xreg.splat import FitSettings, Gaussians, fit, fit_to_volume
from xreg.splat.adam import Parameters
from xreg.splat.control import split_and_prune
from xreg.splat.density import image_maps, solve_density
from xreg.splat.losses import roughness, ssim_views
from xreg.splat.poses import Correction, refine_poses
from xreg.splat.prior import matched_prior, on_grid
from xreg.splat.start import default_count, uniform_gaussians
from xreg.splat.views import corrected, views_of
from xreg.tomography import Projector

GRID = VoxelGrid.box((20, 22, 24), (120.0, 110.0, 100.0), (4.0, -3.0, 5.0))
QUICK = FitSettings(init="fdk", count=600, iterations=20, voxel_steps=15, check_every=10)


def places(grid: VoxelGrid) -> torch.Tensor:
    """World places of voxels, [D, H, W, 3]."""
    index = torch.stack(
        torch.meshgrid(*[torch.arange(float(n)) for n in grid.shape], indexing="ij")[::-1], -1
    )
    return index.double() @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def ball(radius: float, at: tuple[float, float, float]) -> torch.Tensor:
    away = (places(GRID) - GRID.center - torch.tensor(at, dtype=torch.float64)).norm(dim=-1).float()
    return ((radius - away) / 5 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return 0.02 * (ball(36, (0, 0, 0)) + ball(10, (12, -10, 6)) - ball(9, (-14, 4, -8)))


@pytest.fixture(scope="module")
def scan(truth) -> ProjectionSet:
    angles = torch.arange(10, dtype=torch.float64) * 36
    cameras = Camera.c_arm(
        sdd=900.0, sod=600.0, size=(32, 36), spacing=6.0, primary=angles, isocenter=GRID.center
    )
    rig = Rig(tuple(cameras))
    return ProjectionSet(Projector(rig, GRID).forward(truth), rig, GRID, GRID.volume(truth))


def quality(result, truth) -> float:
    return psnr(result.gaussian_volume().mu, truth, data_range=0.04)


def test_a_fit_comes_near_the_truth_and_repeats_its_bits(scan, truth) -> None:
    first, second = fit(scan, QUICK), fit(scan, QUICK)
    assert quality(first, truth) > 27
    for (name, one), (_, other) in zip(first.gaussians.items(), second.gaussians.items(), strict=True):
        assert torch.equal(one, other), name
    assert first.history[-1][3] < 0.9 * first.history[0][3], (
        "steps on views lower the misfit of held-out rays"
    )


def test_a_fit_that_was_broken_off_ends_with_the_same_bits(scan, tmp_path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    whole = fit(scan, QUICK)
    fit(scan, QUICK, checkpoint=file, tell=lambda report: report.phase == "views" and report.step == 10)
    assert "now.mean" in load_file(file)
    rest = fit(scan, QUICK, checkpoint=file, resume=True)
    assert rest.steps == whole.steps
    for (name, one), (_, other) in zip(whole.gaussians.items(), rest.gaussians.items(), strict=True):
        assert torch.equal(one, other), name


def test_splits_go_on_with_the_same_bits(scan, tmp_path) -> None:
    """The checkpoint lies between two splits, so the pull since the last one is needed."""
    settings = replace(QUICK, init="uniform", count=200, grow_every=4, iterations=18, check_every=6)
    file = tmp_path / "checkpoint.safetensors"
    whole = fit(scan, settings)
    fit(scan, settings, checkpoint=file, tell=lambda report: report.phase == "views" and report.step == 6)
    rest = fit(scan, settings, checkpoint=file, resume=True)
    assert len(rest.gaussians) == len(whole.gaussians)
    for (name, one), (_, other) in zip(whole.gaussians.items(), rest.gaussians.items(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("what", ["grid", "films", "cameras", "prior"])
def test_a_fit_does_not_go_on_with_other_data(scan, truth, tmp_path, what) -> None:
    file = tmp_path / "checkpoint.safetensors"
    settings = replace(QUICK, count=100, voxel_steps=1, iterations=1)
    fit(scan, settings, checkpoint=file)
    shifted = Rig(
        tuple(c.replace(K=c.K + torch.tensor([[0, 0, 4.0], [0, 0, 0], [0, 0, 0]])) for c in scan.cameras)
    )
    images = scan.images.clone()
    images[0, 15, 18:22] = images[0, 15, 18:22].flip(0)  # their sum stays
    other, known = {
        "grid": (scan, {"grid": VoxelGrid.box(GRID.shape, (132.0, 121.0, 110.0), GRID.center)}),
        "films": (replace(scan, images=images), {}),
        "cameras": (replace(scan, cameras=shifted), {}),
        "prior": (scan, {"prior": GRID.volume(truth)}),
    }[what]
    words = {"grid": r"another grid .*110 .*121", "prior": r"no prior \(there is one now\)"}
    with pytest.raises(GaussianError, match=f"belongs to a fit with {words.get(what, f'other {what}')}"):
        fit(other, settings, checkpoint=file, resume=True, **known)
    with pytest.raises(GaussianError, match="another grid"):
        fit(scan, settings, checkpoint=file, resume=True, grid=VoxelGrid.box(16, 120.0, GRID.center))


def test_certain_rays_count_more(scan, truth) -> None:
    top = float(scan.images.max())
    noise = torch.randn(scan.images.shape, generator=torch.Generator().manual_seed(0))
    strong = replace(scan, images=scan.images + 0.02 * top * torch.exp(1.5 * scan.images / top) * noise)
    settings = replace(QUICK, init="tv")
    weighed, alike = (fit(strong, replace(settings, weigh_rays=w)).volume().mu for w in (True, False))
    assert psnr(weighed, truth, data_range=0.04) > psnr(alike, truth, data_range=0.04) + 0.2


def test_gaussians_are_no_more_than_voxels_show_or_rays_tell() -> None:
    grid = VoxelGrid.box(64, 100.0)
    assert default_count(grid, 10**7) == 64**3 // 10
    assert default_count(grid, 160_000) == 10_000
    assert default_count(grid, 100) == 2000


def test_checkpoints_of_something_else_are_refused(scan, tmp_path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    fit(scan, FitSettings(init="fdk", count=100, iterations=1, voxel_steps=1), checkpoint=file)
    with pytest.raises(GaussianError, match="count was 100, now 90"):
        fit(scan, FitSettings(init="fdk", count=90, voxel_steps=1), checkpoint=file, resume=True)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(FileError, match="damaged"):
        fit(scan, FitSettings(init="fdk", count=100, voxel_steps=1), checkpoint=file, resume=True)


def test_other_starts_and_losses(scan, truth) -> None:
    base = replace(QUICK, iterations=10, count=300, voxel_steps=5)
    uniform = fit(scan, replace(base, init="uniform", grow_every=4, ssim=0.1, loss="l1", density_every=5))
    assert 100 < len(uniform.gaussians) <= 300
    prior = fit(scan, base, prior=GRID.volume(truth))
    assert quality(prior, truth) > quality(uniform, truth)
    positive = fit(scan, replace(base, nonnegative=True, held_out=0.0))
    assert float(positive.gaussians.density.min()) >= 0


def test_a_prior_of_another_unit_is_brought_to_that_of_the_films(scan, truth) -> None:
    settings = replace(QUICK, count=300, voxel_steps=5, iterations=10)
    plain = fit(scan, settings, prior=GRID.volume(truth))
    with pytest.warns(InputWarning, match="multiplied by 0.14"):
        other = fit(scan, settings, prior=GRID.volume(7 * truth))
    torch.testing.assert_close(other.volume().mu, plain.volume().mu, rtol=0, atol=2e-5)
    assert psnr(other.volume().mu, truth, data_range=0.04) > quality(other, truth)  # it is finished
    with pytest.raises(GaussianError, match="nothing in common"):
        fit(scan, settings, prior=GRID.volume(0.02 * ball(12, (0, 0, 44))))
    views, away = views_of(scan, GRID, 0.0, 0), GRID.volume(0.02 * ball(12, (16, 10, 20)))
    with pytest.warns(InputWarning, match="multiplied"), pytest.warns(InputWarning, match="correlate"):
        matched_prior(away, views, GRID)
    with pytest.raises(GeometryError, match=r"the prior lies elsewhere .* no ray of any view meets"):
        fit(scan, settings, prior=VoxelGrid.box(GRID.shape, 100.0, (0, 0, 900.0)).volume(truth))


def test_a_prior_needs_no_detector_and_may_have_wide_air(scan, truth) -> None:
    """The same factor, by cameras without sdd, and from a grid that reaches behind the sources."""
    views = views_of(scan, GRID, 0.0, 0)
    prior = GRID.volume(truth)
    plain = matched_prior(prior, views, GRID).mu / prior.mu.clamp_min(1e-9)
    endless = replace(views, cameras=tuple(camera.replace(sdd=None) for camera in views.cameras))
    factor = matched_prior(prior, endless, GRID).mu / prior.mu.clamp_min(1e-9)
    torch.testing.assert_close(factor, plain, rtol=1e-4, atol=1e-4)
    grid = VoxelGrid.box((40, 40, 40), (1600.0, 1600.0, 1600.0), GRID.center)
    mu = torch.zeros(grid.shape)
    mu[19:22, 19:22, 19:22] = 0.02
    near = GRID.volume(on_grid(grid.volume(mu), GRID))
    with pytest.warns(InputWarning):
        found = matched_prior(grid.volume(mu), views, GRID).mu.max() / mu.max()
    with pytest.warns(InputWarning):
        assert found == pytest.approx(
            float(matched_prior(near, views, GRID).mu.max() / near.mu.max()), rel=1e-5
        )


def test_a_prior_is_read_on_the_grid_of_the_fit(truth) -> None:
    """Linear values come out as they are, from coarser voxels that lie elsewhere and from finer ones."""

    def plane(grid: VoxelGrid) -> torch.Tensor:
        return 0.01 * (places(grid) @ torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)) + 1

    for n, edge in ((9, 160.0), (60, 150.0)):
        other = VoxelGrid.box(n, edge, (1.0, 2.0, -3.0))
        found = on_grid(other.volume(plane(other)), GRID)
        torch.testing.assert_close(found, plane(GRID), rtol=0, atol=1e-3)
    assert torch.equal(on_grid(GRID.volume(truth), GRID), truth)


def test_voxels_for_linear_interpolation_are_freed_of_its_blur(scan, truth) -> None:
    """The projections were marched through voxels of this grid, so such voxels come nearer to the truth."""
    plain, linear = (fit(scan, replace(QUICK, voxels=kind)) for kind in ("samples", "linear"))
    assert quality(linear, truth) > quality(plain, truth)
    narrow = linear.gaussians.widened(-linear.hat)
    torch.testing.assert_close(linear.gaussian_volume().mu, narrow.to_volume(linear.volume()).mu)


def test_the_volume_is_the_mean_of_the_gaussians_and_the_finished_voxels(scan, truth, tmp_path) -> None:
    noise = torch.randn(scan.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = replace(scan, images=(scan.images + 0.05 * noise).clamp_min(0))
    quick = replace(QUICK, init="tv", voxels="linear")
    file = tmp_path / "checkpoint.safetensors"
    found = fit(noisy, quick, checkpoint=file)
    alone = found.gaussian_volume().mu
    torch.testing.assert_close(found.volume().mu, 0.5 * alone + 0.5 * found.finished)
    each = [psnr(mu, truth, data_range=0.04) for mu in (found.volume().mu, alone, found.finished)]
    assert each[0] > max(each[1:]), each  # their errors partly cancel
    again = fit(noisy, quick, checkpoint=file, resume=True)
    assert torch.equal(again.volume().mu, found.volume().mu)
    only = fit(noisy, replace(quick, finish_passes=0, iterations=1))
    assert torch.equal(only.volume().mu, only.gaussian_volume().mu)
    assert fit(noisy, replace(quick, init="fdk", iterations=1)).finished is None
    ended = fit(noisy, quick, tell=lambda report: report.phase == "views")
    assert ended.finished is None
    assert ended.steps < found.steps


def test_a_matrix_and_its_transpose(scan) -> None:
    body = uniform_gaussians(views_of(scan, GRID, 0.0, 0), GRID, 60).to(dtype=torch.float64)
    rays = views_of(scan, GRID, 0.0, 0).rays(body)
    forward, transposed = image_maps(body.mean, body.scale, body.rotation, rays, (32, 36))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(body), generator=generator, dtype=torch.float64)
    y = torch.randn(10, 32, 36, generator=generator, dtype=torch.float64)
    assert float((forward(x) * y).sum()) == pytest.approx(float((x * transposed(y)).sum()), rel=1e-10)


def test_a_lattice_has_the_mean_of_all_views(scan) -> None:
    """The first view is turned away, and the others tell the density alike."""
    lost = Rig(tuple(c.replace(K=c.K + torch.tensor([[0, 0, 900.0 * (n == 0)], [0, 0, 0], [0, 0, 0]]))
                     for n, c in enumerate(scan.cameras)))  # fmt: skip
    images = scan.images.clone()
    images[0] = 0
    whole = uniform_gaussians(views_of(scan, GRID, 0.0, 0), GRID, 60)
    part = uniform_gaussians(views_of(ProjectionSet(images, lost, GRID), GRID, 0.0, 0), GRID, 60)
    assert float(part.density[0]) == pytest.approx(float(whole.density[0]), rel=0.02)
    drawn = torch.stack([whole.render(camera) for camera in scan.cameras])
    assert float(drawn.mean()) == pytest.approx(float(scan.images.mean()), rel=1e-4)
    aside = VoxelGrid.box(4, 40.0, GRID.center + torch.tensor([0, 0, 400.0]))
    with pytest.raises(GaussianError, match="no view sees"):
        uniform_gaussians(views_of(scan, GRID, 0.0, 0), aside, 60)


def test_solved_densities_are_those_of_least_squares(scan) -> None:
    views = views_of(scan, GRID, 0.0, 0)
    body = uniform_gaussians(views, GRID, 24).to(dtype=torch.float64)
    maps = image_maps(body.mean, body.scale, body.rotation, views.rays(body), (32, 36))
    films, weights = scan.images.double(), views.weights.double()
    columns = torch.stack([maps[0](e).flatten() for e in torch.eye(len(body), dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(columns, films.flatten()).solution
    found = solve_density(maps, films, weights, body.density, iterations=60)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_splits_keep_the_content_and_prunes_drop_the_weak() -> None:
    n = 5
    start = Gaussians(
        torch.zeros(n, 3), torch.tensor([[1.0, 0.2, 0.1]]).repeat(n, 1),
        torch.tensor([[0.1, 0.2, 0.3, 0.9]]).repeat(n, 1),
        torch.tensor([1.0, 1.0, 1e-6, 1.0, -1.0]),
    )  # fmt: skip
    parameters = Parameters(start, (1, 1, 1, 1), voxel=1.0, peak=1.0)
    content = lambda g: float((g.density * g.log_scale.sum(1).exp()).sum())  # noqa: E731
    dropped, split = split_and_prune(
        parameters, torch.tensor([1.0, 5, 0, 2, 1]), most=5, share=0.5, prune=1e-3
    )
    after = parameters.gaussians()
    assert (dropped, split, len(after)) == (1, 1, 5)
    assert content(after) == pytest.approx(content(start), rel=1e-4)
    assert torch.allclose(after.mean.sum(0), torch.zeros(3), atol=1e-6)


def test_roughness_and_similarity() -> None:
    ramp = torch.arange(5.0)[None, None, :].expand(4, 4, 5) * 3
    assert float(roughness(ramp, (1.0, 1.0, 1.0))) == pytest.approx(3.0, rel=1e-5)
    x = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(ssim_views(x, x, 1.0)) == pytest.approx(1.0)
    y = (0.8 * x).requires_grad_()
    torch.autograd.gradcheck(
        lambda v: ssim_views(v, x, 1.0), y[:, :8, :8].detach()[:1].repeat(2, 2, 2).requires_grad_()
    )


def test_poses_and_detector_are_found_by_an_object_that_is_known(scan, truth) -> None:
    volume = GRID.volume(truth)
    body = fit_to_volume(Gaussians.from_volume(volume, 500), volume, steps=20)
    generator = torch.Generator().manual_seed(1)
    change = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    change = change * torch.tensor([math.radians(0.6)] * 3 + [1.2] * 3, dtype=torch.float64)
    change = change - change.mean(0)
    common = torch.tensor([0.8, -0.5, 0.01], dtype=torch.float64)
    true = [corrected(c, x, common, GRID.center) for c, x in zip(scan.cameras, change, strict=True)]
    with torch.no_grad():
        films = torch.stack([body.render(c) for c in true])
    views = views_of(ProjectionSet(films, scan.cameras, GRID), GRID, 0.0, 0)
    nominal, known = views.cameras, Correction.none(10)
    for _ in range(4):
        known = refine_poses(body, views, nominal, known, center=GRID.center, intrinsics=True, noise=1e-4)
        cameras = known.cameras(nominal, GRID.center)
        views = replace(views, cameras=cameras)
    with torch.no_grad():
        left = torch.stack([body.render(c) for c in cameras]) - films
        before = torch.stack([body.render(c) for c in nominal]) - films
    share = float(left.norm()) / float(before.norm())
    assert share < 0.05, f"{share:.3f} of the misfit is left"
    assert float(known.change.mean(0).abs().max()) < 1e-9


def test_a_start_by_fdk_goes_on_where_poses_have_left_the_circle(scan, truth) -> None:
    generator = torch.Generator().manual_seed(3)
    turns = torch.randn(10, 3, generator=generator, dtype=torch.float64) * math.radians(1.0)
    change, none = torch.cat([turns, 0 * turns], 1), torch.zeros(3, dtype=torch.float64)
    moved = [corrected(c, x, none, GRID.center) for c, x in zip(scan.cameras, change, strict=True)]
    leaning = Rig(tuple(moved))
    with pytest.raises(GeometryError, match="FDK needs a circular scan"):
        fit(replace(scan, cameras=leaning), QUICK)
    films = Projector(leaning, GRID).forward(truth)
    found = fit(replace(scan, images=films), replace(QUICK, poses=True, pose_rounds=2, iterations=5))
    with pytest.raises(GeometryError, match="FDK needs a circular scan"):
        fit(ProjectionSet(films, found.cameras, GRID), QUICK)
    assert quality(found, truth) > 25


def test_bad_input_is_named(scan) -> None:
    with pytest.raises(GaussianError, match="needs a box"):
        fit(ProjectionSet(scan.images, scan.cameras), QUICK)
    with pytest.raises(GaussianError, match="nothing to fit"):
        fit(ProjectionSet(scan.images * 0, scan.cameras, GRID), QUICK)
    with pytest.raises(FileError, match="does not exist; make it first"):
        fit(scan, QUICK, checkpoint="/no/such/folder/x.safetensors")
    with pytest.raises(GaussianError, match="needs checkpoint="):
        fit(scan, QUICK, resume=True)
    flat = VoxelGrid.box(GRID.shape, (144.0, 110.0, 100.0), GRID.center)
    with pytest.raises(GaussianError, match="voxels that are cubes, got 6×5×5 mm"):
        fit(scan, replace(QUICK, voxels="linear"), grid=flat)
    for rates in ((0.01, 0.003), (0.01, 0.003, 0.003, math.nan), (0.01, 0.003, -0.003, 0.0), 0.01):
        with pytest.raises(GaussianError, match="rates must be four"):
            FitSettings(rates=rates)
    for wrong in ({"init": "noise"}, {"views": 0}, {"held_out": 0.7}, {"seconds": -1.0}, {"count": 0}):
        with pytest.raises(GaussianError):
            FitSettings(**wrong)
