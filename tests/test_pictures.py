import numpy as np
import pytest
import torch
from PIL import Image

from xreg import pictures
from xreg.errors import FileError, ImageError


def disc(size=64, radius=20.0, center=(31.5, 31.5)):
    rows, columns = np.mgrid[:size, :size]
    away = np.hypot(rows - center[0], columns - center[1])
    return np.clip(radius - away + 0.5, 0, 1)


def test_grey_scales_valid_pixels_and_leaves_the_rest_black():
    image = np.arange(100.0).reshape(10, 10)
    mask = np.ones((10, 10), dtype=bool)
    mask[0] = False
    shown = pictures.grey(image, mask, window=(20, 60))
    assert shown[0].max() == 0
    assert shown[2, 0] == 0
    assert shown[4, 0] == 0.5
    assert shown[9, 9] == 1
    np.testing.assert_array_equal(
        pictures.grey(image, window=(20, 60), invert=True), 1 - pictures.grey(image, window=(20, 60))
    )
    np.testing.assert_array_equal(pictures.grey(torch.from_numpy(image)), pictures.grey(image))
    assert np.ptp(pictures.grey(np.full((4, 4), 3.0))) == 0


@pytest.mark.parametrize("image", [np.zeros(4), np.zeros((2, 2, 2)), np.full((3, 3), np.nan)])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ImageError, match="finite numbers"):
        pictures.grey(image)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ImageError, match="mask must be"):
        pictures.grey(np.zeros((4, 4)), np.ones((3, 3)))


def test_edges_follow_a_circle_in_one_thin_line():
    lines = pictures.edges(disc(), share=0.1)
    rows, columns = np.nonzero(lines)
    away = np.hypot(rows - 31.5, columns - 31.5)
    assert abs(away - 20.0).max() < 1.5
    assert 100 < len(rows) < 200
    angles = np.degrees(np.arctan2(rows - 31.5, columns - 31.5))
    assert np.diff(np.sort(angles)).max() < 8


def test_edges_leave_out_specks_and_flat_images():
    assert not pictures.edges(np.zeros((32, 32))).any()
    speck = disc(radius=2.0)
    assert not pictures.edges(speck, blur=0.8).any()
    assert pictures.edges(speck, blur=0.8, shortest=3).any()


def test_edges_are_drawn_in_their_colour_only():
    picture = pictures.colour(np.full((8, 8), 0.5))
    lines = np.zeros((8, 8), dtype=bool)
    lines[3] = True
    drawn = pictures.draw_edges(picture, lines, (255, 0, 0), strength=1.0)
    assert (drawn[3] == (255, 0, 0)).all()
    assert (drawn[~lines] == 128).all()
    assert (picture == 128).all()


def test_unlit_pixels_have_a_colour_of_their_own():
    mask = np.eye(4, dtype=bool)
    picture = pictures.colour(np.zeros((4, 4)), mask)
    assert (picture[mask] == 0).all()
    assert (picture[~mask] == pictures.UNLIT).all()


def test_checkerboard_takes_turns():
    board = pictures.checkerboard(np.zeros((12, 12)), np.ones((12, 12)), squares=3)
    assert board[:4, :4].max() == 0
    assert board[:4, 4:8].min() == 1
    assert board.mean() == pytest.approx(4 / 9)
    with pytest.raises(ImageError, match="one shape"):
        pictures.checkerboard(np.zeros((3, 3)), np.zeros((3, 4)))


def test_contrast_is_matched_over_the_mask():
    rng = np.random.default_rng(0)
    film = rng.normal(size=(20, 20))
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    matched = pictures.match_contrast(-2.0 + 7.0 * film, film, mask)
    np.testing.assert_allclose(matched, film, atol=1e-12)
    flat = pictures.match_contrast(np.ones((20, 20)), film, mask)
    np.testing.assert_allclose(flat, film[mask].mean())


def test_panels_hold_every_picture_at_its_place():
    red, blue = (np.full((30, 40, 3), c, np.uint8) for c in ((200, 0, 0), (0, 0, 200)))
    rows = [[("first", red), ("second", blue)], [("third", red)]]
    sheet = pictures.panels(rows, title="all", footer="end", width=500)
    assert sheet.shape[1] == 500
    side = (500 - 30) // 2
    counted = {c: int((sheet == c).all(-1).sum()) for c in ((200, 0, 0), (0, 0, 200))}
    one = side * round(30 * side / 40)
    assert counted == {(200, 0, 0): 2 * one, (0, 0, 200): one}
    assert (sheet[:40] > 200).any()


def test_long_captions_shrink_to_fit():
    picture = np.zeros((50, 120, 3), np.uint8)
    below = pictures.caption(picture, "a caption of some length")
    assert below.shape[0] > 50
    assert below.shape[1] == 120
    assert (below[50:, -3:] == below[-1, -1]).all()


def test_files_are_png_and_gif_and_whole(tmp_path):
    frames = [pictures.colour(disc(radius=r)) for r in (10, 15, 20)]
    pictures.save_picture(tmp_path / "a.png", frames[0])
    with Image.open(tmp_path / "a.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), frames[0])
    pictures.save_gif(tmp_path / "a.gif", frames, milliseconds=[300, 100, 500])
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3
        times = []
        for n in range(3):
            gif.seek(n)
            times.append(gif.info["duration"])
            assert abs(np.asarray(gif.convert("RGB")).astype(int) - frames[n]).max() < 40
        assert times == [300, 100, 500]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.gif", "a.png"]


def test_what_cannot_be_saved(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(FileError, match="PNG"):
        pictures.save_picture(tmp_path / "a.jpg", picture)
    with pytest.raises(FileError, match=r"\.gif"):
        pictures.save_gif(tmp_path / "a.png", [picture])
    with pytest.raises(ImageError, match="uint8"):
        pictures.save_picture(tmp_path / "a.png", np.zeros((4, 4)))
    with pytest.raises(ImageError, match="one size"):
        pictures.save_gif(tmp_path / "a.gif", [picture, picture[:2]])
    with pytest.raises(ImageError, match="one size"):
        pictures.save_gif(tmp_path / "a.gif", [])
    assert not list(tmp_path.iterdir())
