import copy
import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import VolumeError
from xreg.io.grid import labelled
from xreg.volume import Volume

quick = settings(deadline=None, max_examples=25)


def rotation(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return q


def make_affine(spacing=(0.7, 0.9, 2.5), origin=(-10.0, 4.0, 33.0), seed=None) -> torch.Tensor:
    affine = torch.eye(4, dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64) if seed is None else rotation(seed)
    affine[:3, :3] = turn @ torch.diag(torch.tensor(spacing, dtype=torch.float64))
    affine[:3, 3] = torch.tensor(origin, dtype=torch.float64)
    return affine


def make_mu(shape=(4, 5, 6), seed=0, dtype=torch.float32) -> torch.Tensor:
    return 0.02 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 1e-4


def world_of_voxels(volume: Volume) -> torch.Tensor:
    """World position of every voxel, [D, H, W, 3]."""
    d, h, w = volume.shape
    k, j, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (d, h, w)), indexing="ij")
    index = torch.stack([i, j, k], -1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def test_geometry():
    affine = make_affine(seed=3)
    volume = Volume(make_mu(), affine)
    assert volume.shape == (4, 5, 6)
    assert volume.size == (6, 5, 4)
    assert volume.spacing == pytest.approx((0.7, 0.9, 2.5))
    assert volume.extent == pytest.approx((4.2, 4.5, 10.0))
    world = world_of_voxels(volume).reshape(-1, 3)
    torch.testing.assert_close(volume.center, world.mean(0))
    torch.testing.assert_close(volume.grid_corners.mean(0), volume.center)
    torch.testing.assert_close(volume.box_corners.mean(0), volume.center)
    torch.testing.assert_close(volume.grid_corners[0], affine[:3, 3])
    torch.testing.assert_close(volume.grid_corners[1], (affine @ torch.tensor([5.0, 0, 0, 1]).double())[:3])
    torch.testing.assert_close(
        volume.box_corners[4], (affine @ torch.tensor([-0.5, -0.5, 3.5, 1]).double())[:3]
    )
    torch.testing.assert_close(volume.index_from_world @ affine, torch.eye(4, dtype=torch.float64))
    assert volume.affine.dtype == torch.float64


def test_affine_is_copied_and_may_be_mirrored():
    affine = torch.diag(torch.tensor([-1.0, 1, 1, 1])).numpy()
    volume = Volume(make_mu(), affine)
    affine[0, 3] = 100
    assert float(volume.affine[0, 3]) == 0
    assert volume.axis_codes == "LAS"


def test_repr_is_one_useful_line():
    labels = torch.zeros(4, 5, 6, dtype=torch.int64)
    text = repr(Volume(make_mu(), make_affine(), labels, {1: "hip"}, energy_kev=70))
    assert "\n" not in text
    for part in ("6×5×4", "0.7×0.9×2.5 mm", "RAS", "70 keV", "1 named", "float32", "cpu"):
        assert part in text


@pytest.mark.parametrize(
    ("mu", "message"),
    [
        (torch.ones(3, 3, 3, dtype=torch.int16), "from_hu"),
        (torch.ones(3, 3, 3, dtype=torch.float16), "float32 or float64"),
        (torch.ones(3, 3), r"\[D, H, W\]"),
        (torch.ones(1, 3, 3, 3), r"\[D, H, W\]"),
        (torch.zeros(3, 3, 3), "all-air"),
        (-torch.ones(3, 3, 3), "all-air"),
        (torch.full((3, 3, 3), float("nan")), "27 NaN"),
        (torch.full((3, 3, 3), float("inf")), "27 infinite"),
        (np.ones((3, 3, 3), np.float32), "torch tensor"),
    ],
)
def test_bad_mu(mu, message):
    with pytest.raises(VolumeError, match=message):
        Volume(mu, torch.eye(4))


def test_bad_affine():
    singular = torch.diag(torch.tensor([1.0, 0, 1, 1]))
    parallel = torch.eye(4)
    parallel[:3, 1] = parallel[:3, 0]
    projective = torch.eye(4)
    projective[3, 0] = 0.1
    for affine, message in [
        (singular, "singular"),
        (parallel, "singular"),
        (projective, "last row"),
        (torch.eye(3), r"\[4, 4\]"),
        (torch.full((4, 4), float("nan")), "finite"),
    ]:
        with pytest.raises(VolumeError, match=message):
            Volume(make_mu(), affine)


def test_labels_checked():
    mu = make_mu()
    with pytest.raises(VolumeError, match="shape of mu"):
        Volume(mu, torch.eye(4), torch.zeros(4, 5, 7, dtype=torch.int32))
    with pytest.raises(VolumeError, match="integers"):
        Volume(mu, torch.eye(4), torch.zeros(4, 5, 6))
    with pytest.raises(VolumeError, match="zero"):
        Volume(mu, torch.eye(4), torch.full((4, 5, 6), -1))
    small = Volume(mu, torch.eye(4), torch.full((4, 5, 6), 255))
    assert small.labels.dtype == torch.uint8
    large = Volume(mu, torch.eye(4), torch.full((4, 5, 6), 256))
    assert large.labels.dtype == torch.int32
    assert Volume(mu, torch.eye(4), torch.ones(4, 5, 6, dtype=torch.bool)).labels.dtype == torch.uint8


def test_energy_checked():
    with pytest.raises(VolumeError, match="keV"):
        Volume(make_mu(), torch.eye(4), energy_kev=120000)


def test_from_hu_and_back():
    hu = torch.randint(-1024, 2500, (4, 5, 6), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    volume = Volume.from_hu(hu, make_affine(), energy_kev=60, ct_energy_kev=75)
    assert volume.mu.dtype == torch.float32
    torch.testing.assert_close(volume.hu, hu.clamp_min(-1000).float(), atol=0.01, rtol=0)
    with pytest.raises(VolumeError, match="1 NaN"):
        Volume.from_hu(torch.tensor([[[float("nan"), 0.0]]]), make_affine())
    with pytest.raises(VolumeError, match="infinite"):
        Volume.from_hu(torch.tensor([[[-float("inf"), 0.0]]]), make_affine())
    with pytest.raises(VolumeError, match="all-air"):
        Volume.from_hu(torch.full((3, 3, 3), -1000), make_affine())


def test_at_energy():
    hu = torch.linspace(-900, 2000, 120, dtype=torch.float64).reshape(4, 5, 6)
    volume = Volume.from_hu(hu, make_affine(), energy_kev=70)
    direct = Volume.from_hu(hu, make_affine(), energy_kev=45)
    moved = volume.at_energy(45)
    torch.testing.assert_close(moved.mu, direct.mu)
    assert moved.energy_kev == 45
    torch.testing.assert_close(moved.at_energy(70).mu, volume.mu)
    assert volume.at_energy(70) is volume
    with pytest.raises(VolumeError, match="energy"):
        Volume(make_mu(), make_affine()).at_energy(50)
    with pytest.raises(VolumeError, match="energy"):
        _ = Volume(make_mu(), make_affine()).hu


def test_crop_by_box_keeps_world_positions():
    volume = Volume(make_mu(), make_affine(seed=5), torch.arange(120).reshape(4, 5, 6))
    part = volume.crop([(1, 5), (0, 3), (2, 4)])
    assert part.size == (4, 3, 2)
    torch.testing.assert_close(part.mu, volume.mu[2:4, 0:3, 1:5])
    assert (part.labels == volume.labels[2:4, 0:3, 1:5]).all()
    torch.testing.assert_close(world_of_voxels(part), world_of_voxels(volume)[2:4, 0:3, 1:5])
    for box in ([(0, 7), (0, 3), (0, 2)], [(2, 2), (0, 3), (0, 2)], [(-1, 2), (0, 3), (0, 2)], [(0, 1)]):
        with pytest.raises(VolumeError, match="box"):
            volume.crop(box)


def test_crop_by_label_with_margin():
    labels = torch.zeros(10, 12, 14, dtype=torch.int32)
    labels[4:6, 5, 7:9] = 3
    volume = Volume(make_mu((10, 12, 14)), make_affine((1, 2, 1)), labels, {3: "talus"})
    assert volume.crop(labels="talus").size == (2, 1, 2)
    assert volume.crop(labels=[3], margin_mm=2.0).size == (6, 3, 6)
    assert volume.crop(labels=3, margin_mm=1000).size == volume.size
    with pytest.raises(VolumeError, match="no voxel has label"):
        volume.crop(labels=9)
    with pytest.raises(VolumeError, match="did you mean talus"):
        volume.crop(labels="tallus")
    with pytest.raises(VolumeError, match="no labels"):
        Volume(make_mu(), make_affine()).crop(labels=1)
    with pytest.raises(VolumeError, match="either box"):
        volume.crop()
    with pytest.raises(VolumeError, match="margin_mm"):
        volume.crop(labels=3, margin_mm=-1)


@quick
@given(st.integers(0, 1000), st.tuples(*[st.floats(0.4, 4.0)] * 3), st.booleans())
def test_resample_reproduces_a_world_linear_field(seed, spacing, antialias):
    affine = make_affine((1.1, 0.8, 1.7), seed=seed)
    shape = (13, 17, 15)
    plain = Volume(torch.ones(shape, dtype=torch.float64), affine)
    slope = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    field = 100.0 + world_of_voxels(plain) @ slope
    out = Volume(field, affine).resample(spacing, antialias=antialias)
    assert out.spacing == pytest.approx(spacing)
    torch.testing.assert_close(out.center, plain.center)
    expected = 100.0 + world_of_voxels(out) @ slope
    # inside: a whole new voxel away from the outermost old centres
    index = world_of_voxels(out) @ plain.index_from_world[:3, :3].T + plain.index_from_world[:3, 3]
    reach = (
        0.5 * torch.tensor(spacing, dtype=torch.float64) / torch.tensor(plain.spacing, dtype=torch.float64)
    )
    last = torch.tensor(plain.size, dtype=torch.float64) - 1
    inside = ((index >= reach) & (index <= last - reach)).all(-1)
    assert inside.any() or max(spacing) > 3
    torch.testing.assert_close(out.mu[inside], expected[inside], rtol=0, atol=1e-9)


def test_resample_details():
    volume = Volume(make_mu((8, 8, 8)), make_affine((1, 1, 1)), torch.arange(512).reshape(8, 8, 8))
    same = volume.resample(1.0)
    torch.testing.assert_close(same.mu, volume.mu)
    assert (same.labels == volume.labels).all()
    half = volume.resample(2.0)
    pooled = torch.nn.functional.avg_pool3d(volume.mu[None, None], 2)[0, 0]
    assert half.size == (4, 4, 4)
    torch.testing.assert_close(half.box_corners, volume.box_corners)
    assert torch.corrcoef(torch.stack([half.mu.flatten(), pooled.flatten()]))[0, 1] > 0.95
    fine = volume.resample(0.5)
    assert (fine.labels[::2, ::2, ::2] == volume.labels).all()
    assert volume.resample(100.0).size == (1, 1, 1)
    assert volume.resample((1.0, 2.0, 4.0)).size == (8, 4, 2)
    for bad in (-1.0, 0.0, (1.0, 2.0), float("nan")):
        with pytest.raises(VolumeError, match="spacing"):
            volume.resample(bad)


def test_resample_gradient():
    mu = make_mu((3, 4, 5), dtype=torch.float64).requires_grad_()
    affine = make_affine((1, 1, 1))
    assert torch.autograd.gradcheck(lambda m: Volume(m, affine).resample((1.5, 0.7, 1.2)).mu, (mu,))


def test_threshold():
    hu = torch.linspace(-1000, 1500, 120).reshape(4, 5, 6)
    volume = Volume.from_hu(hu, make_affine(), energy_kev=60)
    bone = volume.threshold(min_hu=200)
    assert ((bone.mu > 0) == (hu >= 200)).all()
    limit = float(volume.mu[2, 2, 2])
    assert ((volume.threshold(limit).mu > 0) == (volume.mu >= limit)).all()
    with pytest.raises(VolumeError, match="leaves no voxel"):
        volume.threshold(min_hu=3000)
    with pytest.raises(VolumeError, match="either min_mu"):
        volume.threshold()


def test_only():
    labels = torch.arange(120).reshape(4, 5, 6) % 4
    volume = Volume(make_mu(), make_affine(), labels, {1: "left", 2: "right", 3: "left"})
    kept = volume.only("left")
    inside = (labels == 1) | (labels == 3)
    assert ((kept.mu > 0) == inside).all()
    assert (kept.labels == torch.where(inside, labels, 0)).all()
    assert (volume.only([2]).mu == torch.where(labels == 2, volume.mu, 0)).all()
    with pytest.raises(VolumeError, match="labels present are 0, 1, 2, 3"):
        volume.only(77)
    with pytest.raises(VolumeError, match="at least one"):
        volume.only([])


def test_reoriented_agrees_with_nibabel_and_keeps_positions():
    generator = torch.Generator().manual_seed(0)
    mu = make_mu((3, 4, 5), seed=2)
    labels = torch.randint(0, 9, (3, 4, 5), generator=generator)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((-1.0, 1.0), repeat=3):
            affine = make_affine((1, 2, 3))
            affine[:3, :3] = (affine[:3, :3] * torch.tensor(signs, dtype=torch.float64))[:, list(order)]
            tilt = torch.linalg.matrix_exp(0.1 * torch.tensor([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]).double())
            affine[:3, :3] = tilt @ affine[:3, :3]
            volume = Volume(mu, affine, labels)
            out = volume.reoriented()
            expected = nib.as_closest_canonical(
                nib.Nifti1Image(mu.numpy().transpose(2, 1, 0), affine.numpy())
            )
            np.testing.assert_allclose(out.affine.numpy(), expected.affine, atol=1e-12)
            np.testing.assert_array_equal(out.mu.numpy().transpose(2, 1, 0), np.asarray(expected.dataobj))
            assert out.axis_codes == "RAS"
            assert volume.axis_codes == "".join(nib.aff2axcodes(affine.numpy()))
            where = out.mu == mu[1, 2, 3]
            torch.testing.assert_close(world_of_voxels(out)[where][0], world_of_voxels(volume)[1, 2, 3])
            assert out.labels[where] == labels[1, 2, 3]


def test_quantised():
    volume = Volume(make_mu() - 0.01, make_affine())
    q, scale = volume.quantised()
    assert q.dtype == torch.int16
    assert q.is_contiguous()
    assert scale == pytest.approx(float(volume.mu.abs().max()) / 32767)
    assert int(q.abs().max()) == 32767
    torch.testing.assert_close(q * scale, volume.mu, atol=0.5001 * scale, rtol=0)
    assert volume.quantised()[0] is q
    volume.mu[0, 0, 0] = 0.5
    assert volume.quantised()[1] == pytest.approx(0.5 / 32767)
    learned = Volume(make_mu().requires_grad_(), make_affine())
    assert learned.quantised()[0] is not learned.quantised()[0]
    assert not learned.quantised()[0].requires_grad
    with torch.inference_mode():
        assert Volume(make_mu(), make_affine()).quantised()[1] > 0


def test_label_channels():
    volume = Volume(make_mu(), make_affine(), torch.arange(120).reshape(4, 5, 6) % 7)
    numbers, channels = volume.label_channels()
    assert numbers.dtype == torch.int16
    assert torch.equal(numbers.long(), volume.labels.long())
    assert channels == 7
    assert volume.label_channels()[0] is numbers
    volume.labels[0, 0, 0] = 200
    assert volume.label_channels()[1] == 201
    assert int(volume.label_channels()[0][0, 0, 0]) == 200
    large = Volume(make_mu(), make_affine(), torch.full((4, 5, 6), 300))
    assert large.label_channels()[1] == 301
    with pytest.raises(VolumeError, match="no labels"):
        Volume(make_mu(), make_affine()).label_channels()
    with torch.inference_mode():
        labels = torch.ones(4, 5, 6, dtype=torch.int32)
        assert Volume(make_mu(), make_affine(), labels).label_channels()[1] == 2


def test_copies_keep_nothing_that_was_computed():
    volume = Volume(make_mu(), make_affine())
    volume.quantised()
    volume.mu[0, 0, 0] = 0.5  # now what is kept is old, and a copy counts its changes from the beginning
    for twin in (copy.deepcopy(volume), copy.copy(volume)):
        assert twin.quantised()[1] == pytest.approx(0.5 / 32767)


@pytest.mark.parametrize("largest", [255, 300])
def test_labelled(largest):
    labels = torch.randint(0, largest + 1, (5, 6, 7), generator=torch.Generator().manual_seed(0))
    labels[0, 0, 0] = largest
    labels = Volume(make_mu((5, 6, 7)), make_affine(), labels).labels
    for numbers in ([], [0], [3, 3, 255, -1, 900], list(range(100))):
        expected = torch.zeros(labels.shape, dtype=torch.bool)
        for n in numbers:
            expected |= labels == n if 0 <= n <= largest else False
        assert torch.equal(labelled(labels, numbers), expected)


def test_gradients_flow_and_the_leaf_stays():
    mu = make_mu().requires_grad_()
    labels = torch.ones(4, 5, 6, dtype=torch.int64)
    volume = Volume(mu, make_affine(), labels, energy_kev=70)
    assert volume.mu is mu
    chain = (
        volume.crop([(0, 4), (0, 4), (0, 4)]).only(1).threshold(1e-5).at_energy(50).reoriented().resample(1.0)
    )
    chain.mu.sum().backward()
    assert mu.grad.isfinite().all()
    assert mu.grad.abs().sum() > 0


def test_to_and_copies():
    volume = Volume(make_mu(), make_affine(), torch.ones(4, 5, 6, dtype=torch.int64), {1: "a"}, 70)
    assert volume.to("cpu") is volume
    double = volume.to(dtype=torch.float64)
    assert double.mu.dtype == torch.float64
    assert double.label_names == {1: "a"}
    volume.quantised()
    twin = copy.deepcopy(volume)
    assert twin.mu is not volume.mu
    torch.testing.assert_close(twin.mu, volume.mu)
    steps = volume.crop([(0, 2)] * 3).threshold(1e-6).provenance["steps"]
    assert [step for step, _ in steps] == ["crop", "threshold"]


def test_numpy_views_and_foreign_byte_orders():
    hu = np.random.default_rng(0).integers(-1000, 1500, (4, 5, 6))
    labels = np.random.default_rng(1).integers(0, 4, (4, 5, 6))
    affine = make_affine(seed=2).numpy()
    plain = Volume.from_hu(hu.astype(np.int16), affine, labels=labels)
    seen = Volume.from_hu(
        np.ascontiguousarray(hu[:, ::-1].astype(np.int16))[:, ::-1],
        np.ascontiguousarray(affine[::-1])[::-1],
        labels=np.ascontiguousarray(labels[::-1])[::-1],
    )
    exact = affine.tolist()
    assert Volume.from_hu(hu, exact).affine.tolist() == exact
    big = Volume.from_hu(hu.astype(">i2"), affine.astype(">f8"), labels=labels.astype(">i4"))
    for other in (seen, big):
        assert torch.equal(other.mu, plain.mu)
        assert torch.equal(other.labels, plain.labels)
        assert torch.equal(other.affine, plain.affine)


def test_labels_too_large_for_channels():
    labels = torch.zeros(4, 5, 6, dtype=torch.int64)
    labels[1, 2, 3] = 32767
    numbers, channels = Volume(make_mu(), make_affine(), labels).label_channels()
    assert (int(numbers[1, 2, 3]), channels) == (32767, 32768)
    labels[1, 2, 3] = 40000
    with pytest.raises(VolumeError, match="largest label is 40000"):
        Volume(make_mu(), make_affine(), labels).label_channels()
    labels[1, 2, 3] = 2**31
    with pytest.raises(VolumeError, match="at most 2147483647, got 2147483648"):
        Volume(make_mu(), make_affine(), labels)


def test_a_name_where_none_is_known_says_what_to_do():
    labels = torch.ones(2, 2, 2, dtype=torch.int16)
    volume = Volume(torch.full((2, 2, 2), 0.02), torch.eye(4, dtype=torch.float64), labels)
    with pytest.raises(VolumeError, match="none has a name: give label_names"):
        volume.label_numbers("spine")
