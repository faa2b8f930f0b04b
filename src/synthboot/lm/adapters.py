"""Low-rank adapters: two narrow matrices beside a frozen weight matrix, trained in its place.

The library peft puts them into a model, whose layers keep their places, so that everything that
trains it goes on as before. Where a model is written they are merged into the weights of a copy,
and nothing after training knows of them.

Source: arXiv:2106.09685.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from synthboot import config
from synthboot.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "adapters.safetensors"
"""Where a checkpoint has them; the weights beside them are those that training started from."""


def add(
    model: PreTrainedModel,
    lora: config.Lora,
    seed: int,
    section: str,
) -> None:
    """Put adapters of rank `lora.rank` into the model and freeze all that it had.

    They add nothing until they are trained. `seed` decides their weights. Raises ConfigError,
    naming `section.lora`, where peft is missing or no layer has a name that is asked for.
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
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{section}.lora: {model.config.model_type}: {reason}") from None


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
    return whole


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters of a model, and nothing else of it."""
    from safetensors.torch import save_file

    save_file({name: p.detach() for name, p in _trained(model).items()}, folder / FILE)


def load(model: PreTrainedModel, folder: Path) -> None:
    """Overwrite a model's adapters with a checkpoint's.

    Raises TrainingError where they do not fit, naming the folder.
    """
    from safetensors.torch import load_file

    adapters = _trained(model)
    try:
        weights = load_file(folder / FILE)
        with torch.no_grad():
            for name, parameter in adapters.items():
                parameter.copy_(weights[name])
    except Exception as error:  # safetensors and torch raise several kinds
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{folder}: unreadable checkpoint ({reason}); delete this folder to go on without it"
        ) from None


def _trained(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
