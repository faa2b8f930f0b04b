"""Settings that say where and how work runs leave the same bytes: by the API and by the command line, in one process after
the other and in several side by side.

What a refactoring may not change, these tests cannot know: processors round differently, so no hash is pinned. Make the
small world with the code before and after, on one machine, and compare the two lists of `python -m tests.bytes FOLDER`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Thread
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from synthboot import api, config, loading, recipes, settings
from synthboot.cli import main
from synthboot.runner.graph import fingerprints
from synthboot.runner.unit import make, workers_of
from tests.conftest import Deaf, contents, run_folder, tiny_config

OTHER = {
    "device": "auto",
    "jobs": 1,
    "checkpoint_activations": True,
    "checkpoint_minutes": 1e-4,
    "sample_batch": 3,
    "track": ["tensorboard"],
}
SERVERS = (
    {"model": "one", "concurrency": 1, "retries": 0, "timeout": 60},
    {"model": "other", "concurrency": 3, "retries": 1, "timeout": 90},
)
ROUNDS = ("processes", "launch", "shard", "micro_batch_tokens", "embed_batch", "compile")
"""What takes sums in another order; their help says so."""

SAME = {
    *(f"engine.{name}" for name in OTHER),
    *(f"engine.server.{name}" for name in SERVERS[0]),
    "engine.server.url",
    "engine.executor",  # test_cluster.py compares them
    *(f"engine.judge.{name}" for name in SERVERS[0] if name != "model"),  # how it is asked
    "engine.judge.url",
    "engine.judge.prices",  # but for the money that judging cost, which is told beside its tokens
    "root",
    "name",
}


class Completions(BaseHTTPRequestHandler):
    """A server whose draws follow from prompt and seed."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        digest = hashlib.blake2b(json.dumps([asked["prompt"], asked["seed"]]).encode(), digest_size=24).digest()
        tokens = [3 + byte for byte in digest][: asked["max_tokens"]]
        scores = {"token_logprobs": [-1.0] * len(tokens)}
        choice = {"text": "", "token_ids": tokens, "finish_reason": "length", "logprobs": scores}
        body = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(handler: type[Completions]) -> Iterator[int]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    made.daemon_threads = True
    thread = Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made.server_port
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a server."""
    with serving(Completions) as port:
        yield port


def test_a_server_has_no_more_requests_at_once_than_it_is_to_have_of_all_workers(tmp_path: Path) -> None:
    under_way: list[int] = []
    together: list[int] = []
    fourth = Barrier(4)  # nobody is answered before four are here, if there are ever so many

    class Counting(Completions):
        def do_POST(self) -> None:
            under_way.append(1)
            together.append(len(under_way))
            with suppress(BrokenBarrierError):
                fourth.wait(2)
            under_way.pop()
            super().do_POST()

    settings = tiny_config(tmp_path)
    settings["synthesize"]["sampler"] = "server"
    with serving(Counting) as port:
        settings["engine"] = {"jobs": 2, "device": "cpu", "server": {"url": f"http://127.0.0.1:{port}/v1", "concurrency": 2}}
        api.Run(settings).run("synthesize")
    assert max(together) == 2


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The first parts of the paths of files that two finished runs do not have in common, byte by byte."""
    mine, theirs = contents(one), contents(other)
    return {name.split("/")[0] for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}


def test_every_runtime_setting_is_known_to_leave_the_same_bytes_or_says_that_it_rounds() -> None:
    runtime = {path for path in settings.leaves() if path.startswith(settings.RUNTIME)}
    assert runtime == SAME | {f"engine.{name}" for name in ROUNDS}
    for name in ROUNDS:
        words = config.Engine.model_fields[name].description
        assert "rounding" in str(words), name


def test_where_and_how_a_run_is_made_leaves_the_same_bytes(tiny: dict[str, Any], tmp_path: Path, server: int) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / "tiny")
    plain = {**tiny, "root": str(tmp_path)}
    other = {**tiny, "root": str(tmp_path / "a longer" / "place"), "name": "other", "engine": OTHER}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(other))
    done = CliRunner().invoke(main, ["run", str(tmp_path / "run.yaml")])
    assert done.exit_code == 0, done.stderr
    report = api.Run(plain).report().path.parent.name  # which has the run's name as its title
    expected = {report, "track"}  # the logs of tensorboard, which one of them has
    assert differing(plain, other) == expected

    for run, place, host in ((plain, SERVERS[0], "127.0.0.1"), (other, SERVERS[1], "localhost")):
        engine = {**run["engine"], "server": {**place, "url": f"http://{host}:{server}/v1"}}
        asked = {**run, "engine": engine, "synthesize": {**run["synthesize"], "sampler": "server"}}
        cfg = loading.load(asked)
        plan = recipes.units(cfg)
        make(cfg, plan, "synthesize/related", fingerprints(plan), 1, Deaf())
    assert differing(plain, other) == expected


@pytest.mark.parametrize(
    ("devices", "settings", "workers"),
    [
        (1, {}, 1),
        (2, {}, 1),
        (3, {}, 3),
        (8, {}, 6),
        (1, {"synthesize": {"sampler": "vllm"}}, 6),
        (1, {"engine": {"executor": "ray"}}, 6),
        (1, {"engine": {"processes": 3}}, 6),
    ],
    ids=["a GPU", "two texts for each", "fewer", "more GPUs than jobs", "an engine that fills it", "a cluster", "processes"],
)
def test_texts_are_sampled_side_by_side_where_there_are_two_for_each_device(
    tmp_path: Path, devices: int, settings: dict[str, Any], workers: int
) -> None:
    arms = {name: {"synthetic": name, "share": 0.2} for name in ("related", "unconditional", "random_pairs", "scratch")}
    plan = recipes.units(cfg := loading.load(tiny_config(tmp_path) | {"arms": {"repetition": {}, **arms}} | settings))
    found = workers_of(cfg, plan, 6, devices)
    texts = {f"synthesize/{name}": workers for name in arms}
    assert found == texts | dict.fromkeys(("corpus", "embed", "pair/related", "pair/random_pairs"), 6)
