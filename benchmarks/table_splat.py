"""The table of Gaussians and volumes from few projections."""

from __future__ import annotations

from typing import Any

from markdown import setting_of, table_of


def splat_fit(result: dict[str, Any]) -> str:
    """A row a method, scenes one below the other; then the setting of the last run."""
    body = []
    for scene in sorted(result["scenes"], key=lambda s: (-s["size"], s["scene"])):
        for row in scene["rows"]:
            views = row.get("views_db")
            shown = "" if views is None else f"{views:.1f} ({row['views_min_max_db']:.1f})"
            remark = row["remark"]
            if "recovered" in row:
                remark = f"{100 * row['recovered']:.0f} % of the loss recovered"
            if "gaussians_psnr_db" in row:
                remark += f"; Gaussians alone {row['gaussians_psnr_db']:.2f} dB"
            body.append(
                [
                    f"{scene['scene']}, {scene['size']}³", row["method"], f"{row['psnr_db']:.2f}",
                    f"{row['ssim']:.3f}", shown, f"{row['seconds']:.0f}", remark,
                ]
            )  # fmt: skip
    head = ["scene", "method", "volume, dB", "SSIM", "views, dB (min-max)", "seconds", ""]
    return table_of(head, body) + "\n\n" + setting_of(result["scenes"][-1]["run"])


def splat(result: dict[str, Any]) -> str:
    """Times of the splatter and the voxeliser, and the setting."""
    goals = {g["what"]: g["goal_ms"] for g in result["goals"]}
    body = []
    for row in result["rows"]:
        name = f"{row['mode']} {row['work']}"
        asked = f"{goals[name]:.0f}" if name in goals else ""
        body.append([name, f"{row['best_ms']:.1f}", f"{row['median_ms']:.1f}", asked])
    head = ["50,000 Gaussians, 256²; voxels 128³", "best, ms", "median, ms", "asked, ms"]
    return table_of(head, body) + "\n\n" + setting_of(result["run"])


MAKERS = {"splat_fit": splat_fit, "splat": splat}
