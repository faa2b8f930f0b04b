import time
from collections.abc import Callable

import numpy as np
import pytest

from synthboot.data import ngrams
from synthboot.data.tokens import Tokens
from synthboot.kernels import library


def runs(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def random_tokens(seed: int, length: int, vocab: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, length)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_hashes_are_equal_exactly_where_runs_are(n: int) -> None:
    tokens = random_tokens(0, 300)
    hashed, plain = ngrams.hashes(tokens, n), runs(tokens.tolist(), n)
    seen: dict[tuple[int, ...], int] = {}
    for value, run in zip(hashed.tolist(), plain, strict=True):
        assert seen.setdefault(run, value) == value
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("seed", range(5))
def test_containment_against_sets(seed: int) -> None:
    a, b = random_tokens(seed, 40), random_tokens(seed + 100, 25)
    first, second = set(runs(a.tolist(), 2)), set(runs(b.tolist(), 2))
    expected = len(first & second) / min(len(first), len(second))
    assert ngrams.containment(ngrams.hashes(a, 2), ngrams.hashes(b, 2)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_copied_against_brute_force(seed: int) -> None:
    sample, source, n = random_tokens(seed, 60, 3), random_tokens(seed + 50, 60, 3), 4
    reference = set(runs(source.tolist(), n))
    expected = np.zeros(60, bool)
    for i, run in enumerate(runs(sample.tolist(), n)):
        if run in reference:
            expected[i : i + n] = True
    copied = ngrams.copied(sample, np.unique(ngrams.hashes(source, n)), n)
    assert (copied == expected).all()
    longest = max((len(s) for s in "".join("x" if m else " " for m in expected).split()), default=0)
    assert ngrams.longest_run(copied) == longest


def test_repeated_share() -> None:
    assert ngrams.repeated_share(np.array([1, 2, 1, 2, 1, 2]), 2) == pytest.approx(3 / 5)
    assert ngrams.repeated_share(np.arange(10), 2) == 0
    assert ngrams.repeated_share(np.array([1]), 2) == 0


@pytest.mark.parametrize(("at_once", "threads"), [(1 << 23, 1), (2_000, 1), (2_000, 3)])
@pytest.mark.parametrize("compiled", [True, False])
def test_containment_of_many_pairs_is_that_of_each(
    compiled: bool, at_once: int, threads: int, without_kernels: Callable[[], None]
) -> None:
    if not compiled:
        without_kernels()
    rng = np.random.default_rng(0)
    texts = [rng.integers(2, 40, rng.integers(1, 60)).tolist() for _ in range(60)]
    texts += [t[: rng.integers(1, len(t) + 1)] + rng.integers(2, 40, 5).tolist() for t in texts]
    texts[7] = []  # its end alone
    a, b = Tokens.of([[*t, 0] for t in texts]), Tokens.of([[*t, 0] for t in texts[::-1]])
    d1, d2 = rng.integers(0, len(texts), (2, 1_000))
    for one, other in ((a, a), (a, b)):
        told: list[float] = []
        containments = ngrams.pair_containments(one, other, d1, d2, 13, at_once, threads, told.append)
        assert told == sorted(told)
        assert told[-1] == 1
        for i in range(len(d1)):
            x, y = one[int(d1[i])][:-1], other[int(d2[i])][:-1]
            n = max(1, min(13, len(x), len(y)))
            assert containments[i] == ngrams.containment(ngrams.hashes(x, n), ngrams.hashes(y, n))
    assert len(ngrams.pair_containments(a, a, d1[:0], d2[:0], 13)) == 0


@pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")
def test_a_long_document_is_read_once_for_all_short_ones_near_it() -> None:
    rng = np.random.default_rng(0)
    short_texts = [rng.integers(2, 40, size).tolist() for size in [4, 10] * 150]  # some have no run of five
    tokens = Tokens.of([rng.integers(2, 40, 100_000).tolist(), *short_texts])
    short, long = np.arange(1, 301), np.zeros(300, np.int64)

    def seconds(d1: np.ndarray, d2: np.ndarray) -> float:
        start = time.process_time()
        ngrams.pair_containments(tokens, tokens, d1, d2, 5)
        return time.process_time() - start

    seconds(short[:1], long[:1])
    one = max(seconds(short[:1], long[:1]) for _ in range(3))
    assert seconds(short, long) < 30 * one
    assert seconds(long, short) < 30 * one


@pytest.mark.parametrize("n", [1, 2, 13, 400])
@pytest.mark.parametrize("length", [0, 1, 5, 13, 700])
def test_a_run_is_hashed_by_its_tokens_wherever_it_stands(length: int, n: int) -> None:
    tokens = np.random.default_rng(length).integers(0, 50_000, length).astype(np.uint16)
    found = ngrams.hashes(tokens, n)
    size = min(n, length)
    expected = [ngrams.hashes(tokens[start : start + size], size)[0] for start in range(length - size + 1)] if length else []
    assert found.tolist() == expected
    # one multiply-add a token, modulo 2^64
    for start in range(0, len(found), 97):
        value = 0
        for token in tokens[start : start + size].tolist():
            mixed = (token + 1) * 0xBF58476D1CE4E5B9 % 2**64
            value = (value * 0x9E3779B97F4A7C15 + (mixed ^ mixed >> 29)) % 2**64
        assert found[start] == value ^ value >> 31
