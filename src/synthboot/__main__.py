"""The command `synthboot`, and `python -m synthboot`."""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line; Ctrl-C ends it without a word until a verb listens for it."""
    # what a shell has start in the background ignores it, and is to go on doing so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)

    # imported here, since that takes half a second in which Ctrl-C would be a traceback
    from synthboot.cli import main as verbs

    verbs(prog_name="synthboot")


def _end(number: int, _: FrameType | None) -> None:
    # no SystemExit, which some library that is just imported may stop; nothing is written yet
    os._exit(128 + number)


if __name__ == "__main__":
    main()
