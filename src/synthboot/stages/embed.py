"""One unit vector per document: text -> float16 vectors.

`self` learns nothing from outside. Hashed words (what one is, `data/words.py` says for every
script), TF-IDF, a truncated SVD to twice the dimensions, and in that space a linear discriminant
whose classes are the documents and whose samples are a document's two halves: directions in which
the halves of one document agree and different documents do not. All of it is one matrix in the end,
so that a document costs one sparse product. Memory is the fitting sample plus one batch.

Source: arXiv:2509.15248 embeds with Qwen3-Embedding-0.6B. Deviation: the default embedder is not
external, so that "bootstrapped" stays true; the paper's is one setting away (`embed.model:
Qwen/Qwen3-Embedding-0.6B`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float16, Float32, Int32, Int64
from safetensors import SafetensorError

from synthboot import config
from synthboot.artifacts.corpus import DOCUMENTS
from synthboot.artifacts.store import Progress, Shards, read_rows, silent
from synthboot.data import documents
from synthboot.data.disk import unreadable, write_bytes
from synthboot.data.files import seen_from
from synthboot.data.words import LONGEST, terms
from synthboot.errors import ConfigError, DataError, unloadable

BATCH_DOCS = 1_024
"""Documents that an embedder is given at a time."""


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into unit vectors."""

    def __call__(
        self,
        texts: Sequence[str],
    ) -> Float32[np.ndarray, "doc dim"]:
        """One unit vector per text; the zero vector where a text has nothing to go by."""
        ...


@dataclass(frozen=True)
class SelfEmbedder:
    """TF-IDF of hashed words, projected, shifted and made unit length.

    `column` gives each hash bucket its row in `components`, or -1 for buckets that fewer than two
    documents filled: what one document alone holds says nothing about its neighbours.
    """

    idf: Float32[np.ndarray, " feature"]
    column: Int32[np.ndarray, " bucket"]
    components: Float32[np.ndarray, "feature dim"]
    shift: Float32[np.ndarray, " dim"]

    def __call__(
        self,
        texts: Sequence[str],
    ) -> Float32[np.ndarray, "doc dim"]:
        """Unit vectors in the space of the fitting corpus; zero for a text without a known word."""
        counts = _count(texts, len(self.column))
        weights = _weigh(counts, self.column, self.idf)
        rows = weights @ self.components - self.shift  # (doc, dim)
        # the shift alone is no content: without a known word a text has nothing to go by
        has_features = np.diff(weights.indptr) > 0
        return _unit(rows * has_features[:, None])

    def save(self, path: Path) -> None:
        """Write as safetensors, whole or not at all."""
        from safetensors.numpy import save

        write_bytes(path, save(vars(self)))

    @staticmethod
    def load(path: Path) -> SelfEmbedder:
        """Read what `save` wrote. Raises CorruptArtifact where it is missing or damaged."""
        from safetensors.numpy import load_file

        try:
            return SelfEmbedder(**load_file(path))
        except (SafetensorError, OSError, TypeError) as error:
            raise unreadable(path, error) from None


def embed(texts: Iterable[str], embedder: Embedder) -> Float16[np.ndarray, "doc dim"]:
    """Unit vectors of all texts, in order, embedded `BATCH_DOCS` at a time."""
    rows: list[np.ndarray] = []
    for batch in _batches(texts, BATCH_DOCS):
        vectors = embedder(batch).astype(np.float16)
        if not np.isfinite(vectors).all():
            wrong = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
            raise DataError(
                f"embed.model: its vector of {' '.join(batch[wrong].split())[:60]!r} is not a "
                f"number; try another model, or --set embed.model=self"
            )
        rows.append(vectors)
    return np.concatenate(rows) if rows else np.empty((0, 0), np.float16)


def embedder(
    cfg: config.Embed,
    fitted: Path,
    device: str,
    batch: int = 32,
) -> Embedder:
    """The configured embedder; `fitted` is where `self` was saved."""
    if cfg.model == "self":
        return SelfEmbedder.load(fitted)
    return sentence_transformer(cfg, device, batch)


def shard_embedder(
    folder: str,
    cfg: config.Embed,
    fitted: str,
    device: str,
    batch: int = 32,
) -> Callable[[tuple[int, int, int]], np.ndarray]:
    """In a worker: (shard, first, end) -> the vectors of these documents of a shard."""
    model = embedder(cfg, Path(fitted), device, batch)
    shards = Shards(Path(folder))

    def vectors(wanted: tuple[int, int, int]) -> np.ndarray:
        shard, first, end = wanted
        rows = islice(read_rows(shards.path(shard) / DOCUMENTS, ["text"]), first, end)
        return embed((row["text"] for row in rows), model)

    return vectors


def fit(
    texts: Iterable[str],
    cfg: config.Embed,
    seed: int,
    progress: Progress = silent,
) -> SelfEmbedder:
    """The `self` embedder fitted on the first `cfg.fit_docs` texts.

    Raises DataError for fewer than two usable texts.
    """
    from sklearn.utils.extmath import randomized_svd

    sample = list(islice(texts, cfg.fit_docs))
    counts = _count(sample, cfg.hash_features)  # (doc, bucket), sparse
    docs, buckets = counts.shape
    if docs < 2 or counts.nnz == 0:
        raise DataError("embed: `self` needs at least two documents with words in them")
    column, idf = _vocabulary(counts)
    features = len(idf)

    # more dimensions than are wanted: the discriminant chooses among them
    wide = min(2 * cfg.dim, docs - 1, features - 1)
    progress(0.1, f"fitting {wide} dimensions to {docs:,} documents")
    weights = _weigh(counts, column, idf)
    _, _, basis = randomized_svd(weights, wide, n_iter=3, random_state=seed)  # (wide, feature)

    halves = []
    for texts_of_half in zip(*map(cut_in_half, sample), strict=True):
        counts = _count(texts_of_half, buckets)
        halves.append(_weigh(counts, column, idf) @ basis.T)  # (doc, wide)
    rotation, mean = _discriminant(halves[0], halves[1], min(cfg.dim, wide))

    # both products in one matrix: a document costs one sparse product
    components = np.ascontiguousarray(basis.T @ rotation, np.float32)  # (feature, dim)
    shift = (mean @ rotation).astype(np.float32)
    return SelfEmbedder(idf, column, components, shift)


def _vocabulary(
    counts: Any,
) -> tuple[Int32[np.ndarray, " bucket"], Float32[np.ndarray, " feature"]]:
    """The feature of each bucket, -1 for those that fewer than two documents filled, and the IDF of
    each feature. Raises DataError where no two documents share a word."""
    docs, buckets = counts.shape
    frequency = np.bincount(counts.indices, minlength=buckets)
    kept = np.flatnonzero(frequency >= 2)
    if len(kept) < 2:
        raise DataError("embed: no two documents share a word, so `self` has nothing to compare")
    column = np.full(buckets, -1, np.int32)
    column[kept] = np.arange(len(kept))
    idf = np.log((1 + docs) / (1 + frequency[kept])) + 1  # smoothed, as scikit-learn has it
    return column, idf.astype(np.float32)


def flops(cfg: config.Embed, docs: int, tokens: int) -> float:
    """FLOPs of the vectors of `docs` documents of `tokens` in all, fitting included."""
    fitting = fitting_flops(cfg, docs, tokens) if cfg.model == "self" else 0.0
    return fitting + embedding_flops(cfg, tokens)


def embedding_flops(cfg: config.Embed, tokens: int) -> float:
    """FLOPs of the vectors of texts of `tokens` in all, by an embedder that is there; a text's
    words are at most its tokens, so for `self` this is an upper bound.

    Nothing for vectors that come from a file.
    """
    if cfg.model == "file":
        return 0.0
    if cfg.model == "self":
        return 2.0 * cfg.dim * tokens
    parameters = sum(p.numel() for p in _load(cfg, "cpu").parameters())
    return 2.0 * tokens * parameters


def fitting_flops(cfg: config.Embed, docs: int, tokens: int) -> float:
    """FLOPs of those that fit `self`, which one process alone does."""
    wide = 2 * cfg.dim
    fitted = min(1.0, cfg.fit_docs / max(1, docs))
    # n_iter = 3: eight products with the sparse matrix; ten dimensions of oversampling
    svd = 8 * 2 * (wide + 10) * tokens * fitted
    discriminant = 2 * wide * tokens * fitted + 4 * wide**2 * docs * fitted
    return svd + discriminant


def _discriminant(
    a: Float[np.ndarray, "doc wide"],
    b: Float[np.ndarray, "doc wide"],
    dim: int,
) -> tuple[Float[np.ndarray, "wide dim"], Float[np.ndarray, " wide"]]:
    """The `dim` directions in which the two halves of a document agree most, against how much they
    differ, and the mean.

    Directions are scaled by the root of the ratio's root: 0 would weigh all alike, 1 would leave
    little but broad topics; both and the ridge of twice the mean variance were chosen by the table
    in docs/decisions.md.
    Source: within-class covariance normalization (Hatch, Kajarekar, Stolcke 2006), the documents as
    classes.
    """
    from scipy.linalg import eigh

    mean = (a.mean(0) + b.mean(0)) / 2
    within = (a - b).T @ (a - b) / (2 * len(a))  # (wide, wide)
    between = (a - mean).T @ (b - mean) / (2 * len(a))
    between = (between + between.T).astype(np.float64)
    # directions in which no document varies would win by dividing by nothing
    ridge = 2 * np.trace(within) / len(within) + 1e-9
    ridged = within.astype(np.float64) + ridge * np.eye(len(within))

    ratio, directions = eigh(between, ridged)
    best = np.argsort(-ratio, kind="stable")[:dim]
    scale = np.maximum(ratio[best], 1e-6) ** 0.25
    return directions[:, best] * scale, mean


def cut_in_half(text: str) -> tuple[str, str]:
    """A text's two halves, cut at a space where one is near: the next may be far in a script that
    needs none."""
    middle = len(text) // 2
    space = text.find(" ", middle, middle + LONGEST)
    middle = middle if space < 0 else space
    return text[:middle], text[middle:]


def _load(cfg: config.Embed, device: str) -> Any:
    """A sentence-transformers model. Raises ConfigError where it cannot be had."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            f"embed.model: {cfg.model}: needs sentence-transformers: "
            f"pip install 'synthboot[embed]', or use `self`"
        ) from None
    import torch

    from synthboot.lm.model import quiet

    quiet()
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    try:
        return SentenceTransformer(
            cfg.model,
            device=device,
            trust_remote_code=False,
            model_kwargs={"torch_dtype": dtype},
        )
    # OSError, ValueError, ImportError, KeyError, by what the folder lacks
    except Exception as error:
        raise ConfigError(f"embed.model: {cfg.model}: {unloadable(error)}") from None


def sentence_transformer(
    cfg: config.Embed,
    device: str,
    batch: int = 32,
) -> Embedder:
    """A sentence-transformers model as an embedder; bfloat16 on a GPU, all GPUs there are.

    Raises ConfigError where it cannot be had.
    """
    import torch

    model = _load(cfg, device)
    if cfg.max_tokens is not None:
        model.max_seq_length = cfg.max_tokens
    several = {}
    if device.startswith("cuda") and torch.cuda.device_count() > 1:
        several["device"] = [f"cuda:{i}" for i in range(torch.cuda.device_count())]

    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = model.encode(
            list(texts),
            prompt=cfg.prompt or None,
            batch_size=batch,
            show_progress_bar=False,
            normalize_embeddings=True,
            **several,
        )
        return np.asarray(vectors, np.float32)

    if cfg.long == "head":
        return encode
    return _by_windows(cfg, model, encode)


def _by_windows(cfg: config.Embed, model: Any, encode: Embedder) -> Embedder:
    """`encode` for texts longer than the model's window: the mean over windows, by their tokens.

    Raises ConfigError where the model does not say how texts are cut into tokens, or has no room.
    """
    tokenizer = model.tokenizer
    if model.max_seq_length is None or not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"embed.long: windows: {cfg.model} has no fast tokenizer, or no length: "
            f"set embed.max_tokens"
        )
    special = tokenizer.num_special_tokens_to_add() + len(tokenizer.tokenize(cfg.prompt))
    room = model.max_seq_length - special
    if room < 1:
        raise ConfigError(
            f"embed.max_tokens: {model.max_seq_length} leaves no room for text after the prompt"
        )

    def windows_of(text: str) -> Iterator[tuple[str, int]]:
        """(window, its tokens); one empty window for a text without tokens."""
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        spans = encoded["offset_mapping"] or [(0, 0)]
        for start in range(0, len(spans), room):
            window = spans[start : start + room]
            (first, _), (_, last) = window[0], window[-1]
            yield text[first:last], len(window)

    def encode_windows(texts: Sequence[str]) -> np.ndarray:
        windows = []
        weights = []
        owners = []
        for number, text in enumerate(texts):
            for window, tokens in windows_of(text):
                windows.append(window)
                weights.append(tokens)
                owners.append(number)

        rows = encode(windows)  # (window, dim)
        total = np.zeros((len(texts), rows.shape[1]), np.float32)  # (doc, dim)
        np.add.at(total, owners, rows * np.array(weights, np.float32)[:, None])
        return _unit(total)

    return encode_windows


def read_vectors(
    path: str, ids: Sequence[str], unknown: str = "error"
) -> Float16[np.ndarray, "doc dim"]:
    """The user's own vectors, one per id, made unit length, matched by id.

    Parquet holds `id` and `vector`; beside an array (.npy, .safetensors) lies a file of the same
    name and the suffix .ids, an id a line. Raises DataError for a wrong count, ids that come twice,
    that have no vector, or (unless `unknown` is `ignore`) that belong to no document; for a value
    that is not finite, or a zero row.
    """
    if not Path(path).exists():
        raise DataError(f"embed.path: {path}{seen_from(path)}: no such file")
    try:
        own_ids, vectors = _read_rows(path)
    except (OSError, ValueError, KeyError, EOFError, SafetensorError) as error:
        raise DataError(f"embed.path: {path}: cannot be read: {error}") from None
    if vectors.dtype.kind not in "fiu":
        raise DataError(
            f"embed.path: {path}: holds values of type {vectors.dtype}, expected real numbers"
        )
    if vectors.ndim != 2 or len(vectors) != len(own_ids):
        raise DataError(
            f"embed.path: {path}: has shape {vectors.shape}, "
            f"expected one row for each of {len(own_ids):,} ids"
        )

    rows = _rows_of(path, own_ids, ids, unknown)
    result = np.empty((len(ids), vectors.shape[1]), np.float16)  # (doc, dim), in the order of `ids`
    for start in range(0, len(ids), 16_384):
        block = slice(start, start + 16_384)
        values = np.asarray(vectors[rows[block]], np.float64)
        bad = np.flatnonzero(~np.isfinite(values).all(1) | ~values.any(1))
        if len(bad):
            doc = start + int(bad[0])
            raise DataError(
                f"embed.path: {path}: row {rows[doc]} ({ids[doc]}) is zero or not finite"
            )
        # the largest is 1 before anything is squared: 1e200 and 1e-200 are values too
        result[block] = _unit(values / np.abs(values).max(1, keepdims=True))
    return result


def _rows_of(
    path: str,
    own_ids: Sequence[str],
    ids: Sequence[str],
    unknown: str,
) -> Int64[np.ndarray, " doc"]:
    """The row of each document. Raises DataError for ids that do not match."""
    row_of = {name: row for row, name in enumerate(own_ids)}
    if len(row_of) < len(own_ids):
        twice = next(name for row, name in enumerate(own_ids) if row_of[name] != row)
        raise DataError(
            f"embed.path: {path}: {len(own_ids) - len(row_of):,} ids come more than once, "
            f"the first is {twice!r}"
        )
    missing = [name for name in ids if name not in row_of]
    if missing:
        raise DataError(
            f"embed.path: {path}: {len(missing):,} documents have no vector, "
            f"the first is {missing[0]!r}"
        )
    stray = row_of.keys() - set(ids)
    if stray and unknown == "error":
        raise DataError(
            f"embed.path: {path}: {len(stray):,} ids belong to no document of D_pretrain or "
            f"validation, the first is {min(stray)!r}; where that is as it should be: "
            f"--set embed.unknown_ids=ignore"
        )
    return np.array([row_of[name] for name in ids], np.int64)


def _read_rows(path: str) -> tuple[list[str], np.ndarray]:
    """The ids and vectors of a file, row by row."""
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=["id", "vector"])
        ids = [documents.id_of(value) or "" for value in table["id"].to_pylist()]
        return ids, np.stack(table["vector"].to_numpy())
    if path.endswith(".npy"):
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    elif path.endswith(".safetensors"):
        from safetensors.torch import load_file  # numpy's does not know bfloat16

        tensors = load_file(path)
        if len(tensors) != 1:
            raise DataError(
                f"embed.path: {path}: holds {len(tensors)} tensors, expected one: "
                f"a row for each document"
            )
        (tensor,) = tensors.values()
        vectors = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    else:
        raise DataError(
            f"embed.path: {path}: unknown kind of file; known are .npy, .safetensors and .parquet"
        )

    names = Path(path).with_suffix(".ids")
    if not names.exists():
        raise DataError(
            f"embed.path: {names}: no such file; "
            f"it says which document each row of {path} is of, an id a line"
        )
    ids = names.read_text("utf-8-sig").removesuffix("\n").split("\n")
    return ids, vectors


def _count(texts: Iterable[str], features: int) -> Any:
    """How often each hashed term stands in each text, a sparse matrix."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hasher = HashingVectorizer(
        n_features=features,
        norm=None,
        # counts are weighed by logarithm later, so none may be negative
        alternate_sign=False,
        analyzer=terms,
        dtype=np.float32,
    )
    return hasher.transform(texts)


def _weigh(
    counts: Any,
    column: Int32[np.ndarray, " bucket"],
    idf: Float32[np.ndarray, " feature"],
) -> Any:
    """Sublinear TF-IDF of the known features, with unit rows."""
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    features = column[counts.indices]
    is_feature = features >= 0
    features = features[is_feature]
    # how many known entries stand before each row's first
    bounds = np.concatenate(([0], np.cumsum(is_feature)))[counts.indptr]

    tf = 1 + np.log(counts.data[is_feature])
    values = (tf * idf[features]).astype(np.float32)
    shape = (counts.shape[0], len(idf))
    return normalize(csr_matrix((values, features, bounds), shape=shape), copy=False)


def _unit(rows: Float[np.ndarray, "doc dim"]) -> Float32[np.ndarray, "doc dim"]:
    """The rows at length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)  # (doc, 1)
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def _batches(
    texts: Iterable[str],
    size: int,
) -> Iterator[list[str]]:
    source = iter(texts)
    while batch := list(islice(source, size)):
        yield batch
