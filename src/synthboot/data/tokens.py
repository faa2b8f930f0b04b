"""Token shards: flat little-endian uint16 or uint32 with the document boundaries beside them.

A shard folder holds `tokens.bin` and `index.npy` (int64, documents + 1, starting at 0). Both are
memory-mapped, so a corpus costs address space, not memory; only the boundaries (8 bytes a document)
are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Integer

from synthboot.data.disk import load_array, save_array
from synthboot.errors import BudgetError, CorruptArtifact


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest dtype that holds every token of a vocabulary, little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write(
    folder: Path,
    documents: Iterable[Sequence[int]],
    vocab_size: int,
) -> int:
    """Write the documents as one shard and return the number of tokens."""
    dtype = token_dtype(vocab_size)
    bounds = [0]
    with open(folder / "tokens.bin", "wb") as file:
        for document in documents:
            file.write(np.asarray(document, dtype).tobytes())
            bounds.append(bounds[-1] + len(document))
    save_array(folder / "index.npy", np.array(bounds, np.int64))
    return bounds[-1]


@dataclass(frozen=True)
class Tokens:
    """Documents as token arrays, across shards.

    `bounds[i]:bounds[i + 1]` is document i in the run of all tokens.
    """

    shards: tuple[Integer[np.ndarray, " _"], ...]
    first_docs: Int64[np.ndarray, " shard"]
    bounds: Int64[np.ndarray, " doc_and_one"]

    @staticmethod
    def open(folders: Iterable[Path]) -> Tokens:
        """Map the shards in the given order.

        Raises CorruptArtifact where a file does not fit its index.
        """
        shards: list[np.ndarray] = []
        bounds: list[np.ndarray] = [np.zeros(1, np.int64)]
        first_docs = []
        total = 0
        docs = 0
        for folder in folders:
            path = folder / "tokens.bin"
            index = load_array(folder / "index.npy")
            count = int(index[-1])
            size = path.stat().st_size
            if size not in (2 * count, 4 * count):
                raise CorruptArtifact(f"{path}: {size} bytes do not fit {count} tokens")
            dtype = np.dtype("<u2" if size == 2 * count else "<u4")
            if count:
                shards.append(np.memmap(path, dtype, "r"))
            else:  # an empty file cannot be mapped
                shards.append(np.empty(0, dtype))

            bounds.append(index[1:] + total)  # its first is the last of the shard before
            first_docs.append(docs)
            total += count
            docs += len(index) - 1
        return Tokens(
            shards=tuple(shards),
            first_docs=np.array(first_docs, np.int64),
            bounds=np.concatenate(bounds),
        )

    @staticmethod
    def of(documents: Sequence[Sequence[int]]) -> Tokens:
        """Documents in memory, for the Python API and tests."""
        flat = np.array(list(chain.from_iterable(documents)), np.uint32)
        bounds = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        return Tokens((flat,), np.zeros(1, np.int64), bounds)

    def docs_holding(self, tokens: int, what: str) -> int:
        """How many documents from the head hold `tokens`.

        Raises BudgetError, naming the setting `what`, where all of them together hold fewer.
        """
        if self.num_tokens < tokens:
            raise BudgetError(
                f"{what}: {tokens:,} asked for, the pool has {self.num_tokens:,} "
                f"after cleaning and holding out; lower it, or add text"
            )
        return int((self.bounds >= tokens).argmax())

    def head(self, docs: int) -> Tokens:
        """The first `docs` documents: subsets of one pool are nested."""
        return Tokens(self.shards, self.first_docs, self.bounds[: docs + 1])

    def joined(self, others: Tokens) -> Tokens:
        """These documents, then the others'."""
        # A head may end before its last shards begin.
        count = int(np.searchsorted(self.first_docs, len(self)))
        shards = (*self.shards[:count], *others.shards)
        first_docs = others.first_docs + len(self)
        bounds = others.bounds[1:] + self.num_tokens
        return Tokens(
            shards=shards,
            first_docs=np.concatenate((self.first_docs[:count], first_docs)),
            bounds=np.concatenate((self.bounds, bounds)),
        )

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens in all documents together."""
        return int(self.bounds[-1])

    @property
    def lengths(self) -> Int64[np.ndarray, " doc"]:
        """Tokens of each document."""
        return np.diff(self.bounds)

    def __getitem__(self, doc: int | np.integer) -> Integer[np.ndarray, " token"]:
        """The tokens of one document, a view of the file."""
        shard = int(np.searchsorted(self.first_docs, doc, side="right")) - 1
        origin = self.bounds[self.first_docs[shard]]
        start = self.bounds[doc] - origin
        stop = self.bounds[doc + 1] - origin
        return self.shards[shard][start:stop]

    def texts(
        self,
        docs: Int64[np.ndarray, " doc"],
    ) -> tuple[Int32[np.ndarray, " token"], Int64[np.ndarray, " doc_and_one"]]:
        """The tokens of these documents end to end, without the end tokens, and their bounds.

        The documents are given in ascending order.
        """
        lengths = np.maximum(self.lengths[docs] - 1, 0)
        bounds = np.concatenate(([0], np.cumsum(lengths)))
        found = np.empty(bounds[-1], np.int32)
        edges = np.searchsorted(docs, [*self.first_docs, len(self)])
        for shard, (first, last) in enumerate(pairwise(edges.tolist())):
            if first == last:
                continue
            starts = self.bounds[docs[first:last]] - self.bounds[self.first_docs[shard]]
            places = ranges(starts, lengths[first:last])
            found[bounds[first] : bounds[last]] = self.shards[shard][places]
        return found, bounds


def ranges(
    starts: Int64[np.ndarray, " range"],
    counts: Int64[np.ndarray, " range"],
) -> Int64[np.ndarray, " _"]:
    """The numbers from each start on, as many as its count, end to end.

    starts 5 0 7, counts 2 1 3: 5 6 | 0 | 7 8 9.
    """
    begins = np.cumsum(counts) - counts
    # Each number is its own place in the result, moved by how far its range is.
    moved = np.repeat(starts - begins, counts)
    numbers: np.ndarray = np.arange(len(moved)) + moved
    return numbers


def equal_before(
    values: Integer[np.ndarray, " value"],
    order: Integer[np.ndarray, " value"],
) -> Int64[np.ndarray, " value"]:
    """How many equal values come before each, in an `order` in which equal ones stand together.

    values  7 3 7 7    in order  3  7 7 7
    before  0 0 1 2              0  0 1 2    how far from the first of its run
    """
    ordered = values[order]
    begins = np.ones(len(order), bool)
    begins[1:] = ordered[1:] != ordered[:-1]

    place = np.arange(len(order))
    run_start = np.maximum.accumulate(np.where(begins, place, 0))
    result = np.empty(len(order), np.int64)
    result[order] = place - run_start
    return result
