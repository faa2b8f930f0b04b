"""The training loss: next-token cross-entropy without ever holding all logits.

Rows of targets are taken a chunk at a time: product with the output matrix, softmax turned into its gradient in place, and
that gradient's two products at once, so that memory is one chunk of logits and nothing is kept for the backward pass but the
gradients themselves. Rows without a target (d1 in tuning, padding) cost nothing here.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch

from synthboot import kernels
from synthboot.lm.batches import IGNORE

_PLAIN = ("qwen3", "llama", "qwen2", "mistral")
"""Architectures whose logits are nothing but a product of the last hidden state and the output matrix."""

CHUNK = 1_024


class Loss(torch.nn.Module):
    """A causal LM with its loss as one module, so that wrappers for several processes see one forward pass.

    `precision` is that of products and activations; weights, gradients and the loss itself stay float32.
    """

    def __init__(self, model: Any, precision: torch.dtype = torch.float32, z_loss: float = 0.0, sharded: bool = False) -> None:
        super().__init__()
        self.model, self.precision, self.z_loss = model, precision, z_loss
        head = model.get_output_embeddings()
        self.chunked = model.config.model_type in _PLAIN and getattr(head, "bias", None) is None
        # weights that are put together and taken apart again cannot be lent to the compiled loops
        if self.chunked and not sharded and kernels.available(head.weight.device.type):
            _shorten(model, gates=precision == torch.float32)

    def forward(
        self, inputs: torch.Tensor, targets: torch.Tensor | None = None, divisor: float = 1.0,
        masks: dict[str, torch.Tensor] | None = None,
    ) -> Any:  # fmt: skip
        """What to differentiate, and the cross-entropy in it: both sums over the targets divided by `divisor`. Without
        targets the model's own output."""
        if targets is None:
            return self.model(input_ids=inputs, use_cache=False)
        masks = masks or {}
        wanted = targets.flatten()
        with self._autocast(inputs.device):
            if self.chunked:
                hidden = self.model.model(input_ids=inputs, use_cache=False, **masks).last_hidden_state.flatten(0, 1)
            else:
                logits = self.model(input_ids=inputs, use_cache=False, **masks).logits.flatten(0, 1)
        if self.chunked:
            kept = (wanted != IGNORE).nonzero()[:, 0]
            if len(kept) < len(wanted):
                hidden, wanted = hidden[kept], wanted[kept]
            weight = self.model.get_output_embeddings().weight
            return _Chunked.apply(hidden, weight, wanted, divisor, self.z_loss, self.precision)
        plain = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum", ignore_index=IGNORE) / divisor
        if not self.z_loss:
            return plain, plain.detach()
        square = torch.logsumexp(logits.float(), 1)[wanted != IGNORE].square().sum()
        return plain + self.z_loss * square / divisor, plain.detach()

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.precision)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, divisor: float, z_loss: float,
        precision: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        matrix, rows = weight.to(precision), hidden.to(precision)
        into_rows, into_weight = torch.empty_like(rows), torch.zeros_like(weight)
        total = torch.zeros(2, device=hidden.device, dtype=torch.float64)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            logits = (part @ matrix.T).float()
            total += softmax_gradient(logits, targets[start : start + CHUNK], 1 / divisor, z_loss)
            gradient = logits.to(precision)
            torch.mm(gradient, matrix, out=into_rows[start : start + CHUNK])
            if precision == torch.float32:
                into_weight.addmm_(gradient.T, part)
            else:
                into_weight += gradient.T @ part
        ctx.save_for_backward(into_rows, into_weight)
        ctx.kind = hidden.dtype
        loss, square = (total / divisor).float()
        ctx.mark_non_differentiable(loss)
        return loss + z_loss * square, loss

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        into_rows, into_weight = ctx.saved_tensors
        return (into_rows * gradient).to(ctx.kind), into_weight * gradient, None, None, None, None


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
        into_rows, into_weight = kernels.norm(rows, weight, ctx.eps, gradient.reshape(rows.shape), scale)
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
    """Rotary positions, (batch, token, head, dim): two passes over memory each way, where the library takes five."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, sin, -1.0), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: float) -> torch.Tensor:
    half = x.shape[-1] // 2
    c, s = cos[..., None, :half], sin[..., None, :half]  # both halves of these are alike
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(x[..., :half], c, out=out[..., :half]).addcmul_(x[..., half:], s, value=-way)
    torch.mul(x[..., half:], c, out=out[..., half:]).addcmul_(x[..., :half], s, value=way)
    return out


def _shorten(model: Any, gates: bool) -> None:
    """Norms and, with `gates`, gates of the blocks by the compiled loops, and the rotation of queries and keys, while the model
    trains on a CPU: fewer passes over memory than the library takes. Weights, names and results stay what they were.
    Attention is taken in float32 even where products are in bfloat16, in which a CPU takes three times as long for it."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = partial(_norm, module)
        elif gates and kind.endswith("MLP") and isinstance(getattr(module, "act_fn", None), torch.nn.SiLU | _silu()):
            module.forward = partial(_gated, module)
        elif kind.endswith("Attention") and model.config._attn_implementation == "sdpa" and hasattr(module, "o_proj"):
            module.forward = partial(_attended, module)


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return _Norm.apply(x.float(), module.weight, module.variance_epsilon)


def _gated(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(_Gate.apply(module.gate_proj(x), module.up_proj(x)))


def _attended(
    module: Any, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None, past_key_values: Any = None, **rest: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if past_key_values is not None:
        original = type(module).forward
        return original(module, hidden_states, position_embeddings, attention_mask, past_key_values, **rest)
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    query, key, value = (p(hidden_states).view(shape) for p in (module.q_proj, module.k_proj, module.v_proj))
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    query, key = (_Rotate.apply(x, *position_embeddings).transpose(1, 2) for x in (query, key))
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    dropout = module.attention_dropout if module.training else 0.0
    window = getattr(module, "sliding_window", None)
    with torch.autocast(query.device.type, enabled=False):
        out, weights = attend(
            module, query.float(), key.float(), value.transpose(1, 2).float(), attention_mask, dropout=dropout,
            scaling=module.scaling, sliding_window=window, **rest,
        )  # fmt: skip
    return module.o_proj(out.reshape(*shape[:-2], -1)), weights


def _silu() -> type:
    """What the library calls SiLU."""
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])


def softmax_gradient(logits: torch.Tensor, targets: torch.Tensor, scale: float, z_loss: float) -> torch.Tensor:
    """Turn logits (row, vocab; float32) in place into the gradient of scale x (cross-entropy + z_loss x logsumexp squared);
    returns the sums of cross-entropy and of squared logsumexp, in nats, float64."""
    if kernels.available(logits.device.type):
        return kernels.softmax_gradient(logits, targets, scale, z_loss)
    top = logits.amax(1, keepdim=True)
    picked = logits.gather(1, targets[:, None])
    mass = logits.sub_(top).exp_().sum(1, keepdim=True)
    lse = mass.log() + top
    logits.mul_(scale * (1 + 2 * z_loss * lse) / mass)
    logits.scatter_add_(1, targets[:, None], torch.full_like(picked, -scale))
    return torch.stack(((lse - picked).double().sum(), lse.double().square().sum()))
