"""One verb of the command line: its options in common, its result, and what happens when it fails."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import click

from xreg import __version__
from xreg.cli.terminal import Terminal, print_json
from xreg.errors import InputWarning, XregError

_FLAGS = {"energy_kev": "energy", "ct_energy_kev": "ct-energy", "series_uid": "series"}
# How torch says that memory ran out: on the host, on a card, and in a kernel that asks it for a new tensor.
_NO_MEMORY = ("can't allocate memory", "out of memory", "aten::new_empty")
EXIT_CODES = {"done": 0, "failed": 1, "rejected": 3}


class Verb(click.Command):
    """A command whose function takes a Terminal first and returns its result as a mapping.

    The result's "status" ("done" unless stated) decides the exit code.  With ``--json`` the result is
    printed as the one object on stdout; a failure is such an object too.
    """

    def __init__(self, *args: Any, **known: Any) -> None:
        known.setdefault("params", [])
        known["params"] += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on stdout."),
            click.Option(["--debug"], is_flag=True, help="Show the whole traceback of an error."),
        ]
        super().__init__(*args, **known)

    def invoke(self, ctx: click.Context) -> None:
        terminal = Terminal(ctx.params.pop("as_json"), ctx.params.pop("debug"))
        ctx.obj = terminal
        try:
            with _warnings_as_lines(terminal):
                result = super().invoke(ctx) or {}
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if terminal.debug:
                raise
            self._fail(terminal, error)
            ctx.exit(EXIT_CODES["failed"])
        result = {"xreg": __version__, "verb": self.name, "status": "done", **result}
        if terminal.as_json:
            print_json(result)
        if code := EXIT_CODES[result["status"]]:
            ctx.exit(code)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if callable(self.epilog):
            self.epilog = self.epilog()
        super().format_epilog(ctx, formatter)

    def _flags(self, message: str) -> str:
        """The options of this verb that a message of the library calls by their names in Python."""
        named = [_FLAGS.get(word, word) for word in re.findall(r"\b([a-z][a-z0-9_]*)=", message)]
        mine = {option for param in self.params for option in param.opts}
        flags = dict.fromkeys(flag for name in named if (flag := "--" + name.replace("_", "-")) in mine)
        return f" [options here: {', '.join(flags)}]" if flags else ""

    def _fail(self, terminal: Terminal, error: Exception) -> None:
        message = _explain(error) + self._flags(str(error))
        terminal.note(f"error: {message}")
        if terminal.as_json:
            known = {"type": type(error).__name__, "message": message}
            print_json({"xreg": __version__, "verb": self.name, "status": "failed", "error": known})


def verb(
    name: str, about: str, *, epilog: str | Callable[[], str] = ""
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function ``f(terminal, **options)``.

    Its docstring is the help, ``about`` the short one, and ``epilog`` follows the options; a function that
    gives it is called when the help is shown.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        return click.command(name, cls=Verb, short_help=about, epilog=epilog or None)(
            click.pass_obj(function)
        )

    return decorate


def _explain(error: Exception) -> str:
    if isinstance(error, XregError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); take a smaller image or a coarser CT"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
        return "not enough memory; take a smaller image or a coarser CT"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {type(error).__name__}: {error} (line {place.lineno} of {place.filename}); this is a "
        "mistake in xreg: --debug shows all of it"
    )


@contextlib.contextmanager
def _warnings_as_lines(terminal: Terminal) -> Iterator[None]:
    """Print warnings about inputs and backends as plain lines, once each."""
    seen: set[str] = set()

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        text = f"warning: {message}"
        if text not in seen:
            seen.add(text)
            terminal.note(text)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        for category in (InputWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield
