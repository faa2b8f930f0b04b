"""What one model gave back of texts, what canaries cost it, and what all arms show together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int64

from synthboot.artifacts.store import declared, plain, read_listed, read_table, typed
from synthboot.data.disk import write_json
from synthboot.statistics import Difference, Interval

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
class GivenBack:
    """One of FIGURES of an arm: its mean over documents that it has `seen`, and over `unseen` ones.

    `difference` is that to repetition over seen ones, and `p_adjusted` its p for the number of
    arms. None where there are too few documents for an interval, and for repetition itself.
    """

    seen: Interval | None
    unseen: Interval | None
    difference: Difference | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class ArmExtraction:
    """What can be got out of an arm: by figure what it gave back, and by number of copies the mean
    exposure of canaries in bits; None where one canary has no interval."""

    figures: dict[str, GivenBack]
    exposure: dict[int, Interval | None]


@declared
@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What can be got out of every arm, beside repetition, with intervals over seeds and documents,
    or canaries.

    All arms were given `prefix_tokens` of the same documents, and asked for `continuation_tokens`;
    one of so many `samples` may be exact. `canaries` were planted, `candidates` drawn likewise and
    not planted.
    """

    arms: dict[str, ArmExtraction]
    seen_docs: int
    unseen_docs: int
    prefix_tokens: int
    continuation_tokens: int
    samples: int
    seeds: int
    canaries: int
    candidates: int
    confidence: float

    def save(self, folder: Path) -> None:
        """Write `extract.json`."""
        write_json(folder / _RESULT, plain(self))

    @staticmethod
    def open(folder: Path) -> Extraction:
        """Read what `save` wrote. Raises CorruptArtifact where it is damaged, or of another
        version."""
        return typed(read_listed(folder, _RESULT), Extraction, folder / _RESULT)
