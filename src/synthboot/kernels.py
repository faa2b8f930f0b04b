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
from jaxtyping import Int32, Int64

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
            _log.warning("synthboot was installed without its compiled loops (%s): pairing and sampling are slower", error)
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


def offer(scored: Scored, rows: Tensor, own: Tensor, first: int, index: Tensor, score: Tensor) -> None:
    """Put what is new into the running k best of some queries.

    Row i of the scores is query `rows[i]`, column j is number `first + j`. `own` (query) is the number of each query itself,
    never offered. `index` (query, k; -1) and `score` (query, k; -inf) are changed in place: best first, equal ones by number.
    """
    _loaded().offer(
        scored._arguments(), rows.numpy(), own.numpy(), len(rows), len(own), index.shape[1], first, index.numpy(), score.numpy()
    )


def within(scored: Scored, reach: float) -> tuple[Int32[np.ndarray, " look"], Int64[np.ndarray, " query"]]:
    """The members that are at most `reach` less similar to a query than its nearest: that one first, the others by number,
    query after query; and how many each has. A negative reach: the nearest alone."""
    counts = np.empty(len(scored.queries), np.int64)
    found = _loaded().within(scored._arguments(), reach, counts)
    return np.frombuffer(found, np.int32), counts


def _loaded() -> ModuleType:
    module = _module()
    assert module is not None, "callers ask `available` first"
    return module
