import numpy as np
import pytest

from synthboot import config
from synthboot.artifacts.analysis import PersonalData
from synthboot.data import personal
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.stages import analyze

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(2, 30, 40).tolist() for _ in range(25)]
CORPUS = Tokens.of([[*document, 0] for document in DOCUMENTS])
CFG = config.Analyze(copy_tokens=5)


def sample_with_a_copy(document: list[int]) -> np.ndarray:
    """Ten tokens of a document, between ten of no document and another ten."""
    before, after = RNG.integers(2, 30, (2, 10))
    return np.concatenate((before, document[5:15], after))


SAMPLES = [sample_with_a_copy(document) for document in DOCUMENTS[:8]]


def runs(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def corpus_runs(n: int) -> set[tuple[int, ...]]:
    return set().union(*(runs(document, n) for document in DOCUMENTS))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_novel_share_against_sets(n: int) -> None:
    known = corpus_runs(n)
    is_novel = []
    for sample in SAMPLES:
        is_novel += [run not in known for run in runs(sample.tolist(), n)]
    assert analyze.novel_share(SAMPLES, CORPUS, n) == pytest.approx(np.mean(is_novel))


def test_corpus_masks_mark_planted_copies_and_runs_across_documents_do_not_count() -> None:
    known = corpus_runs(5)
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
    d1 = [np.array(document) for document in DOCUMENTS[:8]]
    another = d1[1:] + d1[:1]
    for mask in analyze.d1_masks(SAMPLES, d1, 5):
        assert mask[10:20].all()
    for mask in analyze.d1_masks(SAMPLES, another, 5):
        assert not mask[10:20].all()


def test_measures_of_a_sample() -> None:
    loop = np.array([3, 4] * 30)
    twice = ["one two three four five six seven"] * 2
    once = [f"text {i} of its own kind number {i}" for i in range(7)]
    d1 = [np.array(DOCUMENTS[0])] * 9
    result = analyze.analyze([*SAMPLES, loop], twice + once, CORPUS, CFG, given=d1)
    assert result.docs == 9
    assert result.duplicates == pytest.approx(2 / 9)
    assert result.looping == pytest.approx(1 / 9)
    assert result.copied_from_corpus.longest_max >= 10
    assert result.copied_from_d1 is not None
    assert result.copied_from_d1.docs == pytest.approx(1 / 9)
    assert result.tokens_mean == pytest.approx((8 * 30 + 60) / 9)


def test_an_empty_sample_is_measured_as_nothing() -> None:
    nothing = analyze.analyze([], [], CORPUS, CFG)
    assert nothing.docs == 0
    assert nothing.copied_from_d1 is None


def test_segments_follow_the_mark() -> None:
    tokenizer = tokenizers.train(iter(["abc abc"] * 20), 280)
    [tokens] = tokenizer.encode(["abc日 fgh"])
    parts = [tokenizer.decode(np.array([token])) for token in tokens]
    mark = np.zeros(len(tokens), np.int64)
    mark[parts.index("\ufffd") + 1 :] = 2  # from amid a character, which stays whole
    mark[-1] = 1
    assert analyze.segments(tokenizer, np.array(tokens), mark) == (("abc日", 0), (" fg", 2), ("h", 1))
    mark[-2] = 5
    mark[parts.index("\ufffd") + 2] = 7  # a part of no character of its own
    assert analyze.segments(tokenizer, np.array(tokens), mark) == (("abc日", 0), (" f", 2), ("g", 5), ("h", 1))


def test_verbatim_spans_are_those_of_one_document_in_one_piece() -> None:
    random = np.random.default_rng(5)
    documents = [[*random.integers(1, 4_000, 160).tolist(), 0] for _ in range(6)]
    corpus = Tokens.of(documents)

    def new(length: int) -> list[int]:
        return random.integers(5_000, 9_000, length).tolist()

    samples = [
        new(30) + documents[0][20:72] + new(9),  # 52 in one piece
        documents[1][:15] + documents[2][40:60],  # 35 stitched: 20 in one piece
        documents[3][-40:-1] + documents[4][:30],  # 39, and none across the end
        new(80),
        documents[5][:7],
    ]
    found = analyze.verbatim_spans([np.array(sample) for sample in samples], corpus)
    longest = [52, 20, 39, 0, 7]
    assert found == {n: sum(length >= n for length in longest) / 5 for n in analyze.SPANS}
    assert set(analyze.verbatim_spans([], corpus).values()) == {0.0}


def test_type_token_ratio_does_not_depend_on_how_much_there_is() -> None:
    assert analyze.type_token_ratio(["a b c d", "a a a a"], segment=4) == pytest.approx((1 + 0.25) / 2)
    assert analyze.type_token_ratio(["a b"] * 40, segment=4) == pytest.approx(0.5)
    assert analyze.type_token_ratio(["a b c"], segment=4) is None


def test_personal_data_of_which_the_corpus_holds_some() -> None:
    corpus = personal.times(["write to a@example.com", "or to b@example.com"])
    times = personal.times(["a@example.com, a@example.com and z@example.com", "192.168.1.9"])
    found = analyze.personal_data(times, corpus)
    assert found["e-mail"] == PersonalData(found=3, different=2, verbatim=1)
    assert found["IP address"] == PersonalData(found=1, different=1, verbatim=0)
    assert found["phone"] == PersonalData(found=0, different=0, verbatim=0)
