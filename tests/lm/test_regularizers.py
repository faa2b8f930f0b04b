"""What dropout drops: what sublayers add to the residual stream, and never the stream itself."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from synthboot.errors import ConfigError
from synthboot.lm import parallel
from synthboot.lm.regularizers import add_dropout

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "pad_token_id": 0,
}


def model(layout: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(layout, **SMALL))


@pytest.mark.parametrize("layout", ["llama", "qwen3", "gpt2", "gpt_neox", "mistral", "olmo2"])
def test_a_block_whose_sublayers_add_nothing_is_the_identity_in_training_too(layout: str) -> None:
    built = model(layout).train()
    block = parallel.blocks(built)[0]
    with torch.no_grad():
        for name, weight in block.named_parameters():
            if any(part in name for part in ("o_proj", "down_proj", "c_proj", "attention.dense", "dense_4h_to_h")):
                weight.zero_()
    add_dropout(built, 0.5)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(_: object, inputs: tuple[Any, ...], output: Any) -> None:
        seen.append((inputs[0], output[0] if isinstance(output, tuple) else output))

    block.register_forward_hook(look)
    built(torch.arange(1, 17)[None])
    [(before, after)] = seen
    assert before.abs().sum() > 0
    assert torch.equal(before, after)


@pytest.mark.parametrize("layout", ["opt", "bloom", "mpt"])
def test_a_layout_of_which_less_or_the_stream_itself_would_be_dropped_is_refused(layout: str) -> None:
    with pytest.raises(ConfigError, match=rf"optim\.dropout: where to drop in a block of {layout} is not known"):
        add_dropout(model(layout), 0.1)
