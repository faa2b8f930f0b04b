r"""Every causal-LM layout of `transformers`, built tiny with random weights, saved, continued from, tuned for two steps.

    python benchmarks/layouts.py                     # all of them: two minutes on one core; writes docs/layouts.md
    python benchmarks/layouts.py gemma2 mamba        # some of them, on the terminal

Right means: the loss that two steps of tuning take is the loss of each pair scored alone, in this library's
version, and saved weights load again. Whatever cannot be built small is named with the reason.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError
from synthboot.lm import layouts, score
from synthboot.lm import model as models
from synthboot.lm.batches import PairForm, PairPlan
from synthboot.lm.sampling.engines import sampler
from synthboot.lm.sampling.protocol import Request, Sampling
from synthboot.lm.train import Settings, train

PAGE = Path(__file__).parent.parent / "docs" / "layouts.md"
VOCAB, WINDOW = 280, 64
LARGEST = 8_000_000
SECONDS = 120

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "out_hidden_size", "n_embd", "d_model", "dim_model"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("attention_hidden_size", "lru_width", "moe_intermediate_size", "moe_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "expert_ffn_hidden_size", "backbone_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("depth", "vision_n_layer", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "n_mamba_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "linear_key_head_dim", "linear_value_head_dim", "v_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "laurel_rank"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dense_intermediate_size"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "mamba_d_ssm"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size", "attention_chunk_size"), 16),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_num_heads", "mamba_head_dim"), 8),
    **dict.fromkeys(("state_size", "ssm_state_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "rotary_dim"), 4),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
    "num_experts_per_tok": 2,
    "index_topk": 1_000,
    "num_kv_shared_layers": 0,
    "pad_token_id": None,
}

ALL_HEADS: dict[str, Any] = {"num_key_value_heads": 4}
PADDED: dict[str, Any] = {"pad_token_id": 1, "max_position_embeddings": WINDOW + 2}
MIXED = ["linear_attention", "full_attention"]
MIXES: dict[str, Any] = {"layer_types": MIXED}
ZAMBA = ALL_HEADS | {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "attention_hidden_size": 64,
}
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), ALL_HEADS),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu", "dots3_note_text", "longcat_flash"), ALL_HEADS),
    **dict.fromkeys(("camembert", "data2vec-text", "roberta", "xlm-roberta", "xlm-roberta-xl"), PADDED),
    **dict.fromkeys(("roberta-prelayernorm", "modernbert-decoder"), PADDED),
    "prophetnet": PADDED | {"num_decoder_layers": 2, "num_encoder_layers": 2, "max_position_embeddings": 2 * WINDOW},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (16, 16),
        "num_buckets": 4,
        "attention_head_size": 8,
        "feed_forward_size": 64,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
    },
    "bailing_hybrid": ALL_HEADS | {"layer_types": MIXED},
    **dict.fromkeys(("granitemoehybrid", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text"), MIXES),
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "zamba": ZAMBA,
    "zamba2": ZAMBA | {"adapter_rank": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_k": 2},
    "kimi_linear": ALL_HEADS | {"layer_types": MIXED, "linear_head_dim": 8, "linear_num_heads": 4},
    "longcat_flash": ALL_HEADS | {"moe_topk": 2, "zero_expert_num": 2},
    "roc_bert": {"shape_vocab_size": 20, "pronunciation_vocab_size": 20},
    "xlm": {"emb_dim": 32},
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
}
"""What a layout needs beside `SMALL`."""


class Slow(Exception):
    """A layout took more than its seconds."""


def shrunk(kind: type[Any], own: dict[str, Any]) -> Any:
    """A layout's configuration, and those of its parts, with small sizes and without dropout."""
    usual = kind()
    known = usual.to_dict()
    sizes = {key: value for key, value in SMALL.items() if key in known and not isinstance(known[key], dict | list)}
    rates = {key: value for key, value in known.items() if "drop" in key and type(value) in (int, float)}
    sizes |= {key: type(rate)(0) for key, rate in rates.items()}
    parts = {key: part for key, part in vars(usual).items() if isinstance(part, PreTrainedConfig)}
    sizes |= {key: shrunk(type(part), OWN.get(part.model_type, {})) for key, part in parts.items()}
    return kind(**(sizes | own))


def small(name: str) -> Any:
    """A tiny model of a layout. Raises whatever the layout raises, ValueError where it stays large."""
    cfg = shrunk(CONFIG_MAPPING[name], OWN.get(name, {}))
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(cfg).num_parameters()
    if parameters > LARGEST:
        raise ValueError(f"still {parameters:,} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(cfg)


def pairs(rows: int) -> PairPlan:
    """Random pairs of documents of 3 to 29 tokens."""
    rng = np.random.default_rng(0)
    texts = Tokens.of([[*rng.integers(2, VOCAB, n).tolist(), 0] for n in rng.integers(3, 30, 40)])
    d1, d2 = rng.integers(0, 40, (2, 30)).tolist()
    return PairPlan(
        texts,
        d1,
        d2,
        PairForm(WINDOW, 0.4, end=0, separator=1),
        batch_tokens=rows * WINDOW,
        tokens=2 * rows * WINDOW,
        seed=0,
    )


def verdict(name: str) -> tuple[str, str]:
    """In which table a layout belongs, and what is to be said."""
    try:
        model = small(name)
        model(input_ids=torch.arange(WINDOW)[None])
    except Slow:
        raise
    except Exception as error:  # each layout has its own
        return "not tried", _words(error)
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        try:
            model = models.build(config.Model(init_from=place, seq_len=WINDOW), VOCAB, 0)
        except ConfigError as error:
            return "refused", str(error).partition(f"{place}: ")[2].partition("; name a")[0].removeprefix(f"{name} ")
        try:
            return _tuned(model, Path(place) / "tuned")
        except Slow:
            raise
        except Exception as error:  # what must not happen
            return "WRONG", _words(error)


def _tuned(model: Any, folder: Path) -> tuple[str, str]:
    plan, tokenizer = pairs(4), tokenizers.train(iter(["the cat sat on the mat and the dog on the log"] * 30), VOCAB)
    alone = plan.batch(0).apart(1)
    rows = [(x[: n + 1], y[: n + 1]) for x, y in zip(alone.inputs, alone.targets, strict=True) for n in [_last(y)]]
    expected = score.row_losses(model, rows).sum() / (alone.targets != -100).sum()
    packed = layouts.packs(model, WINDOW)
    models.flops_per_token(model, WINDOW)
    how = Settings(lr=1e-3, weight_decay=0.1, warmup_steps=1, eval_steps=(1, 2), precision="float32")
    curve = train(model, plan, how, lambda m: float(score.row_losses(m, rows).sum()), folder, tokenizer)
    if abs(curve.train[0][1] - expected) > 1e-4:
        return "WRONG", f"a step's loss is {curve.train[0][1]:.5f}, that of its pairs alone {expected:.5f}"
    models.load_weights(model, folder / "last")  # as a run that was killed goes on
    again = models.load(folder / "last")
    if abs(score.row_losses(again, rows).sum() - curve.last_loss) > 1e-3:
        return "WRONG", "saved weights score otherwise"
    note = ""
    try:
        sampler(again, 0, Sampling(temperature=1.0, top_p=0.9)).sample([Request((0, 5), 1, 4), Request((0, 7), 2, 4)])
    except Exception as error:
        note = "does not sample: " + _words(error)
    return ("packed" if packed else "rows of their own"), note


def _last(targets: np.ndarray) -> int:
    return int((targets != -100).nonzero()[0].max())


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _too_slow(*_: Any) -> None:
    raise Slow


TOLD = {
    "packed": "Right with several texts to a row: positions that start again at 0 keep them apart.",
    "rows of their own": "Right with each text in a row of its own, which takes more padding: the layout carries one text\n"
    "into the next, or makes its masks without looking at positions.",
    "refused": "Refused by `model.init_from`, before anything is trained.",
    "not tried": "Not built small by this script, or not run on tokens alone. The same trial decides when such a model\n"
    "is named.",
    "WRONG": "Wrong, which must not be.",
}


def page(found: dict[str, list[tuple[str, str]]]) -> str:
    """What was found, as Markdown."""
    tried = sum(map(len, found.values()))
    lines = [
        "# Layouts",
        "",
        f"What `model.init_from` can name: the {tried} causal-LM layouts of transformers {transformers.__version__}, each",
        "tiny, with random weights, saved, continued from and tuned, by `python benchmarks/layouts.py`. A layout is right",
        "where a step's loss is that of its pairs scored one by one. What a model can do is not looked up here but tried on",
        "the model itself before its first step (`lm/layouts.py`), so that new layouts and versions are judged alike.",
    ]
    for kind, words in TOLD.items():
        names = found.get(kind, [])
        if not names:
            continue
        lines += ["", f"## {kind[0].upper()}{kind[1:]} ({len(names)})", "", words, ""]
        plain = [name for name, note in names if not note]
        lines += [", ".join(f"`{name}`" for name in plain), ""] if plain else []
        lines += [f"- `{name}`: {note}" for name, note in names if note]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def main() -> None:
    """Try the layouts that are named, or all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layouts", nargs="*", help="all of transformers' unless named")
    named = parser.parse_args().layouts
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in named or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        signal.alarm(SECONDS)
        try:
            kind, words = verdict(name)
        except Slow:
            kind, words = "not tried", f"took more than {SECONDS} seconds"
        finally:
            signal.alarm(0)
        print(f"{name}: {kind}{': ' * bool(words)}{words}", flush=True)
        found[kind].append((name, words))
    if not named:
        PAGE.write_text(page(found), "utf-8")


if __name__ == "__main__":
    main()
