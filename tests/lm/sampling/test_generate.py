"""Sampling from layouts that the embedded engine does not decode: each draws from the model's own distribution."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig

from synthboot import config
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import SamplingError
from synthboot.lm import model as models
from synthboot.lm.sampling import engines
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.generate import TransformersSampler
from synthboot.lm.sampling.protocol import Request, Sampling

POSITIONS = 24
SIZES: dict[str, Any] = {
    "vocab_size": 280,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
HEADS = {**SIZES, "head_dim": 8}
GPT2 = {"vocab_size": 280, "n_positions": POSITIONS, "n_embd": 32, "n_layer": 2, "n_head": 2}
ROPE = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
OPT = {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "learned positions": ("gpt2", GPT2),
    "learned positions from 2 on": ("opt", OPT),
    "alibi": ("bloom", {"vocab_size": 280, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "alibi and one key head": ("falcon", {**SIZES, "alibi": True}),
    "half-rotary": ("gpt_neox", SIZES),
    "biases": ("qwen2", SIZES),
    "partly rotary": ("phi", SIZES),
    "capped logits, windows": (
        "gemma2",
        {**HEADS, "sliding_window": 5, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    ),
    "windows": ("mistral", {**SIZES, "sliding_window": 5}),
    "scaled logits": ("granite", {**SIZES, "logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "experts": ("mixtral", {**SIZES, "num_local_experts": 4}),
    "a state": ("mamba", {"vocab_size": 280, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "a llama of another activation": ("llama", {**SIZES, "hidden_act": "gelu"}),
    "a llama of other positions": ("llama", {**SIZES, "rope_parameters": ROPE}),
    "a qwen3 of windows": ("qwen3", {**HEADS, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
}
USERS = GenerationConfig(
    repetition_penalty=1.8,
    do_sample=True,
    top_k=2,
    min_p=0.2,
    temperature=0.3,
    eos_token_id=[7, 8],
    no_repeat_ngram_size=2,
    suppress_tokens=[9],
    max_length=9,
    bad_words_ids=[[10]],
    num_beams=2,
)


def built(kind: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    model.generation_config = USERS
    return model


def alone(model: Any, request: Request, output: list[int]) -> torch.Tensor:
    """The model's log-probabilities where each token of the output is drawn, from the whole text and nothing else."""
    text = torch.tensor([[*request.prompt, *output]])
    with torch.no_grad():
        logits = model(input_ids=text[:, :-1], use_cache=False).logits[0, len(request.prompt) - 1 :]
    return torch.log_softmax(logits.double(), -1)


@pytest.mark.parametrize(("kind", "settings"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_layout_draws_from_its_own_distribution(kind: str, settings: dict[str, Any]) -> None:
    model, rng = built(kind, settings), np.random.default_rng(0)
    lengths = (1, 3, 9, POSITIONS - 1, 15)  # a prompt may leave room for one token alone
    asked = [Request(tuple(rng.integers(2, 280, n).tolist()), 100 + n, min(POSITIONS - n, 10)) for n in lengths]
    engine = engines.sampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=3, absent=[5, 279]))
    assert isinstance(engine, TransformersSampler)
    for engine.temperature in (1.0, 0.0):
        for request, result in zip(asked, engine.sample(asked), strict=True):
            output = [*result.tokens, *([0] if result.finish == "end" else [])]
            assert result.finish == "end" or len(output) == request.max_tokens
            assert not {5, 279} & set(output)
            scores = alone(model, request, output)
            assert result.logprob == pytest.approx(float(scores.gather(1, torch.tensor(output)[:, None]).sum()), rel=1e-4)
            scores[:, [5, 279]] = -torch.inf
            if engine.temperature == 0.0:
                assert output == scores.argmax(1).tolist()


def test_draws_have_the_models_frequencies_and_depend_on_their_seed_alone() -> None:
    from scipy.stats import chisquare

    model = built("gpt2", GPT2)
    engine = TransformersSampler(model, 0, Sampling(temperature=1.0, top_p=1.0, batch=1_000))
    prompts = [(5, 6, 7, 8), (5, 6), (9,)]
    asked = [Request(prompts[i % 3], i, 1) for i in range(3_000)]
    found = engine.sample(asked)
    for number in range(3):
        drawn = np.bincount([r.tokens[0] if r.tokens else 0 for r in found[number::3]], minlength=280)
        expected = alone(model, asked[number], [1])[0].exp().numpy() * drawn.sum()
        likely = expected >= 5
        rest = [drawn[~likely].sum()], [expected[~likely].sum()]
        assert chisquare(np.append(drawn[likely], rest[0]), np.append(expected[likely], rest[1])).pvalue > 1e-4
    assert [r.tokens for r in engine.sample(asked[40:43])] == [r.tokens for r in found[40:43]]


def test_a_batch_that_does_not_fit_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersSampler(built("gpt2", GPT2), 0, Sampling(temperature=1.0, top_p=1.0, batch=6))

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine.model, "generate", full)
    with pytest.raises(SamplingError, match=r"6 rows at once .* engine.sample_batch=3"):
        engine.sample([Request((5, 6), i, 4) for i in range(9)])


def test_a_prompt_ends_before_the_positions_do() -> None:
    engine = TransformersSampler(built("gpt2", GPT2), 300, Sampling(temperature=1.0, top_p=0.9))
    assert len(engine.sample([Request((5,) * 20, 1, 100)])[0].tokens) == POSITIONS - 20
    with pytest.raises(ValueError, match="fewer than the model's 24 positions"):
        engine.sample([Request((5,) * POSITIONS, 1, 1)])
    with pytest.raises(ValueError, match="at least one token"):
        engine.sample([Request((), 1, 1)])


def test_a_layout_whose_steps_forget_is_read_anew_and_one_that_sees_ahead_is_refused() -> None:
    state = built("rwkv", {"vocab_size": 280, "hidden_size": 32, "num_hidden_layers": 2, "context_length": POSITIONS})
    engine = TransformersSampler(state, 0, Sampling(temperature=1.0, top_p=1.0))
    assert not engine.cached
    asked = [Request((5, 6, 7), 1, 4), Request((8,), 2, 4)]
    for request, result in zip(asked, engine.sample(asked), strict=True):
        output = [*result.tokens, *([0] if result.finish == "end" else [])]
        expected = alone(state, request, output).gather(1, torch.tensor(output)[:, None]).sum()
        assert result.logprob == pytest.approx(float(expected), rel=1e-4)
    ahead = built("gpt2", GPT2)

    def sees_the_end(_: Any, __: Any, told: dict[str, Any], output: Any) -> None:
        output.logits += 5 * torch.nn.functional.one_hot(told["input_ids"][:, -1:], 280)

    ahead.register_forward_hook(sees_the_end, with_kwargs=True)
    with pytest.raises(
        SamplingError, match=r"a gpt2 model cannot be sampled \(.* nats a token\); choose another model.init_from"
    ):
        TransformersSampler(ahead, 0, Sampling(temperature=1.0, top_p=1.0))


def test_a_saved_model_hands_on_no_way_of_generating(tmp_path: Path, tokenizer: Tokenizer) -> None:
    larger = built("gpt2", {**GPT2, "vocab_size": tokenizer.vocab_size + 60})
    larger.generation_config = GenerationConfig(temperature=0.3, repetition_penalty=1.8)  # not even valid: it does not sample
    models.save(larger, tmp_path / "model", tokenizer)
    kept = GenerationConfig.from_pretrained(tmp_path / "model").to_diff_dict()
    assert set(kept) - {"transformers_version"} == {"eos_token_id"}
    engine = engines.open_sampler(config.Synthesize(top_p=1.0), config.Engine(device="cpu"), tmp_path / "model", tokenizer.end)
    drawn = engine.sample([Request((5, 6), i, 20) for i in range(40)])
    assert max(t for r in drawn for t in r.tokens) < tokenizer.vocab_size


def test_plain_layouts_stay_with_the_embedded_engine() -> None:
    for kind, settings in (("llama", SIZES), ("qwen3", HEADS)):
        assert isinstance(engines.sampler(built(kind, settings), 0, Sampling(temperature=1.0, top_p=0.9)), EmbeddedSampler)


def test_half_precision_is_used_where_it_is_asked_for() -> None:
    asked = [Request((5, 6, 7), i, 10) for i in range(4)]
    single, half = (
        TransformersSampler(built("gpt2", GPT2), 0, Sampling(temperature=0, top_p=1.0, dtype=dtype)).sample(asked)[0].logprob
        for dtype in ("float32", "bfloat16")
    )
    assert single != half
