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
        assert reading.match[t] == length
        assert reading.copied[t] == pytest.approx(following.count(token) / len(following) if following else 0.0)
        assert reading.in_d1[t] == pytest.approx(d1.count(token) / len(d1))


@given(LETTERS, LETTERS, st.integers(0, 10))
def test_a_step_of_sampling_has_the_probabilities_that_a_d2_is_read_with(d1: list[int], d2: list[int], more: int) -> None:
    weights = tuple(
        (1 - 0.1 * n - 0.05, 0.1 * n if n else 0.0, 0.05 + (0 if n else 0.0)) for n in range(pointer.LONGEST_MATCH + 1)
    )
    reading = pointer.read(np.array(d1), np.array(d2))
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(len(d2), 6)))  # a row for each token of d2, as if it was to be drawn
    source = torch.full((len(d2), len(d1) + more), pointer.NO_TOKEN)  # filled up, as beside a longer d1
    source[:, : len(d1)] = torch.tensor(d1)
    written = torch.tensor([[*d2, 9]] * len(d2))  # what comes after `count` is not there yet
    mixed = pointer.mixed(logits, source, written, torch.arange(len(d2)), torch.tensor(weights, dtype=torch.float64))
    assert torch.allclose(mixed.exp().sum(1), torch.ones(len(d2), dtype=torch.float64), atol=1e-5)
    model = torch.softmax(logits.float(), 1)[torch.arange(len(d2)), torch.tensor(d2)].numpy()
    own = np.array(weights)[reading.match]
    expected = own[:, 0] * model + own[:, 1] * reading.copied + own[:, 2] * reading.in_d1
    found = mixed.exp()[torch.arange(len(d2)), torch.tensor(d2)].numpy()
    assert np.allclose(found, expected, atol=1e-5)
    assert pointer.losses([reading], [model], weights) == pytest.approx(-np.log(expected).sum())


def test_rows_without_a_source_stay_as_they_are() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    source = torch.tensor([[3, 1], [pointer.NO_TOKEN] * 2])
    weights = torch.tensor([[0.5, 0.0, 0.5]] + [[0.5, 0.5, 0.0]] * pointer.LONGEST_MATCH)
    mixed = pointer.mixed(logits, source, torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), weights)
    assert torch.equal(mixed[1], logits[1])
    assert mixed[0].exp()[3] == pytest.approx(0.5 * float(torch.softmax(logits[0], 0)[3]) + 0.25)


def test_weights_are_those_that_a_mixture_was_drawn_with() -> None:
    rng = np.random.default_rng(1)
    true = np.array([[0.9, 0.0, 0.1], [0.7, 0.3, 0.0], [0.5, 0.5, 0.0], [0.3, 0.6, 0.1], [0.2, 0.8, 0.0]])
    n = 4_000
    match = rng.integers(0, pointer.LONGEST_MATCH + 1, n)
    # each part is sure of a token of its own, or of all three a third
    which = np.array([rng.choice(3, p=true[m]) for m in match])
    parts = np.full((n, 3), 0.05)
    parts[np.arange(n), which] = 0.9
    parts[match == 0, 1] = 0.0  # nothing follows no match
    reading = pointer.Reading(match, parts[:, 1], parts[:, 2])
    weights = np.array(pointer.fit([reading], [parts[:, 0]]))
    assert np.allclose(weights.sum(1), 1)
    best = pointer.losses([reading], [parts[:, 0]], tuple(map(tuple, weights)))[0]
    for other in (true, np.tile([1.0, 0.0, 0.0], (5, 1)), np.tile([0.5, 0.3, 0.2], (5, 1))):
        assert best <= pointer.losses([reading], [parts[:, 0]], tuple(map(tuple, other)))[0] + 3
    assert weights[0, 1] == 0


def test_what_was_never_seen_is_left_to_the_model() -> None:
    reading = pointer.Reading(np.array([0, 1]), np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    weights = pointer.fit([reading], [np.array([0.5, 1e-6])])
    assert weights[4] == (1.0, 0.0, 0.0)
    assert weights[1][0] > 0.8  # one token is no evidence
    assert pointer.fit([], []) == ((1.0, 0.0, 0.0),) * (pointer.LONGEST_MATCH + 1)


def test_a_source_is_the_heads_of_all_d1() -> None:
    documents = [np.array([5, 6, 7, 0], np.uint16), np.array([8, 0], np.uint16)]
    assert pointer.source(documents, 3).tolist() == [5, 6, 7, 8, 0]
