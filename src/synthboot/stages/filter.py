"""Choose among samples: which of them an arm may read, and why it may not read the others.

A sample is measured (base's loss, similarity to d1, novelty, the scores of judges), and thrown away
under the first reason that holds; near-duplicates are looked for among those that are left. What is
left is an S_pretrain like any other, chunk by chunk the rows of the one that it was chosen from,
each with its verdict and what it was measured at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int64, Integer

from synthboot import config
from synthboot.artifacts.store import read_table
from synthboot.artifacts.synthetic import FILE, KEPT
from synthboot.data import ngrams, tokens
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.judges.protocol import Question

Measures = Mapping[str, Float[np.ndarray, " sample"]]
"""What every sample was measured at, by what is measured; the score of a judge by the question."""

IN_CORPUS = "near-duplicate of the corpus"
REPEATED = "near-duplicate of a sample"


def novelty(
    samples: Sequence[Integer[np.ndarray, " _"]],
    corpus: Tokens,
    n: int,
) -> Float[np.ndarray, " sample"]:
    """The share of each sample's runs of `n` tokens that the corpus does not hold; 1 where it is
    shorter than one run."""
    known = ngrams.held(samples, corpus, n)
    shares = np.ones(len(samples))
    for number, sample in enumerate(samples):
        if len(sample) >= n:
            shares[number] = 1 - np.mean(ngrams.contains(known, ngrams.hashes(sample, n)))
    return shares


def verdicts(
    measures: Measures,
    chosen: config.Filter,
    limits: Mapping[Question, float],
    samples: int,
) -> list[str]:
    """Why each sample is thrown away, or `kept`: outside of a window, or above the limit of a
    question's judge. What could not be measured (not-a-number) is no reason."""
    reasons: dict[str, np.ndarray] = {}
    for name, (low, high) in chosen.windows.items():
        reasons[name] = (measures[name] < low) | (measures[name] > high)
    for question, limit in sorted(limits.items()):
        reasons[question] = measures[question] > limit

    found = [KEPT] * samples
    for reason, holds in reasons.items():
        for number in np.flatnonzero(holds).tolist():
            if found[number] == KEPT:
                found[number] = reason
    return found


def repeated(
    pairs: Int64[np.ndarray, "pair 2"],
    samples: int,
    documents: int,
) -> dict[int, str]:
    """Of `samples`, by number, those that are near-duplicates, and of what.

    `pairs` are near-duplicates among the samples and, numbered after them, as many `documents` of
    the corpus. Whoever a chain of pairs joins is one group: where a document is in it, all of its
    samples are thrown away, else all but the first.
    """
    group = ngrams.groups_of(pairs, samples + documents)
    of_corpus = set(group[samples:].tolist())
    seen: set[int] = set()
    found = {}
    for number, own in enumerate(group[:samples].tolist()):
        if own in of_corpus:
            found[number] = IN_CORPUS
        elif own in seen:
            found[number] = REPEATED
        seen.add(own)
    return found


def thrown_away(
    found: Sequence[str],
    lengths: Int64[np.ndarray, " sample"],
) -> dict[str, tuple[int, int]]:
    """By reason, how many samples are thrown away, and of how many tokens together."""
    docs: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for verdict, length in zip(found, lengths.tolist(), strict=True):
        if verdict != KEPT:
            docs[verdict] += 1
            counted[verdict] += length
    return {reason: (docs[reason], counted[reason]) for reason in sorted(docs)}


def check_budget(
    sampled: int,
    needed: int,
    thrown: Mapping[str, tuple[int, int]],
    variant: str,
) -> None:
    """Raise BudgetError where what is left of `sampled` tokens is less than what is `needed`."""
    left = sampled - sum(count for _, count in thrown.values())
    if left >= needed:
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, (_, count) in thrown.items())
    enough = "nothing is left: widen the filter"
    if left:
        times = np.ceil(10.5 * sampled / left) / 10  # a twentieth more, for other samples
        enough = f"set its arms' `filter.times` to {times:g}, widen it, or lower their `share`"
    raise BudgetError(
        f"synthesize/{variant}: the filter leaves {left:,} of {sampled:,} tokens, "
        f"{needed:,} are needed, {needed - left:,} are missing (thrown away: {reasons}); {enough}"
    )


def write_chunk(
    source: Path,
    found: Sequence[str],
    measures: Measures,
    documents: Sequence[Integer[np.ndarray, " _"]],
    vocab_size: int,
    out: Path,
) -> dict[str, int]:
    """Write to `out` the chunk at `source` with these verdicts on what had been kept there.

    `documents` are its tokens, each closed by the end token. Returns what is left: documents and
    tokens.
    """
    table = read_table(source / FILE)
    column = table["verdict"].to_pylist()
    kept_before = [row for row, verdict in enumerate(column) if verdict == KEPT]
    for row, verdict in zip(kept_before, found, strict=True):
        column[row] = verdict
    place = table.schema.get_field_index("verdict")
    table = table.set_column(place, "verdict", pa.array(column, pa.string()))
    for name, values in measures.items():
        beside: list[float | None] = [None] * len(column)
        for row, value in zip(kept_before, values.tolist(), strict=True):
            beside[row] = value
        table = table.append_column(name, pa.array(beside, pa.float64()))
    pq.write_table(table, out / FILE, compression="zstd")

    left = []
    for ids, verdict in zip(documents, found, strict=True):
        if verdict == KEPT:
            left.append(ids.tolist())
    return {"kept": len(left), "tokens": tokens.write(out, left, vocab_size)}
