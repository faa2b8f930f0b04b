"""Sampling: the Sampler protocol and its embedded engine.

requests (prompt, seed, limit) -> results (tokens, finish reason, log-probability). The embedded engine keeps a
preallocated key-value cache, replaces finished rows by new requests, prefills prompts in groups of like length, and draws
top-p without sorting: from the full softmax by inverse CDF, accepted if the mass of strictly likelier tokens is below p,
which gives exactly the truncated distribution. A request's random numbers depend on its seed and position alone.

It decodes Llama and Qwen3 layouts; other architectures go through `transformers.generate`, slower but the same contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64

from synthboot import kernels

_NATIVE = ("qwen3", "llama")
_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
_GOLDEN, _M1, _M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Request:
    """A prompt to continue by at most `max_tokens`; equal seeds give equal continuations of equal prompts."""

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Result:
    """The continuation, its end token left out. `logprob` is the sum over its tokens, the end token included, under the
    model at temperature 1 before truncation."""

    tokens: tuple[int, ...]
    finish: Literal["end", "length"]
    logprob: float


@runtime_checkable
class Sampler(Protocol):
    """Anything that continues prompts."""

    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order."""
        ...


def sampler(model: Any, end: int, *, temperature: float, top_p: float, batch: int, dtype: str = "auto") -> Sampler:
    """The embedded engine where it knows the layout, else `transformers.generate`."""
    kind = model.config.model_type
    plain = not getattr(model.config, "attention_bias", False) and not getattr(model.config, "mlp_bias", False)
    rope = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind in _NATIVE and plain and rope == "default" and not getattr(model.config, "use_sliding_window", False):
        return EmbeddedSampler(model, end, temperature=temperature, top_p=top_p, batch=batch, dtype=dtype)
    return TransformersSampler(model, end, temperature=temperature, top_p=top_p, batch=batch)


class EmbeddedSampler:
    """Continuous batching over `batch` rows of a fixed cache. Memory: 2 x layers x batch x window x key/value width."""

    def __init__(self, model: Any, end: int, *, temperature: float, top_p: float, batch: int, dtype: str = "auto") -> None:
        self.decoder = Decoder(model, dtype)
        self.end, self.temperature, self.top_p, self.batch = end, temperature, top_p, batch

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order. Raises ValueError where a prompt is empty."""
        if any(not r.prompt for r in requests):
            raise ValueError("a prompt needs at least one token")
        state = _State(self, requests)
        while state.waiting or state.live():
            state.refill()
            state.advance()
        return [r for r in state.results if r is not None]


class _State:
    """The rows in flight: which request each decodes, how far it is, and the logits of its next token."""

    def __init__(self, owner: EmbeddedSampler, requests: Sequence[Request]) -> None:
        self.owner, self.requests, self.decoder = owner, requests, owner.decoder
        self.results: list[Result | None] = [None] * len(requests)
        self.waiting = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), i))  # popped from the end
        window = max((len(r.prompt) + r.max_tokens for r in requests), default=1)
        rows = min(owner.batch, max(1, len(requests)))
        self.cache = self.decoder.cache(rows, window)
        self.request = np.full(rows, -1)
        self.position = torch.zeros(rows, dtype=torch.int64, device=self.decoder.device)
        self.logits = torch.zeros(rows, self.decoder.vocab_size, device=self.decoder.device)
        self.seeds = np.zeros(rows, np.uint64)
        self.output: list[list[int]] = [[] for _ in range(rows)]
        self.logprob = np.zeros(rows)

    def live(self) -> bool:
        return bool((self.request >= 0).any())

    def refill(self) -> None:
        """Give free rows new requests, once an eighth of the rows is free; give up rows when none are waiting."""
        free = np.flatnonzero(self.request < 0)
        rows = len(self.request)
        if self.waiting and len(free) >= max(1, rows // 8):
            for start in range(0, len(free), 8):
                group = free[start : start + 8][: len(self.waiting)]
                if len(group):
                    self._prefill(group)
        elif not self.waiting and rows > 8 and len(free) >= rows // 2:
            self._keep(np.flatnonzero(self.request >= 0))

    def _prefill(self, group: np.ndarray) -> None:
        numbers = [self.waiting.pop() for _ in group]
        prompts = [self.requests[i].prompt for i in numbers]
        width = max(map(len, prompts))
        tokens = np.zeros((len(group), width), np.int64)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = prompt
        rows = torch.from_numpy(group).to(self.decoder.device)
        lengths = torch.tensor([len(p) for p in prompts], device=self.decoder.device)
        self.logits[rows] = self.decoder.prefill(torch.from_numpy(tokens).to(self.decoder.device), lengths, rows, self.cache)
        self.position[rows] = lengths
        for row, number in zip(group.tolist(), numbers, strict=True):
            self.request[row], self.seeds[row] = number, np.uint64(self.requests[number].seed & (2**64 - 1))
            self.output[row], self.logprob[row] = [], 0.0

    def _keep(self, rows: np.ndarray) -> None:
        index = torch.from_numpy(rows).to(self.decoder.device)
        self.cache = [(k[index], v[index]) for k, v in self.cache]
        self.position, self.logits = self.position[index], self.logits[index]
        self.request, self.seeds, self.logprob = self.request[rows], self.seeds[rows], self.logprob[rows]
        self.output = [self.output[i] for i in rows]

    def advance(self) -> None:
        """Draw one token per live row, retire those that end, and decode the rest."""
        alive = np.flatnonzero(self.request >= 0)
        steps = np.array([len(self.output[i]) for i in alive], np.uint64)
        drawn, logprob = draw(
            self.logits[torch.from_numpy(alive).to(self.decoder.device)],
            self.seeds[alive], steps, self.owner.temperature, self.owner.top_p,
        )  # fmt: skip
        tokens = np.zeros(len(self.request), np.int64)
        for row, token, value in zip(alive.tolist(), drawn.tolist(), logprob.tolist(), strict=True):
            request = self.requests[self.request[row]]
            self.logprob[row] += value
            tokens[row] = token
            if token != self.owner.end:
                self.output[row].append(token)
            if token == self.owner.end or len(self.output[row]) >= request.max_tokens:
                finish: Literal["end", "length"] = "end" if token == self.owner.end else "length"
                self.results[self.request[row]] = Result(tuple(self.output[row]), finish, float(self.logprob[row]))
                self.request[row] = -1
        if (self.request >= 0).any():
            free = torch.from_numpy(self.request < 0).to(self.decoder.device)
            self.position[free] = 0
            self.logits = self.decoder.step(torch.from_numpy(tokens).to(self.decoder.device), self.position, self.cache)
            self.position += 1


def draw(
    logits: Float[torch.Tensor, "row vocab"], seeds: np.ndarray, steps: np.ndarray, temperature: float, top_p: float
) -> tuple[Int64[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """One token per row and its log-probability at temperature 1.

    Exactly the top-p distribution at `temperature` (0: the likeliest token), from uniforms that depend on the row's seed
    and step alone.
    """
    logits = logits.float()
    if kernels.available(logits.device.type):
        return kernels.draw(logits, seeds, steps, temperature, top_p)
    if temperature == 0:
        chosen = logits.argmax(1)
        return chosen.cpu().numpy(), torch.log_softmax(logits, 1).gather(1, chosen[:, None])[:, 0].cpu().numpy()
    probabilities = torch.softmax(logits / temperature, 1)
    cumulative = probabilities.cumsum(1)
    chosen = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    for attempt in range(64):
        index = left.cpu().numpy()
        u = torch.from_numpy(uniforms(seeds[index], steps[index], attempt)).to(logits.device)
        part, total = probabilities[left], cumulative[left]
        token = torch.searchsorted(total, (u * total[:, -1])[:, None], right=True)[:, 0].clamp_(max=logits.shape[1] - 1)
        likelier = torch.where(part > part.gather(1, token[:, None]), part, 0.0).sum(1)
        accepted = likelier < top_p
        chosen[left[accepted]] = token[accepted]
        left = left[~accepted]
        if not len(left):
            break
    else:  # top_p below one in 2^64: the nucleus is the likeliest token
        chosen[left] = probabilities[left].argmax(1)
    picked = (logits if temperature != 1.0 else probabilities).gather(1, chosen[:, None])[:, 0]
    logprob = picked.log() if temperature == 1.0 else picked - torch.logsumexp(logits, 1)
    return chosen.cpu().numpy(), logprob.cpu().numpy()


def uniforms(seeds: np.ndarray, steps: np.ndarray, attempt: int) -> Float[np.ndarray, " row"]:
    """Uniform numbers in [0, 1), 24 bits each, by splitmix64 of (seed, step, attempt)."""
    counter = steps.astype(np.uint64) * np.uint64(64) + np.uint64(attempt + 1)
    x = seeds.astype(np.uint64) + counter * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


Cache = list[tuple[torch.Tensor, torch.Tensor]]


class Decoder:
    """A Llama or Qwen3 model as two pure functions over its weights and a cache: prefill and step."""

    def __init__(self, model: Any, dtype: str = "auto") -> None:
        cfg, inner = model.config, model.model
        self.device = next(model.parameters()).device
        self.matrices = _DTYPES[dtype] or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.dtype = torch.float32 if self.device.type == "cpu" else self.matrices
        self.vocab_size, self.eps = cfg.vocab_size, cfg.rms_norm_eps
        self.heads, self.kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
        self.head_dim = getattr(cfg, "head_dim", None) or cfg.hidden_size // cfg.num_attention_heads
        self.compiled = kernels.available(self.device.type) and self.head_dim in kernels.HEADS

        def cast(weight: Any) -> torch.Tensor:
            return torch.as_tensor(weight.detach()).to(self.matrices if weight.dim() > 1 else self.dtype).contiguous()

        self.embedding, self.head = cast(inner.embed_tokens.weight), cast(model.lm_head.weight)
        self.norm = cast(inner.norm.weight)
        theta = cfg.rope_parameters["rope_theta"]
        frequency = 1.0 / theta ** (torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim)
        self.frequency = torch.cat((frequency, frequency)).to(self.device)
        self.layers = [_Layer(layer, cast) for layer in inner.layers]

    def cache(self, rows: int, window: int) -> Cache:
        """An empty cache: keys and values of every layer, (row, head, position, dim); for the compiled loops keys are
        (row, head, block, dim, 16), sixteen positions side by side."""
        window = -(-window // 16) * 16
        shape = (rows, self.kv_heads, window, self.head_dim)
        blocks = (rows, self.kv_heads, window // 16, self.head_dim, 16) if self.compiled else shape
        options: Any = {"dtype": self.matrices if self.compiled else self.dtype, "device": self.device}
        return [(torch.zeros(blocks, **options), torch.zeros(shape, **options)) for _ in self.layers]

    def prefill(
        self, tokens: Int64[torch.Tensor, "row token"], lengths: Int64[torch.Tensor, " row"],
        rows: Int64[torch.Tensor, " row"], cache: Cache,
    ) -> Float[torch.Tensor, "row vocab"]:  # fmt: skip
        """Fill cache rows `rows` with right-padded prompts; returns the logits after each prompt's last token."""
        width = tokens.shape[1]
        cos, sin = self._rope(torch.arange(width, device=self.device))
        hidden = self.embedding[tokens].to(self.dtype)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            q, k, v = self._qkv(layer, hidden, cos, sin)
            self._store(keys, rows, k)
            values[rows, :, :width] = v.to(values.dtype)
            attended = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads
            )
            hidden = self._rest(layer, hidden, attended.transpose(1, 2).flatten(2))
        last = hidden[torch.arange(len(rows), device=self.device), lengths - 1]
        return self._logits(last)

    def step(
        self, tokens: Int64[torch.Tensor, " row"], position: Int64[torch.Tensor, " row"], cache: Cache
    ) -> Float[torch.Tensor, "row vocab"]:
        """Append one token per row at its position; returns the logits of the next."""
        if self.compiled:
            return self._compiled_step(tokens, position, cache)
        span = int(position.max()) + 1
        cos, sin = self._rope(position[:, None])
        cos, sin = cos[:, None], sin[:, None]
        mask = (torch.arange(span, device=self.device) <= position[:, None])[:, None, None, :]
        rows = torch.arange(len(tokens), device=self.device)
        hidden = self.embedding[tokens].to(self.dtype)[:, None]
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            q, k, v = self._qkv(layer, hidden, cos, sin)
            keys[rows, :, position], values[rows, :, position] = k[:, :, 0], v[:, :, 0]
            attended = torch.nn.functional.scaled_dot_product_attention(
                q, keys[:, :, :span], values[:, :, :span], attn_mask=mask, enable_gqa=self.heads != self.kv_heads
            )
            hidden = self._rest(layer, hidden, attended.transpose(1, 2).flatten(2))
        return self._logits(hidden[:, 0])

    def _compiled_step(self, tokens: torch.Tensor, position: torch.Tensor, cache: Cache) -> torch.Tensor:
        cos, sin = self._rope(position)
        hidden = self.embedding[tokens].to(self.dtype)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            joined = _linear(_rms(hidden, layer.input_norm, self.eps), layer.qkv)
            joined = joined.view(len(tokens), self.heads + 2 * self.kv_heads, self.head_dim)
            norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
            attended = kernels.attend(joined, norms, self.eps, cos, sin, position, keys, values)
            hidden = self._rest(layer, hidden, attended)
        return self._logits(hidden)

    def _store(self, keys: torch.Tensor, rows: torch.Tensor, k: torch.Tensor) -> None:
        """Put the keys (row, head, token, dim) of prompts into cache rows."""
        width = k.shape[2]
        if not self.compiled:
            keys[rows, :, :width] = k
            return
        blocks = torch.nn.functional.pad(k, (0, 0, 0, -width % 16)).unflatten(2, (-1, 16)).transpose(3, 4)
        keys[rows, :, : blocks.shape[2]] = blocks.to(keys.dtype)

    def _rope(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position[..., None].float() * self.frequency
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def _qkv(
        self, layer: _Layer, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, width, _ = hidden.shape
        joined = _linear(_rms(hidden, layer.input_norm, self.eps), layer.qkv)
        heads = joined.view(rows, width, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = _rms(q, layer.q_norm, self.eps), _rms(k, layer.k_norm, self.eps)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v.transpose(1, 2)

    def _rest(self, layer: _Layer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        hidden = hidden + _linear(attended, layer.output)
        joined = _linear(_rms(hidden, layer.post_norm, self.eps), layer.gate_up)
        gate, up = joined.chunk(2, dim=-1)
        return hidden + _linear(torch.nn.functional.silu(gate) * up, layer.down)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return _linear(_rms(hidden, self.norm, self.eps), self.head).float()


class _Layer:
    """One block's weights, the products that share an input joined into one."""

    def __init__(self, layer: Any, cast: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = torch.cat([cast(p.weight) for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
        self.q_norm = cast(attention.q_norm.weight) if hasattr(attention, "q_norm") else None
        self.k_norm = cast(attention.k_norm.weight) if hasattr(attention, "k_norm") else None
        self.output = cast(attention.o_proj.weight)
        self.gate_up = torch.cat([cast(mlp.gate_proj.weight), cast(mlp.up_proj.weight)])
        self.down = cast(mlp.down_proj.weight)
        self.input_norm, self.post_norm = (
            cast(layer.input_layernorm.weight),
            cast(layer.post_attention_layernorm.weight),
        )


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product in the weight's precision, the result in that of `x`."""
    return torch.nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class TransformersSampler:
    """The same contract through `transformers.generate`, for layouts the embedded engine does not know. Seeded by the
    first request of each batch, so results repeat for the same list of requests."""

    def __init__(self, model: Any, end: int, *, temperature: float, top_p: float, batch: int) -> None:
        self.model, self.end, self.batch = model, end, batch
        greedy = temperature == 0
        self.options = {"do_sample": False} if greedy else {"do_sample": True, "temperature": temperature, "top_p": top_p}

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        results: dict[int, Result] = {}
        self.model.eval()
        for start in range(0, len(order), self.batch):
            numbers = order[start : start + self.batch]
            chosen = [requests[i] for i in numbers]
            results.update(zip(numbers, self._batch(chosen), strict=True))
        return [results[i] for i in range(len(requests))]

    def _batch(self, chosen: list[Request]) -> list[Result]:
        width = max(len(r.prompt) for r in chosen)
        tokens = torch.full((len(chosen), width), self.end)
        mask = torch.zeros_like(tokens)
        for i, request in enumerate(chosen):
            tokens[i, width - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[i, width - len(request.prompt) :] = 1
        device = next(self.model.parameters()).device
        torch.manual_seed(chosen[0].seed & (2**63 - 1))
        found = self.model.generate(
            tokens.to(device), attention_mask=mask.to(device), max_new_tokens=max(r.max_tokens for r in chosen),
            eos_token_id=self.end, pad_token_id=self.end, top_k=0 if self.options["do_sample"] else None,
            output_logits=True, return_dict_in_generate=True, **self.options,
        )  # fmt: skip
        output = found.sequences[:, width:].cpu()
        logprobs = torch.stack([step.float().log_softmax(-1).cpu() for step in found.logits], 1)
        picked = logprobs.gather(2, output[:, :, None])[:, :, 0]
        return [self._result(output[i].tolist(), picked[i], r.max_tokens) for i, r in enumerate(chosen)]

    def _result(self, tokens: list[int], logprobs: torch.Tensor, limit: int) -> Result:
        tokens = tokens[:limit]
        if self.end in tokens:
            count = tokens.index(self.end)
            return Result(tuple(tokens[:count]), "end", float(logprobs[: count + 1].sum()))
        return Result(tuple(tokens), "length", float(logprobs[: len(tokens)].sum()))
