"""A line of a question file: read as it is meant, or refused with the reason."""

from typing import Any

import pytest

from synthboot.data.items import Item, NoItem, Support, chance, item, titles


def choice(**changes: Any) -> dict[str, Any]:
    return {"query": "Pick", "choices": ["river", "stone"], "gold": 1, **changes}


def read(row: dict[str, Any]) -> Item:
    return item(row, "0")


HF = {"text": ["river", "stone"], "label": ["A", "B"]}
NUMBERED = {"text": ["river", "stone"], "label": ["1", "2"]}


@pytest.mark.parametrize(
    ("changes", "gold"),
    [
        ({}, 1),
        ({"gold": 1.0}, 1),
        ({"gold": "1"}, 1),
        ({"gold": " 1 "}, 1),
        ({"gold": "B"}, 1),
        ({"gold": "b"}, 1),
        ({"gold": "stone"}, 1),
        ({"choices": HF}, 1),
        ({"choices": HF, "gold": "A"}, 0),
        ({"choices": HF, "gold": "1"}, 1),
        ({"choices": NUMBERED, "gold": "2"}, 1),
        ({"choices": [3, 4], "gold": 0}, 0),
        ({"choices": ["7", "8"], "gold": "8"}, 1),
        ({"choices": ["A", "B"], "gold": "A"}, 0),
    ],
)
def test_gold_is_the_only_choice_it_can_mean(changes: dict[str, Any], gold: int) -> None:
    assert read(choice(**changes)).gold == gold


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *[({"gold": gold}, '"gold" is ') for gold in (True, None, 2, -1, 1.5, float("nan"), "", "C", "2", "tree", [1], {})],
        ({"choices": NUMBERED, "gold": "1"}, "\"gold\" is '1', which may mean any of the choices 0, 1"),
        ({"choices": NUMBERED, "gold": 1}, "may mean any of the choices 0, 1"),
        ({"choices": ["1", "2"], "gold": "1"}, "may mean any"),
        ({"choices": ["B", "A"], "gold": "A"}, "may mean any"),
        ({"choices": ["x", "x"], "gold": "x"}, "may mean any"),
        ({"choices": HF, "gold": "river"}, '"gold" is'),
        ({"choices": {"text": ["a", "b"]}}, "as many labels it has not"),
        ({"choices": {"label": ["A"]}}, '"choices" is an object'),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "as many labels"),
        ({"choices": {"a": "b", "c": "d"}}, "is an object"),
        ({"choices": "AB"}, "\"choices\" is 'AB'; it takes a list"),
        ({"choices": None}, '"choices" is null; it takes'),
        ({"choices": []}, "has 0 to choose from"),
        ({"choices": ["a"], "gold": 0}, "has 1 to choose from"),
        ({"choices": ["a", ""]}, '"choices" 2 is empty'),
        ({"choices": [" \u3000", "a"]}, '"choices" 1 is empty'),
        ({"choices": ["a", None]}, '"choices" 2 is null, not text'),
        ({"choices": ["a", True]}, '"choices" 2 is true, not text'),
        ({"choices": ["a", 1.5]}, '"choices" 2 is 1.5, not text'),
        ({"choices": ["a", ["b"]]}, '"choices" 2 is ["b"], not text'),
        ({"query": None}, '"query" is null, not text'),
        ({"query": " "}, '"query" is empty'),
        ({"query": True}, '"query" is true'),
        ({"query": "\ud800"}, '"query" holds lone surrogates'),
        ({"query": {"a": 1}}, '"query" is an object, not text'),
    ],
)
def test_what_could_mean_several_things_or_nothing_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoItem) as caught:
        read(choice(**changes))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("answers", "read_as"),
    [
        ("Paris", ("Paris",)),
        (["Paris", "paris"], ("Paris", "paris")),
        (1945, ("1945",)),
        ([1945], ("1945",)),
        ({"text": ["Paris"], "answer_start": [3]}, ("Paris",)),
        (["?", "Paris"], ("Paris",)),
        (["東京"], ("東京",)),
    ],
)
def test_one_answer_is_one_answer(answers: Any, read_as: tuple[str, ...]) -> None:
    assert read({"query": "Where?", "answers": answers}).answers == read_as


@pytest.mark.parametrize("answers", [[], "", None, [None], True, [True], [""], ["?!", "."], {}, {"text": []}, 1.5, [["a"]]])
def test_an_answer_that_is_none_is_refused(answers: Any) -> None:
    with pytest.raises(NoItem, match='"answers"'):
        read({"query": "Where?", "answers": answers})


@pytest.mark.parametrize("bad", [None, "", " \n", True, 1.5, [], {}, ["a"], "\udc80"])
@pytest.mark.parametrize(
    "row",
    [
        {"good": "a", "bad": "b"},
        {"context": "a", "target": "b"},
        {"query": "a", "answers": ["b"]},
        {"context_options": ["a", "c"], "continuation": "b", "gold": 0},
    ],
)
def test_every_field_has_to_hold_text(row: dict[str, Any], bad: Any) -> None:
    for field in row:
        if field != "gold" and not (field in ("answers",) and bad == ["a"]):
            with pytest.raises(NoItem, match=f'"{field}"'):
                read({**row, field: bad})


def test_one_space_stands_before_a_continuation() -> None:
    for context, target in [("the river", "stone"), ("the river ", "stone"), ("the river", " stone")]:
        found = read({"context": context, "target": target})
        assert found.contexts[0] + found.continuations[0] == "".join(found.bare) == "the river stone"
    two = read({"context_options": ["a ", "b"], "continuation": "c", "gold": 1})
    assert [x + y for x, y in zip(two.contexts, two.continuations, strict=True)] == ["a c", "b c"]


def test_braces_and_odd_line_ends_are_text() -> None:
    found = item(choice(query="f(x) = {x} {0} {query}\u2028\x85{"), "0", "Question: {query}\nAnswer:")
    assert found.contexts == ("Question: f(x) = {x} {0} {query}\u2028\x85{\nAnswer:",)


def test_choices_beyond_the_letters_are_refused() -> None:
    many = choice(choices=[f"c{i}" for i in range(27)])
    assert len(item({**many, "choices": many["choices"][:26]}, "0", letters=True).continuations) == 26
    with pytest.raises(NoItem, match="27 choices, and there are 26 letters"):
        item(many, "0", letters=True)


def test_ids_and_groups_that_are_null_are_none() -> None:
    assert (read(choice(id=None, group=None)).id, read(choice(group=None)).group, read(choice(id=7)).id) == ("0", "", "7")


def test_files_are_called_by_their_stems_where_these_differ() -> None:
    given = ["arc_easy@5", "/a/long/path/facts.jsonl.zst", "lm-eval:piqa", "x/v1.2.jsonl", "y/v1.2.jsonl", ".jsonl"]
    assert titles(given) == ["arc_easy@5", "facts", "lm-eval:piqa", "x/v1.2.jsonl", "y/v1.2.jsonl", ".jsonl"]


def test_chance_is_one_of_the_choices_and_none_where_something_is_written() -> None:
    of_three = read(choice(choices=["river", "stone", "tree"]))
    pair = read({"good": "a b", "bad": "b a"})
    contexts = read({"context_options": ["A", "B", "C", "D"], "continuation": "c", "gold": 0})
    assert chance([of_three]) == pytest.approx(1 / 3)
    assert chance([pair, contexts]) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert chance([pair, read({"context": "a", "target": "b"})]) is None
    assert chance([]) is None


@pytest.mark.parametrize(
    ("support", "expected"),
    [
        ({"corpus": "wiki", "id": "w7", "title": "Dam"}, (Support("w7", "Dam"),)),
        ([{"id": "w7"}, {"id": 8, "title": None}], (Support("w7"), Support("8"))),
        ("SciQ has a passage there", ()),
        (["w7", {"title": "Dam"}, {"id": None}, None], ()),
        (None, ()),
    ],
)
def test_support_names_documents_or_is_something_else(support: Any, expected: tuple[Support, ...]) -> None:
    with_support = read(choice(support=support))
    assert with_support.support == expected
    assert with_support.digest == read(choice()).digest  # what is asked is the same
