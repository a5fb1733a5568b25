"""The README's tables of registrations."""

from __future__ import annotations

from markdown import goal_table, number_of, setting_of, table_of


def registration(result: dict) -> str:
    """Both methods side by side, then ratios and goals."""
    own, peer, ratios = (result["summary"][k] for k in ("xreg", "adam", "ratios"))
    labels = {
        "cases": "starts", "success": "part within 1 mm mTRE", "median_mm": "mTRE, mm, median",
        "p95_mm": "mTRE, mm, 95 %", "renders": "renders, median", "full_size": "the same in full-size images",
        "to_1mm": "renders until 1 mm, where reached", "seconds": "seconds, median",
    }  # fmt: skip
    body = [[label, number_of(own.get(k)), number_of((peer or {}).get(k))] for k, label in labels.items()]
    parts = [table_of([f"{result['size']}²", "xreg", "Adam, xvr's recipe"], body)]
    if ratios:
        names = {
            "adam_to_xreg_mm_over_xreg_all": "renders: Adam until as accurate as xreg's end / xreg, all",
            "adam_to_1mm_over_xreg_all": "renders: Adam until 1 mm / xreg, all",
            "adam_to_1mm_over_xreg_to_1mm": "renders: both until 1 mm",
            "adam_all_over_xreg_all": "renders: both to their own end",
            "full_size_all": "the same in full-size images",
            "seconds": "seconds",
        }
        parts.append(table_of(["Adam / xreg, median over the starts that xreg brings within 1 mm", ""],
                           [[label, number_of(ratios[k])] for k, label in names.items()]))  # fmt: skip
    return "\n\n".join([*parts, goal_table(result["goals"]), setting_of(result["run"])])


def trust(result: dict) -> str:
    """Each kind of case, then what may be said of the verdict and the covariance."""
    head = ["case", "films", "within 1 mm", "within 2 mm", "median mm", "accepted"]
    body = [
        [f"{r['body']}, {r['kind']}", str(r["cases"]), f"{r['within_1mm']:.0%}", f"{r['within_2mm']:.0%}",
         number_of(r["median_mm"]), f"{r['accepted']:.0%}"]
        for r in result["kinds"]
    ]  # fmt: skip
    v = result["verdict"]
    said = [
        [
            "good answers (within 2 mm) that were accepted",
            ">= 90%",
            f"{v['good_accepted']:.0%} of {v['good']}",
        ],
        ["accepted answers above 5 mm", "0", f"{v['accepted_above_5mm']} of {v['cases']}"],
        ["area under the verdict's ROC", "", f"{v['auc']:.3f}"],
        ["truth inside the 95 % ellipsoid, good answers", "93-97%", f"{v['coverage']['0.95']:.0%}"],
    ]
    return "\n\n".join(
        [table_of(head, body), table_of(["", "asked", "measured"], said), setting_of(result["run"])]
    )


def beside(result: dict) -> str:
    """Each kind of start, three methods on the same films."""
    head = ["start, method", "films", "within 1 mm", "within 2 mm", "median mm", "seconds, one thread"]
    body = [
        [f"{r['start']}: {r['method']}", str(r["films"]), f"{r['within_1mm']:.0%}", f"{r['within_2mm']:.0%}",
         number_of(r["median_mm"]), number_of(r["seconds"])]
        for r in result["summary"]
    ]  # fmt: skip
    return "\n\n".join([table_of(head, body), setting_of(result["run"])])


def search(result: dict) -> str:
    """Without a start, and frame by frame."""
    s, searched = result["summary"], len(result["search"])
    body = [
        ["searches without a start, films", "", str(searched)],
        ["of these within 2 mm", ">= 90%", f"{s['search_within_2mm']:.0%}"],
        ["of these within 1 mm", "", f"{s['search_within_1mm']:.0%}"],
        ["seconds a search", "< 60", number_of(s["search_seconds"])],
        ["tracking, frames a second", ">= 5", number_of(s["frames_per_second"])],
        ["tracking, worst mm", "", number_of(s["tracking_worst_mm"])],
    ]
    return "\n\n".join([table_of(["", "asked", "measured"], body), setting_of(result["run"])])


def wrist(result: dict) -> str:
    """How repeatable each bone of the real wrist is."""
    head = [
        "bone, frame",
        "score",
        "same answer",
        "spread, rms mm",
        "spread, rms °",
        "both bones in one system",
    ]
    body = [
        [f"{r['bone']}, {r['frame']}", f"{r['score']:.3f}",
         f"{r['spread']['same_answer']} of {r['spread']['starts']}", number_of(r["spread"]["rms_mm"]),
         number_of(r["spread"]["rms_degrees"]),
         f"{r['with_neighbour']['mm']:.2f} mm, {r['with_neighbour']['degrees']:.2f}°"]
        for r in result["rows"]
    ]  # fmt: skip
    return table_of(head, body)


def regression(result: dict) -> str:
    """A network's guesses, what registration makes of them, and a search without one."""
    head = [
        "",
        "films",
        "°",
        "mm across",
        "mm along the beam",
        "within 2 mm",
        "accepted but wrong",
        "seconds",
    ]
    names = {
        "guess": "the network's guess",
        "refined": "guess, then registration",
        "search": "search, no network",
    }
    body = []
    for key, name in names.items():
        r = result[key]
        if r:
            errors = [number_of(r[k]) for k in ("degrees", "in_plane_mm", "depth_mm")]
            wrong = str(r["accepted_but_wrong"]) if "accepted_but_wrong" in r else ""
            body.append(
                [name, str(r["films"]), *errors, f"{r['success']:.0%}", wrong, number_of(r["seconds"])]
            )
    parts = [table_of(head, body)]
    curve = [
        [f"{r['minutes']:g}", number_of(r["guess"]["degrees"]), number_of(r["guess"]["in_plane_mm"]),
         f"{r['refined']['success']:.0%} of {r['refined']['films']}"]
        for r in result["by_minutes"]
    ]  # fmt: skip
    if curve:
        head = ["minutes of training", "guess, °", "guess, mm across", "then registration, within 2 mm"]
        parts.append(table_of(head, curve))
    return "\n\n".join([*parts, setting_of(result["run"])])


def detectors(result: dict) -> str:
    """What the same network makes of films of other detectors."""
    head = ["film", "films", "guess, °", "mm across", "mm along the beam"]
    body = [
        [f"sdd {r['sdd_mm']:g} mm, field {r['field_mm']:g} mm, {r['pixels']}² px", str(r["films"]),
         *(number_of(r[k]) for k in ("degrees", "in_plane_mm", "depth_mm"))]
        for r in result["detectors"]
    ]  # fmt: skip
    return table_of(head, body)


def regression_films(result: dict) -> str:
    """Films a second of each renderer, rendered and trained on."""
    names = {
        "rendered": "rendered", "rendered_with_gradient": "+ pose gradient", "drawn": "with looks",
        "trained": "trained on", "trained_with_image": "trained on, with the loss through the renderer",
    }  # fmt: skip
    body = [
        [r["renderer"], f"{r['error']:.1e}", *(number_of(r[mode]) for mode in names)] for r in result["rows"]
    ]
    found = result["ratios"].items()
    body += [[f"xreg / {peer}", "", *(number_of(ratio[mode]) for mode in names)] for peer, ratio in found]
    settings = result["settings"]
    head = [f"{settings['size']}², batches of {settings['batch']}, films a second", "error", *names.values()]
    goals = [goal_table(result["goals"])] if result["goals"] else []
    return "\n\n".join([table_of(head, body), *goals, setting_of(result["run"])])


MAKERS = {
    "registration": registration,
    "trust": trust,
    "beside": beside,
    "search": search,
    "wrist": wrist,
    "regression": regression,
    "regression_films": regression_films,
}
