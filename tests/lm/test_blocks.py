"""A model's blocks by the compiled loops give what torch and transformers give, both ways."""

from typing import Any

import numpy as np
import pytest
import torch

from synthboot import config
from synthboot.data.tokens import Tokens
from synthboot.kernels import library
from synthboot.lm import blocks, score
from synthboot.lm import model as models

compiled = pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")


@compiled
@pytest.mark.parametrize("shape", [(5, 3, 16), (7, 40), (2, 2, 37), (1, 4)])
def test_norms_and_gates_are_torchs_both_ways(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = [4 * torch.randn(shape, requires_grad=True), torch.rand(shape[-1], requires_grad=True)]
    given, value = (torch.randn(shape, requires_grad=True) for _ in range(2))
    results, upwards = [], torch.randn(shape)
    for ours in (True, False):
        x, weight, gate = (t.detach().clone().requires_grad_() for t in (*inputs, 5 * given))
        other = value.detach().clone().requires_grad_()
        normed = blocks.rms_norm(x, weight, 1e-6) if ours else torch.nn.functional.rms_norm(x, (shape[-1],), weight, 1e-6)
        gated = blocks.silu_gate(gate, other) if ours else torch.nn.functional.silu(gate) * other
        torch.autograd.backward([normed, gated], [upwards, upwards])
        results.append([normed, gated, x.grad, weight.grad, gate.grad, other.grad])
    for one, expected in zip(*results, strict=True):
        assert torch.allclose(one, expected, atol=2e-5, rtol=1e-5)


@compiled
@pytest.mark.parametrize(("precision", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "masked"), [(24, 2, 2, False), (150, 6, 2, True), (300, 3, 1, True)])
def test_attention_by_blocks_of_rows_is_torchs_both_ways(
    tokens: int, heads: int, kv_heads: int, masked: bool, precision: torch.dtype, near: float
) -> None:
    torch.manual_seed(0)
    inputs = [2 * torch.randn(2, h, tokens, 16) for h in (heads, kv_heads, kv_heads)]
    seen = torch.ones(2, tokens, tokens, dtype=torch.bool).tril()
    if masked:  # two documents in a row, of other lengths in the other row
        number = torch.arange(tokens)[None, :] < torch.tensor([[tokens // 3], [tokens - 5]])
        seen &= number[:, :, None] == number[:, None, :]
    results, upwards = [], torch.randn(2, heads, tokens, 16)
    for ours in (True, False):
        q, k, v = (t.clone().requires_grad_() for t in inputs)
        if ours:
            out = blocks.attend(q, k, v, seen if masked else None, 0.3, precision)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], scale=0.3, enable_gqa=True)
        out.backward(upwards.to(out.dtype))
        results.append([out.detach().float(), q.grad, k.grad, v.grad])
    for one, expected in zip(*results, strict=True):
        assert float((one - expected).norm() / expected.norm()) < near
        assert one.shape == expected.shape


@compiled
@pytest.mark.parametrize(("kv_heads", "masked"), [(2, False), (1, True)])
def test_attention_while_training_is_the_librarys_both_ways(kv_heads: int, masked: bool) -> None:
    size = config.Model(layers=2, width=64, heads=2, kv_heads=kv_heads, seq_len=24)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 300, (3, 24)))
    extra: dict[str, Any] = {}
    if masked:  # two documents in a row, each with positions of its own
        inside = torch.arange(24) < 10
        mask = (inside[:, None] == inside[None, :]) & torch.ones(24, 24, dtype=torch.bool).tril()
        extra = {"attention_mask": mask.expand(3, 1, 24, 24), "position_ids": (torch.arange(24) % 10).expand(3, 24)}
    results = []
    for ours in (False, True):
        model = models.build(size, 300, 0).train()
        if ours:
            blocks.use_compiled_loops(model, full=True)
            attention = model.model.layers[0].self_attn
            assert "forward" in vars(attention)
        hidden = model.model(input_ids=tokens, use_cache=False, **extra).last_hidden_state
        (hidden * torch.linspace(-1, 1, hidden.numel()).view(hidden.shape)).sum().backward()
        results.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 10
    for plain, short in zip(*results, strict=True):
        torch.testing.assert_close(short, plain, rtol=1e-4, atol=1e-5 * float(plain.detach().abs().max()))


@compiled
def test_a_model_with_compiled_loops_still_decodes_with_a_cache() -> None:
    model = models.build(config.Model(layers=2, width=64, heads=2, seq_len=24), 300, 0).eval()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1, 300, (2, 6)))
    plain = model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=0)
    blocks.use_compiled_loops(model, full=True)
    assert (model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=0) == plain).all()


@compiled
def test_a_model_scores_by_compiled_loops_and_is_the_librarys_again(monkeypatch: pytest.MonkeyPatch) -> None:
    size = config.Model(layers=2, width=64, heads=2, seq_len=24)
    model = models.build(size, 300, 0)
    documents = Tokens.of(np.random.default_rng(0).integers(1, 300, (3, 40)).tolist())
    calls = []
    counted = blocks.use_compiled_loops
    monkeypatch.setattr(blocks, "use_compiled_loops", lambda model, full: (calls.append(full), counted(model, full)))
    ours = score.token_losses(model, documents, 24, 0)
    assert calls == [True]
    assert not any("forward" in vars(module) for module in model.modules())
    monkeypatch.setenv("SYNTHBOOT_KERNELS", "0")
    np.testing.assert_allclose(ours, score.token_losses(model, documents, 24, 0), atol=2e-5)
    assert calls == [True]


@compiled
@pytest.mark.parametrize("case", ["half", "trains", "compiles", "another layout", "threads"])
def test_a_model_that_the_loops_do_not_suit_is_left_as_it_is(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build(config.Model(layers=1, width=64, heads=2, seq_len=24), 300, 0)
    if case == "half":
        model.to(torch.bfloat16)
    elif case == "trains":
        blocks.use_compiled_loops(model, full=False)
    elif case == "compiles":
        model.model.layers[0]._compiled_call_impl = model.model.layers[0].forward  # what `compile` sets
    elif case == "another layout":
        model.config.model_type = "gemma"
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    before = [vars(module).get("forward") for module in model.modules()]
    with blocks.compiled_loops(model):
        during = [vars(module).get("forward") for module in model.modules()]
    assert before == during == [vars(module).get("forward") for module in model.modules()]
