"""The training loss: next-token cross-entropy without ever holding all logits.

Rows of targets are taken a chunk at a time:

1. matmul with the output matrix: logits (row, vocab) of the chunk alone,
2. softmax turned into the loss' gradient, in their place,
3. that gradient's two matmuls at once: into the hidden states and into the output matrix.

Memory is one chunk of logits, and nothing is kept for the backward pass but the gradients
themselves. Rows without a target (d1 in tuning, padding) cost nothing here.

With a teacher the target of a row is a distribution: the token with weight 1 - w, and with w what
the teacher gives to every token, likewise a chunk at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synthboot.kernels import library, training
from synthboot.lm.batches import IGNORE
from synthboot.lm.blocks import is_llama_like, linear, use_compiled_loops

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 1_024
"""Rows whose logits are held at once."""

GPU_LOGITS = 2**28
"""Logits that a GPU holds at once for its loop, if that is more."""


SoftTargets = Callable[[slice], Tensor]
"""The probabilities that a teacher gives to every token (row, vocab), for a part of the rows."""


def autocast(
    device: torch.device,
    precision: torch.dtype,
) -> contextlib.AbstractContextManager[object]:
    """While this lasts matmuls on a device are in `precision`."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


class Loss(torch.nn.Module):
    """A causal LM with its loss as one module, so that wrappers for processes see one forward pass.

    `precision` is the dtype of matmuls and activations; weights, gradients and the loss itself stay
    float32. `plain` leaves the blocks as the library has them. With a `teacher` the loss is that of
    its probabilities and of the text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        precision: torch.dtype = torch.float32,
        z_loss: float = 0.0,
        plain: bool = False,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.z_loss = z_loss
        self.teacher = teacher

        self.chunked = is_llama_like(model)
        device = model.get_output_embeddings().weight.device
        if self.chunked and not plain and library.available(device.type):
            use_compiled_loops(model, full=precision == torch.float32)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        divisor: float = 1.0,
        positions: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Any:
        """What to differentiate, and the cross-entropy of the text in it.

        Without targets it is the model's own output. Both are sums over the targets, divided by
        `divisor`. `positions` start again where what follows must not see what was before. `kept`
        are the places of the targets that count, row after row: a caller who has them in the host's
        memory saves a wait for the device.
        """
        if targets is None:
            return self.model(input_ids=inputs, use_cache=False)

        flat_targets = targets.flatten()  # (row, token) -> (row x token)
        if kept is None:
            kept = (flat_targets != IGNORE).nonzero()[:, 0]
        rows = self.rows(inputs, positions, kept)
        soft = None
        if self.teacher is not None:
            soft = self.teacher.probabilities(inputs, positions, kept)
        if not self.chunked:
            return self._of_logits(rows, flat_targets, divisor, soft)

        if len(kept) < len(flat_targets):
            flat_targets = flat_targets[kept]
        weight = self.model.get_output_embeddings().weight
        return _Chunked.apply(
            rows,
            weight,
            flat_targets,
            divisor,
            self.z_loss,
            self.precision,
            soft,
            self._soft_weight,
        )

    def rows(
        self,
        inputs: Tensor,
        positions: Tensor | None,
        kept: Tensor,
    ) -> Tensor:
        """What logits are made of: the last hidden states (kept row, width) of what is `kept` of
        all rows; the logits themselves (row x token, vocab), of every row, for architectures that
        do more to them."""
        options: dict[str, object] = {"use_cache": False}
        if positions is not None:
            # no mask is made here: the layout's own follow from positions, while one from outside
            # would switch its windows off, or be added as 0 and 1
            options["position_ids"] = positions
        with autocast(inputs.device, self.precision):
            if not self.chunked:
                logits: Tensor = self.model(input_ids=inputs, **options).logits
                return logits.flatten(0, 1)
            hidden = self.model.model(input_ids=inputs, **options).last_hidden_state
        rows: Tensor = hidden.flatten(0, 1)  # (row, token, width) -> (row x token, width)
        return rows[kept] if len(kept) < len(rows) else rows

    def logits(self, rows: Tensor) -> Tensor:
        """The logits (row, vocab) of some of `rows`, float32."""
        if not self.chunked:
            return rows.float()
        matrix = self.model.get_output_embeddings().weight.to(self.precision)
        return linear(rows.to(self.precision), matrix).float()

    @property
    def _soft_weight(self) -> float:
        return 0.0 if self.teacher is None else self.teacher.weight

    def _of_logits(
        self,
        logits: Tensor,
        targets: Tensor,
        divisor: float,
        soft: SoftTargets | None,
    ) -> tuple[Tensor, Tensor]:
        """The same of all logits (target, vocab), for architectures that do more to them."""
        total = torch.nn.functional.cross_entropy(
            logits.float(),
            targets,
            reduction="sum",
            ignore_index=IGNORE,
        )
        loss = total / divisor
        cross_entropy = loss.detach()
        if soft is not None:
            counted = targets != IGNORE
            log_probs = logits.float().log_softmax(1)
            expected = (soft(slice(None)) * log_probs).sum(1)[counted].sum()
            loss = (1 - self._soft_weight) * loss - self._soft_weight * expected / divisor
        if not self.z_loss:
            return loss, cross_entropy
        lse = torch.logsumexp(logits.float(), 1)[targets != IGNORE]
        square = lse.square().sum()
        return loss + self.z_loss * square / divisor, cross_entropy


class Teacher:
    """The mean probabilities of several models, as targets for another.

    They have `weight` in the targets. No module, since it is no part of the model that is trained:
    its weights are not decayed, clipped or saved, and it is never in training mode.
    """

    def __init__(
        self,
        members: Sequence[PreTrainedModel],
        weight: float,
        precision: torch.dtype = torch.float32,
        plain: bool = False,
    ) -> None:
        self.weight = weight
        self._members = []
        for member in members:
            frozen = member.eval().requires_grad_(False)
            self._members.append(Loss(frozen, precision, plain=plain))

    @torch.no_grad()
    def probabilities(
        self,
        inputs: Tensor,
        positions: Tensor | None,
        kept: Tensor,
    ) -> SoftTargets:
        """What `Loss.rows` takes, turned into the probabilities for parts of these rows."""
        rows = [member.rows(inputs, positions, kept) for member in self._members]

        @torch.no_grad()
        def of(part: slice) -> Tensor:
            total: Tensor | None = None
            for member, own in zip(self._members, rows, strict=True):
                probabilities = member.logits(own[part]).softmax(1)
                total = probabilities if total is None else total.add_(probabilities)
            assert total is not None
            return total.div_(len(rows))

        return of


class _Chunked(torch.autograd.Function):
    """Loss and cross-entropy of hidden states (target, width); gradients are taken on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        divisor: float,
        z_loss: float,
        precision: torch.dtype,
        soft: SoftTargets | None,
        soft_weight: float,
    ) -> tuple[Tensor, Tensor]:
        matrix = weight.to(precision)  # (vocab, width)
        rows = hidden.to(precision)
        grad_rows = torch.empty_like(rows)
        # float32 whatever the precision: every chunk adds to it
        trains_weight = ctx.needs_input_grad[1]  # with adapters it stays as it is
        grad_weight = torch.zeros_like(weight) if trains_weight else None
        sums = torch.zeros(2, device=hidden.device, dtype=torch.float64)
        # what the teacher's targets cost more than the tokens
        gap = torch.zeros((), device=hidden.device, dtype=torch.float64)

        # a GPU's loop takes logits of any precision, and so they are never written in float32
        as_they_are = soft is None and library.has_triton(hidden.device.type)
        size = max(CHUNK, GPU_LOGITS // len(matrix)) if as_they_are else CHUNK
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            logits = linear(rows[part], matrix)  # (chunk, vocab)
            if not as_they_are:
                logits = logits.float()
            probabilities = None if soft is None else soft(part)  # (chunk, vocab)
            if probabilities is not None:
                gap += _gap(logits, targets[part], probabilities)
            sums += softmax_gradient(logits, targets[part], 1 / divisor, z_loss)
            if probabilities is not None:
                _soften(logits, targets[part], probabilities, soft_weight / divisor)
            grad_logits = logits.to(precision)  # what the line above left in their place

            grad_rows[part] = linear(grad_logits, matrix.T)
            if grad_weight is None:
                continue
            if precision == torch.float32:
                # in place, which saves a matrix of the vocabulary's size
                grad_weight.addmm_(grad_logits.T, rows[part])
            else:
                grad_weight += grad_logits.T @ rows[part]

        ctx.save_for_backward(grad_rows, grad_weight)
        ctx.dtype = hidden.dtype
        cross_entropy, square = (sums / divisor).float()
        ctx.mark_non_differentiable(cross_entropy)
        loss = cross_entropy + z_loss * square
        if soft is not None:
            loss = loss + (soft_weight * gap / divisor).float()
        return loss, cross_entropy

    @staticmethod
    def backward(
        ctx: Any,
        gradient: Tensor,
        _: Tensor,
    ) -> tuple[Tensor | None, ...]:
        grad_rows, grad_weight = ctx.saved_tensors
        grad_hidden = (grad_rows * gradient).to(ctx.dtype)
        if grad_weight is not None:
            grad_weight = grad_weight * gradient
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _gap(logits: Tensor, targets: Tensor, probabilities: Tensor) -> Tensor:
    """How much more the cross-entropy of `probabilities` (row, vocab) is than that of the targets,
    summed over rows: what logsumexp adds to both is the same."""
    target_logits = logits.gather(1, targets[:, None])[:, 0]
    expected = (probabilities * logits).sum(1)
    return (target_logits - expected).double().sum()


def _soften(gradient: Tensor, targets: Tensor, probabilities: Tensor, scale: float) -> None:
    """Move `scale` of a gradient's target from the token to `probabilities`, in place.

    scale x (softmax - one-hot) turns into scale x (softmax - probabilities).
    """
    gradient.scatter_add_(
        1,
        targets[:, None],
        torch.full_like(gradient[:, :1], scale),
    )
    gradient.sub_(probabilities, alpha=scale)


def softmax_gradient(
    logits: Tensor,
    targets: Tensor,
    scale: float,
    z_loss: float,
) -> Tensor:
    """The sums of cross-entropy and of squared logsumexp, in nats, float64, (2).

    Turns logits (row, vocab; float32, on a GPU of any precision) in place into the gradient of
    scale x (cross-entropy + z_loss x logsumexp squared).
    """
    if library.available(logits.device.type):
        return training.softmax_gradient(logits, targets, scale, z_loss)
    if library.has_triton(logits.device.type):
        from synthboot.kernels import gpu

        return gpu.softmax_gradient(logits, targets, scale, z_loss)
    top = logits.amax(1, keepdim=True)
    target_logits = logits.gather(1, targets[:, None])  # taken before they are overwritten
    mass = logits.sub_(top).exp_().sum(1, keepdim=True)
    lse = mass.log() + top  # (row, 1)

    # d cross-entropy = softmax - one-hot; d lse^2 = 2 lse softmax
    logits.mul_(scale * (1 + 2 * z_loss * lse) / mass)
    logits.scatter_add_(
        1,
        targets[:, None],
        torch.full_like(target_logits, -scale),
    )

    cross_entropy = (lse - target_logits).double().sum()
    square = lse.double().square().sum()
    return torch.stack((cross_entropy, square))
