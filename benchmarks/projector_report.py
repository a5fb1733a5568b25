"""What the projector's figures say: the goals, and the table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

MODES = ("forward", "pose", "jacobian", "volume")
NANODRR, RTK = "nanodrr", "itk-rtk"
GOAL_FORWARD, GOAL_POSE, GOAL_JOSEPH, GOAL_MB = 25.0, 50.0, 2.0, 50.0


def find(rows: list[dict], name: str, mode: str, view: str, size: str) -> dict | None:
    """The row of a renderer (by the start of its name)."""
    return next(
        (
            r
            for r in rows
            if r["renderer"].startswith(name) and (r["mode"], r["view"], r["size"]) == (mode, view, size)
        ),
        None,
    )


def against_nanodrr(result: dict, mode: str) -> list[dict]:
    """For each view the ratio of every xreg row to nanodrr, and whether its error is no larger."""
    rows, found = result["rows"], []
    for peer in rows:
        if peer["renderer"].startswith(NANODRR) and peer["mode"] == mode:
            for own in rows:
                same = all(own[k] == peer[k] for k in ("mode", "view", "size"))
                if same and own["renderer"].startswith("xreg"):
                    found.append(
                        {
                            "renderer": own["renderer"],
                            "view": own["view"],
                            "size": own["size"],
                            "ratio": peer["median_ms"] / own["median_ms"],
                            "as_accurate": own["error"] <= peer["error"],
                        }
                    )
    return found


def _worst_of_best(pairs: list[dict]) -> dict | None:
    """The view where the fastest xreg row that is no less accurate wins by least."""
    best: dict[tuple, dict] = {}
    for pair in pairs:
        key = pair["view"], pair["size"]
        if pair["as_accurate"] and (key not in best or pair["ratio"] > best[key]["ratio"]):
            best[key] = pair
    if len(best) < len({(p["view"], p["size"]) for p in pairs}):
        return None
    return min(best.values(), key=lambda p: p["ratio"]) if best else None


def _named(pairs: list[dict], name: str) -> dict | None:
    return min((p for p in pairs if p["renderer"] == name), key=lambda p: p["ratio"], default=None)


def goals(result: dict) -> list[dict]:
    """Every goal of the project with what was measured; the least favourable view counts."""
    out = []
    for mode, goal in (("forward", GOAL_FORWARD), ("pose", GOAL_POSE)):
        pairs = against_nanodrr(result, mode)
        options = {
            "fastest xreg row of equal or smaller error": _worst_of_best(pairs),
            "xreg trilinear 500 int16 (its error may be larger)": _named(pairs, "xreg trilinear 500 int16"),
            "xreg trilinear with samples to match the error": _named(pairs, "xreg trilinear matched int16"),
        }
        for label, pair in options.items():
            if pairs:
                out.append(_goal(f"{mode}: nanodrr / {label}", goal, pair))
    joseph = []
    for own in result["rows"]:
        if own["renderer"] == "xreg joseph int16" and own["mode"] == "forward":
            peer = find(result["rows"], RTK, "forward", own["view"], own["size"])
            if peer:
                joseph.append({**own, "ratio": peer["median_ms"] / own["median_ms"]})
    if joseph:
        out.append(
            _goal(
                "forward: itk-rtk Joseph / xreg joseph int16",
                GOAL_JOSEPH,
                min(joseph, key=lambda p: p["ratio"]),
            )
        )
    for m in result["memory"]:
        if m["renderer"] == "xreg trilinear 500 int16" and m["mode"] in ("forward", "pose"):
            what = f"peak memory beyond the volume, MB, {m['mode']} {m['size']}"
            goal = {"what": what, "goal": f"< {GOAL_MB:g}", "value": m["mb"], "where": m["renderer"]}
            out.append(goal | {"met": m["mb"] < GOAL_MB})
    return out


def _goal(what: str, goal: float, pair: dict | None) -> dict:
    if pair is None:
        return {
            "what": what,
            "goal": f">= {goal:g}",
            "value": None,
            "where": "no such row on every view",
            "met": False,
        }
    where = f"{pair['renderer']}, {pair['view']}, {pair['size']}"
    return {
        "what": what,
        "goal": f">= {goal:g}",
        "value": pair["ratio"],
        "where": where,
        "met": pair["ratio"] >= goal,
    }


def show(result: dict, console: Console) -> None:
    """Print tables of medians, and the goals."""
    sizes = list(dict.fromkeys(r["size"] for r in result["rows"]))
    for size in sizes:
        for view in dict.fromkeys(r["view"] for r in result["rows"]):
            table = Table(title=f"{size} {view}: median ms (least ms)")
            for column in ("renderer", *MODES, "error", "inside"):
                table.add_column(column, justify="left" if column == "renderer" else "right")
            rows = [r for r in result["rows"] if r["size"] == size and r["view"] == view]
            for name in dict.fromkeys(r["renderer"] for r in rows):
                mine = {r["mode"]: r for r in rows if r["renderer"] == name}
                cells = [
                    f"{mine[m]['median_ms']:.1f} ({mine[m]['min_ms']:.1f})" if m in mine else ""
                    for m in MODES
                ]
                one = next(iter(mine.values()))
                label = f"{name} ({one['samples']})" if "matched" in name else name
                inside = "" if one["error_inside"] is None else f"{one['error_inside']:.1e}"
                table.add_row(label, *cells, f"{one['error']:.1e}", inside)
            console.print(table)
    show_goals(result, console, "view", "{:.1f}")


def show_goals(result: dict, console: Console, decides: str, pattern: str) -> None:
    """Print what was not measured, and the goals; decides: of what the least favourable one counts."""
    for name, reason in result["skipped"].items():
        console.print(f"not measured: {name} ({reason})")
    table = Table(title=f"goals (the least favourable {decides})")
    for column in ("what", "goal", "measured", "where", "met"):
        table.add_column(column)
    for g in result["goals"]:
        value = "-" if g["value"] is None else pattern.format(g["value"])
        table.add_row(
            g["what"], g["goal"], value, g["where"], {True: "yes", False: "NO", None: "-"}[g["met"]]
        )
    console.print(table)
