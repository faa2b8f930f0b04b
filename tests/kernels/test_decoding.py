"""The loops of sampling: attention and draws as the Python path and torch have them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from synthboot.kernels import decoding, library
from tests.lm.conftest import draw

compiled = pytest.mark.skipif(not library.available(), reason="the package was installed without a compiler")


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions of (row, head, dim), by the halves of a head."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]


@compiled
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (4, 1, 32), (6, 2, 64), (7, 1, 128), (2, 1, 64)])
@pytest.mark.parametrize("normed", [True, False])
def test_one_token_of_attention_is_torchs(heads: int, kv_heads: int, dim: int, normed: bool) -> None:
    torch.manual_seed(heads)
    count = 5
    window = 48
    position = torch.tensor([0, 1, 15, 16, 47])
    qkv = torch.randn(count, heads + 2 * kv_heads, dim)
    norms = (torch.rand(dim) + 0.5, torch.rand(dim) + 0.5) if normed else None
    angle = torch.rand(count, dim // 2).repeat(1, 2) * 6
    cos = angle.cos()
    sin = angle.sin()

    # the cache before this token, as torch has it, and as the loop does: keys in transposed blocks
    past_keys, past_values = torch.randn(2, count, kv_heads, window, dim)
    keys = past_keys.unflatten(2, (-1, decoding.BLOCK)).transpose(3, 4).contiguous()
    values = past_values.clone()
    out = decoding.attend(qkv, norms, 1e-6, cos, sin, position, keys, values)

    q, k, v = qkv.split((heads, kv_heads, kv_heads), 1)
    if norms is not None:
        q = torch.nn.functional.rms_norm(q, (dim,), norms[0], 1e-6)
        k = torch.nn.functional.rms_norm(k, (dim,), norms[1], 1e-6)
    q = rotated(q, cos, sin)
    k = rotated(k, cos, sin)
    for row in range(count):
        here = int(position[row])
        past_keys[row, :, here] = k[row]
        past_values[row, :, here] = v[row]
        k_all = past_keys[row, :, : here + 1].repeat_interleave(heads // kv_heads, 0)  # (head, position, dim)
        v_all = past_values[row, :, : here + 1].repeat_interleave(heads // kv_heads, 0)
        scores = torch.einsum("hd,hpd->hp", q[row], k_all) / dim**0.5
        expected = torch.einsum("hp,hpd->hd", scores.softmax(1), v_all)
        assert torch.allclose(out[row].view(heads, dim), expected, atol=2e-5)

    # the token is in the cache now
    assert torch.allclose(keys.transpose(3, 4).flatten(2, 3), past_keys, atol=2e-6)
    assert torch.equal(values, past_values)


@compiled
def test_attention_refuses_what_does_not_fit() -> None:
    qkv = torch.zeros(2, 3, 16)
    angles = torch.zeros(2, 16)
    keys = torch.zeros(2, 1, 1, 16, 16)
    values = torch.zeros(2, 1, 16, 16)
    with pytest.raises(IndexError, match="outside the cache"):
        decoding.attend(qkv, None, 1e-6, angles, angles, torch.tensor([0, 16]), keys, values)

    qkv = torch.zeros(2, 3, 24)
    values = torch.zeros(2, 1, 16, 24)
    with pytest.raises(ValueError, match="whole groups"):
        decoding.attend(qkv, None, 1e-6, angles, angles, torch.tensor([0, 1]), keys, values)


@compiled
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.6, 0.5), (1.7, 1.0), (0.0, 1.0), (1.0, 1e-30)])
def test_draws_are_those_of_the_python_path(without_kernels: Callable[[], None], temperature: float, top_p: float) -> None:
    logits = 3 * torch.randn(4_000, 203, generator=torch.Generator().manual_seed(0))
    steps = torch.arange(4_000)
    seeds = steps * (2**60 + 1)
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
        zeros = torch.zeros(3, dtype=torch.int64)
        draw(logits, zeros, zeros, 1.0, 0.9)


@compiled
@pytest.mark.parametrize("dim", [16, 37, 96])
def test_a_gate_is_that_of_both_halves(dim: int) -> None:
    joined = 4 * torch.randn(5, 2 * dim, generator=torch.Generator().manual_seed(dim))
    gate, value = joined.chunk(2, dim=-1)
    assert torch.allclose(decoding.silu_gate(joined), torch.nn.functional.silu(gate) * value, atol=1e-5)
    with pytest.raises(ValueError, match="in one piece"):
        decoding.silu_gate(joined[:, : 2 * dim - 2])
