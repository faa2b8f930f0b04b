from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from synthboot.data.tokens import Tokens
from synthboot.lm import score
from synthboot.lm.batches import PairForm
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
    given = score.pairs(model, [d1], [d2], PairForm(64, 0.5, 0, 1))
    alone = score.pairs(model, [d1], [d2], PairForm(64, 0.5, 0, None))
    assert given.loss[0] == pytest.approx(by_hand(model, [0, 5, 6, 7, 1], [8, 9, 0]), rel=1e-4)
    assert alone.loss[0] == pytest.approx(by_hand(model, [0], [8, 9, 0]), rel=1e-4)
    assert given.tokens[0] == alone.tokens[0] == 3


class Copier:
    """A model that knows what followed the last token the time before, and else nothing."""

    training = False

    def __init__(self, vocab_size: int = 280) -> None:
        self.vocab_size = vocab_size
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=vocab_size))
        self.forward = self

    def parameters(self) -> Iterator[torch.Tensor]:
        yield torch.zeros(1)

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, self.vocab_size)
        for row, tokens in enumerate(input_ids.tolist()):
            for i, token in enumerate(tokens):
                if token in tokens[:i]:
                    logits[row, i, tokens[tokens.index(token) + 1]] = 50.0
        return SimpleNamespace(logits=logits)


def test_the_copy_score_is_what_a_second_time_saves() -> None:
    assert score.copy_score(small_model(), range(2, 280), 64, end=0) == pytest.approx(0, abs=0.2)
    # of 32 tokens all but the first follow one that has stood before; a run of 32 seldom holds a token twice
    found = score.copy_score(Copier(20_000), range(2, 20_000), 64, end=0)
    assert found == pytest.approx(np.log(20_000) * 31 / 32, rel=0.01)
    assert score.copy_score(Copier(20_000), range(2, 20_000), 9, end=0) == pytest.approx(np.log(20_000) * 3 / 4, rel=0.01)


def test_a_gain_is_nats_per_token_with_its_error_over_documents() -> None:
    def scores(loss: list[float], tokens: list[int]) -> score.Scores:
        return score.Scores(np.array(loss), np.array(tokens))

    less, more = scores([1.0, 4.0, 9.0], [1, 2, 3]), scores([2.0, 6.0, 9.0], [1, 2, 3])
    value, error = less.gain_over(more)
    assert value == pytest.approx(3 / 6)
    residual = np.array([1.0, 2.0, 0.0]) - 0.5 * np.array([1, 2, 3])
    assert error == pytest.approx(np.sqrt((residual**2).sum() / 2 / 3) / 2)
    assert scores([1.0], [2]).gain_over(scores([3.0], [2])) == (1.0, 1.0)  # one document has no spread


def test_rows_of_many_lengths_go_without_the_attention_that_plans_each() -> None:
    model = small_model()
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    score.documents(model, Tokens.of([[5, 6, 0], [7, 8, 9, 0]]), seq_len=16, end=0)
    assert seen
    assert not any(seen)
    assert torch.backends.cuda.cudnn_sdp_enabled()  # training, whose rows are alike, keeps it


def test_scores_do_not_depend_on_the_batch() -> None:
    model, rng = small_model(), np.random.default_rng(1)
    rows = [(rng.integers(0, 280, n), rng.integers(0, 280, n)) for n in rng.integers(1, 60, 30)]
    one = score.row_losses(model, rows, batch_tokens=1)
    many = score.row_losses(model, rows, batch_tokens=4_000)
    assert np.allclose(one, many, rtol=1e-4)


def test_a_batch_holds_its_logits_once() -> None:
    """Cross-entropy of all of a batch at once would hold as much again."""
    held: list[int] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **kwargs or {})
            if "log_softmax" in str(function):
                held.append(found.numel())
            return found

    model, rows = small_model(), [(np.arange(2, 34), np.arange(3, 35))] * 8
    with Watched():
        losses = score.row_losses(model, rows)
    assert len(set(losses)) == 1
    assert max(held) * 8 == 8 * 32 * model.config.vocab_size


def test_what_no_row_scores_has_no_logits_and_the_rest_is_as_without_that(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = small_model(), np.random.default_rng(2)
    widths = []
    model.lm_head.register_forward_hook(lambda *given: widths.append(given[-1].shape[1]))
    rows = []
    for unscored in (5, 9, 7):
        inputs, targets = rng.integers(0, 280, 40), rng.integers(0, 280, 40)
        targets[:unscored] = score.IGNORE
        rows.append((inputs, targets))
    loss, greedy = score.row_choices(model, rows)
    assert widths == [35]
    # whole rows, and one by one where a batch may have few logits
    monkeypatch.setattr(score, "LOGITS", 300)
    widths.clear()
    score.row_losses(model, rows)
    assert sorted(widths) == [31, 33, 35]
    for number, (inputs, targets) in enumerate(rows):
        whole = -torch.log_softmax(model(input_ids=torch.from_numpy(inputs)[None]).logits[0].detach().double(), -1)
        scored = targets != score.IGNORE
        expected = float(whole[scored, targets[scored]].sum())
        assert loss[number] == pytest.approx(expected, rel=1e-4)
        assert score.row_losses(model, rows)[number] == pytest.approx(expected, rel=1e-4)
        assert greedy[number] == bool((whole.argmin(-1)[scored].numpy() == targets[scored]).all())
    # a target that is the first choice where it is scored makes a row a right one
    inputs, targets = rows[0][0], rows[0][1].copy()
    best = model(input_ids=torch.from_numpy(inputs)[None]).logits[0].argmax(-1).numpy()
    targets[5:] = best[5:]
    assert score.row_choices(model, [(inputs, targets)])[1].all()
