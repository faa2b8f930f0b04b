"""Contradictions by number and date, on sentences that were labelled by hand.

`contradictions.jsonl` has them: `first` and `second`, whether the second `contradicts` the first, and the `source`.
Those from arXiv are sentences of abstracts (CC0) beside a changed one, or like one; the others were written for this file.
All labels are one labeller's. Rules were changed after a look at all but those `written after the rules` and those
from `arXiv, after the rules`.
"""

import json
import time
from pathlib import Path

import pytest

from synthboot.judges.contradictions import contradictions, subject
from tests.limits import limit

SENTENCES = [json.loads(line) for line in (Path(__file__).parent / "contradictions.jsonl").read_text("utf-8").splitlines()]
LATER = [row for row in SENTENCES if row["source"] == "written after the rules"]
ABSTRACTS = [row for row in SENTENCES if row["source"] == "arXiv, after the rules"]


def counted(rows: list[dict[str, object]]) -> tuple[int, int, int]:
    """How many contradictions were found, how many that are none, how many were missed."""
    found = [bool(contradictions(str(row["second"]), str(row["first"]))) for row in rows]
    truth = [row["contradicts"] for row in rows]
    pairs = list(zip(found, truth, strict=True))
    return pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True))


def test_what_it_finds_is_nearly_always_one() -> None:
    assert len(SENTENCES) == 120
    assert counted(SENTENCES) == (37, 3, 12)  # as docs/quality.md has it


def test_so_it_is_of_sentences_that_the_rules_were_not_made_on() -> None:
    assert len(LATER) == 20
    assert counted(LATER) == (8, 0, 1)


def test_of_abstracts_it_finds_few_and_takes_nothing_for_one() -> None:
    """What says only `we`, or names its numbers by another word, is not compared: the rules would have to guess."""
    assert len(ABSTRACTS) == 29
    assert counted(ABSTRACTS) == (4, 0, 10)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("", ""),
        ("No number stands here at all.", "Nor does one here."),
        ("Kolvik lies 12 km from the sea.", ""),
        ("9" * 400, "9," * 400),
        ("2,310 2,310 2,310", "1999-2003, the 1960s, v1.2.3, 10/12, A4"),
    ],
)
def test_nothing_contradicts_nothing(text: str, other: str) -> None:
    assert contradictions(text, other) == []
    assert contradictions(other, text) == []


def test_a_text_does_not_contradict_itself_and_each_sentence_counts_once() -> None:
    text = "Kolvik is a village. The village has 1,204 people in 300 houses. The village lies 12 km north of the border."
    assert contradictions(text, text) == []
    changed = text.replace("1,204", "1,402").replace("12 km", "21 km")
    assert [c.kind for c in contradictions(changed, text)] == ["people", "km"]
    assert [c.kind for c in contradictions(changed, f"{text} {text}")] == ["people", "km"]


def test_a_sentence_that_one_reference_confirms_is_no_contradiction() -> None:
    text = "The Orsel Bridge is 312 metres long."
    other = "The Orsel Bridge is 321 metres long. The Orsel Bridge is 312 metres long."
    assert contradictions(text, other) == []


def test_what_a_text_is_about() -> None:
    assert subject("The River of Orsel is long.") == subject("River of Orsel, a stream") == {"river", "orsel"}
    assert subject("we propose a method") == set()


@pytest.mark.parametrize("piece", ["1", "1,", "1.", "1 ", "Jan 1, ", "a-", "1,111", "May ", "A. "])
def test_hostile_text_takes_no_time(piece: str) -> None:
    begun = time.process_time()
    contradictions(piece * 20_000, "The Orsel Bridge is 312 metres long.")
    assert time.process_time() - begun < limit(5)
