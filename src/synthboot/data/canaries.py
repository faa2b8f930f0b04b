"""Canaries: documents of random words that are planted so and so often, and others that are not.

A planted one and a candidate are drawn alike, so that to a model that never read the planted one
each place among the candidates is as likely as any other.

Source: arXiv:1802.08232 (Carlini et al. 2019), sections 3 and 4. Deviation: words of the corpus
in place of digits, since a tokenizer of one's own may never have seen digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from synthboot import config
from synthboot.data.tokens import Tokens
from synthboot.data.words import words
from synthboot.errors import DataError
from synthboot.rng import rng


@dataclass(frozen=True)
class Canary:
    """A text, and how many documents of D_pretrain it is; 0 of a candidate."""

    text: str
    copies: int


def draw(
    texts: Iterable[str],
    cfg: config.Canaries,
) -> list[Canary]:
    """The canaries of each number of copies, then the candidates; no two have the same text.

    Every word is as likely as any other that stands somewhere in `texts`. Raises DataError where
    these have too few words for so many different texts.
    """
    vocabulary: set[str] = set()
    for text in texts:
        vocabulary.update(words(text))
    known = sorted(vocabulary)  # a set has no order

    numbers = [*cfg.copies, 0]
    times = [cfg.count] * len(cfg.copies) + [cfg.candidates]
    copies = np.repeat(numbers, times)
    # with a hundred times as many as are drawn, hardly any is drawn twice
    if len(known) ** cfg.words < 100 * len(copies):
        raise DataError(
            f"corpus.canaries: {len(known):,} words of D_pretrain make too few texts of "
            f"{cfg.words} words for {len(copies):,} canaries; raise canaries.words"
        )

    random = rng(cfg.seed, "corpus.canaries")
    drawn: dict[str, None] = {}
    while len(drawn) < len(copies):
        chosen = random.integers(len(known), size=cfg.words)
        drawn[" ".join(known[i] for i in chosen)] = None
    return [Canary(text, count) for text, count in zip(drawn, copies.tolist(), strict=True)]


def exposure(
    loss: Float[np.ndarray, " canary"],
    candidates: Float[np.ndarray, " candidate"],
) -> Float64[np.ndarray, " canary"]:
    """By how many bits each canary, whose loss this is, is easier to guess than by chance:
    log2(candidates + 1) - log2(its rank among them).

    0 where all candidates cost less, log2(candidates + 1) where none does; ties count against it.
    Of what a model has not read the mean is 1.44 bits at most.
    """
    ordered = np.sort(candidates)
    rank = 1 + np.searchsorted(ordered, loss, side="right")
    result: np.ndarray = np.log2(len(candidates) + 1) - np.log2(rank)
    return result


def planted(canaries: Sequence[Canary]) -> list[Canary]:
    """Those that are planted."""
    return [canary for canary in canaries if canary.copies]


def among(documents: Tokens, canaries: Tokens) -> Bool[np.ndarray, " doc"]:
    """Which documents are one of these canaries, token for token."""
    known = {canaries[number].astype(np.int64).tobytes() for number in range(len(canaries))}
    found = np.zeros(len(documents), bool)
    # of most documents the length says that they are none, and they are not read
    for doc in np.flatnonzero(np.isin(documents.lengths, canaries.lengths)).tolist():
        found[doc] = documents[doc].astype(np.int64).tobytes() in known
    return found
