r"""Embedders that learn nothing from outside, side by side on corpora with known labels.

    python benchmarks/embed.py arxiv=../shared/data/arxiv_cs.jsonl.zst:label \
        enwiki=../shared/data/enwiki_core.jsonl.zst:passages

A corpus is NAME=FILE:FIELD, documents labelled by a field, or NAME=FILE:passages, documents cut into passages of 150 words
that are labelled by their document. Fitted on `--docs` documents; two questions: what share of a document's 10 nearest
neighbours has its label (fitting documents), and how often does the first half of a document find its own second half
among all second halves (as many documents again, unseen). Speed is that of the transform, one core, the median of three.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np

from synthboot import config
from synthboot.data import documents
from synthboot.stages import embed

Vectors = Callable[[list[str]], Any]


def tfidf(texts: list[str], dim: int) -> Vectors:
    """Exact TF-IDF: sparse, for comparison; no embedding that a search could use."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, min_df=2).fit(texts)
    return lambda some: words.transform(some)


def svd(texts: list[str], dim: int, ngrams: int = 1, power: float = 0.0) -> Vectors:
    """Truncated SVD of it; `power` divides each direction by its singular value to that power (whitening)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, min_df=2, ngram_range=(1, ngrams))
    fitted = TruncatedSVD(dim, n_iter=3, random_state=0).fit(words.fit_transform(texts))
    scale = fitted.singular_values_**-power
    return lambda some: embed._unit(fitted.transform(words.transform(some)) * scale)


METHODS: dict[str, Callable[[list[str], int], Vectors]] = {
    "TF-IDF, exact": tfidf,
    "SVD of words": svd,
    "SVD of words and pairs of words": lambda texts, dim: svd(texts, dim, ngrams=2),
    "SVD of words, whitened by half": lambda texts, dim: svd(texts, dim, power=0.5),
    "`self`": lambda texts, dim: embed.fit(texts, config.Embed(dim=dim), 0),
}


def read(place: str, docs: int) -> tuple[list[str], np.ndarray]:
    """Texts and label numbers of twice as many documents as are fitted on, in the file's order."""
    path, _, field = place.rpartition(":")
    texts, labels = [], []
    cfg = config.Corpus(source=path)
    for record in documents.records(cfg):
        document = documents.parse(record, cfg)
        if not isinstance(document, documents.Document):
            continue
        words = document.text.split()
        passages = [document.text] if field != "passages" else [" ".join(words[i : i + 150]) for i in range(0, len(words), 150)]
        for passage in passages:
            if len(passage.split()) >= 40:
                texts.append(passage)
                labels.append(document.id if field == "passages" else str(document.metadata[field]))
        if len(texts) >= 2 * docs:
            break
    return texts[: 2 * docs], np.unique(labels[: 2 * docs], return_inverse=True)[1]


def scores(vectors: Any, others: Any) -> np.ndarray:
    """Inner products of rows, dense or sparse, as a dense matrix."""
    product = vectors @ others.T
    return product.toarray() if hasattr(product, "toarray") else product


def agreement(vectors: Any, labels: np.ndarray, k: int = 10) -> float:
    """Share of the k nearest others with the same label."""
    hits = 0.0
    for start in range(0, vectors.shape[0], 1_000):
        block = scores(vectors[start : start + 1_000], vectors)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -np.inf
        nearest = np.argpartition(-block, k, 1)[:, :k]
        hits += float((labels[nearest] == labels[start : start + len(block), None]).sum())
    return hits / (k * vectors.shape[0])


def found(first: Any, second: Any, queries: int = 2_000) -> float:
    """How often a first half's most similar second half is its own."""
    return float(np.mean(scores(first[:queries], second).argmax(1) == np.arange(min(queries, first.shape[0]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", metavar="NAME=FILE:FIELD")
    parser.add_argument("--docs", type=int, default=12_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result: dict[str, Any] = {}
    for corpus in args.corpora:
        name, _, place = corpus.partition("=")
        texts, labels = read(place, args.docs)
        fitted, unseen = texts[: len(texts) // 2], texts[len(texts) // 2 :]
        halves = [list(half) for half in zip(*map(embed._halved, unseen), strict=True)]
        result[name] = {"docs": len(fitted), "rows": {}}
        print(f"\n{name}, {len(fitted):,} documents, {args.dim} dimensions\n")
        print("| embedder | same label among 10 nearest | half finds half, unseen | documents a second |\n|---|---|---|---|")
        for method, fit in METHODS.items():
            begun = time.perf_counter()
            embedder = fit(fitted, args.dim)
            fitting, rates = time.perf_counter() - begun, []
            for _ in range(3):
                begun = time.perf_counter()
                embedder(unseen[:4_000])
                rates.append(len(unseen[:4_000]) / (time.perf_counter() - begun))
            row = {
                "agreement": agreement(embedder(fitted), labels[: len(fitted)]),
                "halves": found(embedder(halves[0]), embedder(halves[1])),
                "docs_per_second": statistics.median(rates),
                "fit_seconds": fitting,
            }
            result[name]["rows"][method] = row
            rate = f"{row['docs_per_second']:,.0f}"
            print(f"| {method} | {row['agreement']:.3f} | {row['halves']:.3f} | {rate} |", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
