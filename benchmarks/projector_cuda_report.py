"""What the figures of a card say: floors, goals, and the tables on the terminal."""

from __future__ import annotations

from projector_report import show_goals
from rich.console import Console
from rich.table import Table

PEER, OWN = "nanodrr", "xreg"
GATHERS = 4  # four-texel fetches that a multiprocessor answers in a clock
GOALS = {"forward": 3.0, "pose": 4.0, "volume": 2.0}
GOAL_WALL, GOAL_FLOOR = 5.0, 0.6
NO_WORSE = 1.1  # a peer's error may be this much above that of its float32 setting and still count


def floor_us(samples: float, card: dict | None) -> float | None:
    """The least time of one view: one fetch a sample of Joseph's rule, at the textures' rate.

    A design figure and not a limit of nature: coarser samples, or fewer fetches a sample, can go below.
    """
    if card is None or not card.get("clock_mhz"):
        return None
    return samples / (GATHERS * card["multiprocessors"] * float(card["clock_mhz"]))


def key_of(row: dict) -> tuple:
    """Where a row may be compared with another."""
    return row["view"], row["size"], row["batch"]


def value_of(row: dict, what: str) -> float | None:
    """A row's median time in µs, 'kernel' or 'wall'."""
    found = row.get(what)
    return None if found is None else found["median"]


def best_pairs(result: dict, mode: str, what: str) -> list[dict]:
    """For each place: the fastest peer of float32's accuracy, and the fastest xreg row no less accurate."""
    found = []
    rows = [r for r in result["rows"] if r["mode"] == mode and value_of(r, what) is not None]
    for place in dict.fromkeys(key_of(r) for r in result["rows"]):
        here = [r for r in rows if key_of(r) == place]
        plain = [r["error"] for r in here if r["renderer"].startswith(PEER) and r["renderer"].endswith("f32")]
        peers = [
            r for r in here if plain and r["renderer"].startswith(PEER) and r["error"] <= NO_WORSE * plain[0]
        ]
        peer = min(peers, key=lambda r: value_of(r, what), default=None)
        own = [
            r for r in here if peer and r["renderer"].startswith(OWN) and r["error"] <= NO_WORSE * plain[0]
        ]
        best = min(own, key=lambda r: value_of(r, what), default=None)
        ratio = None if best is None else value_of(peer, what) / value_of(best, what)
        found.append({"place": place, "ratio": ratio, "own": best and best["renderer"],
                      "peer": peer and peer["renderer"]})  # fmt: skip
    return found


def _goal(what: str, goal: float, pairs: list[dict]) -> dict:
    """The place where the ratio is least decides; a place without one fails the goal."""
    row = {"what": what, "goal": f">= {goal:g}"}
    missing = [p for p in pairs if p["ratio"] is None]
    if missing or not pairs:
        where = f"nothing to compare at {len(missing)} of {len(pairs)} places"
        return row | {"value": None, "where": where, "met": False}
    worst = min(pairs, key=lambda p: p["ratio"])
    where = f"{worst['own']} against {worst['peer']}, {', '.join(map(str, worst['place']))}"
    return row | {"value": worst["ratio"], "where": where, "met": worst["ratio"] >= goal}


def against_floor(result: dict) -> list[dict]:
    """The part of the floor that the fastest accurate forward projection reaches, at each place."""
    floors = {(f["view"], f["size"]): f["us"] for f in result["floors"]}
    found = []
    times = {
        (*key_of(r), r["renderer"]): value_of(r, "kernel") for r in result["rows"] if r["mode"] == "forward"
    }
    for pair in best_pairs(result, "forward", "kernel"):
        view, size, batch = pair["place"]
        floor = floors[view, size]
        own = times.get((*pair["place"], pair["own"]))
        ratio = None if floor is None or own is None else floor * batch / own
        found.append({**pair, "peer": "the floor", "ratio": ratio})
    return found


def goals(result: dict) -> list[dict]:
    """Every goal for the card; the least favourable view, size and batch decides.

    A dry run has figures too, and none of them means anything: it meets no goal.
    """
    found = []
    for mode, goal in GOALS.items():
        found.append(
            _goal(f"{mode}: nanodrr Triton / xreg, kernels", goal, best_pairs(result, mode, "kernel"))
        )
    eager = [p for p in best_pairs(result, "forward", "wall") if p["place"][2] == 1]
    found.append(_goal("forward: nanodrr Triton / xreg, one eager call by the clock", GOAL_WALL, eager))
    found.append(_goal("forward: floor / xreg, kernels", GOAL_FLOOR, against_floor(result)))
    return [g | {"met": None} for g in found] if result["dry_run"] else found


def show(result: dict, console: Console) -> None:
    """Print a table a size and batch, and the goals."""
    if result["dry_run"]:
        console.print("A dry run on the CPU: these figures say nothing about a card.")
    for size, batch in dict.fromkeys((r["size"], r["batch"]) for r in result["rows"]):
        table = Table(title=f"{size}, batch {batch}: µs of the kernels / of an eager call (MB at the peak)")
        for column in ("renderer", "view", *GOALS, "error"):
            table.add_column(column, justify="left" if column in ("renderer", "view") else "right")
        here = [r for r in result["rows"] if (r["size"], r["batch"]) == (size, batch)]
        for name, view in dict.fromkeys((r["renderer"], r["view"]) for r in here):
            mine = {r["mode"]: r for r in here if (r["renderer"], r["view"]) == (name, view)}
            cells = [_cell(mine.get(mode)) for mode in GOALS]
            table.add_row(name, view, *cells, _error(next(iter(mine.values()))))
        console.print(table)
    show_goals(result, console, "place", "{:.2f}")


def _error(row: dict) -> str:
    return "-" if row["error"] is None else f"{row['error']:.1e}"


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return "failed"
    wall = "-" if row["wall"] is None else f"{row['wall']['median']:.0f}"
    peak = "" if row["peak_mb"] is None else f" ({row['peak_mb']:.0f})"
    return f"{row['kernel']['median']:.1f} / {wall}{peak}"
