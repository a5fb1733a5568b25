"""A small HDF5 file in the layout of DeepFluoro, of a body of two ellipsoids, by formulas of its own.

Nothing here uses the package's geometry: points go to pixels as the data set's authors write it,
K · extrinsic · inv(cam-to-pelvis-vol) · p, in LPS, with the detector at −z.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

ROWS, COLUMNS, PITCH = 72, 80, 3.0
FOCAL = -1020.0 / PITCH
INTRINSIC = np.array([[FOCAL, 0, 39.5], [0, FOCAL, 35.5], [0, 0, 1]])
SPACING, SIZE = np.array([2.5, 3.0, 2.0]), (40, 32, 48)  # x, y, z
ORIGIN = np.array([-60.0, -35.0, -940.0])
MIDDLE = ORIGIN + SPACING * (np.array(SIZE) - 1) / 2
# centre (from the middle, LPS mm), half axes (mm), CT number
BONE = np.array([14.0, 8.0, -18.0])
ELLIPSOIDS = (((3.0, -4.0, 2.0), (32.0, 26.0, 36.0), 40.0), (tuple(BONE), (9.0, 12.0, 14.0), 900.0))
WATER = 0.0193  # 1/mm at 70 keV
LANDMARKS = {
    "FH-l": MIDDLE + np.array((20.0, 5.0, -10.0)),
    "FH-r": MIDDLE + np.array((-22.0, 4.0, -8.0)),
    "ASIS-l": MIDDLE + np.array((30.0, -20.0, 25.0)),
    "far": MIDDLE + np.array((300.0, 0.0, 0.0)),  # off the film
}
NUMBERS = ("000", "001")


def turn(x: float, y: float, z: float) -> np.ndarray:
    """A rotation by angles in degrees about x, then y, then z."""
    a, b, c = np.radians([x, y, z])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


def rigid(rotation: np.ndarray, translation) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


EXTRINSIC = rigid(turn(-90, 0, 5), (-157.0, -2.7, -631.8))


def cam_to_pelvis(number: int) -> np.ndarray:
    """The pose of a film: the body's middle lies 640 mm before the source, near the axis."""
    rotation = turn(80 + 15 * number, -12 + 30 * number, 7)
    place = np.array([12.0 - 8 * number, -9.0, -640.0])
    camera_from_volume = rigid(rotation, place - rotation @ MIDDLE)
    return np.linalg.inv(np.linalg.inv(EXTRINSIC) @ camera_from_volume)


def pixel_of(point: np.ndarray, number: int) -> np.ndarray:
    """(column, row) of an LPS point, as the authors write it."""
    local = EXTRINSIC @ np.linalg.inv(cam_to_pelvis(number)) @ np.append(point, 1.0)
    assert local[2] < 0
    projected = INTRINSIC @ local[:3]
    return projected[:2] / projected[2]


def line_integrals(number: int) -> np.ndarray:
    """Attenuation along the ray of each pixel: chords of the ellipsoids, from the quadratic equation."""
    u, v = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    x, y = ((u - INTRINSIC[0, 2]) / FOCAL, (v - INTRINSIC[1, 2]) / FOCAL)
    rays = -np.stack([x, y, np.ones_like(x)], -1)  # towards −z
    volume_from_camera = cam_to_pelvis(number) @ np.linalg.inv(EXTRINSIC)
    source = volume_from_camera[:3, 3]
    rays = rays @ volume_from_camera[:3, :3].T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    total = np.zeros((ROWS, COLUMNS))
    below = -1000.0  # the second ellipsoid lies within the first, and adds what it has more
    for centre, half, hu in ELLIPSOIDS:
        s, d = (source - MIDDLE - centre) / half, rays / half
        a, b, c = (d * d).sum(-1), (d * s).sum(-1), (s * s).sum() - 1
        chord = 2 * np.sqrt(np.maximum(b * b - a * c, 0)) / a
        total += WATER * (hu - below) / 1000 * chord
        below = hu
    return total


def hounsfield() -> tuple[np.ndarray, np.ndarray]:
    """CT numbers and labels [z, y, x]."""
    axes = [ORIGIN[i] + SPACING[i] * np.arange(SIZE[i]) for i in range(3)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
    hu, labels = np.full(z.shape, -1000.0), np.zeros(z.shape, np.uint8)
    for label, (centre, half, value) in enumerate(ELLIPSOIDS, 1):
        inside = sum(
            ((g - m - c) / h) ** 2 for g, m, c, h in zip((x, y, z), MIDDLE, centre, half, strict=True)
        )
        hu[inside < 1], labels[inside < 1] = value, label
    return hu.astype(np.float32), labels


def write_deepfluoro(path: Path) -> Path:
    """Write the file: vectors as columns, matrices in float32 where the real one has rounding."""
    import h5py

    hu, labels = hounsfield()

    def image(group, pixels, spacing, origin):
        group["pixels"], group["dir-mat"] = pixels, np.eye(len(spacing))
        group["spacing"], group["origin"] = np.array(spacing)[:, None], np.array(origin)[:, None]

    with h5py.File(path, "w") as file:
        params = file.create_group("proj-params")
        params["intrinsic"], params["extrinsic"] = INTRINSIC, EXTRINSIC
        params["num-rows"], params["num-cols"] = ROWS, COLUMNS
        params["pixel-row-spacing"], params["pixel-col-spacing"] = PITCH, PITCH
        specimen = file.create_group("17-1882")
        image(specimen.create_group("vol"), hu, SPACING, ORIGIN)
        image(specimen.create_group("vol-seg/image"), labels, SPACING, ORIGIN)
        specimen["vol-seg/labels-def/1"], specimen["vol-seg/labels-def/2"] = "left-hemipelvis", "vertebra"
        for name, point in LANDMARKS.items():
            specimen[f"vol-landmarks/{name}"] = point[:, None]
        for n, number in enumerate(NUMBERS):
            shot = specimen.create_group(f"projections/{number}")
            image(shot.create_group("image"), beam(n), (PITCH, PITCH), (0, 0))
            shot["gt-poses/cam-to-pelvis-vol"] = cam_to_pelvis(n)
            shot["rot-180-for-up"] = n
            for name, point in LANDMARKS.items():
                shot[f"gt-landmarks/{name}"] = pixel_of(point, n)[:, None]
    return path


def beam(number: int) -> np.ndarray:
    """The film: what is left of the beam, dark at the collimator's edge."""
    pixels = 4000.0 * np.exp(-line_integrals(number))
    pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:] = 1.0, 1.0, 1.0, 1.0
    return pixels.astype(np.float32)
