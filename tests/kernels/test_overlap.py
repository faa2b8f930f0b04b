"""The loop of the overlap of pairs finds what sets of runs find."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthboot.kernels import library, overlap

pytestmark = pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1, max_size=5)
FIRST = np.zeros(1, np.int64)
"""The number of the only text there is."""


def end_to_end(texts: list[list[int]]) -> overlap.Texts:
    tokens = np.array(list(chain.from_iterable(texts)), np.int32)
    bounds = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return tokens, bounds


def share(a: list[int], b: list[int], n: int) -> float:
    """Run by run."""
    n = min(n, len(a), len(b))
    if n == 0:
        return 0.0
    first = {tuple(a[i : i + n]) for i in range(len(a) - n + 1)}
    second = {tuple(b[i : i + n]) for i in range(len(b) - n + 1)}
    return len(first & second) / min(len(first), len(second))


def polynomial_hash(text: list[int]) -> int:
    """By powers of an odd number, modulo 2^64."""
    value = 0
    for token in text:
        value = (value * 0xBF58476D1CE4E5B9 + token) % (1 << 64)
    return value


@given(TEXTS, TEXTS, st.integers(1, 15))
def test_shares_are_those_of_sets_of_runs(a: list[list[int]], b: list[list[int]], n: int) -> None:
    d1 = np.repeat(np.arange(len(a)), len(b))
    d2 = np.tile(np.arange(len(b)), len(a))
    found = overlap.containments(end_to_end(a), end_to_end(b), d1, d2, n)
    assert found.tolist() == [share(a[i], b[j], n) for i, j in zip(d1, d2, strict=True)]


def test_runs_are_told_apart_however_long_the_text() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 300, (2, 50_000)).tolist()
    b[20_000:30_000] = a[:10_000]
    found = overlap.containments(end_to_end([a]), end_to_end([b]), FIRST, FIRST, 3)
    assert found.tolist() == [share(a, b, 3)]


def test_runs_of_equal_hashes_are_told_apart() -> None:
    """The Thue-Morse sequence and its complement have the same hash, whatever the odd number."""
    a = [0]
    while len(a) < 2_048:
        a += [1 - token for token in a]
    b = [1 - token for token in a]
    assert polynomial_hash(a) == polynomial_hash(b)
    found = overlap.containments(end_to_end([a]), end_to_end([b]), FIRST, FIRST, len(a))
    assert found.tolist() == [0]


@pytest.mark.parametrize(("x", "y"), [(2, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_text_that_is_not_there_is_refused(x: int, y: int) -> None:
    with pytest.raises(IndexError):
        overlap.containments(end_to_end([[1], [2]]), end_to_end([[3]]), np.array([x]), np.array([y]), 1)


@pytest.mark.parametrize("bounds", [[0, 1], [1, 2], [0, 3, 2]])
def test_bounds_that_are_not_the_texts_are_refused(bounds: list[int]) -> None:
    tokens = np.array([7, 8], np.int32)
    with pytest.raises(ValueError, match="bounds"):
        overlap.containments((tokens, np.array(bounds)), end_to_end([[3]]), FIRST, FIRST, 1)
