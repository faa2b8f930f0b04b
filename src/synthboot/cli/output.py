"""What is printed goes through here: results to stdout, all else to stderr, nothing that acts on a
terminal."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from synthboot.terminal import safe, table_lines


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A table, its columns in line."""
    for line in table_lines(header, rows):
        say(line)


def say(text: str, err: bool = False) -> None:
    """A line, whatever it holds, without anything that acts on a terminal."""
    write(safe(text) + "\n", err)


def say_json(value: Any) -> None:
    """JSON, in characters that the terminal has."""
    encoding = (sys.stdout.encoding or "").lower()
    say(json.dumps(value, indent=1, ensure_ascii="utf" not in encoding))


def write(text: str, err: bool = False) -> None:
    """Print what is safe to print; where nobody reads on, end without a word."""
    stream = sys.stderr if err else sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # Python flushes at exit, and would fail again on the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(141)
