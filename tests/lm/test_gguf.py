"""A GGUF file becomes a folder that init_from takes, or a line that says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.errors import ConfigError
from synthboot.lm import model as models
from synthboot.lm.gguf import convert

gguf = pytest.importorskip("gguf")

WIDTH, HEADS, LAYERS = 32, 2, 2


SHORT = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What GGUF calls the parts of a block of the Llama layout."""


def written(path: Path, architecture: str = "llama") -> Any:
    """A model with random weights and the tokenizer of bytes, and the GGUF file of both."""
    from tokenizers import pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, "th", "<|endoftext|>"]
    torch.manual_seed(3)
    layout = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=48,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(layout)
    out = gguf.GGUFWriter(str(path), architecture)
    out.add_block_count(LAYERS)
    out.add_context_length(64)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(48)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(layout.rms_norm_eps)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(len(words))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list(words)
    out.add_token_types([1] * (len(words) - 1) + [3])
    out.add_token_merges(["t h"])
    out.add_eos_token_id(len(words) - 1)
    out.add_bos_token_id(len(words) - 1)

    for name, value in model.state_dict().items():
        array = value.float().numpy()
        if name == "model.embed_tokens.weight":
            out.add_tensor("token_embd.weight", array)
        elif name == "model.norm.weight":
            out.add_tensor("output_norm.weight", array)
        elif name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                # llama.cpp rotates neighbours, the library halves: (head, half, dim, in) -> (head, dim, half, in)
                halves = array.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
                array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
            out.add_tensor(f"blk.{layer}.{SHORT[part]}.weight", array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model


def test_a_gguf_file_becomes_a_folder_with_the_same_model_and_tokenizer(tmp_path: Path) -> None:
    model = written(tmp_path / "m.gguf")
    weights = convert(tmp_path / "m.gguf", tmp_path / "m")
    assert weights == sum(p.numel() for p in model.parameters())

    tokenizer = tokenizers.from_hugging_face(str(tmp_path / "m"))
    assert tokenizer.decode(tokenizer.encode(["Grüße, d1"])[0]) == "Grüße, d1"
    read = models.build(config.Model(init_from=str(tmp_path / "m"), seq_len=64), tokenizer.vocab_size, seed=0)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
        found = read.eval()(ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert "quant" not in (tmp_path / "m" / "config.json").read_text()


def damaged(path: Path) -> None:
    written(path)
    path.write_bytes(path.read_bytes()[:4_000])


def foreign(path: Path) -> None:
    written(path, architecture="unheard-of")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("PK"), "not a GGUF file"),
        (damaged, "cannot be loaded"),
        (foreign, "cannot be loaded"),
    ],
)
def test_what_cannot_be_converted_is_named_in_one_line(tmp_path: Path, make: Any, reason: str) -> None:
    make(tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match=reason) as caught:
        convert(tmp_path / "m.gguf", tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_a_folder_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    written(tmp_path / "m.gguf")
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        convert(tmp_path / "m.gguf", tmp_path / "m")


def test_init_from_a_gguf_file_says_how_to_convert_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"synthboot convert .*m.gguf FOLDER"):
        models.build(config.Model(init_from=str(tmp_path / "m.gguf")), 300, seed=0)
