"""Damage: to bytes, wherever they come from, and to JSON values, node by node."""

import copy
from typing import Any

from hypothesis import strategies as st

SNIPPETS = [
    b"",
    b"\0",
    b"\n",
    b"\r",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\x1b[2J",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"'",
    b"\\",
    b":",
    b",",
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"!!",
    b"%",
    b"|",
    b">",
    b"?",
    b"#",
    b"\t",
    b"NaN",
    b"null",
    b"-",
    b"1e999",
    b"9" * 400,
    b"\xe2\x80\xa8",
    b"\xe2\x80\xae",
    b"\\ud800",
    b"\\u0000",
    b"[" * 2_000,
    b"\x1f\x8b",
    b"PK",
]


def once_in(times: int) -> st.SearchStrategy[bool]:
    """True so often. Not a number that is 0: hypothesis likes the ends of a range."""
    return st.integers(0, times - 1).map(lambda number: number == times // 2)


Edit = tuple[str, float, float, bytes]
"""What is done to a stretch of bytes, given by where it begins and ends as shares of the whole, and with what."""


def edits(most: int = 3) -> st.SearchStrategy[list[Edit]]:
    """A few edits; none three times as often as some."""
    share = st.floats(0, 1, width=32)
    what = st.sampled_from(["put", "put", "cut", "keep", "flip", "twice"])
    some = st.lists(st.tuples(what, share, share, st.sampled_from(SNIPPETS)), min_size=1, max_size=most)
    return st.one_of(st.just([]), st.just([]), st.just([]), some)


def edited(data: bytes, changes: list[Edit]) -> bytes:
    """The bytes after the edits. A stretch is at most 64 bytes long, but for `keep`, which truncates."""
    for what, start, end, snippet in changes:
        first = int(start * len(data))
        last = min(len(data), first + 1 + int(end * 63))
        if what == "put":
            data = data[:first] + snippet + data[first:]
        elif what == "cut":
            data = data[:first] + data[last:]
        elif what == "keep":
            data = data[:first]
        elif what == "flip" and data:
            place = min(first, len(data) - 1)
            data = data[:place] + bytes([data[place] ^ (1 + int(end * 254))]) + data[place + 1 :]
        elif what == "twice":
            data = data[:last] + data[first:last] + data[last:]
    return data


ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**64),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "0",
    "1",
    "-1",
    "null",
    "a",
    "../..",
    "/",
    "x" * 300,
    "\0",
    "\x1b[31m",
    "\u202e",
    "\u2028",
    "\ufeff",
    "\ud800",
    "{",
    "{query}",
    "%s",
    "<script>",
    [],
    [None],
    [[]],
    {},
    {"": ""},
    {"a": None},
    ["a", "b"],
    [0, 1],
    {"text": ["a"], "label": ["A"]},
]

odd = st.sampled_from(ODD) | st.text(max_size=8) | st.integers() | st.floats()
"""A JSON value that a reader may not expect."""

Change = tuple[str, int, Any]


def changes(most: int = 3) -> st.SearchStrategy[list[Change]]:
    """A few changes of nodes of a JSON value: replaced, taken out, put under another key, doubled."""
    what = st.sampled_from(["replace", "replace", "replace", "drop", "rename", "double", "wrap"])
    return st.lists(st.tuples(what, st.integers(0, 10_000), odd), max_size=most)


def changed(value: Any, asked: list[Change]) -> Any:
    """The value after the changes; the number in each, modulo how many nodes there are, names the node."""
    value = copy.deepcopy(value)
    for what, number, given in asked:
        other = copy.deepcopy(given)  # it may be changed in its turn
        places = list(_places(value))
        if not places or (what == "wrap" and number % 7 == 0):
            value = other if what == "replace" else [value]
            continue
        holder, key = places[number % len(places)]
        if what == "replace":
            holder[key] = other
        elif what == "wrap":
            holder[key] = [holder[key]]
        elif what == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[str(other)[:20] if what == "rename" else f"{key} "] = holder.pop(key) if what == "rename" else holder[key]
    return value


def _places(value: Any) -> Any:
    """Every node below the top, as what holds it and under which key."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
