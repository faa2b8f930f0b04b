"""The blocks of a model while it trains on a CPU, by the compiled loops: fewer passes over memory than the library takes.

Weights, names and results stay what they were. Products in float32 go to oneDNN, which takes two thirds to nine tenths of MKL's
time on a CPU that is not Intel's. Attention works through the queries a block of rows at a time, against the keys up to the
block's end: two matrix products with a softmax in place between them, in the precision of training, and no work for most of
what causality hides. The library's is kept for windows longer than `LONGEST`, whose weights would take more memory than time
saved, and by processes of several threads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from synthboot import kernels

LONGEST, ROWS = 512, 96


def times(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (..., in) times weight (out, in); in float32 on a CPU by oneDNN, if this torch lets it be asked for."""
    direct = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if direct is None or x.dtype != torch.float32 or x.device.type != "cpu":
        return torch.nn.functional.linear(x, weight)
    return direct(x, weight, None, "none", [], "")


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, scale = kernels.norm(rows, weight.detach(), eps)
        ctx.save_for_backward(rows, weight.detach(), scale)
        ctx.eps = eps
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, scale = ctx.saved_tensors
        into_rows, into_weight = kernels.norm(
            rows, weight, ctx.eps, gradient.reshape(rows.shape), scale
        )
        return into_rows.view(gradient.shape), into_weight, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, value)
        return kernels.gate(gate.contiguous(), value.contiguous())[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, value = (t.contiguous() for t in ctx.saved_tensors)
        return kernels.gate(gate, value, gradient.contiguous())


class _Rotate(torch.autograd.Function):
    """Rotary positions: from (batch, token, head, dim), as products leave it, to (batch, head, token, dim), for attention."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.kind = x.dtype
        batch, tokens, heads, dim = x.shape
        out = torch.empty(batch, heads, tokens, dim)
        kernels.rotate(
            x.detach().float(), cos.float(), sin.float(), out.transpose(1, 2), back=False
        )
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        batch, heads, tokens, dim = gradient.shape
        out = torch.empty(batch, tokens, heads, dim)
        kernels.rotate(gradient.float().transpose(1, 2), cos.float(), sin.float(), out, back=True)
        return out.to(ctx.kind), None, None


class _Product(torch.autograd.Function):
    """Rows times a matrix's rows, in float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return times(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        # where both matrices would have to be turned round MKL is the faster one
        return times(gradient, weight.T), rows.T @ x.flatten(0, -2)


def shorten(model: Any, full: bool) -> None:
    """Let norms and attention of the blocks go through the compiled loops; in `full` precision, float32, gates and products
    too."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = partial(_norm, module)
        elif full and type(module) is torch.nn.Linear and module.bias is None:
            module.forward = partial(_product, module)
        elif (
            full
            and kind.endswith("MLP")
            and isinstance(getattr(module, "act_fn", None), torch.nn.SiLU | _silu())
        ):
            module.forward = partial(_gated, module)
        elif (
            kind.endswith("Attention")
            and model.config._attn_implementation == "sdpa"
            and hasattr(module, "o_proj")
        ):
            module.forward = partial(_attended, module)


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return _Norm.apply(x.float(), module.weight, module.variance_epsilon)


def _product(module: Any, x: torch.Tensor) -> torch.Tensor:
    return _Product.apply(x, module.weight)


def _gated(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(_Gate.apply(module.gate_proj(x), module.up_proj(x)))


def _attended(
    module: Any, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None, past_key_values: Any = None, **rest: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    if past_key_values is not None:
        original = type(module).forward
        return original(
            module, hidden_states, position_embeddings, attention_mask, past_key_values, **rest
        )
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    query, key, value = (
        p(hidden_states).view(shape) for p in (module.q_proj, module.k_proj, module.v_proj)
    )
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    query, key = (_Rotate.apply(x, *position_embeddings) for x in (query, key))
    mixed, weights = _mixed(module, query, key, value.transpose(1, 2), attention_mask, rest)
    return module.o_proj(mixed.reshape(*shape[:-2], -1)), weights


def _mixed(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    rest: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Values weighted by attention, (batch, token, head, dim), in the precision of `value`, a product. The library's is taken
    in float32 whatever that is, since a CPU takes three times as long for it in bfloat16."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    dropout = module.attention_dropout if module.training else 0.0
    window = getattr(module, "sliding_window", None)
    known = mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1)
    if (
        known
        and not dropout
        and not window
        and query.shape[2] <= LONGEST
        and torch.get_num_threads() == 1
    ):
        seen = None if mask is None else mask.expand(len(query), -1, -1, -1)[:, 0].contiguous()
        return _Attend.apply(query, key, value, seen, module.scaling, value.dtype).transpose(
            1, 2
        ), None
    with torch.autocast(query.device.type, enabled=False):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query.float(), key.float(), value.float(), mask, dropout=dropout, scaling=module.scaling,
            sliding_window=window, **rest,
        )  # fmt: skip


class _Attend(torch.autograd.Function):
    """Causal attention of queries (batch, head, token, dim) over keys and values (batch, key/value head, token, dim)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float,
        precision: torch.dtype,
    ) -> torch.Tensor:  # fmt: skip
        ctx.kinds, ctx.scale, heads = (query.dtype, key.dtype, value.dtype), scale, key.shape[1]
        queries = (
            query.to(precision).unflatten(1, (heads, -1)).flatten(0, 1)
        )  # (line, group, token, dim)
        keys, values = (x.to(precision).flatten(0, 1) for x in (key, value))
        out, weights, window = torch.empty_like(queries), [], query.shape[2]
        for first in range(0, window, ROWS):
            last = min(first + ROWS, window)
            rows = queries[:, :, first:last].flatten(1, 2)
            scores = torch.bmm(rows, keys[:, :last].transpose(1, 2)).unflatten(
                1, (-1, last - first)
            )
            kernels.attention_weights(scores, first, window, heads, scale, mask)
            weights.append(scores)
            out[:, :, first:last] = torch.bmm(scores.flatten(1, 2), values[:, :last]).view(
                out[:, :, first:last].shape
            )
        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.heads = heads
        return out.unflatten(0, (-1, heads)).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, *weights = ctx.saved_tensors
        window, heads = keys.shape[1], ctx.heads
        upward = gradient.to(queries.dtype).unflatten(1, (heads, -1)).flatten(0, 1)
        into_queries = torch.empty_like(queries)
        into_keys, into_values = (torch.zeros(keys.shape) for _ in range(2))
        for first, weight in zip(range(0, window, ROWS), weights, strict=True):
            last = min(first + ROWS, window)
            rows, up = (x[:, :, first:last].flatten(1, 2) for x in (queries, upward))
            into_values[:, :last] += torch.bmm(weight.flatten(1, 2).transpose(1, 2), up)
            scores = torch.bmm(up, values[:, :last].transpose(1, 2)).view(weight.shape)
            kernels.attention_weights(scores, first, window, heads, ctx.scale, weights=weight)
            flat = scores.flatten(1, 2)
            into_queries[:, :, first:last] = torch.bmm(flat, keys[:, :last]).view(
                into_queries[:, :, first:last].shape
            )
            into_keys[:, :last] += torch.bmm(flat.transpose(1, 2), rows)
        grads = [
            into_queries.unflatten(0, (-1, heads)).flatten(1, 2),
            *(x.unflatten(0, (-1, heads)) for x in (into_keys, into_values)),
        ]
        return *(g.to(kind) for g, kind in zip(grads, ctx.kinds, strict=True)), None, None, None


def _silu() -> type:
    """What the library calls SiLU."""
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])
