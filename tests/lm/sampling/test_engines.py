"""The samplers that hand the work to others: a real HTTP server that the test starts, and a stand-in for vLLM."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from synthboot import config
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import ConfigError, SamplingError
from synthboot.lm import model as models
from synthboot.lm.endpoint import APART
from synthboot.lm.sampling import engines
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.protocol import Request, Sampler, Sampling
from tests.lm.conftest import small_model

ASKED = [Request((5, 6, 7 + i), 100 + i, 8) for i in range(12)]


class Completions(BaseHTTPRequestHandler):
    """The part of OpenAI's completions that is used, over the embedded engine."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        state: Any = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.seen.append((asked, self.headers.get("Authorization")))
            fault = state.faults.pop(0) if state.faults else None
            state.together = max(state.together, len(state.seen) - state.answered)
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
            state.answered += 1
            return
        body = b"{" if fault == "half" else json.dumps(self.answer(asked) if fault is None else {"error": "busy"}).encode()
        self.send_response(200 if fault in (None, "half") else fault)
        self.send_header("Content-Length", str(len(body)))
        if fault == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(body)
        state.answered += 1

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        state: Any = self.server
        request = Request(tuple(asked["prompt"]), asked["seed"], asked["max_tokens"])
        with state.lock:
            result = state.engine.sample([request])[0]
        tokens = list(result.tokens) + ([0] if result.finish == "end" else [])
        choice: dict[str, Any] = {
            "text": state.tokenizer.decode(result.tokens),
            "finish_reason": "stop" if result.finish == "end" else "length",
            "logprobs": {"token_logprobs": [result.logprob / max(1, len(tokens))] * len(tokens)},
        }
        return {"choices": [choice | ({"token_ids": tokens} if state.ids else {})]}


@pytest.fixture
def server(tokenizer: Tokenizer) -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    made.daemon_threads = True
    made.lock, made.seen, made.answered, made.together, made.faults, made.ids = threading.Lock(), [], 0, 0, [], True
    known = tokenizer.vocab_size  # a server that draws what no token stands for is refused (test_server.py)
    made.engine = EmbeddedSampler(small_model(vocab_size=known), 0, Sampling(temperature=1.0, top_p=0.9, batch=4))
    made.tokenizer = tokenizer
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


SERVER = config.Synthesize(sampler="server")
CPU = config.Engine(device="cpu")


def settings(server: Any, **more: Any) -> config.Engine:
    place = {"url": f"http://127.0.0.1:{server.server_port}/v1", "concurrency": 4, **more}
    return config.Engine(device="cpu", server=config.Server(**place))


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    models.save(small_model(), tmp_path / "model", tokenizer)
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("synthboot.lm.endpoint.sleep", sleep)
    return waits


def test_a_server_gives_what_its_engine_gives(server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHBOOT_API_KEY", "secret")
    sampler = engines.open_sampler(SERVER, settings(server), folder, 0)
    assert isinstance(sampler, Sampler)
    found, expected = sampler.sample(ASKED), server.engine.sample(ASKED)
    assert [(r.tokens, r.finish) for r in found] == [(r.tokens, r.finish) for r in expected]
    assert [r.logprob for r in found] == pytest.approx([r.logprob for r in expected])
    assert {key for _, key in server.seen} == {"Bearer secret"}
    assert server.together > 1


def test_text_is_encoded_where_a_server_sends_no_tokens(server: Any, folder: Path, tokenizer: Tokenizer) -> None:
    server.ids = False
    found = engines.open_sampler(SERVER, settings(server), folder, 0).sample(ASKED)
    for result, expected in zip(found, server.engine.sample(ASKED), strict=True):
        assert tokenizer.decode(result.tokens) == tokenizer.decode(expected.tokens)


def test_what_fails_is_tried_again_by_itself(server: Any, folder: Path, no_waiting: list[float]) -> None:
    server.faults = [503, "drop", 429, "half", 500]
    found = engines.open_sampler(SERVER, settings(server), folder, 0).sample(ASKED)
    assert [r.tokens for r in found] == [r.tokens for r in server.engine.sample(ASKED)]
    assert len(server.seen) == len(ASKED) + 5
    assert len(no_waiting) == 5
    assert any(7 <= wait <= 7 * (1 + APART) for wait in no_waiting)  # Retry-After


def test_what_cannot_be_mended_is_an_error_with_its_reason(server: Any, folder: Path) -> None:
    server.faults = [400] * 100
    with pytest.raises(SamplingError, match=r"400 .*busy.* \(tried 1 times\)"):
        engines.open_sampler(SERVER, settings(server), folder, 0).sample(ASKED)
    server.faults = [503] * 100
    with pytest.raises(SamplingError, match=r"503 .* \(tried 3 times\); what is done is kept"):
        engines.open_sampler(SERVER, settings(server, retries=2), folder, 0).sample(ASKED)


def test_no_server_is_an_error_in_one_line(folder: Path) -> None:
    nowhere = config.Engine(server=config.Server(url="http://127.0.0.1:9/v1", retries=1))
    with pytest.raises(SamplingError, match=r"127\.0\.0\.1:9"):
        engines.open_sampler(SERVER, nowhere, folder, 0).sample(ASKED)


def stand_in(failures: int) -> Any:
    """A module that looks like vLLM and samples with the embedded engine."""
    module: Any = ModuleType("vllm")
    module.built = 0
    module.SamplingParams = lambda **settings: SimpleNamespace(**settings)

    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            module.built += 1
            module.options = options
            self.model = models.load(Path(model)).eval()

        def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise RuntimeError("CUDA error: an illegal\nmemory access")
            engine = EmbeddedSampler(self.model, 0, Sampling(temperature=params[0].temperature, top_p=params[0].top_p, batch=8))
            asked = [Request(tuple(p["prompt_token_ids"]), s.seed, s.max_tokens) for p, s in zip(prompts, params, strict=True)]
            outputs = []
            for result in engine.sample(asked):
                ids = list(result.tokens) + ([0] if result.finish == "end" else [])
                outputs.append(SimpleNamespace(token_ids=ids, cumulative_logprob=result.logprob))
            return [SimpleNamespace(outputs=[o]) for o in outputs]

    module.LLM = LLM
    return module


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_vllm_is_rebuilt_once_and_then_gives_up(folder: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    module = stand_in(failures)
    monkeypatch.setitem(sys.modules, "vllm", module)
    sampler = engines.open_sampler(config.Synthesize(sampler="vllm"), CPU, folder, 0)
    assert isinstance(sampler, Sampler)
    if failures == 2:
        with pytest.raises(SamplingError, match=r"failed twice on these 12 requests .*illegal memory access.*run again"):
            sampler.sample(ASKED)
        return
    expected = EmbeddedSampler(small_model(), 0, Sampling(temperature=1.0, top_p=0.9, batch=8)).sample(ASKED)
    assert sampler.sample(ASKED) == expected
    assert module.built == failures + 1
    assert module.options["enable_prefix_caching"]


def test_vllm_takes_nothing_from_the_models_own_settings(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save(small_model(vocab_size=tokenizer.vocab_size + 2), tmp_path / "padded", tokenizer)
    module, seen = stand_in(0), []
    monkeypatch.setattr(module, "SamplingParams", lambda **options: seen.append(options) or SimpleNamespace(**options))
    monkeypatch.setitem(sys.modules, "vllm", module)
    engines.open_sampler(config.Synthesize(sampler="vllm", top_p=0.8), CPU, tmp_path / "padded", 0).sample(ASKED[:1])
    asked = {**seen[0], "logit_bias": sorted(seen[0]["logit_bias"].items())}
    assert module.options["generation_config"] == "vllm"
    assert asked["logit_bias"] == [(tokenizer.vocab_size, -100.0), (tokenizer.vocab_size + 1, -100.0)]
    plain = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert asked.items() >= {**plain, "ignore_eos": True, "stop_token_ids": [0], "top_p": 0.8}.items()


def test_vllm_that_is_not_installed_is_an_error_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="pip install vllm"):
        engines.open_sampler(config.Synthesize(sampler="vllm"), CPU, folder, 0)


@pytest.mark.gpu
def test_the_real_vllm(folder: Path) -> None:
    pytest.importorskip("vllm")
    sampler = engines.open_sampler(config.Synthesize(sampler="vllm", temperature=0.0), config.Engine(device="cuda"), folder, 0)
    expected = EmbeddedSampler(small_model(), 0, Sampling(temperature=0.0, top_p=1.0, batch=8)).sample(ASKED)
    assert [r.tokens for r in sampler.sample(ASKED)] == [r.tokens for r in expected]
