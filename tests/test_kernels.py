"""The compiled loops against the Python paths they stand in for, and what happens without them."""

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from synthboot import config, kernels
from synthboot.lm import blocks
from synthboot.lm import model as models
from synthboot.neighbors import join
from tests.lm.conftest import draw

compiled = pytest.mark.skipif(not kernels.available(), reason="the package was installed without a compiler")


def rows(count: int, dim: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, dim)) + 1.0  # not centred, so that many scores are near each other
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


@compiled
@pytest.mark.parametrize(("docs", "dim", "k"), [(3_000, 256, 16), (1_001, 40, 3), (300, 7, 50), (20, 16, 30), (9_000, 24, 1)])
def test_neighbours_are_those_of_the_python_path(without_kernels: Callable[[], None], docs: int, dim: int, k: int) -> None:
    vectors, own = rows(docs, dim, 0), np.arange(docs)
    index, score = join.exact(vectors, vectors, k, own)
    without_kernels()
    slow_index, slow_score = join.exact(vectors, vectors, k, own)
    there = np.isfinite(slow_score)
    assert np.array_equal(np.isfinite(score), there)
    assert np.allclose(score[there], slow_score[there], atol=2e-6)
    assert (index[~there] == -1).all()
    clear, step = np.ones_like(there), -np.diff(np.where(there, slow_score, -9), axis=1) > 4e-6
    clear[:, 1:] &= step  # equal to rounding: either order will do
    clear[:, :-1] &= step
    clear[:, -1] = False
    assert np.array_equal(index[clear & there], slow_index[clear & there])
    assert not there.all() or clear.mean() > 0.3 or k == 1


@compiled
def test_how_the_products_are_taken_does_not_show_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = rows(5_000, 64, 1)
    centroids = join.fit_centroids(vectors, 40, 0)
    cells = join.Clusters.build(vectors, centroids, 0.05)
    found = []
    for half in (False, True):
        monkeypatch.setattr(join, "_faster_in_half", lambda half=half: half)
        found.append((*join.exact(vectors[:700], vectors, 9, np.arange(700)), *cells.join(0, 5_000, 9)))
    for one, other in zip(*found, strict=True):
        assert one.tobytes() == other.tobytes()


@compiled
@pytest.mark.parametrize("probe_radius", [-1.0, 0.0, 0.03, 2.0])
def test_clusters_within_the_radius_are_those_of_the_python_path(
    without_kernels: Callable[[], None], probe_radius: float
) -> None:
    vectors, centroids = rows(3_000, 48, 3), rows(70, 48, 4).astype(np.float32)
    cells, counts = join.within_radius(vectors, centroids, probe_radius)
    without_kernels()
    slow_cells, slow_counts = join.within_radius(vectors, centroids, probe_radius)
    assert (counts != slow_counts).mean() < 0.001  # at the very edge of the radius rounding decides
    if np.array_equal(counts, slow_counts):
        assert (cells != slow_cells).mean() < 0.001


@compiled
@pytest.mark.parametrize("count", [0, 1, 63, 64, 200])
def test_widened_rows_are_torchs(count: int) -> None:
    vectors = np.concatenate((rows(count, 37, 5), np.zeros((0, 37), np.float16)))
    vectors[: count // 2] *= np.float16(1e-6)  # among them halves too small to be normal
    wide, narrow, longest = kernels.widen(vectors, 256)
    assert torch.equal(wide, torch.from_numpy(vectors).float())
    assert narrow is not None
    assert torch.equal(narrow[:count], wide.bfloat16())
    assert not narrow[count:].any()
    assert longest == pytest.approx(float(wide.norm(dim=1).max()) if count else 0.0, rel=1e-5)


@compiled
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (4, 1, 32), (6, 2, 64), (7, 1, 128)])
@pytest.mark.parametrize("normed", [True, False])
def test_one_token_of_attention_is_torchs(heads: int, kv_heads: int, dim: int, normed: bool) -> None:
    torch.manual_seed(heads)
    count, window = 5, 48
    position = torch.tensor([0, 1, 15, 16, 47])
    joined = torch.randn(count, heads + 2 * kv_heads, dim)
    norms = (torch.rand(dim) + 0.5, torch.rand(dim) + 0.5) if normed else None
    angle = torch.rand(count, dim // 2) * 6
    cos, sin = (torch.cat((f(angle), f(angle)), 1) for f in (torch.cos, torch.sin))
    before = torch.randn(2, count, kv_heads, window, dim)
    keys = before[0].unflatten(2, (-1, 16)).transpose(3, 4).contiguous()
    values = before[1].clone()
    out = kernels.attend(joined, norms, 1e-6, cos, sin, position, keys, values)

    q, k, v = joined.split((heads, kv_heads, kv_heads), 1)
    if norms is not None:
        q, k = (torch.nn.functional.rms_norm(x, (dim,), w, 1e-6) for x, w in zip((q, k), norms, strict=True))
    turned = [x * cos[:, None] + torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), -1) * sin[:, None] for x in (q, k)]
    for row in range(count):
        before[0, row, :, position[row]], before[1, row, :, position[row]] = turned[1][row], v[row]
        upto = int(position[row]) + 1
        k_all, v_all = (x[row, :, :upto].repeat_interleave(heads // kv_heads, 0) for x in before)
        weights = torch.softmax(torch.einsum("hd,hpd->hp", turned[0][row], k_all) / dim**0.5, 1)
        assert torch.allclose(out[row].view(heads, dim), torch.einsum("hp,hpd->hd", weights, v_all), atol=2e-5)
    assert torch.allclose(keys.transpose(3, 4).flatten(2, 3), before[0], atol=2e-6)
    assert torch.equal(values, before[1])


@compiled
def test_attention_refuses_what_does_not_fit() -> None:
    joined, cos = torch.zeros(2, 3, 16), torch.zeros(2, 16)
    keys, values = torch.zeros(2, 1, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    with pytest.raises(IndexError, match="outside the window"):
        kernels.attend(joined, None, 1e-6, cos, cos, torch.tensor([0, 16]), keys, values)
    with pytest.raises(ValueError, match="whole groups"):
        kernels.attend(torch.zeros(2, 3, 24), None, 1e-6, cos, cos, torch.tensor([0, 1]), keys, torch.zeros(2, 1, 16, 24))


@compiled
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.6, 0.5), (1.7, 1.0), (0.0, 1.0), (1.0, 1e-30)])
def test_draws_are_those_of_the_python_path(without_kernels: Callable[[], None], temperature: float, top_p: float) -> None:
    logits = 3 * torch.randn(4_000, 203, generator=torch.Generator().manual_seed(0))
    seeds, steps = torch.arange(4_000) * (2**60 + 1), torch.arange(4_000)
    tokens, logprob = draw(logits, seeds, steps, temperature, top_p)
    without_kernels()
    slow_tokens, slow_logprob = draw(logits, seeds, steps, temperature, top_p)
    same = tokens == slow_tokens
    assert same.mean() > 0.998  # where the uniform number falls next to an edge rounding decides
    assert np.allclose(logprob[same], slow_logprob[same], atol=2e-5)


@compiled
def test_a_logit_that_is_not_a_number_is_an_error() -> None:
    logits = torch.zeros(3, 20)
    logits[1, 7] = float("nan")
    with pytest.raises(FloatingPointError):
        draw(logits, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 1.0, 0.9)


@compiled
@pytest.mark.parametrize("shape", [(5, 3, 16), (7, 40), (2, 2, 37), (1, 4)])
def test_norms_and_gates_are_torchs_both_ways(shape: tuple[int, ...]) -> None:
    from synthboot.lm.blocks import _Gate, _Norm

    torch.manual_seed(0)
    inputs = [4 * torch.randn(shape, requires_grad=True), torch.rand(shape[-1], requires_grad=True)]
    given, value = (torch.randn(shape, requires_grad=True) for _ in range(2))
    found, upwards = [], torch.randn(shape)
    for ours in (True, False):
        x, weight, gate = (t.detach().clone().requires_grad_() for t in (*inputs, 5 * given))
        other = value.detach().clone().requires_grad_()
        normed = _Norm.apply(x, weight, 1e-6) if ours else torch.nn.functional.rms_norm(x, (shape[-1],), weight, 1e-6)
        gated = _Gate.apply(gate, other) if ours else torch.nn.functional.silu(gate) * other
        torch.autograd.backward([normed, gated], [upwards, upwards])
        found.append([normed, gated, x.grad, weight.grad, gate.grad, other.grad])
    for one, expected in zip(*found, strict=True):
        assert torch.allclose(one, expected, atol=2e-5, rtol=1e-5)


@compiled
def test_buffers_of_the_wrong_size_are_refused() -> None:
    queries, members = torch.randn(5, 8), torch.randn(7, 8)
    index, score = torch.full((5, 2), -1), torch.full((5, 2), float("-inf"))
    scores, every, own = queries @ members.T, torch.arange(5), torch.full((5,), -1)
    scored = kernels.Scored(scores, queries, members, 1e-4)
    kernels.offer(scored, every, own, 0, index, score)
    assert torch.equal(index, scores.topk(2).indices)
    with pytest.raises(IndexError, match="not there"):
        kernels.offer(scored, every + 1, own, 0, index, score)
    with pytest.raises(ValueError, match="fewer rows or columns"):
        kernels.offer(replace(scored, scores=scores[:4].contiguous()), every, own, 0, index, score)
    with pytest.raises(ValueError, match="index has 64 bytes, expected 80"):
        kernels.offer(scored, every, own, 0, index[:4], score)


def test_without_them_it_is_said_once_and_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "synthboot._kernels", None)
    monkeypatch.delattr("synthboot._kernels", raising=False)
    kernels._module.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not kernels.available()
            assert not kernels.available()
        assert [r.message for r in caplog.records if "compiled loops" in r.message] == [caplog.records[0].message]
        vectors = rows(50, 8, 2)
        assert join.exact(vectors, vectors, 3, np.arange(50))[0].shape == (50, 3)
    finally:
        kernels._module.cache_clear()


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
    found, upwards = [], torch.randn(2, heads, tokens, 16)
    for ours in (True, False):
        q, k, v = (t.clone().requires_grad_() for t in inputs)
        if ours:
            out = blocks._Attend.apply(q, k, v, seen if masked else None, 0.3, precision)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], scale=0.3, enable_gqa=True)
        out.backward(upwards.to(out.dtype))
        found.append([out.detach().float(), q.grad, k.grad, v.grad])
    for one, expected in zip(*found, strict=True):
        assert float((one - expected).norm() / expected.norm()) < near
        assert one.shape == expected.shape


@compiled
def test_rows_outside_the_window_are_refused() -> None:
    scores = torch.zeros(2, 1, 8, 24)
    kernels.attention_weights(scores, 16, 24, 2, 1.0)
    assert torch.allclose(scores.sum(-1), torch.ones(2, 1, 8))
    with pytest.raises(ValueError, match="outside the window"):
        kernels.attention_weights(scores, 16, 23, 2, 1.0)
    with pytest.raises(ValueError, match="mask has 529 bytes, expected 576"):
        kernels.attention_weights(scores, 16, 24, 2, 1.0, torch.ones(1, 23, 23, dtype=torch.bool))
    with pytest.raises(ValueError, match="weights has"):
        kernels.attention_weights(scores, 16, 24, 2, 1.0, weights=scores[:1].contiguous())


@compiled
@pytest.mark.parametrize(("dim", "shared"), [(64, True), (40, False)])
def test_positions_are_rotated_as_the_library_does_and_back(dim: int, shared: bool) -> None:
    from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

    torch.manual_seed(0)
    x = torch.randn(3, 7, 2, dim)
    angles = torch.rand(1 if shared else 3, 7, dim // 2) * 6
    cos, sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    turned = torch.empty(3, 2, 7, dim)
    kernels.rotate(x, cos, sin, turned.transpose(1, 2), back=False)
    torch.testing.assert_close(turned.transpose(1, 2), expected, rtol=1e-6, atol=1e-6)
    back = torch.empty_like(x)
    kernels.rotate(turned.transpose(1, 2), cos, sin, back, back=True)  # read as it lies, which is not in one piece
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="differ in shape"):
        kernels.rotate(x, cos, sin, turned, back=False)
    with pytest.raises(ValueError, match="cos has"):
        kernels.rotate(x, cos[:, :5], sin, back, back=False)
    with pytest.raises(ValueError, match="four dimensions"):
        kernels.rotate(x[0], cos, sin, back, back=False)


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
    found = []
    for ours in (False, True):
        model = models.build(size, 300, 0).train()
        if ours:
            blocks.shorten(model, full=True)
            attention = model.model.layers[0].self_attn
            assert "forward" in vars(attention)
        hidden = model.model(input_ids=tokens, use_cache=False, **extra).last_hidden_state
        (hidden * torch.linspace(-1, 1, hidden.numel()).view(hidden.shape)).sum().backward()
        found.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for plain, short in zip(*found, strict=True):
        torch.testing.assert_close(short, plain, rtol=1e-4, atol=1e-5 * float(plain.detach().abs().max()))


@compiled
def test_a_model_that_was_shortened_still_decodes_with_a_cache() -> None:
    model = models.build(config.Model(layers=2, width=64, heads=2, seq_len=24), 300, 0).eval()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1, 300, (2, 6)))
    plain = model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=0)
    blocks.shorten(model, full=True)
    assert (model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=0) == plain).all()
