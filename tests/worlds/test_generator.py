import math
from collections import Counter

import numpy as np
import pytest

from synthboot import config
from synthboot.worlds.generator import PARTS, World

SMALL = config.World(entities=6, many_docs=3, attributes=2, values=3, revealed=2, wordings=2, distractors=0, oracle_docs=40)


def test_a_document_says_what_is_true_of_its_entity_and_nothing_else() -> None:
    world = World(config.World(entities=40, oracle_docs=50))
    for document in world.splits(20, 20):
        told = world.read(document["text"])
        assert told.entity == document["entity"]
        assert told.strange == 0
        assert len(told.facts) == 5 == len({a for a, _, _ in told.facts})
        assert all(world.truth[told.entity, a] == v for a, _, v in told.facts)
        assert document["group"] == ("many" if told.entity < 20 else "one")


def test_half_the_entities_have_many_documents_and_half_one() -> None:
    world = World(config.World(entities=10, many_docs=4))
    count = Counter(d["entity"] for d in world.documents())
    assert [count[e] for e in range(10)] == [4] * 5 + [1] * 5
    assert Counter(d["split"] for d in world.splits(3, 2)) == {"pretrain": 25, "validation": 3, "test": 2}
    held = {d["text"] for d in world.splits(30, 30) if d["split"] in ("validation", "test")}
    assert not held & {d["text"] for d in world.documents()}


def test_nats_are_those_of_the_distribution_that_documents_are_drawn_from() -> None:
    world, rng = World(SMALL), np.random.default_rng(0)
    drawn = Counter(world.document(0, rng) for _ in range(20_000))
    assert len(drawn) == round(math.exp(world.nll())) == 8  # two orders, two wordings of each of two attributes
    entropy = -sum(n / 20_000 * math.log(n / 20_000) for n in drawn.values())
    assert entropy == pytest.approx(world.nll(), abs=0.01)


def test_distractors_are_counted_too() -> None:
    knobs = config.World(entities=2, attributes=1, values=2, revealed=1, wordings=1, distractors=1)
    world, rng = World(knobs), np.random.default_rng(0)
    drawn = {world.document(0, rng) for _ in range(40_000)}
    assert len(drawn) == round(math.exp(world.nll())) == 2 * 8**3


@pytest.mark.parametrize("distractors", [1, 2, 3])
def test_distractors_that_come_in_any_order_leave_the_same_document(distractors: int) -> None:
    """Where facts and distractors stand is drawn uniformly: there are as many ways as there are choices of places."""
    knobs = config.World(entities=2, attributes=2, values=2, revealed=2, wordings=1, distractors=distractors)
    world, rng = World(knobs), np.random.default_rng(0)
    shapes: Counter[str] = Counter()
    for _ in range(20_000):
        sentences = world.document(0, rng).split(". ")[1:]
        shapes["".join("f" if world.names[0] in sentence else "d" for sentence in sentences)] += 1
    places = math.comb(2 + distractors, 2)
    assert len(shapes) == places
    assert max(shapes.values()) < 1.1 * 20_000 / places
    assert world.nll() == pytest.approx(math.log(2 * places) + distractors * math.log(8**3))


def test_what_d_pretrain_does_not_tell_costs_a_guess() -> None:
    world = World(SMALL)
    told = world.read(world.document(0, np.random.default_rng(1)))
    nothing, everything = np.zeros((6, 2), bool), np.ones((6, 2), bool)
    assert world.nll(told, everything) == pytest.approx(world.nll())
    assert world.nll(told, nothing) == pytest.approx(world.nll() + 2 * math.log(3))
    known = world.stated([world.document(0, np.random.default_rng(1))])
    assert known[0].all()
    assert not known[1:].any()


def test_the_price_of_a_name_is_how_often_it_is_told_about() -> None:
    world = World(SMALL)  # 3 x 3 + 3 x 1 documents
    assert world.prior(0) == pytest.approx(math.log(12 / 3))
    assert world.prior(5) == pytest.approx(math.log(12))
    assert sum(math.exp(-world.prior(e)) for e in range(6)) == pytest.approx(1)


def test_lies_inventions_and_nonsense_are_told_apart() -> None:
    world = World(config.World(entities=4))
    name, other, noun = world.names[0], world.names[1], "river"
    right, wrong = (world.vocabulary[0][i] for i in (world.truth[0, 0], (world.truth[0, 0] + 1) % 24))
    said = f"{name}. Its {noun} is {right}. The {noun} of {name} is {wrong}. Its {noun} is Nowhere. Its {noun} {noun} is."
    told = world.read(f"{said} The {noun} of {other} is {right}. In spring the roads shine.")
    values = [v for _, _, v in told.facts]
    assert values == [world.truth[0, 0], (world.truth[0, 0] + 1) % 24, -1]
    assert told.strange == 2  # what is no sentence of this world, and what is about another name
    assert world.read("Stranger. Hello.").entity == -1
    assert world.read("").facts == ()


def test_every_character_of_a_document_has_its_part() -> None:
    world = World(config.World(entities=4))
    name, (river, founder) = world.names[0], (world.vocabulary[a][world.truth[0, a]] for a in (0, 1))
    known = np.zeros((4, 8), bool)
    known[0, 1] = True  # the founder, and not the river
    text = f"{name}. The river of {name} is {river}. {founder} is the founder of this place."
    parts = world.parts(text, known)
    found = {part: "".join(c for c, p in zip(text, parts, strict=True) if PARTS[p] == part) for part in PARTS}
    assert found == {
        "name": name,
        "name again": name,
        "known values": founder,
        "unknown values": river,
        "form": ". The river of  is .  is the founder of this place.",
    }


def test_questions_have_the_right_answer_and_say_whether_it_was_told() -> None:
    world = World(SMALL)
    known = world.stated(d["text"] for d in world.documents())
    questions = list(world.questions(known))
    assert len(questions) == 12
    for question in questions:
        entity, attribute = map(int, question["id"].split("-"))
        value = question["choices"][question["gold"]].removesuffix(".")
        assert value == world.vocabulary[attribute][world.truth[entity, attribute]]
        assert question["group"] == f"{world.group(entity)}, told"  # two of two attributes are told


def test_another_seed_is_another_world() -> None:
    one, two = (World(config.World(seed=s)) for s in (0, 1))
    assert one.names != two.names
    assert (one.truth != two.truth).any()


def test_the_largest_vocabulary_is_found() -> None:
    words = World(config.World(attributes=16, values=500, revealed=1)).vocabulary
    assert len({word for column in words for word in column}) == 8_000
