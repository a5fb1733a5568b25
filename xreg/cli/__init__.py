"""The command `xreg`: one file a verb, loaded when it is asked for.

Only click is imported here, so that `xreg --help` answers at once; each verb imports what it needs when it
runs.  Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but rejected by its own quality check,
130 interrupted.
"""

from __future__ import annotations

from importlib import import_module

import click

from xreg import __version__

VERBS = (
    "demo", "doctor", "info", "drr", "project", "register", "train", "train-many", "evaluate", "splat",
    "recon", "shape", "reconstruct", "convert",
)  # fmt: skip


class Verbs(click.Group):
    """The verbs by name; the module of a verb is imported when it is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        return import_module(f"xreg.cli.{name.replace('-', '_')}").command


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but rejected by its own quality check, "
    "130 interrupted.",
)
@click.version_option(__version__, prog_name="xreg")
def main() -> None:
    """Register a CT to a radiograph, render radiographs, and read and convert their files.

    World coordinates are RAS+ millimetres, cameras are OpenCV's, pixel centres are at integers. Start with
    `xreg demo`; `xreg VERB --help` explains a verb, `--json` makes it print one JSON object.
    """
