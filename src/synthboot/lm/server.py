"""Sampling by a server that speaks OpenAI's completions API: vLLM, SGLang, llama.cpp.

Prompts go as token ids. Results come as token ids where the server sends them (vLLM and SGLang: `return_token_ids`), else as
text that is encoded again. Many requests are under way at once; what fails is tried again by itself, what the server did
finish is kept meanwhile.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.errors import SamplingError
from synthboot.lm.sample import Request, Result

_LATER = {408, 409, 425, 429, 500, 502, 503, 504}


class ServerSampler:
    """A completions endpoint as a sampler. `folder` holds the tokenizer of the model that the server runs."""

    def __init__(self, folder: Path, end: int, cfg: config.Synthesize) -> None:
        self.end, self.cfg, self.server = end, cfg, cfg.server
        self._tokenizer = tokenizers.load(folder)

    def sample(self, requests: Sequence[Request]) -> list[Result]:
        """One result per request, in order. Raises SamplingError where a request fails for good."""
        with ThreadPoolExecutor(self.server.concurrency) as pool:
            waiting = [pool.submit(self._one, r) for r in requests]
            try:
                return [w.result() for w in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _one(self, request: Request) -> Result:
        asked = {
            "model": self.server.model, "prompt": list(request.prompt), "max_tokens": request.max_tokens,
            "temperature": self.cfg.temperature, "top_p": self.cfg.top_p, "seed": request.seed & (2**31 - 1), "logprobs": 0,
            "stop_token_ids": [self.end], "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip
        body = json.dumps(asked).encode()
        for attempt in range(self.server.retries + 1):
            try:
                return self._result(self._post(body))
            except urllib.error.HTTPError as error:
                reason, later = f"{error.code} {error.read(300).decode(errors='replace')}", error.code in _LATER
                wait = _seconds(error.headers.get("Retry-After"), 2.0**attempt)
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:  # no connection, half an answer, another's
                reason, later, wait = f"{type(error).__name__}: {error}", True, 2.0**attempt
            if not later or attempt == self.server.retries:
                break
            time.sleep(min(wait, 60.0))
        raise SamplingError(
            f"synthesize.server: {self.server.url}: {' '.join(reason.split())[:300]} (tried {attempt + 1} times); what is done "
            f"is kept: run again when the server is well"
        )

    def _post(self, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("SYNTHBOOT_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.server.url.rstrip('/')}/completions", body, headers)
        with urllib.request.urlopen(request, timeout=self.server.timeout) as answer:
            return dict(json.loads(answer.read()))

    def _result(self, answer: dict[str, Any]) -> Result:
        choice = answer["choices"][0]
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = self._tokenizer.encode([choice["text"]])[0]
        ended = choice["finish_reason"] == "stop"
        if ended and tokens and tokens[-1] == self.end:
            tokens = tokens[:-1]
        known = [v for v in (choice.get("logprobs") or {}).get("token_logprobs") or [] if v is not None]
        return Result(tuple(tokens), "end" if ended else "length", float(sum(known)) if known else float("nan"))


def _seconds(value: str | None, otherwise: float) -> float:
    try:
        return float(value) if value is not None else otherwise
    except ValueError:
        return otherwise
