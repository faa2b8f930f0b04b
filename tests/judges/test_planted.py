"""Each planted fault is there, and nothing else has changed."""

import numpy as np
import pytest

from synthboot.data import near_duplicates
from synthboot.judges.planted import NEAR, cases
from synthboot.judges.protocol import LONGEST, Item
from synthboot.judges.rules import Rules

NAMES = ["Arvid", "Berta", "Carlo", "Dunja", "Emil", "Frida", "Gustav", "Hanna"]


def text(number: int) -> str:
    name = NAMES[number % len(NAMES)]
    words = " ".join(f"w{number}x{i}" for i in range(40))
    house = f"The house of {name}{number} was built in {1900 + number}."
    return f"{house} It is the home of {name}{number} and has {20 + number} rooms. {words}."


ITEMS = [Item(text(i), d1=text(i + 50), references=(text(i), text(i + 1))) for i in range(24)]
STRANGERS = [text(i) for i in range(200, 240)]


def planted(question: str, items: list[Item] = ITEMS) -> list[tuple[Item, Item, str]]:
    """(clean, faulty, fault)."""
    found = cases(question, items, STRANGERS, np.random.default_rng(0))  # type: ignore[arg-type]
    assert [bool(case.fault) for case in found] == [False, True] * (len(found) // 2)
    return [(a.item, b.item, b.fault) for a, b in zip(found[::2], found[1::2], strict=True)]


def test_a_loop_is_a_few_words_over_and_over_and_a_splice_a_passage_twice() -> None:
    repeated = planted("repetition")
    assert {fault for *_, fault in repeated} == {"loop", "splice"}
    for clean, faulty, _ in repeated:
        assert faulty.text[:60] == clean.text[:60]
        assert len(faulty.text) <= LONGEST
        words = faulty.text.split()
        assert len(set(words)) < 0.9 * len(words)
        assert set(" ".join(words).split()) <= set(clean.text.split()) | {words[-1]}  # the last may be cut short


def test_a_swapped_fact_is_one_that_a_reference_tells() -> None:
    swapped = planted("nonfactual")
    assert {fault for *_, fault in swapped} == {"number", "name", "negation"}
    for clean, faulty, fault in swapped:
        before, after = clean.text.split(), faulty.text.split()
        if fault == "negation":
            assert after.count("not") == before.count("not") + 1
            continue
        assert len(before) == len(after)
        changed = [(a.strip("."), b.strip(".")) for a, b in zip(before, after, strict=True) if a != b]
        assert changed
        for old, new in changed:
            assert old in " ".join(clean.references)
            assert new not in " ".join(clean.references)
            assert old.isdigit() == new.isdigit() == (fault == "number")


def test_what_no_reference_tells_is_not_swapped() -> None:
    assert planted("nonfactual", [Item(text(i), references=("nothing of the kind",)) for i in range(9)]) == []
    assert planted("nonfactual", [Item(text(i)) for i in range(9)]) == []


def test_a_random_d1_is_another_document() -> None:
    for clean, faulty, _ in planted("irrelevance"):
        assert faulty.text == clean.text
        assert faulty.d1 in STRANGERS
        assert faulty.d1 != clean.d1


def test_a_near_copy_has_the_similarity_that_it_says() -> None:
    copies = planted("copying")
    assert {fault for *_, fault in copies} == {f"jaccard {wanted}" for wanted in NEAR}
    for clean, faulty, fault in copies:
        similarity = near_duplicates.similarity(clean.d1, faulty.text)
        wanted = float(fault.split()[1])
        # one word is in five runs: the last word that was replaced took it below
        assert wanted - 0.16 < similarity <= wanted
        assert faulty.d1 == clean.d1


@pytest.mark.parametrize("question", ["repetition", "copying"])
def test_text_too_short_to_plant_in_is_no_case(question: str) -> None:
    assert planted(question, [Item("two words", d1="two more")] * 4) == []


def test_both_halves_of_the_cases_have_faults_of_every_kind() -> None:
    for question in ("repetition", "nonfactual", "copying"):
        faults = [fault for *_, fault in planted(question)]
        assert set(faults[0::2]) == set(faults[1::2])


def test_text_without_spaces_can_loop_too() -> None:
    solid = "".join(chr(0x4E00 + i) for i in range(200))
    [(clean, faulty, fault)] = planted("repetition", [Item(solid)])
    assert fault == "loop"
    assert len(set(faulty.text)) < len(set(clean.text))


def test_rules_tell_faulty_from_clean() -> None:
    judge = Rules(STRANGERS)
    for question in ("repetition", "irrelevance", "copying"):
        pairs = planted(question)
        if question == "irrelevance":  # real pairs have words in common
            pairs = [(Item(c.text, d1=c.text[:200] + c.d1), f, fault) for c, f, fault in pairs]
        scores: dict[int, float] = {}
        judge.score(question, [item for c, f, _ in pairs for item in (c, f)], 0, scores.__setitem__)  # type: ignore[arg-type]
        clean, faulty = ([scores[i] for i in range(start, len(scores), 2)] for start in (0, 1))
        assert max(clean) < min(faulty), question


def test_rules_count_contradictions_of_references() -> None:
    item = Item(
        "Kolvik has 1,402 people in all the houses.",
        references=("Kolvik has 1,204 people in all the houses.", "Kolvik is old."),
    )
    scores: dict[int, float] = {}
    Rules(STRANGERS).score("nonfactual", [item, Item(item.text)], 0, scores.__setitem__)
    assert scores == {0: 1.0, 1: 0.0}


def test_overlap_of_words_counts_rare_ones_for_more() -> None:
    judge = Rules(["common one", "common two", "common three"])
    items = [
        Item("common one", d1="one common"),
        Item("alpha beta", d1="gamma delta"),
        Item("one alpha", d1="one beta"),
        Item("common alpha", d1="common beta"),
        Item("", d1=""),
    ]
    scores: dict[int, float] = {}
    judge.score("irrelevance", items, 0, scores.__setitem__)
    assert (scores[0], scores[1], scores[4]) == (pytest.approx(-1), 0, 0)
    assert -1 < scores[2] < scores[3] < 0
