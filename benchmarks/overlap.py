"""Shingle containment of pairs, and near-duplicates in a corpus, beside datasketch and rensa; medians of three.

One core, but for the row that names two threads.

    python benchmarks/overlap.py ../shared/data/arxiv_cs.jsonl.zst           # needs benchmarks/requirements.txt

The first table takes random pairs of documents and asks for the containment of their 13-token shingles; datasketch answers
with an estimate by MinHash. The second plants altered copies of documents (2 to 10 % of the words replaced) among the rest
and asks for all pairs with a Jaccard similarity of word 5-grams of at least 0.8. Truth is computed shingle by shingle on
the planted pairs; precision on whatever was found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np

from synthboot import config
from synthboot.data import documents, near_duplicates, ngrams
from synthboot.data.tokens import Tokens

THRESHOLD = 0.8
CORES = os.sched_getaffinity(0)


def timed(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Median seconds and the last result."""
    seconds, result = [], None
    for _ in range(rounds):
        begun = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds), result


def read(path: str, docs: int) -> list[str]:
    """The first documents of a corpus."""
    cfg = config.Corpus(source=path)
    parsed = (documents.parse(record, cfg) for record in documents.records(cfg))
    texts = (d.text for d in parsed if isinstance(d, documents.Document))
    return [text for text, _ in zip(texts, range(docs), strict=False)]


def containment(texts: list[str], pairs: int, rounds: int) -> dict[str, Any]:
    """Pairs a second, and how far the answers are from the truth."""
    from datasketch import MinHash

    words: dict[str, int] = {}
    tokens = Tokens.of([[*(words.setdefault(w, len(words)) for w in t.split()), 0] for t in texts])
    rng = np.random.default_rng(0)
    d1, d2 = rng.integers(0, len(texts), (2, pairs))

    def by_minhash() -> np.ndarray:
        made: dict[int, Any] = {}
        for doc in np.unique(np.concatenate((d1, d2))).tolist():
            sketch = MinHash(num_perm=128)
            sketch.update_batch([h.tobytes() for h in ngrams.hashes(tokens[doc][:-1], 13)])
            made[doc] = sketch, len(np.unique(ngrams.hashes(tokens[doc][:-1], 13)))
        shares = []
        for a, b in zip(d1.tolist(), d2.tolist(), strict=True):
            (first, n), (second, m) = made[a], made[b]
            jaccard = first.jaccard(second)
            shares.append(jaccard * (n + m) / (1 + jaccard) / min(n, m))
        return np.array(shares)

    def by_sets() -> np.ndarray:
        made = {doc: set(ngrams.hashes(tokens[doc][:-1], 13).tolist()) for doc in np.unique(np.concatenate((d1, d2))).tolist()}
        return np.array(
            [len(made[a] & made[b]) / min(len(made[a]), len(made[b])) for a, b in zip(d1.tolist(), d2.tolist(), strict=True)]
        )

    def by_two_threads() -> np.ndarray:
        pinned = os.sched_getaffinity(0)
        os.sched_setaffinity(0, CORES)  # which threads begun from here inherit
        try:
            return ngrams.pair_containments(tokens, tokens, d1, d2, 13, threads=2)
        finally:
            os.sched_setaffinity(0, pinned)

    methods = {
        "synthboot": lambda: ngrams.pair_containments(tokens, tokens, d1, d2, 13),
        "synthboot, two threads": by_two_threads,
        "Python sets": by_sets,
        "datasketch MinHash, 128": by_minhash,
    }
    truth, rows = by_sets(), {}
    print(f"{pairs:,} pairs of {len(texts):,} documents\n\n| method | pairs a second | largest error |\n|---|---|---|")
    for name, work in methods.items():
        seconds, shares = timed(work, rounds)
        rows[name] = {"pairs_per_second": pairs / seconds, "largest_error": float(np.abs(shares - truth).max())}
        print(f"| {name} | {pairs / seconds:,.0f} | {rows[name]['largest_error']:.3f} |", flush=True)
    return rows


def duplicates(texts: list[str], copies: int, rounds: int) -> dict[str, Any]:
    """Documents a second, precision and recall on planted copies."""
    from datasketch import MinHash, MinHashLSH
    from rensa import RMinHash, RMinHashLSH

    rng, vocabulary = random.Random(0), sorted({w for t in texts[:2_000] for w in t.split()})
    corpus, planted = list(texts), []
    for doc in range(copies):
        words = texts[doc].split()
        for place in rng.sample(range(len(words)), max(1, int(rng.uniform(0.002, 0.05) * len(words)))):
            words[place] = rng.choice(vocabulary)
        planted.append((doc, len(corpus)))
        corpus.append(" ".join(words))
    shingled = [set(near_duplicates.shingles(t)) for t in corpus]
    alike = lambda a, b: near_duplicates.jaccard(shingled[a], shingled[b]) >= THRESHOLD  # noqa: E731
    truth = {pair for pair in planted if alike(*pair)}

    def ours() -> set[tuple[int, int]]:
        groups = near_duplicates.groups(near_duplicates.signatures(corpus), corpus, THRESHOLD)
        order = np.argsort(groups, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        return {(int(a), int(b)) for part in parts if len(part) > 1 for a, b in combinations(sorted(part), 2)}

    def by_datasketch() -> set[tuple[int, int]]:
        index, found = MinHashLSH(threshold=THRESHOLD, num_perm=128), set()
        for number, text in enumerate(corpus):
            sketch = MinHash(num_perm=128)
            sketch.update_batch([s.encode() for s in near_duplicates.shingles(text)])
            found |= {(other, number) for other in index.query(sketch)}
            index.insert(number, sketch)
        return found

    def by_rensa() -> set[tuple[int, int]]:
        index, found = RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=16), set()
        for number, text in enumerate(corpus):
            sketch = RMinHash(num_perm=128, seed=42)
            sketch.update(near_duplicates.shingles(text))
            found |= {(other, number) for other in index.query(sketch)}
            index.insert(number, sketch)
        return found

    rows = {}
    print(f"\n{len(corpus):,} documents, {len(truth):,} planted pairs at or above {THRESHOLD}\n")
    print("| method | documents a second | precision | recall |\n|---|---|---|---|")
    for name, work in {"synthboot": ours, "rensa LSH": by_rensa, "datasketch LSH": by_datasketch}.items():
        seconds, found = timed(work, rounds)
        good = sum(alike(*pair) for pair in found)
        rows[name] = {
            "docs_per_second": len(corpus) / seconds,
            "precision": good / max(1, len(found)),
            "recall": len(found & truth) / len(truth),
        }
        row = rows[name]
        print(f"| {name} | {row['docs_per_second']:,.0f} | {row['precision']:.3f} | {row['recall']:.3f} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", metavar="FILE")
    parser.add_argument("--docs", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--copies", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(CORES)})
    texts = read(args.corpus, args.docs)
    result = {
        "containment": containment(texts, args.pairs, args.repeat),
        "duplicates": duplicates(texts, args.copies, args.repeat),
    }
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
