"""The run's own synthesizer as a judge: its losses beside those that a forward pass and a look into d1 give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokenizer import Tokenizer
from synthboot.judges.likelihood import Likelihood
from synthboot.judges.protocol import Item
from synthboot.lm import model as models
from synthboot.lm import pointer
from tests.judges.test_reader import Answers
from tests.lm.conftest import looked_for, small_model

WEIGHTS = [[1 - 0.1 * n - 0.05, 0.1 * n, 0.05] for n in range(pointer.LONGEST_MATCH + 1)]
ITEM = Item("the cat sat on the log", d1="the cat sat on the mat", others=("dog", "and the dog"))


def probabilities(model: Any, prompt: list[int], d2: list[int]) -> list[float]:
    """What the model gives to each token of d2 after a prompt."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *d2]])).logits[0].double()
    rows = torch.softmax(logits, 1)[len(prompt) - 1 :]
    return [float(rows[place, token]) for place, token in enumerate(d2)]


def loss(model: Any, text: Tokenizer, d1: str, weights: list[list[float]] | None, is_prompted: bool) -> float:
    """Nats a token of ITEM after d1."""
    [source, d2] = [list(map(int, ids)) for ids in text.documents([d1, ITEM.text])]
    prompt = [text.end, *source[:-1], text.separator] if is_prompted else [text.end]
    of_model = probabilities(model, prompt, d2)
    if weights is None:
        return float(-np.log(of_model).mean())
    nats = []
    for place, token in enumerate(d2):
        length, following = looked_for(source, d2[:place])
        copied = following.count(token) / len(following) if following else 0.0
        own = weights[length]
        nats.append(-np.log(own[0] * of_model[place] + own[1] * copied + own[2] * source.count(token) / len(source)))
    return float(np.mean(nats))


@pytest.mark.parametrize(("weights", "is_prompted"), [(None, True), (WEIGHTS, True), (WEIGHTS, False)])
def test_d2_is_as_likely_as_the_synthesizer_with_its_pointer_says(
    weights: list[list[float]] | None,
    is_prompted: bool,
    tmp_path: Path,
) -> None:
    tokenizer = tokenizers.train(iter(["the cat sat on the mat and the dog on the log"] * 30), 280)
    model = small_model()
    models.save(model, tmp_path, tokenizer)
    judge = Likelihood(tmp_path, "it", 64, 0.5, "cpu", weights, is_prompted)
    for number, other in enumerate(ITEM.others):
        told = Answers()
        judge.score("irrelevance", [ITEM], number, told)
        expected = loss(model, tokenizer, ITEM.d1, weights, is_prompted) - loss(model, tokenizer, other, weights, is_prompted)
        assert told == {0: pytest.approx(expected, abs=1e-4)}
    if weights is not None:
        assert told[0] < -0.1  # its own d1 has the words
