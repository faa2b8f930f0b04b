"""The loops of sampling: attention and draws as the Python path and torch have them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from synthboot.kernels import decoding, library
from tests.lm.conftest import draw

compiled = pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")


@compiled
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (4, 1, 32), (6, 2, 64), (7, 1, 128), (2, 1, 64)])
@pytest.mark.parametrize("normed", [True, False])
def test_one_token_of_attention_is_torchs(heads: int, kv_heads: int, dim: int, normed: bool) -> None:
    torch.manual_seed(heads)
    count, window = 5, 48
    position = torch.tensor([0, 1, 15, 16, 47])
    qkv = torch.randn(count, heads + 2 * kv_heads, dim)
    norms = (torch.rand(dim) + 0.5, torch.rand(dim) + 0.5) if normed else None
    angle = torch.rand(count, dim // 2) * 6
    cos, sin = (torch.cat((f(angle), f(angle)), 1) for f in (torch.cos, torch.sin))
    before = torch.randn(2, count, kv_heads, window, dim)
    keys = before[0].unflatten(2, (-1, 16)).transpose(3, 4).contiguous()
    values = before[1].clone()
    out = decoding.attend(qkv, norms, 1e-6, cos, sin, position, keys, values)

    q, k, v = qkv.split((heads, kv_heads, kv_heads), 1)
    if norms is not None:
        q, k = (torch.nn.functional.rms_norm(x, (dim,), w, 1e-6) for x, w in zip((q, k), norms, strict=True))
    rotated = [x * cos[:, None] + torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), -1) * sin[:, None] for x in (q, k)]
    for row in range(count):
        before[0, row, :, position[row]], before[1, row, :, position[row]] = rotated[1][row], v[row]
        upto = int(position[row]) + 1
        k_all, v_all = (x[row, :, :upto].repeat_interleave(heads // kv_heads, 0) for x in before)
        weights = torch.softmax(torch.einsum("hd,hpd->hp", rotated[0][row], k_all) / dim**0.5, 1)
        assert torch.allclose(out[row].view(heads, dim), torch.einsum("hp,hpd->hd", weights, v_all), atol=2e-5)
    assert torch.allclose(keys.transpose(3, 4).flatten(2, 3), before[0], atol=2e-6)
    assert torch.equal(values, before[1])


@compiled
def test_attention_refuses_what_does_not_fit() -> None:
    qkv, cos = torch.zeros(2, 3, 16), torch.zeros(2, 16)
    keys, values = torch.zeros(2, 1, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    with pytest.raises(IndexError, match="outside the cache"):
        decoding.attend(qkv, None, 1e-6, cos, cos, torch.tensor([0, 16]), keys, values)
    with pytest.raises(ValueError, match="whole groups"):
        decoding.attend(torch.zeros(2, 3, 24), None, 1e-6, cos, cos, torch.tensor([0, 1]), keys, torch.zeros(2, 1, 16, 24))


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
@pytest.mark.parametrize("dim", [16, 37, 96])
def test_a_gate_is_that_of_both_halves(dim: int) -> None:
    joined = 4 * torch.randn(5, 2 * dim, generator=torch.Generator().manual_seed(dim))
    gate, value = joined.chunk(2, dim=-1)
    assert torch.allclose(decoding.silu_gate(joined), torch.nn.functional.silu(gate) * value, atol=1e-5)
    with pytest.raises(ValueError, match="in one piece"):
        decoding.silu_gate(joined[:, : 2 * dim - 2])
