"""Puts a trained network into the package, with weights of half precision: 4 MB.

python benchmarks/regression.py --minutes 20 --keep NET; python benchmarks/ship_network.py NET
"""

from __future__ import annotations

from pathlib import Path

import click

from xreg.regression import checkpoint
from xreg.regression.shipped import CHEST


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", type=click.Path(path_type=Path), default=CHEST, help="Where to.  [default: the package]"
)
def main(folder: Path, out: Path) -> None:
    """Copy the network of FOLDER, as xreg train leaves it."""
    tensors, facts = checkpoint.load(folder / checkpoint.MODEL)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out / checkpoint.MODEL, {name: t.half() for name, t in tensors.items()}, facts)
    checkpoint.save_facts(out, facts)
    print(f"{out / checkpoint.MODEL}: {(out / checkpoint.MODEL).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
