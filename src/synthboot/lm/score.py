"""Log-likelihood of documents and of d2 given d1.

A document is scored as the model was trained to see it: after an end token, its own end included, in windows of the
row length; a window after the first starts without context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from synthboot.data.tokens import Tokens
from synthboot.lm.batches import IGNORE, pair_row


@dataclass(frozen=True)
class Scores:
    """Per document: `loss`, the summed negative log-likelihood in nats, and `tokens`, how many it is summed over."""

    loss: Float64[np.ndarray, " doc"]
    tokens: Int64[np.ndarray, " doc"]

    @property
    def mean(self) -> float:
        """Nats per token over all documents together."""
        return float(self.loss.sum() / max(1, self.tokens.sum()))


def documents(
    model: Any,
    tokens: Tokens,
    seq_len: int,
    end: int,
    progress: Callable[[float, str], None] | None = None,
) -> Scores:
    """The scores of every document."""
    each = token_losses(model, tokens, seq_len, end, progress)
    owners = np.repeat(np.arange(len(tokens)), tokens.lengths)
    return Scores(np.bincount(owners, each, len(tokens)), tokens.lengths)


def token_losses(
    model: Any,
    tokens: Tokens,
    seq_len: int,
    end: int,
    progress: Callable[[float, str], None] | None = None,
) -> Float32[np.ndarray, " token"]:
    """The loss of every token, document after document."""
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    starts: list[int] = []
    for number in range(len(tokens)):
        document = tokens[number].astype(np.int64)
        shifted = np.concatenate(([end], document[:-1]))
        for start in range(0, len(document), seq_len):
            rows.append((shifted[start : start + seq_len], document[start : start + seq_len]))
            starts.append(int(tokens.bounds[number]) + start)
    each = np.zeros(int(tokens.lengths.sum()), np.float32)
    for numbers, losses, _ in _batches(model, rows, 8_192, progress):
        for row, number in zip(losses.cpu().numpy(), numbers, strict=True):
            size = len(rows[number][1])
            each[starts[number] : starts[number] + size] = row[:size]
    return each


def pairs(
    model: Any, d1: Sequence[np.ndarray], d2: Sequence[np.ndarray], seq_len: int, share: float, end: int,
    separator: int | None,
) -> Scores:  # fmt: skip
    """The scores of each d2 given its d1; without `separator`, of d2 alone as a document. Both come closed by `end`
    unless they were cut."""
    if separator is None:
        rows = []
        for document in d2:
            kept = document[:seq_len].astype(np.int64)
            rows.append((np.concatenate(([end], kept[:-1])), kept))
    else:
        rows = [pair_row(a, b, seq_len, share, end, separator) for a, b in zip(d1, d2, strict=True)]
    counts = np.array([int((targets != IGNORE).sum()) for _, targets in rows], np.int64)
    return Scores(row_losses(model, rows), counts)


def row_losses(
    model: Any, rows: Sequence[tuple[np.ndarray, np.ndarray]], batch_tokens: int = 8_192
) -> Float64[np.ndarray, " row"]:
    """The summed loss of each (inputs, targets) row, in nats. Rows of like length share a batch."""
    losses = np.zeros(len(rows))
    for numbers, loss, _ in _batches(model, rows, batch_tokens, None):
        losses[numbers] = loss.double().sum(1).cpu().numpy()
    return losses


def row_choices(
    model: Any, rows: Sequence[tuple[np.ndarray, np.ndarray]], batch_tokens: int = 8_192
) -> tuple[Float64[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
    """The summed loss of each row, and whether every target is the model's first choice."""
    losses, first = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for numbers, loss, greedy in _batches(model, rows, batch_tokens, None, True):
        losses[numbers] = loss.double().sum(1).cpu().numpy()
        first[numbers] = greedy.all(1).cpu().numpy()
    return losses, first


def _batches(
    model: Any, rows: Sequence[tuple[np.ndarray, np.ndarray]], batch_tokens: int,
    progress: Callable[[float, str], None] | None, choose: bool = False,
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Numbers of rows, the loss of each of their targets and, to `choose`, whether it is the likeliest token."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    done = 0
    while done < len(order):
        count = 1
        while (
            done + count < len(order)
            and len(rows[order[done + count]][0]) * (count + 1) <= batch_tokens
        ):
            count += 1
        chosen = order[done : done + count]
        width = len(rows[chosen[-1]][0])
        inputs, targets = (
            np.zeros((count, width), np.int64),
            np.full((count, width), IGNORE, np.int64),
        )
        for i, number in enumerate(chosen):
            x, y = rows[number]
            inputs[i, : len(x)], targets[i, : len(y)] = x, y
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(inputs).to(device), use_cache=False
            ).logits.float()
            wanted = torch.from_numpy(targets).to(device)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), reduction="none"
            )
        loss = loss.view(wanted.shape)
        yield chosen, loss, (logits.argmax(-1) == wanted) | (wanted == IGNORE) if choose else loss
        done += count
        if progress is not None:
            progress(done / len(order), f"{done:,} of {len(order):,} rows scored")
    model.train(was_training)
