"""Sampling by `transformers.generate`: for every layout that the embedded engine does not decode.

The library moves the model along, cache and all; what comes next is drawn here, by the embedded
engine's `sample_top_p`. Prompts of different lengths are not padded: a batch is read as far as its
shortest prompt goes, and then step by step, a row taking the next token of its prompt as long as
there is one:

    prompts          a b c d    e f        g h i
    read at once     a b        e f        g h
    step 1           c          draw       i
    step 2           d          draw       draw

So every row stands at the position that it would have alone, whatever the layout makes of positions
(learned ones, alibi, windows, states), and nothing beyond the longest row's limit is ever read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig

from synthboot.errors import SamplingError, brief
from synthboot.lm.sampling.decoder import DTYPES
from synthboot.lm.sampling.nucleus import TRIES, sample_top_p, signed
from synthboot.lm.sampling.protocol import Request, Result, Sampling, too_large

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersSampler:
    """The same contract as the embedded engine's, slower.

    A request's random numbers depend on its seed and step alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        end: int,
        how: Sampling,
    ) -> None:
        self.model = model.eval()
        self.end = end
        self.batch = how.batch or 32
        self.temperature = how.temperature
        self.top_p = how.top_p
        self.device = next(model.parameters()).device
        self.half = DTYPES[how.dtype] == torch.bfloat16
        self.absent = torch.tensor(how.absent, device=self.device) if how.absent else None
        # some layouts have no such setting, some have -1 in it: both go on for ever
        positions = getattr(model.config, "max_position_embeddings", None) or 0
        self.positions = max(0, positions) or math.inf
        # `generate` takes what it is not told from here: penalties, top-k, other end tokens that
        # the model came with
        model.generation_config = GenerationConfig()

        # not every layout's cache can be continued from: tried before anything is sampled
        self.cached = True
        if self._fault():
            self.cached = False  # slower: every step reads all that came before
            if fault := self._fault():
                kind = model.config.model_type
                raise SamplingError(
                    f"synthesize: a {kind} model cannot be sampled ({fault}); "
                    f"choose another model.init_from"
                )

    @torch.inference_mode()
    def _fault(self) -> str:
        """What is wrong with sampling step by step, in words; empty where nothing is.

        Text drawn step by step must have the log-probability that the model gives to it as a whole.
        """
        # prompts of two lengths, so that a row takes tokens of its prompt while the other draws
        requests = [Request(tuple(range(1, 2 + length)), length, 6) for length in (0, 2)]
        tolerance = 0.1 if self.half else 1e-3  # nats a token
        try:
            for request, result in zip(requests, self._together(requests), strict=True):
                difference = abs(self._logprob(request, result) - result.logprob)
                off = difference / (1 + len(result.tokens))
                if not off < tolerance:  # so that not-a-number is a fault too
                    return f"step by step it says other things than at once: {off:.2g} nats a token"
        # what layouts raise that do not get on with `generate`
        except (
            AttributeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            return f"{type(error).__name__}: {brief(error)}"
        return ""

    def _logprob(self, request: Request, result: Result) -> float:
        """The log-probability of a result by one pass over it and its prompt."""
        ids = [*request.prompt, *result.tokens]
        if result.finish == "end":
            ids.append(self.end)
        tokens = torch.tensor(ids).to(self.device)
        logits = self.model(input_ids=tokens[None, :-1], use_cache=False).logits[0].double()
        logprobs = logits.log_softmax(1).gather(1, tokens[1:, None])  # (token, 1)
        return float(logprobs[len(request.prompt) - 1 :].sum())

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order; a row stops where the model's positions end.

        Raises ValueError where a prompt is empty or has no position left after it,
        FloatingPointError where the model's logits are not numbers, SamplingError where a batch
        does not fit the device.
        """
        if any(not 0 < len(r.prompt) < self.positions for r in requests):
            raise ValueError(
                f"a prompt needs at least one token, "
                f"and fewer than the model's {self.positions} positions"
            )
        # prompts of like length together: what is beyond the shortest is read a token at a time
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        results: dict[int, Result] = {}
        for start in range(0, len(order), self.batch):
            numbers = order[start : start + self.batch]
            batch = [requests[number] for number in numbers]
            try:
                results.update(zip(numbers, self._together(batch), strict=True))
            except torch.OutOfMemoryError:
                raise SamplingError(too_large(self.device, len(batch))) from None
        return [results[number] for number in range(len(requests))]

    def _together(self, requests: list[Request]) -> list[Result]:
        """The results of one batch."""
        rows = _Rows(self, requests)
        shortest = min(len(r.prompt) for r in requests)
        generation = GenerationConfig(
            max_length=int(rows.stop.max()),
            pad_token_id=self.end,
            use_cache=self.cached,
        )
        precision = torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()
        with precision:
            tokens = self.model.generate(
                rows.prompts[:, :shortest],
                generation_config=generation,
                logits_processor=[rows.choose],
                stopping_criteria=[rows.finished],
            )
        return rows.results(tokens)


class _Rows:
    """What a batch draws.

    `generate` asks `choose` for the next token of each row and `finished` for the rows that are
    done.
    """

    def __init__(self, owner: TransformersSampler, requests: list[Request]) -> None:
        self.owner = owner
        self.requests = requests
        device = owner.device
        lengths = [len(r.prompt) for r in requests]
        longest = max(lengths)
        padded = []
        for request in requests:
            padding = [owner.end] * (longest - len(request.prompt))
            padded.append([*request.prompt, *padding])
        limits = [min(len(r.prompt) + r.max_tokens, owner.positions) for r in requests]

        self.prompts = torch.tensor(padded, device=device)  # (row, longest)
        self.begin = torch.tensor(lengths, device=device)
        self.stop = torch.tensor(limits, device=device)
        self.seeds = torch.tensor([signed(r.seed) for r in requests], device=device)
        self.done = torch.zeros(
            len(requests),
            dtype=torch.bool,
            device=device,
        )
        self.ended = self.done.clone()
        self.logprob = torch.zeros(
            len(requests),
            dtype=torch.float64,
            device=device,
        )

    def choose(self, so_far: Tensor, logits: Tensor) -> Tensor:
        """Logits that leave one token a row: its prompt's next, or a draw."""
        width = so_far.shape[1]
        # every row draws, those too that are still in their prompt: one call for all
        token, logprob = self._draw(logits, (width - self.begin).clamp(min=0))
        if width < self.prompts.shape[1]:
            token = torch.where(width < self.begin, self.prompts[:, width], token)

        drawing = (width >= self.begin) & ~self.done
        self.logprob += torch.where(drawing, logprob, 0.0)
        self.ended |= drawing & (token == self.owner.end)
        self.done |= self.ended | (width + 1 >= self.stop)
        # the library takes the likeliest token, of which this leaves no choice
        return torch.full_like(logits, -torch.inf).scatter_(
            1,
            token[:, None],
            0.0,
        )

    def finished(self, so_far: Tensor, _: object) -> Tensor:
        """Which rows are done."""
        return self.done

    def _draw(
        self,
        logits: Tensor,
        steps: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """A token per row and its log-probability, tried until all are accepted."""
        owner = self.owner
        shape = (owner.temperature, owner.top_p, owner.absent)
        tries = torch.zeros_like(steps)
        token, logprob, accepted = sample_top_p(logits, self.seeds, steps, tries, *shape)
        while not accepted.all():
            tries += TRIES
            again = sample_top_p(logits, self.seeds, steps, tries, *shape)
            token = torch.where(accepted, token, again[0])
            logprob = torch.where(accepted, logprob, again[1])
            accepted = accepted | again[2]
        return token, logprob

    def results(self, tokens: Tensor) -> list[Result]:
        """What the rows have drawn of `tokens`, prompts and all."""
        if self.logprob.isnan().any():
            raise FloatingPointError("the model's logits are not numbers")
        begins = self.begin.tolist()
        stops = self.stop.tolist()
        ends = self.ended.tolist()
        logprobs = self.logprob.tolist()
        results = []
        for i, row in enumerate(tokens.tolist()):
            drawn = row[begins[i] : stops[i]]
            if ends[i]:
                # a row that is done goes on until the last one is
                drawn = drawn[: drawn.index(self.owner.end)]
            finish: Literal["end", "length"] = "end" if ends[i] else "length"
            results.append(Result(tuple(drawn), finish, logprobs[i]))
        return results
