"""Sampling by `transformers.generate`: the Sampler protocol for every layout that the embedded engine does not decode.

The library moves the model along, cache and all; what comes next is drawn here, by the embedded engine's `draw`. Prompts of
different lengths are not padded: a batch is read as far as its shortest prompt goes, and then step by step, a row taking the
next token of its prompt as long as there is one. So every row stands at the position that it would have alone, whatever the
layout makes of positions (learned ones, alibi, windows, states), and nothing beyond the longest row's limit is ever read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig

from synthboot.errors import SamplingError
from synthboot.lm.decode import DTYPES
from synthboot.lm.sample import TRIES, Request, Result, draw, signed


class TransformersSampler:
    """The same contract as the embedded engine's, slower. A request's random numbers depend on its seed and step alone."""

    def __init__(
        self, model: Any, end: int, *, temperature: float, top_p: float, batch: int | None = None, dtype: str = "auto",
        absent: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.model, self.end, self.batch = model.eval(), end, batch or 32
        self.temperature, self.top_p = temperature, top_p
        self.device = next(model.parameters()).device
        self.half = DTYPES[dtype] == torch.bfloat16
        self.absent = torch.tensor(absent, device=self.device) if absent else None
        self.positions = (
            max(0, getattr(model.config, "max_position_embeddings", None) or 0) or math.inf
        )
        # `generate` takes what it is not told from here: penalties, top-k, other end tokens that the model came with
        model.generation_config = GenerationConfig()
        self.cached = True
        if self._fault():
            self.cached = False  # slower: every step reads all that came before
            if fault := self._fault():
                kind = model.config.model_type
                raise SamplingError(
                    f"synthesize: a {kind} model cannot be sampled ({fault}); choose another model.init_from"
                )

    @torch.inference_mode()
    def _fault(self) -> str:
        """What is wrong where text drawn step by step does not have the log-probability that the model gives to it whole."""
        asked = [Request(tuple(range(1, 2 + length)), length, 6) for length in (0, 2)]
        try:
            for request, result in zip(asked, self._together(asked), strict=True):
                off = abs(self._whole(request, result) - result.logprob) / (1 + len(result.tokens))
                if not off < (0.1 if self.half else 1e-3):
                    return f"step by step it says other things than at once: {off:.2g} nats a token"
        except (
            AttributeError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return ""

    def _whole(self, request: Request, result: Result) -> float:
        tokens = torch.tensor(
            [*request.prompt, *result.tokens, *([self.end] if result.finish == "end" else [])]
        )
        tokens = tokens.to(self.device)
        logits = self.model(input_ids=tokens[None, :-1], use_cache=False).logits[0].double()
        scores = logits.log_softmax(1).gather(1, tokens[1:, None])
        return float(scores[len(request.prompt) - 1 :].sum())

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order; a row stops where the model's positions end. Raises ValueError where a prompt is
        empty or has no position left after it, FloatingPointError where the model's logits are not numbers."""
        if any(not 0 < len(r.prompt) < self.positions for r in requests):
            raise ValueError(
                f"a prompt needs at least one token, and fewer than the model's {self.positions} positions"
            )
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        results: dict[int, Result] = {}
        for start in range(0, len(order), self.batch):
            numbers = order[start : start + self.batch]
            results.update(
                zip(numbers, self._together([requests[i] for i in numbers]), strict=True)
            )
        return [results[i] for i in range(len(requests))]

    def _together(self, requests: list[Request]) -> list[Result]:
        rows = _Rows(self, requests)
        shortest = min(len(r.prompt) for r in requests)
        longest = int(rows.stop.max())
        half = torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext()
        with half:
            tokens = self.model.generate(
                rows.prompts[:, :shortest],
                generation_config=GenerationConfig(max_length=longest, pad_token_id=self.end, use_cache=self.cached),
                logits_processor=[rows.choose], stopping_criteria=[rows.finished],
            )  # fmt: skip
        return rows.results(tokens)


class _Rows:
    """What a batch draws: `generate` asks `choose` for the next token of each row and `finished` for the rows that are done."""

    def __init__(self, owner: TransformersSampler, requests: list[Request]) -> None:
        self.owner, self.requests = owner, requests
        longest = max(len(r.prompt) for r in requests)
        padded = [[*r.prompt, *[owner.end] * (longest - len(r.prompt))] for r in requests]
        self.prompts = torch.tensor(padded, device=owner.device)
        self.begin = torch.tensor([len(r.prompt) for r in requests], device=owner.device)
        limits = [min(len(r.prompt) + r.max_tokens, owner.positions) for r in requests]
        self.stop = torch.tensor(limits, device=owner.device)
        self.seeds = torch.tensor([signed(r.seed) for r in requests], device=owner.device)
        self.done = torch.zeros(len(requests), dtype=torch.bool, device=owner.device)
        self.ended = self.done.clone()
        self.logprob = torch.zeros(len(requests), dtype=torch.float64, device=owner.device)

    def choose(self, so_far: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Logits that leave one token a row: its prompt's next, or a draw."""
        width = so_far.shape[1]
        token, logprob = self._drawn(logits, (width - self.begin).clamp(min=0))
        if width < self.prompts.shape[1]:
            token = torch.where(width < self.begin, self.prompts[:, width], token)
        drawing = (width >= self.begin) & ~self.done
        self.logprob += torch.where(drawing, logprob, 0.0)
        self.ended |= drawing & (token == self.owner.end)
        self.done |= self.ended | (width + 1 >= self.stop)
        return torch.full_like(logits, -torch.inf).scatter_(1, token[:, None], 0.0)

    def finished(self, so_far: torch.Tensor, _: Any) -> torch.Tensor:
        """Which rows are done."""
        return self.done

    def _drawn(
        self, logits: torch.Tensor, steps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        owner, tries = self.owner, torch.zeros_like(steps)
        token, logprob, accepted = draw(
            logits, self.seeds, steps, tries, owner.temperature, owner.top_p, owner.absent
        )
        while not accepted.all():
            tries += TRIES
            more = draw(
                logits, self.seeds, steps, tries, owner.temperature, owner.top_p, owner.absent
            )
            token, logprob = (
                torch.where(accepted, token, more[0]),
                torch.where(accepted, logprob, more[1]),
            )
            accepted = accepted | more[2]
        return token, logprob

    def results(self, tokens: torch.Tensor) -> list[Result]:
        """What the rows have drawn of `tokens`, prompts and all."""
        if self.logprob.isnan().any():
            raise FloatingPointError("the model's logits are not numbers")
        columns = [c.tolist() for c in (tokens, self.begin, self.stop, self.ended, self.logprob)]
        found = []
        for row, begin, stop, ended, logprob in zip(*columns, strict=True):
            drawn = row[begin:stop]
            if ended:
                drawn = drawn[: drawn.index(self.owner.end)]
            found.append(Result(tuple(drawn), "end" if ended else "length", logprob))
        return found
