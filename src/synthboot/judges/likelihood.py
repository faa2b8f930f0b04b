"""A judge of the run's own making: does its d1 make a d2 likelier than another document does?

It is the synthesizer that answers, which has learned to write d2 from d1; with its pointer, if it
has one. Of what it wrote itself it thinks well: its verdict on its own samples is a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from synthboot.artifacts.judged import Question
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokenizer import Tokenizer
from synthboot.judges.protocol import Item, OnScore
from synthboot.lm import model as models
from synthboot.lm import pointer, score
from synthboot.lm.batches import PairForm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH = 16  # pairs that the model reads before their scores are handed on


@dataclass(frozen=True)
class Likelihood:
    """The model in a folder, with its tokenizer beside it, and how it reads a pair.

    `weights` names the model. With the weights of a `pointer` the mixture of both answers; unless
    the model `is_prompted` with d1, the pointer alone reads it.
    """

    folder: Path
    weights: str
    seq_len: int
    d1_share: float
    device: str
    pointer: pointer.Weights | None = None
    is_prompted: bool = True

    name = "likelihood"

    @property
    def identity(self) -> Mapping[str, str]:
        """The synthesizer."""
        return {"model": self.weights}

    def passes(self, question: Question) -> int:
        """Twice, with another document in the place of d1 each time; pairs alone."""
        return 2 if question == "irrelevance" else 0

    def score(
        self, question: Question, items: Sequence[Item], pass_number: int, on_score: OnScore
    ) -> None:
        """For every pair, how many nats a token d2 costs more given d1 than given another."""
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            given = self._loss([item.d1 for item in batch], batch)
            other = self._loss([item.others[pass_number] for item in batch], batch)
            for index, gap in enumerate((given - other).tolist(), start):
                on_score(index, gap)

    def _loss(self, given: Sequence[str], items: Sequence[Item]) -> np.ndarray:
        """(item): nats a token of each d2 after a document in the place of d1."""
        d1 = self._documents(given)
        d2 = self._documents([item.text for item in items])
        tokenizer = self._tokenizer
        separator = tokenizer.separator if self.is_prompted else None
        form = PairForm(self.seq_len, self.d1_share, tokenizer.end, separator)
        by_token = score.pair_tokens(self._model, d1, d2, form)
        if self.pointer is None:
            loss = np.array([losses.sum(dtype=np.float64) for losses in by_token])
        else:
            loss = self._mixed(self.pointer, d1, d2, by_token)
        tokens = np.array([len(losses) for losses in by_token])
        per_token: np.ndarray = loss / np.maximum(1, tokens)
        return per_token

    def _mixed(
        self,
        weights: pointer.Weights,
        d1: Sequence[np.ndarray],
        d2: Sequence[np.ndarray],
        by_token: Sequence[np.ndarray],
    ) -> np.ndarray:
        """(item): nats of each d2 under the model, whose loss of every token is given, and the
        pointer together."""
        readings = []
        for first, second, losses in zip(d1, d2, by_token, strict=True):
            source = pointer.source([first], self.seq_len)
            readings.append(pointer.read(source, second[: len(losses)]))
        probabilities = [np.exp(-losses.astype(np.float64)) for losses in by_token]
        return pointer.losses(readings, probabilities, weights)

    def _documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(document, np.int64) for document in self._tokenizer.documents(texts)]

    @cached_property
    def _model(self) -> PreTrainedModel:
        return models.load(self.folder, models.device(self.device))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return tokenizers.load(self.folder)
