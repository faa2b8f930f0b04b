"""The k nearest rows by inner product: exactly, or by clusters at a known recall.

`exact` multiplies blocks and keeps a running top k. `Clusters` is for large sets: rows are sorted
by their nearest k-means centroid, and a query probes every cluster whose centroid is at most
`probe_radius` less similar to it than the nearest one: many where it lies between clusters, one
where it does not. Queries are taken a query block at a time and regrouped by cluster, so that each
cluster is one matmul with all queries of the block that probe it; clusters near each other stand
next to each other, so that a query block meets few. Only what beats a query's k-th best so far is
scored again in float32.

    rows by cluster   [ c0       | c1    | c2           | c3  ]   `bounds` cuts them
    probes by query   q0: c0 c1    q1: c0    q2: c2 c0 c3         own cluster first
    probes by cluster c0: q0 q1 q2    c1: q0    c2: q2    c3: q2  one matmul a cluster

Why not an index: this is a self-join. All queries are known beforehand, so the matmuls have many
rows, which is what a CPU or a GPU is fast at; an index answers them one by one.
`benchmarks/pair.py` has the figures.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float16, Float32, Int32, Int64

from synthboot.artifacts.store import Progress, silent
from synthboot.data.disk import load_array, save_array
from synthboot.kernels import library, topk
from synthboot.rng import rng

if TYPE_CHECKING:
    from torch import Tensor

QUERY_BLOCK = 65_536
"""Queries in a query block: what one worker does at a time, and what a killed run redoes."""

_ROWS = 512
_COLUMNS = 8_192
"""Rows and columns of one matmul: memory is one times the other."""
_EPSILON = 2.0**-16
"""How far an inner product of unit rows can be off in float32."""
_EPSILON_BFLOAT16 = 2.0**-8 + 2.0**-9 + 2.0**-12
"""How far one of rows rounded to bfloat16, and itself rounded to it, can be off."""


def exact(
    queries: Float[np.ndarray, "query dim"],
    base: Float[np.ndarray, "doc dim"],
    k: int,
    own: Int64[np.ndarray, " query"] | None = None,
    device: str = "cpu",
) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
    """The `k` most similar rows of `base` for every query, best first, and their similarities.

    `own` is each query's row in `base`, never returned for it. Where there are fewer than k others
    the rest is -1 at -inf. Equal similarities come by number. Memory is the queries, 8,192 rows and
    512 x 8,192 scores.
    """
    import torch

    best = _TopK(queries, k, own, device)
    all_queries = torch.arange(len(queries), device=device)
    for first in range(0, len(base), _COLUMNS):
        members = base[first : first + _COLUMNS]
        best.score_block(all_queries, members, first, fresh=first == 0)
        best.merge()
    return best.result()


@dataclass(frozen=True)
class Clusters:
    """Rows sorted by their nearest centroid.

    `order[i]` is the number of the row at position i, `bounds[c]:bounds[c + 1]` the positions of
    cluster c, `vectors` the rows by position. Position i probes the clusters
    `near[edges[i]:edges[i + 1]]`, its own first.
    """

    centroids: Float32[np.ndarray, "cluster dim"]
    order: Int64[np.ndarray, " doc"]
    bounds: Int64[np.ndarray, " cluster_and_one"]
    near: Int32[np.ndarray, " probe"]
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
        """`vectors` sorted into clusters, each to probe what lies within `probe_radius`."""
        probes_of_blocks = []
        counts_of_blocks = []
        for start in range(0, len(vectors), QUERY_BLOCK):
            block = vectors[start : start + QUERY_BLOCK]
            clusters, counts = within_radius(block, centroids, probe_radius, device)
            probes_of_blocks.append(clusters)
            counts_of_blocks.append(counts)
            done = min(1.0, (start + QUERY_BLOCK) / len(vectors))
            progress(done, "sorting documents into clusters")

        probes = np.concatenate(probes_of_blocks)
        count = np.concatenate(counts_of_blocks)
        first = np.cumsum(count) - count

        # A row's first probe is its nearest cluster, which it belongs to.
        home = probes[first]
        order = np.argsort(home, kind="stable")
        sizes = np.bincount(home, minlength=len(centroids))
        bounds = np.concatenate(([0], np.cumsum(sizes)))

        # Probes move with their rows: each by how far its row's first one moves.
        ordered_count = count[order]
        edges = np.concatenate(([0], np.cumsum(ordered_count)))
        moved = np.repeat(first[order] - edges[:-1], ordered_count)  # (doc,) -> (probe,)
        position = np.arange(len(probes)) + moved
        return Clusters(
            centroids=centroids,
            order=order,
            bounds=bounds.astype(np.int64),
            near=probes[position],
            edges=edges.astype(np.int64),
            vectors=np.asarray(vectors)[order],
        )

    def save(self, folder: Path) -> None:
        """Write one array per file."""
        for name, array in vars(self).items():
            save_array(folder / f"{name}.npy", array)

    @staticmethod
    def load(folder: Path) -> Clusters:
        """Map what `save` wrote."""
        arrays = {}
        for name in ("centroids", "order", "bounds", "near", "edges", "vectors"):
            arrays[name] = load_array(folder / f"{name}.npy", mapped=True)
        return Clusters(**arrays)

    def join(
        self,
        start: int,
        stop: int,
        k: int,
        device: str = "cpu",
    ) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
        """The `k` most similar others of the rows at positions `start:stop`, with similarities."""
        queries = self.vectors[start:stop]
        probes = self.near[self.edges[start] : self.edges[stop]]
        counts = np.diff(self.edges[start : stop + 1])
        return self._search(queries, probes, counts, k, start, device)

    def search(
        self,
        queries: Float16[np.ndarray, "query dim"],
        k: int,
        probe_radius: float,
        device: str = "cpu",
    ) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
        """The same for rows that are not in the clusters."""
        probes, counts = within_radius(queries, self.centroids, probe_radius, device)
        return self._search(queries, probes, counts, k, None, device)

    def _search(
        self,
        queries: np.ndarray,
        probes: np.ndarray,
        counts: np.ndarray,
        k: int,
        first_position: int | None,
        device: str,
    ) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
        """Neighbours of `queries`, which stand at `first_position` and on if they are members."""
        import torch

        own = None
        if first_position is not None:
            own = np.arange(first_position, first_position + len(queries))
        best = _TopK(queries, k, own, device)

        query = np.repeat(np.arange(len(queries)), counts)  # (query,) -> (probe,)
        is_home = np.zeros(len(probes), bool)
        is_home[np.cumsum(counts) - counts] = True

        # Own clusters first: they hold most neighbours, so that thresholds are high from then on.
        bounds = self.bounds.tolist()
        for fresh in (True, False):
            chosen = is_home == fresh
            for cluster, rows in _by_cluster(probes[chosen], query[chosen]):
                first = bounds[cluster]
                stop = bounds[cluster + 1]
                if first < stop:
                    members = self.vectors[first:stop]
                    queries_here = torch.from_numpy(rows).to(device)
                    best.score_block(queries_here, members, first, fresh)
            best.merge()

        positions, similarity = best.result()
        index = np.where(positions >= 0, self.order[positions], -1)
        return index, similarity


def fit_centroids(
    vectors: Float16[np.ndarray, "doc dim"],
    clusters: int,
    seed: int,
    device: str = "cpu",
    iterations: int = 4,
) -> Float32[np.ndarray, "cluster dim"]:
    """Unit centroids by spherical k-means on a sample of 32 rows a cluster.

    They are ordered so that near ones stand together.
    """
    import torch

    random = rng(seed, "join.clusters")
    size = min(len(vectors), 32 * clusters)
    chosen = np.sort(random.choice(len(vectors), size, replace=False))
    rows = np.asarray(vectors[chosen])
    sample = _float_rows(rows, device)

    start = torch.from_numpy(random.permutation(len(sample))[:clusters])
    centroids = sample[start.to(device)].clone()
    for _ in range(iterations):
        # A negative radius probes the nearest cluster alone.
        nearest, _ = within_radius(rows, centroids.cpu().numpy(), -1.0, device)
        home = torch.from_numpy(nearest.astype(np.int64)).to(device)
        total = torch.zeros_like(centroids).index_add_(0, home, sample)
        means = torch.nn.functional.normalize(total, dim=1)
        # An empty cluster stays where it was: a later iteration may fill it.
        filled = torch.bincount(home, minlength=len(centroids)) > 0
        centroids = torch.where(filled[:, None], means, centroids)

    fitted = centroids.cpu().numpy()
    return fitted[_near_together(fitted)]


def within_radius(
    vectors: Float[np.ndarray, "doc dim"],
    centroids: Float32[np.ndarray, "cluster dim"],
    probe_radius: float,
    device: str = "cpu",
) -> tuple[Int32[np.ndarray, " probe"], Int64[np.ndarray, " doc"]]:
    """The clusters that every row probes, row after row, and how many each row does.

    The nearest comes first, the others by number.
    """
    import torch

    c = _float_rows(centroids, device)
    compiled = _Operand(centroids) if library.available(device) else None
    clusters = [np.empty(0, np.int32)]
    counts = [np.empty(0, np.int64)]
    for start in range(0, len(vectors), 2_048):
        rows = vectors[start : start + 2_048]
        if compiled is not None:
            scored = _Operand(rows).matmul(compiled)
            probes, count = topk.within_radius(scored, probe_radius)
            clusters.append(probes)
            counts.append(count)
            continue

        scores = _float_rows(rows, device) @ c.T  # (row, cluster)
        best, home = scores.max(1)
        is_near = scores >= (best - probe_radius)[:, None]
        # A row's own cluster is never lost, not even to a negative radius.
        is_home = home[:, None] == torch.arange(len(c), device=scores.device)
        row, cluster = (is_near | is_home).nonzero(as_tuple=True)

        # Even keys are homes, odd keys the others: one stable sort puts each row's home first.
        order = torch.argsort(2 * row + (cluster != home[row]), stable=True)
        clusters.append(cluster[order].to(torch.int32).cpu().numpy())
        counts.append(torch.bincount(row, minlength=len(scores)).cpu().numpy())
    return np.concatenate(clusters), np.concatenate(counts)


def radius_needed(
    vectors: Float16[np.ndarray, "doc dim"],
    centroids: Float32[np.ndarray, "cluster dim"],
    queries: Int64[np.ndarray, " query"],
    neighbors: Int64[np.ndarray, "query k"],
    device: str = "cpu",
) -> Float32[np.ndarray, "query k"]:
    """The least probe radius that finds each true neighbour of each query; 0 where there is none.

    A neighbour is found if its own nearest cluster is probed, so the recall of any probe radius is
    known without a join.
    """
    members = np.unique(neighbors[neighbors >= 0])
    home = np.zeros(len(vectors), np.int64)
    home[members], _ = within_radius(vectors[members], centroids, -1.0, device)

    c = _float_rows(centroids, device)
    scores = (_float_rows(vectors[queries], device) @ c.T).cpu().numpy()  # (query, cluster)
    best = scores.max(1, keepdims=True)
    of_home = np.take_along_axis(scores, home[neighbors], 1)  # (query, k)
    return np.where(neighbors >= 0, best - of_home, 0).astype(np.float32)


class _TopK:
    """The running k best of the queries of a query block.

    With the compiled loops every block of scores is gone through at once. Without them, and on a
    GPU, what beats a query's k-th best waits until it is much; then one merge updates
    all queries.
    """

    def __init__(
        self,
        queries: np.ndarray,
        k: int,
        own: np.ndarray | None,
        device: str,
    ) -> None:
        import torch

        count = len(queries)
        self.device = device
        self._operand = _Operand(queries) if library.available(device) else None
        if self._operand is None:
            self.x = _float_rows(queries, device)
        else:
            self.x = self._operand.rows
        own = np.full(count, -1) if own is None else own
        self.own = torch.from_numpy(np.array(own, np.int64)).to(device)

        self.index = torch.full((count, k), -1, dtype=torch.int64, device=device)
        self.score = torch.full((count, k), float("-inf"), device=device)
        self.threshold = torch.full((count,), float("-inf"), device=device)

        # Candidates that wait for the next merge: (query, index, score), and how many.
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_waiting = 0
        if self._operand is not None:
            dtype = self._operand.factor.dtype
            self._buffer = torch.zeros(_ROWS, queries.shape[1], dtype=dtype)

    def score_block(
        self,
        rows: Tensor,
        vectors: np.ndarray,
        first: int,
        fresh: bool,
    ) -> None:
        """Compare the queries `rows` with `vectors`, which are numbered from `first`.

        `fresh`: these queries have been compared with nothing yet.
        """
        if self._operand is not None:
            members = _Operand(vectors)
            for part in rows.split(_ROWS):
                scored = self._operand.matmul(members, part, self._buffer)
                topk.update_topk(scored, part, self.own, first, self.index, self.score)
            return

        columns = _float_rows(vectors, self.device)
        size = max(1, _ROWS * _COLUMNS // len(columns))
        for part in rows.split(size):
            scores = self.x[part] @ columns.T  # (part, column)
            _hide_own(scores, self.own[part] - first)
            self._update_topk(part, scores, first, fresh)

    def _update_topk(
        self,
        rows: Tensor,
        scores: Tensor,
        first: int,
        fresh: bool,
    ) -> None:
        """Take over the k best of a fresh query; else let wait what beats its threshold."""
        if fresh:
            k = min(self.index.shape[1], scores.shape[1])
            value, column = scores.topk(k, 1)
            hidden = value == float("-inf")
            self.score[rows, :k] = value
            self.index[rows, :k] = (column + first).masked_fill(hidden, -1)
            self.threshold[rows] = self.score[rows, -1]
            return

        beats = scores > self.threshold[rows][:, None]
        i, j = beats.nonzero(as_tuple=True)
        self._waiting.append((rows[i], j + first, scores[i, j]))
        self._num_waiting += len(i)
        # Rare merges are cheap ones; 16 candidates a query bound the memory of what waits.
        if self._num_waiting > 16 * len(self.threshold):
            self.merge()

    def merge(self) -> None:
        """Merge the candidates that wait into the k best, and raise the thresholds."""
        import torch

        if not self._num_waiting:
            return
        # (candidate,) each
        query, index, score = (torch.cat(column) for column in zip(*self._waiting, strict=True))
        self._waiting = []
        self._num_waiting = 0

        # Only what beats the thresholds as they are now.
        beats = score > self.threshold[query]
        query = query[beats]
        if not len(query):
            return
        candidates = _Candidates.of(query, index[beats], score[beats], len(self.threshold))

        # A table of all queries by all candidates would be mostly empty, as few queries have more
        # than 64 candidates. It is taken in strips of columns, each with the rows that it needs.
        most = int(candidates.count.max())
        start = 0
        while start < most:
            stop = min(most, start + (64 if start == 0 else 1_024))
            self._merge_strip(candidates, start, stop)
            start = stop
        self.threshold = self.score[:, -1].clone()

    def _merge_strip(self, candidates: _Candidates, start: int, stop: int) -> None:
        """Merge the candidates `start` to `stop` of every query that has as many."""
        import torch

        k = self.index.shape[1]
        queries = (candidates.count > start).nonzero()[:, 0]  # those with a candidate in this strip
        row = torch.zeros_like(candidates.count)  # query -> its row in the strip
        row[queries] = torch.arange(len(queries), device=row.device)

        # (row, k + stop - start): the k best so far, then the candidates of the strip
        shape = (len(queries), k + stop - start)
        strip = torch.full(shape, float("-inf"), device=row.device)
        strip[:, :k] = self.score[queries]
        in_strip = (candidates.rank >= start) & (candidates.rank < stop)
        column = candidates.rank[in_strip] + (k - start)
        strip[row[candidates.query[in_strip]], column] = candidates.score[in_strip]
        top, which = strip.topk(k, 1)  # (row, k)

        # Where `which` is below k, the number is an old one; else a candidate's. The clamps keep
        # the gathers that are thrown away within bounds.
        old = self.index[queries].gather(1, which.clamp(max=k - 1))
        candidate = candidates.first[queries][:, None] + start + which - k
        new = candidates.index[candidate.clamp(0, len(candidates.index) - 1)]
        merged = torch.where(which < k, old, new)
        self.index[queries] = merged.masked_fill(top == float("-inf"), -1)
        self.score[queries] = top

    def result(self) -> tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]:
        """Numbers and similarities, best first, equal ones by number."""
        self.merge()
        index = self.index.cpu().numpy()
        score = self.score.cpu().numpy()
        if self._operand is not None:
            return index, score  # the compiled loops keep them in order

        order = np.lexsort((index, -score), axis=1)
        ordered_index = np.take_along_axis(index, order, 1)  # (query, k)
        ordered_score = np.take_along_axis(score, order, 1)  # (query, k)
        return ordered_index, ordered_score


@dataclass(frozen=True)
class _Candidates:
    """What may come among the k best, those of a query next to each other, as they came."""

    query: Tensor  # (candidate,)
    index: Tensor  # (candidate,)
    score: Tensor  # (candidate,)
    rank: Tensor  # (candidate,), from 0 within a query
    count: Tensor  # (query,)
    first: Tensor  # (query,), where its candidates begin

    @staticmethod
    def of(query: Tensor, index: Tensor, score: Tensor, num_queries: int) -> _Candidates:
        """Candidates (candidate) in any order, sorted by query."""
        import torch

        order = _by_row(query)
        query = query[order]
        count = torch.bincount(query, minlength=num_queries)
        first = count.cumsum(0) - count
        rank = torch.arange(len(query), device=query.device) - first[query]
        return _Candidates(query, index[order], score[order], rank, count, first)


class _Operand:
    """Rows ready for matmuls: in bfloat16 where that is faster, with the margin that this takes.

    Rows are filled up to a multiple of 64, since a bfloat16 matmul of a shape not seen before costs
    a millisecond to set up.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        import torch

        self.bfloat16 = bfloat16_is_faster()
        self.height = _up_to_64(len(vectors))
        if vectors.dtype == np.float16:
            height = self.height if self.bfloat16 else None
            self.rows, rounded, self.longest = topk.upcast(vectors, height)
            self.factor = self.rows if rounded is None else rounded
            return

        self.rows = _float_rows(vectors, "cpu")
        padding = (0, 0, 0, self.height - len(vectors))  # zero rows at the end
        filled = torch.nn.functional.pad(self.rows, padding)
        self.factor = filled.bfloat16() if self.bfloat16 else self.rows
        self.longest = float(self.rows.norm(dim=1).max()) if len(vectors) else 0.0

    def matmul(
        self,
        members: _Operand,
        chosen: Tensor | None = None,
        buffer: Tensor | None = None,
    ) -> topk.Scored:
        """These rows, or the `chosen` ones put together in `buffer`, times those of `members`."""
        import torch

        factor = self.factor
        if chosen is not None and buffer is not None:
            torch.index_select(self.factor, 0, chosen, out=buffer[: len(chosen)])
            # What lies behind the chosen rows is left from before, and is never read.
            factor = buffer[: _up_to_64(len(chosen))]
        epsilon = _EPSILON_BFLOAT16 if self.bfloat16 else _EPSILON
        margin = epsilon * self.longest * members.longest
        return topk.Scored(factor @ members.factor.T, self.rows, members.rows, margin)


def _up_to_64(count: int) -> int:
    return -(-count // 64) * 64


@cache
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32.

    Some do so two and a half times as fast, others half as fast.
    """
    import torch

    def seconds(x: Tensor, y: Tensor) -> float:
        taken = []
        for _ in range(4):  # the first sets up the shape, and others may be interrupted
            begun = time.perf_counter()
            x @ y.T
            taken.append(time.perf_counter() - begun)
        return min(taken)

    x = torch.ones(256, 256)
    y = torch.ones(1_024, 256)
    return seconds(x.bfloat16(), y.bfloat16()) < 0.8 * seconds(x, y)


def _float_rows(array: np.ndarray, device: str) -> Tensor:
    """Float32 rows on the device: torch widens half precision much faster than numpy does."""
    import torch

    return torch.from_numpy(np.array(array)).to(device).float()


def _hide_own(scores: Tensor, own: Tensor) -> None:
    """Make every query's own column, where it is among these, less similar than anything."""
    is_inside = (own >= 0) & (own < scores.shape[1])
    inside = is_inside.nonzero()[:, 0]
    scores[inside, own[inside]] = float("-inf")


def _by_cluster(
    clusters: np.ndarray,
    rows: np.ndarray,
) -> list[tuple[int, Int64[np.ndarray, " row"]]]:
    """Cluster -> the rows that probe it, for all clusters that any row probes, in order."""
    if not len(clusters):
        return []
    # numpy sorts 16-bit numbers by radix, several times faster than by comparison.
    keys = clusters.astype(np.uint16) if clusters.max() < 1 << 16 else clusters
    order = np.argsort(keys, kind="stable")
    ordered = clusters[order]
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    starts = np.concatenate(([0], edges))
    groups = np.split(rows[order], edges)
    return list(zip(ordered[starts].tolist(), groups, strict=True))


def _by_row(row: Tensor) -> Tensor:
    """A stable order by row; on a CPU by numpy's radix sort of 16-bit numbers."""
    import torch

    if row.device.type != "cpu":
        return torch.argsort(row, stable=True)
    fits = len(row) > 0 and int(row.max()) < 1 << 16
    keys = row.numpy().astype(np.uint16 if fits else np.int64)
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def _near_together(points: Float32[np.ndarray, "point dim"]) -> Int64[np.ndarray, " point"]:
    """An order in which near points stand near each other.

    It is halved again and again between two points that are far apart.
    """
    order = np.arange(len(points))
    pieces = [(0, len(points))]
    while pieces:
        start, stop = pieces.pop()
        if stop - start < 3:
            continue
        piece = points[order[start:stop]]
        # Two far ends: the point least similar to the mean, and the one least similar to that.
        left = piece[np.argmin(piece @ piece.mean(0))]
        right = piece[np.argmin(piece @ left)]
        by_side = np.argsort(piece @ (left - right), kind="stable")
        order[start:stop] = order[start:stop][by_side]
        middle = (start + stop) // 2
        pieces.append((start, middle))
        pieces.append((middle, stop))
    return order.astype(np.int64)
