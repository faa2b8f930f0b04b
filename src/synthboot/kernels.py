"""The optional compiled loops of `kernels.cpp`, which is built with the package.

Without them everything runs, slower, to the same result: `available()` says whether they are there,
and callers have a Python path. `SYNTHBOOT_KERNELS=0` leaves them aside.

Arrays go over as the memory they lie in, with their sizes; the compiled side checks that sizes fit.
It knows no bfloat16 arrays, since numpy has none: their bits go over as int16.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache
from multiprocessing import parent_process
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float16, Float32, Int32, Int64

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


@cache
def _module() -> ModuleType | None:
    """The compiled module, or None where it was not built or is left aside."""
    if os.environ.get("SYNTHBOOT_KERNELS") == "0":
        return None
    try:
        from synthboot import _kernels  # type: ignore[attr-defined,unused-ignore]
    except ImportError as error:
        if parent_process() is None:  # once, not by every worker
            _log.warning(
                "synthboot was installed without its compiled loops (%s): "
                "pairing and sampling are slower",
                error,
            )
        return None
    return _kernels


def available(device: str = "cpu") -> bool:
    """Whether the compiled loops were built and are for this device."""
    return device == "cpu" and _module() is not None


@dataclass(frozen=True)
class Scored:
    """Queries (query, dim) and members (column, dim), both float32, and about how similar they are.

    `scores` (row, column) may be float32 or bfloat16, off by up to `margin`, and wider and higher
    than there are members and rows: the rest is padding. What they cannot decide is decided by
    matmuls taken again in float32, so that no result depends on how they were computed.
    """

    scores: Tensor
    queries: Tensor
    members: Tensor
    margin: float

    def _arguments(self) -> tuple[Any, ...]:
        import torch

        half = self.scores.dtype == torch.bfloat16
        scores = self.scores.view(torch.int16) if half else self.scores
        height, width = scores.shape
        num_queries, dim = self.queries.shape
        return (
            scores.numpy(),
            half,
            height,
            width,
            len(self.members),
            self.margin,
            self.queries.numpy(),
            num_queries,
            self.members.numpy(),
            dim,
        )


def widen(
    rows: Float16[np.ndarray, "row dim"],
    height: int | None,
) -> tuple[Tensor, Tensor | None, float]:
    """The rows in float32, the rows in bfloat16, and the length of the longest.

    In bfloat16 there are `height` rows, zeros after those there are; without `height` they are left
    out.
    """
    import torch

    count, dim = rows.shape
    single = torch.empty(count, dim)
    half = None
    half_bits = None
    if height is not None:
        half = torch.empty(height, dim, dtype=torch.bfloat16)
        half_bits = half.view(torch.int16).numpy()

    # one pass over the rows for all three
    longest = _loaded().widen(
        count,
        height or 0,
        dim,
        np.ascontiguousarray(rows),
        single.numpy(),
        half_bits,
    )
    return single, half, longest


def offer(
    scored: Scored,
    rows: Tensor,
    own: Tensor,
    first: int,
    index: Tensor,
    score: Tensor,
) -> None:
    """Put what is new into the running k best of some queries.

    Row i of the scores is query `rows[i]`, column j is number `first + j`. `own` (query) is the
    number of each query itself, never offered. `index` (query, k; -1) and `score` (query, k; -inf)
    are changed in place: best first, equal ones by number.
    """
    _loaded().offer(
        scored._arguments(),
        rows.numpy(),
        own.numpy(),
        len(rows),
        len(own),
        index.shape[1],
        first,
        index.numpy(),
        score.numpy(),
    )


def within(
    scored: Scored,
    reach: float,
) -> tuple[Int32[np.ndarray, " look"], Int64[np.ndarray, " query"]]:
    """The members at most `reach` less similar to a query than its nearest, and how many each has.

    Query after query, the nearest first, the others by number. A negative reach: the nearest alone.
    """
    counts = np.empty(len(scored.queries), np.int64)
    # how many there are is known only afterwards, so they come as bytes of their own
    members = _loaded().within(scored._arguments(), reach, counts)
    return np.frombuffer(members, np.int32), counts


HEADS = (16, 32, 64, 128)
"""Dimensions of a head that `attend` knows."""


def attend(
    joined: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cosine: Tensor,
    sine: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """One token of attention for every row, (row, head x dim).

    Queries and keys are normalised and rotated, the token appended to the cache, then attended
    from. `joined` (row, head + 2 x key/value head, dim) holds queries, keys and values; `norms` the
    weights (dim) for queries and keys; `cosine`, `sine` (row, dim); `position` (row) where each
    row's token goes. `keys` (row, head, block, dim, 16) and `values` (row, head, window, dim) are
    float32 or bfloat16, window 16 x block.
    """
    import torch

    half = keys.dtype == torch.bfloat16
    key_cache = keys.view(torch.int16) if half else keys
    value_cache = values.view(torch.int16) if half else values
    rows, kv_heads, window, dim = values.shape
    heads = joined.shape[1] - 2 * kv_heads
    q_norm = None
    k_norm = None
    if norms is not None:
        q_norm = norms[0].numpy()
        k_norm = norms[1].numpy()

    out = torch.empty(rows, heads * dim)
    _loaded().attend(
        rows,
        heads,
        kv_heads,
        dim,
        window,
        half,
        eps,
        joined.numpy(),
        q_norm,
        k_norm,
        cosine.numpy(),
        sine.numpy(),
        position.numpy(),
        key_cache.numpy(),
        value_cache.numpy(),
        out.numpy(),
    )
    return out


def draw(
    logits: Tensor,
    seeds: np.ndarray,
    steps: np.ndarray,
    temperature: float,
    top_p: float,
) -> tuple[Int64[np.ndarray, " row"], Float32[np.ndarray, " row"]]:
    """`lm.sample.draw`: a token per row of `logits` (row, vocab) and its log-probability."""
    rows, vocab = logits.shape
    token = np.empty(rows, np.int64)
    logprob = np.empty(rows, np.float32)
    _loaded().draw(
        rows,
        vocab,
        temperature,
        top_p,
        logits.contiguous().numpy(),
        seeds.astype(np.uint64),  # the same bits: torch has signed numbers only
        steps.astype(np.uint64),
        token,
        logprob,
    )
    return token, logprob


def softmax_gradient(
    logits: Tensor,
    targets: Tensor,
    scale: float,
    z_loss: float,
) -> Tensor:
    """`lm.loss.softmax_gradient`."""
    import torch

    rows, vocab = logits.shape
    sums = _loaded().softmax_gradient(
        rows,
        vocab,
        scale,
        z_loss,
        logits.numpy(),
        targets.numpy(),
    )
    return torch.tensor(sums, dtype=torch.float64)


def norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    gradient: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows (row, dim) over their root mean square, times `weight`, and the factor of each row.

    With the `gradient` of that result and the factors: the gradients of `x` and of `weight`.
    """
    import torch

    rows, dim = x.shape
    out = torch.empty_like(x)
    if scale is None:
        scale = torch.empty(rows)
    # every row adds to it, so it begins at zero
    grad_weight = None if gradient is None else torch.zeros(dim)
    _loaded().norm(
        rows,
        dim,
        eps,
        x.numpy(),
        weight.numpy(),
        None if gradient is None else gradient.numpy(),
        out.numpy(),
        scale.numpy(),
        None if grad_weight is None else grad_weight.numpy(),
    )
    return out, scale if grad_weight is None else grad_weight


def gate(
    gate: Tensor,
    value: Tensor,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """silu(gate) x value, all of one shape; with the `gradient` of that, those of both factors."""
    import torch

    out = torch.empty_like(gate)  # the result, or the gradient of `gate`
    grad_value = None if gradient is None else torch.empty_like(value)
    _loaded().gate(
        gate.numel(),
        gate.numpy(),
        value.numpy(),
        None if gradient is None else gradient.numpy(),
        out.numpy(),
        None if grad_value is None else grad_value.numpy(),
    )
    return out, grad_value


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    out: Tensor,
    back: bool,
) -> None:
    """Put `x` (document, token, head, dim), by its rotary positions, into `out`.

    Both are float32 and laid out anyhow but for the last dimension. Angles (1 or document, token,
    dim) have two halves alike; `back` turns by their negative, the gradient.
    """
    # the angles may be views of one row or of halves; only `x` and `out` may lie anyhow
    cos = cos.contiguous()
    sin = sin.contiguous()
    _loaded().rotate(
        x.numpy(),
        cos.numpy(),
        sin.numpy(),
        len(cos) == 1,
        back,
        out.numpy(),
    )


def attention_weights(
    scores: Tensor,
    first: int,
    window: int,
    heads: int,
    scale: float,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> None:
    """Turn scores into causal attention's weights, in place; with `weights`, back for gradients.

    The rows are the tokens `first` to `first + row` of a window. `scores` (document x key/value
    head, query head, row, first + row), float32 or bfloat16, are matmuls of queries with all keys
    up to the last row's; what a row may not see becomes 0. `mask` (document, token, token; bool)
    says what else it may not see, itself never. With the `weights` that came of it, `scores` are
    their gradient and become the scores'.
    """
    import torch

    half = scores.dtype == torch.bfloat16
    lines, group, rows, columns = scores.shape
    assert columns == first + rows
    score_bits = scores.view(torch.int16) if half else scores
    weight_bits = weights
    if weights is not None and half:
        weight_bits = weights.view(torch.int16)
    _loaded().attention_weights(
        lines,
        group,
        rows,
        first,
        window,
        heads,
        half,
        scale,
        score_bits.numpy(),
        None if weight_bits is None else weight_bits.numpy(),
        None if mask is None else mask.numpy(),
    )


def _loaded() -> ModuleType:
    """The compiled module, for callers that know it is there."""
    module = _module()
    assert module is not None, "callers ask `available` first"
    return module
