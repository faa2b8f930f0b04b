"""The neighbour search of `pair`: how to search, and the search itself.

It goes by query blocks, in processes, and each is kept as soon as it is done. A query block
(`query_block` documents) is what one worker does at a time, and what a killed run does again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Int64

from synthboot import config, pool
from synthboot.artifacts.pairs import Searched
from synthboot.artifacts.store import Progress, Shards, silent, within
from synthboot.data import lock
from synthboot.data.disk import (
    committed_folder,
    damage,
    load_array,
    read_json,
    save_array,
    write_json,
)
from synthboot.errors import DataError, below
from synthboot.neighbors import join
from synthboot.neighbors.join import QUERY_BLOCK, Clusters
from synthboot.rng import rng

BLOCKS = "query_blocks"
"""Where finished query blocks lie."""
_SEARCH = "search"


@dataclass(frozen=True)
class Search:
    """How neighbours are searched for.

    `centroids` and `probe_radius` belong to `ivf`; `recall` is (mean, low, high), the 95 % interval
    over queries that had no part in the choice; `curve` is (probe_radius, clusters probed, recall).
    """

    kind: Literal["exact", "ivf"]
    recall: tuple[float, float, float] = (1.0, 1.0, 1.0)
    probe_radius: float = 0.0
    curve: tuple[tuple[float, float, float], ...] = ()
    centroids: Float32[np.ndarray, "cluster dim"] | None = None

    def save(self, folder: Path) -> None:
        """Write all but the centroids, which lie with the clusters."""
        settings = dict(vars(self))
        del settings["centroids"]
        write_json(folder / "search.json", settings)

    @staticmethod
    def load(folder: Path) -> Search:
        """Read what `save` wrote."""
        settings = read_json(folder / "search.json")
        curve = []
        for point in settings["curve"]:
            probe_radius, probes, recall = map(float, point)
            curve.append((probe_radius, probes, recall))
        path = folder / "centroids.npy"
        return Search(
            kind=settings["kind"],
            recall=tuple(settings["recall"]),
            probe_radius=settings["probe_radius"],
            curve=tuple(curve),
            centroids=load_array(path) if path.exists() else None,
        )

    def describe(self) -> Searched:
        """What the manifest and the report say of it."""
        mean, low, high = (round(value, 4) for value in self.recall)
        return Searched(
            kind=self.kind,
            recall=(mean, low, high),
            clusters=0 if self.centroids is None else len(self.centroids),
            probe_radius=round(self.probe_radius, 4),
            by_radius=self.curve,
        )


@dataclass(frozen=True)
class Neighbors:
    """Every document's nearest others, best first, -1 at -inf where there are fewer.

    `other_index` and `other_score` are, for every validation document, its nearest in D_pretrain.
    """

    index: Int64[np.ndarray, "doc k"]
    score: Float32[np.ndarray, "doc k"]
    search: Search = Search("exact")
    other_index: Int64[np.ndarray, "other k"] | None = None
    other_score: Float32[np.ndarray, "other k"] | None = None


def choose_search(
    vectors: Float[np.ndarray, "doc dim"],
    cfg: config.Pair,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> Search:
    """Exact or by clusters, and how far each document probes.

    The exact neighbours of `recall_queries` documents say what any probe_radius would find; half of
    them choose, half report. Raises DataError where `probe_radius` is set and falls short of
    `min_recall`.
    """
    docs = len(vectors)
    is_small = cfg.search == "auto" and docs <= cfg.exact_docs
    if cfg.search == "exact" or is_small or docs < 4:
        return Search("exact")
    random = rng(seed, "search.recall")
    queries = random.permutation(docs)[: max(4, cfg.recall_queries)].astype(np.int64)
    progress(0.0, f"exact neighbours of {len(queries):,} documents")
    truth, _ = join.exact(vectors[queries], vectors, cfg.num_neighbors, queries, device)
    progress(0.05, "fitting clusters")
    centroids = join.fit_centroids(vectors, clusters(docs), seed, device)
    needed = join.radius_needed(vectors, centroids, queries, truth, device)  # (query, k)

    # One half chooses the radius, the other reports its recall, so that the report is not biased.
    half = len(queries) // 2
    enough = _radius_for(needed[:half], cfg.min_recall)
    reports = needed[half:]
    probe_radius = enough if cfg.probe_radius is None else cfg.probe_radius
    recall = interval((reports <= probe_radius).mean(1))
    if cfg.probe_radius is not None and recall[0] < cfg.min_recall:
        raise DataError(
            f"pair.probe_radius: {cfg.probe_radius} finds "
            f"{below(recall[0], cfg.min_recall, digits=3)} of the neighbours, "
            f"less than pair.min_recall {cfg.min_recall}; {enough:.4f} would do, or leave it unset"
        )

    curve = []
    reporting = vectors[queries[half:]]
    for radius in sorted({factor * probe_radius for factor in (0.0, 0.5, 1.0, 1.5, 2.0)}):
        _, counts = join.within_radius(reporting, centroids, radius, device)
        probes = float(counts.mean())
        recall_here = float((reports <= radius).mean())
        curve.append((round(radius, 4), round(probes, 2), round(recall_here, 4)))
    return Search("ivf", recall, probe_radius, tuple(curve), centroids)


def _radius_for(needed: Float32[np.ndarray, "query k"], min_recall: float) -> float:
    """The least radius whose recall is surely enough; if none is, one that finds the most."""
    quantiles = np.quantile(needed, np.linspace(0.5, 1, 251))
    radii = np.unique(quantiles) + 1e-6
    lows = np.empty(len(radii))
    for i, radius in enumerate(radii):
        recalls = (needed <= radius).mean(1)  # (query, k) -> (query,)
        _, lows[i], _ = interval(recalls)
    target = min(min_recall, lows.max())
    return float(radii[np.argmax(lows >= target)])


def clusters(docs: int) -> int:
    """How many clusters.

    Sorting into c clusters costs docs x c scores, probing p of them docs x p x docs / c, which is
    least at the root of p x docs. Few do for a small set, where fitting them is what costs; a large
    one wants clusters no larger than the groups its documents fall into, here 250, or p grows.
    """
    root = docs**0.5
    wanted = max(1.25 * root, docs / 250)
    most = min(docs // 8, round(min(wanted, 4 * root)))
    return max(2, most)


def flops(
    search: Searched | None,
    docs: int,
    dim: int,
) -> float:
    """FLOPs of finding everyone's neighbours so; without a search nothing was compared."""
    if search is None:
        return 0.0
    if search.kind == "exact":
        return 2.0 * docs**2 * dim
    probes = next(count for radius, count, _ in search.by_radius if radius >= search.probe_radius)
    scores = search.clusters + probes * docs / search.clusters  # of each document
    return 2.0 * docs * dim * scores


def nearest(
    vectors: Float[np.ndarray, "doc dim"],
    cfg: config.Pair,
    seed: int = 0,
    validation: Float[np.ndarray, "other dim"] | None = None,
    device: str = "cpu",
    folder: Path | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Neighbors:
    """All neighbours.

    `folder` holds the clusters and the finished query blocks, and what is there already is not done
    again; it is no longer needed afterwards. Memory is the vectors once, the result, and a block
    for each worker.
    """
    k = cfg.num_neighbors
    with nullcontext(folder) if folder is not None else TemporaryDirectory() as work:
        count = blocks(len(vectors))
        query_blocks = search_blocks(
            vectors=vectors,
            cfg=cfg,
            seed=seed,
            device=device,
            folder=Path(work),
            workers=workers,
            progress=progress,
            wanted=range(count),
        )
        query_blocks.close(count)

        # Blocks go by position in the clusters, the result by document.
        index = np.empty((len(vectors), k), np.int64)
        score = np.empty((len(vectors), k), np.float32)
        for shard in query_blocks:
            rows = load_array(shard / "rows.npy")
            index[rows] = load_array(shard / "index.npy")  # (row, k)
            score[rows] = load_array(shard / "score.npy")  # (row, k)

        chosen = Path(work) / _SEARCH
        search = Search.load(chosen)
        if validation is None:
            return Neighbors(index, score, search)
        if search.centroids is None:
            other = join.exact(validation, vectors, k, None, device)
        else:
            queries = np.asarray(validation, np.float16)
            other = Clusters.load(chosen).search(queries, k, search.probe_radius, device)
        return Neighbors(index, score, search, *other)


def blocks(docs: int) -> int:
    """How many query blocks documents make."""
    return -(-docs // query_block(docs))


def query_block(docs: int) -> int:
    """How many documents a query block has.

    The more of them probe a cluster at once, the less its matmul costs for each; an eighth leaves
    work for several processes, and the most bounds what each of them holds.
    """
    return min(4 * QUERY_BLOCK, max(QUERY_BLOCK, docs // 8))


def search_blocks(
    vectors: Float[np.ndarray, "doc dim"],
    cfg: config.Pair,
    seed: int,
    device: str,
    folder: Path,
    workers: int,
    progress: Progress,
    wanted: Iterable[int],
) -> Shards:
    """The query blocks in `folder`, once the `wanted` ones are there.

    Processes that make different ones side by side share how to search: the first of them chooses,
    and the others wait for it.
    """
    chosen = folder / _SEARCH
    with lock.held(folder, "search.lock", lock.FOREVER):
        # Damaged, or not there yet. Query blocks depend on it alone, and it comes out the same.
        if damage(chosen):
            search = choose_search(vectors, cfg, seed, device, progress)
            with committed_folder(chosen) as out:
                search.save(out)
                if search.centroids is None:
                    save_array(out / "vectors.npy", vectors)
                else:
                    Clusters.build(
                        vectors=vectors,
                        centroids=search.centroids,
                        probe_radius=search.probe_radius,
                        folder=out,
                        device=device,
                        workers=workers,
                        progress=within(progress, 0.05, 0.1),
                    )

    query_blocks = Shards(folder / BLOCKS)
    block = query_block(len(vectors))
    starts = range(0, len(vectors), block)

    def writers(missing: list[int]) -> Iterator[partial[dict[str, Any]]]:
        missing_starts = [starts[i] for i in missing]
        arguments = (str(chosen), cfg.num_neighbors, device)
        for arrays in pool.imap(_block_search, arguments, missing_starts, workers):
            yield partial(_save, arrays)

    for i, _ in query_blocks.make(wanted, writers):
        done = 0.1 + 0.5 * (i + 1) / len(starts)
        docs = min(len(vectors), starts[i] + block)
        progress(done, f"neighbours of {docs:,} documents")
    return query_blocks


def interval(values: Float[np.ndarray, " value"]) -> tuple[float, float, float]:
    """The mean of many values and its 95 % interval, by its standard error."""
    mean = float(values.mean())
    error = 0.0
    if len(values) > 1:
        error = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - error, mean + error


def _block_search(
    folder: str,
    k: int,
    device: str,
) -> Callable[[int], tuple[np.ndarray, ...]]:
    """In a worker: from the start of a query block to its documents, neighbours, similarities."""
    if (Path(folder) / "centroids.npy").exists():
        clusters = Clusters.load(Path(folder))

        def by_clusters(start: int) -> tuple[np.ndarray, ...]:
            docs = len(clusters.order)
            stop = min(start + query_block(docs), docs)
            rows = np.asarray(clusters.order[start:stop])
            index, score = clusters.join(start, stop, k, device)
            return rows, index, score

        return by_clusters

    vectors = load_array(Path(folder) / "vectors.npy", mapped=True)

    def exact(start: int) -> tuple[np.ndarray, ...]:
        docs = len(vectors)
        rows = np.arange(start, min(start + query_block(docs), docs))
        queries = np.asarray(vectors[rows])
        index, score = join.exact(queries, vectors, k, rows, device)
        return rows, index, score

    return exact


def _save(arrays: tuple[np.ndarray, ...], folder: Path) -> dict[str, Any]:
    rows, index, score = arrays
    save_array(folder / "rows.npy", rows)
    save_array(folder / "index.npy", index)
    save_array(folder / "score.npy", score)
    return {"docs": len(rows)}
