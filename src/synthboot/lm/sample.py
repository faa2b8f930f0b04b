"""Sampling: the Sampler protocol and its embedded engine.

requests (prompt, seed, limit) -> results (tokens, finish reason, log-probability). The embedded engine keeps a
preallocated key-value cache, replaces finished rows by new requests, prefills prompts in groups of like length, and draws
top-p without sorting: from the full softmax by inverse CDF, accepted if the mass of strictly likelier tokens is below p,
which gives exactly the truncated distribution. A request's random numbers depend on its seed and position alone.

It decodes Llama and Qwen3 layouts; other architectures go through `transformers.generate`, slower but the same contract.
`lm.vllm` and `lm.server` hand the work to other engines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64

from synthboot import config, kernels
from synthboot.lm import model as models
from synthboot.lm.decode import Decoder

_NATIVE = ("qwen3", "llama")
LEAST_ROWS = 24
"""Rows decoded at the least, some of them empty: with fewer, products round differently, and a request's tokens would depend
on how many others there are."""

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


def open_sampler(cfg: config.Synthesize, folder: Path, end: int, device: str) -> Sampler:
    """The sampler that `synthesize.sampler` names, over the model in `folder`."""
    if cfg.sampler == "vllm":
        from synthboot.lm.vllm import VllmSampler

        return VllmSampler(folder, end, cfg)
    if cfg.sampler == "server":
        from synthboot.lm.server import ServerSampler

        return ServerSampler(folder, end, cfg)
    model = models.load(folder).to(models.device(device))
    return sampler(model, end, temperature=cfg.temperature, top_p=cfg.top_p, batch=cfg.batch, dtype=cfg.dtype)


def sampler(
    model: Any, end: int, *, temperature: float, top_p: float, batch: int | None = None, dtype: str = "auto"
) -> Sampler:
    """The embedded engine where it knows the layout, else `transformers.generate`."""
    kind = model.config.model_type
    plain = not getattr(model.config, "attention_bias", False) and not getattr(model.config, "mlp_bias", False)
    rope = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind in _NATIVE and plain and rope == "default" and not getattr(model.config, "use_sliding_window", False):
        return EmbeddedSampler(model, end, temperature=temperature, top_p=top_p, batch=batch, dtype=dtype)
    return TransformersSampler(model, end, temperature=temperature, top_p=top_p, batch=batch or 32)


class EmbeddedSampler:
    """Continuous batching over `batch` rows of a fixed cache. Memory: 2 x layers x batch x window x key/value width."""

    def __init__(
        self, model: Any, end: int, *, temperature: float, top_p: float, batch: int | None = None, dtype: str = "auto"
    ) -> None:
        self.decoder = Decoder(model, dtype)
        self.end, self.temperature, self.top_p, self.batch = end, temperature, top_p, batch

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order. Raises ValueError where a prompt is empty."""
        if any(not r.prompt for r in requests):
            raise ValueError("a prompt needs at least one token")
        window = max((len(r.prompt) + r.max_tokens for r in requests), default=1)
        if self.batch is None:
            self.batch = best_batch(self.decoder, window)
        state = _State(self, requests, window, self.batch)
        while state.waiting or state.live():
            state.refill()
            state.advance()
        return [r for r in state.results if r is not None]


def best_batch(decoder: Decoder, window: int) -> int:
    """How many rows to decode together: the fewest that come within 5 % of the most tokens per second, by a few steps of
    each size at half the window, as far as a quarter of the memory that is free for this process goes."""
    room = decoder.free_memory() // 4 // max(1, decoder.cache_bytes(1, window))
    sizes = [n for n in (32, 64, 128, 256, 512) if n <= room] or [LEAST_ROWS]
    rates: dict[int, float] = {}
    for rows in sizes:
        cache = decoder.cache(rows, window)
        tokens, position = (torch.full((rows,), v, device=decoder.device) for v in (0, window // 2))
        taken = []
        for _ in range(3):
            begun = time.perf_counter()
            decoder.step(tokens, position, cache)[0, 0].item()
            taken.append(time.perf_counter() - begun)
        rates[rows] = rows / min(taken)
        if rates[rows] < 1.05 * max((r for n, r in rates.items() if n < rows), default=0.0):
            break
    return min(n for n, r in rates.items() if r >= 0.95 * max(rates.values()))


class _State:
    """The rows in flight: which request each decodes, how far it is, and the logits of its next token."""

    def __init__(self, owner: EmbeddedSampler, requests: Sequence[Request], window: int, batch: int) -> None:
        self.owner, self.requests, self.decoder = owner, requests, owner.decoder
        self.results: list[Result | None] = [None] * len(requests)
        # popped from the end; equal prompts stand together
        self.waiting = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].prompt, i))
        rows = max(LEAST_ROWS, min(batch, len(requests)))
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
        elif not self.waiting and rows > LEAST_ROWS and len(free) >= rows // 2:
            live = np.flatnonzero(self.request >= 0)
            self._keep(np.sort(np.concatenate((live, free[: max(0, LEAST_ROWS - len(live))]))))

    def _prefill(self, group: np.ndarray) -> None:
        """Put the next requests into free rows. A prompt that several of them share is read once."""
        numbers = [self.waiting.pop() for _ in group]
        prompts = [self.requests[i].prompt for i in numbers]
        first = dict(zip(reversed(prompts), reversed(group.tolist()), strict=True))
        tokens = np.zeros((len(first), max(map(len, prompts))), np.int64)
        for i, prompt in enumerate(first):
            tokens[i, : len(prompt)] = prompt
        device = self.decoder.device
        rows, lengths = torch.tensor(list(first.values()), device=device), torch.tensor(list(map(len, first)), device=device)
        self.logits[rows] = self.decoder.prefill(torch.from_numpy(tokens).to(device), lengths, rows, self.cache)
        copies = [(row, first[p]) for row, p in zip(group.tolist(), prompts, strict=True) if first[p] != row]
        if copies:
            to, source = (torch.tensor(column, device=device) for column in zip(*copies, strict=True))
            self.logits[to] = self.logits[source]
            for keys, values in self.cache:
                keys[to], values[to] = keys[source], values[source]
        for row, number, prompt in zip(group.tolist(), numbers, prompts, strict=True):
            self.request[row], self.seeds[row] = number, np.uint64(self.requests[number].seed & (2**64 - 1))
            self.output[row], self.logprob[row], self.position[row] = [], 0.0, len(prompt)

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
