"""Sampling: the Sampler protocol and its embedded engine.

requests (prompt, seed, limit) -> results (tokens, finish reason, log-probability). The embedded
engine's loop, over rows of a preallocated key-value cache:

    refill   waiting requests -> prefill of groups of like length -> free rows
    advance  every row's token and position -> decoder -> logits -> draw -> every row's next token
    retire   rows that are done -> results; the rows are free again

Top-p is drawn without sorting: from the full softmax by inverse CDF, accepted if the mass of
strictly likelier tokens is below p, which gives exactly the truncated distribution. A request's
random numbers depend on its seed and position alone. All that a step reads and writes lies on the
device, so that a GPU runs it as one recorded graph and is seldom waited for.

It decodes Llama and Qwen3 layouts; other architectures go through `transformers.generate`
(`lm.generate`), slower but with the same contract. `lm.vllm` and `lm.server` hand the work to other
engines. Nothing but temperature and top-p shapes what is drawn, whatever generation settings a
model came with, and entries of a model's vocabulary that the tokenizer does not have (`absent`) are
never drawn.
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
from torch import Tensor

from synthboot import config, kernels
from synthboot.data import tokenizer as tokenizers
from synthboot.lm import model as models
from synthboot.lm.decode import Decoder

_NATIVE = ("qwen3", "llama")

LEAST_ROWS = 24
"""Rows decoded at the least, some of them empty.

With fewer, matmuls round differently, and a request's tokens would depend on how many others there
are.
"""

STRIDE = 16
"""Steps of a GPU between two looks at what is done; a row that is done early idles until then."""

SPAN = 256
"""On a GPU attention goes over the cache up to a multiple of so many positions, each a graph."""

TRIES = 2
"""Draws that one step may reject before the row waits for the next step."""

_LAST_TRY = 64
"""Tries after which the likeliest token is taken: the nucleus is that token, or hardly more."""

_BATCH_SIZES = (32, 64, 128, 256, 512, 1_024, 2_048)


@dataclass(frozen=True)
class Request:
    """A prompt to continue by at most `max_tokens`.

    Equal seeds give equal continuations of equal prompts.
    """

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Result:
    """A continuation, its end token left out.

    `logprob` is the sum over its tokens, the end token included, under the model at temperature 1
    and before truncation.
    """

    tokens: tuple[int, ...]
    finish: Literal["end", "length"]
    logprob: float


@runtime_checkable
class Sampler(Protocol):
    """Anything that continues prompts."""

    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order."""
        ...


def open_sampler(
    cfg: config.Synthesize,
    engine: config.Engine,
    folder: Path,
    end: int,
) -> Sampler:
    """The sampler that `synthesize.sampler` names, over the model in `folder`."""
    # imported where they are asked for: both need packages that may not be installed
    if cfg.sampler == "vllm":
        from synthboot.lm.vllm import VllmSampler

        return VllmSampler(folder, end, cfg, engine.sample_batch)
    if cfg.sampler == "server":
        from synthboot.lm.server import ServerSampler

        return ServerSampler(folder, end, cfg, engine.server)

    model = models.load(folder).to(models.device(engine.device))
    vocab_size = model.config.get_text_config().vocab_size
    return sampler(
        model,
        end,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        batch=engine.sample_batch,
        dtype=cfg.dtype,
        absent=tokenizers.load(folder).absent(vocab_size),
    )


def sampler(
    model: Any,
    end: int,
    *,
    temperature: float,
    top_p: float,
    batch: int | None = None,
    dtype: str = "auto",
    absent: Sequence[int] = (),
) -> Sampler:
    """The embedded engine where it knows the layout, else `transformers.generate`."""
    # imported late, since it draws by `draw` of this module
    from synthboot.lm.generate import TransformersSampler

    engine = EmbeddedSampler if _is_native(model.config) else TransformersSampler
    return engine(
        model,
        end,
        temperature=temperature,
        top_p=top_p,
        batch=batch,
        dtype=dtype,
        absent=absent,
    )


def _is_native(layout: Any) -> bool:
    """Whether the embedded engine knows all that this configuration asks for."""
    rope = getattr(layout, "rope_parameters", None) or {}
    layer_types = getattr(layout, "layer_types", None) or ()
    return (
        layout.model_type in _NATIVE
        and layout.hidden_act == "silu"
        and not layout.attention_bias
        and not getattr(layout, "mlp_bias", False)
        and rope.get("rope_type", "default") == "default"
        and "sliding_attention" not in layer_types
    )


class EmbeddedSampler:
    """Continuous batching over `batch` rows of a fixed cache.

    Memory: 2 x layers x batch x window x key/value width.
    """

    def __init__(
        self,
        model: Any,
        end: int,
        *,
        temperature: float,
        top_p: float,
        batch: int | None = None,
        dtype: str = "auto",
        graphs: bool = True,
        absent: Sequence[int] = (),
    ) -> None:
        self.decoder = Decoder(model, dtype)
        self.absent = torch.tensor(absent, device=self.decoder.device) if absent else None
        self.end = end
        self.temperature = temperature
        self.top_p = top_p
        self.batch = batch
        self.graphs = graphs
        # a device that runs beside the host: to read the rows is to wait for it
        self.far = self.decoder.device.type != "cpu"

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order.

        Raises ValueError where a prompt is empty, FloatingPointError where the model's logits are
        not numbers.
        """
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
        return [result for result in state.results if result is not None]


def best_batch(decoder: Decoder, window: int) -> int:
    """How many rows to decode together: the fewest within 5 % of the most tokens per second.

    Timed by a few steps of each size at half the window, as far as a quarter of the memory that is
    free for this process goes.
    """
    budget = decoder.free_memory() // 4
    most = budget // max(1, decoder.cache_bytes(1, window))
    sizes = [size for size in _BATCH_SIZES if size <= most] or [LEAST_ROWS]

    rates: dict[int, float] = {}
    best = 0.0
    for rows in sizes:
        rates[rows] = rows / _step_seconds(decoder, rows, window)
        if rates[rows] < 1.05 * best:
            break  # larger batches gain no more, and each would cost its cache
        best = max(best, rates[rows])

    enough = 0.95 * max(rates.values())
    return min(rows for rows, rate in rates.items() if rate >= enough)


def _step_seconds(decoder: Decoder, rows: int, window: int) -> float:
    """The time of one step of `rows` rows at half the window, the best of three."""
    cache = decoder.cache(rows, window)
    tokens = torch.full((rows,), 0, device=decoder.device)
    position = torch.full((rows,), window // 2, device=decoder.device)

    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        logits = decoder.step(tokens, position, cache, window // 2 + 1)
        logits[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return min(seconds)


class _Rows:
    """The rows in flight as the device knows them, a tensor each.

    The token to decode and its position, the request's seed and limit, how many tokens were drawn
    so far, how often the next one was tried, whether the row is done and by its end token, the
    log-probability so far, and the tokens drawn.

    Tensors are changed in place, so that a step can be recorded once and replayed.
    """

    def __init__(self, rows: int, longest: int, device: torch.device) -> None:
        integers = torch.zeros(6, rows, dtype=torch.int64, device=device)
        self.token, self.position, self.seed, self.limit, self.count, self.tries = integers
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.done = torch.ones_like(self.ended)
        self.logprob = torch.zeros(rows, dtype=torch.float64, device=device)
        # one more than any row gives: a row at its limit still writes, to a place that nobody reads
        self.output = torch.zeros(
            rows,
            longest + 1,
            dtype=torch.int64,
            device=device,
        )

    def put(self, rows: Tensor, requests: Sequence[Request]) -> None:
        """Begin requests in these rows: the last token of a prompt is decoded first."""
        values = [(r.prompt[-1], len(r.prompt) - 1, signed(r.seed), r.max_tokens) for r in requests]
        columns = torch.tensor(values).to(rows.device)  # (request, 4), in one copy to the device
        token, position, seed, limit = columns.unbind(1)
        self.token[rows] = token
        self.position[rows] = position
        self.seed[rows] = seed
        self.limit[rows] = limit
        for column in (self.count, self.tries, self.logprob, self.ended, self.done):
            column[rows] = 0

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but these."""
        for name, column in vars(self).items():
            setattr(self, name, column[rows])

    def advance(self, logits: Tensor, owner: EmbeddedSampler) -> None:
        """Draw a token for each row that is not done.

        A row whose draw was rejected decodes its last token once more. There are no branches on
        what was drawn: they would wait for a GPU, and could not be recorded.
        """
        token, logprob, drawn = draw(
            logits,
            self.seed,
            self.count,
            self.tries,
            owner.temperature,
            owner.top_p,
            owner.absent,
        )
        drawn = drawn & ~self.done
        ends = drawn & (token == owner.end)

        # what was not drawn is written too: it counts only once `count` says so
        self.output.scatter_(1, self.count[:, None], token[:, None])
        self.count += drawn & ~ends
        self.tries.add_(TRIES).masked_fill_(drawn, 0)
        self.logprob += torch.where(drawn, logprob, 0.0)

        self.ended |= ends
        self.done |= ends | (drawn & (self.count >= self.limit))
        self.token.copy_(torch.where(drawn, token, self.token))
        # a row that is done goes on at position 0 of its cache, which its next request overwrites
        self.position.add_(drawn).masked_fill_(self.done, 0)


class _State:
    """Which request each row decodes, which are waiting, and the results so far.

    On a GPU the rows run `STRIDE` steps before the host looks, each step one launch of a CUDA
    graph.
    """

    def __init__(
        self,
        owner: EmbeddedSampler,
        requests: Sequence[Request],
        window: int,
        batch: int,
    ) -> None:
        self.owner = owner
        self.requests = requests
        self.decoder = owner.decoder
        self.device = self.decoder.device
        self.window = window
        self.results: list[Result | None] = [None] * len(requests)

        # popped from the end, longest first: a group prefills prompts of like length, and equal
        # prompts stand together, so that they are read once
        def length_and_prompt(number: int) -> tuple[int, tuple[int, ...], int]:
            prompt = requests[number].prompt
            return len(prompt), prompt, number

        self.waiting = sorted(range(len(requests)), key=length_and_prompt)

        rows = max(LEAST_ROWS, min(batch, len(requests)))
        longest = max((r.max_tokens for r in requests), default=0)
        self.cache = self.decoder.cache(rows, window)
        self.rows = _Rows(rows, longest, self.device)

        # what the host knows of each row without asking the device
        self.request = np.full(rows, -1)  # -1: the row is free
        self.max_position = np.zeros(rows, np.int64)  # the row's position is not beyond it

        # a CPU looks at no cost and pays for padding; a GPU waits for a look and pays for launches
        self.stride = STRIDE if owner.far else 1
        self.group = 64 if owner.far else 8
        self.graphs: dict[int, Any] = {}

    def live(self) -> bool:
        return bool((self.request >= 0).any())

    def refill(self) -> None:
        """Give free rows new requests, once an eighth of the rows is free.

        With nothing waiting, free rows are given up once they are half of all.
        """
        free = np.flatnonzero(self.request < 0)
        rows = len(self.request)
        if self.waiting and len(free) >= max(1, rows // 8):
            for start in range(0, len(free), self.group):
                group = free[start : start + self.group]
                group = group[: len(self.waiting)]
                if len(group):
                    self._prefill(group)
        elif not self.waiting and rows > LEAST_ROWS and len(free) >= rows // 2:
            live = np.flatnonzero(self.request >= 0)
            spare = free[: max(0, LEAST_ROWS - len(live))]
            self._keep(np.sort(np.concatenate((live, spare))))

    def _prefill(self, group: np.ndarray) -> None:
        """Put the next requests into free rows; a prompt that several share is read once."""
        numbers = [self.waiting.pop() for _ in group]
        chosen = [self.requests[number] for number in numbers]
        group_rows = group.tolist()

        # the row that reads each prompt: the first of those that want it. Backwards, so that the
        # first one overwrites the others
        reader: dict[tuple[int, ...], int] = {}
        for row, request in zip(reversed(group_rows), reversed(chosen), strict=True):
            reader[request.prompt] = row

        # a prompt's last token is not read here: the first step decodes it
        width = max(map(len, reader)) - 1
        if width:
            tokens = np.zeros((len(reader), width), np.int64)
            for i, prompt in enumerate(reader):
                tokens[i, : len(prompt) - 1] = prompt[:-1]
            readers = self._index(list(reader.values()))
            self.decoder.prefill(
                torch.from_numpy(tokens).to(self.device),
                readers,
                self.cache,
            )
            self._copy_prompts(group_rows, chosen, reader)

        self.rows.put(self._index(group), chosen)
        self.request[group] = numbers
        self.max_position[group] = [len(request.prompt) - 1 for request in chosen]

    def _copy_prompts(
        self,
        rows: list[int],
        requests: list[Request],
        reader: dict[tuple[int, ...], int],
    ) -> None:
        """Copy the cache of each prompt's reader to the other rows with that prompt."""
        targets = []
        sources = []
        for row, request in zip(rows, requests, strict=True):
            source = reader[request.prompt]
            if source != row:
                targets.append(row)
                sources.append(source)
        if not targets:
            return

        to = self._index(targets)
        source_rows = self._index(sources)
        for keys, values in self.cache:
            keys[to] = keys[source_rows]
            values[to] = values[source_rows]

    def _keep(self, rows: np.ndarray) -> None:
        """Give up all rows but these, and with them their part of the cache."""
        index = self._index(rows)
        self.cache = [(keys[index], values[index]) for keys, values in self.cache]
        self.rows.keep(index)
        self.request = self.request[rows]
        self.max_position = self.max_position[rows]
        # they were recorded over the tensors that are gone
        self.graphs.clear()

    def _index(self, rows: Any) -> Tensor:
        """Row numbers as an index on the device."""
        return torch.as_tensor(np.asarray(rows, np.int64)).to(self.device)

    def advance(self) -> None:
        """Take a stride: that many steps of all rows."""
        # attention looks no further into the cache than any row will be at the end of the stride
        span = min(int(self.max_position.max()) + self.stride, self.window)
        step: Callable[[], None] = partial(self._step, span)
        if self.owner.far:
            # rounded up to a multiple of SPAN, since every span needs a graph of its own
            rounded = -(-span // SPAN) * SPAN
            step = self._recorded(min(rounded, self.window))

        for _ in range(self.stride):
            step()
        # rejected draws stay behind it, which costs a little attention and no look at the device
        self.max_position[self.request >= 0] += self.stride

    def _step(self, span: int) -> None:
        logits = self.decoder.step(
            self.rows.token,
            self.rows.position,
            self.cache,
            span,
        )
        self.rows.advance(logits, self.owner)

    def _recorded(self, span: int) -> Callable[[], None]:
        """A step as a CUDA graph; the first stride of a span runs plainly, the second records."""
        plain = partial(self._step, span)
        if not self.owner.graphs:
            return plain
        # a plain stride comes first because libraries set themselves up on their first call, which
        # a recording must not contain
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
        """Take the results of rows that are done, and free them."""
        done = self.rows.done.cpu().numpy()  # the one wait for the device in a stride
        rows = np.flatnonzero(done & (self.request >= 0))
        if not len(rows):
            return

        index = self._index(rows)
        outputs = self.rows.output[index].tolist()
        counts = self.rows.count[index].tolist()
        ends = self.rows.ended[index].tolist()
        logprobs = self.rows.logprob[index].tolist()
        for i, row in enumerate(rows.tolist()):
            if math.isnan(logprobs[i]):
                raise FloatingPointError("the model's logits are not numbers")
            tokens = tuple(outputs[i][: counts[i]])
            finish: Literal["end", "length"] = "end" if ends[i] else "length"
            self.results[self.request[row]] = Result(tokens, finish, logprobs[i])
        self.request[rows] = -1
        self.max_position[rows] = 0


def draw(
    logits: Float[Tensor, "row vocab"],
    seeds: Int64[Tensor, " row"],
    steps: Int64[Tensor, " row"],
    tries: Int64[Tensor, " row"],
    temperature: float,
    top_p: float,
    absent: Int64[Tensor, " entry"] | None = None,
) -> tuple[Int64[Tensor, " row"], Float[Tensor, " row"], Bool[Tensor, " row"]]:
    """A token per row, its log-probability at temperature 1, and whether it was accepted.

    Where it was not, call again with `tries` larger by `TRIES`. What is accepted has exactly the
    top-p distribution at `temperature` (0: the likeliest token), from uniforms that depend on the
    row's seed, step and try alone. Entries that are `absent` are never drawn; log-probabilities are
    the model's own, them included. Nothing here waits for a GPU.
    """
    logits = logits.float()
    if absent is not None:
        # drawn from what is left, and then brought back to the model's own normalisation
        masked = logits.index_fill(1, absent, -torch.inf)
        token, logprob, accepted = draw(masked, seeds, steps, tries, temperature, top_p)
        correction = masked.logsumexp(1) - logits.logsumexp(1)
        return token, logprob + correction, accepted

    if kernels.available(logits.device.type):
        drawn = kernels.draw(
            logits,
            seeds.numpy(),
            steps.numpy(),
            temperature,
            top_p,
        )
        token, logprob = map(torch.from_numpy, drawn)
        return token, logprob, torch.ones_like(token, dtype=torch.bool)

    likeliest = logits.argmax(1)
    if temperature == 0:
        logprob = torch.log_softmax(logits, 1).gather(1, likeliest[:, None])[:, 0]
        return likeliest, logprob, torch.ones_like(likeliest, dtype=torch.bool)

    probabilities = torch.softmax(logits / temperature, 1)
    cumulative = probabilities.cumsum(1)
    accepted = tries >= _LAST_TRY
    chosen = likeliest
    for more in range(TRIES):
        # inverse CDF; scaled by the last sum, which rounding leaves a little off 1: (row, 1)
        u = uniforms(seeds, steps, tries + more)[:, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, u, right=True).clamp_(max=logits.shape[1] - 1)
        own = probabilities.gather(1, token)  # (row, 1)
        likelier = torch.where(probabilities > own, probabilities, 0.0).sum(1)

        chosen = torch.where(accepted, chosen, token[:, 0])
        # rounding may lead to an entry of no mass at all
        accepted = accepted | ((likelier < top_p) & (own[:, 0] > 0))

    # at temperature 1 the softmax is there already
    if temperature == 1.0:
        logprob = probabilities.gather(1, chosen[:, None])[:, 0].log()
    else:
        picked = logits.gather(1, chosen[:, None])[:, 0]
        logprob = picked - torch.logsumexp(logits, 1)
    return chosen, logprob, accepted


def uniforms(
    seeds: Int64[Tensor, " row"],
    steps: Int64[Tensor, " row"],
    tries: Int64[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """Uniform numbers in [0, 1), 24 bits each, by splitmix64 of (seed, step, try).

    Sums and products are modulo 2^64.
    """
    x = seeds + (steps * 64 + tries + 1) * signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return _shifted(x, 40).float() * 2**-24


def signed(x: int) -> int:
    """The signed 64-bit integer of the same bits: torch has no unsigned arithmetic."""
    return (x + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right, where torch's own fills up with the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
