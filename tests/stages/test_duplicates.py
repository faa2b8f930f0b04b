from pathlib import Path

import numpy as np
import pytest

from synthboot.artifacts.analysis import Duplicates
from synthboot.data import near_duplicates
from synthboot.stages import duplicates
from synthboot.stages.duplicates import JACCARD

RNG = np.random.default_rng(0)


def document(number: int) -> str:
    return " ".join(f"w{number}x{i}" for i in range(30))


def nearly(text: str) -> str:
    """The same but for its last word: Jaccard 0.93."""
    return text.rsplit(" ", 1)[0] + " other"


CORPUS = [document(1_000 + i) for i in range(40)]
SAMPLE = [document(i) for i in range(300)]
for copy, origin in [(7, 3), (150, 149), (151, 149), (299, 0), (250, 251)]:
    SAMPLE[copy] = nearly(SAMPLE[origin])
SAMPLE[20] = nearly(CORPUS[5])
SAMPLE[21] = CORPUS[6]


def share(docs: list[str]) -> float:
    """Every pair compared."""
    hit = [any(near_duplicates.similarity(a, b) >= JACCARD for j, b in enumerate(docs) if i != j) for i, a in enumerate(docs)]
    return sum(hit) / len(hit)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Duplicates:
    folder = tmp_path_factory.mktemp("signatures")
    return duplicates.duplicates(SAMPLE, CORPUS, duplicates.signatures(CORPUS, folder / "corpus"), folder / "sample")


def test_the_curve_against_all_pairs_of_every_beginning(found: Duplicates) -> None:
    assert [n for n, _ in found.curve] == [100, 200, 300]
    # whole texts are compared for the copies alone; no other two have a run in common
    for n, measured in found.curve:
        head = [SAMPLE[i] for i in range(n) if i in (0, 3, 7, 20, 21, 149, 150, 151, 250, 251, 299)]
        assert measured == pytest.approx(share(head) * len(head) / n)


def test_what_the_corpus_holds(found: Duplicates) -> None:
    assert found.corpus == pytest.approx(2 / 300)


def test_a_document_written_many_times_is_found_in_the_corpus_every_time(tmp_path: Path) -> None:
    sample = [CORPUS[5]] * 40
    of_corpus = duplicates.signatures(CORPUS, tmp_path / "corpus")
    found = duplicates.duplicates(sample, CORPUS, of_corpus, tmp_path / "sample")
    assert found.corpus == 1
    assert found.curve == ((40, 1.0),)


def test_curve_of_any_pairs_against_counting() -> None:
    for docs in (0, 1, 99, 100, 101, 2_345):
        pairs = np.sort(RNG.integers(0, max(docs, 1), (docs // 3, 2)), 1)
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        curve = duplicates.curve(pairs, docs)
        assert [n for n, _ in curve] == [n for n in (100, 200, 500, 1_000, 2_000) if n < docs] + [docs] * (docs > 0)
        for n, measured in curve:
            inside = pairs[pairs[:, 1] < n]
            assert measured == pytest.approx(len(np.unique(inside)) / n)


def test_nothing_has_no_duplicates(tmp_path: Path) -> None:
    nothing = duplicates.signatures([], tmp_path / "corpus")
    assert duplicates.duplicates([], [], nothing, tmp_path / "sample") == Duplicates((), None)
    assert duplicates.duplicates(["a b"], [], nothing, tmp_path / "sample").curve == ((1, 0.0),)


def test_signatures_lie_on_disk_block_by_block(tmp_path: Path) -> None:
    texts = [document(i % 50) for i in range(5_000)]
    rows = duplicates.signatures(texts, tmp_path / "rows")
    assert isinstance(rows, np.memmap)
    assert np.array_equal(rows[:50], rows[4_950:])
    assert np.array_equal(rows[:50], near_duplicates.signatures(texts[:50]))
