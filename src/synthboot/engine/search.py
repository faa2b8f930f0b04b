"""The neighbour search of `pair`: how to search, and the search itself by blocks of queries, in processes, kept as they are done.

A query block is 32,768 documents: what one worker does at a time and what a killed run does again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from synthboot import config
from synthboot.data import neighbors
from synthboot.data.artifacts import Progress, Shards, silent
from synthboot.data.disk import committed_folder, damage, read_json, save_array, write_json
from synthboot.data.neighbors import QUERY_BLOCK, Clusters
from synthboot.engine import local
from synthboot.errors import DataError


@dataclass(frozen=True)
class Search:
    """How neighbours are looked for. `centroids` and `probe_radius` belong to `ivf`; `recall` is (mean, low, high), the 95 %
    interval over queries that had no say in the choice; `curve` is (probe_radius, clusters looked into, recall)."""

    kind: str
    recall: tuple[float, float, float] = (1.0, 1.0, 1.0)
    probe_radius: float = 0.0
    curve: tuple[tuple[float, float, float], ...] = ()
    centroids: Float32[np.ndarray, "cluster dim"] | None = None

    def save(self, folder: Path) -> None:
        """Write all but the centroids, which lie with the clusters."""
        write_json(
            folder / "search.json", {k: v for k, v in vars(self).items() if k != "centroids"}
        )

    @staticmethod
    def load(folder: Path) -> Search:
        """Read what `save` wrote."""
        told = read_json(folder / "search.json")
        curve = tuple((float(a), float(b), float(c)) for a, b, c in told["curve"])
        centroids = folder / "centroids.npy"
        known = np.load(centroids, allow_pickle=False) if centroids.exists() else None
        return Search(told["kind"], tuple(told["recall"]), told["probe_radius"], curve, known)

    def describe(self) -> dict[str, Any]:
        """What the manifest and the report say of it."""
        known = {"search": self.kind, "recall": [round(r, 4) for r in self.recall]}
        if self.centroids is None:
            return known
        return known | {
            "clusters": len(self.centroids),
            "probe_radius": round(self.probe_radius, 4),
            "recall_by_radius": self.curve,
        }


@dataclass(frozen=True)
class Neighbors:
    """Every document's nearest others, best first, -1 at -inf where there are fewer; and, for every validation document,
    its nearest in D_pretrain."""

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
    """Exact or by clusters, and how far each document looks.

    The exact neighbours of `recall_queries` documents say what any probe_radius would find; half of them choose, half report.
    Raises DataError where `probe_radius` is set and falls short of `min_recall`.
    """
    docs = len(vectors)
    if cfg.search == "exact" or (cfg.search == "auto" and docs <= cfg.exact_docs) or docs < 4:
        return Search("exact")
    rng = np.random.default_rng([seed, 0x2ECA])
    queries = rng.permutation(docs)[: max(4, cfg.recall_queries)].astype(np.int64)
    progress(0.0, f"exact neighbours of {len(queries):,} documents")
    truth, _ = neighbors.exact(vectors[queries], vectors, cfg.num_neighbors, queries, device)
    progress(0.05, "fitting clusters")
    centroids = neighbors.fit_centroids(vectors, clusters(docs), seed, device)
    needed = neighbors.reach_needed(vectors, centroids, queries, truth, device)
    half = len(queries) // 2
    steps = np.unique(np.quantile(needed[:half], np.linspace(0.5, 1, 251))) + 1e-6
    lows = np.array([interval((needed[:half] <= step).mean(1))[1] for step in steps])
    enough = float(steps[np.argmax(lows >= min(cfg.min_recall, lows.max()))])
    probe_radius = enough if cfg.probe_radius is None else cfg.probe_radius
    reported = interval((needed[half:] <= probe_radius).mean(1))
    if cfg.probe_radius is not None and reported[0] < cfg.min_recall:
        raise DataError(
            f"pair.probe_radius: {cfg.probe_radius} finds {reported[0]:.3f} of the neighbours, less than pair.min_recall "
            f"{cfg.min_recall}; {enough:.4f} would do, or leave it unset"
        )
    curve = []
    for step in sorted({0.0, probe_radius / 2, probe_radius, 1.5 * probe_radius, 2 * probe_radius}):
        looks = neighbors.within_radius(vectors[queries[half:]], centroids, step, device)[1].mean()
        curve.append(
            (
                round(step, 4),
                round(float(looks), 2),
                round(float((needed[half:] <= step).mean()), 4),
            )
        )
    return Search("ivf", reported, probe_radius, tuple(curve), centroids)


def clusters(docs: int) -> int:
    """How many clusters: sorting into c clusters costs docs x c products, looking into p of them docs x p x docs / c, which is
    least at the root of p x docs. Few do for a small set, where fitting them is what costs; a large one wants clusters no
    larger than the groups its documents fall into, here 250, or p grows."""
    root = docs**0.5
    return max(2, min(docs // 8, round(min(max(1.25 * root, docs / 250), 4 * root))))


def flops(found: Mapping[str, Any], docs: int, dim: int) -> float:
    """FLOPs of finding everyone's neighbours, by the report of the pairs."""
    if found.get("search") != "ivf":
        return 2.0 * docs**2 * dim
    looks = next(
        looks
        for probe_radius, looks, _ in found["recall_by_radius"]
        if probe_radius >= round(found["probe_radius"], 4)
    )
    return 2.0 * docs * dim * (found["clusters"] + looks * docs / found["clusters"])


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
    """All neighbours. `folder` holds the clusters and the finished query blocks, and what is there already is not done
    again; it is no longer needed afterwards. Memory is the vectors once, the result, and a block for each worker."""
    with nullcontext(folder) if folder is not None else TemporaryDirectory() as place:
        chosen, k = Path(place) / "search", cfg.num_neighbors
        if damage(
            chosen
        ):  # or not there yet; the query blocks hang on it alone, which comes out the same
            search = choose_search(vectors, cfg, seed, device, progress)
            with committed_folder(chosen) as out:
                search.save(out)
                if search.centroids is not None:
                    sorting = partial(_part, progress, 0.05, 0.1)
                    Clusters.build(
                        vectors.astype(np.float16),
                        search.centroids,
                        search.probe_radius,
                        device,
                        sorting,
                    ).save(out)
                else:
                    save_array(out / "vectors.npy", vectors)
        query_blocks, starts = (
            Shards(Path(place) / "query_blocks"),
            range(0, len(vectors), QUERY_BLOCK),
        )
        missing = [i for i in range(len(starts)) if not query_blocks.done(i)]
        found = local.imap(_tiler, (str(chosen), k, device), [starts[i] for i in missing], workers)
        for i, arrays in zip(missing, found, strict=True):
            query_blocks.write(i, partial(_save, arrays))
            progress(
                0.1 + 0.5 * (i + 1) / len(starts),
                f"neighbours of {min(len(vectors), starts[i] + QUERY_BLOCK):,} documents",
            )
        query_blocks.close(len(starts))
        index, score = (
            np.empty((len(vectors), k), np.int64),
            np.empty((len(vectors), k), np.float32),
        )
        for shard in query_blocks:
            rows = np.load(shard / "rows.npy", allow_pickle=False)
            index[rows] = np.load(shard / "index.npy", allow_pickle=False)
            score[rows] = np.load(shard / "score.npy", allow_pickle=False)
        result = Neighbors(index, score, Search.load(chosen))
        if validation is None:
            return result
        if result.search.centroids is not None:
            unseen = Clusters.load(chosen).search(
                np.asarray(validation, np.float16), k, result.search.probe_radius, device
            )
        else:
            unseen = neighbors.exact(validation, vectors, k, None, device)
        return Neighbors(index, score, result.search, *unseen)


def interval(values: Float[np.ndarray, " value"]) -> tuple[float, float, float]:
    """The mean of many values and its 95 % interval, by its standard error."""
    mean = float(values.mean())
    error = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return mean, mean - error, mean + error


def _part(progress: Progress, start: float, stop: float, done: float, words: str) -> None:
    """Progress of a part of the work, between two shares of the whole."""
    progress(start + (stop - start) * done, words)


def _tiler(folder: str, k: int, device: str) -> Callable[[int], tuple[np.ndarray, ...]]:
    """In a worker: from a query block's first place to its documents, their neighbours and the similarities."""
    if (Path(folder) / "centroids.npy").exists():
        clusters = Clusters.load(Path(folder))
        docs = len(clusters.order)
        return lambda start: (
            np.asarray(clusters.order[start : start + QUERY_BLOCK]),
            *clusters.join(start, min(start + QUERY_BLOCK, docs), k, device),
        )  # fmt: skip
    vectors = np.load(Path(folder) / "vectors.npy", mmap_mode="r", allow_pickle=False)

    def exact(start: int) -> tuple[np.ndarray, ...]:
        rows = np.arange(start, min(start + QUERY_BLOCK, len(vectors)))
        return rows, *neighbors.exact(np.asarray(vectors[rows]), vectors, k, rows, device)

    return exact


def _save(arrays: tuple[np.ndarray, ...], folder: Path) -> dict[str, Any]:
    for name, array in zip(("rows", "index", "score"), arrays, strict=True):
        save_array(folder / f"{name}.npy", array)
    return {"docs": len(arrays[0])}
