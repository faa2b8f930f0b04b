"""Text as a terminal may have it.

Whoever wrote a document, a file name or a setting does not get to move the cursor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# C0 and C1 controls, line separators, overrides of direction, halves of pairs. Spaces, joiners,
# soft hyphens and marks of every script are text, and stay.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: str) -> str:
    """Text with what would act on a terminal written out.

    It is written as JSON writes it, so that JSON stays the same JSON.
    """
    text = text.replace("\r\n", "\n")
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """The same, with line ends and tabs written out too: a cell of a table, a title."""
    return safe(text).replace("\n", "\\u000a").replace("\t", "\\u0009")


def table_lines(header: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table: its header, a rule, its rows, columns two spaces apart."""
    from rich.cells import cell_len  # a Chinese character is two columns wide

    cells = [[one_line(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width for width in widths]
    lines = []
    for row in [cells[0], rule, *cells[1:]]:
        line = ""
        for cell, width in zip(row, widths, strict=True):
            line += cell + " " * (width - cell_len(cell)) + "  "
        lines.append(line.rstrip(" "))
    return lines
