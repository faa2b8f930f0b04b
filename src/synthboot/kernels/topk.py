"""The loops of the neighbour search: the k best, members within a radius, half precision upcast."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float16, Int32, Int64

from synthboot.kernels.library import Argument, array, call

if TYPE_CHECKING:
    from torch import Tensor


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

    def _arguments(self, num_rows: int) -> tuple[Argument, ...]:
        """What both loops begin with. Raises ValueError where `num_rows` are not among these."""
        import torch

        height, width = self.scores.shape
        num_queries, dim = self.queries.shape
        num_members = len(self.members)
        if num_rows > height or num_members > width:
            raise ValueError("scores has fewer rows or columns than there are queries or members")

        is_bfloat16 = self.scores.dtype == torch.bfloat16
        dtype = torch.bfloat16 if is_bfloat16 else torch.float32
        return (
            array("scores", self.scores, (height, width), dtype),
            is_bfloat16,
            width,
            num_members,
            self.margin,
            array("queries", self.queries, (num_queries, dim), torch.float32),
            array("members", self.members, (num_members, dim), torch.float32),
            dim,
            num_queries,
        )


def update_topk(
    scored: Scored,
    rows: Tensor,
    own: Tensor,
    first: int,
    index: Tensor,
    score: Tensor,
) -> None:
    """Merge scores into the running k best of their queries.

    Row i of the scores is query `rows[i]`, column j is number `first + j`. `own` (query) is the
    number of each query itself, which is left out. `index` (query, k; -1) and `score` (query, k;
    -inf) are changed in place: best first, equal ones by number. Raises IndexError for a row that
    is no query's.
    """
    import torch

    num_queries = len(scored.queries)
    num_rows = len(rows)
    k = index.shape[1]
    accepted = call(
        "update_topk",
        *scored._arguments(num_rows),
        num_rows,
        array("rows", rows, (num_rows,), torch.int64),
        array("own", own, (num_queries,), torch.int64),
        first,
        k,
        array("index", index, (num_queries, k), torch.int64),
        array("score", score, (num_queries, k), torch.float32),
    )
    if not accepted:
        raise IndexError("rows names no query")


def within_radius(
    scored: Scored,
    radius: float,
) -> tuple[Int32[np.ndarray, " probe"], Int64[np.ndarray, " query"]]:
    """The members at most `radius` less similar to a query than its nearest, and how many each has.

    Query after query, the nearest first, the others by number. A negative radius: the nearest
    alone.
    """
    import torch

    num_queries = len(scored.queries)
    counts = torch.empty(num_queries, dtype=torch.int64)
    # how many there are is known only afterwards; what is not written takes no memory
    most = num_queries * max(1, len(scored.members))
    members = torch.empty(most, dtype=torch.int32)
    call(
        "within_radius",
        *scored._arguments(num_queries),
        float(radius),
        array("counts", counts, (num_queries,), torch.int64),
        array("members", members, (most,), torch.int32),
    )
    total = int(counts.sum())
    return members[:total].numpy().copy(), counts.numpy()


def upcast(
    rows: Float16[np.ndarray, "row dim"],
    height: int | None,
) -> tuple[Tensor, Tensor | None, float]:
    """The rows in float32, the rows in bfloat16, and the length of the longest.

    In bfloat16 there are `height` rows, zeros after those there are; without `height` they are left
    out.
    """
    import torch

    count, dim = rows.shape
    half = np.ascontiguousarray(rows)
    single = torch.empty(count, dim)
    longest = torch.empty(1)
    bfloat = None
    if height is not None:
        if height < count:
            raise ValueError(f"height is {height}, but there are {count} rows")
        bfloat = torch.empty(height, dim, dtype=torch.bfloat16)

    # one pass over the rows for all three
    call(
        "upcast",
        count,
        height or 0,
        dim,
        # not by way of a tensor: torch has none that may not be written, as a mapped file is
        ctypes.c_void_p(half.ctypes.data),
        array("single", single, (count, dim), torch.float32),
        None if bfloat is None else ctypes.c_void_p(bfloat.data_ptr()),
        array("longest", longest, (1,), torch.float32),
    )
    return single, bfloat, float(longest)
