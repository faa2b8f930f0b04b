"""What a model's layout can be trusted with, tried on the model itself before anything is trained.

1. Later tokens change nothing before them: or what is learned is to look ahead, and the layout is
   refused.
2. Documents of one row, whose positions start again at 0, are read as each alone: or each gets a
   row of its own. State-space layers carry one document into the next, some attention looks at no
   positions.

Positions are all that a model is told. From them the library makes the mask that each layout asks
for, boolean or added, with its windows; a mask made here would be right for some and silently wrong
for others.

docs/layouts.md says what every layout of `transformers` came to.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

from synthboot.errors import ConfigError, brief

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAME = 1e-4
"""How far apart, in standard deviations of the logits, two passes over one prefix may be.

They round alike.
"""

ALIKE = 1e-3
"""The same of a row and its parts alone, whose matmuls have other shapes, so round differently."""

LEAST = 128
"""Tokens to try it on, at the least."""

_WINDOWS = (
    "sliding_window",
    "window_size",
    "attention_window_size",
    "attention_chunk_size",
    "chunk_size",
)
"""Settings that say how far attention of a layout reaches, if not over the whole row."""

_COMPARED = 1_000
"""Entries of the vocabulary whose logits are compared, which saves memory and tells as much."""


def require_causal(model: PreTrainedModel, seq_len: int, where: str) -> None:
    """Raise ConfigError, beginning with `where`, unless the model can be trained on rows of tokens.

    It has to run on plain rows and to predict each token from those before it alone.
    """
    kind = model.config.model_type
    advice = "name a causal language model that docs/layouts.md lists as right"
    row = _row(model, seq_len)
    half = row.shape[1] // 2
    # the same first half, another second half
    other = _row(model, seq_len, seed=1)
    changed = torch.cat((row[:, :half], other[:, half:]), 1)
    try:
        logits = _logits(model, row)[:, :half]
        difference = _difference(logits, _logits(model, changed)[:, :half])
        _train_mode(model, row[:, :LEAST])
    except Exception as error:  # whatever a layout raises that wants more than tokens
        raise ConfigError(
            f"{where}: {kind} does not run on rows of tokens ({brief(error)}); {advice}"
        ) from None
    if math.isnan(difference):
        raise ConfigError(
            f"{where}: {kind} gives logits that are not numbers; "
            f"its weights are damaged or not all there"
        )
    if difference > SAME:
        raise ConfigError(
            f"{where}: {kind} looks ahead: later tokens change the logits of earlier ones "
            f"by {difference:.2g} of their standard deviation; {advice}"
        )


def packs(model: PreTrainedModel, seq_len: int) -> bool:
    """Whether documents packed into one row are read as each alone."""
    row = _row(model, seq_len)
    size = row.shape[1]
    # three documents, the second as long as half of the row
    parts = [part for part in row.tensor_split((size // 4, size * 3 // 4), 1) if part.shape[1]]
    counts = [torch.arange(part.shape[1]) for part in parts]
    positions = torch.cat(counts)[None].to(row.device)  # (1, token), from 0 in each document
    try:
        packed = _logits(model, row, position_ids=positions)
    except Exception:  # it takes no positions
        return False
    alone = torch.cat([_logits(model, part) for part in parts], 1)
    return _difference(packed, alone) <= ALIKE


def embedding(model: PreTrainedModel) -> torch.Tensor:
    """The weights that tokens are looked up in, (token, width)."""
    return cast(torch.Tensor, model.get_input_embeddings().weight)


def setting(model: PreTrainedModel, name: str) -> Any:
    """What a model's configuration says of its text, under the library's usual name.

    None where it says nothing, or something else for every layer.
    """
    try:
        return getattr(model.config.get_text_config(), name, None)
    except RuntimeError:  # the library's word for the latter
        return None


def _row(
    model: PreTrainedModel,
    seq_len: int,
    seed: int = 0,
) -> torch.Tensor:
    """A row of random tokens, no longer than training's.

    Half of it is longer than any window of the model's own, so that what lies beyond one is tried
    too.
    """
    weight = embedding(model)
    window = 0
    for name in _WINDOWS:
        size = setting(model, name)
        if isinstance(size, int) and size < seq_len:
            window = max(window, size)
    length = min(seq_len, max(LEAST, 2 * window + 2))
    # a generator of its own: random numbers of training stay as they were
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        len(weight),
        (1, length),
        generator=generator,
    ).to(weight.device)


@torch.no_grad()
def _logits(
    model: PreTrainedModel,
    row: torch.Tensor,
    **options: torch.Tensor,
) -> torch.Tensor:
    """The logits of the first entries of the vocabulary, without dropout.

    The model stays in the mode it was in.
    """
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=row, use_cache=False, **options).logits
    finally:
        model.train(was_training)
    # a copy, so that the logits of the whole vocabulary are freed
    return logits[..., :_COMPARED].float().clone()


@torch.no_grad()
def _train_mode(model: PreTrainedModel, row: torch.Tensor) -> None:
    """A pass as training makes it, which some layouts want more than tokens for.

    Random numbers stay as they were.
    """
    was_training = model.training
    with torch.random.fork_rng():
        try:
            model.train()(input_ids=row, use_cache=False)
        finally:
            model.train(was_training)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two passes' logits, in their standard deviations."""
    return float((a - b).abs().max() / b.std())
