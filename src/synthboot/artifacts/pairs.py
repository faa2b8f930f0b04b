"""Ordered pairs of documents and the Parquet file they lie in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64

from synthboot.artifacts.store import read_table
from synthboot.data.disk import read_json, write_json

TRAIN = 0
HELDOUT = 1
VALIDATION = 2
_COLUMNS = ("d1", "d2", "similarity", "split")


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs, most similar first.

    `d1` indexes D_pretrain; `d2` does too, but for VALIDATION pairs, where it indexes the
    validation set. `report` holds alpha and why, what was dropped, and histograms.
    """

    d1: Int64[np.ndarray, " pair"]
    d2: Int64[np.ndarray, " pair"]
    similarity: Float32[np.ndarray, " pair"]
    split: Int64[np.ndarray, " pair"]
    report: dict[str, Any] = field(default_factory=dict)

    def only(self, split: int) -> Pairs:
        """The pairs of one split."""
        return self[self.split == split]

    def __getitem__(self, chosen: slice | Bool[np.ndarray, " pair"]) -> Pairs:
        return Pairs(
            self.d1[chosen],
            self.d2[chosen],
            self.similarity[chosen],
            self.split[chosen],
            self.report,
        )

    def __len__(self) -> int:
        return len(self.d1)

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        # lists, since numpy's own numbers are slow to take one by one
        columns = (self.d1.tolist(), self.d2.tolist(), self.similarity.tolist())
        return iter(zip(*columns, strict=True))

    def save(self, folder: Path) -> None:
        """Write `pairs.parquet`, then `pairs.json`: where that stands, both are whole."""
        table = pa.table({name: getattr(self, name) for name in _COLUMNS})
        pq.write_table(table, folder / "pairs.parquet", compression="zstd")
        write_json(folder / "pairs.json", self.report)

    @staticmethod
    def load(folder: Path) -> Pairs:
        """Read what `save` wrote."""
        table = read_table(folder / "pairs.parquet")
        columns = {name: table[name].to_numpy() for name in _COLUMNS}
        return Pairs(**columns, report=read_json(folder / "pairs.json"))


@dataclass(frozen=True)
class Related:
    """The d1 of every d2, most similar first."""

    d1: Int64[np.ndarray, " pair"]
    d2: Int64[np.ndarray, " pair"]

    @staticmethod
    def of(d1: Int64[np.ndarray, " pair"], d2: Int64[np.ndarray, " pair"]) -> Related:
        """Of pairs that come most similar first."""
        order = np.argsort(d2, kind="stable")
        return Related(d1[order], d2[order])

    def around(self, d1: int, d2: int, contexts: int) -> list[int]:
        """The documents that a prompt of up to `contexts` holds: `d1` last, before it other d1 of
        `d2`, the more similar the later."""
        start, stop = np.searchsorted(self.d2, (d2, d2 + 1))
        others = [doc for doc in self.d1[start:stop].tolist() if doc != d1]
        return [*reversed(others[: contexts - 1]), d1]
