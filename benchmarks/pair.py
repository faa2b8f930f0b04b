"""Pairing beside its peers, in one go: who finds 16 neighbours of every document first?

    python benchmarks/pair.py join --docs 100000              # clustered vectors; needs benchmarks/requirements.txt
    python benchmarks/pair.py join --vectors FOLDER           # the vectors of a run's 02-embed
    python benchmarks/pair.py growth --sizes 25000 1000000    # this project alone: time, memory, recall
    python benchmarks/pair.py exact --docs 50000              # all with all, as a share of the matrix-product rate
    python benchmarks/pair.py gpu --sizes 250000 1000000      # on a GPU: all with all, beside torch, and by clusters

In `join` and `growth` every method runs in a process of its own, with the memory settings of our workers, pinned to the same
core with one thread. Total time counts building the index, and for this project also measuring its recall, its temporary files
and all. A peer's search effort is the least of a ladder that reaches the recall on 2,000 queries; finding it is not counted.
Medians of `--repeat` rounds, interleaved in `join`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[name] = "1"

import draw
import numpy as np

from synthboot import pool

MEMORY = {name: value for name, value in pool.ENVIRONMENT.items() if name.startswith("MALLOC")}
"""What our workers have: freed memory is kept."""

K = 16
"""Neighbours of each vector."""
WANTED = 0.95
"""The recall to reach."""
LADDER = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Search efforts that are tried, such as lists probed."""

Truth = tuple[np.ndarray, np.ndarray]
"""Sampled queries, and their true neighbours."""

Method = Callable[[np.ndarray, Truth], dict[str, Any]]


def clustered(docs: int, dim: int = 256, seed: int = 0) -> np.ndarray:
    """Unit vectors like those of text: clusters of 500 on average that overlap, and directions whose weight falls as the
    square root of their number, about centers as within clusters."""
    rng = np.random.default_rng(seed)
    weight = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    centers = weight * rng.standard_normal((max(1, docs // 500), dim), np.float32)
    share = rng.dirichlet(np.ones(len(centers)))
    rows = np.empty((docs, dim), np.float16)
    for start in range(0, docs, 65_536):
        count = min(65_536, docs - start)
        drawn = centers[rng.choice(len(centers), count, p=share)] + weight * rng.standard_normal((count, dim), np.float32)
        rows[start : start + count] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return rows


def effort(search: Callable[[np.ndarray, int], np.ndarray], x: np.ndarray, truth: Truth) -> int:
    """The least step of the ladder at which the recall is reached; the last where none is."""
    for step in LADDER:
        if recall(search(x[truth[0]], step), truth, None) >= WANTED:
            return step
    return LADDER[-1]


def recall(found: np.ndarray, truth: Truth, rows: np.ndarray | None) -> float:
    """Share of the true neighbours found, oneself not counted, for the queries of `truth`."""
    found = found if rows is None else found[rows]
    shares = []
    for query, got, want in zip(truth[0], found, truth[1], strict=True):
        shares.append(np.isin(want, [g for g in got if g != query][:K]).mean())
    return float(np.mean(shares))


# -- methods: each gets the vectors, builds, and answers all of them; settings as the peers' documentation advises


def synthboot(x: np.ndarray, truth: Truth) -> dict[str, Any]:
    import torch

    from synthboot import config
    from synthboot.neighbors import search

    torch.set_num_threads(1)
    begun = time.perf_counter()
    found = search.nearest(x, config.Pair(num_neighbors=K, search="ivf", min_recall=WANTED))
    told = found.search.describe()
    looks = next(clusters for radius, clusters, _ in told.by_radius if round(radius, 4) == told.probe_radius)
    settings = f"{told.clusters} clusters, {looks:.1f} looked into on average"
    return {"index": found.index, "build": 0.0, "search": time.perf_counter() - begun, "settings": settings}


@dataclass(frozen=True)
class Index:
    """A peer's index of all vectors.

    `search` gives the K + 1 nearest of each query, oneself included, at a step of the ladder of search efforts;
    `settings` says in words what it was built with and what such a step sets.
    """

    search: Callable[[np.ndarray, int], np.ndarray]
    settings: Callable[[int], str]


def peer(library: str, build: Callable[[np.ndarray], Index]) -> Method:
    """Build an index, take the least effort that reaches the recall, and answer all; the import is not counted."""

    def run(x: np.ndarray, truth: Truth) -> dict[str, Any]:
        import_module(library)
        begun = time.perf_counter()
        index = build(x)
        built = time.perf_counter() - begun

        step = effort(index.search, x, truth)
        begun = time.perf_counter()
        found = index.search(x, step)
        searched = time.perf_counter() - begun
        return {"index": found, "build": built, "search": searched, "settings": index.settings(step)}

    return run


def faiss_ivf(x: np.ndarray, storage: str, roots: int) -> Index:
    """Inverted lists, `roots` times the square root of the vectors' number of them."""
    import faiss

    faiss.omp_set_num_threads(1)
    x = x.astype(np.float32)
    lists = int(roots * len(x) ** 0.5)
    index: Any = faiss.index_factory(x.shape[1], f"IVF{lists},{storage}", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 5
    index.cp.max_points_per_centroid = 40  # 39 is the least it takes without a warning
    index.train(x)
    index.add(x)

    def search(queries: np.ndarray, step: int) -> np.ndarray:
        index.nprobe = step
        return index.search(queries.astype(np.float32), K + 1)[1]

    return Index(search, lambda step: f"{lists} lists, nprobe {step}")


def faiss_hnsw(x: np.ndarray) -> Index:
    import faiss

    faiss.omp_set_num_threads(1)
    x = x.astype(np.float32)
    index: Any = faiss.index_factory(x.shape[1], "HNSW32", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 64
    index.add(x)

    def search(queries: np.ndarray, step: int) -> np.ndarray:
        index.hnsw.efSearch = step
        return index.search(queries.astype(np.float32), K + 1)[1]

    return Index(search, lambda step: f"M 32, efConstruction 64, efSearch {step}")


def hnswlib(x: np.ndarray) -> Index:
    import hnswlib as library

    index = library.Index("ip", x.shape[1])
    index.init_index(len(x), M=16, ef_construction=100)
    index.set_num_threads(1)
    index.add_items(x.astype(np.float32))

    def search(queries: np.ndarray, step: int) -> np.ndarray:
        index.set_ef(max(step, K + 1))
        return index.knn_query(queries.astype(np.float32), K + 1)[0].astype(np.int64)

    return Index(search, lambda step: f"M 16, ef_construction 100, ef {max(step, K + 1)}")


def usearch(x: np.ndarray) -> Index:
    from usearch.index import Index as Library

    index = Library(ndim=x.shape[1], metric="ip", dtype="bf16", connectivity=16, expansion_add=100)
    index.add(np.arange(len(x)), x.astype(np.float32), threads=1)

    def search(queries: np.ndarray, step: int) -> np.ndarray:
        index.expansion_search = step
        return np.asarray(index.search(queries.astype(np.float32), K + 1, threads=1).keys).astype(np.int64)

    return Index(search, lambda step: f"bf16, connectivity 16, expansion_add 100, expansion_search {step}")


def scann(x: np.ndarray) -> Index:
    import scann as library

    x = x.astype(np.float32)
    leaves = int(2 * len(x) ** 0.5)
    builder = library.scann_ops_pybind.builder(x, K + 1, "dot_product").set_n_training_threads(1)
    built = builder.tree(leaves, 32, training_sample_size=min(len(x), 64 * leaves))
    index = built.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(8 * K).build()

    def search(queries: np.ndarray, step: int) -> np.ndarray:
        return index.search_batched(queries.astype(np.float32), leaves_to_search=step)[0].astype(np.int64)

    return Index(search, lambda step: f"{leaves} leaves, AH 2 dimensions a block, {step} searched, {8 * K} reordered")


def pynndescent(x: np.ndarray, truth: Truth) -> dict[str, Any]:
    from pynndescent import NNDescent

    NNDescent(x[:2_000].astype(np.float32), metric="dot", n_neighbors=K + 1, n_jobs=1)  # compile, not counted
    begun = time.perf_counter()
    index = NNDescent(x.astype(np.float32), metric="dot", n_neighbors=30, n_jobs=1, random_state=0)
    found = index.neighbor_graph[0][:, : K + 1]
    return {"index": found, "build": 0.0, "search": time.perf_counter() - begun, "settings": "graph of 30 neighbours"}


METHODS: dict[str, Method] = {
    "synthboot": synthboot,
    "faiss IVF-Flat": peer("faiss", partial(faiss_ivf, storage="Flat", roots=2)),
    "faiss IVF-SQ8": peer("faiss", partial(faiss_ivf, storage="SQ8", roots=2)),
    "faiss IVF-SQ8, more lists": peer("faiss", partial(faiss_ivf, storage="SQ8", roots=4)),
    "faiss HNSW": peer("faiss", faiss_hnsw),
    "hnswlib": peer("hnswlib", hnswlib),
    "usearch": peer("usearch.index", usearch),
    "scann": peer("scann", scann),
    "pynndescent": pynndescent,
}


def child(folder: str, method: str) -> None:
    """One method in this process; prints JSON."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    place = Path(folder)
    x = np.load(place / "vectors.npy", mmap_mode="r" if method == "synthboot" else None)
    truth = (np.load(place / "queries.npy"), np.load(place / "truth.npy"))
    result = METHODS[method](x, truth)
    index = result.pop("index")
    result["recall"] = recall(index, truth, truth[0])
    result["total"] = result["build"] + result["search"]
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    result["memory_bytes"] = int(peak.split()[1]) * 1024
    print(json.dumps(result))


def one(folder: str, method: str) -> dict[str, Any]:
    """A method in a process of its own; what went wrong where something did."""
    command = [sys.executable, __file__, "child", folder, method]
    done = subprocess.run(command, env=os.environ | MEMORY, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def lay_out(folder: str, x: np.ndarray, queries: int = 2_000) -> None:
    """Vectors, sampled queries and their true neighbours, by plain numpy."""
    place, rng = Path(folder), np.random.default_rng(7)
    np.save(place / "vectors.npy", x)
    chosen = rng.permutation(len(x))[:queries]
    best = np.full((len(chosen), K), -np.inf, np.float32)
    index = np.full((len(chosen), K), -1)
    given = x[chosen].astype(np.float32)
    for start in range(0, len(x), 16_384):
        scores = given @ x[start : start + 16_384].astype(np.float32).T
        inside = (chosen >= start) & (chosen < start + 16_384)
        scores[inside, chosen[inside] - start] = -np.inf
        numbers = np.arange(start, start + scores.shape[1])[None].repeat(len(chosen), 0)
        scores, numbers = np.hstack((best, scores)), np.hstack((index, numbers))
        top = np.argpartition(-scores, K - 1, 1)[:, :K]
        best, index = np.take_along_axis(scores, top, 1), np.take_along_axis(numbers, top, 1)
    np.save(place / "queries.npy", chosen)
    np.save(place / "truth.npy", index)


def join(args: argparse.Namespace) -> dict[str, Any]:
    """All methods, interleaved over rounds; ratios to this project."""
    x = clustered(args.docs) if args.vectors is None else read(args.vectors)
    if args.vectors is not None and args.docs:
        x = x[: args.docs]
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in args.methods}
    with tempfile.TemporaryDirectory() as folder:
        lay_out(folder, x)
        for turn in range(args.repeat):
            for name in args.methods:
                if any("error" in result for result in rounds[name]):
                    continue
                rounds[name].append(one(folder, name))
                print(f"round {turn + 1}: {name}: {rounds[name][-1]}", file=sys.stderr, flush=True)
    rows = {}
    for name, results in rounds.items():
        failed = [result for result in results if "error" in result]
        if failed:
            rows[name] = failed[0]
            continue
        keys = ("build", "search", "total", "recall", "memory_bytes")
        middle = {key: statistics.median(r[key] for r in results) for key in keys}
        rows[name] = middle | {"settings": results[0]["settings"], "rounds": [r["total"] for r in results]}
    ours = rows["synthboot"]["total"]
    print(f"{len(x):,} vectors of {x.shape[1]} dimensions, {K} neighbours, one core, medians of {args.repeat}\n")
    print("| method | settings | seconds | index | recall | GiB | times synthboot's |\n|---|---|---|---|---|---|---|")
    for name, row in sorted(rows.items(), key=lambda item: item[1].get("total", 1e9)):
        if "error" in row:
            print(f"| {name} | failed: {row['error']} | | | | | |")
            continue
        print(
            f"| {name} | {row['settings']} | {row['total']:.1f} | {row['build']:.1f} | {row['recall']:.3f} "
            f"| {row['memory_bytes'] / 2**30:.2f} | {row['total'] / ours:.2f} |"
        )
    reached = [r["total"] / ours for n, r in rows.items() if n != "synthboot" and r.get("recall", 0) >= WANTED - 0.005]
    if reached:
        print(f"\nthe best peer that reaches the recall takes {min(reached):.2f} times as long")
    return {"docs": len(x), "dim": x.shape[1], "k": K, "methods": rows}


def growth(args: argparse.Namespace) -> dict[str, Any]:
    """This project alone over sizes; the exponent of time by least squares in logarithms."""
    rows = []
    for docs in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            lay_out(folder, clustered(docs), 1_000)
            results = [one(folder, "synthboot") for _ in range(args.repeat if docs < 500_000 else 1)]
        failed = [result["error"] for result in results if "error" in result]
        if failed:  # what was measured before stands
            print(f"{docs:,} vectors: failed: {failed[0]}", file=sys.stderr)
            break
        middle = {key: statistics.median(r[key] for r in results) for key in ("total", "recall", "memory_bytes")}
        rows.append({"docs": docs, **middle, "settings": results[0]["settings"]})
        print(f"{rows[-1]}", file=sys.stderr, flush=True)
    print("| vectors | seconds | recall | GiB | settings |\n|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['docs']:,} | {r['total']:.1f} | {r['recall']:.3f} | {r['memory_bytes'] / 2**30:.2f} | {r['settings']} |")
    docs, seconds = np.log([r["docs"] for r in rows]), np.log([r["total"] for r in rows])
    slope = float(np.polyfit(docs, seconds, 1)[0])
    print(f"\ntime grows as documents to the power {slope:.2f}")
    if args.plot:
        Path(args.plot).write_text(drawn(rows))
    return {"rows": rows, "exponent": slope}


def drawn(rows: list[dict[str, Any]]) -> str:
    """Seconds, memory and recall over the number of documents, as SVG; the first two on logarithmic scales."""
    x, ticks = [math.log10(r["docs"]) for r in rows], [f"{r['docs'] // 1000}k" for r in rows]
    seconds, gib = [r["total"] for r in rows], [r["memory_bytes"] / 2**30 for r in rows]
    recall = [min(r["recall"], 1.0) for r in rows]
    return draw.svg(
        [
            draw.Line("seconds", x, [math.log10(s) for s in seconds], ticks, [f"{s:.1f}" for s in seconds]),
            draw.Line("GiB", x, [math.log10(g) for g in gib], ticks, [f"{g:.2f}" for g in gib]),
            draw.Line("recall", x, recall, ticks, [f"{r:.3f}" for r in recall], low=0.9, high=1.0),
        ]
    )


def exact(args: argparse.Namespace) -> dict[str, Any]:
    """All with all: the rate of its matrix products, top 16 included, beside that of bare products of the same blocks."""
    import torch

    from synthboot.neighbors import join

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    x = clustered(args.docs)
    a, b = torch.randn(512, x.shape[1]), torch.randn(8_192, x.shape[1])
    shares = []
    for _ in range(args.repeat):
        begun = time.perf_counter()
        for _ in range(40):
            a @ b.T
        bare = 40 * 2 * a.shape[0] * b.numel() / (time.perf_counter() - begun)
        begun = time.perf_counter()
        for start in range(0, len(x), join.QUERY_BLOCK):
            rows = np.arange(start, min(start + join.QUERY_BLOCK, len(x)))
            join.exact(x[rows], x, K, rows)
        rate = 2 * len(x) ** 2 * x.shape[1] / (time.perf_counter() - begun)
        shares.append((rate / bare, rate / 1e9, bare / 1e9))
        print(f"{rate / 1e9:.0f} of {bare / 1e9:.0f} GFLOP/s", file=sys.stderr, flush=True)
    share, rate, bare = sorted(shares)[len(shares) // 2]
    print(f"exact, {len(x):,} vectors: {share:.0%} of the float32 matrix-product rate ({rate:.0f} of {bare:.0f} GFLOP/s)")
    return {"docs": len(x), "share": share, "gflops": rate, "product_gflops": bare, "all": shares}


def gpu(args: argparse.Namespace) -> dict[str, Any]:
    """On one device: all with all, beside plain torch on a part of the queries, and by clusters."""
    import torch

    from synthboot import config
    from synthboot.neighbors import join, search

    device, is_gpu = args.device, args.device != "cpu"
    name = torch.cuda.get_device_name(device) if is_gpu else "CPU"

    def timed(work: Callable[[], Any], repeat: int = args.repeat) -> tuple[float, Any]:
        taken = []
        for _ in range(repeat):
            begun = time.perf_counter()
            result = work()
            if is_gpu:
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken), result

    def all_with_all(x: np.ndarray, queries: int) -> tuple[np.ndarray, ...]:
        found = []
        for start in range(0, queries, join.QUERY_BLOCK):
            rows = np.arange(start, min(start + join.QUERY_BLOCK, queries))
            found.append(join.exact(x[rows[0] : rows[-1] + 1], x, K, rows, device))
        return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))

    def by_clusters(x: np.ndarray) -> search.Neighbors:
        return search.nearest(x, config.Pair(num_neighbors=K, search="ivf", min_recall=WANTED), device=device, workers=1)

    small = drawn_on(device, 4_000)
    all_with_all(small, 4_000), torch_alone(small, 4_000, device), by_clusters(small)  # warmed
    square = torch.randn(2 * [8_192 if is_gpu else 512], device=device).half()
    card = 2 * len(square) ** 3 / timed(lambda: square @ square, 9)[0]
    print(f"{name}: float16 matmuls at {card / 1e12:.3g} TFLOP/s")
    rows = []
    for docs in args.sizes:
        x, part = drawn_on(device, docs), min(docs, 65_536)
        whole, (index, score) = timed(partial(all_with_all, x, docs))
        ours, _ = timed(partial(all_with_all, x, part))
        peer, (_, other) = timed(partial(torch_alone, x, part, device))
        clusters, found = timed(partial(by_clusters, x))
        told, sample = found.search.describe(), np.random.default_rng(7).permutation(docs)[:2_000]
        rate = 2 * docs**2 * x.shape[1] / whole
        row = {"docs": docs, "seconds": whole, "scores_a_second": docs**2 / whole, "flops": rate, "share_of_card": rate / card}
        row |= {"part": part, "part_seconds": ours, "torch_seconds": peer}
        row |= {"ours_better_by": float((score[:part] - other).max()), "ours_worse_by": float((other - score[:part]).max())}
        row |= {"ivf_seconds": clusters, "ivf_recall": recall(found.index, (sample, index[sample]), sample)}
        rows.append(row | {"ivf_recall_told": told.recall, "clusters": told.clusters, "probe_radius": told.probe_radius})
        print(f"{docs:,} vectors: {whole:.2f} s, {docs**2 / whole:.3g} scores/s, {rate / card:.0%} of the card's rate")
        print(f"  {part:,} queries: {ours:.2f} s, torch {peer:.2f} s, {peer / ours:.2f} times ours")
        print(f"  each similarity at most {row['ours_better_by']:.1e} better, {row['ours_worse_by']:.1e} worse than torch's")
        print(f"  by clusters: {clusters:.2f} s, recall {row['ivf_recall']:.4f} ({told.recall[0]} told)", flush=True)
    return {"device": name, "matmul_flops": card, "rows": rows}


def torch_alone(x: np.ndarray, count: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of the first rows as one writes it in torch: the best of each float16 tile, merged, then scored in float32."""
    import torch

    base, found = torch.tensor(x, device=device), []
    for own in torch.arange(count, device=device).split(4_096 if device != "cpu" else 512):
        best = []
        for first in range(0, len(base), 65_536):
            value, column = (base[own] @ base[first : first + 65_536].T).topk(min(K + 1, len(base) - first), 1)
            best.append((value, column + first))
        value, index = (torch.cat(parts, 1) for parts in zip(*best, strict=True))
        others = value.masked_fill(index == own[:, None], -math.inf).topk(K, 1).indices
        index = index.gather(1, others)
        score = torch.einsum("qd,qkd->qk", base[own].float(), base[index].float())
        found.append((index, score.sort(1, descending=True).values))
    return tuple(torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))  # type: ignore[return-value]


def drawn_on(device: str, docs: int, dim: int = 256) -> np.ndarray:
    """Vectors as of `clustered`, by torch: a GPU draws a million in no time."""
    import torch

    random = torch.Generator(device).manual_seed(0)
    weight = torch.arange(1, dim + 1, device=device) ** -0.5
    centers = weight * torch.randn(max(1, docs // 500), dim, generator=random, device=device)
    share = torch.empty(len(centers), device=device).exponential_(generator=random)
    rows = []
    for start in range(0, docs, 65_536):
        home = torch.multinomial(share, min(65_536, docs - start), replacement=True, generator=random)
        noise = torch.randn(len(home), dim, generator=random, device=device)
        rows.append(torch.nn.functional.normalize(centers[home] + weight * noise, dim=1).half())
    return torch.cat(rows).cpu().numpy()


def read(folder: str) -> np.ndarray:
    """The vectors of an embed artifact."""
    from synthboot.artifacts.embeddings import Embeddings

    return Embeddings.open(Path(folder)).pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--repeat", type=int, default=3)
    shared.add_argument("--json", help="where to write the figures")
    joined = verbs.add_parser("join", parents=[shared])
    joined.add_argument("--docs", type=int, default=None)
    joined.add_argument("--vectors")
    joined.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    grown = verbs.add_parser("growth", parents=[shared])
    grown.add_argument("--sizes", type=int, nargs="+", default=[25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000])
    grown.add_argument("--plot", help="where to draw it, as SVG")
    verbs.add_parser("exact", parents=[shared]).add_argument("--docs", type=int, default=50_000)
    on_gpu = verbs.add_parser("gpu", parents=[shared])
    on_gpu.add_argument("--sizes", type=int, nargs="+", default=[250_000, 1_000_000])
    on_gpu.add_argument("--device", default="cuda")
    hidden = verbs.add_parser("child")
    hidden.add_argument("folder")
    hidden.add_argument("method")
    args = parser.parse_args()
    if args.verb == "child":
        return child(args.folder, args.method)
    if args.verb == "join" and args.vectors is None:
        args.docs = args.docs or 100_000
    result = {"join": join, "growth": growth, "exact": exact, "gpu": gpu}[args.verb](args)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
