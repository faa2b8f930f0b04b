import json
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from synthboot import config
from synthboot.data import tokenizer
from synthboot.errors import ConfigError, CorruptArtifact, DataError
from synthboot.stages.corpus import corpus
from tests.conftest import write_jsonl
from tests.limits import limit

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


def kinds() -> dict[str, Any]:
    """Every kind of Hugging Face's fast tokenizers, tiny, by how they are put together."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    whole = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s"), "isolated"), level])
    folded = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bpe, unigram = trainers.BpeTrainer, trainers.UnigramTrainer
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    return {
        "byte-level BPE": (models.BPE(), None, level, decoders.ByteLevel(), partial(bpe, initial_alphabet=alphabet), []),
        "BPE that takes whole words": (
            models.BPE(ignore_merges=True),
            None,
            words,
            decoders.ByteLevel(),
            partial(bpe, initial_alphabet=alphabet),
            [],
        ),
        "BPE with bytes": (models.BPE(unk_token="<unk>", byte_fallback=True), spaces, None, whole, bpe, bytes_),
        "BPE of letters": (models.BPE(unk_token="<unk>"), None, pre_tokenizers.WhitespaceSplit(), None, bpe, []),
        "Unigram": (
            models.Unigram(),
            None,
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
            partial(unigram, unk_token="<unk>"),
            [],
        ),
        "Unigram, folded": (
            models.Unigram(),
            folded,
            pre_tokenizers.Metaspace(),
            decoders.Metaspace(),
            partial(unigram, unk_token="<unk>"),
            [],
        ),
        "WordPiece": (
            models.WordPiece(unk_token="<unk>"),
            folded,
            pre_tokenizers.WhitespaceSplit(),
            decoders.WordPiece(),
            trainers.WordPieceTrainer,
            [],
        ),
        "WordLevel": (
            models.WordLevel(unk_token="<unk>"),
            None,
            pre_tokenizers.WhitespaceSplit(),
            None,
            trainers.WordLevelTrainer,
            [],
        ),
    }


def made(kind: str, end: str, folder: Path, unknown: str | None = "<unk>", special: bool = True, chat: bool = True) -> str:
    """A tokenizer of a kind, whose vocabulary spells its end token and two tokens of chats, as saved by its owner."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    model, normalizer, pre_tokenizer, decoder, trainer, more = kinds()[kind]
    backend = Backend(model)
    for name, part in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)):
        if part is not None:
            setattr(backend, name, part)
    tokens = [*dict.fromkeys(["<unk>", end, "<|im_start|>"]), *more]
    backend.train_from_iterator(
        [*TEXTS, *SPELLED], trainer(special_tokens=tokens, vocab_size=len(tokens) + 330, show_progress=False)
    )
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] and special
    if unknown != "<unk>":
        state["model"]["unk_token"] = unknown
    owner = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(json.dumps(state)), eos_token=end)
    if chat:
        owner.add_special_tokens({"additional_special_tokens": ["[USER]"]})
    owner.save_pretrained(folder)
    return str(folder)


SPELLED = [
    "x </s> y",
    "</s>",
    "a</s></s>b",
    "x <eos> y",
    "<eos>",
    "x <|endoftext|> y",
    "<|endoftext|>",
    "<|im_start|> hi [USER] hi",
    "<|separator|>",
    "\uff1c\uff0f\uff53\uff1e",
    "</S> <EOS>",
    "<unk> <pad> <0x0A>",
]


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("end", ["</s>", "<eos>", "<|endoftext|>"])
@pytest.mark.parametrize("kind", list(kinds()))
def test_text_never_becomes_a_control_token(kind: str, end: str, special: bool, tmp_path: Path) -> None:
    found = tokenizer.from_hugging_face(made(kind, end, tmp_path, special=special))
    found.save(tmp_path / "again")
    control = {found.backend.token_to_id(name) for name in (end, "<|im_start|>", "[USER]", tokenizer.SEPARATOR)}
    assert None not in control
    for fitted in (found, tokenizer.load(tmp_path / "again")):
        for text, ids in zip(SPELLED, fitted.encode(SPELLED), strict=True):
            assert not control & set(ids), text
            assert ids, text
            if kind.startswith(("byte", "BPE that", "BPE with")):
                assert fitted.decode(ids) == text
        assert [ids[-1] for ids in fitted.documents(SPELLED)] == [found.end] * len(SPELLED)
        assert fitted.end == found.end
    assert found.encode(TEXTS[:3]) == tokenizer.load(tmp_path / "again").encode(TEXTS[:3])


def test_what_cannot_be_made_safe_is_refused_by_name(tmp_path: Path) -> None:
    for end, kind, unknown, why in (
        ("<eos>", "WordLevel", "<eos>", r"its WordLevel lets text end documents: .* becomes the control token '<eos>'"),
        ("\n", "Unigram", "<unk>", r"its Unigram lets text end documents: .* becomes the control token '\\n'"),
        ("</s>", "WordLevel", "<none>", r"its WordLevel cannot encode what it does not know"),
        ("</s>", "BPE of letters", None, r"its BPE drops what it does not know without a word, such as 'ж'"),
    ):
        with pytest.raises(ConfigError, match=rf"corpus.tokenizer: .*{why}.*; choose another, or `train`"):
            tokenizer.from_hugging_face(made(kind, end, tmp_path / why[:20] / kind, unknown=unknown))


def test_what_a_vocabulary_does_not_know_can_be_counted(tmp_path: Path) -> None:
    found = tokenizer.from_hugging_face(made("WordLevel", "</s>", tmp_path))
    assert found.unknown is not None
    assert found.encode(["the cat sat on a zebra </s>"])[0].count(found.unknown) == 4  # a, zebra, < and /s>
    assert tokenizer.train(iter(TEXTS), 300).unknown is None


def test_ids_that_stand_for_nothing(tmp_path: Path) -> None:
    fitted = tokenizer.train(iter(TEXTS), 300)
    assert fitted.absent(fitted.vocab_size) == []
    assert fitted.absent(fitted.vocab_size + 2) == [fitted.vocab_size, fitted.vocab_size + 1]
    state = json.loads(fitted.backend.to_str())
    del state["model"]["vocab"][fitted.backend.id_to_token(280)]
    state["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    fitted.save(tmp_path / "whole")
    (tmp_path / "tokenizer_config.json").write_bytes((tmp_path / "whole" / "tokenizer_config.json").read_bytes())
    assert 280 in tokenizer.load(tmp_path).absent(fitted.vocab_size)


def test_the_corpus_counts_what_its_tokenizer_does_not_know_or_refuses_it(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": f"the cat sat on the mat and the zebra{i} </s>"} for i in range(40)]
    settings = {
        "source": str(write_jsonl(tmp_path / "in.jsonl", rows)),
        "validation_docs": 5,
        "test_docs": 5,
        "near_duplicates": "off",
        "tokenizer": made("WordLevel", "</s>", tmp_path / "words"),
    }
    found = corpus(config.Corpus(**settings), "all", tmp_path / "out")
    assert found.unknown_tokens == 40 * 4  # and, zebra, < and /s>
    assert sum(found.documents.values()) == 40
    for row in rows:
        row["text"] = f"zebra{row['id']} quagga okapi"
    write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(DataError, match=r"corpus.tokenizer: .*: 120 of 160 tokens stand for text that it does not know"):
        corpus(config.Corpus(**settings), "all", tmp_path / "other")


def test_strings_without_spaces_take_time_in_proportion_and_ordinary_text_is_cut_as_ever() -> None:
    from tokenizers import pre_tokenizers

    rng = random.Random(0)
    long = ["".join(rng.choice("ACGTXYZQ") for _ in range(20_000)) for _ in range(10)]
    begun = time.process_time()
    fitted = tokenizer.train(iter(long), 600)
    (ids,) = fitted.encode(["".join(long)])
    assert time.process_time() - begun < limit(6)  # 0.7 s; without a bound about 16
    assert fitted.decode(ids) == "".join(long)
    ours, theirs = fitted.backend.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in [*TEXTS[:3], "don't  we'll\t\n x", "if x:\n        y += 1  # …", " " * 90 + "z", "हिन्दी 12,345.6", "a" * 128]:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)
