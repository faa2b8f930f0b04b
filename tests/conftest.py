"""A small generated world: entities with attributes, told in several wordings. Related documents share an entity."""

import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads wait for each other for ages beside other work
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what it does by itself, with a warning
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports it: the loops of a GPU run on a CPU then

import tests.typechecker  # noqa: F401  (the hook looks it up by name)

# Tests start hundreds of processes, each of which would compile the package anew.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    sys.dont_write_bytecode = False

# Runs flush every file that they write and remove it again, at milliseconds each where that is a disk.
MEMORY = "/dev/shm"
if os.access(MEMORY, os.W_OK) and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)

SOURCES = Path(__file__).parent.parent / "src"
SHAPED = [path for path in SOURCES.rglob("*.py") if "from jaxtyping import" in path.read_text("utf-8")]
MODULES = [path.relative_to(SOURCES).with_suffix("").as_posix().replace("/", ".") for path in SHAPED]
install_import_hook(MODULES, "tests.typechecker.check")  # shapes in signatures are checked, in tests alone

# Where other work takes the cores, an example takes as long as that lets it: no fault of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

SYLLABLES = ["ba", "ko", "ri", "lu", "ten", "mar", "vi", "sha", "do", "pel", "gru", "ani"]
COLORS = ["red", "green", "blue", "amber", "violet", "black"]
TRADES = ["miller", "sailor", "printer", "weaver", "potter", "surgeon"]
PLACES = ["harbor", "valley", "island", "market", "forest", "tower"]


def world_documents(entities: int = 60, each: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Documents about entities, each revealing all attributes in one of several wordings."""
    rng = random.Random(seed)
    documents = []
    for entity in range(entities):
        name = "".join(rng.choice(SYLLABLES) for _ in range(3)).capitalize() + str(entity)
        color, trade, place = rng.choice(COLORS), rng.choice(TRADES), rng.choice(PLACES)
        for number in range(each):
            parts = [
                rng.choice(
                    [f"{name} wears {color} clothes", f"the clothes of {name} are {color}", f"{color} is what {name} wears"]
                ),
                rng.choice([f"{name} works as a {trade}", f"by trade {name} is a {trade}", f"a {trade} named {name}"]),
                rng.choice(
                    [f"{name} lives near the {place}", f"the home of {name} is at the {place}", f"find {name} in the {place}"]
                ),
                f"note {rng.randrange(10**6)} by clerk {rng.randrange(10**6)}",
            ]
            rng.shuffle(parts)
            documents.append({"id": f"e{entity}-{number}", "text": ". ".join(parts) + ".", "entity": entity})
    rng.shuffle(documents)
    return documents


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a worker: sums in one order, so that bytes can be compared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One of 280 entries, as small models have."""
    from synthboot.data import tokenizer as tokenizers

    return tokenizers.train(iter(["the cat sat on the mat and the dog on the log"] * 30), 280)


@pytest.fixture(scope="session")
def world_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("world") / "world.jsonl", world_documents())


class Killed(BaseException):
    """As abrupt as a signal: no handler of ours sees it."""


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def small_config(source: Path, root: Path, **changes: Any) -> dict[str, Any]:
    """A run that takes seconds: every stage, three arms, two seeds."""
    settings: dict[str, Any] = {
        "name": "small",
        "root": str(root),
        "model": {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "seq_len": 96},
        "budget": {"unique_tokens": 3_000, "train_tokens": 12_000},
        "optim": {"lr": 1e-2, "batch_tokens": 384, "evals": 4, "precision": "float32"},  # two runs must not measure apart
        "engine": {"device": "cpu", "jobs": 2, "sample_batch": 8},
        "corpus": {"source": str(source), "vocab_size": 400, "validation_docs": 30, "test_docs": 30, "shard_docs": 64},
        "embed": {"dim": 32, "hash_features": 4_096},
        "pair": {"num_neighbors": 5},
        "tune": {"batch_tokens": 384, "max_tokens": 6_000},
        "synthesize": {"chunk": 16, "keep_unfinished": True, "dtype": "float32"},
        "arms": {
            "repetition": {},
            "sbp": {"synthetic": "related", "share": 0.5},
            "oracle": {"unique_tokens": "all"},
        },
        "pretrain": {"seeds": [0, 1]},
        "evaluate": {},
        "analyze": {"docs": 60, "examples": 5},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            settings[section] = {**settings[section], name: value}
        else:
            settings[section] = value
    return settings


def finished_config(root: Path) -> dict[str, Any]:
    """The small run over a world of its own."""
    judged = {"docs": 60, "examples": 5, "judges": ["rules", "embedding", "likelihood"], "judge_items": 20}
    return small_config(write_jsonl(root / "world.jsonl", world_documents()), root, analyze=judged)


def tiny_config(root: Path) -> dict[str, Any]:
    """A run for tests that make it many times over: every stage, one arm beside repetition, one seed."""
    source = write_jsonl(root / "world.jsonl", world_documents(entities=24, each=5))
    return small_config(
        source,
        root,
        name="tiny",
        budget={"unique_tokens": 1_500, "train_tokens": 3_000},
        optim={"lr": 1e-2, "batch_tokens": 384, "evals": 3, "precision": "float32"},
        corpus__vocab_size=300,
        corpus__validation_docs=12,
        corpus__test_docs=8,
        corpus__shard_docs=40,
        embed={"dim": 16, "hash_features": 2_048},
        pair={"num_neighbors": 4, "min_similarity": 0.5},
        tune={"batch_tokens": 384, "max_tokens": 1_500, "evals": 2},
        synthesize={"chunk": 8, "max_tokens": 40, "keep_unfinished": True, "dtype": "float32"},
        arms={"repetition": {}, "sbp": {"synthetic": "related", "share": 0.2}},
        pretrain={"seeds": [0]},
        analyze={"docs": 10, "examples": 2},
    )


def run_once(name: str, config: Callable[[Path], dict[str, Any]], factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a run of this process of pytest alone; whichever asks for it first runs it to its end."""
    from synthboot import api

    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    with FileLock(root / f"{name}.lock"):
        (root / name).mkdir(exist_ok=True)
        settings = config(root / name)
        done = root / name / "done"
        if not done.exists():
            api.Run(settings).run()
            done.touch()
    if root == factory.getbasetemp():
        return settings
    # asking a run for what it has locks it, and two workers may ask at once: each has links of its own
    own = {**settings, "root": str(factory.mktemp(name))}
    hidden = shutil.ignore_patterns(".*")  # locks are written in place
    shutil.copytree(run_folder(settings), run_folder(own), copy_function=os.link, ignore=hidden)
    return own


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a small run that has been run to its end; tests only read it."""
    return run_once("finished", finished_config, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of the smallest run that has every stage, run to its end; tests only read it."""
    return run_once("tiny", tiny_config, tmp_path_factory)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder of its own for temporary files: a socket's address has room for 107 characters, pytest's folders for more."""
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as folder:
        yield Path(folder)


def by_a_worker(function: Callable[..., Any], *arguments: object) -> Any:
    """What it returns in a process that has imported everything, and is not this one."""
    from synthboot import pool

    workers = pool.Pool()
    workers.start("test", function, *arguments)
    try:
        while True:
            for _, kind, value in workers.wait():
                if kind == "failed":
                    raise value
                if kind == "done":
                    return value
    finally:
        workers.close()


def soon(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the condition gives once it is true."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return value


def double(offset: int) -> Any:
    """A worker that doubles, and says which process did."""

    def run(item: int) -> tuple[int, int]:
        time.sleep(0.02 * (item % 3))  # finish out of order
        return 2 * item + offset, os.getpid()

    return run


class Deaf:
    """A connection to nobody."""

    def send(self, value: object) -> None: ...


def in_a_fork(work: Callable[[], object]) -> int:
    """How a fork of this process ended that did the work: with 0, with 1 where it failed, or as it chose itself."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_folder(settings: dict[str, Any]) -> Path:
    return Path(settings["root"]) / settings["name"]


def unmake(settings: dict[str, Any], *stages: str) -> None:
    """Remove what these stages have left."""
    from synthboot.recipes import folder_of

    for stage in stages:
        shutil.rmtree(folder_of(run_folder(settings), stage))


def contents(settings: dict[str, Any]) -> dict[str, Any]:
    """Every file's bytes; manifests without what a clock or a machine put there, the report without its costs."""
    found: dict[str, Any] = {}
    for path in sorted(run_folder(settings).rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        name = path.relative_to(run_folder(settings)).as_posix()
        if path.name == "manifest.json":
            record = json.loads(path.read_text())
            record["files"].pop("report.html", None)
            found[name] = {k: v for k, v in record.items() if k not in ("cost", "environment", "hash")}
            if record["stage"] == "report":
                found[name].pop("counts")
        elif path.name == "report.html":
            found[name] = re.sub("<!-- cost -->.*?<!-- /cost -->", "", path.read_text("utf-8"), flags=re.DOTALL)
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leaves the compiled loops aside, when called, until the test ends."""
    return lambda: monkeypatch.setenv("SYNTHBOOT_KERNELS", "0")
