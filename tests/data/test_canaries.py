"""Texts that are planted, and how much easier than others a model finds them."""

import math

import numpy as np
import pytest

from synthboot import config
from synthboot.data.canaries import among, draw, exposure, planted
from synthboot.data.tokens import Tokens
from synthboot.errors import DataError

TEXTS = ["the cat sat on the mat", "a dog ran up to the log and down again"]


def test_canaries_are_drawn_alike_from_the_words_of_the_text_and_no_two_are_the_same() -> None:
    cfg = config.Canaries(count=3, copies=[1, 5], words=6, candidates=40)
    drawn = draw(iter(TEXTS), cfg)
    assert [c.copies for c in drawn] == [1] * 3 + [5] * 3 + [0] * 40
    assert len({c.text for c in drawn}) == len(drawn)
    assert planted(drawn) == drawn[:6]
    known = set(" ".join(TEXTS).split())
    for canary in drawn:
        assert len(canary.text.split()) == 6
        assert set(canary.text.split()) <= known
    assert draw(iter(TEXTS[::-1]), cfg) == drawn
    assert draw(iter(TEXTS), cfg.model_copy(update={"seed": 1})) != drawn


@pytest.mark.parametrize("texts", [["one two"], [], ["..."]])
def test_too_few_words_for_so_many_canaries_are_named(texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"make too few texts of 8 words for 1,026 canaries; raise canaries\.words"):
        draw(texts, config.Canaries(count=1))


def test_exposure_is_how_many_bits_a_rank_is_better_than_chance() -> None:
    random = np.random.default_rng(0)
    loss, candidates = random.integers(0, 20, 30).astype(float), random.integers(0, 20, 63).astype(float)
    for value, bits in zip(loss, exposure(loss, candidates), strict=True):
        rank = 1 + sum(other <= value for other in candidates)
        assert bits == pytest.approx(math.log2(64 / rank))
    assert exposure(np.array([-1.0, 99.0]), candidates).tolist() == [6.0, 0.0]


def test_by_chance_the_mean_exposure_is_at_most_what_is_said() -> None:
    drawn = np.random.default_rng(1).random((400, 64))
    bits = [float(exposure(row[:1], row[1:])[0]) for row in drawn]
    assert 1.2 < np.mean(bits) < 1.44 + 0.1
    # P(exposure >= k) = 2^-k
    assert np.mean(np.array(bits) >= 3) == pytest.approx(1 / 8, abs=0.04)


def test_documents_that_are_canaries_are_so_token_for_token() -> None:
    documents = Tokens.of([[5, 6, 7, 0], [5, 6, 8, 0], [5, 6, 0], [5, 6, 7, 0], [9, 0]])
    assert among(documents, Tokens.of([[5, 6, 7, 0], [9, 0]])).tolist() == [True, False, False, True, True]
    assert among(documents, Tokens.of([])).tolist() == [False] * 5
