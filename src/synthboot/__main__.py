"""`python -m synthboot`."""

from synthboot.cli import main

main(prog_name="synthboot")
