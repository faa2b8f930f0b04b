"""Question files: the five forms, fields of the right and of the wrong type, then damaged."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from synthboot import config
from synthboot.data import tasks
from tests.fuzz.fuzzer import Fault, Fuzzer
from tests.fuzz.mutations import Edit, changed, changes, edited, edits

words = st.sampled_from(
    ["Paris", "the red house", "a", "B", "1", " x", "x ", "{query}", "{", "是", "e\u0301", "a\u2028b", "\ufeff"]
)
lists = st.lists(words, min_size=2, max_size=4)
gold = st.one_of(
    st.integers(0, 1),
    st.integers(0, 1),
    st.integers(0, 1),
    st.integers(0, 3),
    st.sampled_from(["A", "0", "1", 1.0, True, "2.0", -1]),
)
FORMS = [
    st.fixed_dictionaries({"query": words, "choices": lists, "gold": gold}),
    st.fixed_dictionaries(
        {"query": words, "choices": lists.map(lambda c: {"text": c, "label": list("ABCD")[: len(c)]}), "gold": gold}
    ),
    st.fixed_dictionaries({"context_options": lists, "continuation": words, "gold": gold}),
    st.fixed_dictionaries({"good": words, "bad": words}),
    st.fixed_dictionaries({"context": words, "target": words}),
    st.fixed_dictionaries({"query": words, "answers": st.one_of(lists, words)}),
]


@st.composite
def inputs(draw: st.DrawFn) -> tuple[bytes, int, int | None]:
    """The bytes of a file, worked examples and items to ask for."""
    form = draw(st.sampled_from(FORMS))
    rows = draw(st.lists(st.one_of(form, form, form, st.one_of(FORMS)), min_size=1, max_size=5))
    if draw(st.booleans()):
        rows = changed(rows, draw(changes(2)))
    end = draw(st.sampled_from(["\n"] * 6 + ["\r\n", "\r", "\n\n"]))
    escaped = draw(st.booleans())
    found = rows if isinstance(rows, list) else [rows]
    data = end.join(json.dumps(row, ensure_ascii=escaped) for row in found).encode("utf-8", "surrogatepass")
    damage: list[Edit] = draw(edits(2))
    return edited(data, damage), draw(st.sampled_from([0, 0, 1, 5])), draw(st.sampled_from([None, None, 1]))


@contextmanager
def fuzzer(place: Path) -> Iterator[Fuzzer[Any]]:
    """Each read as a task: what is accepted can be asked as it stands."""
    path = place / "questions.jsonl"

    def check(example: tuple[bytes, int, int | None]) -> None:
        data, shots, most = example
        path.write_bytes(data)
        name = f"{path}@{shots}" if shots else str(path)
        items = tasks.read(name, config.Evaluate(tasks=[name], task_items=most), 0)
        if not items or (most and len(items) > most):
            raise Fault("no items, or more than asked for", str(len(items)))
        for item in items:
            askable(item)
        tasks.seen(items, ["the red house is in Paris " * 3])

    yield Fuzzer("questions", inputs(), check)


def askable(item: tasks.Item) -> None:
    """Raise a Fault unless a model can be asked the item and could be wrong about it."""
    strings = (*item.contexts, *item.continuations, *item.answers, item.id, item.group, *item.bare)
    if not all(isinstance(s, str) for s in strings):
        raise Fault("something else than text", str(item))
    "".join(strings).encode()  # a lone surrogate is no text
    options = len(item.contexts) if item.kind == "context" else len(item.continuations)
    if item.kind == "open":
        if not item.answers or not all(a.strip() for a in item.answers):
            raise Fault("an empty answer", str(item))
    elif not 0 <= item.gold < options or not all(c.strip() for c in item.continuations):
        raise Fault("an empty choice, or no right one", str(item))
    if item.kind in ("choice", "context", "pair") and options < 2:
        raise Fault("nothing to choose", str(item))
