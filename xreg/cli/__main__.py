"""`python -m xreg.cli`, for where the command itself is not on the path."""

from xreg.cli import main

main(prog_name="xreg")
