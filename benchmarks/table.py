"""Write the tables of README.md from the results: `python benchmarks/table.py [README ...]`.

A table stands between `<!-- projector:begin -->` and `<!-- projector:end -->`, or the same of `registration`,
`trust`, `projector_cuda` and `step`; what is there is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
from common import RESULTS
from table_cuda import MAKERS as ON_A_CARD

from xreg.io import atomic_write

HEADS = {
    "forward": "forward",
    "pose": "+ pose gradient",
    "jacobian": "+ full Jacobian",
    "volume": "+ volume gradient",
}

MEMORY = ("xreg trilinear 500 int16", "xreg joseph float")  # of xreg's rows, which are all alike


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _setting(run: dict) -> str:
    size = "×".join(map(str, run["volume"]["size"]))
    versions = ", ".join(f"{name} {v}" for name, v in run["versions"].items())
    return (
        f"{run['cpu']}, {run['threads']} threads, kernels {run['kernels']}; {versions}; "
        f"{run['volume']['name']} {size}; {run['when']}; `{run['command']}`."
    )


def _three(rows: list[dict], pattern: str = "{:.0f}", scale: str = "median_ms") -> str:
    values = [r[scale] for r in rows if r.get(scale) is not None]
    return " / ".join(pattern.format(v) for v in values)


def projector(result: dict) -> str:
    """Medians in ms, the views of one size side by side in a cell; then memory and goals."""
    parts = []
    views = list(dict.fromkeys(r["view"] for r in result["rows"]))
    for size in dict.fromkeys(r["size"] for r in result["rows"]):
        rows = [r for r in result["rows"] if r["size"] == size]
        head = [
            f"{size}, ms: {' / '.join(views)}",
            *HEADS.values(),
            "error (relative L2)",
            "error inside the CT's border",
        ]
        body = []
        for name in dict.fromkeys(r["renderer"] for r in rows):
            mine = {mode: [r for r in rows if r["renderer"] == name and r["mode"] == mode] for mode in HEADS}
            samples = f" ({_three(mine['forward'], scale='samples')})" if "matched" in name else ""
            cells = [_three(mine[mode]) for mode in HEADS]
            errors = [_three(mine["forward"], "{:.1e}", key) for key in ("error", "error_inside")]
            body.append([name + samples, *cells, *errors])
        parts.append(_grid(head, body))
    if result["memory"]:
        shown = [
            m for m in result["memory"] if m["renderer"] in MEMORY or not m["renderer"].startswith("xreg")
        ]
        body = [[f"{m['renderer']}, {m['mode']}, {m['size']}", f"{m['mb']:.0f}"] for m in shown]
        parts.append(_grid(["peak memory beyond the volume", "MB"], body))
    parts.append(_goals(result["goals"]))
    parts += [f"Not measured: {name} ({why})." for name, why in result["skipped"].items()]
    return "\n\n".join([*parts, _setting(result["run"])])


def _goals(goals: list[dict]) -> str:
    body = []
    for g in goals:
        value = "-" if g["value"] is None else f"{g['value']:.2f}" if g["value"] < 2 else f"{g['value']:.1f}"
        place = f" ({g['where']})" if g.get("where") else ""
        body.append([g["what"] + place, g["goal"], value, "yes" if g["met"] else "**no**"])
    return _grid(["goal", "asked", "measured", "met"], body)


def registration(result: dict) -> str:
    """Both methods side by side, then ratios and goals."""
    own, peer, ratios = (result["summary"][k] for k in ("xreg", "adam", "ratios"))
    labels = {
        "cases": "starts", "success": "part within 1 mm mTRE", "median_mm": "mTRE, mm, median",
        "p95_mm": "mTRE, mm, 95 %", "renders": "renders, median", "full_size": "the same in full-size images",
        "to_1mm": "renders until 1 mm, where reached", "seconds": "seconds, median",
    }  # fmt: skip
    body = [[label, _number(own.get(k)), _number((peer or {}).get(k))] for k, label in labels.items()]
    parts = [_grid([f"{result['size']}²", "xreg", "Adam, xvr's recipe"], body)]
    if ratios:
        names = {
            "adam_to_xreg_mm_over_xreg_all": "renders: Adam until as accurate as xreg's end / xreg, all",
            "adam_to_1mm_over_xreg_all": "renders: Adam until 1 mm / xreg, all",
            "adam_to_1mm_over_xreg_to_1mm": "renders: both until 1 mm",
            "adam_all_over_xreg_all": "renders: both to their own end",
            "full_size_all": "the same in full-size images",
            "seconds": "seconds",
        }
        parts.append(_grid(["Adam / xreg, median over the starts that xreg brings within 1 mm", ""],
                           [[label, _number(ratios[k])] for k, label in names.items()]))  # fmt: skip
    return "\n\n".join([*parts, _goals(result["goals"]), _setting(result["run"])])


def trust(result: dict) -> str:
    """Each kind of case, then what may be said of the verdict and the covariance."""
    head = ["case", "films", "within 1 mm", "within 2 mm", "median mm", "accepted"]
    body = [
        [f"{r['body']}, {r['kind']}", str(r["cases"]), f"{r['within_1mm']:.0%}", f"{r['within_2mm']:.0%}",
         _number(r["median_mm"]), f"{r['accepted']:.0%}"]
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
    return "\n\n".join([_grid(head, body), _grid(["", "asked", "measured"], said), _setting(result["run"])])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def fill(text: str, name: str, table: str) -> str:
    """The text with the table between the markers of a name; unchanged where there are none."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n\n{table}\n\n{end}", text)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--results", type=click.Path(path_type=Path), default=RESULTS, help="Folder with the JSON files."
)
def main(files, results) -> None:
    """Fill the marked tables of FILES (default: README.md of the repository)."""
    for path in files or [Path(__file__).resolve().parents[1] / "README.md"]:
        text = path.read_text(encoding="utf-8")
        makers = {"projector": projector, "registration": registration, "trust": trust}
        for name, make in (makers | ON_A_CARD).items():
            source = Path(results) / f"{name}.json"
            if source.is_file():
                result = json.loads(source.read_text(encoding="utf-8"))
                if not result.get("dry_run"):
                    text = fill(text, name, make(result))
        with atomic_write(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
