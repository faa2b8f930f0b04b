"""What a completions server may say: right, nearly right, half, never ending; by a real server on this machine."""

import gzip
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from hypothesis import strategies as st

from synthboot import config
from synthboot.data import tokenizer as tokenizers
from synthboot.lm.sampling.client import ServerSampler
from synthboot.lm.sampling.protocol import Request
from tests.fuzz.fuzzer import Fault, Fuzzer
from tests.fuzz.mutations import Edit, changed, changes, edited, edits, once_in

MOST = 8  # tokens asked for; as text, encoded again, they may be up to three times as many
STATUS = [200] * 30 + [100, 201, 204, 301, 302, 307, 308, 400, 401, 403, 404, 408, 429, 500, 503, 599, 999]
HEADERS = [
    ("Retry-After", "1e9"),
    ("Retry-After", "-5"),
    ("Retry-After", "nan"),
    ("Retry-After", "Wed, 21 Oct 2099 07:28:00 GMT"),
    ("Content-Length", "5"),
    ("Content-Length", "99999"),
    ("Content-Length", "-1"),
    ("Content-Length", "x"),
    ("Transfer-Encoding", "chunked"),
    ("Content-Encoding", "gzip"),
    ("Content-Encoding", "br"),
    ("Location", "file:///etc/passwd"),
    ("Location", "http://localhost:{other}/v1/completions"),
    ("Content-Type", "text/html; charset=utf-16"),
    ("X", "y" * 70_000),
]
BODIES = ["answer"] * 30 + ["none", "drip", "huge", "bomb", "close"]


@dataclass(frozen=True)
class Answer:
    """One answer to be."""

    status: int
    headers: list[tuple[str, str]]
    body: str
    value: Any
    damage: list[Edit]
    retries: int


@st.composite
def inputs(draw: st.DrawFn) -> Answer:
    """An answer: mostly of the right shape, with a few nodes changed."""
    choice: dict[str, Any] = {"finish_reason": draw(st.sampled_from(["stop", "length"]))}
    choice["text"] = draw(st.one_of(st.just("the cat sat"), st.text(max_size=12), st.just("<|end|>"), st.just("a" * 200)))
    if draw(st.booleans()):
        ids = st.integers(0, 279) | st.sampled_from([0, 1, 280, -1, 2**40])
        choice["token_ids"] = draw(st.lists(ids, max_size=MOST + 1))
    if draw(st.booleans()):
        choice["logprobs"] = {"token_logprobs": draw(st.lists(st.floats(-20, 0) | st.none(), max_size=MOST))}
    value = {"choices": [choice], "id": "x", "usage": {"completion_tokens": 3}}
    if draw(st.booleans()):
        value = changed(value, draw(changes(2)))
    headers = draw(st.lists(st.sampled_from(HEADERS), max_size=1)) if draw(once_in(5)) else []
    status, body = draw(st.sampled_from(STATUS)), draw(st.sampled_from(BODIES))
    return Answer(status, headers, body, value, draw(edits(2)), draw(st.sampled_from([0, 0, 1])))


class Hostile(BaseHTTPRequestHandler):
    """Says what the server's `answer` is."""

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        state: Any = self.server
        state.reached.append((state.server_port, self.headers.get("Authorization")))
        answer: Answer = state.answer
        try:
            self._say(answer)
        except OSError:  # the client has had enough
            self.close_connection = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def _say(self, answer: Answer) -> None:
        state: Any = self.server
        data = edited(json.dumps(answer.value).encode("utf-8", "surrogatepass"), answer.damage)
        if answer.body == "bomb":
            data = gzip.compress(b"[" * 50_000_000, 1)
        if answer.body == "close":
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value.format(other=state.other))
        if answer.body == "bomb":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if answer.body == "drip":
            for _ in range(200):
                self.wfile.write(b" ")
                sleep(0.05)
        elif answer.body == "huge":
            for _ in range(4_000):
                self.wfile.write(b" " * 100_000)
        elif answer.body != "none":
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Any]:
    """A server on a port of this machine."""
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    made.daemon_threads = True
    made.reached, made.other = [], 0
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


@contextmanager
def fuzzer(place: Path) -> Iterator[Fuzzer[Answer]]:
    """One request answered by each: a result that a model may have sampled, or an error; the key goes nowhere else."""
    tokenizer = tokenizers.train(iter(["the cat sat on the mat and the dog on the log"] * 30), 280)
    tokenizer.save(place)
    waits: list[float] = []

    async def noted(seconds: float) -> None:
        waits.append(seconds)

    with serving() as server, serving() as elsewhere, pytest.MonkeyPatch.context() as patch:
        server.other = elsewhere.server_port
        elsewhere.answer = Answer(200, [], "answer", {"choices": [{"text": "elsewhere", "finish_reason": "stop"}]}, [], 0)
        patch.setenv("SYNTHBOOT_API_KEY", "secret")
        patch.setattr("synthboot.lm.endpoint.sleep", noted)

        def check(answer: Answer) -> None:
            server.answer = answer
            waits.clear()
            elsewhere.reached.clear()
            address = config.Server(
                url=f"http://127.0.0.1:{server.server_port}/v1", concurrency=1, retries=answer.retries, timeout=0.5
            )
            sampler = ServerSampler(place, tokenizer.end, config.Synthesize(sampler="server"), address)
            try:
                result = sampler.sample([Request((5, 6, 7), 1, MOST)])[0]
            finally:
                if elsewhere.reached:
                    raise Fault("another host is asked", str(elsewhere.reached))
                if not all(0 <= w <= 75 for w in waits):
                    raise Fault("a wait without an end", str(waits))
            sampled(result, tokenizer)

        yield Fuzzer("answers", inputs(), check, seconds=8.0)


def sampled(result: Any, tokenizer: tokenizers.Tokenizer) -> None:
    """Raise a Fault unless a model with this vocabulary may have sampled it."""
    tokens = result.tokens
    if not all(type(t) is int and 0 <= t < tokenizer.vocab_size for t in tokens):
        raise Fault("tokens outside the vocabulary", str(result))
    if tokenizer.end in tokens:
        raise Fault("an end inside a document", str(result))
    if len(tokens) > 3 * MOST or result.finish not in ("end", "length"):
        raise Fault("longer than asked for, or ended otherwise", str(result))
    if not math.isnan(result.logprob) and not -math.inf < result.logprob <= 0:
        raise Fault("no log-probability", str(result))
