import numpy as np
import pytest
import torch

from synthboot.data.tokens import Tokens
from synthboot.lm import score
from tests.lm.conftest import small_model


def by_hand(model: object, context: list[int], wanted: list[int]) -> float:
    """-log p(wanted | context), token by token."""
    total, seen = 0.0, list(context)
    for token in wanted:
        logits = model(input_ids=torch.tensor([seen])).logits[0, -1]  # type: ignore[operator]
        total -= float(torch.log_softmax(logits.double(), -1)[token])
        seen.append(token)
    return total


@torch.no_grad()
def test_documents_against_a_loop_over_tokens_and_windows() -> None:
    model, rng = small_model(), np.random.default_rng(0)
    documents = [[*rng.integers(2, 280, n).tolist(), 0] for n in (3, 9, 40)]
    scores = score.documents(model, Tokens.of(documents), seq_len=16, end=0)
    for i, document in enumerate(documents):
        expected = 0.0
        for start in range(0, len(document), 16):
            before = document[start - 1] if start else 0
            expected += by_hand(model, [before], document[start : start + 16])
        assert scores.loss[i] == pytest.approx(expected, rel=1e-4)
        assert scores.tokens[i] == len(document)


@torch.no_grad()
def test_pairs_score_d2_given_end_d1_separator() -> None:
    model = small_model()
    d1, d2 = np.array([5, 6, 7, 0]), np.array([8, 9, 0])
    given = score.pairs(model, [d1], [d2], 64, 0.5, end=0, separator=1)
    alone = score.pairs(model, [d1], [d2], 64, 0.5, end=0, separator=None)
    assert given.loss[0] == pytest.approx(by_hand(model, [0, 5, 6, 7, 1], [8, 9, 0]), rel=1e-4)
    assert alone.loss[0] == pytest.approx(by_hand(model, [0], [8, 9, 0]), rel=1e-4)
    assert given.tokens[0] == alone.tokens[0] == 3


def test_scores_do_not_depend_on_the_batch() -> None:
    model, rng = small_model(), np.random.default_rng(1)
    rows = [(rng.integers(0, 280, n), rng.integers(0, 280, n)) for n in rng.integers(1, 60, 30)]
    one = score.row_losses(model, rows, batch_tokens=1)
    many = score.row_losses(model, rows, batch_tokens=4_000)
    assert np.allclose(one, many, rtol=1e-4)
