"""What a known world lets one measure: how far losses are from the least there is, and whether
sampled text tells the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synthboot.artifacts.analysis import Excess, FactShares, WorldMeasures
from synthboot.artifacts.corpus import PRETRAIN
from synthboot.artifacts.evaluation import LossBounds
from synthboot.artifacts.model import Tuning
from synthboot.artifacts.synthetic import Sample
from synthboot.data import documents, tasks
from synthboot.data.documents import Document
from synthboot.rng import rng
from synthboot.steps.context import Context, conditional
from synthboot.worlds.generator import Reading, World

Facts = set[tuple[int, int, int]]
"""(entity, attribute, wording)."""

Orders = set[tuple[int, tuple[int, ...]]]
"""(entity, its attributes in the order in which a document tells them)."""


def is_world(c: Context) -> bool:
    """Whether the corpus is a generated world."""
    return c.cfg.corpus.source == documents.WORLD


def bounds(
    c: Context,
    test_set: Sequence[Document],
    tokens: np.ndarray,
    groups: Sequence[str],
) -> dict[str, LossBounds]:
    """By group and for `all`: the least loss there is on the test set."""
    world, stated = _world(c)
    knows_world = []
    read_corpus = []
    for document in test_set:
        reading = world.read(document.text)
        prior = world.prior(reading.entity)
        knows_world.append(prior + world.nll())
        read_corpus.append(prior + world.nll(reading, stated))

    group_of = np.array(groups or [""] * len(test_set))
    chosen = {"all": np.ones(len(test_set), bool)}
    for group in sorted(set(groups)):
        chosen[group] = group_of == group

    result = {}
    for group, docs in chosen.items():
        size = tokens[docs].sum()
        result[group] = LossBounds(
            knows_world=float(np.array(knows_world)[docs].sum() / size),
            read_corpus=float(np.array(read_corpus)[docs].sum() / size),
        )
    return result


def parts(c: Context) -> Callable[[str], np.ndarray]:
    """From a document's text to which of PARTS each of its characters belongs to."""
    world, stated = _world(c)
    return lambda text: world.parts(text, stated)


def questions(c: Context) -> list[tasks.Item]:
    """Closed-book questions about the world's facts, at most `evaluate.task_items`, drawn at
    random."""
    world, stated = _world(c)
    items = tasks.of(list(world.questions(stated)), tasks.WORLD)
    order = rng(c.cfg.seed, "tasks.world_items").permutation(len(items))
    chosen = np.sort(order[: c.cfg.evaluate.task_items])
    return [items[i] for i in chosen]


def measured(
    c: Context,
    samples: Mapping[str, Sequence[Sample]],
) -> WorldMeasures:
    """How far each synthesizer is from the least loss there is, and what its text says."""
    world, stated = _world(c)
    corpus = [world.read(text) for text in _texts(c, PRETRAIN)]
    validation = [world.read(text) for text in _texts(c, "validation")]

    excess = {}
    for role in c.parents:
        if role.startswith("tune/"):
            tuned = c.model(role).tuning
            excess[role.removeprefix("tune/")] = _excess(
                world,
                stated,
                tuned,
                corpus,
                validation,
            )

    seen: Facts = set()
    orders: Orders = set()
    for reading in corpus:
        orders.add(_order(reading))
        for attribute, wording, _ in reading.facts:
            seen.add((reading.entity, attribute, wording))

    facts: dict[str, dict[str, FactShares]] = {}
    for kind, rows in samples.items():
        by_group: dict[str, list[_Written]] = {"many": [], "one": []}
        for row in rows:
            d1 = corpus[row.d1] if conditional(kind) else None
            d2 = world.read(row.text)
            # grouped by what was asked for; without d1, by what was written
            entity = d2.entity if d1 is None else d1.entity
            if entity >= 0:
                by_group[world.group(entity)].append(_Written(d1, d2))
        facts[kind] = {}
        for group, written in by_group.items():
            facts[kind][group] = _facts(world, written, seen, orders)
    return WorldMeasures(excess, facts)


def _excess(
    world: World,
    stated: np.ndarray,
    tuned: Tuning,
    corpus: Sequence[Reading],
    validation: Sequence[Reading],
) -> Excess:
    """How far a synthesizer is from the least loss there is, while it is tuned."""
    pairs = tuned.stopped_by
    same_entity = []
    read_corpus = []
    tokens = 0
    for d1, d2, size in pairs:
        same_entity.append(corpus[d1].entity == validation[d2].entity)
        read_corpus.append(world.nll(validation[d2], stated))
        tokens += size

    # the curve is in nats per token, what the world says in nats per document
    tokens_per_doc = tokens / len(pairs)
    knows_world = world.nll()
    knows_corpus = float(np.mean(read_corpus))

    points = []
    for step_tokens, loss in tuned.curve.validation:
        nll = loss * tokens_per_doc
        points.append((int(step_tokens), nll - knows_world, nll - knows_corpus))
    return Excess(tuple(points), same_entity=float(np.mean(same_entity)))


@dataclass(frozen=True)
class _Written:
    """What a sampled document tells, and its d1 where it was sampled from one."""

    d1: Reading | None
    d2: Reading

    @property
    def same_entity(self) -> bool:
        """Whether both are about the same entity."""
        return self.d1 is not None and self.d1.entity == self.d2.entity


def _facts(
    world: World,
    written: Sequence[_Written],
    seen: Facts,
    orders: Orders,
) -> FactShares:
    """Whether these documents tell the truth."""
    count: Counter[str] = Counter()
    for document in written:
        d2 = document.d2
        count["docs"] += 1
        count["strange"] += d2.strange > 0
        if d2.entity < 0:
            continue

        count["named"] += 1
        count["same_entity"] += document.same_entity
        count["new_order"] += _order(d2) not in orders
        for attribute, wording, value in d2.facts:
            count["facts"] += 1
            count[_kind(world, document, attribute, value)] += 1
            count["new_wording"] += (d2.entity, attribute, wording) not in seen

    def share(name: str, of: str) -> float | None:
        return count[name] / count[of] if count[of] else None

    return FactShares(
        docs=float(count["docs"]),
        named=share("named", "docs"),
        same_entity=share("same_entity", "docs"),
        strange=share("strange", "docs"),
        new_order=share("new_order", "named"),
        kept=share("kept", "facts"),
        known=share("known", "facts"),
        contradicted=share("contradicted", "facts"),
        invented=share("invented", "facts"),
        new_wording=share("new_wording", "facts"),
    )


def _kind(
    world: World,
    document: _Written,
    attribute: int,
    value: int,
) -> str:
    """`invented` where no such value exists, `contradicted` where the entity has another, `kept`
    where its d1 says the same, else `known`."""
    if value < 0:
        return "invented"
    if world.truth[document.d2.entity, attribute] != value:
        return "contradicted"
    if document.d1 is not None and document.same_entity:
        for d1_attribute, _, d1_value in document.d1.facts:
            if (d1_attribute, d1_value) == (attribute, value):
                return "kept"
    return "known"


def _order(reading: Reading) -> tuple[int, tuple[int, ...]]:
    """The entity of a document and its attributes in the order in which they are told."""
    return reading.entity, tuple(attribute for attribute, _, _ in reading.facts)


def _world(c: Context) -> tuple[World, np.ndarray]:
    """The world, and which of its facts D_pretrain tells."""
    world = World(c.cfg.corpus.world)
    return world, world.stated(_texts(c, PRETRAIN))


def _texts(c: Context, name: str) -> list[str]:
    """The texts of a set."""
    return [document.text for document in c.corpus.texts(name)]
