"""Two nodes of a Ray cluster on this machine: the bytes of a run without it, whatever is killed."""

import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from synthboot import loading, pool
from synthboot.artifacts.parts import Part
from synthboot.data import lock
from synthboot.errors import ConfigError, LockedRun
from synthboot.recipes import folder_of
from synthboot.runner import executor, turns
from synthboot.runner.unit import ITEMS
from tests.conftest import contents, double, run_folder, soon, unmake

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from synthboot.runner import cluster  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head and another node, of a core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args=NODE)
        made.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def own(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A finished run of one's own to unmake, to be made again on the cluster."""
    shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    return {**tiny, "root": str(tmp_path), "engine": {**tiny["engine"], "executor": "ray"}}


@pytest.fixture
def joined(own: dict[str, Any], nodes: Cluster) -> Iterator[None]:
    """Workers are on the cluster."""
    cfg = loading.load(own)
    with lock.held(cfg.folder), cluster.joined(cfg):
        yield


def assert_nobody_works(settings: dict[str, Any]) -> None:
    """No lock of workers is held any more, and processes that are done, or came too late to do anything, end.

    A unit frees its lock with its last word, and is killed for it a moment later: what counts is that it does nothing.
    """
    run = run_folder(settings)
    for path in run.glob(".ray*.lock"):
        with lock.held(run, path.name, 1.0):
            pass
    soon(lambda: not workers())


def workers() -> list[psutil.Process]:
    """The processes of workers on all nodes, the youngest last."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        if " ".join(process.info["cmdline"] or []).startswith("ray::Worker"):
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])


def deadly(mark: str, times: int) -> Any:
    """A worker that is killed over item 3, so many times."""

    def run(item: int) -> int:
        if item == 3:
            with open(mark, "a") as file:
                file.write("x")
            if os.path.getsize(mark) <= times:
                os.kill(os.getpid(), signal.SIGKILL)
        return item

    return run


def failing(_: int) -> Any:
    raise ConfigError("nothing to work with")


def test_items_come_back_in_order_from_both_nodes(joined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SHORT_OF_ROOM", 0.1)  # on a busy machine workers take as long to start as is told of
    results = list(pool.imap(double, (1,), range(400), 2))
    assert [value for value, _ in results] == [2 * i + 1 for i in range(400)]
    assert len({pid for _, pid in results}) == 2
    assert not workers()  # gone, not only told to go


def told(workers: pool.Workers, *kinds: str) -> tuple[str, Any]:
    """The first that the worker of a pool tells of these kinds, and no note of one that waits for room."""
    while True:
        for _, kind, value in workers.wait():
            if kind in kinds:
                return kind, value


def outcome(workers: pool.Workers) -> tuple[str, Any]:
    """How the worker of a pool has ended."""
    return told(workers, "done", "failed", "lost")


def asking(connection: Any) -> list[Any]:
    """In a unit's worker: what one of its own is given, by Ray's own account."""
    return list(pool.imap(given, (), range(2), 2))


def given() -> Any:
    return lambda _: ray.get_runtime_context().get_assigned_resources().get("memory", 0)


def test_a_units_workers_ask_for_as_much_memory_as_it(joined: None) -> None:
    workers = pool.opened()
    try:
        workers.start("unit", asking, places=0, memory=50e6)
        kind, found = outcome(workers)
    finally:
        workers.close()
    assert (kind, found) == ("done", [50e6, 50e6])


def test_an_item_whose_worker_is_killed_goes_to_another(joined: None, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert list(pool.imap(deadly, (str(mark), 1), range(12), 2)) == list(range(12))
    assert mark.read_text() == "xx"


def test_an_item_that_kills_every_worker_is_an_error(joined: None, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(pool.WorkerDied, match=r"item 3: its process on node .* is lost \(.*\); run again"):
        list(pool.imap(deadly, (str(mark), 99), range(12), 2))
    assert len(mark.read_text()) == pool.LIVES + 1


def test_what_a_worker_raises_comes_through(joined: None) -> None:
    with pytest.raises(ConfigError, match="nothing to work with"):
        list(pool.imap(failing, (0,), range(3), 2))


def touching(mark: str, _: Any) -> None:
    Path(mark).touch()


@pytest.mark.parametrize("over", ["another has begun", "it was closed", "a run on this machine came after"])
def test_a_worker_that_comes_when_its_pools_turn_is_over_does_nothing(
    own: dict[str, Any], joined: None, tmp_path: Path, over: str
) -> None:
    workers = pool.opened()
    late = copy.copy(workers)  # as it was while it could start workers
    if over == "another has begun":
        pool.opened().close()
    elif over == "it was closed":
        workers.close()
    else:
        turns.end_all(run_folder(own))
    try:
        late.start("unit", touching, str(tmp_path / "mark"))
        kind, value = outcome(late)
    finally:
        late.close()
    assert kind == "failed"
    assert isinstance(value, LockedRun)
    assert "have taken over" in str(value)
    assert not (tmp_path / "mark").exists()


def is_alone(run: str, _: Any) -> bool:
    """In a unit's worker: whether the lock of its own workers is free."""
    with suppress(LockedRun), lock.held(Path(run), turns.guard("unit")):
        return True
    return False


def test_a_unit_waits_for_those_that_one_before_has_left(own: dict[str, Any], joined: None) -> None:
    run = run_folder(own)
    left = turns.begin(run, "unit")
    workers = pool.opened()
    try:
        with lock.shared(run, turns.guard("unit"), turn=left):  # as one of them does
            workers.start("unit", is_alone, str(run), places=0)
            own_lock = run / f"{turns.guard('')}.0"
            soon(lambda: own_lock.exists() and own_lock.read_text(), 200)  # from there on nothing else keeps it
            time.sleep(0.5)
        assert outcome(workers) == ("done", True)
    finally:
        workers.close()


def waiting(connection: Any) -> None:
    connection.send(("progress", (os.getpid(), ray.get_runtime_context().current_actor)))
    connection.recv()


def test_a_worker_is_not_lost_before_it_is_gone(own: dict[str, Any], joined: None) -> None:
    """Ray says of a node that is slow to answer that it is dead, and what runs there may write for a while."""
    workers = pool.opened()
    try:
        workers.start("unit", waiting)
        _, (pid, actor) = told(workers, "progress")
        os.kill(pid, signal.SIGSTOP)  # it cannot end as it is told to
        ray.kill(actor)
        threading.Timer(3, os.kill, (pid, signal.SIGKILL)).start()
        kind, _ = outcome(workers)
        assert kind == "lost"
        assert not psutil.pid_exists(pid) or not lives(psutil.Process(pid))
        with pytest.raises(LockedRun), lock.held(run_folder(own), f"{turns.guard('')}.0"):
            pytest.fail("a worker that comes late could work")
    finally:
        workers.close()


def test_two_nodes_leave_the_bytes_of_one_machine(tiny: dict[str, Any], own: dict[str, Any], nodes: Cluster) -> None:
    shutil.rmtree(run_folder(own))
    executor.run(loading.load(own))
    assert contents(own) == contents(tiny)
    assert_nobody_works(own)


def begun(settings: dict[str, Any], stage: str, by: str) -> bool:
    """Whether a stage is at work: its unit has made its folder ready, or a worker of its own has come."""
    run = run_folder(settings)
    if by == "unit" or stage not in ITEMS:
        return any(folder_of(run, stage).rglob("progress.json"))
    for path in run.glob(f".ray-{stage}*.lock"):
        try:
            with lock.held(run, path.name):
                pass
        except LockedRun:
            return len(workers()) > 1
    return False


def hit(settings: dict[str, Any], nodes: Cluster, stage: str, what: str) -> None:
    """Kill a stage's unit, a worker of that, or a whole node, once the stage is at work."""
    soon(lambda: begun(settings, stage, what))
    if what == "node":
        nodes.remove_node(max(nodes.worker_nodes, key=id), allow_graceful=False)
    else:
        victims = workers()
        victims[0 if what == "unit" else -1].kill()


KILLS = [
    ("corpus", "unit"),
    ("embed", "unit"),
    ("embed", "worker"),
    ("embed", "node"),
    ("pair", "worker"),
    ("pair", "node"),
    ("base", "unit"),
    ("tune", "node"),
    ("synthesize", "unit"),
    ("synthesize", "worker"),
    ("synthesize", "node"),
    ("pretrain", "node"),
    ("score", "unit"),
    ("evaluate", "unit"),
]


@pytest.mark.parametrize(("stage", "what"), KILLS)
def test_what_is_killed_in_a_stage_is_made_again(
    tiny: dict[str, Any], own: dict[str, Any], nodes: Cluster, stage: str, what: str
) -> None:
    cfg = loading.load(own)
    unmake(own, stage)
    told: list[tuple[str, str, Any]] = []
    with ThreadPoolExecutor() as beside:
        killed = beside.submit(hit, own, nodes, stage, what)
        executor.run(cfg, stage, lambda *event: told.append(event))
        killed.result()
    assert contents(own) == contents(tiny)
    assert_nobody_works(own)
    if what == "unit":
        assert [value for _, kind, value in told if kind == "note" and "begun again" in value]
    if what == "node":
        nodes.add_node(**NODE)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def start(settings: dict[str, Any]) -> subprocess.Popen[str]:
    """The run by the command line."""
    config = Path(settings["root"]) / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "synthboot", "run", str(config)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_killed_driver_leaves_nobody_and_the_next_goes_on(tiny: dict[str, Any], own: dict[str, Any], nodes: Cluster) -> None:
    unmake(own, "synthesize")
    with start(own) as driver:
        soon(lambda: begun(own, "synthesize", "worker"))
        driver.kill()
    executor.run(loading.load(own))  # at once: it waits for those who are left
    assert contents(own) == contents(tiny)
    assert_nobody_works(own)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_cluster_started_here_ends_with_its_run(
    own: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    unmake(own, "pair")
    with start(own) as driver:
        soon(lambda: begun(own, "pair", "unit"))
        mine = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, number) if number == signal.SIGINT else driver.send_signal(number)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == code
    soon(lambda: not any(map(lives, mine)), 120)  # Ray's agents look for their head a minute long
    assert number == signal.SIGKILL or said.strip().endswith("the same command goes on from there")


def test_what_cannot_be_is_refused_by_name(own: dict[str, Any], nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    unmake(own, "embed")
    wrong = [
        ({"processes": 2}, r"engine.processes: 2, and the largest node of the cluster has 1 cores"),
        ({"device": "cuda"}, r"engine.device: cuda asked for, but no node of the cluster has a GPU"),
        ({"launch": "srun torchrun"}, r"engine.launch: starts processes past Ray"),
    ]
    for settings, message in wrong:
        with pytest.raises(ConfigError, match=message):
            executor.run(loading.load({**own, "engine": {**own["engine"], **settings}}), "embed")
    with pytest.raises(ConfigError, match="--part: is for schedulers"):
        executor.run_part(loading.load(own), "embed", Part(1, 2))
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(ConfigError, match="start the run on a node of the cluster"):
        executor.run(loading.load(own), "embed")


@contextmanager
def head(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A cluster of one node that is nobody's child but this test's, and where it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--head", "--block", f"--port={port}", f"--temp-dir={folder}"]
    options += ["--num-cpus=2", f"--object-store-memory={100 << 20}", "--include-dashboard=false"]
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **quiet) as process:
        soon(lambda: any("raylet" in child.name() for child in psutil.Process(process.pid).children(recursive=True)))
        try:
            yield process, f"{ray.util.get_node_ip_address()}:{port}"
        finally:
            kill_all(process)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all below it, as the end of their machine does."""
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        for one in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.kill()


def test_a_killed_head_ends_the_run_and_a_new_one_goes_on(
    tiny: dict[str, Any], own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's machine is gone with the cluster's memory: the run ends by itself, nobody is left, nothing is lost."""
    unmake(own, "synthesize")
    # A cluster that somebody else has started asks for a token where there is one on the machine.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-this-test-alone")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # a socket's path has to be short
        with head(Path(folder) / "a") as (first, address):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with start(own) as driver:
                soon(lambda: driver.poll() is not None or begun(own, "synthesize", "worker"), 150)
                kill_all(first)
                _, said = driver.communicate(timeout=150)
            assert driver.returncode != 0
            soon(lambda: not workers(), 120)
        with head(Path(folder) / "b") as (_, address):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with start(own) as driver:
                _, said = driver.communicate(timeout=200)
            assert driver.returncode == 0, said
    assert contents(own) == contents(tiny)
    assert_nobody_works(own)
