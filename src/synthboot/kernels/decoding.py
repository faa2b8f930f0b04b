"""The loops of sampling: one token of attention over a cache, a gate, a token drawn from logits."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from synthboot.kernels.library import array, call

if TYPE_CHECKING:
    from torch import Tensor

HEAD_DIMS = (16, 32, 64, 128)
"""Dimensions of a head that `attend` knows."""

BLOCK = 16
"""Positions whose keys `attend` reads side by side."""


def attend(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cosine: Tensor,
    sine: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """One token of attention for every row, (row, head x dim).

    Queries and keys are normalized and rotated, the token appended to the cache, then attended
    from. `qkv` (row, head + 2 x kv_head, dim) holds queries, keys and values; `norms` the weights
    (dim) for queries and keys; `cosine`, `sine` (row, dim); `position` (row) where each row's token
    goes. `keys` (row, kv_head, block, dim, 16) and `values` (row, kv_head, capacity, dim) are
    float32 or bfloat16, capacity 16 x block. Raises IndexError for a position outside the cache,
    ValueError for other shapes.
    """
    import torch

    rows, kv_heads, capacity, dim = values.shape
    heads = qkv.shape[1] - 2 * kv_heads
    if dim not in HEAD_DIMS or capacity % BLOCK or heads < 1 or heads % kv_heads:
        raise ValueError(
            f"attention has heads of {HEAD_DIMS} dimensions, a cache in blocks of {BLOCK}, "
            "and whole groups of heads"
        )

    is_bfloat16 = keys.dtype == torch.bfloat16
    dtype = torch.bfloat16 if is_bfloat16 else torch.float32
    q_norm = None
    k_norm = None
    if norms is not None:
        q_norm = array("q_norm", norms[0], (dim,), torch.float32)
        k_norm = array("k_norm", norms[1], (dim,), torch.float32)

    out = torch.empty(rows, heads * dim)
    accepted = call(
        "attend",
        rows,
        heads,
        kv_heads,
        dim,
        capacity,
        is_bfloat16,
        float(eps),
        array("qkv", qkv, (rows, heads + 2 * kv_heads, dim), torch.float32),
        q_norm,
        k_norm,
        array("cosine", cosine, (rows, dim), torch.float32),
        array("sine", sine, (rows, dim), torch.float32),
        array("position", position, (rows,), torch.int64),
        array("keys", keys, (rows, kv_heads, capacity // BLOCK, dim, BLOCK), dtype),
        array("values", values, (rows, kv_heads, capacity, dim), dtype),
        array("out", out, (rows, heads * dim), torch.float32),
    )
    if not accepted:
        raise IndexError("a position lies outside the cache")
    return out


def silu_gate(joined: Tensor) -> Tensor:
    """silu(gate) x value, (row, dim), of gate and value side by side: (row, 2 x dim; float32)."""
    import torch

    rows, width = joined.shape
    dim = width // 2
    gate = array("joined", joined, (rows, 2 * dim), torch.float32)
    value = ctypes.c_void_p(joined.data_ptr() + dim * joined.element_size())
    out = torch.empty(rows, dim)
    call(
        "silu_gate",
        rows,
        dim,
        width,
        gate,
        value,
        None,
        array("out", out, (rows, dim), torch.float32),
        None,
    )
    return out


def sample_top_p(
    logits: Tensor,
    seeds: Tensor,
    steps: Tensor,
    temperature: float,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """A token per row of `logits` (row, vocab; float32) and its log-probability at temperature 1.

    It is the one that `nucleus.sample_top_p` would accept, after as many tries as that takes, for
    `seeds` and `steps` (row; int64). Raises FloatingPointError for a logit that is not a number.
    """
    import torch

    rows, vocab = logits.shape
    token = torch.empty(rows, dtype=torch.int64)
    logprob = torch.empty(rows)
    accepted = call(
        "draw",
        rows,
        vocab,
        float(temperature),
        float(top_p),
        array("logits", logits, (rows, vocab), torch.float32),
        array("seeds", seeds, (rows,), torch.int64),
        array("steps", steps, (rows,), torch.int64),
        array("token", token, (rows,), torch.int64),
        array("logprob", logprob, (rows,), torch.float32),
    )
    if not accepted:
        raise FloatingPointError("a logit is not a number")
    return token, logprob
