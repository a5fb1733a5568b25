"""Drawn patients: invertible, reproducible, sides and what is known kept, and where the field is cut."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xreg.errors import ShapeError
from xreg.io import VoxelGrid
from xreg.shape import deform
from xreg.shape.bones import BoneMotion, middles, polyaffine_velocity
from xreg.shape.patients import Patient
from xreg.shape.population import Exposure, Variation, draw_sample, film_patient, vary
from xreg.shape.schemes import SCHEMES

STILL = Variation(
    bone_degrees=0, bone_mm=0, bone_scale=0, coarse=(120.0, 0.0), fine=(40.0, 0.0), between=0, mirror=0,
    zoom=0, turn_degrees=0, shift_mm=0, crop=0, tissue_hu=0, bone_gain=0,
)  # fmt: skip
ALL = SCHEMES["all"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_patient(name: str = "toy", scale: float = 1.0, shift: float = 0.0) -> Patient:
    """Three vertebrae, two hips and a left rib, boxes, on an LAS grid of 5 mm."""
    affine = torch.diag(torch.tensor([-5.0, 5.0, 5.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([70.0 + shift, -60.0, 30.0])
    labels = torch.zeros(36, 28, 28, dtype=torch.int16)
    middle = torch.tensor([18.0, 12.0, 14.0])
    boxes = {"L3": (24, 12, 14), "L4": (19, 12, 14), "L5": (14, 12, 14), "hip_left": (9, 12, 20)}
    for bone, place in {**boxes, "hip_right": (9, 12, 8), "rib_left_12": (25, 12, 21)}.items():
        k, j, i = ((torch.tensor(place) - middle) * scale + middle).round().int().tolist()
        labels[k - 1 : k + 2, j - 2 : j + 3, i - 2 : i + 3] = ALL.index(bone)
    return Patient.from_labels(labels, VoxelGrid(labels.shape, affine), name)


def centroid(patient: Patient, bone: str) -> torch.Tensor:
    """World RAS mm."""
    k, j, i = (patient.labels == ALL.index(bone)).nonzero().double().mean(0)
    return patient.grid.affine[:3, :3] @ torch.stack([i, j, k]) + patient.grid.affine[:3, 3]


# ---- flows ----


def test_the_flow_of_a_linear_velocity_is_the_matrix_exponential() -> None:
    n, spacing = 33, (2.0, 2.0, 2.0)
    linear = torch.tensor([[0.05, -0.2, 0.0], [0.2, 0.0, 0.1], [0.0, -0.1, -0.1]])
    axis = (torch.arange(n) - (n - 1) / 2) * 2.0
    k, j, i = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([i, j, k])
    velocity = torch.einsum("ab,bdhw->adhw", linear, points)
    moved = deform.exponential(velocity, spacing)
    expected = torch.einsum("ab,bdhw->adhw", torch.linalg.matrix_exp(linear) - torch.eye(3), points)
    inner = (slice(None), *(slice(8, -8),) * 3)  # the field is not linear beyond its border
    torch.testing.assert_close(moved[inner], expected[inner], atol=2e-3, rtol=0)
    determinant = float(torch.linalg.det(torch.linalg.matrix_exp(linear)))
    found = deform.jacobians(moved, spacing)[:, 9:-9, 9:-9, 9:-9]
    torch.testing.assert_close(found, torch.full_like(found, determinant), atol=1e-3, rtol=0)


def test_there_and_back_is_nowhere() -> None:
    spacing = (6.0, 6.0, 6.0)
    velocity = 12 * deform.random_field((24, 22, 20), spacing, 60.0, seeded(0))
    there, back = deform.exponential(velocity, spacing), deform.exponential(-velocity, spacing)
    loop = there + deform.at_moved_points(back, there, spacing)
    inner = loop[:, 4:-4, 4:-4, 4:-4].norm(dim=0)
    assert float(there.norm(dim=0).max()) > 10
    assert float(inner.max()) < 1.5  # a quarter of a voxel
    assert float(inner.mean()) < 0.2


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(1.0, 60.0), scale=st.floats(15.0, 90.0))
def test_no_cell_folds_however_wild_the_velocity(seed: int, size: float, scale: float) -> None:
    spacing = (6.0, 5.0, 7.0)
    velocity = size * deform.random_field((12, 10, 11), spacing, scale, seeded(seed))
    moved = deform.invertible(velocity, spacing)
    assert float(deform.jacobians(moved, spacing).min()) > 0
    assert float(moved.abs().max()) > 0.1


def test_smooth_noise_has_unit_variance_and_the_scale_asked_for() -> None:
    field = deform.random_field((60, 60, 60), (5.0, 5.0, 5.0), 20.0, seeded(1))
    assert 0.8 < float(field.std()) < 1.2
    rough = [
        float(deform.random_field((60, 60, 60), (5.0,) * 3, mm, seeded(1)).diff(dim=3).std())
        for mm in (20, 60)
    ]
    assert rough[0] > 2.5 * rough[1]


def test_a_bone_moves_by_its_own_similarity() -> None:
    """One bone alone, drawn turn, shift and scale: its middle moves by the shift."""
    labels = torch.zeros(20, 20, 20, dtype=torch.int16)
    labels[7:13, 7:13, 7:13] = 3
    motion = BoneMotion(0.0, 2.0, 0.0, 0.0)
    velocity = polyaffine_velocity(labels, None, (4.0, 4.0, 4.0), motion, seeded(2))
    inside = velocity[:, 9:11, 9:11, 9:11].flatten(1)
    assert float(inside.std(1).max()) < 0.02 * float(inside.abs().max())
    assert float(velocity[:, 0, 0, 0].abs().max()) == 0
    found = middles(labels, torch.eye(4, dtype=torch.float64), (4.0, 4.0, 4.0))
    torch.testing.assert_close(found.place[3], torch.tensor([38.0, 38.0, 38.0]))
    assert float(found.size[3]) == pytest.approx(24.0, rel=1e-4)
    assert bool(found.whole[3])


# ---- patients ----


def test_without_variation_a_patient_stays() -> None:
    patient = toy_patient()
    new = vary(patient, seeded(0), STILL)
    assert torch.equal(new.labels, patient.labels)
    torch.testing.assert_close(new.hu, patient.hu, atol=0.05, rtol=0)


def test_one_seed_gives_one_patient() -> None:
    patient = toy_patient()
    first, again, other = (draw_sample(patient, seeded(s), toward=toy_patient(scale=1.2)) for s in (4, 4, 5))
    assert torch.equal(first.films, again.films)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    before = torch.get_rng_state()
    draw_sample(patient, seeded(6))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mirrored_patient_has_the_left_on_the_left() -> None:
    patient = toy_patient()
    known = torch.ones(len(ALL), dtype=torch.bool)
    known[ALL.index("rib_left_3")] = False
    new = vary(replace(patient, known=known), seeded(1), replace(STILL, mirror=1.0))
    assert centroid(new, "hip_left")[0] < centroid(new, "hip_right")[0]  # R grows to the right
    middle = patient.grid.center[0]
    assert float((new.labels == ALL.index("rib_left_12")).sum()) == 0
    mirrored = centroid(new, "rib_right_12")
    before = centroid(patient, "rib_left_12")
    torch.testing.assert_close(mirrored[0] - middle, middle - before[0], atol=0.1, rtol=0)
    torch.testing.assert_close(mirrored[1:], before[1:], atol=0.1, rtol=0)
    assert new.known is not None
    assert not bool(new.known[ALL.index("rib_right_3")])
    assert bool(new.known[ALL.index("rib_left_3")])


def test_labels_and_ct_move_together() -> None:
    patient = toy_patient()
    for seed in range(3):
        new = vary(patient, seeded(seed), replace(Variation(), tissue_hu=0.0, bone_gain=0.0))
        bone = new.labels > 0
        assert float(new.hu[bone].mean()) > 250
        assert float(new.hu[~bone].mean()) < 100


def test_the_way_to_another_patient_ends_nearer_to_it() -> None:
    near, far = toy_patient(), toy_patient("far", scale=1.35, shift=400.0)

    def spread(p: Patient) -> float:
        """Hip to hip over L3 to hips: another shape, whatever the scale."""
        hips = centroid(p, "hip_left") - centroid(p, "hip_right")
        return float(hips.norm() / (centroid(p, "L3") - centroid(p, "L5")).norm())

    far = replace(far, labels=_wider_hips(far.labels))
    motion = replace(STILL, between=1.0)
    moved = [vary(near, seeded(s), motion, toward=far) for s in range(6)]
    before, aim = spread(near), spread(far)
    gained = [(spread(m) - before) / (aim - before) for m in moved]
    assert all(-0.1 < g < 1.2 for g in gained)
    assert max(gained) > 0.4


def _wider_hips(labels: torch.Tensor) -> torch.Tensor:
    """Hips two voxels further out than they were, the rest in place."""
    new = labels.clone()
    for bone, step in (("hip_left", 2), ("hip_right", -2)):
        number = ALL.index(bone)
        new[labels == number] = 0
        new[(labels == number).roll(step, 2)] = number
    return new


def test_a_cut_field_lies_within_the_old_one_and_keeps_the_world() -> None:
    patient = toy_patient()
    motion = replace(STILL, crop=1.0, crop_least=0.5)
    for seed in range(5):
        new = vary(patient, seeded(seed), motion)
        inside = new.grid.box_corners
        low, high = patient.grid.box_corners.amin(0), patient.grid.box_corners.amax(0)
        assert bool((inside >= low - 1e-6).all())
        assert bool((inside <= high + 1e-6).all())
        assert new.grid.spacing[0] < 5.0
        number = ALL.index("L4")
        whole = (new.labels == number).sum() * new.grid.voxel_mm3
        if float(whole) > 0.98 * float((patient.labels == number).sum() * patient.grid.voxel_mm3):
            torch.testing.assert_close(centroid(new, "L4"), centroid(patient, "L4"), atol=2.5, rtol=0)


def test_a_sample_of_finer_films_and_views_off_the_axes() -> None:
    patient = toy_patient()
    exposure = Exposure(tilt_degrees=5.0, perspective=1.0)
    sample = draw_sample(patient, seeded(3), exposure=exposure, fine=2)
    assert tuple(sample.films.shape) == (2, 72, 56)
    assert sample.grid.shape == patient.grid.shape
    assert not any(camera.parallel for camera in sample.cameras)
    parallel = film_patient(patient, seeded(3))
    assert all(camera.parallel for camera in parallel.cameras)
    assert tuple(parallel.films.shape) == (2, 36, 28)


def test_a_patient_is_averaged_and_turned_onto_another_grid() -> None:
    patient = toy_patient()
    halves = patient.binned(2)
    assert halves.grid.shape == (18, 14, 14)
    torch.testing.assert_close(halves.hu.mean(), patient.hu.mean(), atol=0.01, rtol=0)
    turned = patient.on(VoxelGrid.box((40, 40, 40), 200.0, patient.grid.center))  # RAS, where it was LAS
    for bone in ("L3", "hip_left", "rib_left_12"):
        torch.testing.assert_close(centroid(turned, bone), centroid(patient, bone), atol=0.8, rtol=0)


def test_patients_on_disk(tmp_path) -> None:
    patient = toy_patient()
    patient.save(tmp_path)
    found = Patient.load(tmp_path)
    assert found.name == patient.name
    assert torch.equal(found.labels, patient.labels)
    torch.testing.assert_close(found.hu, patient.hu.round())
    assert torch.equal(found.grid.affine, patient.grid.affine)


def test_what_cannot_be_varied() -> None:
    patient = toy_patient()
    empty = replace(patient, labels=torch.zeros_like(patient.labels))
    with pytest.raises(ShapeError, match="no bone in"):
        draw_sample(empty, seeded(0))
    with pytest.raises(ShapeError, match="no bone"):
        Patient.from_labels(empty.labels, empty.grid, "x")
    with pytest.raises(ShapeError, match="share a scheme"):
        vary(patient, seeded(0), toward=replace(patient, labels=patient.labels * 0, scheme="spine"))
    with pytest.raises(ShapeError, match="does not know"):
        replace(patient, labels=patient.labels + 60)
    with pytest.raises(ShapeError, match="crop_least"):
        Variation(crop_least=0.0)
