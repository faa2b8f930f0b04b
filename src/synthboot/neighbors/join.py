"""The k nearest rows by inner product: exactly, or by clusters at a known recall.

`exact` multiplies blocks of rows and keeps a running top k.

`Clusters` is for large sets. Rows are sorted by their nearest k-means centroid. A query probes
every cluster whose centroid is at most `probe_radius` less similar to it than the nearest one: many
where it lies between clusters, one where it does not. Queries are taken in blocks and regrouped by
cluster, so that each cluster is one matmul with all queries of the block that probe it.
Neighbouring clusters stand next to each other, so that a block of queries meets few of them. Only
what beats a query's k-th best so far is scored again in float32.

    rows by cluster   [ c0       | c1    | c2           | c3  ]   `bounds` cuts them
    probes by query   q0: c0 c1    q1: c0    q2: c2 c0 c3         own cluster first
    probes by cluster c0: q0 q1 q2    c1: q0    c2: q2    c3: q2  one matmul a cluster

Why not an index such as HNSW: this is a self-join. All queries are known beforehand, so that
matmuls have many rows, which is what a CPU or a GPU is fast at; an index answers queries one by
one. `benchmarks/pair.py` has the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float16, Float32, Int32, Int64

from synthboot import pool
from synthboot.artifacts.store import Progress, silent
from synthboot.data.disk import load_array, save_array, save_blocks
from synthboot.data.tokens import ranges
from synthboot.kernels import library, topk
from synthboot.rng import rng

if TYPE_CHECKING:
    from torch import Tensor

Neighbors = tuple[Int64[np.ndarray, "query k"], Float32[np.ndarray, "query k"]]
"""The numbers of each query's nearest rows, best first, and their similarities."""

Probes = tuple[Int32[np.ndarray, " probe"], Int64[np.ndarray, " doc"]]
"""The clusters that the rows probe, row after row, and the number of clusters of each row."""

QUERY_BLOCK = 65_536
"""Rows that are sorted into clusters at a time, and the fewest that a block of queries has."""

_NEVER = float("-inf")
"""The similarity where there is no neighbour."""
_ROWS = 512
_COLUMNS = 8_192
"""Rows and columns of one matmul on a CPU: its memory is their product."""
_EPSILON = 2.0**-16
"""How far the inner product of two unit rows can be off in float32."""
_EPSILON_BFLOAT16 = 2.0**-8 + 2.0**-9 + 2.0**-12
"""How far it can be off where the rows and the product are rounded to bfloat16."""
_EPSILON_FLOAT16 = 2.0**-8
"""The same for float16: room for eight roundings of 2^-11. Rounded are both rows, the product, what
it is compared with, and the partial sums where a GPU splits a matmul."""
_LEAST_MARGIN = 2.0**-24
"""The smallest step of float16, next to zero. It also keeps rows of zeros above their own bound."""


@dataclass(frozen=True)
class Tiles:
    """How scores are computed without the compiled loops: a tile at a time."""

    columns: int
    """Rows of the base in a block of `exact`."""
    scores: int
    """Most scores in a tile, which bounds memory."""
    float16: bool
    """Whether matmuls are in float16, for rows of about unit length. No result depends on it."""
    group: int
    """How many scores form a group. A group's scores are looked at one by one only where the best
    of them beats the threshold."""


ON_CPU = Tiles(_COLUMNS, _ROWS * _COLUMNS, float16=False, group=32)
ON_GPU = Tiles(65_536, 2**28, float16=True, group=128)
"""Half a gigabyte of scores keeps a GPU busy for a millisecond, far longer than a launch takes."""


def tiles(device: str) -> Tiles:
    """The tiles that suit a device."""
    return ON_CPU if device == "cpu" else ON_GPU


def exact(
    queries: Float[np.ndarray, "query dim"],
    base: Float[np.ndarray, "doc dim"],
    k: int,
    own: Int64[np.ndarray, " query"] | None = None,
    device: str = "cpu",
) -> Neighbors:
    """The `k` most similar rows of `base` for every query, best first, and their similarities.

    `own` is each query's own row in `base`, which is never returned for it. Where there are fewer
    than k others, the rest is -1 at -inf. Equal similarities come in the order of their numbers.

    Memory is the queries, 8,192 rows of `base` and 512 x 8,192 scores; on a GPU 65,536 rows and
    some gigabytes.
    """
    import torch

    best = _TopK(queries, k, own, device)
    all_queries = torch.arange(len(queries), device=device)
    columns = tiles(device).columns
    for first in range(0, len(base), columns):
        members = base[first : first + columns]
        best.score_block(all_queries, members, first, fresh=first == 0)
        best.merge()
    return best.result()


@dataclass(frozen=True)
class Clusters:
    """Rows sorted by their nearest centroid.

    `vectors` holds the rows by position: `order[i]` is the number of the row at position i, and
    `bounds[c]:bounds[c + 1]` are the positions of cluster c. The row at position i probes the
    clusters `near[edges[i]:edges[i + 1]]`, its own first.
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
        folder: Path,
        device: str = "cpu",
        workers: int = 1,
        progress: Progress = silent,
    ) -> Clusters:
        """`vectors` sorted into clusters, and the clusters that each probes within `probe_radius`.

        They are written to `folder`, an array a file, and mapped from there. Memory is the probes
        and, for each worker, a block of `vectors`, which may lie on disk too.
        """
        starts = range(0, len(vectors), QUERY_BLOCK)
        blocks = (np.asarray(vectors[start : start + QUERY_BLOCK]) for start in starts)
        save_array(folder / "centroids.npy", centroids)
        probes_of_blocks = []
        counts_of_blocks = []
        arguments = (str(folder / "centroids.npy"), probe_radius, device)
        for clusters, counts in pool.imap(_prober, arguments, blocks, workers):
            probes_of_blocks.append(clusters)
            counts_of_blocks.append(counts)
            progress(len(counts_of_blocks) / len(starts), "sorting documents into clusters")
        probes = np.concatenate(probes_of_blocks)
        count = np.concatenate(counts_of_blocks)
        first = _bounds(count)[:-1]

        # A row's first probe is its nearest cluster, which it belongs to.
        home = probes[first]
        order = np.argsort(home, kind="stable")
        sizes = np.bincount(home, minlength=len(centroids))

        def sorted_probes(start: int) -> Int32[np.ndarray, " probe"]:
            """The probes of a block of sorted rows."""
            rows = order[start : start + QUERY_BLOCK]
            return probes[ranges(first[rows], count[rows])]  # (doc,) -> (probe,)

        sorted_vectors = (vectors[order[start : start + QUERY_BLOCK]] for start in starts)
        save_array(folder / "order.npy", order)
        save_array(folder / "bounds.npy", _bounds(sizes))
        save_array(folder / "edges.npy", _bounds(count[order]))
        save_blocks(folder / "near.npy", map(sorted_probes, starts), probes.shape, np.int32)
        save_blocks(folder / "vectors.npy", sorted_vectors, vectors.shape, np.float16)
        return Clusters.load(folder)

    @staticmethod
    def load(folder: Path) -> Clusters:
        """Map what `build` wrote."""
        arrays = {}
        for column in fields(Clusters):
            path = folder / f"{column.name}.npy"
            arrays[column.name] = load_array(path, mapped=True)
        return Clusters(**arrays)

    def join(
        self,
        start: int,
        stop: int,
        k: int,
        device: str = "cpu",
    ) -> Neighbors:
        """The `k` most similar other rows for each row at positions `start:stop`."""
        queries = self.vectors[start:stop]
        edges = self.edges[start : stop + 1]
        near = self.near[edges[0] : edges[-1]]
        own = np.arange(start, start + len(queries))
        best = _TopK(queries, k, own, device)
        return self._search(best, near, np.diff(edges))

    def search(
        self,
        queries: Float16[np.ndarray, "query dim"],
        k: int,
        probe_radius: float,
        device: str = "cpu",
    ) -> Neighbors:
        """The `k` most similar rows for queries that are not in the clusters."""
        near, counts = within_radius(queries, self.centroids, probe_radius, device)
        best = _TopK(queries, k, None, device)
        return self._search(best, near, counts)

    def _search(
        self,
        best: _TopK,
        near: Int32[np.ndarray, " probe"],
        counts: Int64[np.ndarray, " query"],
    ) -> Neighbors:
        """Neighbours of the queries of `best`; query after query, each probes the next `counts`
        clusters of `near`."""
        import torch

        query = np.repeat(np.arange(len(counts)), counts)  # (query,) -> (probe,)
        is_home = np.zeros(len(near), bool)
        is_home[_bounds(counts)[:-1]] = True

        # Own clusters first: they hold most neighbours, so that thresholds are high for the others.
        for fresh in (True, False):
            chosen = is_home == fresh
            for cluster, rows in _by_cluster(near[chosen], query[chosen]):
                first = int(self.bounds[cluster])
                stop = int(self.bounds[cluster + 1])
                if first < stop:
                    members = self.vectors[first:stop]
                    queries_here = torch.from_numpy(rows).to(best.device)
                    best.score_block(queries_here, members, first, fresh)
            best.merge()

        positions, similarity = best.result()
        is_there = positions >= 0
        index = np.where(is_there, self.order[positions], -1)
        return index, similarity


def fit_centroids(
    vectors: Float16[np.ndarray, "doc dim"],
    clusters: int,
    seed: int,
    device: str = "cpu",
    iterations: int = 4,
) -> Float32[np.ndarray, "cluster dim"]:
    """Unit centroids by spherical k-means on a sample of 32 rows a cluster, ordered so that near
    ones stand together."""
    import torch

    random = rng(seed, "join.clusters")
    size = min(len(vectors), 32 * clusters)
    chosen = np.sort(random.choice(len(vectors), size, replace=False))
    rows = np.asarray(vectors[chosen])
    sample = _float_rows(rows, device)

    shuffled = random.permutation(len(sample))
    start = torch.from_numpy(shuffled[:clusters])
    centroids = sample[start.to(device)].clone()
    for _ in range(iterations):
        nearest = _homes(rows, centroids.cpu().numpy(), device)
        home = torch.from_numpy(nearest).to(device)
        total = torch.zeros_like(centroids).index_add_(0, home, sample)
        means = torch.nn.functional.normalize(total, dim=1)
        # An empty cluster stays where it was: a later iteration may fill it.
        sizes = torch.bincount(home, minlength=len(centroids))
        is_filled = sizes[:, None] > 0  # (cluster, 1)
        centroids = torch.where(is_filled, means, centroids)

    fitted = centroids.cpu().numpy()
    return fitted[_near_together(fitted)]


def within_radius(
    vectors: Float[np.ndarray, "doc dim"],
    centroids: Float32[np.ndarray, "cluster dim"],
    probe_radius: float,
    device: str = "cpu",
) -> Probes:
    """The clusters that the rows probe, row after row, and the number of clusters of each row.

    A row's nearest cluster comes first, then the others by number.
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
            near, number = topk.within_radius(scored, probe_radius)
            clusters.append(near)
            counts.append(number)
            continue

        scores = _float_rows(rows, device) @ c.T  # (row, cluster)
        best, home = scores.max(1)
        least = (best - probe_radius)[:, None]
        is_probed = scores >= least
        # A row's own cluster is never lost, not even to a negative radius.
        is_probed.scatter_(1, home[:, None], True)
        row, cluster = is_probed.nonzero(as_tuple=True)

        # Even keys are homes, odd keys the others: one stable sort puts each row's home first.
        key = 2 * row + (cluster != home[row])
        order = torch.argsort(key, stable=True)
        ordered = cluster[order].to(torch.int32)
        count = torch.bincount(row, minlength=len(scores))
        clusters.append(ordered.cpu().numpy())
        counts.append(count.cpu().numpy())
    return np.concatenate(clusters), np.concatenate(counts)


def _prober(
    centroids: str,
    probe_radius: float,
    device: str,
) -> Callable[[Float16[np.ndarray, "doc dim"]], Probes]:
    """In a worker: what finds the clusters that rows probe. `centroids` is the path of a file."""
    loaded = load_array(Path(centroids))
    return partial(within_radius, centroids=loaded, probe_radius=probe_radius, device=device)


def _homes(
    vectors: np.ndarray,
    centroids: np.ndarray,
    device: str,
) -> Int64[np.ndarray, " doc"]:
    """The nearest cluster of every row."""
    nearest, _ = within_radius(vectors, centroids, -1.0, device)  # a negative radius: no other
    return nearest.astype(np.int64)


def radius_needed(
    vectors: Float16[np.ndarray, "doc dim"],
    centroids: Float32[np.ndarray, "cluster dim"],
    queries: Int64[np.ndarray, " query"],
    neighbors: Int64[np.ndarray, "query k"],
    device: str = "cpu",
) -> Float32[np.ndarray, "query k"]:
    """The least probe radius that finds each true neighbour of each query; 0 where there is none.

    A neighbour is found where its own nearest cluster is probed: so the recall of any probe radius
    is known without a join.
    """
    members = np.unique(neighbors[neighbors >= 0])
    home = np.zeros(len(vectors), np.int64)
    home[members] = _homes(vectors[members], centroids, device)

    c = _float_rows(centroids, device)
    x = _float_rows(vectors[queries], device)
    scores = (x @ c.T).cpu().numpy()  # (query, cluster)
    best = scores.max(1, keepdims=True)
    of_home = np.take_along_axis(scores, home[neighbors], 1)  # (query, k)
    is_there = neighbors >= 0
    radius = np.where(is_there, best - of_home, 0)
    return radius.astype(np.float32)


class _TopK:
    """The running k best of a block of queries.

    The compiled loops go through every block of scores at once. Without them, and on a GPU,
    candidates that may beat a query's k-th best are scored again in float32, and wait until there
    are many: then one merge updates all queries.

        scores of a query   [ .1  .7  .3 | .2  .8  .6 | .1  .2  .4 ]   rounded, a tile at a time
        bests of groups           .7           .8           .4         the third is left out
        may beat .6              .7         .8  .6                     within the margin
        scored again             .701       .799 .598                  these wait
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
        self._operand = None
        if library.available(device):
            self._operand = _Operand(queries)
            dtype = self._operand.factor.dtype
            self._buffer = torch.zeros(_ROWS, queries.shape[1], dtype=dtype)
        else:
            self._tiles = tiles(device)
            self._x = _float_rows(queries, device)
            self._factor = self._x.half() if self._tiles.float16 else self._x
            epsilon = _EPSILON_FLOAT16 if self._tiles.float16 else _EPSILON
            self._error = epsilon * self._x.norm(dim=1)  # (query,), beside members of length 1
        if own is None:
            own = np.full(count, -1)
        owned = torch.from_numpy(np.array(own, np.int64))
        self.own = owned.to(device)

        self.index = torch.full((count, k), -1, device=device)
        self.score = torch.full((count, k), _NEVER, device=device)
        # At most a query's k-th best so far: what does not beat it need not be looked at.
        self.threshold = torch.full((count,), _NEVER, device=device)

        # Candidates that wait for the next merge, (query, index, score) each, and their number.
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_waiting = 0

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
        import torch

        if self._operand is not None:
            operand = _Operand(vectors)
            for part in rows.split(_ROWS):
                scored = self._operand.matmul(operand, part, self._buffer)
                topk.update_topk(scored, part, self.own, first, self.index, self.score)
            return

        k = self.index.shape[1]
        members = _float_rows(vectors, self.device)
        longest = members.norm(dim=1).max()
        # Groups pay where there are k of them to set a threshold, which a cluster hardly has.
        group = self._tiles.group if len(members) >= k * self._tiles.group else 1
        padding = (0, 0, 0, -len(members) % group)  # rows at the end
        factor = torch.nn.functional.pad(members.to(self._factor.dtype), padding)
        size = max(1, self._tiles.scores // len(factor))
        for part in rows.split(size):
            scores = self._factor[part] @ factor.T  # (part, column)
            scores[:, len(members) :] = _NEVER
            _hide_own(scores, self.own[part] - first)
            grouped = scores.unflatten(1, (-1, group))  # (part, group, member)
            best = grouped.amax(2) if group > 1 else scores
            margin = self._error[part] * longest + _LEAST_MARGIN  # (part,)
            if fresh and k <= len(members):
                # At least k members are as good, one in each of k groups, but for the margin.
                kth = best.topk(k, 1).values[:, -1]
                self.threshold[part] = kth - margin

            least = (self.threshold[part] - margin).to(scores.dtype)
            row, column = _above(grouped, best, least)
            self._score_again(part[row], column, members, first)

    def _score_again(
        self,
        query: Tensor,
        column: Tensor,
        members: Tensor,
        first: int,
    ) -> None:
        """Score candidates in float32, and let them wait for a merge.

        `query` and `column`, (candidate) each, say which query and which of the `members`.
        """
        import torch

        # The rows of so many candidates are a quarter of a tile, which a CPU's cache holds.
        size = max(1, self._tiles.scores // (4 * members.shape[1]))
        for q, c in zip(query.split(size), column.split(size), strict=True):
            products = self._x.index_select(0, q)  # (candidate, dim)
            products *= members.index_select(0, c)
            # In float64, so that the order of summation, which is up to the device, does not show.
            score = products.sum(1, dtype=torch.float64).float()
            self._waiting.append((q, c + first, score))
            self._num_waiting += len(q)
            # The rarer merges are, the less they cost; 16 candidates a query bound the memory.
            if self._num_waiting > 16 * len(self.threshold):
                self.merge()

    def merge(self) -> None:
        """Merge the candidates that wait into the k best, and raise the thresholds."""
        import torch

        if not self._num_waiting:
            return
        columns = map(torch.cat, zip(*self._waiting, strict=True))
        query, index, score = columns  # (candidate,) each
        self._waiting = []
        self._num_waiting = 0

        # Thresholds may have risen since.
        beats = score > self.threshold[query]
        if not beats.any():
            return
        candidates = _Candidates.of(
            query[beats],
            index[beats],
            score[beats],
            num_queries=len(self.threshold),
        )

        # A table of all queries by all candidates would be mostly empty, as few queries have more
        # than 64 candidates. It is taken in strips of columns, each with the rows that it needs.
        #
        #   candidates of query 0   [ 0 .. 63 | 64 .. 1,087 | 1,088 .. 1,500 ]   three strips
        #   candidates of query 1   [ 0 .. 12 ]                                  the first alone
        most = int(candidates.count.max())
        start = 0
        width = 64
        while start < most:
            stop = min(most, start + width)
            self._merge_strip(candidates, start, stop)
            start = stop
            width = 1_024
        self.threshold = self.score[:, -1].clone()

    def _merge_strip(
        self,
        candidates: _Candidates,
        start: int,
        stop: int,
    ) -> None:
        """Merge the candidates `start` to `stop` of every query that has as many."""
        import torch

        k = self.index.shape[1]
        reaches = candidates.count > start  # (query,): has a candidate in this strip
        queries = reaches.nonzero()[:, 0]
        row_of = reaches.cumsum(0) - 1  # query -> its row in the strip, for those that have one

        # (row, k + stop - start): the k best so far, then the candidates of the strip
        shape = (len(queries), k + stop - start)
        strip = torch.full(shape, _NEVER, device=queries.device)
        strip[:, :k] = self.score[queries]
        rank = candidates.rank
        in_strip = (rank >= start) & (rank < stop)
        row = row_of[candidates.query[in_strip]]
        column = k + rank[in_strip] - start
        strip[row, column] = candidates.score[in_strip]
        top, which = strip.topk(k, 1)  # (row, k)

        # Where `which` is below k the old number stays, elsewhere it is a candidate's. Both are
        # gathered for all: the clamps keep those that are thrown away within bounds.
        old = self.index[queries].gather(1, which.clamp(max=k - 1))
        first = candidates.first[queries] + start  # (row,): its first candidate of the strip
        candidate = first[:, None] + which - k
        last = len(candidates.index) - 1
        new = candidates.index[candidate.clamp(0, last)]
        merged = torch.where(which < k, old, new)
        self.index[queries] = merged.masked_fill(top == _NEVER, -1)
        self.score[queries] = top

    def result(self) -> Neighbors:
        """Numbers and similarities, best first, equal ones by number."""
        self.merge()
        if self._operand is not None:  # the compiled loops keep them in order
            return self.index.numpy(), self.score.numpy()

        # Sorted where they are: a GPU takes no time for what took a quarter of a join on its CPU.
        index, order = self.index.sort(dim=1, stable=True)  # (query, k)
        score, by_score = self.score.gather(1, order).sort(dim=1, descending=True, stable=True)
        return index.gather(1, by_score).cpu().numpy(), score.cpu().numpy()


@dataclass(frozen=True)
class _Candidates:
    """What may come among the k best; those of a query stand next to each other, in the order in
    which they came."""

    query: Tensor  # (candidate,)
    index: Tensor  # (candidate,)
    score: Tensor  # (candidate,)
    rank: Tensor  # (candidate,), from 0 within a query
    count: Tensor  # (query,)
    first: Tensor  # (query,), where its candidates begin

    @staticmethod
    def of(
        query: Tensor,
        index: Tensor,
        score: Tensor,
        num_queries: int,
    ) -> _Candidates:
        """Candidates (candidate) in any order, sorted by query."""
        import torch

        order = _by_row(query)
        query = query[order]
        count = torch.bincount(query, minlength=num_queries)
        first = count.cumsum(0) - count
        position = torch.arange(len(query), device=query.device)
        return _Candidates(
            query=query,
            index=index[order],
            score=score[order],
            rank=position - first[query],
            count=count,
            first=first,
        )


class _Operand:
    """Rows ready for matmuls, in bfloat16 where that is faster.

    Their number is filled up to a multiple of 64, since a bfloat16 matmul of a shape that has not
    been seen before takes a millisecond to set up.
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
        lengths = self.rows.norm(dim=1)
        self.longest = float(lengths.max()) if len(lengths) else 0.0

    def matmul(
        self,
        members: _Operand,
        chosen: Tensor | None = None,
        buffer: Tensor | None = None,
    ) -> topk.Scored:
        """The scores of these rows, or of the `chosen` ones, with the rows of `members`, and how
        far these can be off; the chosen rows are collected in `buffer`."""
        import torch

        factor = self.factor
        if chosen is not None and buffer is not None:
            rows = buffer[: len(chosen)]
            torch.index_select(self.factor, 0, chosen, out=rows)
            # What lies behind the chosen rows is left from before, and is never read.
            factor = buffer[: _up_to_64(len(chosen))]
        epsilon = _EPSILON_BFLOAT16 if self.bfloat16 else _EPSILON
        margin = epsilon * self.longest * members.longest
        scores = factor @ members.factor.T
        return topk.Scored(scores, self.rows, members.rows, margin)


def _up_to_64(count: int) -> int:
    return -(-count // 64) * 64


@cache
def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: some take two and a half times
    less, others twice as long."""
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
    short = seconds(x.bfloat16(), y.bfloat16())
    return short < 0.8 * seconds(x, y)


def _float_rows(array: np.ndarray, device: str) -> Tensor:
    """Float32 rows on the device, widened there: torch is much faster at it than numpy."""
    import torch

    return torch.tensor(array, device=device).float()


def _above(grouped: Tensor, best: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the scores (row, group, member) above `least` (row).

    Only groups whose `best` (row, group) is above are searched. Both searches wait for a GPU; few
    groups are left for the second.
    """
    row, group = (best > least[:, None]).nonzero(as_tuple=True)  # (found,)
    size = grouped.shape[2]
    if size == 1:
        return row, group
    is_above = grouped[row, group] > least[row, None]  # (found, member)
    found, member = is_above.nonzero(as_tuple=True)
    return row[found], size * group[found] + member


def _hide_own(scores: Tensor, own: Tensor) -> None:
    """Set every query's score with itself to -inf; `own` (row) is its column, which may lie outside
    of these."""
    last = scores.shape[1] - 1
    is_inside = (own >= 0) & (own <= last)
    # A query whose own column is elsewhere writes back what it reads: picking rows would wait for
    # a GPU.
    column = own.clamp(0, last)[:, None]  # (row, 1)
    hidden = scores.gather(1, column).masked_fill(is_inside[:, None], _NEVER)
    scores.scatter_(1, column, hidden)


def _bounds(sizes: np.ndarray) -> Int64[np.ndarray, " size_and_one"]:
    """Where parts of these sizes begin, end to end, and where the last one ends."""
    ends = np.cumsum(sizes)
    return np.concatenate(([0], ends)).astype(np.int64)


def _sortable(numbers: np.ndarray) -> np.ndarray:
    """The same numbers, in 16 bits if they fit: numpy sorts these by radix, several times faster
    than by comparison."""
    fits = len(numbers) > 0 and numbers.max() < 1 << 16
    return numbers.astype(np.uint16) if fits else numbers


def _by_cluster(
    clusters: np.ndarray,
    rows: np.ndarray,
) -> list[tuple[int, Int64[np.ndarray, " row"]]]:
    """Every cluster that a row probes, in order, and the rows that probe it."""
    if not len(clusters):
        return []
    order = np.argsort(_sortable(clusters), kind="stable")
    ordered = clusters[order]
    changes = np.flatnonzero(ordered[1:] != ordered[:-1])
    edges = changes + 1
    starts = np.concatenate(([0], edges))
    groups = np.split(rows[order], edges)
    names = ordered[starts].tolist()
    return list(zip(names, groups, strict=True))


def _by_row(row: Tensor) -> Tensor:
    """A stable order by row."""
    import torch

    if row.device.type != "cpu":
        return torch.argsort(row, stable=True)
    order = np.argsort(_sortable(row.numpy()), kind="stable")
    return torch.from_numpy(order)


def _near_together(
    points: Float32[np.ndarray, "point dim"],
) -> Int64[np.ndarray, " point"]:
    """An order in which near points stand near each other: the points are halved again and again,
    between two that are far apart."""
    order = np.arange(len(points))
    pieces = [(0, len(points))]
    while pieces:
        start, stop = pieces.pop()
        if stop - start < 3:
            continue
        piece = points[order[start:stop]]
        # Two far ends: the point least similar to the mean, and the one least similar to that.
        mean = piece.mean(0)
        left = piece[np.argmin(piece @ mean)]
        right = piece[np.argmin(piece @ left)]
        side = piece @ (left - right)
        by_side = np.argsort(side, kind="stable")
        order[start:stop] = order[start:stop][by_side]
        middle = (start + stop) // 2
        pieces.append((start, middle))
        pieces.append((middle, stop))
    return order.astype(np.int64)
