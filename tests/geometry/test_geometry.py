"""The rules of the geometry, one after another. Read this file to know them; docs/coordinates.md says why.

World: RAS+ millimetres. x to the patient's right, y to the front (anterior), z to the head (superior).
Camera: x to the right of the image, y down, z from the source to the detector.
Pixels: centres at integers; u counts columns from the left, v rows from the top.
"""

import numpy as np
import pytest
import torch

from xreg.geometry import Camera, se3
from xreg.geometry._numbers import as_tensor

RIGHT, ANTERIOR, HEAD = (torch.eye(3, dtype=torch.float64)[i] for i in range(3))
ISOCENTER = torch.tensor([5.0, -8.0, 13.0], dtype=torch.float64)


def view(**words) -> Camera:
    """A C-arm with a source 600 mm from the isocentre and a detector of 100 rows × 140 columns at 1000 mm."""
    defaults = {"sdd": 1000.0, "sod": 600.0, "size": (100, 140), "spacing": 2.0, "isocenter": ISOCENTER}
    return Camera.c_arm(**(defaults | words))


def pixel(camera: Camera, point: torch.Tensor) -> list[float]:
    return camera.project(point[None])[0].tolist()


def detector_center(camera: Camera) -> torch.Tensor:
    return camera.unproject(camera.principal_point[None])[0]


# ---- C-arm words ------------------------------------------------------------------------------------------


def test_at_zero_the_patient_faces_the_detector() -> None:
    camera = view()
    torch.testing.assert_close(camera.source, ISOCENTER - 600 * ANTERIOR)
    torch.testing.assert_close(detector_center(camera), ISOCENTER + 400 * ANTERIOR)


def test_positive_primary_is_lao_the_detector_moves_to_the_patients_left() -> None:
    center = detector_center(view(primary=30)) - ISOCENTER
    torch.testing.assert_close(center, 400 * (-0.5 * RIGHT + np.sqrt(0.75) * ANTERIOR))
    torch.testing.assert_close(detector_center(view(primary=90)) - ISOCENTER, -400 * RIGHT)
    torch.testing.assert_close(detector_center(view(primary=-90)) - ISOCENTER, 400 * RIGHT)


def test_positive_secondary_is_cranial_the_detector_moves_to_the_head() -> None:
    center = detector_center(view(secondary=30)) - ISOCENTER
    torch.testing.assert_close(center, 400 * (0.5 * HEAD + np.sqrt(0.75) * ANTERIOR))
    both = detector_center(view(primary=90, secondary=30)) - ISOCENTER
    torch.testing.assert_close(both, 400 * (0.5 * HEAD - np.sqrt(0.75) * RIGHT))


def test_the_isocentre_is_always_on_the_principal_ray_at_the_source_distance() -> None:
    camera = view(primary=[0, 40, -70, 180], secondary=[0, 25, -90, 10], roll=[0, 5, 33, -90])
    pixels, depth = camera.project(ISOCENTER.expand(4, 1, 3), return_depth=True)
    torch.testing.assert_close(pixels[:, 0], camera.principal_point.expand(4, 2))
    torch.testing.assert_close(depth[:, 0], torch.full((4,), 600.0, dtype=torch.float64))


def test_roll_turns_the_camera_clockwise_so_the_image_turns_against_it() -> None:
    # Seen along the beam, x turned towards y is clockwise; what was at the right then appears at the top.
    right_of_center = ISOCENTER + 10 * RIGHT
    assert pixel(view(), right_of_center) == pytest.approx([69.5 + 10 / 0.6 / 2, 49.5])
    assert pixel(view(roll=90), right_of_center) == pytest.approx([69.5, 49.5 - 10 / 0.6 / 2])


def test_angles_come_back() -> None:
    camera = view(primary=[12.0, -80.0, 150.0], secondary=[-35.0, 88.0, 0.0], roll=[7.0, -120.0, 90.0])
    primary, secondary, roll = camera.angles
    torch.testing.assert_close(primary, torch.tensor([12.0, -80.0, 150.0], dtype=torch.float64))
    torch.testing.assert_close(secondary, torch.tensor([-35.0, 88.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(roll, torch.tensor([7.0, -120.0, 90.0], dtype=torch.float64))
    pole = view(primary=25.0, secondary=90.0, roll=10.0)  # there only primary + roll is defined
    primary, secondary, roll = pole.angles
    again = view(primary=primary, secondary=secondary, roll=roll)
    torch.testing.assert_close(again.camera_from_world, pole.camera_from_world)


# ---- what one sees ----------------------------------------------------------------------------------------


def test_the_pinhole_image_has_the_patients_right_at_right_and_the_head_on_top() -> None:
    magnified = 1000 / 600 / 2  # px per mm at the isocentre
    assert pixel(view(), ISOCENTER) == pytest.approx([69.5, 49.5])
    assert pixel(view(), ISOCENTER + 6 * RIGHT) == pytest.approx([69.5 + 6 * magnified, 49.5])
    assert pixel(view(), ISOCENTER + 6 * HEAD) == pytest.approx([69.5, 49.5 - 6 * magnified])


def test_the_usual_xa_display_is_the_mirrored_image() -> None:
    # PatientOrientation L\F: columns run to the patient's left, rows to the feet.
    camera = view(mirrored=True)
    assert pixel(camera, ISOCENTER - 12 * RIGHT)[0] > pixel(camera, ISOCENTER)[0]
    assert pixel(camera, ISOCENTER - 12 * HEAD)[1] > pixel(camera, ISOCENTER)[1]
    # No pose holds the reflection, and the source stays where it is.
    assert float(torch.linalg.det(camera.camera_from_world[:3, :3])) == pytest.approx(1.0)
    torch.testing.assert_close(camera.source, view().source)


def test_mirroring_reverses_the_columns_of_the_array() -> None:
    plain, mirrored = view(), view().flip_columns()
    u, v = pixel(plain, ISOCENTER + 20 * RIGHT + 5 * HEAD)
    assert pixel(mirrored, ISOCENTER + 20 * RIGHT + 5 * HEAD) == pytest.approx([139 - u, v])


def test_points_behind_the_source_have_no_pixel() -> None:
    camera = view()
    pixels, depth = camera.project(torch.stack([camera.source, camera.source - ANTERIOR]), return_depth=True)
    assert torch.isnan(pixels).all()
    torch.testing.assert_close(depth, torch.tensor([0.0, -1.0], dtype=torch.float64))


# ---- pixels -----------------------------------------------------------------------------------------------


def test_pixel_centres_are_integers_so_the_middle_of_an_even_image_lies_between_two() -> None:
    assert view(size=(4, 6)).principal_point.tolist() == [2.5, 1.5]
    assert view(size=(5, 7)).principal_point.tolist() == [3.0, 2.0]


def test_spacing_is_row_then_column_as_in_dicom() -> None:
    camera = view(spacing=(0.5, 0.25))
    assert camera.spacing.tolist() == [0.5, 0.25]
    assert camera.focal.tolist() == [1000 / 0.25, 1000 / 0.5]
    corner, right, below = camera.unproject(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(right - corner, 0.25 * RIGHT)
    torch.testing.assert_close(below - corner, -0.5 * HEAD)


def test_the_principal_point_is_given_and_read_in_the_stored_image() -> None:
    for mirrored in (False, True):
        camera = view(principal_point=(30.0, 60.0), mirrored=mirrored)
        assert camera.principal_point.tolist() == [30.0, 60.0]
        assert pixel(camera, ISOCENTER) == pytest.approx([30.0, 60.0])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
class TestEditedImages:
    """An edited camera sees the same object in the edited image: tried on images of their own rays."""

    @pytest.fixture
    def camera(self, mirrored: bool, parallel: bool) -> Camera:
        words = {"size": (11, 14), "spacing": (3.0, 2.0), "primary": 20, "secondary": -10, "roll": 8}
        words |= {"principal_point": (5.2, 7.7), "mirrored": mirrored, "sdd": 900.0, "sod": 500.0}
        return (Camera.parallel_beam if parallel else Camera.c_arm)(**words)

    @staticmethod
    def targets(camera: Camera) -> torch.Tensor:
        """Where each pixel's ray meets the detector: an image [H, W, 3] of world points."""
        height, width = camera.size
        v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return camera.unproject(torch.stack([u, v], -1).reshape(-1, 2)).reshape(height, width, 3)

    def same(self, edited: Camera, image: torch.Tensor) -> None:
        assert edited.size == tuple(image.shape[:2])
        torch.testing.assert_close(self.targets(edited), image)

    def test_crop(self, camera: Camera) -> None:
        self.same(camera.crop(2, 3, 7, 9), self.targets(camera)[2:9, 3:12])

    def test_pad_undoes_crop(self, camera: Camera) -> None:
        self.same(camera.crop(2, 3, 7, 9).pad(2, 2, 3, 2), self.targets(camera))

    def test_bin_averages_blocks_and_drops_the_rest(self, camera: Camera) -> None:
        blocks = self.targets(camera)[:9, :12].reshape(3, 3, 4, 3, 3).mean(dim=(1, 3))
        self.same(camera.bin(3), blocks)

    def test_resize_keeps_the_outer_edges(self, camera: Camera) -> None:
        def corners(c: Camera) -> torch.Tensor:
            h, w = c.size
            return c.unproject(
                torch.tensor([[-0.5, -0.5], [w - 0.5, -0.5], [-0.5, h - 0.5], [w - 0.5, h - 0.5]])
            )

        for size in ((22, 28), (5, 21), (11, 14)):
            assert camera.resize(size).size == size
            torch.testing.assert_close(corners(camera.resize(size)), corners(camera))

    def test_resize_to_half_is_bin_by_two(self, camera: Camera) -> None:
        even = camera.crop(0, 0, 10, 14)
        torch.testing.assert_close(even.resize((5, 7)).projection_matrix, even.bin(2).projection_matrix)

    def test_flips_and_quarter_turns(self, camera: Camera) -> None:
        image = self.targets(camera)
        self.same(camera.flip_columns(), image.flip(1))
        self.same(camera.flip_rows(), image.flip(0))
        for turns in range(-1, 5):
            self.same(camera.rotate90(turns), torch.rot90(image, turns))

    def test_edits_can_be_chained(self, camera: Camera) -> None:
        edited = camera.flip_rows().crop(1, 1, 9, 12).rotate90().bin(3).flip_columns()
        image = self.targets(camera).flip(0)[1:10, 1:13].rot90()
        self.same(edited, image.reshape(4, 3, 3, 3, 3).mean(dim=(1, 3)).flip(1))


# ---- rays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
def test_rays_run_from_the_source_through_the_point_to_the_detector(mirrored: bool) -> None:
    camera = view(primary=35, secondary=12, mirrored=mirrored)
    s0, su, sv, d0, du, dv = camera.ray_basis()
    point = ISOCENTER + torch.tensor([31.0, -22.0, 17.0])
    u, v = pixel(camera, point)
    source, reach = s0 + u * su + v * sv, d0 + u * du + v * dv
    torch.testing.assert_close(source, camera.source)
    depth = float(camera.project(point[None], return_depth=True)[1])
    torch.testing.assert_close(source + depth / 1000 * reach, point)
    torch.testing.assert_close(source + reach, camera.unproject(torch.tensor([[u, v]]))[0])


def test_parallel_rays_all_run_along_the_beam_from_plane_to_plane() -> None:
    words = {"size": (100, 140), "spacing": (2.0, 1.5), "sdd": 400.0, "isocenter": ISOCENTER}
    camera = Camera.parallel_beam(primary=90, **words)
    s0, su, sv, d0, du, dv = camera.ray_basis()
    torch.testing.assert_close(d0, -400 * RIGHT)
    assert float(du.abs().max()) == float(dv.abs().max()) == 0.0
    torch.testing.assert_close(su, 1.5 * ANTERIOR)
    torch.testing.assert_close(sv, -2.0 * HEAD)
    middle = s0 + 69.5 * su + 49.5 * sv + 0.5 * d0
    torch.testing.assert_close(middle, ISOCENTER)
    # No magnification: depth does not matter, and nothing is behind the source.
    points = ISOCENTER + torch.tensor([[0.0, 3, 4], [500, 3, 4], [-500, 3, 4]])
    torch.testing.assert_close(camera.project(points), torch.tensor([[71.5, 47.5]]).double().expand(3, 2))
    same = Camera.parallel_beam(direction=-RIGHT, **words)
    torch.testing.assert_close(same.camera_from_world, camera.camera_from_world)


def test_a_straight_up_beam_has_a_direction_too() -> None:
    camera = Camera.parallel_beam(direction=(0, 0, 2.0), size=(8, 8), spacing=1.0, sdd=10.0)
    torch.testing.assert_close(camera.ray_basis()[3], 10 * HEAD)


# ---- moving -----------------------------------------------------------------------------------------------


def test_moved_tells_the_same_view_in_another_world() -> None:
    camera = view(primary=30)
    world_from_body = se3.exp(torch.tensor([0.3, -0.2, 0.5, 10, 20, -30], dtype=torch.float64))
    in_body = torch.randn(5, 3, dtype=torch.float64) * 40
    torch.testing.assert_close(
        camera.moved(world_from_body).project(in_body), camera.project(se3.apply(world_from_body, in_body))
    )


def test_a_tangent_about_the_isocentre_does_not_drag_it_sideways() -> None:
    camera = view(primary=30)
    center = se3.apply(camera.camera_from_world, ISOCENTER[None])[0]
    turn = torch.tensor([0.1, 0.2, -0.1, 0, 0, 0], dtype=torch.float64)
    turned = camera.with_pose(se3.retract(camera.camera_from_world, turn, center))
    assert pixel(turned, ISOCENTER) == pytest.approx(pixel(camera, ISOCENTER))


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i2", "<f8", "bool", "uint8"])
def test_any_numpy_array_becomes_a_tensor(dtype: str) -> None:
    array = (np.arange(24).reshape(4, 6) % 5).astype(dtype)
    for seen in (array, array[::-1], array[:, ::-2], array.T, array[::-1].T, np.asfortranarray(array)):
        found = as_tensor(seen)
        np.testing.assert_array_equal(found.numpy(), seen)
        assert found.numpy().dtype == seen.dtype.newbyteorder("=")


def test_what_is_no_array_is_left_to_torch() -> None:
    kept = torch.zeros(3, requires_grad=True)
    assert as_tensor(kept) is kept
    assert as_tensor([1, 2]).tolist() == [1, 2]
    assert as_tensor([0.1], dtype=torch.float64).tolist() == [0.1]
    plain = np.zeros(3)
    as_tensor(plain)[0] = 1.0
    assert plain[0] == 1.0  # an ordinary array is not copied
