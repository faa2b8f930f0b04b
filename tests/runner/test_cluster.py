"""Two nodes of a Ray cluster on this machine: the bytes of a run without it, whatever is killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from synthboot import loading, pool
from synthboot.data import lock
from synthboot.errors import ConfigError
from synthboot.recipes import folder_of
from synthboot.runner import executor
from tests.conftest import contents, run_folder, tiny_config

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


def unmake(settings: dict[str, Any], *stages: str) -> None:
    for stage in stages:
        shutil.rmtree(folder_of(run_folder(settings), stage))


def workers() -> list[psutil.Process]:
    """The processes of workers on all nodes, the youngest last."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        if "_Worker" in " ".join(process.info["cmdline"] or [])[:20]:
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])


def soon(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the condition gives once it is true."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return value


def double(offset: int) -> Any:
    def run(item: int) -> tuple[int, int]:
        time.sleep(0.02 * (item % 3))  # finish out of order
        return 2 * item + offset, os.getpid()

    return run


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


def test_items_come_back_in_order_from_both_nodes(joined: None) -> None:
    results = list(pool.imap(double, (1,), range(400), 2))
    assert [value for value, _ in results] == [2 * i + 1 for i in range(400)]
    assert len({pid for _, pid in results}) == 2
    assert not workers()  # gone, not only told to go


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
