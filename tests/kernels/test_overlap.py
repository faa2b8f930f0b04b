"""The loop of the overlap of pairs finds what sets of runs find."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthboot.kernels import library, overlap

pytestmark = pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1, max_size=5)


def end_to_end(texts: list[list[int]]) -> overlap.Texts:
    flat = np.array([token for text in texts for token in text], np.int32)
    return flat, np.cumsum([0, *map(len, texts)], dtype=np.int64)


def share(a: list[int], b: list[int], n: int) -> float:
    """Run by run."""
    n = min(n, len(a), len(b))
    first, second = ({tuple(text[i : i + n]) for i in range(len(text) - n + 1)} if n else set() for text in (a, b))
    return len(first & second) / min(len(first), len(second)) if n else 0.0


@given(TEXTS, TEXTS, st.integers(1, 15))
def test_shares_are_those_of_sets_of_runs(a: list[list[int]], b: list[list[int]], n: int) -> None:
    x, y = (side.ravel().astype(np.int64) for side in np.meshgrid(range(len(a)), range(len(b)), indexing="ij"))
    found = overlap.containments(end_to_end(a), end_to_end(b), x, y, n)
    assert found.tolist() == [share(a[i], b[j], n) for i, j in zip(x, y, strict=True)]


def test_runs_are_told_apart_however_long_the_text() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 300, (2, 50_000)).tolist()
    b[20_000:30_000] = a[:10_000]
    one = np.zeros(1, np.int64)
    assert overlap.containments(end_to_end([a]), end_to_end([b]), one, one, 3).tolist() == [share(a, b, 3)]


def test_runs_of_equal_hashes_are_told_apart() -> None:
    """Of the Thue-Morse sequence and its complement every hash by powers of an odd number is equal, modulo 2^64."""
    a = [0]
    while len(a) < 2_048:
        a += [1 - token for token in a]
    b = [1 - token for token in a]
    hashes = [sum(token * pow(0xBF58476D1CE4E5B9, i, 1 << 64) for i, token in enumerate(text[::-1])) for text in (a, b)]
    assert hashes[0] % (1 << 64) == hashes[1] % (1 << 64)
    one = np.zeros(1, np.int64)
    assert overlap.containments(end_to_end([a]), end_to_end([b]), one, one, len(a)).tolist() == [0]


@pytest.mark.parametrize(("x", "y"), [(2, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_text_that_is_not_there_is_refused(x: int, y: int) -> None:
    with pytest.raises(IndexError):
        overlap.containments(end_to_end([[1], [2]]), end_to_end([[3]]), np.array([x]), np.array([y]), 1)


@pytest.mark.parametrize("bounds", [[0, 1], [1, 2], [0, 3, 2]])
def test_bounds_that_are_not_the_texts_are_refused(bounds: list[int]) -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="bounds"):
        overlap.containments((np.array([7, 8], np.int32), np.array(bounds)), end_to_end([[3]]), one, one, 1)
