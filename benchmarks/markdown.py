"""Pieces of the README's tables."""

from __future__ import annotations


def table_of(head: list[str], rows: list[list[str]]) -> str:
    """A table: its head, then its rows."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def setting_of(run: dict) -> str:
    """The machine, the versions and the command of a run."""
    size = "×".join(map(str, run["volume"]["size"]))
    versions = ", ".join(f"{name} {v}" for name, v in run["versions"].items())
    return (
        f"{run['cpu']}, {run['threads']} threads, kernels {run['kernels']}; {versions}; "
        f"{run['volume']['name']} {size}; {run['when']}; `{run['command']}`."
    )


def side_by_side(rows: list[dict], pattern: str = "{:.0f}", scale: str = "median_ms") -> str:
    """Values of some rows in one cell."""
    values = [r[scale] for r in rows if r.get(scale) is not None]
    return " / ".join(pattern.format(v) for v in values)


def goal_table(goals: list[dict]) -> str:
    """What was asked and what was measured."""
    body = []
    for g in goals:
        value = "-" if g["value"] is None else f"{g['value']:.2f}" if g["value"] < 2 else f"{g['value']:.1f}"
        place = f" ({g['where']})" if g.get("where") else ""
        body.append([g["what"] + place, g["goal"], value, "yes" if g["met"] else "**no**"])
    return table_of(["goal", "asked", "measured", "met"], body)


def number_of(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}"
