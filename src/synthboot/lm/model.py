"""Build, load and save the language model: any Hugging Face causal LM.

From scratch it is the Llama layout with QK-norm.

Source: arXiv:2509.15248 trains the Llama 3 architecture with QK-norm, which `transformers` calls
Qwen3.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from synthboot import config
from synthboot.data.disk import committed_folder
from synthboot.data.files import seen_from
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import ConfigError, CorruptArtifact, unloadable
from synthboot.lm import blocks, layouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def device(name: str) -> torch.device:
    """The device `engine.device` names. Raises ConfigError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "engine.device: cuda asked for, but torch sees no GPU; set engine.device=auto"
        )
    if name == "cuda":
        # torchrun numbers the processes of a machine: each takes the GPU of its number
        return torch.device(name, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


def build(cfg: config.Model, vocab_size: int, seed: int) -> PreTrainedModel:
    """A model with fresh weights that depend on the seed alone.

    With `init_from`, that model with room for every token. Raises ConfigError where it cannot be
    loaded, is too short, or has a layout that does not train right.
    """
    torch.manual_seed(seed)
    if cfg.init_from is not None:
        return continued(cfg.init_from, cfg.seq_len, vocab_size, "model")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    layout = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads or cfg.heads,
        head_dim=cfg.width // cfg.heads,
        intermediate_size=cfg.ffn or 3 * cfg.width,
        max_position_embeddings=cfg.seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
        tie_word_embeddings=True,
        # the same spread of activations at every width
        initializer_range=cfg.init_scale * cfg.width**-0.5,
    )
    return Qwen3ForCausalLM(layout)


def continued(
    source: str,
    seq_len: int,
    vocab_size: int,
    section: str,
) -> PreTrainedModel:
    """The model in a folder or of a name on the hub, with room for every token.

    Rows that it lacks are drawn from torch's generator. Raises ConfigError, naming `init_from` or
    `seq_len` of the settings' `section`, where it cannot be loaded, is too short, or has a layout
    that does not train right.
    """
    where = f"{section}.init_from"
    if source.lower().endswith(".gguf"):
        raise ConfigError(f"{where}: {source}: convert it first: synthboot convert {source} FOLDER")
    model = _from_pretrained(source, ConfigError, where)
    longest = _longest(model)
    if longest is not None and seq_len > longest:
        raise ConfigError(
            f"{section}.seq_len: {seq_len} is more than the {longest} positions of {source}"
        )
    layouts.require_causal(model, seq_len, f"{where}: {source}")

    # never made smaller: many models have more rows than their tokenizer has entries
    if len(layouts.embedding(model)) < vocab_size:
        # drawn as any fresh weight, not about the mean of the others, which takes a decomposition
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return model


def outline(source: str, setting: str = "model.init_from") -> PreTrainedModel:
    """The layout of a Hugging Face model, by its config.json alone: shapes, and no numbers in them.

    Raises ConfigError, naming the setting, where that is not here, or no language model's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        layout = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(layout, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, by what is wrong with the folder
        raise ConfigError(f"{setting}: {source}{seen_from(source)}: {unloadable(error)}") from None


def load(folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The model in a folder that `save` wrote, or the ensemble of those in a folder of them, on
    that device.

    Raises CorruptArtifact where one cannot be read.
    """
    # imported here, as the library is: it takes seconds
    from synthboot.lm import ensemble

    if members := ensemble.folders(folder):
        return ensemble.Ensemble([load(member, device) for member in members])
    return moved(_from_pretrained(str(folder), CorruptArtifact, "checkpoint"), device)


def save(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer) -> None:
    """Write a Hugging Face folder (config, safetensors, tokenizer), whole or not at all."""
    with committed_folder(folder) as temporary:
        export(model, temporary, tokenizer)


def export(model: PreTrainedModel, folder: Path, tokenizer: Tokenizer) -> None:
    """Write the Hugging Face files into an existing folder.

    Of what a model came with for generation (penalties, top-k, other end tokens) nothing is handed
    on: whoever samples from the folder shall get the model's own distribution.
    """
    from transformers import GenerationConfig

    quiet()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.end)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save(folder)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Overwrite a model's weights with those in a folder that `save` wrote.

    The library reads them, since it wrote them: in many layouts the names in its files are not
    those of the modules (experts are taken apart, `lm_head` is `embed_out`), and a large model lies
    in several files. Raises CorruptArtifact where they cannot be read, RuntimeError where they are
    another model's.
    """
    saved = _from_pretrained(str(folder), CorruptArtifact, "checkpoint")
    model.load_state_dict(saved.state_dict())


def moved(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """The model, on that device; the library's `to` does the same, but its types are lost."""
    cast(torch.nn.Module, model).to(device)
    return model


def flops_per_token(model: PreTrainedModel, seq_len: int) -> float:
    """Forward FLOPs of one token in rows of `seq_len`; a training step costs three times as much.

    Two per weight of every matmul, and attention at its causal half in every layer, if there is
    any.
    """
    embedding = layouts.embedding(model)
    head = model.get_output_embeddings()
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    is_tied = head is not None and head.weight is embedding
    if not is_tied:
        weights -= embedding.numel()  # looked up, not multiplied; a tied one is the output matrix

    # state-space layouts have no heads
    layers = layouts.setting(model, "num_hidden_layers") or 0
    heads = layouts.setting(model, "num_attention_heads") or 0
    width = layouts.setting(model, "hidden_size") or 0
    head_dim = layouts.setting(model, "head_dim") or width // max(1, heads)
    # two matmuls (scores, values) of 2 FLOPs a number, over half of the row on average
    attention = 2.0 * layers * heads * head_dim * seq_len
    return 2.0 * weights + attention


def _longest(model: PreTrainedModel) -> int | None:
    """How many positions a model has, where they end."""
    # the library's usual name first, then those of older layouts
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
        positions = layouts.setting(model, name)
        if isinstance(positions, int) and positions > 0:
            return positions
    return None


def product_rate(where: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matmul here, the best of a few: the peak of this device.

    Takes ten milliseconds; of a CPU those of this thread alone, so that other work does not count.
    """
    on_gpu = where.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time
    size = 8_192 if on_gpu else 512
    # of numbers like a model's: products of ones are faster than those of any text
    a = torch.rand(size, size, device=where).to(dtype)
    b = torch.rand(size, size, device=where).to(dtype)
    seconds = []
    # by either library that training may use, the first of whose products makes it ready
    for product in (torch.matmul, blocks.linear) * 5:
        _wait(where)
        started = clock()
        product(a, b)
        _wait(where)
        seconds.append(clock() - started)
    return 2 * size**3 / min(seconds)


def any_shapes() -> AbstractContextManager[None]:
    """While this lasts attention on a GPU goes without cuDNN, which plans each shape anew.

    torch prefers it on new GPUs. A plan takes tens of milliseconds: nothing to training, whose rows
    are alike, but more than all else where each batch has a width of its own.
    """
    kernels = [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(kernels)


def _wait(where: torch.device) -> None:
    """Return once a GPU has done what it was given; a CPU has."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def quiet() -> None:
    """Keep transformers' own progress bars off a terminal that has ours, and its warnings unless
    TRANSFORMERS_VERBOSITY asks for them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()


def _from_pretrained(
    source: str,
    error_type: type[Exception],
    where: str,
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    quiet()
    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            trust_remote_code=False,  # a model is data: none of its code is run
        )
    # the library raises OSError, ValueError, SafetensorError, RuntimeError
    except Exception as error:
        raise error_type(f"{where}: {source}: {unloadable(error)}") from None
