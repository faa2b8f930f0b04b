import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from synthboot import api, config, loading
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.embeddings import Embeddings
from synthboot.errors import ConfigError, DataError
from synthboot.stages import embed
from synthboot.stages.embed import SelfEmbedder
from synthboot.steps.context import Context
from synthboot.steps.embed import embed as step
from tests.conftest import run_folder, small_config, world_documents

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


def test_self_is_tfidf_by_sklearn_projected_on_what_halves_of_a_document_share() -> None:
    """The same, step by step, with scikit-learn's own TF-IDF and SVD and a discriminant solved by whitening."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted = embed.fit(TEXTS, config.Embed(dim=60, hash_features=1 << 20), 0)
    ours, wide_dim = fitted(TEXTS), min(120, len(fitted.idf) - 1)  # nearly all there is: truncated SVDs differ at the cut
    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, min_df=2)
    svd = TruncatedSVD(wide_dim, random_state=0, n_iter=8)
    wide = svd.fit_transform(words.fit_transform(TEXTS))
    cuts = [t.find(" ", len(t) // 2) for t in TEXTS]
    a = svd.transform(words.transform([t[:c] for t, c in zip(TEXTS, cuts, strict=True)]))
    b = svd.transform(words.transform([t[c:] for t, c in zip(TEXTS, cuts, strict=True)]))
    mean = (a.mean(0) + b.mean(0)) / 2
    within = (a - b).T @ (a - b) / (2 * len(a))
    values, axes = np.linalg.eigh(within + 2 * np.trace(within) / wide_dim * np.eye(wide_dim))
    white = axes / np.sqrt(values)
    shared = (a - mean).T @ (b - mean) / (2 * len(a))
    ratio, turn = np.linalg.eigh(white.T @ (shared + shared.T) @ white)
    projected = (wide - mean) @ white @ turn[:, ::-1][:, :60] * np.maximum(ratio[::-1][:60], 1e-6) ** 0.25
    theirs = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    assert np.corrcoef((ours @ ours.T).ravel(), (theirs @ theirs.T).ravel())[0, 1] > 0.99


def test_self_is_fitted_on_the_first_documents_alone() -> None:
    few = embed.fit(TEXTS, SMALL.model_copy(update={"fit_docs": 100}), 0)
    assert (few(TEXTS) == embed.fit(TEXTS[:100], SMALL, 0)(TEXTS)).all()
    assert len(few.idf) < len(embed.fit(TEXTS, SMALL, 0).idf)


def test_self_is_centered_on_the_mean_half() -> None:
    fitted = embed.fit(TEXTS, SMALL, 0)
    halves = [half for text in TEXTS for half in embed.cut_in_half(text)]
    away = np.zeros_like(fitted.shift)
    away[0] = -1e6  # so far away every text is at one length: the other directions are as they were, a millionth as long
    rows = 1e6 * replace(fitted, shift=away)(halves)[:, 1:]
    assert np.allclose(rows.mean(0), fitted.shift[1:], atol=1e-4)
    assert np.abs(fitted.shift[1:]).max() > 0.02


def test_self_finds_a_document_by_its_other_half_better_than_the_svd_alone() -> None:
    """What the discriminant is for, on documents that it was not fitted on."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    fitted, unseen = TEXTS[:240], TEXTS[240:]
    halves = [embed.cut_in_half(t) for t in unseen]
    first, second = [list(h) for h in zip(*halves, strict=True)]
    entity = np.array([d["entity"] for d in DOCUMENTS[240:]])

    def found(embedder: Any) -> float:
        return float(np.mean(entity[(embedder(first) @ embedder(second).T).argmax(1)] == entity))

    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, min_df=2).fit(fitted)
    svd = TruncatedSVD(32, random_state=0).fit(words.transform(fitted))
    assert found(embed.fit(fitted, config.Embed(dim=32, hash_features=1 << 16), 0)) > found(
        lambda texts: normalize(svd.transform(words.transform(texts)))
    )


def test_halves_are_cut_in_the_middle_where_spaces_are_rare() -> None:
    assert embed.cut_in_half("天地玄黄" * 40 + " 天黄") == ("天地玄黄" * 20 + "天", "地玄黄" + "天地玄黄" * 19 + " 天黄")
    assert embed.cut_in_half("one two three four") == ("one two three", " four")


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
    if path.suffix != ".parquet":
        path.with_suffix(".ids").write_text("\n".join(ids))
    return str(path)


@pytest.mark.parametrize("name", ["v.npy", "v.safetensors", "v.parquet"])
def test_the_users_own_vectors_are_matched_by_id_and_made_unit_length(tmp_path: Path, name: str) -> None:
    path = stored(tmp_path / name, VECTORS[::-1].copy(), IDS[::-1])
    found = embed.read_vectors(path, IDS)
    assert np.allclose(found, [[0.6, 0.8], [0, 1], [1, 0]], atol=1e-3)
    with pytest.raises(DataError, match="1 documents have no vector, the first is 'd'"):
        embed.read_vectors(path, ["a", "d"])
    with pytest.raises(DataError, match=r"1 ids belong to no document .* 'b'.*embed.unknown_ids=ignore"):
        embed.read_vectors(path, ["a", "c"])
    assert np.array_equal(embed.read_vectors(path, ["c", "a"], "ignore"), found[[2, 0]])


def test_an_id_that_comes_twice_and_ids_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 ids come more than once, the first is 'a'"):
        embed.read_vectors(stored(tmp_path / "v.npy", VECTORS, ["a", "a", "c"]), ["a", "c"])
    (tmp_path / "v.ids").unlink()
    with pytest.raises(DataError, match=r"v\.ids: no such file; it says which document each row"):
        embed.read_vectors(str(tmp_path / "v.npy"), IDS)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (VECTORS[:2], r"has shape \(2, 2\), expected one row for each of 3"),
        (np.array([[1.0, 0], [np.nan, 1], [1, 1]], np.float32), r"row 1 \(b\) is zero or not finite"),
        (np.array([[1.0, 0], [1, 1], [0, 0]], np.float32), r"row 2 \(c\) is zero or not finite"),
        (np.array([["x"], ["y"], ["z"]]), r"holds values of type <U1, expected real numbers"),
        (VECTORS + 1j, r"holds values of type complex64, expected real numbers"),
        (VECTORS > 1, r"holds values of type bool, expected real numbers"),
    ],
)
def test_bad_vectors_say_what_and_where(tmp_path: Path, vectors: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        embed.read_vectors(stored(tmp_path / "v.npy", vectors, IDS), IDS)


def test_vectors_of_any_size_have_a_direction(tmp_path: Path) -> None:
    for scale in (1e-200, 1e30, 1e200):
        found = embed.read_vectors(stored(tmp_path / "v.npy", VECTORS.astype(np.float64) * scale, IDS), IDS)
        assert np.allclose(found, [[0.6, 0.8], [0, 1], [1, 0]], atol=1e-3), scale


def test_half_precision_of_both_kinds_is_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    path = tmp_path / "v.safetensors"
    stored(path, VECTORS, IDS)
    for dtype in (torch.float16, torch.bfloat16):
        save_tensors({"vectors": torch.from_numpy(VECTORS).to(dtype)}, path)
        assert np.allclose(embed.read_vectors(str(path), IDS), [[0.6, 0.8], [0, 1], [1, 0]], atol=1e-3)


@pytest.mark.parametrize("name", ["v.npy", "v.safetensors", "v.parquet"])
@pytest.mark.parametrize("length", [0, 5, -4], ids=["empty", "a few bytes", "cut"])
def test_damaged_vector_files_are_named(tmp_path: Path, name: str, length: int) -> None:
    path = Path(stored(tmp_path / name, VECTORS, IDS))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        embed.read_vectors(str(path), IDS)


def test_a_file_of_several_tensors_does_not_say_which_are_the_vectors(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    stored(path, VECTORS, IDS)
    for tensors in ({}, {"a": VECTORS, "b": VECTORS}):
        save_file(tensors, path)
        with pytest.raises(DataError, match=f"holds {len(tensors)} tensors, expected one"):
            embed.read_vectors(str(path), IDS)


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
        embed.sentence_transformer(config.Embed(model="some/model"), "cpu")


@pytest.fixture(scope="module")
def random_transformer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence-transformers model made on the spot: a random BERT of one layer, mean pooling, a WordPiece of letters."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("transformer")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789."
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)])
    )
    torch.manual_seed(0)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    size = {"vocab_size": 79, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**size, max_position_embeddings=64)).save_pretrained(folder / "bert")
    words = Transformer(str(folder / "bert"), max_seq_length=64)
    SentenceTransformer(modules=[words, Pooling(32)], device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def test_a_sentence_transformers_model_embeds(random_transformer: str) -> None:
    embedder = embed.sentence_transformer(config.Embed(model=random_transformer), "cpu", batch=3)
    texts = ["short", "a somewhat longer text", "x " * 200, "", "short"]
    vectors = embedder(texts)
    assert vectors.shape == (5, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[4], atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):  # batches and the order by length change nothing
        assert np.allclose(embedder([text])[0], vector, atol=1e-5)


def test_long_texts_by_their_head_or_by_windows(random_transformer: str) -> None:
    head, tail = "a " * 10, "q " * 10
    settings = {"model": random_transformer, "max_tokens": 12}  # [CLS], ten words, [SEP]
    by_head = embed.sentence_transformer(config.Embed(**settings), "cpu")
    assert np.allclose(by_head([head + tail]), by_head([head]), atol=1e-5)
    windows = embed.sentence_transformer(config.Embed(**settings, long="windows"), "cpu")
    both = by_head([head, tail]).sum(0)
    assert np.allclose(windows([head + tail])[0], both / np.linalg.norm(both), atol=1e-4)
    three = 10 * by_head([head])[0] + 10 * by_head([tail])[0] + 2 * by_head(["a a"])[0]
    assert np.allclose(windows([head + tail + "a a"])[0], three / np.linalg.norm(three), atol=1e-4)
    assert np.allclose(windows(["", head]), by_head(["", head]), atol=1e-5)


def test_a_prompt_stands_before_every_text(random_transformer: str) -> None:
    plain = embed.sentence_transformer(config.Embed(model=random_transformer), "cpu")
    prompted = embed.sentence_transformer(config.Embed(model=random_transformer, prompt="find "), "cpu")
    assert np.allclose(prompted(["this text"]), plain(["find this text"]), atol=1e-5)


def test_a_model_that_is_not_there_and_no_room_for_text(random_transformer: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embed\.model: .*none: cannot be loaded"):
        embed.sentence_transformer(config.Embed(model=str(tmp_path / "none")), "cpu")
    with pytest.raises(ConfigError, match="leaves no room for text"):
        embed.sentence_transformer(config.Embed(model=random_transformer, max_tokens=2, long="windows"), "cpu")


def test_a_model_from_outside_is_told_of_in_parts_that_a_kill_leaves_and_that_give_the_same_vectors(
    random_transformer: str, world_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_config(world_file, tmp_path, embed={"model": random_transformer})
    api.Run(settings).run("corpus")
    corpus = run_folder(settings) / "01-corpus"
    monkeypatch.setattr(embed, "BATCH_DOCS", 25)  # of shards of 64 documents
    told: list[str] = []
    shares: list[float] = []
    (tmp_path / "vectors").mkdir()

    def progress(done: float, words: str) -> None:
        told.append(words)
        shares.append(done)
        if len(told) == 2:
            raise KeyboardInterrupt

    context = Context(loading.load(settings), tmp_path / "vectors", {"corpus": corpus}, 1, progress)
    with pytest.raises(KeyboardInterrupt):
        step(context)
    vectors = sorted((tmp_path / "vectors").rglob("vectors.npy"))
    assert [len(np.load(path)) for path in vectors] == [25, 25]  # of a shard that is not whole
    before = [path.stat().st_mtime_ns for path in vectors]
    counts, _ = step(context)
    assert [path.stat().st_mtime_ns for path in vectors] == before

    texts = [document.text for document in Corpus.open(corpus).texts("validation")]
    whole = embed.sentence_transformer(config.Embed(model=random_transformer), "cpu")(texts)
    embeddings = Embeddings.open(tmp_path / "vectors")
    assert np.allclose(embeddings.validation, whole, atol=2e-3)
    assert len(embeddings.pretrain) == counts["docs"]
    assert told[0] == told[2] == f"pool: 25 of {counts['docs']:,} documents"
    assert shares[2:] == sorted(shares[2:])  # what goes on begins with what there is already
    assert shares[-1] == 1


def test_a_vector_that_is_no_number_is_named() -> None:
    def broken(texts: list[str]) -> np.ndarray:
        vectors = np.ones((len(texts), 4), np.float32)
        vectors[[text.startswith("bad") for text in texts]] = np.nan
        return vectors

    assert np.isfinite(embed.embed(["good"] * 3, broken)).all()
    with pytest.raises(DataError, match=r"embed\.model: its vector of 'bad one' is not a number; try another model"):
        embed.embed([*["good"] * 700, "bad\none"], broken)
