r"""Embedders that learn nothing from outside, side by side on corpora with known labels.

    python benchmarks/embed.py arxiv=../shared/data/arxiv_cs.jsonl.zst:label \
        enwiki=../shared/data/enwiki_core.jsonl.zst:passages world=world:entity

A corpus is NAME=FILE:FIELD, documents labelled by a field; NAME=FILE:passages, documents cut into passages of 150 words
that are labelled by their document; or NAME=world:entity, a generated world (`synthboot.worlds.generator`). Fitted on `--docs`
documents; two questions: what share of a document's 10 nearest neighbours has its label (fitting documents), and how often
does the first half of a document find its own second half among all second halves (as many documents again, unseen). Speed
is that of the transform, one core, the median of three.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np

from synthboot import config, loading
from synthboot.data import documents
from synthboot.stages import embed
from synthboot.worlds.generator import World

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


def static(texts: list[str], dim: int, steps: int = 3_000, batch: int = 512) -> Vectors:
    """A static embedding of subwords, the mean of a text's, trained so that two random spans of a document find each other
    among those of a batch (InfoNCE, temperature 0.05)."""
    import torch
    from scipy.sparse import csr_matrix

    from synthboot.data import tokenizer

    torch.manual_seed(0)
    made = tokenizer.train(iter(texts), 8_192)
    ids = [np.array(t, np.int64) for t in made.encode(texts)]
    bag = torch.nn.EmbeddingBag(made.vocab_size, dim, mode="mean", sparse=False)
    torch.nn.init.normal_(bag.weight, std=0.1)
    optimizer = torch.optim.Adam(bag.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)

    def spans(chosen: np.ndarray) -> torch.Tensor:
        parts = []
        for doc in chosen.tolist():
            size = max(1, int(len(ids[doc]) * rng.uniform(0.2, 0.6)))
            start = int(rng.integers(0, len(ids[doc]) - size + 1))
            parts.append(ids[doc][start : start + size])
        offsets = np.concatenate(([0], np.cumsum([len(p) for p in parts])[:-1]))
        rows = bag(torch.from_numpy(np.concatenate(parts)), torch.from_numpy(offsets))
        return torch.nn.functional.normalize(rows, dim=1)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        chosen = rng.choice(len(ids), batch, replace=False)
        scores = spans(chosen) @ spans(chosen).T / 0.05
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    table = bag.weight.detach().numpy()

    def vectors(some: list[str]) -> np.ndarray:
        found = made.encode(some)
        bounds = np.cumsum([0, *map(len, found)])
        counts = csr_matrix((np.ones(bounds[-1], np.float32), np.concatenate(found), bounds), (len(some), len(table)))
        return embed._unit(counts @ table)

    return vectors


def hidden(texts: list[str], dim: int) -> Vectors:
    """The mean of `base`'s last hidden states, without the corpus' mean: a model of width `dim` / 2 trained on 1.2M tokens."""
    import torch

    from synthboot.data import tokenizer
    from synthboot.data.tokens import Tokens
    from synthboot.lm import model as models
    from synthboot.lm.arm import Sources
    from synthboot.stages.pretrain import pretrain

    made = tokenizer.train(iter(texts), 4_096)
    held = len(texts) // 20
    tokens, validation = (Tokens.of(made.documents(part)) for part in (texts[held:], texts[:held]))
    model = {"layers": 4, "width": dim // 2, "heads": 4, "kv_heads": 2, "seq_len": 256}
    budget = {"unique_tokens": tokens.num_tokens, "train_tokens": 1_200_000}
    optim = {"lr": 3e-3, "batch_tokens": 4_096, "evals": 4, "weight_decay": 0.3}
    corpus = {"source": "-", "vocab_size": made.vocab_size}
    cfg = loading.load(
        {"name": "b", "model": model, "budget": budget, "optim": optim, "corpus": corpus, "arms": {"repetition": {}}}
    )
    with tempfile.TemporaryDirectory() as folder:
        pretrain(cfg, cfg.arms["repetition"], 0, Sources(tokens), validation, made, Path(folder))
        trained = models.load(Path(folder) / "best").model.eval()

    @torch.inference_mode()
    def raw(some: list[str]) -> np.ndarray:
        found = [t[:256] for t in made.encode(some)]
        order = np.argsort([len(t) for t in found], kind="stable")
        rows = np.empty((len(some), dim // 2), np.float32)
        for part in np.array_split(order, max(1, len(order) // 64)):
            lengths = torch.tensor([len(found[i]) for i in part])
            ids = torch.zeros(len(part), int(lengths.max()), dtype=torch.int64)
            for row, i in enumerate(part):
                ids[row, : len(found[i])] = torch.tensor(found[i])
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            states = trained(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            rows[part] = ((states * mask[:, :, None]).sum(1) / lengths[:, None]).numpy()
        return rows

    mean = raw(texts[:2_000]).mean(0)
    return lambda some: embed._unit(raw(some) - mean)


@cache
def fitted(method: str, texts: tuple[str, ...], dim: int) -> Vectors:
    """A method fitted once, for itself and for what joins it with others."""
    return METHODS[method](list(texts), dim)


def joined(texts: list[str], dim: int, *methods: str) -> Vectors:
    """Several side by side, each with the same weight."""
    parts = [fitted(m, tuple(texts), dim) for m in methods]
    return lambda some: embed._unit(np.hstack([part(some) for part in parts]))


METHODS: dict[str, Callable[[list[str], int], Vectors]] = {
    "TF-IDF, exact": tfidf,
    "SVD of words": svd,
    "SVD of words and pairs of words": lambda texts, dim: svd(texts, dim, ngrams=2),
    "SVD of words, whitened by half": lambda texts, dim: svd(texts, dim, power=0.5),
    "static subwords, contrastive": static,
    "hidden states of base": hidden,
    "SVD of words + static": lambda texts, dim: joined(texts, dim, "SVD of words", "static subwords, contrastive"),
    "`self`": lambda texts, dim: embed.fit(texts, config.Embed(dim=dim), 0),
    "`self` + static": lambda texts, dim: joined(texts, dim, "`self`", "static subwords, contrastive"),
    "`self` + hidden": lambda texts, dim: joined(texts, dim, "`self`", "hidden states of base"),
}


def read(place: str, docs: int) -> tuple[list[str], np.ndarray]:
    """Texts and label numbers of twice as many documents as are fitted on, in the file's order."""
    path, _, field = place.rpartition(":")
    if path == "world":
        world = World(config.World(entities=docs // 10, many_share=1.0, many_docs=20))
        told = list(world.documents())
        return [d["text"] for d in told], np.array([d["entity"] for d in told])
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
        known, unseen = texts[: len(texts) // 2], texts[len(texts) // 2 :]
        halves = [list(half) for half in zip(*map(embed.cut_in_half, unseen), strict=True)]
        result[name] = {"docs": len(known), "rows": {}}
        print(f"\n{name}, {len(known):,} documents, {args.dim} dimensions\n")
        print("| embedder | same label among 10 nearest | half finds half, unseen | documents a second |\n|---|---|---|---|")
        for method in METHODS:
            begun = time.perf_counter()
            embedder = fitted(method, tuple(known), args.dim)
            fitting, rates = time.perf_counter() - begun, []
            for _ in range(3):
                begun = time.perf_counter()
                embedder(unseen[:4_000])
                rates.append(len(unseen[:4_000]) / (time.perf_counter() - begun))
            row = {
                "agreement": agreement(embedder(known), labels[: len(known)]),
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
    main()
