from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthboot.data import tokens
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, CorruptArtifact

DOCUMENTS = [[5, 6, 7], [8], [], [9, 10], [11, 12, 13, 14]]


def as_lists(tokens: Tokens) -> list[list[int]]:
    return [tokens[doc].tolist() for doc in range(len(tokens))]


def shard(folder: Path, documents: list[list[int]], vocab_size: int = 1_000) -> Path:
    folder.mkdir()
    tokens.write(folder, documents, vocab_size)
    return folder


@pytest.mark.parametrize("vocab_size", [1 << 16, (1 << 16) + 1])
def test_documents_come_back_across_shards(tmp_path: Path, vocab_size: int) -> None:
    first = shard(tmp_path / "0", DOCUMENTS[:2], vocab_size)
    second = shard(tmp_path / "1", DOCUMENTS[2:], vocab_size)
    found = Tokens.open([first, second])
    assert as_lists(found) == DOCUMENTS
    assert found.num_tokens == 10
    assert found.shards[0].dtype.itemsize == (2 if vocab_size <= 1 << 16 else 4)


def test_heads_are_nested(tmp_path: Path) -> None:
    found = Tokens.open([shard(tmp_path / "0", DOCUMENTS[:2]), shard(tmp_path / "1", DOCUMENTS[2:])])
    head = found.head(4)
    assert len(head) == 4
    assert head.num_tokens == 6
    assert head[3].tolist() == DOCUMENTS[3]


def test_texts_are_without_their_ends(tmp_path: Path) -> None:
    shards = [DOCUMENTS[:2], [], DOCUMENTS[2:]]
    found = Tokens.open([shard(tmp_path / str(number), documents) for number, documents in enumerate(shards)])
    for chosen in ([0, 1, 2, 3, 4], [1, 3], [4], []):
        flat, bounds = found.texts(np.array(chosen, np.int64))
        texts = [flat[start:stop].tolist() for start, stop in pairwise(bounds)]
        assert texts == [DOCUMENTS[doc][:-1] for doc in chosen]

    flat, bounds = found.head(1).texts(np.array([0]))
    assert flat.tolist() == [5, 6]
    assert bounds.tolist() == [0, 2]


def test_docs_holding_a_number_of_tokens() -> None:
    found = Tokens.of(DOCUMENTS)
    assert [found.docs_holding(n, "x") for n in (1, 3, 4, 5, 6, 10)] == [1, 1, 2, 4, 4, 5]
    with pytest.raises(BudgetError, match=r"arms\.oracle: 11 asked for, the pool has 10"):
        found.docs_holding(11, "arms.oracle")


def test_memory_is_mapped_not_read(tmp_path: Path) -> None:
    found = Tokens.open([shard(tmp_path / "0", DOCUMENTS)])
    assert isinstance(found.shards[0], np.memmap)


def test_a_shard_that_does_not_fit_its_index_is_refused(tmp_path: Path) -> None:
    folder = shard(tmp_path / "0", DOCUMENTS)
    (folder / "tokens.bin").write_bytes(b"\0" * 7)
    with pytest.raises(CorruptArtifact, match=r"tokens\.bin: 7 bytes do not fit 10 tokens"):
        Tokens.open([folder])


def test_joined_documents_are_the_first_ones_then_the_others(tmp_path: Path) -> None:
    first = Tokens.open([shard(tmp_path / "0", [[1, 2], [3]]), shard(tmp_path / "1", [[4, 5, 6], [7]])])
    others = Tokens.of([[70_000], [8, 9]])  # of another width
    for head in range(1, 5):  # a head may end inside a shard, at its edge, or before a shard begins
        both = first.head(head).joined(others)
        expected = as_lists(first)[:head] + as_lists(others)
        assert as_lists(both) == expected
        assert both.num_tokens == sum(map(len, expected))
        assert both.lengths.tolist() == list(map(len, expected))


@given(st.lists(st.tuples(st.integers(-5, 2**40), st.integers(0, 6)), max_size=8))
def test_ranges_are_those_of_a_loop(of: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in of], np.int64)
    counts = np.array([count for _, count in of], np.int64)
    by_hand: list[int] = []
    for start, count in of:
        by_hand += range(start, start + count)
    assert tokens.ranges(starts, counts).tolist() == by_hand
