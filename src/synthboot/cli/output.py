"""What is printed goes through here: results to stdout, all else to stderr, nothing that acts on a
terminal."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

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
        _close(stream)
        sys.exit(141)
    except OSError as error:
        error.filename = "standard error" if err else "standard output"  # the disk of no run folder
        raise


def log(text: str) -> None:
    """A line to stderr of work that goes on, also where the line cannot be written: a log whose
    disk is full, or that nobody reads any more, must not end what it tells of."""
    try:
        sys.stderr.write(safe(text) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        _close(sys.stderr)
    except OSError:
        pass  # there may be room again


def _close(stream: TextIO) -> None:
    """Let what is written to a stream go nowhere: Python flushes at exit, and would fail again on
    the closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
