"""Camera: validation, batches, gradients against finite differences, and plain data."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import GeometryError
from xreg.geometry import Camera, se3

K = [[1000.0, 0.0, 50.0], [0.0, 900.0, 40.0], [0.0, 0.0, 1.0]]
EYE = np.eye(4).tolist()


def camera(**changes) -> Camera:
    words = {"sdd": 1020.0, "sod": 600.0, "size": (90, 120), "spacing": (0.9, 1.1), "primary": 25.0}
    return Camera.c_arm(
        **(words | {"secondary": -15.0, "roll": 5.0, "principal_point": (70.0, 30.0)} | changes)
    )


def points(count: int = 6) -> torch.Tensor:
    return 50 * torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# ---- taking and refusing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [list, np.asarray, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float32)]
)
def test_numbers_of_any_kind_become_float64_tensors(kind) -> None:
    c = Camera(kind(K), kind(EYE), (80, 100), 1000)
    assert c.K.dtype == c.camera_from_world.dtype == c.sdd.dtype == torch.float64
    assert c.size == (80, 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"K": [[-1000.0, 0, 50], [0, 900, 40], [0, 0, 1]]}, "positive focal"),
        ({"K": [[1000.0, 0, 50], [1, 900, 40], [0, 0, 1]]}, "from_projection_matrix"),
        ({"K": [[1000.0, 0, 50], [0, 900, 40], [0, 0, 2]]}, "K must be"),
        ({"K": [[1000.0, 0, float("nan")], [0, 900, 40], [0, 0, 1]]}, "K must be finite"),
        ({"K": [[1000.0, 0], [0, 900]]}, "shape"),
        ({"K": "intrinsics.txt"}, "numbers"),
        ({"camera_from_world": np.diag([-1.0, 1, 1, 1])}, "mirrored=True"),
        ({"camera_from_world": np.eye(3)}, "shape"),
        ({"camera_from_world": np.zeros((5, 4, 4)) + np.eye(4), "K": np.zeros((3, 3, 3)) + K}, "broadcast"),
        ({"size": (80, 0)}, "positive integers"),
        ({"size": (80.5, 100)}, "positive integers"),
        ({"size": 80}, "two integers"),
        ({"sdd": -1.0}, "sdd must be positive"),
        ({"sdd": float("inf")}, "sdd must be finite"),
    ],
)
def test_what_is_no_camera_is_refused_by_name(changes: dict, message: str) -> None:
    fields = {"K": K, "camera_from_world": EYE, "size": (80, 100), "sdd": 1000.0} | changes
    with pytest.raises(GeometryError, match=message):
        Camera(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sod": -600.0}, "sod must be positive"),
        ({"sod": 1300.0}, "sod .* must not exceed sdd"),
        ({"sdd": 0.0}, "sdd must be positive"),
        ({"spacing": (1.0, 2.0, 3.0)}, "spacing must be"),
        ({"spacing": 0.0}, "spacing must be positive"),
        ({"primary": float("nan")}, "primary must be finite"),
        ({"isocenter": (1.0, 2.0)}, "isocenter must be"),
        ({"principal_point": (1.0, 2.0, 3.0)}, "principal_point must be"),
    ],
)
def test_c_arm_words_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        camera(**changes)


def test_parallel_beam_words_are_checked() -> None:
    for direction in ((0, 0, 0), (1, 2)):
        with pytest.raises(GeometryError, match="direction must be"):
            Camera.parallel_beam(size=(4, 4), spacing=1.0, sdd=10.0, direction=direction)


def test_edits_that_cannot_be_are_refused() -> None:
    c = camera()
    for edit in (
        lambda: c.crop(0, 0, 91, 10),
        lambda: c.crop(-1, 0, 5, 5),
        lambda: c.crop(0, 0, 0, 5),
        lambda: c.pad(0, -1, 0, 0),
        lambda: c.bin(0),
        lambda: c.bin(91),
        lambda: c.resize((10, 0)),
        lambda: Camera([[9.0, 1, 5], [0, 9, 5], [0, 0, 1]], EYE, (10, 10)).rotate90(),
        lambda: c.replace(fokal=3),
        lambda: c.project(torch.zeros(3)),
        lambda: c.unproject(torch.zeros(4, 3)),
    ):
        with pytest.raises(GeometryError):
            edit()


def test_without_sdd_rays_need_it_given() -> None:
    c = Camera(K, EYE, (80, 100))
    for ask in (c.ray_basis, lambda: c.spacing, lambda: c.unproject(torch.zeros(1, 2))):
        with pytest.raises(GeometryError, match="no sdd"):
            ask()
    assert c.project(torch.tensor([[0.0, 0.0, 5.0]])).tolist() == [[50.0, 40.0]]
    torch.testing.assert_close(c.ray_basis(1000.0), c.replace(sdd=1000.0).ray_basis())


def test_sdd_of_a_ray_basis_moves_its_end_only() -> None:
    near, far = camera().ray_basis(510.0), camera().ray_basis()
    torch.testing.assert_close(near[:3], far[:3])
    torch.testing.assert_close(2 * near[3:], far[3:])


# ---- batches ----------------------------------------------------------------------------------------------


def test_words_broadcast_to_a_batch_and_back() -> None:
    primary = torch.linspace(-40, 40, 5)
    batch = camera(primary=primary[:, None], sdd=torch.tensor([900.0, 1000.0, 1100.0]))
    assert batch.batch_shape == (5, 3)
    assert len(batch) == 5
    single = camera(primary=float(primary[1]), sdd=1100.0)
    one = batch[1, 2]
    torch.testing.assert_close(one.project(points()), single.project(points()))
    torch.testing.assert_close(batch.project(points())[1, 2], single.project(points()))
    torch.testing.assert_close(batch.ray_basis()[1, 2], single.ray_basis())
    assert [c.batch_shape for c in batch] == [(3,)] * 5
    assert batch[1:3].batch_shape == (2, 3)
    assert batch[torch.tensor([True, False, True, False, False])].batch_shape == (2, 3)


def test_stack_and_index_are_inverse() -> None:
    singles = [camera(primary=float(p)) for p in (0, 10, 20)]
    stacked = Camera.stack(singles)
    assert stacked.batch_shape == (3,)
    for one, original in zip(stacked, singles, strict=True):
        assert one.to_dict() == original.to_dict()


def test_a_single_camera_is_no_batch() -> None:
    with pytest.raises(TypeError, match="not a batch"):
        len(camera())
    with pytest.raises(TypeError, match="not a batch"):
        camera()[0]
    with pytest.raises(IndexError):
        Camera.stack([camera()])[1]
    with pytest.raises(IndexError):
        Camera.stack([camera()])[0, 0]
    assert camera()


def test_unlike_cameras_do_not_stack() -> None:
    for other in (camera(size=(80, 120)), camera(mirrored=True), camera().replace(sdd=None)):
        with pytest.raises(GeometryError, match="Rig"):
            Camera.stack([camera(), other])
    with pytest.raises(GeometryError, match="at least one"):
        Camera.stack([])


# ---- gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("build", [Camera.c_arm, Camera.parallel_beam])
def test_gradients_match_finite_differences_for_every_word(build, mirrored: bool) -> None:
    def outputs(primary, secondary, roll, sdd, sod, isocenter, spacing, center):
        c = build(
            primary=primary,
            secondary=secondary,
            roll=roll,
            sdd=sdd,
            sod=sod,
            isocenter=isocenter,
            spacing=spacing,
            principal_point=center,
            size=(90, 120),
            mirrored=mirrored,
        )
        pixels, depth = c.project(points(3), return_depth=True)
        back = c.unproject(torch.tensor([[3.0, 4.0], [80.0, 50.0]]))
        return pixels, depth, back, c.ray_basis(), c.bin(2).crop(3, 2, 30, 40).ray_basis(), c.spacing

    words = [(25.0,), (-15.0,), (5.0,), (1020.0,), (600.0,), (3.0, 4.0, 5.0), (0.9, 1.1), (70.0, 30.0)]
    inputs = [torch.tensor(w if len(w) > 1 else w[0], dtype=torch.float64, requires_grad=True) for w in words]
    assert torch.autograd.gradcheck(outputs, inputs, atol=1e-6)


def test_gradients_flow_through_the_fields_and_the_points() -> None:
    def outputs(xi, k_entries, sdd, p):
        base = camera()
        k = base.K + torch.nn.functional.pad(k_entries, (0, 0, 0, 1))
        pose = se3.retract(base.camera_from_world, xi, (0.0, 0.0, 600.0))
        c = Camera(k, pose, base.size, sdd, mirrored=True)
        return c.project(p), c.ray_basis(), c.flip_rows().resize((45, 70)).ray_basis(), c.source

    zero = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    entries = torch.zeros(2, 3, dtype=torch.float64)
    entries = (entries + torch.tensor([[1.0, 0, 1], [0, 1, 1]])).requires_grad_()

    def masked(xi, k_entries, sdd, p):
        return outputs(xi, k_entries * torch.tensor([[1.0, 0, 1], [0, 1, 1]]), sdd, p)

    sdd = torch.tensor(1020.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(masked, (zero, entries, sdd, points(3).requires_grad_()), atol=1e-6)


def test_a_point_behind_the_source_spoils_no_other_gradient() -> None:
    c = camera()
    p = torch.stack([c.source, c.source - 5, points(1)[0]]).requires_grad_()
    pixels = c.project(p)
    assert torch.isnan(pixels[:2]).all()
    (gradient,) = torch.autograd.grad(pixels[2].sum(), p)
    assert torch.isfinite(gradient).all()
    assert float(gradient[:2].abs().max()) == 0.0


# torch.func.jacfwd compiles its own helpers with a call that torch itself deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_and_batched_derivatives_work_unchecked() -> None:
    c = camera()

    def rays(xi: torch.Tensor) -> torch.Tensor:
        return c.with_pose(se3.retract(c.camera_from_world, xi, (0.0, 0.0, 600.0)), check=False).ray_basis()

    zero = torch.zeros(6, dtype=torch.float64)
    forward, reverse = torch.func.jacfwd(rays)(zero), torch.func.jacrev(rays)(zero)
    torch.testing.assert_close(forward, reverse)
    step = 1e-5 * torch.eye(6, dtype=torch.float64)
    central = torch.stack([(rays(h) - rays(-h)) / 2e-5 for h in step], dim=-1)
    torch.testing.assert_close(forward, central, atol=1e-5, rtol=1e-6)


# ---- matrices and data ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    angles=st.tuples(st.floats(-180, 180), st.floats(-89, 89), st.floats(-180, 180)),
    focal=st.tuples(st.floats(200, 9000), st.floats(200, 9000)),
    center=st.tuples(st.floats(-300, 900), st.floats(-300, 900)),
    skew=st.floats(-50, 50),
    scale=st.floats(0.01, 100),
    mirrored=st.booleans(),
    negative=st.booleans(),
)
def test_a_projection_matrix_splits_into_its_camera(
    angles, focal, center, skew, scale, mirrored, negative
) -> None:
    pose = camera(primary=angles[0], secondary=angles[1], roll=angles[2]).camera_from_world
    k = [[focal[0], skew, center[0]], [0.0, focal[1], center[1]], [0.0, 0.0, 1.0]]
    original = Camera(k, pose, (480, 640), 1000.0, mirrored)
    matrix = original.projection_matrix * (-scale if negative else scale)
    found = Camera.from_projection_matrix(matrix, (480, 640), sdd=1000.0)
    assert found.mirrored == mirrored
    torch.testing.assert_close(found.K, original.K, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(found.camera_from_world, pose, rtol=1e-9, atol=1e-7)


def test_projection_matrices_that_are_no_pinhole_are_refused() -> None:
    flat = Camera.parallel_beam(size=(9, 9), spacing=1.0, sdd=10.0)
    with pytest.raises(GeometryError, match="parallel"):
        Camera.from_projection_matrix(flat.projection_matrix, (9, 9))
    with pytest.raises(GeometryError, match="shape"):
        Camera.from_projection_matrix(np.eye(4), (9, 9))
    with pytest.raises(GeometryError, match="depth 0"):
        Camera.from_projection_matrix(np.eye(4)[:3], (9, 9), front=(0, 0, 0))
    with pytest.raises(GeometryError, match="invertible"):
        Camera.from_projection_matrix([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 5]], (9, 9))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_projection_matrix_and_project_agree(parallel: bool, mirrored: bool) -> None:
    build = Camera.parallel_beam if parallel else Camera.c_arm
    c = build(sdd=1020.0, sod=600.0, size=(90, 120), spacing=1.0, primary=[10.0, 50.0], mirrored=mirrored)
    homogeneous = torch.cat([points(), torch.ones(6, 1)], dim=-1) @ c.projection_matrix.mT
    torch.testing.assert_close(homogeneous[..., :2] / homogeneous[..., 2:], c.project(points()))


@pytest.mark.parametrize("sdd", [None, 1020.0])
def test_json_round_trip_keeps_every_digit(sdd: float | None) -> None:
    c = camera(mirrored=True, primary=1 / 3).replace(sdd=sdd)
    data = json.loads(json.dumps(c.to_dict()))
    assert data["schema"] == "xreg.camera/1"
    again = Camera.from_dict(data)
    assert again.to_dict() == c.to_dict()
    torch.testing.assert_close(again.project(points()), c.project(points()), rtol=0, atol=0)


def test_json_of_a_camera_under_gradient_has_plain_numbers() -> None:
    c = camera(sdd=torch.tensor(1020.0, requires_grad=True))
    assert Camera.from_dict(c.to_dict()).to_dict() == c.to_dict()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d | {"schema": "xreg.camera/9"}, "xreg.camera/9"),
        (lambda d: {k: v for k, v in d.items() if k != "K"}, "'K'"),
        (lambda d: d | {"mirrored": 1}, "mirrored"),
        (lambda d: d | {"units": {"sdd": "cm"}}, "units"),
        (lambda d: d | {"K": [[1, 2], [3, 4]]}, "shape"),
        (lambda d: [d], "list"),
    ],
)
def test_json_that_is_no_camera_is_explained(spoil, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        Camera.from_dict(spoil(camera().to_dict()))


def test_a_batch_is_not_written_as_one_camera() -> None:
    with pytest.raises(GeometryError, match="index it first"):
        camera(primary=[1.0, 2.0]).to_dict()


def test_cameras_compare_by_identity_and_cannot_be_changed() -> None:
    c = camera()
    assert c != camera()
    with pytest.raises(AttributeError):
        c.size = (1, 1)  # type: ignore[misc]
    assert c.to("cpu").device == torch.device("cpu")
