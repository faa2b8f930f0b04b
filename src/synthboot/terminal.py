"""Text as a terminal may have it: whoever wrote a document, a file name or a setting does not get to move the cursor."""

from __future__ import annotations

import re

# C0 and C1 controls, line separators, overrides of direction, halves of pairs. Spaces, joiners, soft hyphens and marks of
# every script are text, and stay.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: str) -> str:
    """Text with what would act on a terminal written as JSON writes it, so that JSON stays the same JSON."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The same, with line ends and tabs written out too: a cell of a table, a title."""
    return safe(text).replace("\n", "\\u000a").replace("\t", "\\u0009")
