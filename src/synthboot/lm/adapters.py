"""Low-rank adapters: two narrow matrices beside a frozen weight matrix, trained in its place.

The library peft puts them into a model, whose layers keep their places, so that everything that
trains it goes on as before. Where a model is written they are merged into the weights of a copy,
and nothing after training knows of them.

A token that the model has not seen, as the separator of one that comes from outside, has a row of
its own in the embedding. Narrow matrices do not reach it, so it is trained beside them.

Source: arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthboot import config
from synthboot.errors import ConfigError, brief

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "adapters.safetensors"
"""Where a checkpoint has them; the weights beside them are those that training started from."""


def add(
    model: PreTrainedModel,
    lora: config.Lora,
    seed: int,
    section: str,
    token: int | None = None,
) -> None:
    """Put adapters of rank `lora.rank` into the model and freeze all that it had.

    They add nothing until they are trained. `seed` decides their weights. The embedding of `token`
    is trained too. Raises ConfigError, naming `section.lora`, where peft is missing or no layer has
    a name that is asked for.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError(
            f"{section}.lora: needs the package peft: pip install 'synthboot[lora]'"
        ) from None
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,  # type: ignore[arg-type]  # a fraction is fine
        lora_dropout=lora.dropout,
        # all but the output matrix
        target_modules=lora.targets or "all-linear",
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            # that GPT-2 keeps its matrices transposed, which peft sees by itself
            warnings.simplefilter("ignore")
            inject_adapter_in_model(settings, model)
    except ValueError as error:
        kind = model.config.model_type
        raise ConfigError(f"{section}.lora: {kind}: {brief(error)}") from None
    if token is not None:
        _add_row(model, token)


def present(model: PreTrainedModel) -> bool:
    """Whether a model has adapters."""
    return hasattr(model, "peft_config")


def merged(model: PreTrainedModel) -> Any:
    """A copy of the model without adapters: what they add is in its weights.

    A copy, since to take from a rounded sum what was added to it does not give back the same bytes.
    """
    from peft.tuners.lora import LoraLayer

    whole = copy.deepcopy(model)
    for name, layer in list(whole.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            whole.set_submodule(name, layer.get_base_layer())
    del whole.peft_config
    _merge_row(whole)
    return whole


def _add_row(model: PreTrainedModel, token: int) -> None:
    """Train one row of the embedding, which stays frozen.

    The row is a parameter beside the weights, written into them before each pass. So an output
    matrix that is the embedding has it too; no gradient comes from there, where the token is never
    the right one.
    """
    embedding: Any = model.get_input_embeddings()
    embedding.row = torch.nn.Parameter(embedding.weight[token].detach().clone())
    embedding.row_token = token
    embedding.register_forward_pre_hook(_write_row)
    embedding.register_forward_hook(_learn_row)


def _write_row(embedding: Any, _: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        embedding.weight[embedding.row_token] = embedding.row


def _learn_row(embedding: Any, args: tuple[Tensor, ...], hidden: Tensor) -> Tensor:
    (ids,) = args  # (batch, seq)
    # nothing, whose gradient is the row's
    nothing = (embedding.row - embedding.row.detach()).to(hidden.dtype)
    is_token = (ids == embedding.row_token).unsqueeze(-1)  # (batch, seq, 1)
    return hidden + is_token * nothing


def _merge_row(model: PreTrainedModel) -> None:
    """The embedding as it was before `_add_row`, with what its row has become."""
    embedding: Any = model.get_input_embeddings()
    if not hasattr(embedding, "row"):
        return
    _write_row(embedding, ())
    for hooks in (embedding._forward_pre_hooks, embedding._forward_hooks):
        for key, hook in list(hooks.items()):
            if hook in (_write_row, _learn_row):
                del hooks[key]
    del embedding.row, embedding.row_token


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters of a model, and nothing else of it."""
    save_file({name: p.detach() for name, p in _trained(model).items()}, folder / FILE)


def load(model: PreTrainedModel, folder: Path) -> None:
    """Overwrite a model's adapters with a checkpoint's."""
    weights = load_file(folder / FILE)
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            parameter.copy_(weights[name])


def _trained(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
