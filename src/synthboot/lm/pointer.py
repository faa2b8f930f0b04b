"""A pointer over d1: where the last words written stand in d1 too, what follows them there may be
copied.

    d1        ... is a species of moth of the family Geometridae ...
    written   ... the grey carpet is a species of ?
                                   ------------ the longest match, so "moth" may be copied

    p(next) = w0 p(next | model) + w1 p(next | match) + w2 p(next | d1)

The second part is uniform over what follows the longest match in d1, the third over all of d1's
tokens. The weights sum to one, differ by the length of the match, and are fitted by expectation
maximization on held-out pairs. The model itself is not trained, so that it forgets nothing: a
language model that has never seen a pair reads d1 by copying alone, and what the weights cannot
make better they leave to it.

Source: arXiv:1612.04426 (a cache beside a language model), arXiv:1911.00172 (interpolated with what
followed the nearest contexts), arXiv:1704.04368 (pointer-generator); Jelinek and Mercer 1980 (the
weights). Deviation: contexts are matched as words, not as vectors, and in d1 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

LONGEST_MATCH = 4
"""Tokens of the longest match that is told from a longer one."""

NO_TOKEN = -1
"""Where a source has ended."""

_NOT_WRITTEN = -2  # differs from NO_TOKEN, so that nothing matches what is not there
_PRIOR = 5.0  # tokens of each length of match that the model alone is said to have predicted
_ROUNDS = 200  # of expectation maximization; it stops where no weight moves any more
_LEAST_CHANGE = 1e-5
_LENGTHS = LONGEST_MATCH + 1
_TINY = float(np.finfo(float).tiny)

Weights = Sequence[Sequence[float]]
"""By the length of the match, 0 first: the parts of model, match and d1."""


@dataclass(frozen=True)
class Reading:
    """What a pointer finds for each token of a d2 that is there already.

    `match` is the length of the longest match before it, `copied` and `in_d1` what the second and
    third part give to it.
    """

    match: Int64[np.ndarray, " token"]
    copied: Float64[np.ndarray, " token"]
    in_d1: Float64[np.ndarray, " token"]


def source(
    documents: Sequence[Integer[np.ndarray, " _"]],
    seq_len: int,
) -> Int64[np.ndarray, " token"]:
    """What a pointer may copy: the heads of these d1, each of at most `seq_len` tokens."""
    heads = []
    for document in documents:
        head = document[:seq_len]
        heads.append(head.astype(np.int64))
    return np.concatenate(heads)


def read(
    d1: Integer[np.ndarray, " a"],
    d2: Integer[np.ndarray, " b"],
) -> Reading:
    """Every token of d2, as a sampler that has written the ones before it would see it."""
    targets = torch.from_numpy(d2.astype(np.int64))
    given = torch.from_numpy(d1.astype(np.int64))
    given = given.expand(len(d2), -1)  # (token of d2, of d1)

    # row t: the tokens that stand before d2[t]
    size = len(d2) + LONGEST_MATCH
    written = torch.full((size,), _NOT_WRITTEN)
    written[LONGEST_MATCH:] = targets
    windows = written.unfold(0, LONGEST_MATCH, 1)  # (token and one, match)
    before = windows[: len(d2)]
    match, follows = _longest_matches(given, before)

    is_same = given == targets[:, None]
    hits = (is_same & follows).sum(1)
    candidates = follows.sum(1)
    copied = hits / candidates.clamp(min=1)
    occurrences = is_same.sum(1)
    in_d1 = occurrences / max(1, len(d1))
    return Reading(
        match=match.numpy(),
        copied=copied.double().numpy(),
        in_d1=in_d1.double().numpy(),
    )


def fit(
    readings: Sequence[Reading],
    model: Sequence[Float[np.ndarray, " token"]],
) -> Weights:
    """The weights that make these d2 likeliest; `model` has the model's probability of each token.

    A few tokens of each length of match count as the model's, so that what is seldom seen is left
    to it; without any d2 all is.
    """
    if not readings:
        return ((1.0, 0.0, 0.0),) * _LENGTHS
    match = np.concatenate([reading.match for reading in readings])
    parts = _parts(readings, model)
    start = [0.8, 0.1, 0.1]
    weights = np.tile(start, (_LENGTHS, 1))  # (match, part)
    for _ in range(_ROUNDS):
        updated = _updated(weights, match, parts)
        change = np.abs(updated - weights).max()
        weights = updated
        if change < _LEAST_CHANGE:
            break
    return tuple(tuple(of_match) for of_match in weights.tolist())


def _updated(
    weights: Float64[np.ndarray, "match part"],
    match: Int64[np.ndarray, " token"],
    parts: Float64[np.ndarray, "token part"],
) -> Float64[np.ndarray, "match part"]:
    """One round of expectation maximization: what each part has of the tokens, by their match."""
    shares = parts * weights[match]
    of_token = shares.sum(1, keepdims=True)
    shares /= np.maximum(of_token, _TINY)
    totals = np.zeros_like(weights)
    np.add.at(totals, match, shares)
    totals[:, 0] += _PRIOR
    return totals / totals.sum(1, keepdims=True)


def losses(
    readings: Sequence[Reading],
    model: Sequence[Float[np.ndarray, " token"]],
    weights: Weights,
) -> Float64[np.ndarray, " doc"]:
    """The summed loss of each d2 under the mixture, in nats."""
    table = np.array(weights)  # (match, part)
    summed = []
    for reading, probabilities in zip(readings, model, strict=True):
        parts = _parts([reading], [probabilities])
        weighted = parts * table[reading.match]
        mixture = weighted.sum(1)
        mixture = np.maximum(mixture, _TINY)
        nll = -np.log(mixture)
        summed.append(nll.sum())
    return np.array(summed)


def _parts(
    readings: Sequence[Reading],
    model: Sequence[Float[np.ndarray, " token"]],
) -> Float64[np.ndarray, "token part"]:
    of_model = []
    copied = []
    in_d1 = []
    for reading, probabilities in zip(readings, model, strict=True):
        of_model.append(np.asarray(probabilities, np.float64))
        copied.append(reading.copied)
        in_d1.append(reading.in_d1)
    columns = map(np.concatenate, (of_model, copied, in_d1))
    return np.stack(list(columns), axis=1)


def mixed(
    logits: Float[Tensor, "row vocab"],
    source: Int64[Tensor, "row a"],
    written: Int64[Tensor, "row longest"],
    count: Int64[Tensor, " row"],
    weights: Float[Tensor, "match part"],
) -> Float[Tensor, "row vocab"]:
    """The logarithm of the mixture, for a step of sampling; rows without a source stay as they are.

    `source` is d1, filled up with NO_TOKEN; of `written` the first `count` tokens of a row are
    there. Nothing here waits for a GPU.
    """
    device = written.device
    back = torch.arange(LONGEST_MATCH, 0, -1, device=device)  # the oldest first
    place = count[:, None] - back  # (row, match)
    before = written.gather(1, place.clamp(min=0))
    before = before.masked_fill(place < 0, _NOT_WRITTEN)
    match, follows = _longest_matches(source, before)

    is_token = source != NO_TOKEN
    of_row = weights[match]  # (row, part)
    of_model, of_match, of_d1 = of_row.split(1, dim=1)  # (row, 1) each
    added = of_match * _uniform(follows)  # (row, a)
    added = added + of_d1 * _uniform(is_token)

    logits = logits.float()
    mixture = of_model * torch.softmax(logits, 1)
    copied = source.clamp(min=0)
    mixture.scatter_add_(1, copied, added)
    has_source = is_token.any(1, keepdim=True)
    return torch.where(has_source, mixture.log(), logits)


def _uniform(
    chosen: Bool[Tensor, "row a"],
) -> Float[Tensor, "row a"]:
    """A probability for each place: the same for all that are chosen, if any are."""
    count = chosen.sum(1, keepdim=True)
    return chosen / count.clamp(min=1)


def _longest_matches(
    source: Int64[Tensor, "row a"],
    before: Int64[Tensor, "row match"],
) -> tuple[Int64[Tensor, " row"], Bool[Tensor, "row a"]]:
    """The length of the longest match of each row, and which tokens of its source follow one.

    `before` are the last tokens written, the oldest first.
    """
    length = torch.zeros_like(source)
    matches = torch.ones_like(source, dtype=torch.bool)
    shifted = source
    for distance in range(LONGEST_MATCH):
        # source moved on by one more: beside each token the one that stands so far before it
        shifted = torch.nn.functional.pad(shifted, (1, 0), value=NO_TOKEN)
        shifted = shifted[:, :-1]
        wanted = before[:, -1 - distance, None]  # (row, 1)
        matches = matches & (shifted == wanted)
        length = length + matches
    length = length.masked_fill(source == NO_TOKEN, 0)
    longest = length.amax(1, keepdim=True)
    follows = (length == longest) & (longest > 0)
    return longest[:, 0], follows
