"""The training loss: next-token cross-entropy without ever holding all logits.

Rows of targets are taken a chunk at a time: product with the output matrix, softmax turned into its gradient in place, and
that gradient's two products at once, so that memory is one chunk of logits and nothing is kept for the backward pass but the
gradients themselves. Rows without a target (d1 in tuning, padding) cost nothing here.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from synthboot import kernels
from synthboot.lm.batches import IGNORE
from synthboot.lm.blocks import shorten, times

_PLAIN = ("qwen3", "llama", "qwen2", "mistral")
"""Architectures whose logits are nothing but a product of the last hidden state and the output matrix."""

CHUNK = 1_024


class Loss(torch.nn.Module):
    """A causal LM with its loss as one module, so that wrappers for several processes see one forward pass.

    `precision` is that of products and activations; weights, gradients and the loss itself stay float32. `plain` leaves the
    blocks as the library has them.
    """

    def __init__(
        self,
        model: Any,
        precision: torch.dtype = torch.float32,
        z_loss: float = 0.0,
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.precision, self.z_loss = model, precision, z_loss
        head = model.get_output_embeddings()
        self.chunked = model.config.model_type in _PLAIN and getattr(head, "bias", None) is None
        if self.chunked and not plain and kernels.available(head.weight.device.type):
            shorten(model, full=precision == torch.float32)

    def forward(
        self, inputs: torch.Tensor, targets: torch.Tensor | None = None, divisor: float = 1.0,
        positions: torch.Tensor | None = None, kept: torch.Tensor | None = None,
    ) -> Any:  # fmt: skip
        """What to differentiate, and the cross-entropy in it: both sums over the targets divided by `divisor`. `positions`
        start again where what follows must not see what was before. `kept` are the places of the targets that count, row
        after row; told by who has them in the host's memory, they need not be waited for. Without targets the model's own
        output."""
        if targets is None:
            return self.model(input_ids=inputs, use_cache=False)
        # the layout's own masks follow from positions; a mask made here would switch its windows off, or be added as 0 and 1
        options = (
            {"use_cache": False}
            if positions is None
            else {"use_cache": False, "position_ids": positions}
        )
        wanted = targets.flatten()
        with self._autocast(inputs.device):
            if self.chunked:
                hidden = self.model.model(input_ids=inputs, **options).last_hidden_state.flatten(
                    0, 1
                )
            else:
                logits = self.model(input_ids=inputs, **options).logits.flatten(0, 1)
        if self.chunked:
            kept = (wanted != IGNORE).nonzero()[:, 0] if kept is None else kept
            if len(kept) < len(wanted):
                hidden, wanted = hidden[kept], wanted[kept]
            weight = self.model.get_output_embeddings().weight
            return _Chunked.apply(hidden, weight, wanted, divisor, self.z_loss, self.precision)
        plain = (
            torch.nn.functional.cross_entropy(
                logits.float(), wanted, reduction="sum", ignore_index=IGNORE
            )
            / divisor
        )
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
            logits = times(part, matrix).float()
            total += softmax_gradient(logits, targets[start : start + CHUNK], 1 / divisor, z_loss)
            gradient = logits.to(precision)
            into_rows[start : start + CHUNK] = times(gradient, matrix.T)
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
    def backward(
        ctx: Any, gradient: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        into_rows, into_weight = ctx.saved_tensors
        return (into_rows * gradient).to(ctx.kind), into_weight * gradient, None, None, None, None


def softmax_gradient(
    logits: torch.Tensor, targets: torch.Tensor, scale: float, z_loss: float
) -> torch.Tensor:
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
