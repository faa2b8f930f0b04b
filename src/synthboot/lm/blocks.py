"""A model's blocks while it trains or scores on a CPU, by the compiled loops.

Weights, names and results stay those of the library; passes over memory become fewer.

1. Matmuls in float32 go to oneDNN, which takes two thirds to nine tenths of MKL's time on a CPU
   that is not Intel's.
2. Norms, gates and rotary positions are one pass over memory each.
3. Attention takes the queries a block of `ROWS` tokens at a time, against the keys up to the
   block's end: two matmuls with a softmax in place between them, and no work for most of what the
   causal mask hides.

The library's attention is kept for rows longer than `LONGEST`, whose attention weights would take
more memory than time saved, and for processes of several threads.

Modules get another `forward`, since `transformers` has no public place for norms, gates and matmuls
without its hub's packages. It has one for attention (`AttentionInterface`), but a function that is
registered there is called behind the rotary positions, which are then the library's: four passes
over memory instead of one, and other bytes (docs/decisions.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synthboot.kernels import library, training

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Gradients = tuple[Tensor | None, ...]
"""What a backward pass returns: a gradient for each input of the forward pass, or None."""

_LLAMA_LIKE = ("qwen3", "llama", "qwen2", "mistral")

LONGEST = 512
"""The longest row, in tokens, whose attention weights are kept for the backward pass."""

ROWS = 96
"""Query tokens of one block of attention."""


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in) times weight (out, in); in float32 on a CPU by oneDNN, if torch has it."""
    # a private operator: other versions of torch may not have it
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if onednn is None or x.dtype != torch.float32 or x.device.type != "cpu":
        return torch.nn.functional.linear(x, weight)
    return onednn(x, weight, None, "none", [], "")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of x (..., dim) over its last dimension, float32."""
    normed: Tensor = _Norm.apply(x, weight, eps)
    return normed


def silu_gate(gate: Tensor, value: Tensor) -> Tensor:
    """silu(gate) x value, both (..., dim)."""
    gated: Tensor = _Gate.apply(gate, value)
    return gated


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    precision: torch.dtype,
) -> Tensor:
    """Causal attention of queries over keys and values, all (batch, heads, seq, head_dim).

    Keys and values may have fewer heads, each shared by several of the queries'. `mask` (batch,
    seq, seq) is true where a query may look. Matmuls are in `precision`.
    """
    mixed: Tensor = _Attend.apply(query, key, value, mask, scale, precision)
    return mixed


class _Norm(torch.autograd.Function):
    """RMS norm over the last dimension."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        eps: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (..., dim) -> (rows, dim)
        out, scale = training.rms_norm(rows, weight.detach(), eps)

        ctx.save_for_backward(rows, weight.detach(), scale)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        rows, weight, scale = ctx.saved_tensors
        grad_out = gradient.reshape(rows.shape)  # (..., dim) -> (rows, dim)
        grad_rows, grad_weight = training.rms_norm_backward(rows, weight, scale, grad_out)
        return grad_rows.view(gradient.shape), grad_weight, None


class _Gate(torch.autograd.Function):
    """silu(gate) x value."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value)
        return training.silu_gate(gate.contiguous(), value.contiguous())[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        gate, value = ctx.saved_tensors
        return training.silu_gate(
            gate.contiguous(),
            value.contiguous(),
            gradient.contiguous(),
        )


class _Rotate(torch.autograd.Function):
    """Rotary positions, and the transpose from the matmuls' layout to attention's.

    In: (batch, seq, heads, head_dim). Out: (batch, heads, seq, head_dim), float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        batch, seq, heads, head_dim = x.shape
        out = torch.empty(batch, heads, seq, head_dim)

        # written through a transposed view, so that the layout changes in the same pass over memory
        transposed = out.transpose(1, 2)  # (batch, seq, heads, head_dim)
        training.rotate(
            x.detach().float(),
            cos.float(),
            sin.float(),
            transposed,
            inverse=False,
        )
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        cos, sin = ctx.saved_tensors
        batch, heads, seq, head_dim = gradient.shape
        grad_x = torch.empty(batch, seq, heads, head_dim)

        # a rotation's gradient is the rotation by the negative angle
        transposed = gradient.float().transpose(1, 2)  # (batch, seq, heads, head_dim)
        training.rotate(
            transposed,
            cos.float(),
            sin.float(),
            grad_x,
            inverse=True,
        )
        return grad_x.to(ctx.dtype), None, None


class _Matmul(torch.autograd.Function):
    """x (..., in) times weight (out, in), in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        grad_rows = gradient.flatten(0, -2)  # (rows, out)
        x_rows = x.flatten(0, -2)  # (rows, in)

        grad_x = linear(gradient, weight.T)
        if not ctx.needs_input_grad[1]:  # adapters are trained in its place
            return grad_x, None
        # not by oneDNN: where both matrices would have to be transposed MKL is the faster one
        grad_weight = grad_rows.T @ x_rows
        return grad_x, grad_weight


def is_llama_like(model: PreTrainedModel) -> bool:
    """Whether its blocks have the modules that the loops stand for, under the names that are known
    here, and its logits are nothing but the last hidden state times the output matrix."""
    if model.config.model_type not in _LLAMA_LIKE:
        return False
    return getattr(model.get_output_embeddings(), "bias", None) is None


@contextlib.contextmanager
def compiled_loops(model: PreTrainedModel) -> Iterator[None]:
    """While this lasts a model that only scores goes through the compiled loops, where that is
    faster and nothing stands against it; one that trains with them does so already."""
    from transformers import PreTrainedModel

    # a sharded model is scored through a view of it, whose wrapper gathers each block's weights
    is_whole = isinstance(model, PreTrainedModel)
    if not (is_whole and is_llama_like(model) and _suits(model)):
        yield
        return
    use_compiled_loops(model, full=True)
    try:
        yield
    finally:
        for module in model.modules():
            vars(module).pop("forward", None)


def _suits(model: PreTrainedModel) -> bool:
    """Whether the loops are faster, and its modules do what their classes say."""
    weight = model.get_output_embeddings().weight
    # the loops have one thread, and in another precision the library's way is as fast
    is_faster = weight.dtype == torch.float32 and torch.get_num_threads() == 1
    # by training, which has the loops, or by a compiler, which has taken what was there
    changed = any("forward" in vars(m) or m._compiled_call_impl for m in model.modules())
    available = library.available(weight.device.type)
    return is_faster and not changed and available


def use_compiled_loops(model: PreTrainedModel, full: bool) -> None:
    """Let the norms and the attention of a Llama-like model go through the compiled loops.

    With `full`, in float32, gates and matmuls too.
    """
    inner = model.model
    norms = [inner.norm]
    silu = (torch.nn.SiLU, _library_silu())
    own_attention = model.config._attn_implementation == "sdpa"  # else one was asked for by name
    for layer in inner.layers:
        attention = layer.self_attn
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        if hasattr(attention, "q_norm"):  # Qwen3 has QK-norm, Llama has not
            norms += [attention.q_norm, attention.k_norm]
        if own_attention:
            attention.forward = partial(_attention, attention)
        if full and isinstance(layer.mlp.act_fn, silu):
            layer.mlp.forward = partial(_gated_mlp, layer.mlp)

    for norm in norms:
        norm.forward = partial(_norm, norm)
    if full:
        for module in model.modules():
            if type(module) is torch.nn.Linear and module.bias is None:
                module.forward = partial(_matmul, module)


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x.float(), module.weight, module.variance_epsilon)


def _matmul(module: Any, x: Tensor) -> Tensor:
    return _Matmul.apply(x, module.weight)


def _gated_mlp(module: Any, x: Tensor) -> Tensor:
    hidden = silu_gate(module.gate_proj(x), module.up_proj(x))
    return module.down_proj(hidden)


def _attention(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """The output of an attention module and, where the library made them, its weights.

    Parameters are named as the library names them, since it passes them by name.
    """
    # decoding with a cache is the library's: nothing here appends to one
    if past_key_values is not None:
        original = type(module).forward
        return original(
            module,
            hidden_states,
            position_embeddings,
            attention_mask,
            past_key_values,
            **rest,
        )

    # (batch, seq, width) -> (batch, seq, heads, head_dim)
    batch, seq, _ = hidden_states.shape
    shape = (batch, seq, -1, module.head_dim)
    query = module.q_proj(hidden_states).view(shape)
    key = module.k_proj(hidden_states).view(shape)
    value = module.v_proj(hidden_states).view(shape)
    if hasattr(module, "q_norm"):  # Qwen3 has QK-norm, Llama has not
        query = module.q_norm(query)
        key = module.k_norm(key)

    # (batch, seq, heads, head_dim) -> (batch, heads, seq, head_dim)
    cos, sin = position_embeddings
    query = _Rotate.apply(query, cos, sin)
    key = _Rotate.apply(key, cos, sin)
    value = value.transpose(1, 2)

    mixed, weights = _mixed_values(module, query, key, value, attention_mask, rest)
    flat = mixed.reshape(batch, seq, -1)  # (batch, seq, heads x head_dim)
    return module.o_proj(flat), weights


def _mixed_values(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rest: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Values weighted by attention, (batch, seq, heads, head_dim)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    dropout = module.attention_dropout if module.training else 0.0
    sliding_window = getattr(module, "sliding_window", None)
    # the loops read a boolean mask that all heads share; another is left to the library
    mask_fits = mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1)
    compiled = (
        mask_fits
        and not dropout
        and not sliding_window
        and query.shape[2] <= LONGEST
        and torch.get_num_threads() == 1
    )
    if compiled:
        visible = None
        if mask is not None:
            # (1 or batch, 1, seq, seq) -> (batch, seq, seq)
            visible = mask.expand(len(query), -1, -1, -1)[:, 0].contiguous()
        # `value` comes from a matmul, so its dtype is the precision of training
        mixed = attend(
            query,
            key,
            value,
            visible,
            module.scaling,
            value.dtype,
        )
        return mixed.transpose(1, 2), None  # (batch, seq, heads, head_dim)

    # float32 whatever the precision: a CPU takes three times as long for the library's in bfloat16
    with torch.autocast(query.device.type, enabled=False):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](
            module,
            query.float(),
            key.float(),
            value.float(),
            mask,
            dropout=dropout,
            scaling=module.scaling,
            sliding_window=sliding_window,
            **rest,
        )


class _Attend(torch.autograd.Function):
    """`attend` by blocks of rows.

    `kv` below counts batch x kv_heads; `group` the query heads that share one head of keys and
    values. A block of the scores S, its softmax P, and the gradients:

        S = Q K^T    P = softmax(scale S)    O = P V
        dV = P^T dO  dP = dO V^T             dS = softmax'(dP; P)   dQ = dS K   dK = dS^T Q
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        precision: torch.dtype,
    ) -> Tensor:
        kv_heads = key.shape[1]
        seq = query.shape[2]
        # (batch, heads, seq, head_dim) -> (kv, group, seq, head_dim)
        queries = query.to(precision).unflatten(1, (kv_heads, -1)).flatten(0, 1)
        # (batch, kv_heads, seq, head_dim) -> (kv, seq, head_dim)
        keys = key.to(precision).flatten(0, 1)
        values = value.to(precision).flatten(0, 1)

        out = torch.empty_like(queries)
        weights: list[Tensor] = []
        for first in range(0, seq, ROWS):
            last = min(first + ROWS, seq)
            rows = last - first
            # the heads of a group are stacked as rows of one matmul: (kv, group x rows, head_dim)
            block = queries[:, :, first:last].flatten(1, 2)

            # no later key is visible to these rows: (kv, group, rows, last)
            scores = torch.bmm(block, keys[:, :last].transpose(1, 2)).unflatten(1, (-1, rows))
            training.attention_weights(scores, first, seq, kv_heads, scale, mask)  # in place
            weights.append(scores)

            # (kv, group x rows, head_dim) -> (kv, group, rows, head_dim)
            mixed = torch.bmm(scores.flatten(1, 2), values[:, :last])
            out[:, :, first:last] = mixed.unflatten(1, (-1, rows))

        ctx.save_for_backward(queries, keys, values, *weights)
        ctx.dtypes = (query.dtype, key.dtype, value.dtype)
        ctx.scale = scale
        ctx.kv_heads = kv_heads
        # (kv, group, seq, head_dim) -> (batch, heads, seq, head_dim)
        return out.unflatten(0, (-1, kv_heads)).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        queries, keys, values, *weights = ctx.saved_tensors
        kv_heads = ctx.kv_heads
        seq = keys.shape[1]
        # (batch, heads, seq, head_dim) -> (kv, group, seq, head_dim)
        grad_out = gradient.to(queries.dtype).unflatten(1, (kv_heads, -1)).flatten(0, 1)

        grad_queries = torch.empty_like(queries)
        # every block adds to these, so they are float32 whatever the precision: (kv, seq, head_dim)
        grad_keys = torch.zeros(keys.shape)
        grad_values = torch.zeros(values.shape)
        for first, weight in zip(range(0, seq, ROWS), weights, strict=True):
            last = min(first + ROWS, seq)
            # (kv, group, rows, ...) -> (kv, group x rows, ...), as in the forward pass
            query_block = queries[:, :, first:last].flatten(1, 2)
            grad_block = grad_out[:, :, first:last].flatten(1, 2)
            weight_block = weight.flatten(1, 2)  # (kv, group x rows, last)

            # dV = P^T dO
            grad_values[:, :last] += torch.bmm(weight_block.transpose(1, 2), grad_block)

            # dP = dO V^T, and in place dS: (kv, group, rows, last)
            grad_scores = torch.bmm(grad_block, values[:, :last].transpose(1, 2)).view(weight.shape)
            training.attention_weights(grad_scores, first, seq, kv_heads, ctx.scale, weights=weight)
            score_block = grad_scores.flatten(1, 2)  # (kv, group x rows, last)

            # dQ = dS K: these rows are no other block's, so nothing is added up
            # (kv, group x rows, head_dim) -> (kv, group, rows, head_dim)
            mixed = torch.bmm(score_block, keys[:, :last])
            grad_queries[:, :, first:last] = mixed.unflatten(1, weight.shape[1:3])

            # dK = dS^T Q
            grad_keys[:, :last] += torch.bmm(score_block.transpose(1, 2), query_block)

        # (kv, group, seq, head_dim) -> (batch, heads, seq, head_dim); keys and values have no group
        query_dtype, key_dtype, value_dtype = ctx.dtypes
        return (
            grad_queries.unflatten(0, (-1, kv_heads)).flatten(1, 2).to(query_dtype),
            grad_keys.unflatten(0, (-1, kv_heads)).to(key_dtype),
            grad_values.unflatten(0, (-1, kv_heads)).to(value_dtype),
            None,
            None,
            None,
        )


def _library_silu() -> type:
    """The class that `transformers` has for SiLU, which is not torch's in every version."""
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])
