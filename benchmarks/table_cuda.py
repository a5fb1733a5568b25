"""The README's tables of what ran on a card."""

from __future__ import annotations

from markdown import goal_table, setting_of, side_by_side, table_of


def projector_cuda(result: dict) -> str:
    """Microseconds of the kernels and of an eager call, the views side by side in a cell."""
    parts = []
    for size, batch in dict.fromkeys((r["size"], r["batch"]) for r in result["rows"]):
        here = [r for r in result["rows"] if (r["size"], r["batch"]) == (size, batch)]
        views = " / ".join(dict.fromkeys(r["view"] for r in here))
        head = [f"{size}, batch {batch}, µs: {views}", "forward", "+ pose", "+ volume", "one eager forward"]
        body = []
        for name in dict.fromkeys(r["renderer"] for r in here):
            mine = [r for r in here if r["renderer"] == name]
            cells = [_medians(mine, mode, "kernel") for mode in ("forward", "pose", "volume")]
            forward = [r for r in mine if r["mode"] == "forward"]
            body.append(
                [name, *cells, _medians(mine, "forward", "wall"), side_by_side(forward, "{:.1e}", "error")]
            )
        parts.append(table_of([*head, "error"], body))
    left_out = [f"Not measured: {name} ({why})." for name, why in result["skipped"].items()]
    return "\n\n".join([*parts, goal_table(result["goals"]), *left_out, _card(result)])


def step(result: dict) -> str:
    """One registration step in a graph."""
    graph = result["graph_us"]
    body = [
        ["in a CUDA graph, µs", f"{graph['median']:.1f}"],
        ["eager, µs", f"{result['wall_us']['median']:.1f}"],
        ["operators", str(result["operators"])],
        ["off from xreg.registration, of a step", f"{max(result['off_from_registration']):.1e}"],
    ]
    head = [f"one step at {result['pixels']}²" + (", compiled" if result["compiled"] else ""), ""]
    goal = {"value": graph["median"], **result["goal"]}
    return "\n\n".join([table_of(head, body), goal_table([goal]), _card(result)])


def _medians(rows: list[dict], mode: str, what: str) -> str:
    mine = [r for r in rows if r["mode"] == mode]
    return " / ".join(f"{r[what]['median']:.1f}" if r.get(what) else "-" for r in mine)


def _card(result: dict) -> str:
    card = result["card"]
    return f"{card['name']}, driver {card['driver']}, CUDA {card['cuda']}; " + setting_of(result["run"])


MAKERS = {"projector_cuda": projector_cuda, "step": step}
