"""What one model gave back of texts, what canaries cost it, and what all arms show together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int64

from synthboot.artifacts.store import read_table
from synthboot.data.disk import read_json, write_json

COMPARED = "compared"
"""The variant of the unit that compares all models; those of the others are models."""

FIGURES = ("exact", "near", "leading", "sampled")
_CONTINUED = "continued.parquet"
_CANARIES = "canaries.parquet"
_RESULT = "extract.json"


@dataclass(frozen=True)
class Continued:
    """A row for each document that a model was asked to continue, and the loss of every canary.

    `document` is its number in D_pretrain where it is `seen`, else in the test set. Columns of
    `figures` are FIGURES: the greedy continuation is that of the document; nearly so; the share of
    it before the first token that is another; the chance that one of several samples is exact.
    `tokens` are the greedy continuations, which may have ended early. `canary_loss` is in nats, in
    the order of `Corpus.canaries`.
    """

    document: Int64[np.ndarray, " item"]
    seen: Bool[np.ndarray, " item"]
    figures: Float64[np.ndarray, "item 4"]
    tokens: tuple[tuple[int, ...], ...]
    canary_loss: Float64[np.ndarray, " canary"]

    def save(self, folder: Path) -> None:
        """Write `continued.parquet` and `canaries.parquet`."""
        table = {
            "document": pa.array(self.document),
            "seen": pa.array(self.seen),
            "tokens": pa.array(self.tokens, pa.list_(pa.int64())),
        }
        for column, name in enumerate(FIGURES):
            table[name] = pa.array(self.figures[:, column])
        pq.write_table(pa.table(table), folder / _CONTINUED, compression="zstd")
        losses = pa.table({"loss": self.canary_loss})
        pq.write_table(losses, folder / _CANARIES, compression="zstd")

    @staticmethod
    def open(folder: Path) -> Continued:
        """Read what `save` wrote."""
        table = read_table(folder / _CONTINUED)
        figures = [table[name].to_numpy() for name in FIGURES]
        return Continued(
            document=table["document"].to_numpy(),
            seen=table["seen"].to_numpy(),
            figures=np.stack(figures, axis=1),  # (item, figure)
            tokens=tuple(map(tuple, table["tokens"].to_pylist())),
            canary_loss=read_table(folder / _CANARIES)["loss"].to_numpy(),
        )


@dataclass(frozen=True)
class Extraction:
    """What `stages.extract.compared` makes of all models."""

    result: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write `extract.json`."""
        write_json(folder / _RESULT, self.result)

    @staticmethod
    def open(folder: Path) -> Extraction:
        """Read what `save` wrote."""
        return Extraction(read_json(folder / _RESULT))
