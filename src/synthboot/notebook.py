"""What a notebook makes of a value: a table in HTML, in which no text of a corpus is HTML, and
pandas."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from synthboot.errors import ConfigError

_CHARS = 400
"""Of a text in a cell; the value itself has all of it."""


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with what it is above it; long cells end in dots."""
    lines = ["<table>", f"<caption>{html.escape(caption)}</caption>"]
    lines.append("".join(["<tr>", *(f"<th>{html.escape(name)}</th>" for name in header), "</tr>"]))
    for row in rows:
        cells = [f'<td style="text-align: left">{html.escape(short(cell))}</td>' for cell in row]
        lines.append("".join(["<tr>", *cells, "</tr>"]))
    return "\n".join([*lines, "</table>"])


def short(cell: object) -> str:
    """A cell as text, cut where it is long."""
    text = f"{cell:.4f}" if isinstance(cell, float) else str(cell)
    return text if len(text) <= _CHARS else text[: _CHARS - 3] + "..."


def pandas() -> ModuleType:
    """The library. Raises ConfigError where it is not installed: nothing else needs it."""
    try:
        return import_module("pandas")
    except ImportError:
        raise ConfigError("to_pandas: needs pandas: pip install pandas") from None
