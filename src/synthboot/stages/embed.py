"""One unit vector per document: text -> float16 vectors.

`self` learns nothing from outside: hashed word uni- and bigrams, TF-IDF, and a truncated SVD fitted on a sample, then
applied in a stream. Memory is the fitting sample plus one batch.

Source: arXiv:2509.15248 embeds with Qwen3-Embedding-0.6B. Deviation: the default embedder is not external, so that
"bootstrapped" stays true; the paper's is one setting away (`embed.model: Qwen/Qwen3-Embedding-0.6B`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float16, Float32, Int32

from synthboot import config
from synthboot.data.artifacts import Progress, silent
from synthboot.errors import ConfigError, DataError


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into unit vectors."""

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "doc dim"]:
        """One unit vector per text; the zero vector where a text has nothing to go by."""
        ...


@dataclass(frozen=True)
class SelfEmbedder:
    """TF-IDF of hashed uni- and bigrams, projected on the leading singular vectors of the corpus it was fitted on.

    `column` gives each hash bucket its row in `components`, or -1 for buckets that fewer than two documents filled: what
    one document alone holds says nothing about its neighbours.
    """

    idf: Float32[np.ndarray, " feature"]
    column: Int32[np.ndarray, " bucket"]
    components: Float32[np.ndarray, "feature dim"]

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "doc dim"]:
        """Unit vectors in the space of the fitting corpus."""
        counts = _hasher(len(self.column)).transform(texts)
        return _unit(np.asarray(_weigh(counts, self.column, self.idf) @ self.components, np.float32))

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        from safetensors.numpy import save_file

        save_file({"idf": self.idf, "column": self.column, "components": self.components}, path)

    @staticmethod
    def load(path: Path) -> SelfEmbedder:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        return SelfEmbedder(**load_file(path))


def embed(texts: Iterable[str], embedder: Embedder, progress: Progress = silent) -> Float16[np.ndarray, "doc dim"]:
    """Unit vectors of all texts, in order, embedded 1,024 at a time."""
    rows: list[np.ndarray] = []
    for batch in _batches(texts, 1_024):
        rows.append(embedder(batch).astype(np.float16))
        progress(0.5, f"{sum(map(len, rows)):,} documents embedded")
    return np.concatenate(rows) if rows else np.empty((0, 0), np.float16)


def fit(texts: Iterable[str], cfg: config.Embed, seed: int) -> SelfEmbedder:
    """The `self` embedder fitted on the first `cfg.fit_docs` texts. Raises DataError for fewer than two usable texts."""
    from sklearn.utils.extmath import randomized_svd

    counts = _hasher(cfg.hash_features).transform(islice(texts, cfg.fit_docs))
    if counts.shape[0] < 2 or counts.nnz == 0:
        raise DataError("embed: `self` needs at least two documents with words in them")
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    kept = np.flatnonzero(frequency >= 2)
    if len(kept) < 2:
        raise DataError("embed: no two documents share a word, so `self` has nothing to compare")
    column = np.full(counts.shape[1], -1, np.int32)
    column[kept] = np.arange(len(kept))
    idf = (np.log((1 + counts.shape[0]) / (1 + frequency[kept])) + 1).astype(np.float32)
    dim = min(cfg.dim, counts.shape[0] - 1, len(kept) - 1)
    _, _, components = randomized_svd(_weigh(counts, column, idf), dim, n_iter=4, random_state=seed)
    return SelfEmbedder(idf, column, np.ascontiguousarray(components.T, np.float32))


def sentence_transformer(name: str, device: str) -> Embedder:
    """A sentence-transformers model as an embedder. Raises ConfigError where it cannot be had."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            f"embed.model: {name}: needs sentence-transformers: pip install 'synthboot[embed]', or use `self`"
        ) from None
    try:
        model = SentenceTransformer(name, device=device)
    except (OSError, ValueError) as error:
        raise ConfigError(f"embed.model: {name}: cannot be loaded: {' '.join(str(error).split())}") from None

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), np.float32)

    return encode


def read_vectors(path: str, ids: Sequence[str]) -> Float16[np.ndarray, "doc dim"]:
    """The user's own vectors, one per id, made unit length.

    Arrays (.npy, .safetensors) are matched by order, Parquet (`id`, `vector`) by id. Raises DataError for a wrong count,
    an id without a vector, a value that is not finite, or a zero row.
    """
    if not Path(path).exists():
        raise DataError(f"embed.path: {path}: no such file")
    try:
        vectors = np.asarray(_read_array(path, ids), np.float32)
    except (OSError, ValueError) as error:
        raise DataError(f"embed.path: {path}: cannot be read: {error}") from None
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise DataError(f"embed.path: {path}: has shape {vectors.shape}, expected one row for each of {len(ids):,} documents")
    bad = np.flatnonzero(~np.isfinite(vectors).all(1) | ~vectors.any(1))
    if len(bad):
        raise DataError(f"embed.path: {path}: row {bad[0]} ({ids[bad[0]]}) is zero or not finite; {len(bad):,} such rows")
    return _unit(vectors).astype(np.float16)


def _read_array(path: str, ids: Sequence[str]) -> Any:
    if path.endswith(".npy"):
        return np.load(path, allow_pickle=False)
    if path.endswith(".safetensors"):
        from safetensors.numpy import load_file

        return next(iter(load_file(path).values()))
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=["id", "vector"])
        known = dict(zip(table["id"].to_pylist(), range(len(table)), strict=True))
        missing = [i for i in ids if i not in known]
        if missing:
            raise DataError(f"embed.path: {path}: {len(missing):,} documents have no vector, the first is {missing[0]!r}")
        return np.stack(table["vector"].take([known[i] for i in ids]).to_numpy())
    raise DataError(f"embed.path: {path}: unknown kind of file; known are .npy, .safetensors and .parquet")


def _hasher(features: int) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=features, ngram_range=(1, 2), norm=None, alternate_sign=False, token_pattern=r"(?u)\b\w+\b"
    )


def _weigh(counts: Any, column: Int32[np.ndarray, " bucket"], idf: Float32[np.ndarray, " feature"]) -> Any:
    """Sublinear TF-IDF of the known features, with unit rows."""
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    places = column[counts.indices]
    known = places >= 0
    bounds = np.concatenate(([0], np.cumsum(known)))[counts.indptr]
    values = ((1 + np.log(counts.data[known])) * idf[places[known]]).astype(np.float32)
    return normalize(csr_matrix((values, places[known], bounds), shape=(counts.shape[0], len(idf))), copy=False)


def _unit(rows: Float[np.ndarray, "doc dim"]) -> Float32[np.ndarray, "doc dim"]:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    source = iter(texts)
    while batch := list(islice(source, size)):
        yield batch
