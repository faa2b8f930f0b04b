"""Which topics a corpus has, and which of them other texts have more or less of.

1. `topics`: the centres of clusters of its documents' vectors, by spherical k-means,
2. `assigned`: every vector to its nearest centre,
3. `named`: a topic by the words that its documents have more often than all have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from synthboot.artifacts.analysis import Topics
from synthboot.data.words import words
from synthboot.neighbors import join

_LABEL_WORDS = 4
_NAMED_BY = 20_000
"""Documents whose words name the topics."""


def topics(
    vectors: Float[np.ndarray, "doc dim"],
    count: int,
    seed: int,
    device: str = "cpu",
) -> Float32[np.ndarray, "topic dim"]:
    """The unit centres of at most `count` topics of these unit vectors; of few documents fewer,
    one for every eight."""
    wanted = max(1, min(count, len(vectors) // 8))
    return join.fit_centroids(np.asarray(vectors, np.float16), wanted, seed, device, iterations=10)


def assigned(
    vectors: Float[np.ndarray, "doc dim"],
    centres: Float32[np.ndarray, "topic dim"],
) -> Int64[np.ndarray, " doc"]:
    """The topic of each vector, by number."""
    if not len(vectors):
        return np.empty(0, np.int64)
    nearest: np.ndarray = (np.asarray(vectors, np.float32) @ centres.T).argmax(1)
    return nearest


def named(
    texts: Iterable[str],
    topic: Int64[np.ndarray, " doc"],
    count: int,
) -> list[str]:
    """A name for each of `count` topics: its number and up to four words, those whose share among
    its documents is most above their share among all."""
    in_topic: list[Counter[str]] = [Counter() for _ in range(count)]
    in_all: Counter[str] = Counter()
    docs: Counter[int] = Counter()
    for text, number in zip(texts, topic[:_NAMED_BY].tolist(), strict=False):
        different = set(words(text))
        in_topic[number].update(different)
        in_all.update(different)
        docs[number] += 1

    names = []
    for number, counts in enumerate(in_topic):
        above = {}
        for word, times in counts.items():
            above[word] = times / docs[number] - in_all[word] / docs.total()
        # of equals the first in the alphabet, since a set has no order
        best = sorted(above, key=lambda word: (-above[word], word))[:_LABEL_WORDS]
        names.append(f"{number + 1}: {', '.join(best)}" if best else str(number + 1))
    return names


def compared(
    by_kind: dict[str, Int64[np.ndarray, " doc"]],
    names: Sequence[str],
) -> Topics:
    """What kinds of text are about, beside D_pretrain, which must be among them; a kind without
    documents is left out."""
    shares: dict[str, Float64[np.ndarray, " topic"]] = {}
    for kind, topic in by_kind.items():
        if len(topic):
            shares[kind] = np.bincount(topic, minlength=len(names)) / len(topic)

    real = shares["D_pretrain"]
    others = {kind: share for kind, share in shares.items() if kind != "D_pretrain"}
    distance = {}
    gained = {}
    lost = {}
    for kind, share in others.items():
        distance[kind] = float(np.abs(share - real).sum() / 2)
        gained[kind] = tuple(np.flatnonzero(share > 2 * real).tolist())
        lost[kind] = tuple(np.flatnonzero(share < real / 2).tolist())
    return Topics(
        names=tuple(names),
        shares={kind: tuple(share.tolist()) for kind, share in shares.items()},
        docs={kind: len(by_kind[kind]) for kind in shares},
        distance=distance,
        gained=gained,
        lost=lost,
    )
