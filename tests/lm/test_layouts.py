"""Every layout learns from packed pairs as if each stood alone, or is refused before anything is trained."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from synthboot import config
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError
from synthboot.lm import layouts, parallel, score
from synthboot.lm import model as models
from synthboot.lm import train as training
from synthboot.lm.batches import IGNORE, Batch, PairForm, PairPlan, Plan
from synthboot.lm.loss import Loss
from synthboot.lm.train import Runtime, Settings, train
from tests.conftest import Killed, files
from tests.lm.conftest import small_model

VOCAB, WINDOW = 280, 64
TEXTS = Tokens.of([[*np.random.default_rng(n).integers(2, VOCAB, 3 + 5 * n % 29).tolist(), 0] for n in range(20)])
HEADS = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
LLAMA = HEADS | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": WINDOW, "pad_token_id": None}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": WINDOW, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT |= {"resid_pdrop": 0.0}
SHORT = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
STATE = {"state_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
FAIRSEQ = {"ffn_dim": 64, "dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": WINDOW}

PACKED: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "mistral": LLAMA | {"sliding_window": 8},
    "gemma2": LLAMA | SHORT,
    "gemma3_text": LLAMA | SHORT,
    "olmo2": LLAMA,
    "qwen3_moe": LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4},
    "codegen": GPT | {"rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 8,
        "max_position_embeddings": WINDOW,
        "attention_types": [[["global", "local"], 1]],
    },
    "gpt_neox": HEADS | {"max_position_embeddings": WINDOW},
    "lfm2": LLAMA | {"layer_types": ["conv", "full_attention"]},
}
APART: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "attention_dropout": 0.0, "hidden_dropout": 0.0},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": WINDOW},
    "falcon": HEADS | {"alibi": False},
    "opt": FAIRSEQ | HEADS | {"word_embed_proj_dim": 32},
    "xglm": FAIRSEQ | {"d_model": 32, "num_layers": 2, "attention_heads": 4, "activation_dropout": 0.0},
    "gpt_oss": LLAMA | SHORT | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": STATE,
    "mamba2": STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "jamba": LLAMA | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2},
}


def fresh(kind: str, sizes: dict[str, Any]) -> Any:
    """A model of that layout with random weights."""
    layout: Any = CONFIG_MAPPING[kind]  # its fields are the layout's own
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(layout(vocab_size=VOCAB, **sizes))


def tiny(kind: str, sizes: dict[str, Any], folder: Path) -> Any:
    """The same, saved and continued from."""
    fresh(kind, sizes).save_pretrained(folder)
    return models.build(config.Model(init_from=str(folder), seq_len=WINDOW), VOCAB, 0)


def pair_plan() -> PairPlan:
    d1, d2 = np.random.default_rng(0).integers(0, 20, (2, 24)).tolist()
    return PairPlan(TEXTS, d1, d2, PairForm(WINDOW, 0.4, 0, 1), batch_tokens=3 * WINDOW, tokens=6 * WINDOW, seed=0)


def alone(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """The segments of a batch, cut out by hand."""
    assert batch.segments is not None
    found = []
    for x, y, segments in zip(batch.inputs, batch.targets, batch.segments, strict=True):
        for number in sorted(set(segments.tolist()) - {0}):
            here = segments == number
            found.append((x[here], y[here]))
    return found


def settings(**changes: Any) -> Settings:
    return Settings(lr=1e-3, weight_decay=0.1, warmup_steps=1, eval_steps=(1,), precision="float32", **changes)


@pytest.mark.filterwarnings("ignore")  # layouts warn of the kernels that they miss
@pytest.mark.parametrize("kind", [*PACKED, *APART])
def test_a_step_on_packed_pairs_takes_the_loss_of_each_pair_alone(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model, plan = tiny(kind, (PACKED | APART)[kind], tmp_path), pair_plan()
    assert layouts.packs(model, WINDOW) == (kind in PACKED)
    rows = alone(plan.batch(0))
    assert len(rows) > plan.rows
    assert max(len(x) for x, _ in rows) > 3 * 8  # windows are shorter
    one_by_one = score.row_losses(model, rows, batch_tokens=1)
    assert score.row_losses(model, rows) == pytest.approx(one_by_one, rel=1e-4)
    assert models.flops_per_token(model, WINDOW) > 0
    told: list[str] = []
    curve = train(model, plan, settings(), lambda _: 0.0, tmp_path / "m", tokenizer, lambda _, words="": told.append(words))
    targets = sum(int((y != IGNORE).sum()) for _, y in rows)
    assert curve.train[0][1] == pytest.approx(one_by_one.sum() / targets, abs=2e-5)
    assert any("each has a row of its own" in words for words in told) == (kind in APART)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt_neox", "qwen3_moe", "jamba"])  # whose files have other names than their modules
def test_a_killed_run_of_such_a_layout_ends_with_the_same_bytes(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    sizes, plan = (PACKED | APART)[kind], pair_plan()
    train(tiny(kind, sizes, tmp_path / "start"), plan, settings(), lambda _: 0.0, tmp_path / "whole", tokenizer)

    def kill(_: int, figures: Any) -> None:
        if "validation_loss" in figures:  # after the first checkpoint
            raise Killed

    for runtime in (Runtime(watch=kill), Runtime()):
        model = tiny(kind, sizes, tmp_path / "start")
        with pytest.raises(Killed) if runtime.watch is kill else nullcontext():
            train(model, plan, settings(), lambda _: 0.0, tmp_path / "killed", tokenizer, runtime=runtime)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bert", "xlnet", "roformer"])
def test_a_layout_that_looks_ahead_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64} if kind == "xlnet" else HEADS
    with pytest.raises(ConfigError, match=rf"model\.init_from: .*{kind} looks ahead: .*docs/layouts\.md"):
        tiny(kind, sizes, tmp_path)


def test_a_layout_that_wants_more_than_tokens_is_refused_by_name() -> None:
    model = small_model()
    forward = model.forward

    def greedy(*inputs: Any, **options: Any) -> Any:
        if model.training:
            raise ValueError("token_type_ids are required\nin training")
        return forward(*inputs, **options)

    model.forward = greedy
    with pytest.raises(ConfigError, match=r"^here: qwen3 does not run on rows .*token_type_ids are required in training"):
        layouts.require_causal(model, WINDOW, "here")
    assert not model.training


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = small_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ConfigError, match="here: qwen3 gives logits that are not numbers"):
        layouts.require_causal(model, WINDOW, "here")


def forgets(model: Any, name: str) -> None:
    """Leave an argument out of every pass."""
    forward = model.forward
    model.forward = lambda **options: forward(**{key: value for key, value in options.items() if key != name})


def test_a_broken_mask_is_caught() -> None:
    model = small_model()
    layouts.require_causal(model, WINDOW, "here")
    assert layouts.packs(model, WINDOW)
    forgets(model, "position_ids")
    assert not layouts.packs(model, WINDOW)
    layouts.require_causal(model, WINDOW, "here")
    model.config.is_causal = False
    with pytest.raises(ConfigError, match="here: qwen3 looks ahead"):
        layouts.require_causal(model, WINDOW, "here")


@pytest.mark.parametrize("window", [16, 100, 200])
def test_windows_of_any_length_are_tried(window: int) -> None:
    """A window that the mask of packed rows does not hold, shorter than the rows of training."""
    sizes = LLAMA | {"max_position_embeddings": 512, "sliding_window": window}
    model = fresh("mistral", sizes)
    assert layouts.packs(model, 512)
    forward = model.forward

    def masked(**options: Any) -> Any:
        if "position_ids" in options:
            starts = (options["position_ids"][0] == 0).cumsum(0)
            mask = (starts[:, None] == starts[None]).tril()[None, None]
            options["attention_mask"] = mask
        return forward(**options)

    model.forward = masked
    assert not layouts.packs(model, 512)
    assert layouts.packs(model, window)  # rows no longer than it


def test_trying_a_layout_leaves_no_trace() -> None:
    model = small_model()
    torch.manual_seed(7)
    expected, before = torch.rand(3), {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    layouts.require_causal(model.train(), WINDOW, "here")
    layouts.packs(model, WINDOW)
    assert model.training
    dropping = fresh("gpt2", GPT | {"embd_pdrop": 0.5})
    torch.manual_seed(7)
    layouts.require_causal(dropping.train(), WINDOW, "here")
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def masked_plan() -> Plan:
    return Plan(TEXTS, seq_len=WINDOW, batch_tokens=4 * WINDOW, train_tokens=8 * WINDOW, seed=0, end=0, document_mask=True)


@pytest.mark.parametrize("plan", [pair_plan, masked_plan])
def test_apart_every_segment_has_a_row_of_its_own(plan: Callable[[], PairPlan | Plan]) -> None:
    batch = plan().batch(1)
    apart, parts = batch.apart(1), alone(batch)
    assert apart.segments is None
    assert apart.positions is None
    assert len(apart.inputs) == len(parts)
    assert apart.inputs.shape[1] == max(len(x) for x, _ in parts)
    lengths = []
    for x, y in zip(apart.inputs, apart.targets, strict=True):
        size = 1 + int((y != IGNORE).nonzero()[0].max())
        match = [i for i, (a, b) in enumerate(parts) if (a.tolist(), b.tolist()) == (x[:size].tolist(), y[:size].tolist())]
        parts.pop(match[0])
        lengths.append(size)
    assert lengths == sorted(lengths, reverse=True)
    shared = batch.apart(4)
    assert len(shared.inputs) == -(-len(apart.inputs) // 4) * 4
    assert (shared.targets != IGNORE).sum() == (batch.targets != IGNORE).sum()
    assert shared.apart(3) is shared


@pytest.mark.parametrize("micro", [None, WINDOW, 2 * WINDOW])
def test_rows_of_their_own_give_the_gradients_of_packed_rows(micro: int | None) -> None:
    batch, found = pair_plan().batch(0), []
    for each, how in ((batch, settings()), (batch.apart(4), settings(micro_batch_tokens=micro))):
        model = small_model(vocab_size=VOCAB)
        loss, norm = training.forward_backward(Loss(model), each, how, parallel.ALONE, torch.device("cpu"))
        found.append((float(loss), float(norm), model.lm_head.weight.grad))
    assert found[1][:2] == pytest.approx(found[0][:2], rel=1e-4)
    assert torch.allclose(found[1][2], found[0][2], atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_documents_of_a_row_stay_apart_in_a_layout_that_carries_state(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model, plan = tiny("mamba", STATE, tmp_path), masked_plan()
    rows = alone(plan.batch(0))
    expected = score.row_losses(model, rows).sum() / plan.batch_tokens
    together = score.row_losses(model, list(zip(plan.batch(0).inputs, plan.batch(0).targets, strict=True))).sum()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, options: sizes.append(options["input_ids"].numel()), with_kwargs=True)
    curve = train(model, plan, settings(), lambda _: 0.0, tmp_path / "m", tokenizer)
    assert curve.train[0][1] == pytest.approx(expected, abs=2e-5)
    assert plan.batch(0).apart(1).inputs.size > plan.batch_tokens >= max(sizes)  # no more memory than packed rows
    assert abs(together / plan.batch_tokens - expected) > 1e-3  # it matters


def test_rows_of_many_lengths_are_not_compiled_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = small_model(vocab_size=VOCAB)
    forgets(model, "position_ids")
    told: list[str] = []
    place = training.Runtime(compile="on")
    train(model, pair_plan(), settings(), lambda _: 0.0, tmp_path, tokenizer, lambda _, words: told.append(words), place)
    assert "each has a row of its own" in told[0]
    assert not any("compiling" in words for words in told)
