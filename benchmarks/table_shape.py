"""Tables of our shape networks: patients that they never saw, and views off the right angle."""

from __future__ import annotations

from typing import Any

from markdown import table_of
from shape_rows import distances

# What published networks reach on the same films (their predictions, scored by shape_peers.py): mean Dice.
PEERS = {
    ("s0561", "all"): "Swin-X2S base .690, UNet .509",
    ("0532", "spine"): "Swin-X2S base .895",
    ("0510", "spine"): "Swin-X2S base .862",
    ("0510", "pelvis"): "Swin-X2S base .880",
}
WAYS = ("network", "refined")


def crossval(result: dict[str, Any]) -> str:
    """A row a patient and annotation: the network alone, refined, what was asked, and published networks."""
    body = []
    for patient, which in dict.fromkeys((r["patient"], r["scheme"]) for r in result["patients"]):
        rows = {r["way"]: r for r in result["patients"] if (r["patient"], r["scheme"]) == (patient, which)}
        cells = [f"{patient}, {which} ({next(iter(rows.values()))['classes']})"]
        cells += [_figures(rows[way]) if way in rows else "" for way in WAYS]
        cells += [f"{rows[way]['wall_s']:.1f}" if way in rows else "" for way in WAYS]
        body.append([*cells, PEERS.get((patient, which), "")])
    head = [
        "patient, annotation (bones)", "network alone", "with the atlas", "s", "s with the atlas", "published"
    ]  # fmt: skip
    parts = [table_of(head, body)]
    for network in result["networks"]:
        learned = ", ".join(network["patients"])
        minutes = network["seconds"] / 60
        parts.append(
            f"{network['name']}: learned from {len(network['patients'])} patients ({learned}), "
            f"at last {network['step']} steps in {minutes:.0f} minutes; "
            f"held out {', '.join(network['held_out'])}. "
            f"Seconds are of predictions with {result['machine']['threads']} thread(s) on "
            f"{result['machine']['cores']} cores, surfaces and measures not included."
        )
    return "\n\n".join(parts)


def angles(result: dict[str, Any]) -> str:
    """Mean Dice over the angles, a row a patient, an annotation and a way."""
    rows = result["angles"]
    degrees = sorted({r["angle"] for r in rows})
    body = []
    for key in dict.fromkeys((r["patient"], r["scheme"], r["way"]) for r in rows):
        mine = {r["angle"]: r["dice"] for r in rows if (r["patient"], r["scheme"], r["way"]) == key}
        body.append([", ".join(key), *(f"{mine[d]:.3f}" if d in mine else "" for d in degrees)])
    return table_of(["patient, annotation, way", *(f"{d:g}°" for d in degrees)], body)


def levels(result: dict[str, Any]) -> str:
    """How often counted levels are right, against the confidence told: a row a patient."""
    rows = {**result["patients"], "all": result["as_told"], "all, as one witness": result["one_witness"]}
    if "by_others" in result:
        rows["all, each by the others' fit"] = result["by_others"]
    names = ("right", "confidence", "taken", "right_of_taken")
    body = [
        [name, str(row["cases"])]
        + ["" if row[n] is None else f"{100 * row[n]:.0f} %" for n in names]
        + [f"{row['brier']:.3f}"]
        for name, row in rows.items()
    ]
    head = ["patient", "drawn", "right", "mean confidence", "sure of it (60 %)", "right of these", "Brier"]
    told = f"Worth {result['witnesses']:.2f} witnesses in this run. Views tilted by {result['tilt']:g}°."
    return f"{table_of(head, body)}\n\n{told}"


def _figures(row: dict[str, Any]) -> str:
    return f"{row['dice']:.3f} ({row['dice_shifted']:.3f}, {row['dice_foreground']:.3f}); {distances(row)} mm"


MAKERS = {
    f"{name}{end}": (name, make)
    for name in ("shape_crossval", "shape_learn", "shape_learn_more", "shape_learn_again")
    for end, make in (("", crossval), ("_angles", angles))
} | {"shape_levels": ("shape_levels", levels)}
