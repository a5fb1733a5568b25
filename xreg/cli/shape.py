"""`xreg shape`: the verbs of films to labelled bones; each is a file of its own, loaded when it is named."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import click

VERBS = (
    "atlas",
    "draw",
    "evaluate",
    "learn",
    "prepare",
    "train",
    "train-spine",
)


class ShapeVerbs(click.Group):
    """The verbs by name; the module of a verb is imported when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in VERBS if find_spec(_module(name))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        return import_module(_module(name)).command


def _module(name: str) -> str:
    return f"xreg.cli.shape_{name.replace('-', '_')}"


@click.group("shape", cls=ShapeVerbs, short_help="Films to labelled bones: data, training, evaluation.")
def command() -> None:
    """What belongs to the reconstruction of labelled bones from two films or more."""
