import numpy as np
import pytest

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.stages import analyze

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(2, 30, 40).tolist() for _ in range(25)]
CORPUS = Tokens.of([[*d, 0] for d in DOCUMENTS])
CFG = config.Analyze(copy_tokens=5)


def runs(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


SAMPLES = [np.array([*RNG.integers(2, 30, 10), *DOCUMENTS[i][5:15], *RNG.integers(2, 30, 10)]) for i in range(8)]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_novel_share_against_sets(n: int) -> None:
    known = {run for d in DOCUMENTS for run in runs(d, n)}
    found = [run for s in SAMPLES for run in runs(s.tolist(), n)]
    assert analyze.novel_share(SAMPLES, CORPUS, n) == pytest.approx(np.mean([r not in known for r in found]))


def test_corpus_masks_mark_planted_copies_and_runs_across_documents_do_not_count() -> None:
    known = {run for d in DOCUMENTS for run in runs(d, 5)}
    for sample, mask in zip(SAMPLES, analyze.corpus_masks(SAMPLES, CORPUS, 5), strict=True):
        expected = np.zeros(len(sample), bool)
        for i, run in enumerate(runs(sample.tolist(), 5)):
            if run in known:
                expected[i : i + 5] = True
        assert (mask == expected).all()
        assert mask[10:20].all()
    across = np.array([*DOCUMENTS[0][-3:], *DOCUMENTS[1][:3]])
    assert not analyze.corpus_masks([across], CORPUS, 5)[0].any()


def test_a_head_of_the_corpus_ends_where_it_ends() -> None:
    beyond = np.array(DOCUMENTS[20])
    assert analyze.corpus_masks([beyond], CORPUS, 5)[0].all()
    assert not analyze.corpus_masks([beyond], CORPUS.head(20), 5)[0].any()


def test_copying_from_d1_looks_at_that_d1_alone() -> None:
    given = [np.array(DOCUMENTS[i]) for i in range(8)]
    assert all(m[10:20].all() for m in analyze.d1_masks(SAMPLES, given, 5))
    assert not any(m[10:20].all() for m in analyze.d1_masks(SAMPLES, given[1:] + given[:1], 5))


def test_measures_of_a_sample() -> None:
    loop = np.array([3, 4] * 30)
    texts = ["one two three four five six seven"] * 2 + [f"text {i} of its own kind number {i}" for i in range(7)]
    result = analyze.analyze([*SAMPLES, loop], texts, CORPUS, CFG, given=[np.array(DOCUMENTS[0])] * 9)
    assert result["docs"] == 9
    assert result["duplicates"] == pytest.approx(2 / 9)
    assert result["looping"] == pytest.approx(1 / 9)
    assert result["copied_from_corpus"]["longest_max"] >= 10
    assert result["copied_from_d1"]["docs"] == pytest.approx(1 / 9)
    assert result["tokens_mean"] == pytest.approx((8 * 30 + 60) / 9)


def test_an_empty_sample_is_measured_as_nothing() -> None:
    assert analyze.analyze([], [], CORPUS, CFG)["docs"] == 0


def test_segments_follow_the_mark() -> None:
    tokenizer = tokenizers.train(iter(["abc abc"] * 20), 280)
    [tokens] = tokenizer.encode(["abc日 fgh"])
    parts = [tokenizer.decode(np.array([token])) for token in tokens]
    mark = np.zeros(len(tokens), np.int64)
    mark[parts.index("\ufffd") + 1 :] = 2  # from amid a character, which stays whole
    mark[-1] = 1
    assert analyze.segments(tokenizer, np.array(tokens), mark) == [("abc日", 0), (" fg", 2), ("h", 1)]
    mark[-2] = 5
    mark[parts.index("\ufffd") + 2] = 7  # a part of no character of its own
    assert analyze.segments(tokenizer, np.array(tokens), mark) == [("abc日", 0), (" f", 2), ("g", 5), ("h", 1)]
