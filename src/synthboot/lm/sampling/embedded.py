"""The embedded engine: continuous batching over rows of a preallocated key-value cache.

    refill   waiting requests -> prefill of groups of like length -> free rows
    advance  every row's token and position -> decoder -> logits -> draw -> every row's next token
    retire   rows that are done -> results; the rows are free again

    row 0   prompt prompt token token token end | prompt token token ...
    row 1   prompt token token token token token token end | (free until an eighth of all is)

All that a step reads and writes lies on the device, so that a GPU runs it as one recorded graph and
is seldom waited for. It decodes Llama and Qwen3 layouts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from synthboot.errors import SamplingError
from synthboot.lm import model as models
from synthboot.lm import pointer
from synthboot.lm.sampling.decoder import Cache, Decoder
from synthboot.lm.sampling.nucleus import TRIES, sample_top_p, signed
from synthboot.lm.sampling.protocol import Request, Result, Sampling, too_large

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_ROWS = 24
"""Rows decoded at the least, some of them empty.

With fewer, matmuls round differently, and a request's tokens would depend on how many others there
are.
"""

STRIDE = 16
"""Steps of a GPU between two looks at what is done; a row that is done early idles until then."""

SPAN = 256
"""On a GPU torch's attention goes over the cache up to a multiple of so many positions, each a
graph."""

_BATCH_SIZES = (32, 64, 128, 256, 512, 1_024, 2_048)


class EmbeddedSampler:
    """Continuous batching over so many rows of a fixed cache as a batch has.

    Memory: 2 x layers x batch x max_len x key/value width, twice that with a contrast.

    With a `contrast` w, and requests that say what they are `alone`, every token is decoded after
    both prompts, and drawn from logits + w x (logits - logits alone): what the prompt makes
    likelier becomes likelier still. Source: arXiv:2305.14739, context-aware decoding.

    Without a batch one is timed.

    With the weights of a `pointer`, and requests that have a `source`, every token is drawn from
    the mixture of the model with copies from there.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        end: int,
        how: Sampling,
        *,
        graphs: bool = True,
    ) -> None:
        self.agree = how.agree
        self.decoder = Decoder(model, how.dtype)
        device = self.decoder.device
        self.weights = None
        if how.weights is not None:
            self.weights = torch.tensor(how.weights, device=device)  # (match, part)
        self.absent = None
        if how.absent:
            self.absent = torch.tensor(how.absent, device=device)
        self.end = end
        self.temperature = how.temperature
        self.top_p = how.top_p
        self.contrast = how.contrast
        self.batch = how.batch
        self.graphs = graphs
        # a device that runs beside the host: to read the rows is to wait for it
        self.far = device.type != "cpu"

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order.

        Raises ValueError where a prompt is empty or shorter than what it is contrasted with,
        FloatingPointError where the model's logits are not numbers, SamplingError where a batch
        does not fit the device.
        """
        max_len = 1
        for request in requests:
            prompt_len = len(request.prompt)
            if not prompt_len:
                raise ValueError("a prompt needs at least one token")
            if prompt_len < len(request.alone):
                # its positions would lie beyond the cache
                raise ValueError("a prompt is at least as long as what it is contrasted with")
            max_len = max(max_len, prompt_len + request.max_tokens)
        try:
            if self.batch is None:
                self.batch = self.agree(partial(best_batch, self.decoder, max_len))
            state = ContinuousBatch(self, requests, max_len, self.batch)
            while state.waiting or state.live():
                state.refill()
                state.advance()
                state.retire()
        except torch.OutOfMemoryError:
            rows = max(LEAST_ROWS, min(self.batch or 0, len(requests)))
            raise SamplingError(too_large(self.decoder.device, rows, LEAST_ROWS)) from None
        return [result for result in state.results if result is not None]


def best_batch(decoder: Decoder, max_len: int) -> int:
    """How many rows to decode together: the fewest within 5 % of the most tokens per second.

    Timed by a few steps of each size at half of `max_len`, as far as a quarter of the memory that
    is free for this process goes.
    """
    budget = decoder.free_memory() // 4
    row_bytes = decoder.cache_bytes(1, max_len)
    most = budget // max(1, row_bytes)
    sizes = [size for size in _BATCH_SIZES if size <= most]
    if not sizes:
        sizes = [LEAST_ROWS]

    rates: dict[int, float] = {}
    best = 0.0
    for rows in sizes:
        try:
            rates[rows] = rows / _step_seconds(decoder, rows, max_len)
        except torch.OutOfMemoryError:
            if not rates:
                raise
            break  # another process on this GPU has taken what was free
        if rates[rows] < 1.05 * best:
            break  # larger batches gain no more, and each would cost its cache
        best = max(best, rates[rows])

    enough = 0.95 * max(rates.values())
    near = [rows for rows, rate in rates.items() if rate >= enough]
    return min(near)


def _step_seconds(decoder: Decoder, rows: int, max_len: int) -> float:
    """The time of one step of `rows` rows at half of `max_len`, the best of three."""
    cache = decoder.cache(rows, max_len)
    half = max_len // 2
    tokens = torch.full((rows,), 0, device=decoder.device)
    position = torch.full((rows,), half, device=decoder.device)

    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        logits = decoder.step(tokens, position, cache, half + 1)
        logits[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return min(seconds)


class _Rows:
    """The rows in flight as the device knows them, a tensor each.

    The token to decode and its position, how much earlier that is without what is conditioned on,
    the request's seed and limit, how many tokens were drawn so far, how often the next one was
    tried, whether the row is done and by its end token, the
    log-probability so far, the tokens drawn, and those that a pointer may copy.

    Tensors are changed in place, so that a step can be recorded once and replayed.
    """

    def __init__(
        self,
        rows: int,
        longest: int,
        source: int,
        device: torch.device,
    ) -> None:
        integers = torch.zeros(7, rows, dtype=torch.int64, device=device)
        self.token = integers[0]
        self.position = integers[1]
        self.seed = integers[2]
        self.limit = integers[3]
        self.count = integers[4]
        self.tries = integers[5]
        self.shift = integers[6]
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
        self.source = torch.full((rows, source), pointer.NO_TOKEN, device=device)

    def put(self, rows: Tensor, requests: Sequence[Request]) -> None:
        """Begin requests in these rows: the last token of a prompt is decoded first."""
        values = []
        for request in requests:
            prompt_len = len(request.prompt)
            row = (
                request.prompt[-1],
                prompt_len - 1,
                signed(request.seed),
                request.max_tokens,
                prompt_len - len(request.alone),
            )
            values.append(row)
        columns = torch.tensor(values).to(rows.device)  # (request, 5), in one copy to the device
        token, position, seed, limit, shift_back = columns.unbind(1)
        self.shift[rows] = shift_back
        self.token[rows] = token
        self.position[rows] = position
        self.seed[rows] = seed
        self.limit[rows] = limit
        for column in (self.count, self.tries, self.logprob, self.ended, self.done):
            column[rows] = 0
        if self.source.shape[1]:
            sources = self._sources(requests)
            self.source[rows] = sources.to(rows.device)

    def _sources(self, requests: Sequence[Request]) -> Tensor:
        """What each request may copy, filled up: (request, source)."""
        shape = (len(requests), self.source.shape[1])
        sources = np.full(shape, pointer.NO_TOKEN)
        for i, request in enumerate(requests):
            sources[i, : len(request.source)] = request.source
        return torch.from_numpy(sources)

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but these."""
        for name, column in vars(self).items():
            setattr(self, name, column[rows])

    def advance(self, logits: Tensor, owner: EmbeddedSampler) -> None:
        """Draw a token for each row that is not done.

        A row whose draw was rejected decodes its last token once more. There are no branches on
        what was drawn: they would wait for a GPU, and could not be recorded.
        """
        token, logprob, drawn = sample_top_p(
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
        at_limit = self.count >= self.limit
        self.done |= ends | (drawn & at_limit)
        self.token.copy_(torch.where(drawn, token, self.token))
        # a row that is done goes on at position 0 of its cache, which its next request overwrites
        self.position.add_(drawn)
        self.position.masked_fill_(self.done, 0)


class ContinuousBatch:
    """Which request each row decodes, which are waiting, and the results so far.

    On a GPU the rows run `STRIDE` steps before the host looks, each step one launch of a CUDA
    graph.
    """

    def __init__(
        self,
        owner: EmbeddedSampler,
        requests: Sequence[Request],
        max_len: int,
        batch: int,
    ) -> None:
        self.owner = owner
        self.requests = requests
        self.decoder = owner.decoder
        self.device = self.decoder.device
        self.max_len = max_len
        self.results: list[Result | None] = [None] * len(requests)

        # popped from the end, longest first: a group prefills prompts of like length, and equal
        # prompts stand together, so that they are read once
        def length_and_prompt(number: int) -> tuple[int, tuple[int, ...], int]:
            prompt = requests[number].prompt
            return len(prompt), prompt, number

        numbers = range(len(requests))
        self.waiting = sorted(numbers, key=length_and_prompt)

        rows = min(batch, len(requests))
        rows = max(LEAST_ROWS, rows)
        longest = 0
        copied = 0
        for request in requests:
            longest = max(longest, request.max_tokens)
            if owner.weights is not None:
                copied = max(copied, len(request.source))
        self.cache = self.decoder.cache(rows, max_len)
        # of the same rows without what they are conditioned on
        self.alone = None
        if owner.contrast and all(request.alone for request in requests):
            self.alone = self.decoder.cache(rows, max_len)
        self.rows = _Rows(rows, longest, copied, self.device)

        # what the host knows of each row without asking the device
        self.request = np.full(rows, -1)  # -1: the row is free
        self.max_position = np.zeros(rows, np.int64)  # the row's position is not beyond it

        # a CPU looks at no cost and pays for padding; a GPU waits for a look and pays for launches
        self.stride = STRIDE if owner.far else 1
        self.group = 256 if owner.far else 8
        self.graphs: dict[int, Any] = {}

    def live(self) -> bool:
        """Whether any row decodes a request."""
        return bool((self.request >= 0).any())

    def refill(self) -> None:
        """Give free rows new requests, once an eighth of the rows is free.

        With nothing waiting, free rows are given up once they are half of all.
        """
        is_free = self.request < 0
        free = np.flatnonzero(is_free)
        rows = len(self.request)
        enough = max(1, rows // 8)
        if self.waiting and len(free) >= enough:
            for start in range(0, len(free), self.group):
                group = free[start : start + self.group]
                group = group[: len(self.waiting)]
                if len(group):
                    with models.any_shapes():
                        self._prefill(group)
        elif not self.waiting and rows > LEAST_ROWS and len(free) >= rows // 2:
            live = np.flatnonzero(~is_free)
            lacking = max(0, LEAST_ROWS - len(live))
            kept = np.concatenate((live, free[:lacking]))
            self.keep(np.sort(kept))

    def _prefill(self, group: np.ndarray) -> None:
        """Put the next requests into free rows; a prompt that several share is read once."""
        numbers = [self.waiting.pop() for _ in group]
        chosen = [self.requests[number] for number in numbers]
        group_rows = group.tolist()

        # the row that reads each prompt: the first of those that want it. Backwards, so that the
        # first one overwrites the others
        reader: dict[tuple[int, ...], int] = {}
        wanted = list(zip(group_rows, chosen, strict=True))
        for row, request in reversed(wanted):
            reader[request.prompt] = row

        # a prompt's last token is not read here: the first step decodes it
        width = max(map(len, reader)) - 1
        if width:
            readers = self._index(list(reader.values()))
            tokens = self._tokens(list(reader), width)
            self.decoder.prefill(tokens, readers, self.cache)
            self._copy_prompts(group_rows, chosen, reader)
        if self.alone is not None:
            self._prefill_alone(self.alone, group_rows, chosen)

        self.rows.put(self._index(group), chosen)
        self.request[group] = numbers
        prompt_lens = np.array([len(request.prompt) for request in chosen])
        self.max_position[group] = prompt_lens - 1

    def _prefill_alone(
        self,
        cache: Cache,
        rows: list[int],
        requests: list[Request],
    ) -> None:
        """Fill these rows of the second cache; such prompts are too short to be worth sharing."""
        prompts = [request.alone for request in requests]
        width = max(map(len, prompts)) - 1
        if width:
            tokens = self._tokens(prompts, width)
            self.decoder.prefill(tokens, self._index(rows), cache)

    def _tokens(self, prompts: Sequence[tuple[int, ...]], width: int) -> Tensor:
        """All but the last token of each prompt, filled up: (prompt, width)."""
        tokens = np.zeros((len(prompts), width), np.int64)
        for i, prompt in enumerate(prompts):
            read = prompt[:-1]
            tokens[i, : len(read)] = read
        return torch.from_numpy(tokens).to(self.device)

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

    def keep(self, rows: np.ndarray) -> None:
        """Give up all rows but these, and with them their part of the cache."""
        index = self._index(rows)
        self.cache = _kept(self.cache, index)
        if self.alone is not None:
            self.alone = _kept(self.alone, index)
        self.rows.keep(index)
        self.request = self.request[rows]
        self.max_position = self.max_position[rows]
        # they were recorded over the tensors that are gone
        self.graphs.clear()

    def _index(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Row numbers as an index on the device."""
        numbers = np.asarray(rows, np.int64)
        return torch.as_tensor(numbers).to(self.device)

    def advance(self) -> None:
        """Take a stride: that many steps of all rows."""
        # attention looks no further into the cache than any row will be at the end of the stride
        furthest = int(self.max_position.max())
        span = min(furthest + self.stride, self.max_len)
        step: Callable[[], None] = partial(self._step, span)
        if self.owner.far:
            step = self._recorded(self._graph_span(span))

        for _ in range(self.stride):
            step()
        # rejected draws stay behind it, which costs a little attention and no look at the device
        self.max_position[self.request >= 0] += self.stride

    def _graph_span(self, span: int) -> int:
        """The span that a step is recorded for: every one needs a graph of its own."""
        if self.decoder.attend is not None:
            return self.max_len  # it looks no further than each row reaches
        rounded = -(-span // SPAN) * SPAN
        return min(rounded, self.max_len)

    def _step(self, span: int) -> None:
        logits = self.decoder.step(
            self.rows.token,
            self.rows.position,
            self.cache,
            span,
        )
        if self.alone is not None:
            # a row that is done stands at position 0 in both caches
            position = self.rows.position - self.rows.shift
            position.clamp_(min=0)
            alone = self.decoder.step(self.rows.token, position, self.alone, span)
            logits = torch.lerp(alone, logits, 1 + self.owner.contrast)
        if self.owner.weights is not None and self.rows.source.shape[1]:
            logits = pointer.mixed(
                logits,
                self.rows.source,
                self.rows.output,
                self.rows.count,
                self.owner.weights,
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
            result = Result(tokens, finish, logprobs[i])
            self.results[self.request[row]] = result
        self.request[rows] = -1
        self.max_position[rows] = 0


def _kept(cache: Cache, rows: Tensor) -> Cache:
    """These rows of a cache."""
    kept = []
    for keys, values in cache:
        kept.append((keys[rows], values[rows]))
    return kept
