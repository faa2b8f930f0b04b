"""Sampling by a server that speaks OpenAI's completions API: vLLM, SGLang, llama.cpp.

Prompts go as token ids. Results come as token ids where the server sends them (vLLM and SGLang:
`return_token_ids`), else as text that is encoded again. Many requests are under way at once; what
fails is tried again by itself, what the server did finish is kept meanwhile.

The server is not trusted: an answer has a limit in time and in size, redirects are not followed,
and what does not fit the request is an error rather than text of the corpus. The key goes to the
host in `engine.server.url` and nowhere else: proxies and passwords that the environment names are
not used.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import ssl
import time
from asyncio import sleep
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.errors import ConfigError, SamplingError
from synthboot.lm.sampling.protocol import Request, Result

LONGEST_WAIT = 60.0
"""Seconds between two tries at the most, whatever the server asks for."""

_CONNECT_SECONDS = 30.0

_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504}
"""Status codes after which another try may do better."""

_ERROR_BYTES = 1_000
"""Bytes of an error that are read."""

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


class _Refused(Exception):
    """Why an answer is not taken.

    Where `transient`, another try may bring a better one, after `wait` seconds if the server says
    so.
    """

    def __init__(
        self,
        reason: str,
        transient: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.transient = transient
        self.wait = wait


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
        self._address = f"{server.url.rstrip('/')}/completions"
        self._key = _key()

    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order.

        Raises SamplingError where a request fails for good.
        """
        return asyncio.run(self._all(requests))

    async def _all(self, requests: Sequence[Request]) -> list[Result]:
        free = asyncio.Semaphore(self.server.concurrency)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # nothing packed: a small answer could unpack to one of any size
        headers["Accept-Encoding"] = "identity"
        # well before the limit on the whole, which leaves a connection open that is half made
        connect = min(_CONNECT_SECONDS, self.server.timeout / 2)
        client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(self.server.timeout, connect=connect),
            follow_redirects=False,
            trust_env=False,
            verify=ssl.create_default_context(),
            limits=httpx.Limits(max_connections=self.server.concurrency),
        )
        async with client:
            try:
                async with asyncio.TaskGroup() as group:  # the first that fails stops the others
                    tasks = [group.create_task(self._one(client, free, r)) for r in requests]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(
        self,
        client: httpx.AsyncClient,
        free: asyncio.Semaphore,
        request: Request,
    ) -> Result:
        """The result of a request, tried as often as `engine.server.retries` allows."""
        async with free:
            for attempt in range(self.server.retries + 1):
                wait: float | None = None  # what the server asks for
                try:
                    async with asyncio.timeout(self.server.timeout):
                        answer = await self._ask(client, request)
                    return self._result(answer, request)
                except _Refused as refused:
                    reason = str(refused)
                    transient = refused.transient
                    wait = refused.wait
                except TimeoutError:
                    reason = f"no answer within {self.server.timeout:g} s"
                    transient = True
                except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    transient = _is_transient(error)
                if not transient or attempt == self.server.retries:
                    break
                if wait is None:
                    wait = 2.0 ** min(attempt, 10)  # twice as long after every try
                await sleep(min(wait, LONGEST_WAIT))

        # some servers send the request back, key and all
        if self._key:
            reason = reason.replace(self._key, "[key]")
        reason = " ".join(reason.split())[:300]
        raise SamplingError(
            f"engine.server: {self.server.url}: {reason} (tried {attempt + 1} times); "
            f"what is done is kept: run again when the server is well"
        )

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> object:
        """The JSON that the server answers with."""
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
        async with client.stream("POST", self._address, json=body) as response:
            if response.is_redirect:
                raise _Refused(
                    f"{response.status_code}: it sends on to another address, which is not followed"
                )
            good = response.status_code == httpx.codes.OK
            # read piece by piece, so that an answer without end is not read to the end
            answer = bytearray()
            async for piece in response.aiter_raw():
                answer += piece
                if len(answer) > (most if good else _ERROR_BYTES):
                    break

        if not good:
            words = answer[:_ERROR_BYTES].decode(errors="replace")
            transient = response.status_code in _TRANSIENT
            wait = _seconds(response.headers.get("Retry-After", ""))
            raise _Refused(f"{response.status_code} {words}", transient, wait)
        if len(answer) > most:
            raise _Refused(f"an answer of more than {most:,} bytes")
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):  # half an answer, or something else's
            raise _Refused("the answer is not JSON", transient=True) from None

    def _result(self, answer: object, request: Request) -> Result:
        """What an answer says. Raises _Refused where it does not fit the request."""
        choice = _choice(answer)
        finish = choice.get("finish_reason")
        if finish not in ("stop", "length"):
            raise _Refused(
                f"finish_reason is {_shown(finish)}, neither stop nor length",
                transient=True,
            )
        stopped = finish == "stop"

        ids = choice.get("token_ids")
        if ids is None:
            tokens = self._encoded(choice.get("text"), stopped, request.max_tokens)
            return Result(tokens, "end" if stopped else "length", _logprob(choice, None))
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise _Refused("token_ids are not a list of whole numbers")
        vocab_size = self._tokenizer.vocab_size
        unknown = next((i for i in ids if not 0 <= i < vocab_size), None)
        if unknown is not None:
            raise _Refused(
                f"token id {_shown(unknown)} is not one of the {vocab_size:,} of the "
                f"synthesizer's tokenizer; does it run another model?"
            )
        if len(ids) > request.max_tokens:
            raise _Refused(f"{len(ids):,} tokens where {request.max_tokens:,} were the most")

        # some servers send the end token along, some do not
        tokens = tuple(ids[:-1] if ids and ids[-1] == self.end else ids)
        if self.end in tokens:
            raise _Refused(f"an end token (id {self.end}) inside a document; it has to stop there")
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
            raise _Refused('neither "token_ids" nor a "text"', transient=True)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _Refused("its text holds halves of characters (surrogates)") from None
        if ended:  # some servers write out the token that they stopped at
            text = text.removesuffix(str(self._tokenizer.backend.id_to_token(self.end)))
        tokens = tuple(self._tokenizer.encode([text])[0])
        # not a few more: a sampled byte that is no character comes as one (U+FFFD) of three bytes.
        if len(tokens) > 3 * most:
            raise _Refused(f"a text of {len(tokens):,} tokens where {most:,} were the most")
        return tokens


def _choice(answer: object) -> Mapping[str, Any]:
    """The one choice of an answer. Raises _Refused where there is none, or more than one."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise _Refused('the answer has no "choices"; is it a completions server?', transient=True)
    if len(choices) > 1 or not isinstance(choices[0], dict):
        raise _Refused(f"{len(choices):,} choices where one was asked for")
    return dict(choices[0])


def _logprob(choice: Mapping[str, Any], tokens: int | None) -> float:
    """The sum of the tokens' log-probabilities; not a number where there is not one for each."""
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if values is None:
        return math.nan
    if not isinstance(values, list):
        values = [values]
    values = [value for value in values if value is not None]
    for value in values:
        # a little above 0 by rounding; not-a-number fails both comparisons
        if type(value) not in (int, float) or not -1e6 < value < 1e-3:
            raise _Refused(f"{_shown(value)} is not the logarithm of a probability")
    if not values or tokens not in (None, len(values)):
        return math.nan
    return math.fsum(values)


def _is_transient(error: Exception) -> bool:
    """Whether another try could do better.

    A bad certificate or an address that cannot be stays as it is.
    """
    lasting = isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol)
    return not lasting and "CERTIFICATE_VERIFY_FAILED" not in str(error)


def _seconds(value: str) -> float | None:
    """How long a Retry-After asks for, in seconds from now; None where it does not say."""
    # a number of seconds, or a date
    try:
        return max(0.0, float(value)) if math.isfinite(float(value)) else None
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, OverflowError, OSError):  # no date, or one that no clock can show
        return None


def _shown(value: object) -> str:
    """A value of the server's for an error, in a few words whatever it is."""
    text = f"a {type(value).__name__}"
    if isinstance(value, str | int | float | None):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _key() -> str:
    """The key for the server.

    Raises ConfigError, which does not tell it, where a header cannot hold it.
    """
    key = os.environ.get("SYNTHBOOT_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError("SYNTHBOOT_API_KEY: holds characters that no key has; set it again")
    return key
