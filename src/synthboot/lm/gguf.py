"""A GGUF file as a Hugging Face folder, converted once: weights in float32, tokenizer beside them.

`model.init_from` then names the folder. Reading a GGUF takes a minute for every hundred million
weights or so, which would be paid anew for every model of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from synthboot.data.disk import committed_folder, require_regular
from synthboot.errors import ConfigError, unloadable
from synthboot.lm.model import quiet

_MAGIC = b"GGUF"


def convert(source: Path, folder: Path) -> int:
    """The number of weights written to `folder`, which must not be there yet.

    Raises ConfigError where the file is none that transformers can read, or its package `gguf` is
    missing.
    """
    if folder.exists():
        raise ConfigError(f"convert: {folder} is there already; name another folder, or remove it")
    _require_gguf(source)
    model = _model(source)
    with committed_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        _tokenizer(source).save_pretrained(temporary)
    return sum(p.numel() for p in model.parameters())


def _require_gguf(source: Path) -> None:
    try:
        require_regular(source)
        with source.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"convert: {source}: {reason}; name a GGUF file") from None
    if magic != _MAGIC:
        raise ConfigError(f"convert: {source}: not a GGUF file; folders need no conversion")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ConfigError("convert: needs the package gguf: pip install gguf") from None


def _model(source: Path) -> Any:
    """The model in plain float32, without a trace of how it was quantized."""
    from transformers import AutoModelForCausalLM

    quiet()  # what is wrong is one line of ours
    try:
        read = AutoModelForCausalLM.from_pretrained(
            str(source.parent),
            gguf_file=source.name,
            dtype=torch.float32,
            trust_remote_code=False,
        )
    # the library raises whatever the file makes it trip over
    except Exception as error:
        raise ConfigError(f"convert: {source}: {_unreadable(error)}") from None

    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    plain = type(read)(type(read.config).from_dict(settings))
    plain.load_state_dict(read.state_dict())
    return plain


def _tokenizer(source: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(source.parent),
            gguf_file=source.name,
            trust_remote_code=False,
        )
    except Exception as error:
        raise ConfigError(f"convert: {source}: its tokenizer: {_unreadable(error)}") from None


def _unreadable(error: Exception) -> str:
    return f"{unloadable(error)}; take a GGUF of a layout that transformers reads, or the folder"
