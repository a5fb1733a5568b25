"""One verb of the command line: its options in common, its result, and what happens when it fails."""

from __future__ import annotations

import contextlib
import os
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
EXIT_CODES = {"done": 0, "failed": 1, "rejected": 3, "interrupted": 130}


class Verb(click.Command):
    """A command whose function takes a Terminal first and returns its result as a mapping.

    The result's "status" ("done" unless stated) decides the exit code.  With ``--json`` the result is
    printed as the one object on stdout; a failure, wrong usage and an interrupt are such an object too.
    """

    def __init__(self, *args: Any, **known: Any) -> None:
        known.setdefault("params", [])
        known["params"] += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on stdout."),
            click.Option(["--debug"], is_flag=True, help="Show the whole traceback of an error."),
        ]
        super().__init__(*args, **known)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        as_json = "--json" in args[: args.index("--") if "--" in args else None]  # they are not parsed yet
        words = _words_of(parent, info_name)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if as_json:
                _print_failure(words, error, error.format_message())
            raise
        except KeyboardInterrupt as error:
            raise click.exceptions.Exit(self._fail(Terminal(as_json), words, error, "interrupted")) from error

    def invoke(self, ctx: click.Context) -> None:
        terminal = Terminal(ctx.params.pop("as_json"), ctx.params.pop("debug"))
        ctx.obj = terminal
        words = _words_of(ctx.parent, ctx.info_name)
        try:
            with _warnings_as_lines(terminal):
                result = super().invoke(ctx) or {}
        except click.exceptions.Exit:
            raise
        except click.ClickException as error:
            if terminal.as_json:
                _print_failure(words, error, error.format_message())
            raise
        except (KeyboardInterrupt, click.Abort) as error:
            ctx.exit(self._fail(terminal, words, error, "interrupted"))
        except Exception as error:
            if terminal.debug:
                raise
            ctx.exit(self._fail(terminal, words, error))
        result = {"xreg": __version__, "verb": words, "status": "done", **result}
        if terminal.as_json and not _printed(result):
            ctx.exit(EXIT_CODES["failed"])
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

    def _interruption(self) -> str:
        """What is said of Ctrl-C, with how the work goes on where this verb can go on."""
        resumes = any("--resume" in param.opts for param in self.params)
        return "interrupted" + ("; --resume goes on, if a checkpoint was written" if resumes else "")

    def _fail(self, terminal: Terminal, words: str, error: BaseException, status: str = "failed") -> int:
        """Say why there is no result; the exit code."""
        if status == "interrupted":
            message = self._interruption()
        else:
            message = _explain(error) + self._flags(str(error))
        terminal.note(f"error: {message}")
        if terminal.as_json:
            _print_failure(words, error, message, status)
        return EXIT_CODES[status]


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


def given(*names: str) -> list[str]:
    """The options among these, by their names in Python, that the command was given, as they are written."""
    known = click.get_current_context()
    default = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    flags = {param.name: param.opts[0] for param in known.command.params}
    return [flags[name] for name in names if known.get_parameter_source(name) not in default]


def _words_of(parent: click.Context | None, name: str | None) -> str:
    """The words of a command after xreg, as "splat fit"."""
    words = [name or ""]
    while parent is not None and parent.parent is not None:
        words.insert(0, parent.info_name or "")
        parent = parent.parent
    return " ".join(words)


def _print_failure(words: str, error: BaseException, message: str, status: str = "failed") -> None:
    known = {"type": type(error).__name__, "message": message}
    _printed({"xreg": __version__, "verb": words, "status": status, "error": known})


def _printed(data: dict[str, Any]) -> bool:
    """Print the one JSON object; False, and a line on stderr, where stdout does not take it."""
    try:
        print_json(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python tries the old one again when it ends
        click.echo(f"error: stdout: {error.strerror}; the result could not be printed", err=True)
        return False
    return True


def _explain(error: BaseException) -> str:
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
