"""The verbs, and the only room that prints: results to stdout, progress to stderr.

Exit codes: 0 done, 1 a bug, 2 something the user can mend (one line, with what to do), 130 Ctrl-C,
143 and 129 for a SIGTERM and a terminal that closed, 141 nobody reads on (`| head`). Nothing that
is printed acts on a terminal (`output.say`). Heavy imports happen inside the verbs, so that
`--help` is quick.
"""

# imported for the verbs that they give `main`
from synthboot.cli import making, reading
from synthboot.cli.command import main
from synthboot.cli.making import STAGE_HELP

__all__ = ["STAGE_HELP", "main", "making", "reading"]
