"""The loops of a GPU as torch's own operations have them: here by Triton's interpreter, on a GPU where there is one."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn import functional

from synthboot.kernels import library
from synthboot.lm import loss
from synthboot.lm.sampling import nucleus
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.protocol import Request, Sampling
from tests.lm.conftest import draw, small_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter has no products of bfloat16


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The loops, interpreted where there is no GPU to compile them for (tests/conftest.py)."""
    pytest.importorskip("triton")
    return importlib.import_module("synthboot.kernels.gpu")


@pytest.fixture
def taken(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers take the loops of a GPU, on whatever device they are."""
    monkeypatch.setattr(library, "available", lambda device="cpu": False)
    monkeypatch.setattr(library, "has_triton", lambda device: True)


@contextmanager
def torch_alone() -> Iterator[None]:
    """While this lasts callers have torch's own operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "has_triton", lambda device: False)
        yield


def there(*values: torch.Tensor) -> list[torch.Tensor]:
    return [value.to(DEVICE) for value in values]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "normed"), [(4, 4, 32, False), (8, 2, 64, True), (9, 3, 64, False), (20, 1, 32, True)]
)
def test_one_token_of_attention_is_torchs(
    gpu: Any, heads: int, kv_heads: int, dim: int, normed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(heads)
    position = torch.tensor([0, 1, 64, 130, 199])  # the first of a cache, and about the edges of what is read at once
    rows, capacity = len(position), 200
    qkv = torch.randn(rows, heads + 2 * kv_heads, dim).to(dtype)
    norms = [(torch.rand(dim) + 0.5).to(dtype) for _ in range(2)] if normed else None
    angle = torch.rand(rows, dim // 2) * 6
    cos, sin = (torch.cat((f(angle), f(angle)), 1).to(dtype) for f in (torch.cos, torch.sin))
    keys, values = (torch.randn(rows, kv_heads, capacity, dim).to(dtype) for _ in range(2))
    cache = there(keys.clone(), values.clone())
    own = None if norms is None else tuple(there(*norms))
    out = gpu.attend(*there(qkv), own, 1e-5, *there(cos, sin, position), *cache).cpu().float()

    q, k, v = qkv.float().split((heads, kv_heads, kv_heads), 1)
    if norms is not None:
        q, k = (functional.rms_norm(x, (dim,), w.float(), 1e-5) for x, w in zip((q, k), norms, strict=True))
    q, k = (
        x * cos.float()[:, None] + torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), -1) * sin.float()[:, None]
        for x in (q, k)
    )
    each = torch.arange(rows)
    keys[each, :, position], values[each, :, position] = k.to(dtype), v.to(dtype)
    visible = (torch.arange(capacity) <= position[:, None])[:, None, None]
    expected = functional.scaled_dot_product_attention(
        q.unflatten(1, (kv_heads, -1)), keys.float(), values.float(), attn_mask=visible
    ).flatten(1)
    close = 1e-5 if dtype == torch.float32 else 1e-2
    assert (out - expected).norm() < close * expected.norm()
    # of the cache nothing but the token's own place is written
    assert torch.allclose(cache[0].cpu().float(), keys.float(), rtol=close, atol=close)
    assert torch.equal(cache[1].cpu(), values)


@pytest.mark.parametrize("vocab", [50, 5_000])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.7, 0.3), (1.4, 1.0)])
def test_draws_are_those_of_the_python_path(gpu: Any, vocab: int, temperature: float, top_p: float) -> None:
    rows = 60
    logits = 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab))
    seeds, steps = torch.arange(rows) * (2**55 + 1), torch.arange(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "available", lambda device="cpu": False)
        expected, expected_logprob = draw(logits, seeds, steps, temperature, top_p)
    uniforms = nucleus.uniforms(seeds[:, None], steps[:, None], torch.arange(64))
    token, logprob = gpu.draw(*there(logits, uniforms), temperature, top_p)
    # a sum that rounds the other way may lead to the entry beside it
    same = token.cpu().numpy() == expected
    assert same.mean() > 0.97
    assert logprob.cpu().numpy()[same] == pytest.approx(expected_logprob[same], abs=1e-4)


def test_what_no_try_reaches_is_the_likeliest_and_what_is_no_number_says_so(gpu: Any) -> None:
    logits = torch.tensor([[0.0, 1.0, 0.9, 0.8], [0.0, 1.0, torch.nan, 0.8]])
    never = torch.zeros(2, 3)  # each try leads to the first entry, which is no part of the nucleus
    token, logprob = gpu.draw(*there(logits, never), 1.0, 0.2)
    assert int(token[0]) == 1
    assert float(logprob[0]) == pytest.approx(float(torch.log_softmax(logits[0], 0)[1]), abs=1e-5)
    assert logprob[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_gradient_of_the_loss_is_autograds(gpu: Any, dtype: torch.dtype, z_loss: float) -> None:
    torch.manual_seed(0)
    rows, vocab, scale = 7, 5_000, 0.25
    logits = (2 * torch.randn(rows, vocab)).to(dtype)
    targets = torch.randint(0, vocab, (rows,))
    exact = logits.double().requires_grad_()
    lse = exact.logsumexp(1)
    cross_entropy = functional.cross_entropy(exact, targets, reduction="sum")
    (scale * (cross_entropy + z_loss * lse.square().sum())).backward()

    found = logits.to(DEVICE)
    sums = gpu.softmax_gradient(found, targets.to(DEVICE), scale, z_loss)
    assert sums.cpu() == pytest.approx(torch.stack((cross_entropy, lse.square().sum())).detach(), rel=1e-5)
    assert exact.grad is not None
    close = 1e-5 if dtype == torch.float32 else 1e-2
    assert (found.cpu().double() - exact.grad).norm() < close * exact.grad.norm()


COMPILED = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from synthboot.kernels import gpu

loop = next(f for f in vars(gpu).values() if isinstance(f, triton.JITFunction) and "keys" in f.arg_names)
numbers = "qkv", "q_norm", "k_norm", "cosine", "sine", "keys", "values", "out"
for dim, kind, size in ((64, "bf16", 2), (128, "fp32", 4), (256, "bf16", 2), (256, "fp32", 4)):
    types = dict.fromkeys(numbers, "*" + kind) | {"position": "*i64", "eps": "fp32", "scale": "fp32", "capacity": "i32"}
    block = gpu.positions_at_once(dim, size)
    fixed = {"kv_heads": 2, "group": 4, "padded_group": 16, "half": dim // 2, "normed": True, "block": block}
    source = ASTSource(loop, {name: types.get(name, "constexpr") for name in loop.arg_names}, fixed)
    print(triton.compile(source, target=GPUTarget("cuda", 89, 32)).metadata.shared)
"""


def test_attention_fits_the_shared_memory_of_small_cards(gpu: Any) -> None:
    """Compiled for a card that need not be there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=True)
    assert 0 < max(map(int, done.stdout.split())) <= 99 * 2**10


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "entries that are absent": {"absent": [5, 279]},
    "a contrast": {"contrast": 0.5},
    "a pointer": {"weights": [[0.7, 0.2, 0.1]] * 9},
    "cold": {"temperature": 0.5, "top_p": 0.5},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_a_sampler_takes_them_and_says_the_same(taken: None, changes: dict[str, Any]) -> None:
    model = small_model(1, width=128).to(DEVICE)
    asked = [Request((5, 7 + i, 11), i, 6, alone=(11,), source=(7, 9, 11, 30)) for i in range(3)]
    how: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "batch": 3, "dtype": "float32", **changes}
    sampler = EmbeddedSampler(model, 0, Sampling(**how))
    assert sampler.decoder.attend is importlib.import_module("synthboot.kernels.gpu").attend
    found = sampler.sample(asked)
    with torch_alone():
        expected = EmbeddedSampler(model, 0, Sampling(**how)).sample(asked)
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    assert [r.logprob for r in found] == pytest.approx([r.logprob for r in expected], abs=1e-3)


@pytest.mark.parametrize("precision", [torch.float32, HALF])
def test_training_takes_them_and_says_the_same(taken: None, precision: torch.dtype) -> None:
    model = small_model(2, width=64).to(DEVICE)
    inputs = torch.randint(2, 280, (2, 9), generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        value, _ = loss.Loss(model, precision, plain=True)(inputs[:, :-1], inputs[:, 1:])
        value.backward()
        return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    found = gradients()
    with torch_alone():
        expected = gradients()
    assert len(found) == len(expected) > 5
    close = 1e-4 if precision == torch.float32 else 2e-2
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= close * b.norm() + 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_recorded_steps_of_a_gpu_say_what_plain_ones_say(changes: dict[str, Any]) -> None:
    model = small_model(2, width=256).to("cuda")
    asked = [Request((5, 7 + i % 200, 11), i, 70, alone=(11,), source=(7, 9, 11, 30)) for i in range(90)]
    how: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "batch": 32, **changes}
    recorded = EmbeddedSampler(model, 0, Sampling(**how)).sample(asked)
    plain = EmbeddedSampler(model, 0, Sampling(**how), graphs=False).sample(asked)
    assert [r.tokens for r in recorded] == [r.tokens for r in plain]


def test_a_gpu_on_which_nothing_compiles_is_told_once(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(torch, "zeros", broken)
    library.triton_runs.cache_clear()
    assert not library.has_triton("cuda")
    assert not library.has_triton("cuda")
    assert caplog.text.count("Failed to find C compiler") == 1
    library.triton_runs.cache_clear()


def test_a_device_without_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not library.has_triton("cpu")
    monkeypatch.setenv("SYNTHBOOT_KERNELS", "0")
    assert not library.has_triton("cuda")
