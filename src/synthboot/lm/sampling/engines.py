"""Which sampler does the work: the embedded engine for Llama and Qwen3 layouts,
`transformers.generate` for all others, vLLM or a server where the configuration names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.errors import ConfigError
from synthboot.lm import model as models
from synthboot.lm.pointer import Weights
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.generate import TransformersSampler
from synthboot.lm.sampling.protocol import Sampler, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NATIVE = ("qwen3", "llama")


def open_sampler(
    cfg: config.Synthesize,
    engine: config.Engine,
    folder: Path,
    end: int,
    weights: Weights | None = None,
    agree: Callable[[Callable[[], int]], int] = lambda timed: timed(),
) -> Sampler:
    """The sampler that `synthesize.sampler` names, over the model in `folder`.

    With the `weights` of a pointer, which the built-in one alone has, as it has a batch to `agree`
    on.
    """
    # imported where it is asked for: it needs a package of its own
    if cfg.sampler == "vllm":
        from synthboot.lm.sampling.vllm import VllmSampler

        return VllmSampler(folder, end, cfg, engine.sample_batch)
    if cfg.sampler == "server":
        from synthboot.lm.sampling.client import ServerSampler

        return ServerSampler(folder, end, cfg, engine.server)

    model = models.load(folder, models.device(engine.device))
    vocab_size = model.config.get_text_config().vocab_size
    how = Sampling(
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        batch=engine.sample_batch,
        dtype=cfg.dtype,
        absent=tokenizers.load(folder).absent(vocab_size),
        contrast=cfg.contrast,
        weights=weights,
        agree=agree,
    )
    return sampler(model, end, how)


def sampler(model: PreTrainedModel, end: int, how: Sampling) -> Sampler:
    """The embedded engine where it knows the layout, else `transformers.generate`, which draws
    without a contrast.

    Raises ConfigError for a pointer over a layout that the embedded engine does not know.
    """
    if is_native(model.config):
        return EmbeddedSampler(model, end, how)
    if how.weights is not None:
        raise ConfigError(
            f"tune.pointer needs a Llama or Qwen3 layout to sample from, not "
            f"{model.config.model_type}; set tune.pointer=false"
        )
    return TransformersSampler(model, end, how)


def is_native(layout: Any) -> bool:
    """Whether the embedded engine knows all that this configuration asks for."""
    rope = getattr(layout, "rope_parameters", None) or {}
    layer_types = getattr(layout, "layer_types", None) or ()
    return (
        layout.model_type in _NATIVE
        and layout.hidden_act == "silu"
        and not layout.attention_bias
        and not getattr(layout, "mlp_bias", False)
        and rope.get("rope_type", "default") == "default"
        and "sliding_attention" not in layer_types
    )
