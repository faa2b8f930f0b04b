"""Sampling: the Sampler protocol and its embedded engine.

requests (prompt, seed, limit) -> results (tokens, finish reason, log-probability). The embedded engine keeps a
preallocated key-value cache, replaces finished rows by new requests, prefills prompts in groups of like length, and draws
top-p without sorting: from the full softmax by inverse CDF, accepted if the mass of strictly likelier tokens is below p,
which gives exactly the truncated distribution. A request's random numbers depend on its seed and position alone. All that
a step reads and writes lies on the device, so that a GPU runs it as one recorded graph and is seldom waited for.

It decodes Llama and Qwen3 layouts; other architectures go through `transformers.generate` (`lm.generate`), slower but the
same contract. `lm.vllm` and `lm.server` hand the work to other engines. Nothing but temperature and top-p shapes what is
drawn, whatever generation settings a model came with, and entries of a model's vocabulary that the tokenizer does not have
(`absent`) are never drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from synthboot import config, kernels
from synthboot.data import tokenizer as tokenizers
from synthboot.lm import model as models
from synthboot.lm.decode import Decoder

_NATIVE = ("qwen3", "llama")
LEAST_ROWS = 24
"""Rows decoded at the least, some of them empty: with fewer, products round differently, and a request's tokens would depend
on how many others there are."""

STRIDE = 16
"""Steps of a GPU between two looks at what is done; a row that is done early idles until then."""

SPAN = 256
"""On a GPU attention goes over the cache up to a multiple of so many positions, a recorded step for each."""

TRIES = 2
"""Draws that one step may reject before the row waits for the next step."""


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


def open_sampler(cfg: config.Synthesize, engine: config.Engine, folder: Path, end: int) -> Sampler:
    """The sampler that `synthesize.sampler` names, over the model in `folder`; `engine` says where and how it works."""
    if cfg.sampler == "vllm":
        from synthboot.lm.vllm import VllmSampler

        return VllmSampler(folder, end, cfg, engine.sample_batch)
    if cfg.sampler == "server":
        from synthboot.lm.server import ServerSampler

        return ServerSampler(folder, end, cfg, engine.server)
    model = models.load(folder).to(models.device(engine.device))
    absent = tokenizers.load(folder).absent(model.config.get_text_config().vocab_size)
    options: Any = {
        "temperature": cfg.temperature,
        "top_p": cfg.top_p,
        "batch": engine.sample_batch,
        "dtype": cfg.dtype,
    }
    return sampler(model, end, **options, absent=absent)


def sampler(
    model: Any, end: int, *, temperature: float, top_p: float, batch: int | None = None, dtype: str = "auto",
    absent: Sequence[int] = (),
) -> Sampler:  # fmt: skip
    """The embedded engine where it knows the layout, else `transformers.generate`."""
    from synthboot.lm.generate import TransformersSampler

    engine = EmbeddedSampler if _embeds(model.config) else TransformersSampler
    return engine(
        model, end, temperature=temperature, top_p=top_p, batch=batch, dtype=dtype, absent=absent
    )


def _embeds(layout: Any) -> bool:
    """Whether the embedded engine knows all that this configuration asks for."""
    rope = getattr(layout, "rope_parameters", None) or {}
    return (
        layout.model_type in _NATIVE
        and layout.hidden_act == "silu"
        and not layout.attention_bias
        and not getattr(layout, "mlp_bias", False)
        and rope.get("rope_type", "default") == "default"
        and "sliding_attention" not in (getattr(layout, "layer_types", None) or ())
    )


class EmbeddedSampler:
    """Continuous batching over `batch` rows of a fixed cache. Memory: 2 x layers x batch x window x key/value width."""

    def __init__(
        self, model: Any, end: int, *, temperature: float, top_p: float, batch: int | None = None, dtype: str = "auto",
        graphs: bool = True, absent: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.decoder = Decoder(model, dtype)
        self.absent = torch.tensor(absent, device=self.decoder.device) if absent else None
        self.end, self.temperature, self.top_p, self.batch, self.graphs = (
            end,
            temperature,
            top_p,
            batch,
            graphs,
        )
        self.far = self.decoder.device.type != "cpu"  # to look at the rows is to wait for them

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order. Raises ValueError where a prompt is empty, FloatingPointError where the model's
        logits are not numbers."""
        if any(not r.prompt for r in requests):
            raise ValueError("a prompt needs at least one token")
        window = max((len(r.prompt) + r.max_tokens for r in requests), default=1)
        if self.batch is None:
            self.batch = best_batch(self.decoder, window)
        state = _State(self, requests, window, self.batch)
        while state.waiting or state.live():
            state.refill()
            state.advance()
            state.retire()
        return [r for r in state.results if r is not None]


def best_batch(decoder: Decoder, window: int) -> int:
    """How many rows to decode together: the fewest that come within 5 % of the most tokens per second, by a few steps of
    each size at half the window, as far as a quarter of the memory that is free for this process goes."""
    room = decoder.free_memory() // 4 // max(1, decoder.cache_bytes(1, window))
    sizes = [n for n in (32, 64, 128, 256, 512, 1_024, 2_048) if n <= room] or [LEAST_ROWS]
    rates: dict[int, float] = {}
    for rows in sizes:
        cache = decoder.cache(rows, window)
        tokens, position = (torch.full((rows,), v, device=decoder.device) for v in (0, window // 2))
        taken = []
        for _ in range(3):
            begun = time.perf_counter()
            decoder.step(tokens, position, cache, window // 2 + 1)[0, 0].item()
            taken.append(time.perf_counter() - begun)
        rates[rows] = rows / min(taken)
        if rates[rows] < 1.05 * max((r for n, r in rates.items() if n < rows), default=0.0):
            break
    return min(n for n, r in rates.items() if r >= 0.95 * max(rates.values()))


class _Rows:
    """The rows in flight as the device knows them, a tensor each: the token to decode and its position, the request's seed
    and limit, the tokens drawn so far, how often the next one was tried, and whether the row is done, and by its end token.

    Tensors are changed in place, so that a step can be recorded once and replayed.
    """

    def __init__(self, rows: int, longest: int, device: torch.device) -> None:
        integers = torch.zeros(6, rows, dtype=torch.int64, device=device)
        self.token, self.position, self.seed, self.limit, self.count, self.tries = integers
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.done = torch.ones_like(self.ended)
        self.logprob = torch.zeros(rows, dtype=torch.float64, device=device)
        self.output = torch.zeros(rows, longest + 1, dtype=torch.int64, device=device)

    def put(self, rows: torch.Tensor, requests: Sequence[Request]) -> None:
        """Begin requests: the last token of a prompt is decoded first, and what follows it drawn."""
        values = [(r.prompt[-1], len(r.prompt) - 1, signed(r.seed), r.max_tokens) for r in requests]
        told = torch.tensor(values).to(rows.device)
        self.token[rows], self.position[rows], self.seed[rows], self.limit[rows] = told.unbind(1)
        for column in (self.count, self.tries, self.logprob, self.ended, self.done):
            column[rows] = 0

    def keep(self, rows: torch.Tensor) -> None:
        """Give up all rows but these."""
        for name, column in vars(self).items():
            setattr(self, name, column[rows])

    def advance(self, logits: torch.Tensor, owner: EmbeddedSampler) -> None:
        """Draw a token for each row that is not done; one whose draw was rejected decodes its last token once more."""
        shape = (owner.temperature, owner.top_p, owner.absent)
        token, logprob, drawn = draw(logits, self.seed, self.count, self.tries, *shape)
        drawn = drawn & ~self.done
        ends = drawn & (token == owner.end)
        self.output.scatter_(
            1, self.count[:, None], token[:, None]
        )  # counts only once `count` says so
        self.count += drawn & ~ends
        self.tries.add_(TRIES).masked_fill_(drawn, 0)
        self.logprob += torch.where(drawn, logprob, 0.0)
        self.ended |= ends
        self.done |= ends | (drawn & (self.count >= self.limit))
        self.token.copy_(torch.where(drawn, token, self.token))
        self.position.add_(drawn).masked_fill_(self.done, 0)


class _State:
    """Which request each row decodes, what it has given so far, and what is still waiting.

    On a GPU the rows run `STRIDE` steps before the host looks, each step one launch of a CUDA graph.
    """

    def __init__(
        self, owner: EmbeddedSampler, requests: Sequence[Request], window: int, batch: int
    ) -> None:
        self.owner, self.requests, self.decoder = owner, requests, owner.decoder
        self.results: list[Result | None] = [None] * len(requests)
        # popped from the end; equal prompts stand together
        self.waiting = sorted(
            range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].prompt, i)
        )
        rows = max(LEAST_ROWS, min(batch, len(requests)))
        self.cache = self.decoder.cache(rows, window)
        self.window, self.device = window, self.decoder.device
        self.rows = _Rows(rows, max((r.max_tokens for r in requests), default=0), self.device)
        self.request = np.full(rows, -1)
        self.probe_radius = np.zeros(rows, np.int64)  # no position is beyond
        self.stride, self.group = (STRIDE, 64) if owner.far else (1, 8)
        self.graphs: dict[int, Any] = {}

    def live(self) -> bool:
        return bool((self.request >= 0).any())

    def refill(self) -> None:
        """Give free rows new requests, once an eighth of the rows is free; give up rows when none are waiting."""
        free = np.flatnonzero(self.request < 0)
        rows = len(self.request)
        if self.waiting and len(free) >= max(1, rows // 8):
            for start in range(0, len(free), self.group):
                group = free[start : start + self.group][: len(self.waiting)]
                if len(group):
                    self._prefill(group)
        elif not self.waiting and rows > LEAST_ROWS and len(free) >= rows // 2:
            live = np.flatnonzero(self.request >= 0)
            self._keep(np.sort(np.concatenate((live, free[: max(0, LEAST_ROWS - len(live))]))))

    def _prefill(self, group: np.ndarray) -> None:
        """Put the next requests into free rows. A prompt that several of them share is read once."""
        numbers = [self.waiting.pop() for _ in group]
        chosen = [self.requests[i] for i in numbers]
        first = {r.prompt: row for row, r in zip(group[::-1].tolist(), chosen[::-1], strict=True)}
        width = max(map(len, first)) - 1  # the last token is decoded
        if width:
            tokens = np.zeros((len(first), width), np.int64)
            for i, prompt in enumerate(first):
                tokens[i, : len(prompt) - 1] = prompt[:-1]
            self.decoder.prefill(
                torch.from_numpy(tokens).to(self.device),
                self._index(list(first.values())),
                self.cache,
            )
        copies = [
            (row, first[r.prompt])
            for row, r in zip(group.tolist(), chosen, strict=True)
            if first[r.prompt] != row
        ]
        if copies and width:
            to, source = (self._index(column) for column in zip(*copies, strict=True))
            for keys, values in self.cache:
                keys[to], values[to] = keys[source], values[source]
        self.rows.put(self._index(group), chosen)
        self.request[group], self.probe_radius[group] = numbers, [len(r.prompt) - 1 for r in chosen]

    def _keep(self, rows: np.ndarray) -> None:
        index = self._index(rows)
        self.cache = [(k[index], v[index]) for k, v in self.cache]
        self.rows.keep(index)
        self.request, self.probe_radius = self.request[rows], self.probe_radius[rows]
        self.graphs.clear()

    def _index(self, rows: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(rows, np.int64)).to(self.device)

    def advance(self) -> None:
        """A stride: that many steps of all rows."""
        span = min(int(self.probe_radius.max()) + self.stride, self.window)
        step: Callable[[], None] = partial(self._step, span)
        if self.owner.far:
            step = self._recorded(min(-(-span // SPAN) * SPAN, self.window))
        for _ in range(self.stride):
            step()
        self.probe_radius[self.request >= 0] += self.stride

    def _step(self, span: int) -> None:
        logits = self.decoder.step(self.rows.token, self.rows.position, self.cache, span)
        self.rows.advance(logits, self.owner)

    def _recorded(self, span: int) -> Callable[[], None]:
        """A step as a CUDA graph: the first stride runs as it is, which makes ready what a recording must find ready."""
        plain = partial(self._step, span)
        if not self.owner.graphs:
            return plain
        if span not in self.graphs:
            self.graphs[span] = None
            return plain
        if self.graphs[span] is None:
            self.graphs[span] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graphs[span]):
                plain()
        replay: Callable[[], None] = self.graphs[span].replay
        return replay

    def retire(self) -> None:
        """Take the results of rows that are done."""
        rows = np.flatnonzero(self.rows.done.cpu().numpy() & (self.request >= 0))
        if not len(rows):
            return
        index, told = self._index(rows), self.rows
        columns = [c[index].tolist() for c in (told.output, told.count, told.ended, told.logprob)]
        for row, tokens, count, ended, logprob in zip(rows.tolist(), *columns, strict=True):
            if math.isnan(logprob):
                raise FloatingPointError("the model's logits are not numbers")
            self.results[self.request[row]] = Result(
                tuple(tokens[:count]), "end" if ended else "length", logprob
            )
        self.request[rows], self.probe_radius[rows] = -1, 0


def draw(
    logits: Float[torch.Tensor, "row vocab"], seeds: Int64[torch.Tensor, " row"], steps: Int64[torch.Tensor, " row"],
    tries: Int64[torch.Tensor, " row"], temperature: float, top_p: float, absent: Int64[torch.Tensor, " entry"] | None = None,
) -> tuple[Int64[torch.Tensor, " row"], Float[torch.Tensor, " row"], Bool[torch.Tensor, " row"]]:  # fmt: skip
    """A token per row, its log-probability at temperature 1, and whether it was accepted; where not, ask again with `tries`
    larger by `TRIES`.

    What is accepted has exactly the top-p distribution at `temperature` (0: the likeliest token), from uniforms that depend
    on the row's seed, step and try alone. Entries that are `absent` are never drawn; log-probabilities are the model's own,
    them included. Nothing here waits for a GPU.
    """
    logits = logits.float()
    if absent is not None:
        known = logits.index_fill(1, absent, -torch.inf)
        token, logprob, accepted = draw(known, seeds, steps, tries, temperature, top_p)
        return token, logprob + (known.logsumexp(1) - logits.logsumexp(1)), accepted
    if kernels.available(logits.device.type):
        token, logprob = map(
            torch.from_numpy, kernels.draw(logits, seeds.numpy(), steps.numpy(), temperature, top_p)
        )
        return token, logprob, torch.ones_like(token, dtype=torch.bool)
    likeliest = logits.argmax(1)
    if temperature == 0:
        logprob = torch.log_softmax(logits, 1).gather(1, likeliest[:, None])[:, 0]
        return likeliest, logprob, torch.ones_like(likeliest, dtype=torch.bool)
    probabilities = torch.softmax(logits / temperature, 1)
    cumulative = probabilities.cumsum(1)
    accepted = tries >= 64  # the nucleus is the likeliest token, or hardly more
    chosen = likeliest
    for more in range(TRIES):
        u = uniforms(seeds, steps, tries + more)[:, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, u, right=True).clamp_(max=logits.shape[1] - 1)
        own = probabilities.gather(1, token)  # rounding may lead to an entry of no mass at all
        likelier = torch.where(probabilities > own, probabilities, 0.0).sum(1)
        chosen = torch.where(accepted, chosen, token[:, 0])
        accepted = accepted | ((likelier < top_p) & (own[:, 0] > 0))
    picked = (logits if temperature != 1.0 else probabilities).gather(1, chosen[:, None])[:, 0]
    logprob = picked.log() if temperature == 1.0 else picked - torch.logsumexp(logits, 1)
    return chosen, logprob, accepted


def uniforms(
    seeds: Int64[torch.Tensor, " row"],
    steps: Int64[torch.Tensor, " row"],
    tries: Int64[torch.Tensor, " row"],
) -> Float[torch.Tensor, " row"]:
    """Uniform numbers in [0, 1), 24 bits each, by splitmix64 of (seed, step, try); sums and products modulo 2^64."""
    x = seeds + (steps * 64 + tries + 1) * signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return _shifted(x, 40).float() * 2**-24


def signed(x: int) -> int:
    """The 64-bit integer of the same bits, as torch has it."""
    return (x + 2**63) % 2**64 - 2**63


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & (2 ** (64 - bits) - 1)
