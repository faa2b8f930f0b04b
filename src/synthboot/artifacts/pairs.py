"""Ordered pairs of documents and the Parquet file they lie in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64

from synthboot.artifacts.store import declared, read_table, typed
from synthboot.data.disk import read_json, write_json

TRAIN = 0
HELDOUT = 1
VALIDATION = 2
_CHOSEN = "pairs.json"
_COLUMNS = ("d1", "d2", "similarity", "split")


Worth = tuple[float, float]
"""A gain in nats per token, and its standard error over documents."""


@dataclass(frozen=True)
class Band:
    """What d1 tells of the documents whose nearest d1 has a similarity from `low` to `high`."""

    low: float
    high: float
    docs: int
    nearest: Worth
    most: Worth


@dataclass(frozen=True)
class Ceiling:
    """What d1 could tell, over `docs` held-out documents of `tokens` in all.

    `loss` is without d1, in nats per token; `worth` the gain by how many of the nearest d1 are
    copied from, `random` by one drawn at random; `d1` how many a document has on average, of the
    most that are asked for. `floor` is the loss without d1 on the validation set as it is: what a
    model's validation loss has to beat.
    """

    docs: int
    tokens: int
    d1: float
    loss: float
    worth: dict[str, Worth]
    random: Worth
    bands: list[Band]
    floor: float

    def sentence(self) -> str:
        """The figures in words."""
        (_, nearest), *_, (many, most) = self.worth.items()
        value, error = nearest
        return (
            f"d1 is worth {value:.3f} +- {error:.3f} nats a token to a count model "
            f"({many} nearest {most[0]:.3f}, a random one {self.random[0]:.3f}) "
            f"on {self.docs:,} held-out documents, {self.loss:.3f} without d1"
        )


@dataclass(frozen=True)
class Searched:
    """How neighbours were searched for, and the share of the true ones that was found, with its
    95 % interval over documents.

    Of a search by clusters, how many there are, the radius within which a document probes them, and
    what each radius tried gives: (radius, clusters probed on average, recall).
    """

    kind: Literal["exact", "ivf"] = "exact"
    recall: tuple[float, float, float] = (1.0, 1.0, 1.0)
    clusters: int = 0
    probe_radius: float = 0.0
    by_radius: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Hubs:
    """How unevenly documents are others' neighbours.

    In how many lists of the k nearest a document stands: most, 99th percentile, the share that
    stands in none, and skewness. And how many pairs a document is d2 of, at most.
    """

    most_lists: float
    lists_p99: float
    never: float
    skewness: float
    most_pairs_per_d2: float


@dataclass(frozen=True)
class Agreement:
    """How often the two of a pair have the same label: of all pairs, of random ones, and by tenths
    of the pairs from least to most similar, as (least, greatest similarity, share, pairs)."""

    all: float
    random: float
    deciles: tuple[tuple[float, float, float, int], ...]


@dataclass(frozen=True)
class Left:
    """The pairs that are left.

    By split; documents that are d1 of any to tune on, and pairs of these a document. `histograms`
    of similarity, of pairs to tune on, nearest neighbours and random pairs, have the edges `bins`.
    """

    train: int
    heldout: int
    validation: int
    documents_with_pairs: int
    pairs_per_document: float
    bins: tuple[float, ...]
    histograms: dict[str, tuple[int, ...]]


@declared
@dataclass(frozen=True)
class Chosen:
    """How pairs were chosen, and what is known of them.

    `considered` neighbours and those that `direction` added are the pairs that are left and those
    that were dropped, by reason. Of the pairs of a control that are drawn at random, there is no
    alpha, and nothing but `considered` is known. `chance_share` is the share of the pairs that
    documents without any relation would give too.
    """

    alpha: float | None
    why: str
    considered: int
    dropped: dict[str, int] = field(default_factory=dict)
    added_by_direction: int = 0
    chance_share: float = 0.0
    search: Searched | None = None
    hubs: Hubs | None = None
    pairs: Left | None = None
    agreement: Agreement | None = None
    ceiling: Ceiling | None = None


NOTHING_TO_STOP_BY = (
    "no validation document has a neighbour above min_similarity, so nothing says when tuning is "
    "to stop; lower pair.min_similarity, or raise corpus.validation_docs"
)
"""What is wrong with pairs that nothing can be tuned on, and what to do."""

UNKNOWN = Chosen(alpha=None, why="not known", considered=0)
"""How pairs were chosen that somebody has put together."""


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs, most similar first.

    `d1` indexes D_pretrain; `d2` does too, but for VALIDATION pairs, where it indexes the
    validation set. `chosen` says how they were.
    """

    d1: Int64[np.ndarray, " pair"]
    d2: Int64[np.ndarray, " pair"]
    similarity: Float32[np.ndarray, " pair"]
    split: Int64[np.ndarray, " pair"]
    chosen: Chosen = UNKNOWN

    @property
    def alpha(self) -> float:
        """The similarity that pairs are above. Raises ValueError where they were not chosen by
        it."""
        if self.chosen.alpha is None:
            raise ValueError("these pairs were not chosen by their similarity")
        return self.chosen.alpha

    def only(self, split: int) -> Pairs:
        """The pairs of one split."""
        return self[self.split == split]

    def __getitem__(self, which: slice | Bool[np.ndarray, " pair"]) -> Pairs:
        return Pairs(
            self.d1[which],
            self.d2[which],
            self.similarity[which],
            self.split[which],
            self.chosen,
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
        write_json(folder / _CHOSEN, asdict(self.chosen))

    @staticmethod
    def load(folder: Path) -> Pairs:
        """Read what `save` wrote."""
        table = read_table(folder / "pairs.parquet")
        columns = {name: table[name].to_numpy() for name in _COLUMNS}
        return Pairs(**columns, chosen=chosen(folder))


def chosen(folder: Path) -> Chosen:
    """How the pairs in a folder were chosen, without reading any of them.

    Raises CorruptArtifact where that is missing or damaged.
    """
    return typed(read_json(folder / _CHOSEN), Chosen, folder / _CHOSEN)


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
