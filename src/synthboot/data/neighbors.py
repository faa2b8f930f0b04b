"""The k nearest rows by inner product: exactly, or by clusters at a known recall.

`exact` multiplies blocks and keeps a running top k. `Clusters` is for large sets: rows are sorted by their nearest k-means
centroid, and a query looks into every cluster whose centroid is at most `probe_radius` less similar to it than the nearest
one: into many where it lies between clusters, into one where it does not. Queries are taken a block at a time and turned
around, so that each cluster is one matrix product with all of the block's queries that look into it; clusters near each
other stand next to each other, so that a block meets few. Only what beats a query's k-th best so far is looked at again.

Why not an index: this is a self-join. All queries are known beforehand, so the product has many rows, which is what a CPU
or a GPU is fast at; an index answers them one by one. `benchmarks/pair.py` has the figures.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float16, Float32, Int32, Int64

from synthboot import kernels
from synthboot.data.artifacts import Progress, silent
from synthboot.data.disk import save_array

if TYPE_CHECKING:
    from torch import Tensor

QUERY_BLOCK = 65_536
"""Queries in a query block: what one worker does at a time, and what a killed run redoes."""

_ROWS, _COLUMNS = 512, 8_192
_EPSILON, _EPSILON_HALF = 2.0**-16, 2.0**-8 + 2.0**-9 + 2.0**-12
"""How far a product of unit rows can be off: in float32; of rows rounded to bfloat16, and itself rounded to it."""


def exact(
    queries: Float[np.ndarray, "query dim"],
    base: Float[np.ndarray, "doc dim"],
    k: int,
    own: Int64[np.ndarray, " query"] | None = None,
    device: str = "cpu",
) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """The `k` most similar rows of `base` for every query, best first, and their similarities.

    `own` is each query's row in `base`, never returned for it. Where there are fewer than k others the rest is -1 at
    -inf. Equal similarities come by number. Memory is the queries, 8,192 rows and 512 x 8,192 products.
    """
    import torch

    best = _Best(queries, k, own, device)
    for left in range(0, len(base), _COLUMNS):
        best.meet(
            torch.arange(len(queries), device=device),
            base[left : left + _COLUMNS],
            left,
            fresh=left == 0,
        )
        best.settle()
    return best.result()


@dataclass(frozen=True)
class Clusters:
    """Rows sorted by their nearest centroid.

    `order[i]` is the number of the row at place i, `bounds[c]:bounds[c + 1]` the places of cluster c, `vectors` the rows by
    place. Place i looks into the clusters `near[edges[i]:edges[i + 1]]`, its own first.
    """

    centroids: Float32[np.ndarray, "cluster dim"]
    order: Int64[np.ndarray, " doc"]
    bounds: Int64[np.ndarray, " cell_and_one"]
    near: Int32[np.ndarray, " look"]
    edges: Int64[np.ndarray, " doc_and_one"]
    vectors: Float16[np.ndarray, "doc dim"]

    @staticmethod
    def build(
        vectors: Float16[np.ndarray, "doc dim"],
        centroids: Float32[np.ndarray, "cluster dim"],
        probe_radius: float,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> Clusters:
        """Sort `vectors` into clusters, each to look as far as `probe_radius`."""
        near, counts = [], []
        for start in range(0, len(vectors), QUERY_BLOCK):
            clusters, count = within_radius(
                vectors[start : start + QUERY_BLOCK], centroids, probe_radius, device
            )
            near.append(clusters)
            counts.append(count)
            progress(
                min(1.0, (start + QUERY_BLOCK) / len(vectors)), "sorting documents into clusters"
            )
        looks, count = np.concatenate(near), np.concatenate(counts)
        first = np.cumsum(count) - count
        home = looks[first]
        order = np.argsort(home, kind="stable")
        bounds = np.concatenate(([0], np.cumsum(np.bincount(home, minlength=len(centroids)))))
        edges = np.concatenate(([0], np.cumsum(count[order])))
        place = np.arange(len(looks)) + np.repeat(first[order] - edges[:-1], count[order])
        return Clusters(
            centroids,
            order,
            bounds.astype(np.int64),
            looks[place],
            edges.astype(np.int64),
            np.asarray(vectors)[order],
        )

    def save(self, folder: Path) -> None:
        """Write one array per file."""
        for name, array in vars(self).items():
            save_array(folder / f"{name}.npy", array)

    @staticmethod
    def load(folder: Path) -> Clusters:
        """Map what `save` wrote."""
        names = ("centroids", "order", "bounds", "near", "edges", "vectors")
        return Clusters(
            *(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names)
        )

    def join(
        self, start: int, stop: int, k: int, device: str = "cpu"
    ) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
        """For the rows at places `start:stop`: the numbers of their `k` most similar others, and the similarities."""
        near = self.near[self.edges[start] : self.edges[stop]]
        return self._search(
            self.vectors[start:stop], near, np.diff(self.edges[start : stop + 1]), k, start, device
        )

    def search(
        self,
        queries: Float16[np.ndarray, "query dim"],
        k: int,
        probe_radius: float,
        device: str = "cpu",
    ) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
        """The same for rows that are not in the clusters."""
        return self._search(
            queries, *within_radius(queries, self.centroids, probe_radius, device), k, None, device
        )

    def _search(
        self,
        queries: np.ndarray,
        near: np.ndarray,
        counts: np.ndarray,
        k: int,
        first_place: int | None,
        device: str,
    ) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
        import torch

        own = None if first_place is None else np.arange(first_place, first_place + len(queries))
        best = _Best(queries, k, own, device)
        row, home = np.repeat(np.arange(len(queries)), counts), np.zeros(len(near), bool)
        home[np.cumsum(counts) - counts] = True
        edges = self.bounds.tolist()
        for fresh in (True, False):
            for cluster, rows in _turned(near[home == fresh], row[home == fresh]):
                left, right = edges[cluster], edges[cluster + 1]
                if left < right:
                    best.meet(
                        torch.from_numpy(rows).to(device), self.vectors[left:right], left, fresh
                    )
            best.settle()
        places, similarity = best.result()
        return np.where(places >= 0, self.order[places], -1), similarity


def fit_centroids(
    vectors: Float16[np.ndarray, "doc dim"],
    clusters: int,
    seed: int,
    device: str = "cpu",
    iterations: int = 4,
) -> Float32[np.ndarray, "cluster dim"]:
    """Unit centroids by spherical k-means on a sample of 32 rows a cluster, in an order that puts near ones together."""
    import torch

    rng = np.random.default_rng([seed, 0xCE11])
    chosen = np.sort(rng.choice(len(vectors), min(len(vectors), 32 * clusters), replace=False))
    rows = np.asarray(vectors[chosen])
    sample = _rows(rows, device)
    start = torch.from_numpy(rng.permutation(len(sample))[:clusters])
    centroids = sample[start.to(device)].clone()
    for _ in range(iterations):
        nearest, _ = within_radius(rows, centroids.cpu().numpy(), -1.0, device)
        home = torch.from_numpy(nearest.astype(np.int64)).to(device)
        total = torch.zeros_like(centroids).index_add_(0, home, sample)
        filled = torch.bincount(home, minlength=len(centroids)) > 0
        centroids = torch.where(
            filled[:, None], torch.nn.functional.normalize(total, dim=1), centroids
        )
    placed = centroids.cpu().numpy()
    return placed[_lined_up(placed)]


def within_radius(
    vectors: Float[np.ndarray, "doc dim"],
    centroids: Float32[np.ndarray, "cluster dim"],
    probe_radius: float,
    device: str = "cpu",
) -> tuple[Int32[np.ndarray, " look"], Int64[np.ndarray, " doc"]]:
    """The clusters of every row, its nearest first and the others by number, row after row; and how many each row has."""
    import torch

    c = _rows(centroids, device)
    compiled = _Product(centroids) if kernels.available(device) else None
    clusters, counts = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for start in range(0, len(vectors), 2_048):
        if compiled is not None:
            found = kernels.within(
                _Product(vectors[start : start + 2_048]).meets(compiled), probe_radius
            )
            clusters.append(found[0])
            counts.append(found[1])
            continue
        scores = _rows(vectors[start : start + 2_048], device) @ c.T
        best, home = scores.max(1)
        own = home[:, None] == torch.arange(len(c), device=scores.device)
        row, cluster = ((scores >= (best - probe_radius)[:, None]) | own).nonzero(
            as_tuple=True
        )  # one's own is never lost
        order = torch.argsort(2 * row + (cluster != home[row]), stable=True)
        clusters.append(cluster[order].to(torch.int32).cpu().numpy())
        counts.append(torch.bincount(row, minlength=len(scores)).cpu().numpy())
    return np.concatenate(clusters), np.concatenate(counts)


def reach_needed(
    vectors: Float16[np.ndarray, "doc dim"],
    centroids: Float32[np.ndarray, "cluster dim"],
    queries: Int64[np.ndarray, " query"],
    neighbors: Int64[np.ndarray, "query k"],
    device: str = "cpu",
) -> Float32[np.ndarray, "query k"]:
    """How far each query must probe_radius to find each of its true `neighbors`; 0 where there is none.

    A neighbour is found if its own nearest cluster is looked into, so the recall of any probe_radius is known without a join.
    """
    known = np.unique(neighbors[neighbors >= 0])
    home = np.zeros(len(vectors), np.int64)
    home[known] = within_radius(vectors[known], centroids, -1.0, device)[0]
    scores = (_rows(vectors[queries], device) @ _rows(centroids, device).T).cpu().numpy()
    gaps = scores.max(1, keepdims=True) - np.take_along_axis(scores, home[neighbors], 1)
    return np.where(neighbors >= 0, gaps, 0).astype(np.float32)


class _Best:
    """The running k best of a query block of queries.

    With the compiled loops every block of products is gone through at once. Without them, and on a GPU, what beats a
    query's k-th best collects until there is much of it, then one merge settles it.
    """

    def __init__(self, queries: np.ndarray, k: int, own: np.ndarray | None, device: str) -> None:
        import torch

        self.device, count = device, len(queries)
        self._product = _Product(queries) if kernels.available(device) else None
        self.x = _rows(queries, device) if self._product is None else self._product.rows
        self.own = torch.from_numpy(
            np.full(count, -1) if own is None else np.array(own, np.int64)
        ).to(device)
        self.index = torch.full((count, k), -1, dtype=torch.int64, device=device)
        self.score = torch.full((count, k), float("-inf"), device=device)
        self.bar = torch.full((count,), float("-inf"), device=device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = 0
        if self._product is not None:
            self._room = torch.zeros(_ROWS, queries.shape[1], dtype=self._product.factor.dtype)

    def meet(self, rows: Tensor, vectors: np.ndarray, first: int, fresh: bool) -> None:
        """Compare the queries `rows` with `vectors`, rows `first` and on. `fresh`: these queries have met nothing yet."""
        if self._product is not None:
            product = _Product(vectors)
            for part in rows.split(_ROWS):
                scored = self._product.meets(product, part, self._room)
                kernels.offer(scored, part, self.own, first, self.index, self.score)
            return
        members = _rows(vectors, self.device)
        for part in rows.split(max(1, _ROWS * _COLUMNS // len(members))):
            scores = self.x[part] @ members.T
            _hide(scores, self.own[part] - first)
            self._offer(part, scores, first, fresh)

    def _offer(self, rows: Tensor, scores: Tensor, first: int, fresh: bool = False) -> None:
        if fresh:
            k = min(self.index.shape[1], scores.shape[1])
            value, place = scores.topk(k, 1)
            self.score[rows, :k] = value
            self.index[rows, :k] = (place + first).masked_fill(value == float("-inf"), -1)
            self.bar[rows] = self.score[rows, -1]
            return
        i, j = (scores > self.bar[rows][:, None]).nonzero(as_tuple=True)
        self._waiting.append((rows[i], j + first, scores[i, j]))
        self._count += len(i)
        if self._count > 16 * len(self.bar):
            self.settle()

    def settle(self) -> None:
        """Merge what waits into the k best."""
        import torch

        if not self._count:
            return
        row, index, score = (torch.cat(column) for column in zip(*self._waiting, strict=True))
        self._waiting, self._count = [], 0
        good = score > self.bar[row]
        row, index, score = row[good], index[good], score[good]
        if not len(row):
            return
        order = _by_row(row)
        row, index, score = row[order], index[order], score[order]
        size = torch.bincount(row, minlength=len(self.bar))
        first = size.cumsum(0) - size
        place = torch.arange(len(row), device=row.device) - first[row]
        start, k = 0, self.index.shape[1]
        while start < (most := int(size.max())):
            stop = min(most, start + (64 if start == 0 else 1_024))  # few queries have more than 64
            some = (size > start).nonzero()[:, 0]
            slot = torch.zeros_like(size).index_copy_(
                0, some, torch.arange(len(some), device=row.device)
            )
            now = (place >= start) & (place < stop)
            scores = torch.full((len(some), k + stop - start), float("-inf"), device=row.device)
            scores[:, :k] = self.score[some]
            scores[slot[row[now]], place[now] + (k - start)] = score[now]
            top, which = scores.topk(k, 1)
            new = index[(first[some][:, None] + start + which - k).clamp(0, len(index) - 1)]
            self.index[some] = torch.where(
                which < k, self.index[some].gather(1, which.clamp(max=k - 1)), new
            )
            self.index[some] = self.index[some].masked_fill(top == float("-inf"), -1)
            self.score[some] = top
            start = stop
        self.bar = self.score[:, -1].clone()

    def result(self) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
        """Numbers and similarities, best first, equal ones by number."""
        self.settle()
        index, score = self.index.cpu().numpy(), self.score.cpu().numpy()
        if self._product is not None:
            return index, score  # they are in order already
        order = np.lexsort((index, -score), axis=1)
        return np.take_along_axis(index, order, 1), np.take_along_axis(score, order, 1)


class _Product:
    """Rows ready to be multiplied with others: in bfloat16 where that is faster, with the margin that this takes. Rows are
    filled up to a multiple of 64, since a bfloat16 product of a shape not seen before costs a millisecond to set up."""

    def __init__(self, vectors: np.ndarray) -> None:
        import torch

        self.half, self.height = _faster_in_half(), -(-len(vectors) // 64) * 64
        if vectors.dtype == np.float16:
            self.rows, narrow, self.longest = kernels.widen(
                vectors, self.height if self.half else None
            )
            self.factor = self.rows if narrow is None else narrow
            return
        self.rows = _rows(vectors, "cpu")
        filled = torch.nn.functional.pad(self.rows, (0, 0, 0, self.height - len(vectors)))
        self.factor = filled.bfloat16() if self.half else self.rows
        self.longest = float(self.rows.norm(dim=1).max()) if len(vectors) else 0.0

    def meets(
        self, members: _Product, chosen: Tensor | None = None, room: Tensor | None = None
    ) -> kernels.Scored:
        """These rows, or some of them put together in `room`, with others."""
        import torch

        some = self.factor
        if chosen is not None and room is not None:
            torch.index_select(self.factor, 0, chosen, out=room[: len(chosen)])
            some = room[
                : -(-len(chosen) // 64) * 64
            ]  # what lies behind the chosen is not looked at
        margin = (_EPSILON_HALF if self.half else _EPSILON) * self.longest * members.longest
        return kernels.Scored(some @ members.factor.T, self.rows, members.rows, margin)


@cache
def _faster_in_half() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: two and a half times on some, half as fast on others."""
    import torch

    def seconds(x: Tensor, y: Tensor) -> float:
        taken = []
        for _ in range(4):
            begun = time.perf_counter()
            x @ y.T
            taken.append(time.perf_counter() - begun)
        return min(taken)

    x, y = torch.ones(256, 256), torch.ones(1_024, 256)
    return seconds(x.bfloat16(), y.bfloat16()) < 0.8 * seconds(x, y)


def _rows(array: np.ndarray, device: str) -> Tensor:
    """Float32 rows on the device; torch turns half precision into single much faster than numpy does."""
    import torch

    return torch.from_numpy(np.array(array)).to(device).float()


def _hide(scores: Tensor, own: Tensor) -> None:
    """Make every query's own column, where it is among these, less similar than anything."""
    inside = ((own >= 0) & (own < scores.shape[1])).nonzero()[:, 0]
    scores[inside, own[inside]] = float("-inf")


def _turned(clusters: np.ndarray, rows: np.ndarray) -> list[tuple[int, Int64[np.ndarray, " row"]]]:
    """Cell -> the rows that look into it, for all clusters that any looks into, in order."""
    if not len(clusters):
        return []
    order = np.argsort(
        clusters.astype(np.uint16) if clusters.max() < 1 << 16 else clusters, kind="stable"
    )  # by radix
    ordered = clusters[order]
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    starts = np.concatenate(([0], edges))
    return list(zip(ordered[starts].tolist(), np.split(rows[order], edges), strict=True))


def _by_row(row: Tensor) -> Tensor:
    """A stable order by row. On a CPU numpy's radix sort of 16-bit numbers, several times faster than a comparison sort."""
    import torch

    if row.device.type == "cpu":
        small: Any = np.uint16 if len(row) and int(row.max()) < 1 << 16 else np.int64
        return torch.from_numpy(np.argsort(row.numpy().astype(small), kind="stable"))
    return torch.argsort(row, stable=True)


def _lined_up(points: Float32[np.ndarray, "point dim"]) -> Int64[np.ndarray, " point"]:
    """An order in which near points stand near each other: halved again and again between two that are far apart."""
    order = np.arange(len(points))
    pieces = [(0, len(points))]
    while pieces:
        start, stop = pieces.pop()
        if stop - start < 3:
            continue
        some = points[order[start:stop]]
        one = some[np.argmin(some @ some.mean(0))]
        other = some[np.argmin(some @ one)]
        order[start:stop] = order[start:stop][np.argsort(some @ (one - other), kind="stable")]
        middle = (start + stop) // 2
        pieces += [(start, middle), (middle, stop)]
    return order.astype(np.int64)
