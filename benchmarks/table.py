"""Write the tables of README.md from the results: `python benchmarks/table.py [README ...]`.

A table stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, where NAME is that of a maker below;
what is there is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
from common import RESULTS
from markdown import goal_table, setting_of, side_by_side, table_of
from table_cuda import MAKERS as ON_A_CARD
from table_registration import MAKERS as REGISTRATION
from table_registration import detectors
from table_shape import MAKERS as SHAPE
from table_splat import MAKERS as SPLAT

from xreg.io import atomic_write

HEADS = {
    "forward": "forward",
    "pose": "+ pose gradient",
    "jacobian": "+ full Jacobian",
    "volume": "+ volume gradient",
}

MEMORY = ("xreg trilinear 500 int16", "xreg joseph float")  # of xreg's rows, which are all alike


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
            samples = f" ({side_by_side(mine['forward'], scale='samples')})" if "matched" in name else ""
            cells = [side_by_side(mine[mode]) for mode in HEADS]
            errors = [side_by_side(mine["forward"], "{:.1e}", key) for key in ("error", "error_inside")]
            body.append([name + samples, *cells, *errors])
        parts.append(table_of(head, body))
    if result["memory"]:
        shown = [
            m for m in result["memory"] if m["renderer"] in MEMORY or not m["renderer"].startswith("xreg")
        ]
        body = [[f"{m['renderer']}, {m['mode']}, {m['size']}", f"{m['mb']:.0f}"] for m in shown]
        parts.append(table_of(["peak memory beyond the volume", "MB"], body))
    parts.append(goal_table(result["goals"]))
    parts += [f"Not measured: {name} ({why})." for name, why in result["skipped"].items()]
    return "\n\n".join([*parts, setting_of(result["run"])])


def projector_goals(result: dict) -> str:
    """The goals alone."""
    return "\n\n".join([goal_table(result["goals"]), setting_of(result["run"])])


# The name between the markers: the result it is made from, and how.
MAKERS = {
    name: (name, make) for name, make in ({"projector": projector} | REGISTRATION | ON_A_CARD | SPLAT).items()
}
MAKERS["projector_goals"] = ("projector", projector_goals)
MAKERS["detectors"] = ("regression", detectors)
MAKERS |= SHAPE
ROOT = Path(__file__).resolve().parents[1]


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
    """Fill the marked tables of FILES (default: both README.md, docs/regression.md and docs/shape.md)."""
    for path in files or [
        ROOT / "README.md",
        ROOT / "benchmarks" / "README.md",
        ROOT / "docs" / "regression.md",
        ROOT / "docs" / "shape.md",
    ]:
        text = path.read_text(encoding="utf-8")
        for name, (source, make) in MAKERS.items():
            file = Path(results) / f"{source}.json"
            if f"<!-- {name}:begin -->" in text and file.is_file():
                result = json.loads(file.read_text(encoding="utf-8"))
                if not result.get("dry_run"):
                    text = fill(text, name, make(result))
        with atomic_write(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
