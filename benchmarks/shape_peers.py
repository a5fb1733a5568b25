"""Scores what other networks made of two films, from the predictions that Swin-X2S published.

python benchmarks/shape_peers.py FOLDER      (see --help)

FOLDER holds a patient a folder (`xreg.shape.load_shipped` says what is in it).  Distances are in true mm: the
stale spacing of two headers is put right.  Beside each figure stands the one measured before by another
program, where there is one; `xreg.shape.scores` has the definitions.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from common import RESULTS, write_json
from shape_rows import figures

from xreg.shape import load_shipped, score, shipped_patients

# Measured independently on these files: Dice, HD95 mm, ASSD mm, as rounded there.
BEFORE: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    ("s0561", "all", "swinx2sbase"): (".690", "9.4", "2.2"),
    ("s0561", "all", "swinunetr"): (".642", "12.1", "2.9"),
    ("s0561", "all", "unet"): (".510", "20.4", "4.8"),
    ("s0561", "all", "unetr"): (".465", "28.6", "6.4"),
    ("s0561", "all", "multiscale2dpermuteconcat"): (".497", "39.0", "6.5"),
    ("0532", "spine", "swinx2s_base"): (".895", "2.6", ".85"),
    ("0510", "pelvis", "swinx2s_base"): (".880", "3.7", "1.4"),
    ("s0308", "all", "swinx2s_base"): (".504", "16.4", "5.3"),
    ("verse081", "spine", "swinx2s_base"): (".004",),
}
# Some of these were rounded twice (.50949 by way of .5095 to .510), which adds a twentieth of the last place.
ROUNDING = 0.55


def measure(folder: Path, only: Container[tuple[str, str, str]] | None = None) -> list[dict[str, Any]]:
    """Scores of every prediction in the folder, or of those in ``only`` (patient, scheme, network)."""
    rows = []
    for place in shipped_patients(folder):
        case = load_shipped(place)
        for which, network in case.peer_files:
            if only is not None and (case.patient, which, network) not in only:
                continue
            scores = score(case.peer(which, network), case.labels(which), case.grid, which)
            rows.append(_row(case.patient, which, network, scores.to_json(), case.remark))
    return rows


def agree(row: Mapping[str, Any]) -> bool | None:
    """Whether a row has the figures measured before, to their last place; None where there are none."""
    before = row.get("before")
    if before is None:
        return None
    mine = [row[name] for name in ("dice", "hd95_mm", "assd_mm")]
    return all(
        abs(value - float(text)) <= ROUNDING * 10.0 ** -len(text.split(".")[1])
        for value, text in zip(mine, before, strict=False)
    )


def _row(patient: str, which: str, network: str, found: Mapping[str, Any], remark: str) -> dict[str, Any]:
    row = {"patient": patient, "scheme": which, "network": network, **figures(found)}
    before = BEFORE.get((patient, which, network))
    if before is not None:
        row["before"] = list(before)
        row["agrees"] = agree(row)
    return {**row, "remark": remark} if remark else row


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "shape_peers.json")
def main(folder: Path, out: Path) -> None:
    """Score every published prediction in FOLDER."""
    rows = measure(folder)
    for row in rows:
        before = " / ".join(row.get("before", ["-"]))
        found = f"{row['dice']:.3f} / {row['hd95_mm']:5.2f} / {row['assd_mm']:5.2f}"
        others = f"shifted {row['dice_shifted']:.3f}  foreground {row['dice_foreground']:.3f}"
        name = f"{row['patient']:9} {row['scheme']:6} {row['network']:26}"
        click.echo(f"{name} {found}   before {before:18} {others}")
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    write_json(
        out,
        {"when": when, "command": "python benchmarks/shape_peers.py FOLDER", "unit": "mm", "rows": rows},
    )


if __name__ == "__main__":
    main()
