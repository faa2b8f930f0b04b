"""What keeps a model from learning its text by heart, beside weight decay: dropout, and averages of
the weights.

Source: the fixed-data setting of arXiv:2509.14786, where repetition is regularized as well as it
can be. Dropout is residual dropout (arXiv:1706.03762, section 5.4); the moving average is that of
arXiv:1412.6980 (section 7.2), its decay warmed up; the tail average is stochastic weight averaging
(arXiv:1803.05407).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synthboot.errors import ConfigError
from synthboot.lm import parallel
from synthboot.rng import rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SUBLAYERS = (
    "self_attn",
    "attn",
    "attention",
    "self_attention",
    "mlp",
    "ffn",
    "feed_forward",
    "block_sparse_moe",
)
"""What blocks call the parts whose outputs are added to the residual stream."""


Dropped = Tensor | tuple[Any, ...]
"""What a sublayer gives: what it adds, and attention its weights or None beside it."""


def add_dropout(model: PreTrainedModel, rate: float) -> None:
    """Drop elements of the embeddings and of what attention and MLP add to the residual stream.

    Only in training mode; what is kept is scaled by 1 / (1 - rate). The weights, their names and
    the saved model stay what they are.

    Raises ConfigError for a model whose blocks do not have two such parts each.
    """
    modules = [model.get_input_embeddings()]
    for block in parallel.blocks(model):
        parts = []
        for name, child in block.named_children():
            # one that is given the residual stream gives it back, and dropping would drop that
            takes = inspect.signature(child.forward).parameters
            if name in _SUBLAYERS and "residual" not in takes:
                parts.append(child)
        if len(parts) < 2:
            named = ", ".join(name for name, _ in block.named_children())
            raise ConfigError(
                f"optim.dropout: where to drop in a block of {model.config.model_type} is not "
                f"known (it has {named}); leave it at 0, or start from another layout"
            )
        modules += parts

    def drop(module: torch.nn.Module, _: object, output: Dropped) -> Dropped:
        # attention returns its weights beside what it adds
        first, *others = output if isinstance(output, tuple) else (output,)
        dropped = torch.nn.functional.dropout(first, rate, training=module.training)
        return (dropped, *others) if isinstance(output, tuple) else dropped

    for module in modules:
        module.register_forward_hook(drop)


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make what is dropped a function of the seed and the step, so that a resumed run drops the
    same; every process has other rows and drops other elements of them."""
    torch.manual_seed(int(rng(seed, "train.dropout", step, rank).integers(2**63)))


def average_share(
    step: int,
    steps: int,
    ema_decay: float,
    tail_average: float,
) -> float:
    """How much of the average the weights after `step` steps (of `steps`) are.

    The moving average forgets by `ema_decay` a step, faster at first, when there is little to
    remember. The tail average is the mean over the last `tail_average` of all steps, and before
    that the weights themselves.
    """
    if ema_decay:
        return 1 - min(ema_decay, (1 + step) / (10 + step))
    first = steps - round(tail_average * steps)
    return 1 / max(1, step - first)


class WeightAverage:
    """A running average of a model's weights, as large as those that are trained.

    With sharded weights each process averages its shards.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        # beside adapters most weights are frozen: their average is what they are
        self._weights = {
            name: weight for name, weight in model.named_parameters() if weight.requires_grad
        }
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, share: float) -> None:
        """Move the average towards the weights as they are now."""
        for name, weight in self._weights.items():
            self._average[name].lerp_(weight, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While this lasts the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """The whole average by parameter, on the CPU; all processes have to ask."""
        return {name: parallel.gathered(value) for name, value in self._average.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, weight in self._weights.items():
            self._average[name].copy_(parallel.placed_as(weight, state[name]))

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(kept)
