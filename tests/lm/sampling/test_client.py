"""A completions server that is broken or hostile: every answer ends in time, as a result or as one line that says why."""

import json
import math
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthboot import config
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import ConfigError, SamplingError
from synthboot.lm import model as models
from synthboot.lm.endpoint import APART, LONGEST_WAIT
from synthboot.lm.sampling.client import ServerSampler
from synthboot.lm.sampling.protocol import Request, Result
from tests.lm.conftest import small_model

ASKED = [Request((5, 6, 7), 1, 8)]
TIMEOUT = 0.4  # where it is what ends an answer
KEY = "sk-a-secret-of-some-length"


class Hostile:
    """A server that answers each request with the bytes, or by the function, that it was told; the last one for ever."""

    def __init__(self, answers: list[bytes | Callable[[socket.socket], None]], host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, 0), family=family)
        self.port = self.listener.getsockname()[1]
        self.answers, self.seen = answers, list[bytes]()
        self.wrap: Callable[[socket.socket], socket.socket] = lambda s: s
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection, self.wrap(connection) as spoken:
                spoken.settimeout(5)
                said = b""
                while b"\r\n\r\n" not in said or len(said.partition(b"\r\n\r\n")[2]) < _length(said):
                    piece = spoken.recv(2**16)
                    if not piece:
                        return
                    said += piece
                answer = self.answers[min(len(self.seen), len(self.answers) - 1)]
                self.seen.append(said)
                spoken.sendall(answer) if isinstance(answer, bytes) else answer(spoken)
        except OSError:
            pass  # the client has had enough

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def _length(said: bytes) -> int:
    head = said.partition(b"\r\n\r\n")[0].lower()
    return int(head.partition(b"content-length:")[2].split()[0])


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def said(**choice: Any) -> bytes:
    """An answer of one choice, right but for what is given."""
    right = {"token_ids": [5, 6, 0], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0, -2.0, -0.5]}}
    return http(json.dumps({"choices": [right | choice]}).encode())


GOOD = said()


def drip(first: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    """Bytes without end, each well within any time limit for a single one."""

    def send(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(piece)
            time.sleep(TIMEOUT / 20)

    return send


def flood(first: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(b" " * 2**16)

    return send


def silence(connection: socket.socket) -> None:
    connection.recv(1)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

FAULTS: dict[str, tuple[bytes | Callable[[socket.socket], None], str, int]] = {
    # name: what it does, what the error says, how often it is asked
    "says nothing": (silence, "no answer within 0.4 s|ReadTimeout", 2),
    "drips its head": (drip(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"), "no answer within 0.4 s", 2),
    "heads without end": (drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), "no answer within 0.4 s", 2),
    "goes on being about to": (drip(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), "no answer within 0.4 s", 2),
    "drips its body": (drip(CHUNKED, b"1\r\n \r\n"), "no answer within 0.4 s", 2),
    "drips a long body": (drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" "), "no answer within", 2),
    "floods": (flood(b"HTTP/1.1 200 OK\r\n\r\n"), r"an answer of more than 1,\d+,\d+ bytes", 1),
    "a huge head": (flood(b"HTTP/1.1 200 OK\r\nX-A: "), "RemoteProtocolError", 2),
    "an error without end": (flood(b"HTTP/1.1 500 Oh\r\n\r\n"), "500", 2),
    "half an answer": (GOOD[:-20], "RemoteProtocolError", 2),
    "hangs up": (b"", "RemoteProtocolError|ReadError", 2),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "RemoteProtocolError", 2),
    "not JSON": (http(b"<html>"), "not JSON", 2),
    "nested": (http(b"[" * 100_000), "not JSON", 2),
    "a long number": (http(b"1" * 100_000), "not JSON", 2),
    "packed": (http(b"\x1f\x8b" + b"a" * 50, "200 OK", "Content-Encoding: gzip"), "not JSON", 2),
    "nothing": (http(b"", "204 No Content"), "204", 1),
    "redirects": (http(b"", "307 Go", "Location: http://127.0.0.1:9/"), "307: it sends on to another address", 1),
    "redirects to a file": (http(b"", "302 Go", "Location: file:///etc/passwd"), "302: it sends on", 1),
    "refuses and tells the key": (http(KEY.encode(), "401 No"), r"401 \[key\]", 1),
    "lines and escapes": (http(b"a\nb\r\n\nc", "400 No"), "400 a b c", 1),
    "no object": (http(b"[1]"), 'no "choices"', 2),
    "an error with status 200": (http(b'{"error": {"message": "busy"}}'), 'no "choices"', 2),
    "no choice": (http(b'{"choices": []}'), 'no "choices"', 2),
    "two choices": (http(b'{"choices": [{}, {}]}'), "2 choices where one was asked for", 1),
    "a choice of null": (http(b'{"choices": [null]}'), "1 choices where", 1),
    "aborted": (said(finish_reason="abort"), "finish_reason is 'abort'", 2),
    "no reason": (said(finish_reason=None), "finish_reason is None", 2),
    "a list for a reason": (said(finish_reason=[[]]), "finish_reason is a list", 2),
    "another vocabulary": (said(token_ids=[5, 278]), "token id 278 is not one of the 278", 1),
    "a negative id": (said(token_ids=[-1]), "token id -1 is not", 1),
    "an id beyond any": (said(token_ids=[10**30]), "token id 1000+ is not", 1),
    "ids that are truths": (said(token_ids=[True]), "not a list of whole numbers", 1),
    "ids that are fractions": (said(token_ids=[5.0]), "not a list of whole numbers", 1),
    "ids that are text": (said(token_ids="5"), "not a list of whole numbers", 1),
    "ids that are a mapping": (said(token_ids={"5": 6}), "not a list of whole numbers", 1),
    "an end inside": (said(token_ids=[5, 0, 6]), "an end token .id 0. inside a document", 1),
    "two ends": (said(token_ids=[5, 0, 0]), "an end token .id 0. inside a document", 1),
    "too long": (said(token_ids=[5] * 9, finish_reason="length"), "9 tokens where 8 were the most", 1),
    "no logarithm": (said(logprobs={"token_logprobs": [-1.0, math.nan, -1.0]}), "nan is not the logarithm", 1),
    "without a bottom": (said(logprobs={"token_logprobs": [-math.inf]}), "-inf is not the logarithm", 1),
    "surer than sure": (said(logprobs={"token_logprobs": [3.0]}), "3.0 is not the logarithm", 1),
    "beyond floats": (said(logprobs={"token_logprobs": [-(10**400)]}), "is not the logarithm", 1),
    "text for a logarithm": (said(logprobs={"token_logprobs": "abc"}), "'abc' is not the logarithm", 1),
    "neither ids nor text": (said(token_ids=None), 'neither "token_ids" nor a "text"', 2),
    "a number for text": (said(token_ids=None, text=5), 'neither "token_ids" nor a "text"', 2),
    "half a character": (said(token_ids=None, text="a \ud800"), "halves of characters", 1),
    "a long text": (said(token_ids=None, text="a z q " * 50), r"a text of \d+ tokens where 8 were the most", 1),
}


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    models.save(small_model(), tmp_path / "model", tokenizer)
    return tmp_path / "model"


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., tuple[ServerSampler, Hostile]]]:
    """Starts a server and a sampler that asks it."""
    servers: list[Hostile] = []

    def make(*answers: Any, host: str = "127.0.0.1", scheme: str = "http", **more: Any) -> tuple[ServerSampler, Hostile]:
        server = Hostile(list(answers), host)
        servers.append(server)
        name = f"[{host}]" if ":" in host else host
        place = {"url": f"{scheme}://{name}:{server.port}/v1", "retries": 1, "timeout": 30, **more}
        cfg = config.Synthesize(sampler="server")
        return ServerSampler(folder, 0, cfg, config.Server(**place)), server

    yield make
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited between two tries, without waiting for it."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("synthboot.lm.endpoint.sleep", sleep)
    monkeypatch.setenv("SYNTHBOOT_API_KEY", KEY)
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_ends_in_time_in_one_line_that_says_what_it_was(start: Any, name: str) -> None:
    answer, message, tries = FAULTS[name]
    limit = TIMEOUT if "no answer" in message else 30
    sampler, server = start(answer, timeout=limit)
    begun = time.monotonic()
    with pytest.raises(SamplingError, match=rf"(?s)127\.0\.0\.1:\d+/v1: .*({message}).*tried {tries} times") as error:
        sampler.sample(ASKED)
    assert time.monotonic() - begun < 5
    assert len(server.seen) == tries
    assert str(error.value).isprintable()
    assert KEY not in str(error.value)


def test_what_a_right_answer_says(start: Any) -> None:
    for answer, expected in [
        (GOOD, Result((5, 6), "end", -3.5)),
        (said(token_ids=[5, 6], finish_reason="stop", logprobs={"token_logprobs": [-1, -2]}), Result((5, 6), "end", -3.0)),
        (
            said(token_ids=[5] * 7 + [0], finish_reason="length", logprobs={"token_logprobs": [-1] * 8}),
            Result((5,) * 7, "end", -8.0),
        ),  # the last token that it might write was the end
        (
            said(token_ids=[5] * 8, finish_reason="length", logprobs={"token_logprobs": [-1] * 8}),
            Result((5,) * 8, "length", -8.0),
        ),
    ]:
        assert start(answer)[0].sample(ASKED) == [expected]
    for logprobs in (None, {}, {"token_logprobs": [-1.0]}, {"token_logprobs": []}, {"content": []}):  # one for each, or none
        [result] = start(said(logprobs=logprobs))[0].sample(ASKED)
        assert result.tokens == (5, 6)
        assert math.isnan(result.logprob)


def test_text_is_encoded_without_the_end_that_some_servers_spell(start: Any, tokenizer: Tokenizer) -> None:
    text = "the cat on the"
    [whole] = start(said(token_ids=None, text=text))[0].sample(ASKED)
    assert (tokenizer.decode(whole.tokens), whole.finish) == (text, "end")
    [spelled] = start(said(token_ids=None, text=text + "<|end|>"))[0].sample(ASKED)
    assert spelled.tokens == whole.tokens
    [more] = start(said(token_ids=None, text="q" * 12, finish_reason="length"))[0].sample(ASKED)
    assert (len(more.tokens), more.finish) == (12, "length")


def test_one_fault_is_mended_by_another_try(start: Any) -> None:
    busy = [http(b"", status) for status in ("503 Busy", "524 A Timeout Occurred", "529 Overloaded")]
    for fault in (*busy, b"", GOOD[:-20], http(b"<html>"), said(finish_reason="abort")):
        sampler, server = start(fault, GOOD)
        assert sampler.sample(ASKED)[0].tokens == (5, 6)
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("0", 1, 1),
        ("7", 7, 7),
        ("0.5", 1, 1),
        ("-5", 1, 1),
        ("1e12", LONGEST_WAIT, LONGEST_WAIT),
        ("nan", 1, 1),
        ("inf", 1, 1),
        ("soon", 1, 1),
        ("", 1, 1),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1, 1),
        ("Wed, 21 Oct 9015 07:28:00 GMT", LONGEST_WAIT, LONGEST_WAIT),
        ("Mon, 32 Foo 99999 99:99:99 GMT", 1, 1),
        ("Thu, 01 Jan 0001 00:00:00", 1, 1),
    ],
)
def test_retry_after_is_kept_within_reason(start: Any, waits: list[float], asked: str, least: float, most: float) -> None:
    start(http(b"", "429 Busy", f"Retry-After: {asked}"), GOOD)[0].sample(ASKED)
    [waited] = waits
    assert least <= waited <= most * (1 + APART)


def test_waits_grow_and_stay_within_reason(start: Any, waits: list[float]) -> None:
    with pytest.raises(SamplingError):
        start(http(b"", "503 Busy"), retries=20)[0].sample(ASKED)
    for waited, least in zip(waits, [1, 2, 4, 8, 16, 32, *[LONGEST_WAIT] * 14], strict=True):
        assert least <= waited <= least * (1 + APART)
    assert len(set(waits)) == len(waits)  # not all parts at one moment


def test_a_server_has_minutes_to_come_back(start: Any, waits: list[float]) -> None:
    with pytest.raises(SamplingError):
        start(http(b"", "503 Busy"), retries=config.Server().retries)[0].sample(ASKED)
    assert 300 < sum(waits) < 400


def test_a_server_that_says_at_once_every_time_is_given_time(start: Any, waits: list[float]) -> None:
    with pytest.raises(SamplingError):
        start(http(b"", "429 Busy", "Retry-After: 0"), retries=3)[0].sample(ASKED)
    assert all(least <= waited for waited, least in zip(waits, (1, 2, 4), strict=True))


def test_the_key_goes_to_the_host_of_the_address_alone(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = start(GOOD)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{other.port}")
    place = f"Location: http://127.0.0.1:{other.port}/v1/completions"
    for status in ("301 Go", "302 Go", "303 Go", "307 Go", "308 Go"):
        sampler, server = start(http(b"", status, place))
        with pytest.raises(SamplingError, match="sends on to another address, which is not followed"):
            sampler.sample(ASKED)
        assert KEY.encode() in server.seen[0]
    assert not other.seen


@pytest.mark.parametrize("key", ["sk-\N{LATIN SMALL LETTER E WITH ACUTE}", "sk-a\r\nX-Admin: yes", "sk-\x1b[2J"])
def test_a_key_that_no_header_holds_is_an_error_that_does_not_tell_it(
    start: Any, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("SYNTHBOOT_API_KEY", key)
    with pytest.raises(ConfigError, match=r"SYNTHBOOT_API_KEY: holds characters") as error:
        start(GOOD)
    assert "sk-" not in str(error.value)


def test_a_certificate_that_nobody_vouches_for_is_an_error_in_one_line(start: Any, tmp_path: Path) -> None:
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run([*made, *name, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    sampler, server = start(GOOD, scheme="https")
    server.wrap = lambda connection: context.wrap_socket(connection, server_side=True)
    with pytest.raises(SamplingError, match=r"CERTIFICATE_VERIFY_FAILED.*\(tried 1 times\)"):
        sampler.sample(ASKED)
    assert not server.seen
    sampler, _ = start(GOOD, scheme="https", timeout=TIMEOUT)  # which it does not speak
    with pytest.raises(SamplingError, match=r"ConnectError|no answer|ReadError|ConnectTimeout"):
        sampler.sample(ASKED)


def test_an_address_of_the_sixth_version_of_ip(start: Any) -> None:
    try:
        sampler, _ = start(GOOD, host="::1")
    except OSError:
        pytest.skip("this machine has no ::1")
    assert sampler.sample(ASKED)[0].tokens == (5, 6)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/v1",
        "host:8000/v1",
        "//host/v1",
        "",
        "http://",
        "http:///v1",
        "http://host:99999/v1",
        "http://host:0/v1",
        "http://host:x/v1",
        "http://[::1/v1",
        "http://user:pass@host/v1",
        "http://user@host/v1",
        "https://:pass@host/v1",
        "http://host/v1?key=pass",
        "http://host/v1#pass",
        "http://host/v1?",
        " http://host/v1",
        "http://host/\nv1",
        "http://host/\x00",
        "ftp://user:pass@host/v1",
        "javascript:pass",
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_runs(url: str) -> None:
    from synthboot import loading

    raw = {
        "synthesize": {"sampler": "server"},
        "engine": {"server": {"url": url}},
        "budget": {"unique_tokens": 1, "train_tokens": 1},
    }
    with pytest.raises(
        ConfigError, match=r"engine.server.url: (needs the form|has a name|ends in|.* holds a character)"
    ) as error:
        loading.load({**raw, "name": "x", "corpus": {"source": "x"}})
    assert "pass" not in str(error.value).replace("password", "")
