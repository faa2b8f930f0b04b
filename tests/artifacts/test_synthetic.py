from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthboot.artifacts.store import Shards
from synthboot.artifacts.synthetic import Synthetic
from synthboot.data import tokens
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import CorruptArtifact


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text letter by letter, as a model may sample it and the tokenizer never writes it."""
    return [i for letter in text for [ids] in [tokenizer.encode([letter])] for i in ids]


def save(folder: Path, tokenizer: Tokenizer, chunks: list[list[dict[str, Any]]]) -> None:
    shards = Shards(folder / "chunks")
    for number, rows in enumerate(chunks):

        def write(out: Path, rows: list[dict[str, Any]] = rows) -> dict[str, Any]:
            told = [{**row, "tokens": len(row["tokens"])} for row in rows]
            pq.write_table(pa.Table.from_pylist(told), out / "synthetic.parquet")
            kept = [[*row["tokens"], tokenizer.end] for row in rows if row["verdict"] == "kept"]
            return {"tokens": tokens.write(out, kept, tokenizer.vocab_size)}

        shards.write(number, write)
    shards.close(len(chunks))


def row(d1: int, ids: list[int], tokenizer: Tokenizer, verdict: str = "kept") -> dict[str, Any]:
    return {
        "d1": d1,
        "sample": d1 % 2,
        "finish": "end",
        "verdict": verdict,
        "tokens": ids,
        "mean_logprob": -1.5,
        "text": tokenizer.decode(ids),
    }


def test_a_sample_keeps_the_tokens_that_were_sampled(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ["the cat sat on the mat", "the dog on the log", "the mat and the log"]
    sampled = [spelled(tokenizer, text) for text in texts]
    for text, ids in zip(texts, sampled, strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode([text])[0] != ids, "the test needs text that does not encode to itself"
    looping = row(9, sampled[0], tokenizer, "looping")
    save(
        tmp_path,
        tokenizer,
        [
            [row(4, sampled[0], tokenizer), looping],
            [looping],
            [looping, row(7, sampled[1], tokenizer), row(2, sampled[2], tokenizer)],
        ],
    )
    found = Synthetic.open(tmp_path)
    samples = list(found)
    assert [s.tokens.tolist() for s in samples] == sampled
    assert [s.text for s in samples] == texts == list(found.texts())
    assert [s.d1 for s in samples] == [4, 7, 2] == found.d1().tolist()
    assert [(s.sample, s.finish, s.mean_logprob) for s in samples] == [(0, "end", -1.5), (1, "end", -1.5), (0, "end", -1.5)]
    assert len(found) == 3


def test_texts_and_tokens_of_a_chunk_belong_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ids = spelled(tokenizer, "the cat")
    save(tmp_path, tokenizer, [[row(0, ids, tokenizer)], [row(1, ids, tokenizer)]])
    second = Shards(tmp_path / "chunks").path(1)
    tokens.write(second, [[*ids, tokenizer.end]] * 2, tokenizer.vocab_size)
    with pytest.raises(CorruptArtifact, match="1 texts were kept, but tokens of 2"):
        list(Synthetic.open(tmp_path))


def test_what_was_sampled_is_what_is_looked_for_in_d1(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """`analyze` marks copies by the sampled tokens: d1 and sample that read the same share a run only as they are spelled."""
    from synthboot import config
    from synthboot.artifacts.pairs import Pairs
    from synthboot.data.tokens import Tokens
    from synthboot.stages import analyze

    text = "the cat sat on the mat and the dog"
    usual, unusual = tokenizer.encode([text])[0], spelled(tokenizer, text)
    corpus = Tokens.of([[*ids, tokenizer.end] for ids in (usual, unusual)])
    save(tmp_path, tokenizer, [[row(0, unusual, tokenizer), row(1, unusual, tokenizer)]])
    pairs = Pairs(np.array([0, 1]), np.array([1, 0]), np.ones(2, np.float32), np.zeros(2, np.int64))
    cfg = config.Analyze(copy_tokens=10, examples=2)
    found = analyze.examples(list(Synthetic.open(tmp_path)), pairs, tokenizer, corpus, cfg)
    marks = [[mark for _, mark in example.sampled[0].segments] for example in found]
    assert marks == [[2], [1]]  # of the other document, spelled alike; of its own d1
    assert all("".join(p for p, _ in e.sampled[0].segments) == text for e in found)
    # what the real d2 shares with d1 is marked too
    assert [example.d2 for example in found] == [((text, 0),)] * 2
    corpus = Tokens.of([[*unusual, tokenizer.end]] * 2)
    [first, _] = analyze.examples(list(Synthetic.open(tmp_path)), pairs, tokenizer, corpus, cfg)
    assert first.d2 == ((text, 1),)
