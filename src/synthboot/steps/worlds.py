"""What a known world lets one measure: how far losses are from the least there is, and whether sampled text tells the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from synthboot.data import tasks
from synthboot.data.disk import read_json
from synthboot.data.documents import Document
from synthboot.data.worlds import PARTS, Told, World
from synthboot.steps.context import Context, conditional


def bounds(
    c: Context, test_set: Sequence[Document], tokens: np.ndarray, groups: Sequence[str]
) -> dict[str, Any]:
    """By group and for `all`: the least loss there is on the test set in nats per token, for one who knows the world, and for
    one who knows how worlds are made and has read D_pretrain."""
    world, known = _world(c)
    told = [world.read(d.text) for d in test_set]
    least = np.array([world.prior(t.entity) + world.nats() for t in told])
    learnable = np.array([world.prior(t.entity) + world.nats(t, known) for t in told])
    marks = np.array(groups or [""] * len(told))
    parts = {"all": np.ones(len(told), bool)} | {g: marks == g for g in sorted(set(groups))}
    return {
        g: {
            "knows_world": float(least[m].sum() / tokens[m].sum()),
            "read_corpus": float(learnable[m].sum() / tokens[m].sum()),
        }
        for g, m in parts.items()
    }


def parts(c: Context, test_set: Sequence[Document]) -> np.ndarray:
    """(token of the test set): which of `worlds.PARTS` it belongs to; ends are form."""
    from synthboot.data import tokenizer as tokenizers

    world, known = _world(c)
    tokenizer = tokenizers.load(c.parents["corpus"] / "tokenizer")
    found = []
    for document in test_set:
        marks = world.parts(document.text, known)
        found += [int(marks[start]) for start in tokenizer.starts(document.text)] + [
            PARTS.index("form")
        ]
    return np.array(found, np.uint8)


def questions(c: Context) -> list[tasks.Item]:
    """Closed-book questions about the world's facts, at most `evaluate.task_items`, drawn at random."""
    world, known = _world(c)
    items = tasks.of(list(world.questions(known)), tasks.WORLD)
    chosen = np.sort(
        np.random.default_rng([c.cfg.seed, 10]).permutation(len(items))[: c.cfg.evaluate.task_items]
    )
    return [items[i] for i in chosen]


def measured(c: Context, samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """`excess`: by synthesizer, [tokens tuned on, nats per document above one who knows the world, and above one who has read
    D_pretrain] on the pairs that stop tuning. `facts`: by kind of synthetic text and group, what it says."""
    world, known = _world(c)
    corpus = [world.read(text) for text in _texts(c, "pool")]
    validation = [world.read(text) for text in _texts(c, "validation")]
    curves = {}
    for role, folder in c.parents.items():
        if role.startswith("tune/"):
            tuned = read_json(folder / "tune.json")
            pairs = tuned["stopped_by"]
            same = [corpus[d1].entity == validation[d2].entity for d1, d2, _ in pairs]
            size = sum(tokens for *_, tokens in pairs) / len(pairs)
            read = float(np.mean([world.nats(validation[d2], known) for _, d2, _ in pairs]))
            points = [
                [t, loss * size - world.nats(), loss * size - read]
                for t, loss in tuned["curve"]["validation"]
            ]
            curves[role.removeprefix("tune/")] = {
                "points": points,
                "same_entity": float(np.mean(same)),
            }
    seen = {(t.entity, a, w) for t in corpus for a, w, _ in t.facts}
    orders = {(t.entity, tuple(a for a, _, _ in t.facts)) for t in corpus}
    facts: dict[str, Any] = {}
    for role, rows in samples.items():
        kind = role.removeprefix("synthesize/")
        given = [corpus[r["d1"]] if conditional(kind) else None for r in rows]
        said = [world.read(r["text"]) for r in rows]
        for group in ("many", "one"):
            chosen = [
                (d1, d2) for d1, d2 in zip(given, said, strict=True)
                if (e := d1.entity if d1 is not None else d2.entity) >= 0 and world.group(e) == group
            ]  # fmt: skip
            facts.setdefault(kind, {})[group] = _facts(world, chosen, seen, orders)
    return {"excess": curves, "facts": facts}


def _facts(
    world: World, texts: Sequence[tuple[Told | None, Told]], seen: set[tuple[int, int, int]],
    orders: set[tuple[int, tuple[int, ...]]],
) -> dict[str, float | None]:  # fmt: skip
    """Shares, of the documents or of their facts, counted on documents that are about some entity."""
    count: Counter[str] = Counter()
    for d1, d2 in texts:
        count["docs"] += 1
        count["strange"] += d2.strange > 0
        if d2.entity < 0:
            continue
        count["named"] += 1
        count["same_entity"] += d1 is not None and d1.entity == d2.entity
        count["new_order"] += (d2.entity, tuple(a for a, _, _ in d2.facts)) not in orders
        in_d1 = (
            {(a, v) for a, _, v in d1.facts} if d1 is not None and d1.entity == d2.entity else set()
        )
        for attribute, wording, value in d2.facts:
            right = world.truth[d2.entity, attribute] == value
            kind = (
                "invented"
                if value < 0
                else "contradicted"
                if not right
                else "kept"
                if (attribute, value) in in_d1
                else "known"
            )
            count["facts"] += 1
            count[kind] += 1
            count["new_wording"] += (d2.entity, attribute, wording) not in seen

    def share(name: str, of: str) -> float | None:
        return count[name] / count[of] if count[of] else None

    shares = {
        name: share(name, "facts")
        for name in ("kept", "known", "contradicted", "invented", "new_wording")
    }
    docs = {name: share(name, "docs") for name in ("named", "same_entity", "strange")}
    return {
        "docs": float(count["docs"]),
        **docs,
        "new_order": share("new_order", "named"),
        **shares,
    }


def _world(c: Context) -> tuple[World, np.ndarray]:
    world = World(c.cfg.corpus.world)
    return world, world.known(_texts(c, "pool"))


def _texts(c: Context, name: str) -> list[str]:
    """The texts of D_pretrain (`pool`) or of another set."""
    from synthboot.stages.corpus import read_texts

    return [
        d.text
        for d in read_texts(c.parents["corpus"], name, c.pretrain_docs if name == "pool" else None)
    ]
