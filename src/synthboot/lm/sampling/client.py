"""Sampling by a server that speaks OpenAI's completions API: vLLM, SGLang, llama.cpp.

Prompts go as token ids. Results come as token ids where the server sends them (vLLM and SGLang:
`return_token_ids`), else as text that is encoded again. How a server is asked, and how little it is
trusted, is `lm/endpoint.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.lm.endpoint import Asked, Endpoint, Refused, key, log_probability, one_choice, shown
from synthboot.lm.sampling.protocol import Request, Result

_ANSWER_BYTES = 2**20
_TOKEN_BYTES = 2**12
"""Bytes that an answer may have, and more for each token of the request.

Ids, text and probabilities take 200 or so.
"""

_PLAIN = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What a server would otherwise take from the model's generation_config or its own defaults."""


class ServerSampler:
    """A completions endpoint as a sampler.

    `folder` holds the tokenizer of the model that the server runs.
    """

    def __init__(
        self,
        folder: Path,
        end: int,
        cfg: config.Synthesize,
        server: config.Server,
    ) -> None:
        self.end = end
        self.cfg = cfg
        self.server = server
        self._tokenizer = tokenizers.load(folder)
        self._endpoint = Endpoint(server, "completions", "engine.server", key("SYNTHBOOT_API_KEY"))

    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order.

        Raises SamplingError where a request fails for good.
        """
        return self._endpoint.ask([self._asked(request) for request in requests])

    def _asked(self, request: Request) -> Asked[Result]:
        body = {
            "model": self.server.model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": self.cfg.temperature,
            "top_p": self.cfg.top_p,
            "seed": request.seed & (2**31 - 1),  # what every one of these servers takes
            "logprobs": 0,
            "n": 1,
            "stop_token_ids": [self.end],
            "return_token_ids": True,
            "skip_special_tokens": False,
            **_PLAIN,
        }
        most = _ANSWER_BYTES + _TOKEN_BYTES * (len(request.prompt) + request.max_tokens)
        return Asked(body, most, partial(self._result, request))

    def _result(self, request: Request, answer: object) -> Result:
        """What an answer says. Raises Refused where it does not fit the request."""
        choice = one_choice(answer)
        finish = choice.get("finish_reason")
        if finish not in ("stop", "length"):
            raise Refused(
                f"finish_reason is {shown(finish)}, neither stop nor length",
                transient=True,
            )
        stopped = finish == "stop"

        ids = choice.get("token_ids")
        if ids is None:
            tokens = self._encoded(choice.get("text"), stopped, request.max_tokens)
            return Result(tokens, "end" if stopped else "length", _logprob(choice, None))
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise Refused("token_ids are not a list of whole numbers")
        vocab_size = self._tokenizer.vocab_size
        unknown = next((i for i in ids if not 0 <= i < vocab_size), None)
        if unknown is not None:
            raise Refused(
                f"token id {shown(unknown)} is not one of the {vocab_size:,} of the "
                f"synthesizer's tokenizer; does it run another model?"
            )
        if len(ids) > request.max_tokens:
            raise Refused(f"{len(ids):,} tokens where {request.max_tokens:,} were the most")

        # some servers send the end token along, some do not
        tokens = tuple(ids[:-1] if ids and ids[-1] == self.end else ids)
        if self.end in tokens:
            raise Refused(f"an end token (id {self.end}) inside a document; it has to stop there")
        # an end token as the last one that fits is an end, whatever the server calls it
        ended = stopped or len(tokens) < len(ids)
        return Result(
            tokens,
            "end" if ended else "length",
            _logprob(choice, len(ids)),
        )

    def _encoded(
        self,
        text: object,
        ended: bool,
        most: int,
    ) -> tuple[int, ...]:
        """The tokens of a text answer.

        About as many as were sampled, for text does not tell where they were.
        """
        if not isinstance(text, str):
            raise Refused('neither "token_ids" nor a "text"', transient=True)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused("its text holds halves of characters (surrogates)") from None
        if ended:  # some servers write out the token that they stopped at
            text = text.removesuffix(str(self._tokenizer.backend.id_to_token(self.end)))
        tokens = tuple(self._tokenizer.encode([text])[0])
        # not a few more: a sampled byte that is no character comes as one (U+FFFD) of three bytes.
        if len(tokens) > 3 * most:
            raise Refused(f"a text of {len(tokens):,} tokens where {most:,} were the most")
        return tokens


def _logprob(choice: Mapping[str, Any], tokens: int | None) -> float:
    """The sum of the tokens' log-probabilities; not a number where there is not one for each."""
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if values is None:
        return math.nan
    if not isinstance(values, list):
        values = [values]
    values = [log_probability(value) for value in values if value is not None]
    if not values or tokens not in (None, len(values)):
        return math.nan
    return math.fsum(values)
