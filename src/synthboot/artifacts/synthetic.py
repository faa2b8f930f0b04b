"""Reading S_pretrain: what the synthesizer wrote, text and tokens side by side.

A chunk holds `synthetic.parquet`, a row for every request, and `tokens.bin`, a document for every
row that was kept, in the same order and closed by the end token. Whoever needs the tokens of a
sample takes them from here: a sample need not encode to itself, since a model may spell a word in
tokens that the tokenizer would not choose.

An external synthesizer has a tokenizer of its own: what it sampled is the column `sampled`, `text`
is that as text, and `tokens.bin` has the text in the tokens of the arms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from synthboot.artifacts.store import Shards, read_table
from synthboot.data.tokens import Tokens
from synthboot.errors import CorruptArtifact

FILE = "synthetic.parquet"
CHUNKS = "chunks"
KEPT = "kept"
SAMPLED = "sampled"
"""The role of the samples that a filter chooses among."""


class ThrownAway(NamedTuple):
    """What a filter has thrown away for one reason; in JSON a list of the two."""

    docs: int
    tokens: int


@dataclass(frozen=True)
class Sample:
    """One kept document, sampled from `d1` for the `sample`-th time.

    `tokens` lack the end token; `finish` is why it ended (`end` or `length`); `mean_logprob` is of
    all that was sampled, `sampled` tokens and the end. Only of an external synthesizer is their
    number another than that of `tokens`.
    """

    d1: int
    sample: int
    text: str
    tokens: Int64[np.ndarray, " token"]
    finish: str
    mean_logprob: float
    sampled: int


@dataclass(frozen=True)
class Synthetic:
    """The kept documents of an S_pretrain, in the order in which they were asked for.

    `tokens` are closed by end tokens.
    """

    chunks: tuple[Path, ...]
    tokens: Tokens

    @staticmethod
    def open(folder: Path) -> Synthetic:
        """The documents of a `synthesize` artifact.

        Raises CorruptArtifact where a file does not fit its index.
        """
        chunks = tuple(Shards(folder / CHUNKS))
        return Synthetic(chunks, Tokens.open(chunks))

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[Sample]:
        """Every document, read chunk by chunk.

        Raises CorruptArtifact where a chunk has not as many tokens as texts.
        """
        for chunk in range(len(self.chunks)):
            yield from self.of_chunk(chunk)

    def __getitem__(self, number: int) -> Sample:
        """One document, counted from 0; its chunk is read for it. Raises as iterating does."""
        number = range(len(self))[number]
        # of chunks without documents, which begin where the next does, the last is the one
        chunk = int(np.searchsorted(self.tokens.first_docs, number, side="right")) - 1
        return self.of_chunk(chunk)[number - self._bounds()[chunk]]

    def of_chunk(self, chunk: int) -> list[Sample]:
        """The documents of a chunk. Raises as iterating does."""
        columns = ("d1", "sample", "text", "finish", "mean_logprob", "tokens")
        folder = self.chunks[chunk]
        first, last = self._bounds()[chunk : chunk + 2]
        rows = _kept(folder, columns)
        if len(rows) != last - first:
            raise CorruptArtifact(
                f"{folder}: {len(rows):,} texts were kept, but tokens of {last - first:,} "
                f"lie there; delete {folder} and run again"
            )
        samples = []
        for number, row in enumerate(rows, first):
            # the end token closes a document for training; it is not part of the text
            tokens = np.asarray(self.tokens[number][:-1], np.int64)
            samples.append(Sample(tokens=tokens, sampled=row.pop("tokens"), **row))
        return samples

    def texts(self) -> Iterator[str]:
        """The text of every document."""
        for chunk in self.chunks:
            for row in _kept(chunk, ("text",)):
                yield row["text"]

    def d1(self) -> Int64[np.ndarray, " doc"]:
        """The d1 of every document."""
        numbers = [np.empty(0, np.int64)]
        for chunk in self.chunks:
            table = read_table(chunk / FILE, columns=["d1", "verdict"])
            kept = table["verdict"].to_numpy(zero_copy_only=False) == KEPT
            numbers.append(table["d1"].to_numpy()[kept])
        return np.concatenate(numbers)

    def _bounds(self) -> list[int]:
        """The first document of each chunk, and the number of all."""
        return [*self.tokens.first_docs.tolist(), len(self)]


def _kept(
    chunk: Path,
    columns: Sequence[str],
) -> list[dict[str, Any]]:
    """These columns of the rows that were kept."""
    table = read_table(chunk / FILE, columns=[*columns, "verdict"])
    rows = []
    for row in table.to_pylist():
        if row.pop("verdict") == KEPT:
            rows.append(row)
    return rows
