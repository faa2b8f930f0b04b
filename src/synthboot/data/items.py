"""One line of a question file as an item to score a model on, or why it is none.

A field holds text that is not blank; a whole number counts as its digits; anything else is refused.
Several texts stand in a list, or in Hugging Face's form, `{"text": [...], "label": [...]}`; one
answer may stand alone. `gold` counts from 0, or is a label, a letter or the text of a choice where
that can mean one choice only.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

LETTERS = string.ascii_uppercase
FILES = (".jsonl.zst", ".jsonl.gz", ".jsonl")
"""How the name of a file of questions ends."""
_FIELDS = {
    "choice": ("query", "choices", "gold"),
    "context": ("context_options", "continuation", "gold"),
    "pair": ("good", "bad"),
    "cloze": ("context", "target"),
    "open": ("query", "answers"),
}
"""Kind of question -> its fields; the first two tell the kind."""
_LONE = re.compile("[\ud800-\udfff]")

Row = Mapping[str, object]


@dataclass(frozen=True)
class Support:
    """A document that tells an answer, by its id in the corpus, and by its title where a question
    names one."""

    id: str
    title: str = ""


@dataclass(frozen=True)
class Item:
    """One question.

    A model chooses among (context, continuation) or, for an open question, goes on from the only
    context. `gold` counts the right continuation, `group` is what the report groups items by, and
    `bare` is the question without prompt and worked examples, and its right answer where that
    stands after it. `support` are documents that tell the answer, where they are known.
    """

    id: str
    kind: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    answers: tuple[str, ...] = ()
    group: str = ""
    bare: tuple[str, ...] = ("",)
    support: tuple[Support, ...] = ()

    @property
    def digest(self) -> str:
        """16 hex digits of what is asked and what is right, by which runs are matched."""
        content = [self.kind, self.contexts, self.continuations, self.gold, self.answers]
        text = json.dumps(content, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def titles(tasks: Sequence[str]) -> list[str]:
    """What tasks are called where there is little room: files by their stems, if those differ."""
    stems = []
    for task in tasks:
        stem = PurePath(task).name
        for suffix in FILES:
            stem = stem.removesuffix(suffix)
        stems.append(stem)
    named = zip(tasks, stems, strict=True)
    return [stem if stem and stems.count(stem) == 1 else task for task, stem in named]


class NoItem(ValueError):
    """Why a line is no question."""


def chance(items: Sequence[Item]) -> float | None:
    """The share of items that guessing gets right; None where something is to be written."""
    choices = [max(len(item.contexts), len(item.continuations)) for item in items]
    if min(choices, default=0) < 2:
        return None
    return sum(1 / number for number in choices) / len(choices)


def item(
    row: Row,
    number: str,
    prompt: str = "{query}",
    letters: bool = False,
) -> Item:
    """The item that a line's fields make.

    Raises NoItem. `letters`: the choices stand in the prompt, and a letter answers.
    """
    kind = _kind(row)
    gold = 0
    answers: tuple[str, ...] = ()
    if kind == "pair":
        contexts = [""]
        # Good and bad are the same in 7 of BLiMP's 67,000 pairs, which is no error here.
        texts = [_text(row, "good"), _text(row, "bad")]
        bare = [texts[0]]
    elif kind == "cloze":
        contexts = [_text(row, "context")]
        texts = [_text(row, "target")]
        bare = [contexts[0] + _after(contexts[0], texts[0])]
    elif kind == "open":
        query = _text(row, "query")
        answers = _answers(row)
        contexts = [prompt.format(query=query)]
        texts = []
        bare = [query, answers[0]]
    elif kind == "context":
        contexts = _texts(row, "context_options")
        texts = [_text(row, "continuation")] * len(contexts)
        gold = _gold(row, contexts, "context_options")
        bare = [contexts[gold] + _after(contexts[gold], texts[gold])]
    else:
        query = _text(row, "query")
        options = _texts(row, "choices")
        gold = _gold(row, options, "choices")
        context = prompt.format(query=query)
        texts = options
        if letters:
            context, texts = _lettered(context, options)
        contexts = [context]
        bare = [query, options[gold]]

    if kind != "pair":
        # One context stands for all continuations, or each has its own.
        last = len(contexts) - 1
        texts = [_after(contexts[min(i, last)], text) for i, text in enumerate(texts)]

    group = row.get("group", row.get("uid"))
    identifier = row.get("id")
    return Item(
        id=number if identifier is None else str(identifier),
        kind=kind,
        contexts=tuple(contexts),
        continuations=tuple(texts),
        gold=gold,
        answers=answers,
        group="" if group is None else str(group),
        bare=tuple(bare),
        support=_support(row.get("support")),
    )


def _support(value: object) -> tuple[Support, ...]:
    """The documents that a field names, one or several.

    What is no object with an id names none and is no error: SciQ has a passage in that field.
    """
    several = value if isinstance(value, list) else [value]
    found = []
    for document in several:
        if isinstance(document, Mapping) and isinstance(document.get("id"), str | int):
            found.append(Support(str(document["id"]), str(document.get("title") or "")))
    return tuple(found)


def _lettered(question: str, options: Sequence[str]) -> tuple[str, list[str]]:
    """A question followed by its choices, a letter before each, and the letters."""
    if len(options) > len(LETTERS):
        raise NoItem(f"{len(options)} choices, and there are {len(LETTERS)} letters")
    letters = list(LETTERS[: len(options)])
    lines = [question]
    for letter, option in zip(letters, options, strict=True):
        lines.append(f"{letter}. {option}")
    lines.append("Answer:")
    return "\n".join(lines), letters


def _kind(row: Row) -> str:
    """The kind of question that a line's fields make."""
    for kind, fields in _FIELDS.items():
        if fields[0] not in row or fields[1] not in row:
            continue
        missing = [field for field in fields if field not in row]
        if missing:
            raise NoItem(f'no "{missing[0]}" field')
        return kind

    given = ", ".join(row) or "none"
    wanted = "; or ".join(", ".join(fields) for fields in _FIELDS.values())
    raise NoItem(f"these fields make no question: {given}; needed are {wanted}")


def _after(context: str, text: str) -> str:
    """A continuation after the one space that sets it off, unless either side has one already."""
    if context[-1:].isspace() or text[:1].isspace():
        return text
    return " " + text


def _text(row: Row, name: str) -> str:
    return _checked(row[name], f'"{name}"')


def _checked(value: object, what: str) -> str:
    """A value as text. Raises NoItem, calling it `what`, where it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise NoItem(f"{what} is {_shown(value)}, not text")
    if not value.strip():
        raise NoItem(f"{what} is empty")
    if _LONE.search(value):
        raise NoItem(f"{what} holds lone surrogates")
    return value


def _texts(row: Row, name: str) -> list[str]:
    """The texts of a field that holds several."""
    value = row[name]
    if isinstance(value, Mapping):
        value = value.get("text")
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise NoItem(
            f'"{name}" is {_shown(row[name])}; it takes a list, '
            f'or {{"text": [...], "label": [...]}}'
        )
    if len(value) < 2:
        raise NoItem(f'"{name}" has {len(value)} to choose from; there have to be two')
    return [_checked(text, f'"{name}" {i}') for i, text in enumerate(value, 1)]


def _answers(row: Row) -> tuple[str, ...]:
    """The right answers to an open question.

    Those that are nothing without punctuation, which nothing at all would match, are left out where
    there are others.
    """
    value = row["answers"]
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, Sequence) and not isinstance(value, str):
        texts = [_checked(text, f'"answers" {i}') for i, text in enumerate(value, 1)]
    else:
        texts = [_checked(value, '"answers"')]

    kept = tuple(text for text in texts if text.strip().strip(string.punctuation + " "))
    if not kept:
        raise NoItem('"answers" is empty' + (", punctuation apart" if texts else ""))
    return kept


def _gold(
    row: Row,
    options: Sequence[str],
    name: str,
) -> int:
    """Which choice is right: the only one that `gold` can mean."""
    gold = row["gold"]
    choices = row[name]
    labels: list[object] = []
    has_labels = isinstance(choices, Mapping)
    if isinstance(choices, Mapping):
        given = choices.get("label")
        if not isinstance(given, list) or len(given) != len(options):
            raise NoItem(f'"{name}" has {len(options)} texts, and as many labels it has not')
        labels = given
    if isinstance(gold, float) and gold.is_integer():
        gold = int(gold)  # as pandas writes whole numbers of a column that has gaps

    meant: set[int] = set()
    if isinstance(gold, int | str) and not isinstance(gold, bool):
        text = str(gold).strip()
        meant |= {i for i, label in enumerate(labels) if str(label) == text}
        if text.isascii() and text.isdecimal():
            meant.add(int(text[:9]))  # no list is longer, and Python refuses to read 5,000 digits
        # Where there are labels, a string is one of them, or a number.
        if isinstance(gold, str) and not has_labels:
            meant |= {i for i, option in enumerate(options) if option.strip() == text}
            if len(text) == 1 and text.upper() in LETTERS:
                meant.add(LETTERS.index(text.upper()))

    meant = {i for i in meant if i < len(options)}
    if not meant:
        raise NoItem(f'"gold" is {_shown(gold)}, and there are {len(options)} choices')
    if len(meant) > 1:
        numbers = ", ".join(map(str, sorted(meant)))
        raise NoItem(f'"gold" is {_shown(gold)}, which may mean any of the choices {numbers}')
    return meant.pop()


def _shown(value: object) -> str:
    """A value as JSON has it, in short."""
    if isinstance(value, str):
        return f"'{value[:40]}'"
    if isinstance(value, Mapping):
        return "an object"
    return json.dumps(value, default=repr)[:40]
