"""Asking a server that speaks OpenAI's API: many requests under way at once, what fails tried again
by itself, what the server did finish kept meanwhile.

The server is not trusted: an answer has a limit in time and in size, redirects are not followed,
and what does not fit the request is an error rather than a result. The key goes to the host of the
address and nowhere else: proxies and passwords that the environment names are not used.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import json
import math
import os
import random
import ssl
import time
from asyncio import sleep
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from synthboot import config
from synthboot.errors import ConfigError, SamplingError, brief

LONGEST_WAIT = 60.0
"""Seconds between two tries at the most, whatever the server asks for, but for `APART`."""

APART = 0.25
"""The share by which a wait is longer, drawn anew: many parts would try again at one moment."""

_apart = random.Random()
"""Of its own, so that nothing that is drawn elsewhere depends on it."""

_CONNECT_SECONDS = 30.0

_TRANSIENT = {408, 409, 425, 429}
"""Status codes after which another try may do better, beside all that are the server's own fault
(5xx): what stands before a server has more of these than the standard (520 to 529)."""

_ERROR_BYTES = 1_000
"""Bytes of an error that are read."""

Answer = TypeVar("Answer")
"""What is read from the JSON of a server."""


class Refused(Exception):
    """Why an answer is not taken.

    Where `transient`, another try may bring a better one, after `wait` seconds if the server says
    so.
    """

    def __init__(
        self,
        reason: str,
        transient: bool = False,
        wait: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.transient = transient
        self.wait = wait


@dataclass(frozen=True)
class Asked(Generic[Answer]):
    """A request: its JSON, the bytes that the answer may have, and what reads the answer's JSON.

    `read` raises Refused for an answer that does not fit.
    """

    body: Mapping[str, Any]
    most_bytes: int
    read: Callable[[object], Answer]


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust, by the system's list, which takes longer to read than many an answer."""
    return ssl.create_default_context()


class Endpoint:
    """One address of a server, asked by as many requests at once as `server` allows.

    `setting` names the server in errors.
    """

    def __init__(self, server: config.Endpoint, path: str, setting: str, key: str) -> None:
        self.server = server
        self.setting = setting
        self._address = f"{server.url.rstrip('/')}/{path}"
        self._key = key

    def ask(
        self,
        asked: Sequence[Asked[Answer]],
        answered: Callable[[int, Answer], None] = lambda *_: None,
    ) -> list[Answer]:
        """One answer per request, in order; `answered` is told of each as it comes, by its number.

        Raises SamplingError where a request fails for good.
        """
        return asyncio.run(self._all(asked, answered))

    async def _all(
        self,
        asked: Sequence[Asked[Answer]],
        answered: Callable[[int, Answer], None],
    ) -> list[Answer]:
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
            verify=_certificates(),
            limits=httpx.Limits(max_connections=self.server.concurrency),
        )

        async def one(number: int, request: Asked[Answer]) -> Answer:
            async with free:
                answer = await self._one(client, request)
            answered(number, answer)
            return answer

        async with client:
            try:
                async with asyncio.TaskGroup() as group:  # the first that fails stops the others
                    tasks = [group.create_task(one(i, r)) for i, r in enumerate(asked)]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, client: httpx.AsyncClient, asked: Asked[Answer]) -> Answer:
        """The answer to a request, tried as often as `retries` allows."""
        for attempt in range(self.server.retries + 1):
            asked_for = 0.0  # seconds, by the server
            try:
                async with asyncio.timeout(self.server.timeout):
                    answer = await self._send(client, asked)
                return asked.read(answer)
            except Refused as refused:
                reason = str(refused)
                transient = refused.transient
                asked_for = refused.wait
            except TimeoutError:
                reason = f"no answer within {self.server.timeout:g} s"
                transient = True
            except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
                transient = _is_transient(error)
            if not transient or attempt == self.server.retries:
                break
            # twice as long after every try, and no less where the server says at once: all tries
            # would be over before it is well
            wait = max(2.0 ** min(attempt, 10), asked_for)
            await sleep(min(wait, LONGEST_WAIT) * _apart.uniform(1, 1 + APART))

        # some servers send the request back, key and all
        if self._key:
            reason = reason.replace(self._key, "[key]")
        raise SamplingError(
            f"{self.setting}: {self.server.url}: {brief(reason, 300)} (tried {attempt + 1} times); "
            f"what is done is kept: run again when the server is well"
        )

    async def _send(self, client: httpx.AsyncClient, asked: Asked[Answer]) -> object:
        """The JSON that the server answers with."""
        async with client.stream("POST", self._address, json=asked.body) as response:
            if response.is_redirect:
                raise Refused(
                    f"{response.status_code}: it sends on to another address, which is not followed"
                )
            good = response.status_code == httpx.codes.OK
            # read piece by piece, so that an answer without end is not read to the end
            answer = bytearray()
            async for piece in response.aiter_raw():
                answer += piece
                if len(answer) > (asked.most_bytes if good else _ERROR_BYTES):
                    break

        if not good:
            words = answer[:_ERROR_BYTES].decode(errors="replace")
            transient = response.is_server_error or response.status_code in _TRANSIENT
            wait = _seconds(response.headers.get("Retry-After", ""))
            raise Refused(f"{response.status_code} {words}", transient, wait)
        if len(answer) > asked.most_bytes:
            raise Refused(f"an answer of more than {asked.most_bytes:,} bytes")
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):  # half an answer, or something else's
            raise Refused("the answer is not JSON", transient=True) from None


def one_choice(answer: object) -> Mapping[str, Any]:
    """The one choice of an answer. Raises Refused where there is none, or more than one."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Refused('the answer has no "choices"; is it a completions server?', transient=True)
    if len(choices) > 1 or not isinstance(choices[0], dict):
        raise Refused(f"{len(choices):,} choices where one was asked for")
    return dict(choices[0])


def log_probability(value: object) -> float:
    """A number of the server's as a log-probability. Raises Refused for one that is none."""
    # a little above 0 by rounding; not-a-number fails both comparisons
    if type(value) not in (int, float) or not -1e6 < value < 1e-3:  # type: ignore[operator]
        raise Refused(f"{shown(value)} is not the logarithm of a probability")
    return float(value)  # type: ignore[arg-type]


def shown(value: object) -> str:
    """A value of the server's for an error, in a few words whatever it is."""
    text = f"a {type(value).__name__}"
    if isinstance(value, str | int | float | None):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def key(variable: str) -> str:
    """The key in a variable of the environment, empty where there is none.

    Raises ConfigError, which does not tell it, where a header cannot hold it.
    """
    found = os.environ.get(variable, "").strip()
    if not (found.isascii() and found.isprintable()):
        raise ConfigError(f"{variable}: holds characters that no key has; set it again")
    return found


def _is_transient(error: Exception) -> bool:
    """Whether another try could do better.

    A bad certificate or an address that cannot be stays as it is.
    """
    lasting = isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol)
    return not lasting and "CERTIFICATE_VERIFY_FAILED" not in str(error)


def _seconds(value: str) -> float:
    """How long a Retry-After asks for, in seconds from now; 0 where it does not say."""
    # a number of seconds, or a date
    try:
        return max(0.0, float(value)) if math.isfinite(float(value)) else 0.0
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    except (ValueError, OverflowError, OSError):  # no date, or one that no clock can show
        return 0.0
