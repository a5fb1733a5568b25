"""What a verb says, and where: results on stdout, everything else on stderr, bars only on a terminal."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import click

_SURROGATE = re.compile("[\ud800-\udfff]")

Tell = Callable[..., None]


@dataclass(frozen=True)
class Fact:
    """One value that a verb explains: its name, the value, its unit, where it came from, and a remark.

    ``value`` goes into JSON, ``text`` (by default the value, with its unit) on the screen.
    """

    name: str
    value: Any
    unit: str = ""
    origin: str = ""
    note: str = ""
    text: str = ""

    @property
    def shown(self) -> str:
        """The value as it is printed."""
        return self.text or f"{short(self.value)} {self.unit}".strip()

    def to_json(self) -> dict[str, Any]:
        """The value with what is known about it."""
        known = {"value": self.value, "unit": self.unit, "origin": self.origin, "note": self.note}
        return {name: value for name, value in known.items() if name == "value" or value != ""}


@dataclass(frozen=True)
class Terminal:
    """Prints for one run of one verb.

    as_json: stdout is kept for the one JSON object, and what is for people goes to stderr.
    debug: errors come with the whole traceback.
    """

    as_json: bool = False
    debug: bool = False

    def say(self, text: str = "") -> None:
        """Print a line of the result."""
        click.echo(text, err=self.as_json)

    def note(self, text: str) -> None:
        """Print a line that is not the result: what is being done, a warning."""
        click.echo(text, err=True)

    def lines(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Print names and texts in two columns."""
        pairs = list(pairs)
        width = max((len(name) for name, _ in pairs), default=0)
        for name, text in pairs:
            first, *more = text.split("\n")
            self.say(f"{name:<{width}}  {first}".rstrip())
            for line in more:
                self.say(f"{'':<{width}}  {line}".rstrip())

    def facts(self, title: str, facts: Iterable[Fact]) -> None:
        """Print facts: a table on a terminal, aligned lines elsewhere."""
        facts = list(facts)
        stream = sys.stderr if self.as_json else sys.stdout
        if stream.isatty():
            _rich_table(title, facts, stream)
            return
        self.say(title)
        names = max((len(f.name) for f in facts), default=0)
        for fact in facts:
            about = "; ".join(part for part in (fact.origin, fact.note) if part)
            shown = fact.shown.replace("\n", "\n" + " " * (names + 4))
            self.say(f"  {fact.name:<{names}}  {shown}" + (f"  [{about}]" if about else ""))

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[Tell]:
        """Show that something takes a while; the function it gives is told how far it is.

        ``tell(text, key=..., done=..., total=...)``: on a terminal the line changes in place, with a bar
        where done and total are known; elsewhere a line is printed when ``key`` changes.
        """
        if sys.stderr.isatty():
            with _rich_progress(what) as tell:
                yield tell
            return
        self.note(f"{what} …")
        seen: list[Any] = [None]

        def tell(
            text: str = "", *, key: Any = None, done: int | None = None, total: int | None = None
        ) -> None:
            if key is not None and key != seen[0]:
                seen[0] = key
                self.note(f"  {text}")

        yield tell


class Clock:
    """Seconds since it was made, and of its named parts."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.parts: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block, and add it to the part ``name``."""
        start = time.perf_counter()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._start


def short(value: Any) -> str:
    """A value as people read it: four significant digits, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not known"
    if isinstance(value, float):
        shown = f"{value:.4g}" if abs(value) < 1e4 or not math.isfinite(value) else f"{value:.0f}"
        return "0" if shown == "-0" else shown
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {short(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(row, (list, tuple)) and len(row) == len(value[0]) for row in value):
            return _matrix(value)
        return ", ".join(short(v) for v in value)
    return str(value)


def _matrix(rows: Sequence[Sequence[Any]]) -> str:
    """Rows of numbers in columns."""
    shown = [[f"{float(v) + 0.0:.6g}" for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join("  ".join(v.rjust(w) for v, w in zip(row, widths, strict=True)) for row in shown)


def plain(value: Any) -> Any:
    """A value as JSON holds it: tensors and arrays become lists, paths text, what is not finite null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return fspath(value) if isinstance(value, PathLike) else str(value)


def json_text(data: Mapping[str, Any]) -> str:
    """A JSON object as text, indented, with lists of plain numbers on one line.

    A file's name may hold bytes that are no UTF-8; Python has them as surrogates, which JSON must not.
    """
    text = json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\s*((?:-?[\d.eE+-]+,\s*)*-?[\d.eE+-]+)\s*\]", _on_one_line, text)
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def print_json(data: Mapping[str, Any]) -> None:
    """Print the one JSON object of a run on stdout."""
    click.echo(json_text(data))


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + ", ".join(part.strip() for part in found.group(1).split(",")) + "]"


def _rich_table(title: str, facts: list[Fact], stream: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    matrices = [line for fact in facts if "\n" in fact.shown for line in fact.shown.split("\n")]
    table.add_column("value of", style="bold", overflow="fold")
    table.add_column("is", overflow="fold", min_width=max(map(len, matrices), default=1))
    table.add_column("from", style="cyan", overflow="fold")
    table.add_column("remark", style="dim", overflow="fold")
    for fact in facts:
        table.add_row(*(Text(part) for part in (fact.name, fact.shown, fact.origin, fact.note)))
    Console(file=stream).print(table)


@contextlib.contextmanager
def _rich_progress(what: str) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None, text="")

        def tell(
            text: str = "", *, key: Any = None, done: int | None = None, total: int | None = None
        ) -> None:
            known = {} if total is None else {"completed": done, "total": total}
            progress.update(task, text=text, **known)

        yield tell
        progress.update(task, completed=1, total=1)
