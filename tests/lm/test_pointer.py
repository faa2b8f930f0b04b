"""The pointer beside an obviously correct reading: strings of letters, looked for one after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synthboot.lm import pointer
from tests.lm.conftest import looked_for

LETTERS = st.lists(st.integers(0, 3), min_size=1, max_size=14)


@given(LETTERS, LETTERS)
def test_a_d2_is_read_as_one_looks_for_its_words_in_d1(d1: list[int], d2: list[int]) -> None:
    reading = pointer.read(np.array(d1, np.uint16), np.array(d2, np.uint16))
    for t, token in enumerate(d2):
        length, following = looked_for(d1, d2[:t])
        copied = following.count(token) / len(following) if following else 0.0
        assert reading.match[t] == length
        assert reading.copied[t] == pytest.approx(copied)
        assert reading.in_d1[t] == pytest.approx(d1.count(token) / len(d1))


@given(LETTERS, LETTERS, st.integers(0, 10))
def test_a_step_of_sampling_has_the_probabilities_that_a_d2_is_read_with(d1: list[int], d2: list[int], more: int) -> None:
    # by the length of the match: what the model, the copy and any token of d1 weigh
    weights = tuple((0.95 - 0.1 * length, 0.1 * length, 0.05) for length in range(pointer.LONGEST_MATCH + 1))
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(len(d2), 6)))  # a row for each token of d2, as if it was to be drawn
    source = torch.full((len(d2), len(d1) + more), pointer.NO_TOKEN)  # filled up, as beside a longer d1
    source[:, : len(d1)] = torch.tensor(d1)
    written = torch.tensor([[*d2, 9]] * len(d2))  # what comes after `count` is not there yet
    count = torch.arange(len(d2))

    mixed = pointer.mixed(logits, source, written, count, torch.tensor(weights, dtype=torch.float64))
    probabilities = mixed.exp()
    assert torch.allclose(probabilities.sum(1), torch.ones(len(d2), dtype=torch.float64), atol=1e-5)

    reading = pointer.read(np.array(d1), np.array(d2))
    of_model = torch.softmax(logits.float(), 1)[count, d2].numpy()
    by_part = np.stack((of_model, reading.copied, reading.in_d1), axis=1)
    expected = (np.array(weights)[reading.match] * by_part).sum(1)
    assert np.allclose(probabilities[count, d2].numpy(), expected, atol=1e-5)
    assert pointer.losses([reading], [of_model], weights) == pytest.approx(-np.log(expected).sum())


def test_rows_without_a_source_stay_as_they_are() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    source = torch.tensor([[3, 1], [pointer.NO_TOKEN] * 2])
    weights = torch.tensor([[0.5, 0.0, 0.5]] + [[0.5, 0.5, 0.0]] * pointer.LONGEST_MATCH)
    written = torch.zeros(2, 6, dtype=torch.int64)
    count = torch.zeros(2, dtype=torch.int64)  # nothing of it yet

    mixed = pointer.mixed(logits, source, written, count, weights)
    assert torch.equal(mixed[1], logits[1])
    of_model = float(torch.softmax(logits[0], 0)[3])
    assert mixed[0].exp()[3] == pytest.approx(0.5 * of_model + 0.5 * 1 / 2)


def test_weights_are_those_that_a_mixture_was_drawn_with() -> None:
    rng = np.random.default_rng(1)
    true = np.array([[0.9, 0.0, 0.1], [0.7, 0.3, 0.0], [0.5, 0.5, 0.0], [0.3, 0.6, 0.1], [0.2, 0.8, 0.0]])
    n = 4_000
    match = rng.integers(0, pointer.LONGEST_MATCH + 1, n)
    drawn_from = np.array([rng.choice(3, p=true[length]) for length in match])

    # columns are the model, the copy and d1; whichever a token was drawn from had been sure of it
    probabilities = np.full((n, 3), 0.05)
    probabilities[np.arange(n), drawn_from] = 0.9
    probabilities[match == 0, 1] = 0.0  # nothing follows no match
    of_model = probabilities[:, 0]
    reading = pointer.Reading(match, probabilities[:, 1], probabilities[:, 2])

    def loss(weights: np.ndarray) -> float:
        [nats] = pointer.losses([reading], [of_model], tuple(map(tuple, weights)))
        return float(nats)

    fitted = np.array(pointer.fit([reading], [of_model]))
    assert np.allclose(fitted.sum(1), 1)
    assert fitted[0, 1] == 0
    for other in (true, np.tile([1.0, 0.0, 0.0], (5, 1)), np.tile([0.5, 0.3, 0.2], (5, 1))):
        assert loss(fitted) <= loss(other) + 3


def test_what_was_never_seen_is_left_to_the_model() -> None:
    reading = pointer.Reading(np.array([0, 1]), np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    weights = pointer.fit([reading], [np.array([0.5, 1e-6])])
    assert weights[4] == (1.0, 0.0, 0.0)
    assert weights[1][0] > 0.8  # one token is no evidence
    assert pointer.fit([], []) == ((1.0, 0.0, 0.0),) * (pointer.LONGEST_MATCH + 1)


def test_a_source_is_the_heads_of_all_d1() -> None:
    documents = [np.array([5, 6, 7, 0], np.uint16), np.array([8, 0], np.uint16)]
    assert pointer.source(documents, 3).tolist() == [5, 6, 7, 8, 0]
