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
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int64, Integer

from synthboot import config
from synthboot.artifacts.judged import Question
from synthboot.artifacts.store import read_table
from synthboot.artifacts.synthetic import FILE, KEPT, ThrownAway
from synthboot.data import near_duplicates, ngrams, tokens
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError

T = TypeVar("T")

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
    known = ngrams.shared_hashes(samples, corpus, n)
    shares = np.ones(len(samples))
    for number, sample in enumerate(samples):
        if len(sample) >= n:
            is_known = ngrams.contains(known, ngrams.hashes(sample, n))
            shares[number] = 1 - np.mean(is_known)
    return shares


def verdicts(
    measures: Measures,
    chosen: config.Filter,
    limits: Mapping[Question, float],
    samples: int,
) -> list[str]:
    """Why each sample is thrown away, or `kept`: outside of a window, or above the limit of a
    question's judge. What could not be measured (not-a-number) is no reason."""
    is_refused: dict[str, Bool[np.ndarray, " sample"]] = {}
    for name, (low, high) in chosen.windows.items():
        is_refused[name] = (measures[name] < low) | (measures[name] > high)
    for question, limit in sorted(limits.items()):
        is_refused[question] = measures[question] > limit

    found = [KEPT] * samples
    for reason, of_sample in is_refused.items():
        for number in np.flatnonzero(of_sample).tolist():
            # the first reason that holds is the one that is given
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
    groups = near_duplicates.groups_of(pairs, samples + documents)
    of_samples = groups[:samples].tolist()
    of_corpus = set(groups[samples:].tolist())

    reasons = {}
    seen: set[int] = set()
    for number, group in enumerate(of_samples):
        if group in of_corpus:
            reasons[number] = IN_CORPUS
        elif group in seen:
            reasons[number] = REPEATED
        seen.add(group)
    return reasons


def thrown_away(
    found: Sequence[str],
    lengths: Int64[np.ndarray, " sample"],
) -> dict[str, ThrownAway]:
    """What is thrown away for each reason; `lengths` are the tokens of each sample."""
    docs: Counter[str] = Counter()
    tokens_of: Counter[str] = Counter()
    for verdict, length in zip(found, lengths.tolist(), strict=True):
        if verdict != KEPT:
            docs[verdict] += 1
            tokens_of[verdict] += length
    return {reason: ThrownAway(docs[reason], tokens_of[reason]) for reason in sorted(docs)}


def check_budget(
    sampled: int,
    needed: int,
    thrown: Mapping[str, ThrownAway],
    variant: str,
) -> None:
    """Raise BudgetError where what is left of `sampled` tokens is less than what is `needed`."""
    left = sampled - sum(away.tokens for away in thrown.values())
    if left >= needed:
        return

    if left:
        # a twentieth more than these samples ask for, as others differ; up to the next tenth
        times = np.ceil(10.5 * sampled / left) / 10
        remedy = f"set its arms' `filter.times` to {times:g}, widen it, or lower their `share`"
    else:
        remedy = "nothing is left: widen the filter"
    reasons = ", ".join(f"{reason} {away.tokens:,}" for reason, away in thrown.items())
    raise BudgetError(
        f"synthesize/{variant}: the filter leaves {left:,} of {sampled:,} tokens, "
        f"{needed:,} are needed, {needed - left:,} are missing (thrown away: {reasons}); {remedy}"
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
    before = table["verdict"].to_pylist()
    # requests that were dropped when they were sampled have a row too, but no sample
    rows = [row for row, verdict in enumerate(before) if verdict == KEPT]

    column = table.schema.get_field_index("verdict")
    after = pa.array(_filled(before, rows, found), pa.string())
    table = table.set_column(column, "verdict", after)
    for name, values in measures.items():
        measured = _filled([None] * len(before), rows, values.tolist())
        table = table.append_column(name, pa.array(measured, pa.float64()))
    pq.write_table(table, out / FILE, compression="zstd")

    left = []
    for ids, verdict in zip(documents, found, strict=True):
        if verdict == KEPT:
            left.append(ids.tolist())
    return {"kept": len(left), "tokens": tokens.write(out, left, vocab_size)}


def _filled(column: Sequence[T], rows: Sequence[int], values: Sequence[T]) -> list[T]:
    """A copy of the column with these values in these rows."""
    filled = list(column)
    for row, value in zip(rows, values, strict=True):
        filled[row] = value
    return filled
