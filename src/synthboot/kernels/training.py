"""The loops of training, forwards and backwards.

They are norms, gates, rotary positions, attention's softmax, and the loss.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from synthboot.kernels.library import array, call

if TYPE_CHECKING:
    from torch import Tensor


def softmax_gradient(
    logits: Tensor,
    targets: Tensor,
    scale: float,
    z_loss: float,
) -> Tensor:
    """`lm.loss.softmax_gradient`. Raises IndexError for a target outside the vocabulary."""
    import torch

    rows, vocab = logits.shape
    sums = torch.zeros(2, dtype=torch.float64)  # every row adds to them
    accepted = call(
        "softmax_gradient",
        rows,
        vocab,
        float(scale),
        float(z_loss),
        array("logits", logits, (rows, vocab), torch.float32),
        array("targets", targets, (rows,), torch.int64),
        array("sums", sums, (2,), torch.float64),
    )
    if not accepted:
        raise IndexError("a target lies outside the vocabulary")
    return sums


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows (row, dim) over their root mean square, times `weight` (dim), and the factor (row)."""
    import torch

    rows, dim = x.shape
    out = torch.empty(rows, dim)
    scale = torch.empty(rows)
    call(
        "rms_norm",
        rows,
        dim,
        float(eps),
        array("x", x, (rows, dim), torch.float32),
        array("weight", weight, (dim,), torch.float32),
        array("out", out, (rows, dim), torch.float32),
        array("scale", scale, (rows,), torch.float32),
    )
    return out, scale


def rms_norm_backward(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of `x` (row, dim) and `weight` (dim), by that of the result and the factors."""
    import torch

    rows, dim = x.shape
    grad_x = torch.empty(rows, dim)
    grad_weight = torch.zeros(dim)  # every row adds to it
    call(
        "rms_norm_backward",
        rows,
        dim,
        array("x", x, (rows, dim), torch.float32),
        array("weight", weight, (dim,), torch.float32),
        array("scale", scale, (rows,), torch.float32),
        array("gradient", gradient, (rows, dim), torch.float32),
        array("grad_x", grad_x, (rows, dim), torch.float32),
        array("grad_weight", grad_weight, (dim,), torch.float32),
    )
    return grad_x, grad_weight


def silu_gate(
    gate: Tensor,
    value: Tensor,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """silu(gate) x value, all of one shape; with the `gradient` of that, those of both factors."""
    import torch

    shape = tuple(gate.shape)
    out = torch.empty_like(gate)  # the result, or the gradient of `gate`
    grad = None
    grad_value = None
    grad_value_out = None
    if gradient is not None:
        grad = array("gradient", gradient, shape, torch.float32)
        grad_value = torch.empty_like(value)
        grad_value_out = array("grad_value", grad_value, shape, torch.float32)
    count = gate.numel()
    call(
        "silu_gate",
        1,
        count,
        count,
        array("gate", gate, shape, torch.float32),
        array("value", value, shape, torch.float32),
        grad,
        array("out", out, shape, torch.float32),
        grad_value_out,
    )
    return out, grad_value


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    out: Tensor,
    inverse: bool,
) -> None:
    """Rotate `x` (document, token, head, dim) by its rotary positions, into `out`.

    Both are float32 and laid out anyhow but for the last dimension. Angles (1 or document, token,
    dim) have two halves alike; `inverse` rotates by their negative, which is the gradient. Raises
    ValueError for other shapes.
    """
    import torch

    for name, tensor in (("x", x), ("out", out)):
        strided = tensor.dim() == 4 and tensor.dtype == torch.float32
        if not strided or (tensor.stride(3) != 1 and tensor.shape[3] != 1):
            raise ValueError(f"{name} is not float32 in four dimensions, the last in one piece")
    if x.shape != out.shape:
        raise ValueError(f"x and out differ in shape: {tuple(x.shape)}, {tuple(out.shape)}")

    documents, tokens, _, dim = x.shape
    shared_angles = len(cos) == 1
    angles = (1 if shared_angles else documents, tokens, dim)
    # the angles may be views of one row or of halves; only `x` and `out` may lie anyhow
    cos = cos.contiguous()
    sin = sin.contiguous()
    call(
        "rotate",
        (ctypes.c_int64 * 4)(*x.shape),
        (ctypes.c_int64 * 3)(*x.stride()[:3]),
        (ctypes.c_int64 * 3)(*out.stride()[:3]),
        shared_angles,
        inverse,
        ctypes.c_void_p(x.data_ptr()),
        array("cos", cos, angles, torch.float32),
        array("sin", sin, angles, torch.float32),
        ctypes.c_void_p(out.data_ptr()),
    )


def attention_weights(
    scores: Tensor,
    first: int,
    seq_len: int,
    kv_heads: int,
    scale: float,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> None:
    """Turn scores into causal attention's weights, in place; with `weights`, back for gradients.

    The rows are the tokens `first` to `first + row` of `seq_len`. `scores` (document x kv_head,
    group, row, first + row), float32 or bfloat16, are matmuls of the query heads that share a key
    head with all keys up to the last row's; what a row may not see becomes 0. `mask` (document,
    token, token; bool) says what else it may not see, itself never. With the `weights` that came of
    it, `scores` are their gradient and become the scores'. Raises ValueError for other shapes.
    """
    import torch

    num_kv, group, rows, columns = scores.shape
    if rows < 1 or first < 0 or columns != first + rows or columns > seq_len:
        raise ValueError(f"rows {first} to {first + rows} lie outside the {seq_len} tokens")
    if kv_heads < 1 or num_kv % kv_heads:
        raise ValueError(f"{num_kv} key heads are not whole documents of {kv_heads}")

    is_bfloat16 = scores.dtype == torch.bfloat16
    dtype = torch.bfloat16 if is_bfloat16 else torch.float32
    shape = (num_kv, group, rows, columns)
    documents = num_kv // kv_heads
    call(
        "attention_weights",
        num_kv,
        group,
        rows,
        first,
        seq_len,
        kv_heads,
        is_bfloat16,
        float(scale),
        array("scores", scores, shape, dtype),
        None if weights is None else array("weights", weights, shape, dtype),
        None if mask is None else array("mask", mask, (documents, seq_len, seq_len), torch.bool),
    )
