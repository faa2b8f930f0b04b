import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from synthboot import config
from synthboot.errors import ConfigError, DataError
from synthboot.stages import embed
from synthboot.stages.embed import SelfEmbedder
from tests.conftest import world_documents

DOCUMENTS = world_documents()
TEXTS = [d["text"] for d in DOCUMENTS]
SMALL = config.Embed(dim=64, hash_features=4_096)


def test_self_puts_documents_of_an_entity_together() -> None:
    vectors = embed.embed(TEXTS, embed.fit(TEXTS, SMALL, 0))
    assert vectors.shape == (len(TEXTS), 64)
    assert vectors.dtype == np.float16
    assert np.allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-2)
    similarity = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    np.fill_diagonal(similarity, -1)
    entity = np.array([d["entity"] for d in DOCUMENTS])
    assert np.mean(entity[similarity.argmax(1)] == entity) > 0.9


def test_self_equals_tfidf_and_svd_by_sklearn() -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    ours = embed.fit(TEXTS, config.Embed(dim=40, hash_features=1 << 20), 0)(TEXTS)
    options: Any = {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b", "sublinear_tf": True, "min_df": 2}
    projected = TruncatedSVD(40, random_state=0, n_iter=8).fit_transform(TfidfVectorizer(**options).fit_transform(TEXTS))
    theirs = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    assert (
        np.corrcoef((ours @ ours.T).ravel(), (theirs @ theirs.T).ravel())[0, 1] > 0.97
    )  # randomized SVD: the last dimensions differ


def test_a_text_embeds_the_same_alone_in_company_and_after_saving(tmp_path: Path) -> None:
    fitted = embed.fit(TEXTS, SMALL, 0)
    fitted.save(tmp_path / "e.safetensors")
    loaded = SelfEmbedder.load(tmp_path / "e.safetensors")
    assert np.allclose(fitted(TEXTS)[7], loaded([TEXTS[7]])[0], atol=1e-5)


def test_texts_with_nothing_known_get_the_zero_vector() -> None:
    assert not embed.fit(TEXTS, SMALL, 0)(["!!! ???"]).any()


def test_nothing_to_fit_on() -> None:
    with pytest.raises(DataError, match="at least two documents"):
        embed.fit(["only one"], SMALL, 0)
    with pytest.raises(DataError, match="no two documents share a word"):
        embed.fit(["alpha beta", "gamma delta"], SMALL, 0)


IDS = ["a", "b", "c"]
VECTORS = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]], np.float32)


def stored(path: Path, vectors: np.ndarray, ids: list[str]) -> str:
    if path.suffix == ".npy":
        np.save(path, vectors)
    elif path.suffix == ".safetensors":
        save_file({"vectors": vectors}, path)
    else:
        pq.write_table(pa.table({"id": ids, "vector": vectors.tolist()}), path)
    return str(path)


@pytest.mark.parametrize("name", ["v.npy", "v.safetensors", "v.parquet"])
def test_the_users_own_vectors_are_read_and_made_unit_length(tmp_path: Path, name: str) -> None:
    found = embed.read_vectors(stored(tmp_path / name, VECTORS, IDS), IDS)
    assert np.allclose(found, [[0.6, 0.8], [0, 1], [1, 0]], atol=1e-3)


def test_parquet_is_matched_by_id(tmp_path: Path) -> None:
    found = embed.read_vectors(stored(tmp_path / "v.parquet", VECTORS[::-1].copy(), IDS[::-1]), IDS)
    assert np.allclose(found[0], [0.6, 0.8], atol=1e-3)
    with pytest.raises(DataError, match="1 documents have no vector, the first is 'd'"):
        embed.read_vectors(str(tmp_path / "v.parquet"), ["a", "d"])


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (VECTORS[:2], r"has shape \(2, 2\), expected one row for each of 3"),
        (np.array([[1.0, 0], [np.nan, 1], [1, 1]], np.float32), r"row 1 \(b\) is zero or not finite"),
        (np.array([[1.0, 0], [1, 1], [0, 0]], np.float32), r"row 2 \(c\) is zero or not finite"),
    ],
)
def test_bad_vectors_say_what_and_where(tmp_path: Path, vectors: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        embed.read_vectors(stored(tmp_path / "v.npy", vectors, IDS), IDS)


def test_missing_unknown_and_pickled_vector_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        embed.read_vectors(str(tmp_path / "none.npy"), IDS)
    (tmp_path / "v.txt").write_text("1")
    with pytest.raises(DataError, match="unknown kind"):
        embed.read_vectors(str(tmp_path / "v.txt"), IDS)
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        embed.read_vectors(str(tmp_path / "p.npy"), IDS)


def test_the_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'synthboot\[embed\]'"):
        embed.sentence_transformer("some/model", "cpu")
