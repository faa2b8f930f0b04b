import random
import time
from pathlib import Path

import pytest

from synthboot.data import tokenizer
from synthboot.errors import ConfigError, CorruptArtifact

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "naïve café, 日本語 🙂"] * 20


def test_any_text_survives_the_round_trip(tmp_path: Path) -> None:
    fitted = tokenizer.train(iter(TEXTS), 300)
    for text in ["unseen words: Zürich", "日本", "\ttabs  and spaces\n", "🙂🙃", " leading"]:
        assert fitted.decode(fitted.encode([text])[0]) == text


def test_tokens_know_where_their_words_begin() -> None:
    fitted = tokenizer.train(iter(TEXTS), 300)
    text = "the cat  sat\non naïve 日本"
    starts = fitted.starts(text)
    assert len(starts) == len(fitted.encode([text])[0])
    assert starts == sorted(starts)
    assert {text.index(word) for word in text.split()} <= set(starts)


def test_text_that_spells_a_special_token_stays_text() -> None:
    fitted = tokenizer.train(iter(TEXTS), 300)
    ids = fitted.encode(["a <|end|> b <|separator|>"])[0]
    assert fitted.end not in ids
    assert fitted.separator not in ids
    assert fitted.decode(ids) == "a <|end|> b <|separator|>"


def test_documents_end_once_and_only_at_the_end() -> None:
    fitted = tokenizer.train(iter(TEXTS), 300)
    for ids in fitted.documents(TEXTS[:3]):
        assert ids.count(fitted.end) == 1
        assert ids[-1] == fitted.end


def test_training_repeats_to_the_byte_and_saves_as_hugging_face(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name in ("a", "b"):
        tokenizer.train(iter(TEXTS), 300).save(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert [(tmp_path / "a" / f).read_bytes() for f in files] == [(tmp_path / "b" / f).read_bytes() for f in files]
    ours, theirs = tokenizer.load(tmp_path / "a"), AutoTokenizer.from_pretrained(tmp_path / "a")
    assert theirs("the cat")["input_ids"] == ours.encode(["the cat"])[0]
    assert theirs.eos_token_id == ours.end
    assert ours.vocab_size == len(theirs)


def test_a_hugging_face_tokenizer_gains_a_separator(tmp_path: Path) -> None:
    tokenizer.train(iter(TEXTS), 300).save(tmp_path)
    found = tokenizer.from_hugging_face(str(tmp_path))
    assert found.separator != found.end
    assert found.vocab_size > found.separator


def test_too_small_missing_and_corrupt(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need 258"):
        tokenizer.train(iter(TEXTS), 100)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        tokenizer.from_hugging_face(str(tmp_path / "none"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptArtifact, match="not a tokenizer"):
        tokenizer.load(tmp_path)


def test_strings_without_spaces_take_time_in_proportion_and_ordinary_text_is_cut_as_ever() -> None:
    from tokenizers import pre_tokenizers

    rng = random.Random(0)
    long = ["".join(rng.choice("ACGTXYZQ") for _ in range(20_000)) for _ in range(10)]
    begun = time.process_time()
    fitted = tokenizer.train(iter(long), 600)
    (ids,) = fitted.encode(["".join(long)])
    assert time.process_time() - begun < 6  # 0.7 s; without a bound about 16
    assert fitted.decode(ids) == "".join(long)
    ours, theirs = fitted.backend.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in [*TEXTS[:3], "don't  we'll\t\n x", "if x:\n        y += 1  # …", " " * 90 + "z", "हिन्दी 12,345.6", "a" * 128]:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)
