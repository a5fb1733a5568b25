"""Draw docs/frames.png: the world, the C-arm at 0/0 and turned, the image, and the pixel rule.

Every line comes from a Camera, so the picture cannot say anything else than the code.
Run it in the repository: python docs/draw_frames.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse

from xreg.geometry import Camera

OUT = Path(__file__).with_name("frames.png")
BODY, TURNED, PLAIN = "#d9c7b0", "#c0392b", "#1f4e79"
AXIS_COLORS = {"x": "#c0392b", "y": "#1e8449", "z": "#1f4e79"}
WORDS = {"sdd": 1000.0, "sod": 600.0, "size": (8, 10), "spacing": 40.0}


def arrow(ax: Axes, start, step, color: str, label: str = "", nudge=(0, 0)) -> None:
    """Draw an arrow with its label a little beyond the tip."""
    start, step = np.asarray(start, dtype=float), np.asarray(step, dtype=float)
    tip = start + step
    style = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", tip, start, arrowprops=style)
    if label:
        at = tip + step / np.linalg.norm(step) * 38 + np.asarray(nudge, dtype=float)
        ax.text(*at, label, color=color, ha="center", va="center", fontsize=10, weight="bold")


def through_page(ax: Axes, at, towards_viewer: bool, color: str, label: str, offset=(0, -48)) -> None:
    """Draw an axis that leaves the page (dot) or enters it (cross)."""
    ax.plot(*at, "o", ms=12, mfc="white", mec=color, mew=2, zorder=5)
    ax.plot(*at, "." if towards_viewer else "x", ms=6, color=color, mew=2, zorder=6)
    ax.text(at[0] + offset[0], at[1] + offset[1], label, color=color, ha="center", fontsize=10, weight="bold")


def c_arm(
    ax: Axes, camera: Camera, plane: tuple[int, int], signs: tuple[int, int], color: str, label: str
) -> None:
    """Draw source, detector, central ray and the camera's axes of one view in a plane of the world."""

    def flat(points) -> np.ndarray:
        return np.atleast_2d(np.asarray(points))[:, plane] * np.array(signs)

    height, width = camera.size
    ends = [[-0.5, (height - 1) / 2], [width - 0.5, (height - 1) / 2]]
    if plane == (2, 1):
        ends = [[(width - 1) / 2, -0.5], [(width - 1) / 2, height - 0.5]]
    detector = flat(camera.unproject(np.array(ends)).numpy())
    source = flat(camera.source.numpy())[0]
    center = flat(camera.unproject(camera.principal_point[None]).numpy())[0]
    ax.plot(*detector.T, color=color, lw=5, solid_capstyle="butt")
    for end in detector:
        ax.plot(*np.stack([source, end]).T, color=color, lw=0.7, alpha=0.6)
    ax.plot(*np.stack([source, center]).T, color=color, lw=1, ls="--")
    ax.plot(*source, "o", color=color, ms=8)
    outward = (center - source) / np.linalg.norm(center - source)
    ax.text(
        *(center + (40 if label.startswith("0") else 85) * outward),
        label,
        color=color,
        ha="center",
        va="center",
        fontsize=10,
    )
    axes = camera.world_from_camera[:3, :3].numpy()
    for i, name in enumerate("xyz"):
        step = flat(axes[:, i])[0] * 130
        if np.linalg.norm(step) > 60:
            arrow(ax, source, step, AXIS_COLORS[name], f"{name}" if label.startswith("0") else "")


def world_axes(ax: Axes, plane: tuple[int, int], signs: tuple[int, int], labels: tuple[str, str]) -> None:
    """Draw the two world axes that lie in the plane, at the isocentre."""
    for k in range(2):
        step = np.zeros(2)
        step[k] = 105 * signs[k]
        arrow(ax, (0, 0), step, "black", labels[k])


def axial(ax: Axes) -> None:
    """Primary angle, in the axial plane seen from the feet."""
    ax.set_title("Primary angle (axial plane, seen from the feet)", fontsize=11)
    ax.add_patch(Ellipse((0, 0), 380, 240, color=BODY, zorder=0))
    ax.text(-135, -80, "patient's\nright", ha="center", fontsize=9)
    ax.text(135, -80, "patient's\nleft", ha="center", fontsize=9)
    ax.text(0, -95, "back", ha="center", fontsize=9)
    c_arm(ax, Camera.c_arm(**WORDS), (0, 1), (-1, 1), PLAIN, "0 / 0")
    c_arm(ax, Camera.c_arm(primary=30, **WORDS), (0, 1), (-1, 1), TURNED, "primary +30\n(LAO 30)")
    world_axes(ax, (0, 1), (-1, 1), ("x = R", "y = A"))
    through_page(ax, (0, 0), False, "black", "z = S", offset=(52, -30))
    through_page(ax, (0, -600), True, AXIS_COLORS["y"], "y", offset=(0, -75))
    ax.text(-60, -690, "source", color=PLAIN, fontsize=9, ha="right")
    ax.set(xlim=(-450, 450), ylim=(-720, 540))


def sagittal(ax: Axes) -> None:
    """Secondary angle, in the sagittal plane seen from the patient's left."""
    ax.set_title("Secondary angle (sagittal plane, seen from the patient's left)", fontsize=11)
    ax.add_patch(Ellipse((-80, 0), 560, 200, color=BODY, zorder=0))
    ax.add_patch(Ellipse((265, 0), 150, 130, color=BODY, zorder=0))
    ax.text(265, -6, "head", ha="center", fontsize=9)
    ax.text(-290, -6, "feet", ha="center", fontsize=9)
    c_arm(ax, Camera.c_arm(**WORDS), (2, 1), (1, 1), PLAIN, "0 / 0")
    c_arm(ax, Camera.c_arm(secondary=30, **WORDS), (2, 1), (1, 1), TURNED, "secondary +30\n(cranial 30)")
    world_axes(ax, (2, 1), (1, 1), ("z = S", "y = A"))
    through_page(ax, (0, 0), False, "black", "x = R", offset=(-58, -34))
    through_page(ax, (0, -600), False, AXIS_COLORS["x"], "x", offset=(0, -75))
    ax.text(60, -690, "source", color=PLAIN, fontsize=9)
    ax.set(xlim=(-450, 450), ylim=(-720, 540))


def films(ax: Axes) -> None:
    """What the stored arrays show at 0/0, plain and mirrored."""
    ax.set_title("The image at 0 / 0, stored plain and mirrored", fontsize=11)
    points = {"R": (95, 0, 0), "L": (-95, 0, 0), "H": (0, 0, 75), "F": (0, 0, -75), "heart": (-40, 0, 20)}
    for left, mirrored in ((0.0, False), (13.5, True)):
        camera = Camera.c_arm(mirrored=mirrored, **WORDS)
        height, width = camera.size
        for u in range(width):
            for v in range(height):
                ax.add_patch(plt.Rectangle((left + u - 0.5, v - 0.5), 1, 1, fc="white", ec="0.8", lw=0.6))
        for name, point in points.items():
            u, v = camera.project(np.array([point], dtype=float))[0].tolist()
            if name == "heart":
                ax.plot(left + u, v, marker="$\u2665$", ms=16, color=TURNED)
            else:
                ax.text(left + u, v, name, fontsize=14, ha="center", va="center", weight="bold")
        u, v = camera.principal_point.tolist()
        ax.plot(left + u, v, "+", ms=12, color=PLAIN, mew=2)
        ax.plot(left, 0, "o", ms=5, color="black")
        ax.text(left + 0.1, -1.3, "(u, v) = (0, 0)", fontsize=9, ha="center")
        style = {"arrowstyle": "-|>", "color": "black", "lw": 1.6}
        ax.annotate("", (left + 6.0, -0.9), (left + 3.2, -0.9), arrowprops=style)
        ax.text(left + 6.4, -0.85, "u, columns", fontsize=10, va="center")
        ax.annotate("", (left - 0.95, 3.6), (left - 0.95, 0.6), arrowprops=style)
        ax.text(left - 0.95, 4.25, "v, rows", fontsize=10, ha="center", va="top", rotation=90)
        name = (
            "mirrored=True: an ordinary XA display" if mirrored else "mirrored=False: as the source sees it"
        )
        ax.text(left + 4.5, 8.35, name, ha="center", fontsize=9.5)
    ax.set(xlim=(-2.4, 24), ylim=(9.3, -2.2))


def pixels(ax: Axes) -> None:
    """Centres at integers, edges at halves, and what 2×2 binning does."""
    ax.set_title("Pixel centres are integers; the image ends at −½ and W − ½", fontsize=11)
    for row, (count, scale, label) in enumerate(((6, 1, "W = 6"), (3, 2, "bin(2): W = 3"))):
        y = 1.5 - 2.6 * row
        for k in range(count):
            left = k * scale - 0.5
            ax.add_patch(plt.Rectangle((left, y - 0.5), scale, 1, fc="white", ec="black", lw=1.2))
            ax.plot(left + scale / 2, y, "o", color=PLAIN, ms=6)
            ax.text(left + scale / 2, y + 0.22, str(k), ha="center", fontsize=11, color=PLAIN)
        middle = (count - 1) / 2
        ax.plot([2.5, 2.5], [y - 0.75, y + 0.5], color=TURNED, lw=1.5, ls="--")
        ax.text(2.5, y - 1.02, f"middle: (W − 1)/2 = {middle:g}", ha="center", fontsize=10, color=TURNED)
        ax.text(-0.75, y, label, ha="right", va="center", fontsize=10)
        ax.text(-0.5, y + 0.62, "−½", ha="center", fontsize=9)
        ax.text(5.5, y + 0.62, f"{count} − ½", ha="center", fontsize=9)
    ax.text(2.5, -2.75, "u' = (u + ½)/2 − ½", ha="center", fontsize=11)
    ax.set(xlim=(-3.4, 6.2), ylim=(-3.1, 2.6))


def main() -> None:
    """Draw the four panels and write the file."""
    figure, panels = plt.subplots(
        2, 2, figsize=(13, 13), gridspec_kw={"height_ratios": [2, 1]}, layout="constrained"
    )
    for panel, draw in zip(panels.flat, (axial, sagittal, films, pixels), strict=True):
        draw(panel)
        panel.set_aspect("equal")
        panel.axis("off")
    figure.savefig(OUT, dpi=90)


if __name__ == "__main__":
    main()
