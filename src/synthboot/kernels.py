"""The optional compiled loops. `kernels.cpp` is built with the package; without it everything runs, slower, to the same
result: `available()` says whether it is there, and callers have a Python path.

`SYNTHBOOT_KERNELS=0` leaves it aside.
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
    if os.environ.get("SYNTHBOOT_KERNELS") == "0":
        return None
    try:
        from synthboot import _kernels  # type: ignore[attr-defined,unused-ignore]
    except ImportError as error:
        if parent_process() is None:  # once, not by every worker
            _log.warning(
                "synthboot was installed without its compiled loops (%s): pairing and sampling are slower",
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

    `scores` (row, column) may be float32 or bfloat16, off by up to `margin`, and wider and higher than there are members and
    rows: the rest is padding. What they cannot decide is decided by products taken again in float32, so that no result
    depends on how they were computed.
    """

    scores: Tensor
    queries: Tensor
    members: Tensor
    margin: float

    def _arguments(self) -> tuple[Any, ...]:
        import torch

        half = self.scores.dtype == torch.bfloat16
        scores = (self.scores.view(torch.int16) if half else self.scores).numpy()
        (total, dim), columns = self.queries.shape, len(self.members)
        queries, members = self.queries.numpy(), self.members.numpy()
        return scores, half, *scores.shape, columns, self.margin, queries, total, members, dim


def widen(
    rows: Float16[np.ndarray, "row dim"], height: int | None
) -> tuple[Tensor, Tensor | None, float]:
    """The rows in float32; with `height`, also in bfloat16, with rows of zeros up to that many; and the longest's length."""
    import torch

    count, dim = rows.shape
    wide = torch.empty(count, dim)
    narrow = None if height is None else torch.empty(height, dim, dtype=torch.bfloat16)
    place = None if narrow is None else narrow.view(torch.int16).numpy()
    return (
        wide,
        narrow,
        _loaded().widen(count, height or 0, dim, np.ascontiguousarray(rows), wide.numpy(), place),
    )


def offer(
    scored: Scored, rows: Tensor, own: Tensor, first: int, index: Tensor, score: Tensor
) -> None:
    """Put what is new into the running k best of some queries.

    Row i of the scores is query `rows[i]`, column j is number `first + j`. `own` (query) is the number of each query itself,
    never offered. `index` (query, k; -1) and `score` (query, k; -inf) are changed in place: best first, equal ones by number.
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
    scored: Scored, reach: float
) -> tuple[Int32[np.ndarray, " look"], Int64[np.ndarray, " query"]]:
    """The members that are at most `reach` less similar to a query than its nearest: that one first, the others by number,
    query after query; and how many each has. A negative reach: the nearest alone."""
    counts = np.empty(len(scored.queries), np.int64)
    found = _loaded().within(scored._arguments(), reach, counts)
    return np.frombuffer(found, np.int32), counts


HEADS = (16, 32, 64, 128)
"""Dimensions of a head that `attend` knows."""


def attend(
    joined: Tensor, norms: tuple[Tensor, Tensor] | None, eps: float, cosine: Tensor, sine: Tensor, position: Tensor,
    keys: Tensor, values: Tensor,
) -> Tensor:  # fmt: skip
    """One token of attention for every row: normalise and rotate queries and keys, append to the cache, attend.

    `joined` (row, head + 2 x key/value head, dim) holds queries, keys and values; `norms` the weights (dim) for queries and
    keys; `cosine`, `sine` (row, dim); `position` (row) where each row's token goes. `keys` (row, head, block, dim, 16) and
    `values` (row, head, window, dim) are float32 or bfloat16, window 16 x block. Returns (row, head x dim).
    """
    import torch

    half = keys.dtype == torch.bfloat16
    cache = [(c.view(torch.int16) if half else c).numpy() for c in (keys, values)]
    (rows, kv_heads, window, dim), heads = values.shape, joined.shape[1] - 2 * values.shape[1]
    q_norm, k_norm = (None, None) if norms is None else (n.numpy() for n in norms)
    out = torch.empty(rows, heads * dim)
    _loaded().attend(
        rows, heads, kv_heads, dim, window, half, eps, joined.numpy(), q_norm, k_norm, cosine.numpy(), sine.numpy(),
        position.numpy(), *cache, out.numpy(),
    )  # fmt: skip
    return out


def draw(
    logits: Tensor, seeds: np.ndarray, steps: np.ndarray, temperature: float, top_p: float
) -> tuple[Int64[np.ndarray, " row"], Float32[np.ndarray, " row"]]:
    """`lm.sample.draw`: a token per row of `logits` (row, vocab) and its log-probability."""
    rows, vocab = logits.shape
    token, logprob = np.empty(rows, np.int64), np.empty(rows, np.float32)
    seeds, steps = seeds.astype(np.uint64), steps.astype(np.uint64)
    _loaded().draw(
        rows, vocab, temperature, top_p, logits.contiguous().numpy(), seeds, steps, token, logprob
    )
    return token, logprob


def softmax_gradient(logits: Tensor, targets: Tensor, scale: float, z_loss: float) -> Tensor:
    """`lm.loss.softmax_gradient`."""
    import torch

    rows, vocab = logits.shape
    sums = _loaded().softmax_gradient(rows, vocab, scale, z_loss, logits.numpy(), targets.numpy())
    return torch.tensor(sums, dtype=torch.float64)


def norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    gradient: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows (row, dim) over their root mean square, times `weight`, and the factor of each row. With the `gradient` of that
    result and the factors: the gradients of `x` and of `weight`."""
    import torch

    rows, dim = x.shape
    out = torch.empty_like(x)
    scale = torch.empty(rows) if scale is None else scale
    into_weight = None if gradient is None else torch.zeros(dim)
    _loaded().norm(
        rows, dim, eps, x.numpy(), weight.numpy(), None if gradient is None else gradient.numpy(), out.numpy(), scale.numpy(),
        None if into_weight is None else into_weight.numpy(),
    )  # fmt: skip
    return out, scale if into_weight is None else into_weight


def gate(
    gate: Tensor, value: Tensor, gradient: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """silu(gate) x value, all of one shape. With the `gradient` of that: the gradients of `gate` and of `value`."""
    import torch

    out = torch.empty_like(gate)
    other = None if gradient is None else torch.empty_like(value)
    _loaded().gate(
        gate.numel(), gate.numpy(), value.numpy(), None if gradient is None else gradient.numpy(), out.numpy(),
        None if other is None else other.numpy(),
    )  # fmt: skip
    return out, other


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, back: bool) -> None:
    """Rotary positions of `x` (document, token, head, dim) into `out`, both float32 and laid out anyhow but for the last
    dimension. Angles (1 or document, token, dim) have two halves alike; `back` turns by their negative, the gradient."""
    angles = [a.contiguous().numpy() for a in (cos, sin)]
    _loaded().rotate(x.numpy(), *angles, len(cos) == 1, back, out.numpy())


def attention_weights(
    scores: Tensor,
    first: int,
    window: int,
    heads: int,
    scale: float,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> None:
    """The softmax of causal attention, in place, of tokens `first` to `first + row` of a window.

    `scores` (document x key/value head, query head, row, first + row), float32 or bfloat16, are products of queries with all
    keys up to the last row's; what a row may not see becomes 0. `mask` (document, token, token; bool) says what else it may
    not see, itself never. With the `weights` that came of it, `scores` are their gradient and become the products'.
    """
    import torch

    half = scores.dtype == torch.bfloat16
    lines, group, rows, columns = scores.shape
    assert columns == first + rows
    given = [
        None if t is None else (t.view(torch.int16) if half else t).numpy()
        for t in (scores, weights)
    ]
    where = None if mask is None else mask.numpy()
    _loaded().attention_weights(
        lines, group, rows, first, window, heads, half, scale, *given, where
    )


def _loaded() -> ModuleType:
    module = _module()
    assert module is not None, "callers ask `available` first"
    return module
