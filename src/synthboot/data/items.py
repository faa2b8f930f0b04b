"""One line of a question file as an item that a model can be scored on, or the reason why it is none.

A field holds text that is not blank; a whole number counts as its digits; anything else is refused. Several texts stand in
a list, or in Hugging Face's form, `{"text": [...], "label": [...]}`; one answer may stand alone. `gold` counts from 0, or
is a label, a letter or the text of a choice where that can mean one choice only.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LETTERS = string.ascii_uppercase
_FIELDS = {
    "choice": ("query", "choices", "gold"), "context": ("context_options", "continuation", "gold"), "pair": ("good", "bad"),
    "cloze": ("context", "target"), "open": ("query", "answers"),
}  # fmt: skip
Row = Mapping[str, object]


@dataclass(frozen=True)
class Item:
    """One question: a model chooses among (context, continuation) or, for an open one, goes on from the only context.
    `gold` counts the right continuation, `group` is what the report groups items by, and `bare` is the question without
    prompt and worked examples, and its right answer where that stands after it."""

    id: str
    kind: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    answers: tuple[str, ...] = ()
    group: str = ""
    bare: tuple[str, ...] = ("",)


class NoItem(ValueError):
    """Why a line is no question."""


def item(row: Row, number: str, prompt: str = "{query}", letters: bool = False) -> Item:
    """The item that a line's fields make. Raises NoItem. `letters`: the choices stand in the prompt, and a letter answers."""
    kind = _kind(row)
    gold, answers, contexts = 0, tuple[str, ...](), tuple[str, ...]()
    said: list[str] = []
    if kind == "pair":
        contexts, said = (
            ("",),
            [_text(row, "good"), _text(row, "bad")],
        )  # the same in 7 of BLiMP's 67,000
        bare: tuple[str, ...] = (said[0],)
    elif kind == "cloze":
        contexts, said = (_text(row, "context"),), [_text(row, "target")]
        bare = (contexts[0] + _after(contexts[0], said[0]),)
    elif kind == "open":
        query, answers = _text(row, "query"), _answers(row)
        contexts, bare = (prompt.format(query=query),), (query, answers[0])
    elif kind == "context":
        contexts = tuple(_texts(row, "context_options"))
        said, gold = (
            [_text(row, "continuation")] * len(contexts),
            _gold(row, contexts, "context_options"),
        )
        bare = (contexts[gold] + _after(contexts[gold], said[gold]),)
    else:
        query, options = _text(row, "query"), _texts(row, "choices")
        gold = _gold(row, options, "choices")
        asked, bare, said = prompt.format(query=query), (query, options[gold]), options
        if letters:
            if len(options) > len(LETTERS):
                raise NoItem(f"{len(options)} choices, and there are {len(LETTERS)} letters")
            said = list(LETTERS[: len(options)])
            asked = "\n".join(
                [asked, *(f"{m}. {o}" for m, o in zip(said, options, strict=True)), "Answer:"]
            )
        contexts = (asked,)
    if kind != "pair":
        said = [_after(contexts[min(i, len(contexts) - 1)], text) for i, text in enumerate(said)]
    group = row.get("group", row.get("uid"))
    identifier = row.get("id")
    return Item(
        number if identifier is None else str(identifier), kind, contexts, tuple(said), gold, answers,
        "" if group is None else str(group), bare,
    )  # fmt: skip


def _kind(row: Row) -> str:
    kind = next((k for k, fields in _FIELDS.items() if fields[0] in row and fields[1] in row), None)
    if kind is None:
        wanted = "; or ".join(", ".join(fields) for fields in _FIELDS.values())
        raise NoItem(
            f"these fields make no question: {', '.join(row) or 'none'}; needed are {wanted}"
        )
    if missing := [f for f in _FIELDS[kind] if f not in row]:
        raise NoItem(f'no "{missing[0]}" field')
    return kind


def _after(context: str, text: str) -> str:
    """A continuation after the one space that sets it off, where neither side has a space already."""
    return text if context[-1:].isspace() or text[:1].isspace() else " " + text


def _text(row: Row, name: str) -> str:
    return _checked(row[name], f'"{name}"')


def _checked(value: object, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise NoItem(f"{what} is {_said(value)}, not text")
    if not value.strip():
        raise NoItem(f"{what} is empty")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise NoItem(f"{what} holds lone surrogates")
    return value


def _texts(row: Row, name: str) -> list[str]:
    """The texts of a field that holds several."""
    found = row[name]
    if isinstance(found, Mapping):
        found = found.get("text")
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise NoItem(
            f'"{name}" is {_said(row[name])}; it takes a list, or {{"text": [...], "label": [...]}}'
        )
    if len(found) < 2:
        raise NoItem(f'"{name}" has {len(found)} to choose from; there have to be two')
    return [_checked(value, f'"{name}" {i + 1}') for i, value in enumerate(found)]


def _answers(row: Row) -> tuple[str, ...]:
    """The right answers to an open question; those that are nothing without punctuation, which nothing at all would match,
    are left out where there are others."""
    found = row["answers"]
    if isinstance(found, Mapping):
        found = found.get("text")
    several = isinstance(found, Sequence) and not isinstance(found, str)
    given = list(found) if several and isinstance(found, Sequence) else [found]
    texts = [
        _checked(value, '"answers"' + (f" {i + 1}" if several else ""))
        for i, value in enumerate(given)
    ]
    kept = tuple(text for text in texts if text.strip().strip(string.punctuation + " "))
    if not kept:
        raise NoItem('"answers" is empty' + (", punctuation apart" if texts else ""))
    return kept


def _gold(row: Row, options: Sequence[str], name: str) -> int:
    """Which choice is right: the only one that `gold` can mean."""
    gold, held = row["gold"], row[name]
    labels = held.get("label") if isinstance(held, Mapping) else None
    if isinstance(held, Mapping) and (not isinstance(labels, list) or len(labels) != len(options)):
        raise NoItem(f'"{name}" has {len(options)} texts, and as many labels it has not')
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)  # as pandas writes whole numbers of a column that has gaps
    meant = set[int]()
    if isinstance(gold, int | str) and not isinstance(gold, bool):
        text = str(gold).strip()
        meant |= {i for i, label in enumerate(labels or []) if str(label) == text}
        if text.isascii() and text.isdecimal():
            meant.add(int(text[:9]))
        if isinstance(gold, str) and labels is None:
            meant |= {i for i, option in enumerate(options) if option.strip() == text}
            meant |= (
                {LETTERS.index(text.upper())}
                if len(text) == 1 and text.upper() in LETTERS
                else set()
            )
    meant = {i for i in meant if i < len(options)}
    if not meant:
        raise NoItem(f'"gold" is {_said(gold)}, and there are {len(options)} choices')
    if len(meant) > 1:
        raise NoItem(
            f'"gold" is {_said(gold)}, which may mean any of the choices {", ".join(map(str, sorted(meant)))}'
        )
    return meant.pop()


def _said(value: object) -> str:
    """A value as JSON has it, in short."""
    if isinstance(value, str):
        return f"'{value[:40]}'"
    return "an object" if isinstance(value, Mapping) else json.dumps(value, default=repr)[:40]
