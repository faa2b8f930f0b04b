"""Log-likelihood of documents and of d2 given d1.

A document is scored as the model was trained to see it: after an end token, its own end included,
in windows of the row length; a window after the first starts without context.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from synthboot import statistics
from synthboot.artifacts.store import Progress, silent
from synthboot.data.tokens import Tokens
from synthboot.lm import model as models
from synthboot.lm.batches import IGNORE, PairForm, Row, padded, pair_row
from synthboot.lm.blocks import compiled_loops
from synthboot.rng import rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 8_192
"""Tokens of one forward pass, padding included: their logits are the most that scoring holds."""

LOGITS = 2**26
"""Logits of one forward pass on a processor, 256 MiB.

With more a large vocabulary costs more in memory that is got and given back than in products.
"""

_COPIED_ROWS = 16
_COPIED_TOKENS = 128  # the longest run that is repeated


@dataclass(frozen=True)
class Scores:
    """Per document: `loss`, the summed negative log-likelihood in nats, over `tokens` tokens."""

    loss: Float64[np.ndarray, " doc"]
    tokens: Int64[np.ndarray, " doc"]

    @property
    def mean(self) -> float:
        """Nats per token over all documents together."""
        return float(self.loss.sum() / max(1, self.tokens.sum()))

    def gain_over(self, other: Scores) -> tuple[float, float]:
        """How many nats per token fewer the same documents cost here than in `other`, and the
        standard error of that over documents."""
        if len(self.loss) < 2:
            # one document has no spread: the figure is as unsure as it is large
            gain = other.mean - self.mean
            return gain, abs(gain)
        difference = statistics.difference(other.loss[None], self.loss[None], self.tokens)
        return difference.value, difference.standard_error


def documents(
    model: PreTrainedModel,
    tokens: Tokens,
    seq_len: int,
    end: int,
) -> Scores:
    """The scores of every document."""
    each = token_losses(model, tokens, seq_len, end)
    owners = np.repeat(np.arange(len(tokens)), tokens.lengths)
    loss = np.bincount(owners, each, len(tokens))
    return Scores(
        loss.astype(np.float64, copy=False),  # sums over no documents are whole numbers
        tokens.lengths,
    )


def token_losses(
    model: PreTrainedModel,
    tokens: Tokens,
    seq_len: int,
    end: int,
    progress: Progress = silent,
) -> Float32[np.ndarray, " token"]:
    """The loss of every token, document after document."""
    rows: list[Row] = []
    starts: list[int] = []  # of each row among all tokens
    for number in range(len(tokens)):
        document = tokens[number].astype(np.int64)
        inputs = np.concatenate(([end], document[:-1]))
        for start in range(0, len(document), seq_len):
            window = slice(start, start + seq_len)
            rows.append((inputs[window], document[window]))
            starts.append(int(tokens.bounds[number]) + start)

    token_loss = np.zeros(int(tokens.lengths.sum()), np.float32)
    for numbers, losses, _ in _batches(model, rows, BATCH_TOKENS, progress):
        for loss, number in zip(losses.cpu().numpy(), numbers, strict=True):
            size = len(rows[number][1])  # what is beyond it is padding
            start = starts[number]
            token_loss[start : start + size] = loss[:size]
    return token_loss


def copy_score(
    model: PreTrainedModel,
    ids: Sequence[int],
    seq_len: int,
    end: int,
) -> float:
    """How many nats per token random tokens cost less when they come a second time.

    Zero where a model reads nothing of what stands before, the logarithm of the number of `ids` at
    most. The same 16 sequences for every model: up to 128 of the ids, twice.

    Source: arXiv:2209.11895, repeated random tokens as the test for induction heads.
    """
    half = max(1, min(seq_len // 2, _COPIED_TOKENS))
    once = rng(0, "score.copied").choice(ids, (_COPIED_ROWS, half))  # (row, token)
    twice = np.concatenate((once, once), axis=1)
    losses = token_losses(model, Tokens.of(twice.tolist()), seq_len, end)
    first, second = losses.reshape(_COPIED_ROWS, 2, half).mean((0, 2))  # (row, half, token)
    return float(first - second)


def pairs(
    model: PreTrainedModel,
    d1: Sequence[np.ndarray],
    d2: Sequence[np.ndarray],
    form: PairForm,
    progress: Progress = silent,
) -> Scores:
    """The scores of each d2 given its d1; without a separator, of d2 alone as a document.

    Both come closed by an end unless they were cut.
    """
    rows = [pair_row(first, second, form) for first, second in zip(d1, d2, strict=True)]

    # what a row does not score (d1, the separator) is no token of its mean
    counts = [int((targets != IGNORE).sum()) for _, targets in rows]
    losses = row_losses(model, rows, progress=progress)
    return Scores(losses, np.array(counts, np.int64))


def pair_tokens(
    model: PreTrainedModel,
    d1: Sequence[np.ndarray],
    d2: Sequence[np.ndarray],
    form: PairForm,
    progress: Progress = silent,
) -> list[Float32[np.ndarray, " token"]]:
    """As `pairs`, the loss of every token of each d2."""
    rows = [pair_row(first, second, form) for first, second in zip(d1, d2, strict=True)]

    losses: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for numbers, batch, _ in _batches(model, rows, BATCH_TOKENS, progress):
        for number, loss in zip(numbers, batch.cpu().numpy(), strict=True):
            _, targets = rows[number]
            losses[number] = loss[: len(targets)][targets != IGNORE]
    return losses


def row_losses(
    model: PreTrainedModel,
    rows: Sequence[Row],
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = silent,
) -> Float64[np.ndarray, " row"]:
    """The summed loss of each row, in nats. Rows of like length share a batch."""
    losses = np.zeros(len(rows))
    for numbers, loss, _ in _batches(model, rows, batch_tokens, progress):
        losses[numbers] = loss.double().sum(1).cpu().numpy()
    return losses


def row_choices(
    model: PreTrainedModel,
    rows: Sequence[Row],
    progress: Progress = silent,
) -> tuple[Float64[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
    """The summed loss of each row, and whether every target is the model's first choice."""
    losses = np.zeros(len(rows))
    first = np.zeros(len(rows), bool)
    for numbers, loss, greedy in _batches(model, rows, BATCH_TOKENS, progress, choose=True):
        losses[numbers] = loss.double().sum(1).cpu().numpy()
        first[numbers] = greedy.all(1).cpu().numpy()
    return losses, first


def _batches(
    model: PreTrainedModel,
    rows: Sequence[Row],
    batch_tokens: int,
    progress: Progress,
    choose: bool = False,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Numbers of rows, the loss of each of their targets (row, token), and whether it is likeliest.

    The last only to `choose`; else it is the loss again.
    """
    was_training = model.training
    model.eval()
    done = 0
    for numbers in _alike(model, rows, batch_tokens):
        with compiled_loops(model):
            loss, greedy = _scored(model, [rows[number] for number in numbers], choose)
        yield numbers, loss, greedy

        done += len(numbers)
        progress(done / len(rows), f"{done:,} of {len(rows):,} rows scored")
    model.train(was_training)


def _alike(model: PreTrainedModel, rows: Sequence[Row], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the rows of each batch: of like length, shortest first."""
    if next(model.parameters()).device.type == "cpu":
        vocab = model.config.get_text_config().vocab_size
        batch_tokens = min(batch_tokens, max(1, LOGITS // vocab))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    done = 0
    while done < len(order):
        # the row that joins last is the width of the whole batch
        count = 1
        while done + count < len(order):
            width = len(rows[order[done + count]][0])
            if width * (count + 1) > batch_tokens:
                break
            count += 1
        yield order[done : done + count]
        done += count


def _scored(model: PreTrainedModel, rows: list[Row], choose: bool) -> tuple[Tensor, Tensor]:
    """The loss of each target of one batch and whether it is likeliest, both (row, token)."""
    device = next(model.parameters()).device
    inputs, targets = padded(rows, len(rows))
    # no logits of what no row scores, the beginnings of all d1
    first = int((targets != IGNORE).any(0).argmax())
    kept = {}
    if first and "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept = {"logits_to_keep": targets.shape[1] - first}

    with torch.no_grad(), models.any_shapes():
        wanted = torch.from_numpy(targets).to(device)
        found = model(input_ids=torch.from_numpy(inputs).to(device), use_cache=False, **kept)
        logits = found.logits.float()
        before = targets.shape[1] - logits.shape[1]
        wanted = wanted[:, before:]
        losses = []
        # a row at a time: cross-entropy holds as much again as it is given
        for row_logits, row_wanted in zip(logits, wanted, strict=True):
            losses.append(
                torch.nn.functional.cross_entropy(
                    row_logits,  # (token, vocab)
                    row_wanted,
                    reduction="none",
                )
            )
    loss = torch.nn.functional.pad(torch.stack(losses), (before, 0))
    if not choose:
        return loss, loss
    greedy = (logits.argmax(-1) == wanted) | (wanted == IGNORE)
    return loss, torch.nn.functional.pad(greedy, (before, 0), value=True)
