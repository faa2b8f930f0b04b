"""Work on the nodes of a Ray cluster (`engine.executor: ray`): what `pool.Pool` is to one machine.

Ray places processes, carries messages, and tells when a process or its node is gone. It keeps no
result: what counts is what workers have committed to the run folder, which all nodes see at the
same path. `RAY_ADDRESS` names a cluster that is there; otherwise one is started on this machine,
and ended with the run.

A worker is an actor that runs one function and goes with it. A unit whose worker is lost is begun
again, and an item is given to another worker (`pool.LIVES` times). Two of them never write at once,
for what Ray says of a process is not what the run rests on:

- all workers of a pool share a lock in the run folder, and nothing goes on after them, nor takes
  their place after a kill, before that lock is free;
- whoever waited for that has begun another turn with it, and a worker that comes to share the lock
  in a turn that is over does nothing (`turns`);
- a worker has a lock of its own too: it is lost once that is free, and then it is kept from it.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRefGenerator
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

import synthboot
from synthboot import config, pool
from synthboot.artifacts.store import environment
from synthboot.data import lock
from synthboot.errors import ConfigError
from synthboot.pool import Happened, WorkerFailed
from synthboot.runner import turns
from synthboot.runner.machines import figures

_OBJECT_STORE = 256 << 20
"""Bytes of shared memory for what is on its way between processes, on a cluster started here."""
SHORT_OF_ROOM = 60.0
"""Seconds without a word after which it is told that no node has room."""
_WAITS = 0.01
"""Share of a GPU for a worker that mostly waits for workers of its own, which take the GPU."""
_WORKS = 0.9
"""Share of a GPU for a worker that computes, so that some that wait fit beside it."""
_WAITS_IN = 1 / 8
"""Most of the largest node's memory that a worker that waits asks for: more may never be free."""
_WORKS_IN = 1 / 2
"""Most of it that each of its workers asks for."""
_TRAVELS = (*pool.ENVIRONMENT, "SYNTHBOOT_KERNELS", "HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY")
"""What workers have in their environment as it is here. Nothing else: it may be a secret."""


@dataclass(frozen=True)
class _Site:
    """What every worker has to find on its node, and whether the cluster has GPUs."""

    directory: str
    run: str
    holder: str
    packages: dict[str, str]
    has_gpus: bool


@dataclass(frozen=True)
class _Order:
    """What a worker is to do.

    The worker shares the lock `guard`, as long as it is its pool's `turn`, and has the lock `own`
    to itself. Where it `has_workers` of its own, `key` names their lock, and each takes as much
    `memory` as it does itself.
    """

    site: _Site
    key: str
    guard: str
    turn: str
    own: str
    has_workers: bool
    memory: float
    function: Callable[..., object]
    arguments: tuple[object, ...]


class _Connection:
    """A worker's end of the connection, as its function sees it."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, message: tuple[str, Any]) -> None:
        """Tell the pool a message."""
        self.told.put(message)

    def recv(self) -> Any:
        """The next message from the pool; waits for it."""
        return self.heard.get()


class Worker:
    """An actor in a process of the cluster (`ray::Worker` to `ps`), which runs one function in a
    thread and carries its messages."""

    def __init__(self) -> None:
        self._connection = _Connection()

    def run(self, order: _Order) -> Iterator[tuple[str, Any]]:
        """The messages of the function, up to its last word."""
        threading.Thread(target=self._work, args=(order,), daemon=True).start()
        kind = ""
        while kind not in ("done", "failed"):
            kind, value = self._connection.told.get()
            yield kind, value

    def hear(self, message: object) -> None:
        """Hand a message on to the function."""
        self._connection.heard.put(message)

    def _work(self, order: _Order) -> None:
        def within(*arguments: object) -> object:
            site = order.site
            _check(site)
            self._connection.send(("here", ray.util.get_node_ip_address()))
            run = Path(site.run)
            below = partial(RayPool, site, order.key, self._note, order.memory)
            with (
                lock.shared(run, order.guard, turns.PATIENCE, order.turn),
                lock.held(run, order.own),
                pool.using(below),
            ):
                # of one that was killed at this before, workers may still write what the function
                # is about to clear up
                if order.has_workers:
                    turns.begin(run, order.key)
                return order.function(*arguments)

        self._connection.send(pool.last_word(within, order.arguments, self._connection))

    def _note(self, words: str) -> None:
        self._connection.send(("note", words))


def _check(site: _Site) -> None:
    """Raise ConfigError unless this node sees the run folder, and has the packages of the others.

    Goes to the folder that the run was started from, for paths that are relative.
    """
    node = f"node {ray.util.get_node_ip_address()}"
    try:
        os.chdir(site.directory)
    except OSError as error:
        raise ConfigError(
            f"{node}: {site.directory} cannot be entered ({error.strerror}); "
            f"start the run from a folder that every node has at the same path"
        ) from None
    try:
        holder = (Path(site.run) / lock.NAME).read_text()
    except OSError:
        holder = ""
    if holder != site.holder:
        raise ConfigError(
            f"{node}: {site.run} is not the run folder there; "
            f"choose a `root` on a file system that every node has at the same path"
        )
    for name, version in environment().items():
        wanted = site.packages.get(name, version)
        if version != wanted:
            raise ConfigError(
                f"{node}: has {name} {version}, and the run was started with {wanted}; "
                f"install the same versions on every node"
            )


@dataclass
class _Running:
    """A worker, as the pool that started it knows it."""

    key: str
    actor: ActorHandle
    own: str
    asks: str
    node: str = ""


class RayPool:
    """Processes on the nodes of a cluster; those of one pool share a lock named by its `key`.

    Where no node has room, `note` is told, or without it whoever waits for events. A process that
    does not say how much memory it takes is expected to take `memory` bytes.
    """

    def __init__(
        self,
        site: _Site,
        key: str = "",
        note: Callable[[str], None] | None = None,
        memory: float = 0.0,
    ) -> None:
        self._memory = memory
        self._site = site
        self._note = note
        self._key = key
        self._running: dict[ObjectRefGenerator, _Running] = {}
        self._own: list[str] = []
        self._lost = ExitStack()
        self._turn = self._next_turn()  # after workers whose pool was killed

    def __len__(self) -> int:
        return len(self._running)

    def keys(self) -> set[str]:
        """The keys of those that still run."""
        return {worker.key for worker in self._running.values()}

    def jobs(self, wanted: int, device: str) -> int:
        """How many may run side by side: `wanted`, or one for each GPU or core of the cluster."""
        uses_gpus = self._site.has_gpus and device != "cpu"
        room = ray.cluster_resources().get("GPU" if uses_gpus else "CPU", 0)
        return wanted or max(1, int(room))

    def start(
        self,
        key: str,
        function: Callable[..., object],
        *arguments: object,
        places: int = 1,
        memory: float = 0.0,
    ) -> _Sender:
        """Run `function(*arguments, connection)` in a process of a node that has room for it."""
        gpus = 0.0
        if self._site.has_gpus:
            gpus = {0: _WAITS, 1: _WORKS}.get(places, places)
        expected = memory or self._memory
        most = max(node["Resources"].get("memory", 0) for node in _nodes())
        if places == 0:  # its workers do what takes memory, and must find room beside it
            room = min(most * _WAITS_IN, figures().core.process_bytes.value)
        else:
            room = most if memory else most * _WORKS_IN
        asked = {"num_cpus": places, "num_gpus": gpus, "memory": int(min(expected, room))}
        actor = _remote.options(max_concurrency=2, **asked).remote()
        telling = actor.run.options(num_returns="streaming")
        own = turns.own(self._key, len(self._own))
        self._own.append(own)
        below = f"{self._key}/{key}" if self._key else key
        has_workers = places == 0
        messages = telling.remote(
            _Order(
                site=self._site,
                key=below,
                guard=turns.guard(self._key),
                turn=self._turn,
                own=own,
                has_workers=has_workers,
                memory=expected,
                function=function,
                arguments=arguments,
            )
        )
        asks = ", ".join(f"{name} {value:g}" for name, value in asked.items() if value)
        self._running[messages] = _Running(key, actor, own, asks)
        return _Sender(actor)

    def wait(self) -> list[Happened]:
        """The events since the last call; waits for one where there are none."""
        events: list[Happened] = []
        while not events:
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=SHORT_OF_ROOM)
            for messages in ready:
                events += self._next(messages)
            if not ready and not any(worker.node for worker in self._running.values()):
                events += self._short_of_room()
        return events

    def close(self) -> None:
        """Kill what still runs, and wait until the kernel says that it is gone.

        Raises LockedRun where that takes too long.
        """
        for worker in self._running.values():
            ray.kill(worker.actor)
        self._running.clear()
        self._turn = self._next_turn()
        self._lost.close()
        for own in self._own:  # which nobody asks for any more
            (Path(self._site.run) / own).unlink(missing_ok=True)
        self._own.clear()

    def _next(self, messages: ObjectRefGenerator) -> list[Happened]:
        worker = self._running[messages]
        try:
            kind, value = ray.get(next(messages))
        except RayTaskError as error:  # what it has to say cannot be sent
            kind, value = "failed", WorkerFailed(str(error))
        except (RayError, StopIteration) as error:
            where = f" on node {worker.node}" if worker.node else ""
            kind, value = "lost", f"its process{where} is lost ({_line(error)})"
        if kind == "here":
            worker.node = value
            return []
        if kind in ("done", "failed", "lost"):
            del self._running[messages]
            ray.kill(worker.actor)  # what is out of reach may live
        if kind == "lost":
            # and write what is now given to another: not before it is gone, nor will it come then
            run = Path(self._site.run)
            self._lost.enter_context(lock.held(run, worker.own, turns.PATIENCE))
        return [(worker.key, kind, value)]

    def _short_of_room(self) -> list[Happened]:
        """Tell what the first worker waits for: while others run, waiting is nothing to tell of."""
        worker = next(iter(self._running.values()))
        words = f"waits for a node of the cluster with room ({worker.asks})"
        if self._note is None:
            return [(worker.key, "note", words)]
        self._note(words)
        return []

    def _next_turn(self) -> str:
        return turns.begin(Path(self._site.run), self._key)


class _Sender:
    """The end of a connection through which a worker of the cluster is given work."""

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor

    def send(self, message: Any) -> None:
        """Hand it over; a worker that is dead is reported by `wait`."""
        self._actor.hear.remote(message)


_remote = ray.remote(Worker)


@contextmanager
def joined(cfg: config.Config) -> Iterator[None]:
    """While this is entered, `pool.opened` gives workers on the cluster.

    It connects to the cluster, or starts one, once the first workers are wanted. The caller holds
    the run folder. Raises ConfigError where no cluster answers, or none has room for the processes
    of a model.
    """
    cluster = _Cluster(cfg)
    try:
        with pool.using(cluster.open):
            yield
    except RayError as error:
        raise pool.WorkerDied(
            f"the Ray cluster does not answer ({_line(error)}); run again to go on from there"
        ) from None
    finally:
        cluster.close()


class _Cluster:
    """The connection to a cluster, made when it is first needed."""

    def __init__(self, cfg: config.Config) -> None:
        self._cfg = cfg
        self._is_ours = False
        self._temporary: str | None = None

    def open(self) -> RayPool:
        """Workers on the cluster."""
        if not ray.is_initialized():
            self._connect()
        engine = self._cfg.engine
        counts = [int(node["Resources"].get("GPU", 0)) for node in _nodes()]
        has_gpus = engine.device != "cpu" and any(counts)
        if engine.device == "cuda" and not has_gpus:
            raise ConfigError("engine.device: cuda asked for, but no node of the cluster has a GPU")
        if not has_gpus:
            counts = [int(node["Resources"].get("CPU", 0)) for node in _nodes()]
        if engine.processes > max(counts):
            raise ConfigError(
                f"engine.processes: {engine.processes}, and the largest node of the cluster has "
                f"{max(counts)} {'GPUs' if has_gpus else 'cores'}: a model is trained on one node; "
                f"lower it, or use engine.executor=local with engine.launch"
            )
        packages = environment()
        del packages["machine"]
        packages.pop("synthboot", None)  # the nodes get its code from here
        run = self._cfg.folder.absolute()
        holder = (run / lock.NAME).read_text()
        return RayPool(_Site(os.getcwd(), str(run), holder, packages, has_gpus))

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._is_ours:
            ray.shutdown()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        if address is not None and "://" in address:
            raise ConfigError(
                f"RAY_ADDRESS: {address}: a client cannot carry what workers tell; "
                f"start the run on a node of the cluster, with host:port or `auto`"
            )
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing leaves
        logging.getLogger("ray").setLevel(logging.ERROR)
        variables = {}
        for name in _TRAVELS:
            value = os.environ.get(name, pool.ENVIRONMENT.get(name))
            if value is not None:
                variables[name] = value
        code = str(Path(synthboot.__file__).parent)
        before = signal.getsignal(signal.SIGTERM)
        self._is_ours = True
        try:
            ray.init(
                address=address or "local",
                runtime_env={"py_modules": [code], "env_vars": variables},
                configure_logging=False,
                log_to_driver=False,
                **({} if address else self._own()),
            )
        except Exception as error:  # where a node does not start in time, Ray raises no other class
            where = "engine.executor: ray: no cluster starts here"
            advice = "mend that"
            if address is not None:
                where = f"RAY_ADDRESS: {address}: no cluster answers"
                advice = "set RAY_AUTH_MODE=token if it asks for one, as `ray start` says"
            raise ConfigError(
                f"{where} ({_line(error)}); {advice}, or use engine.executor=local"
            ) from None
        finally:
            # elsewhere than in the main thread handlers cannot be set, and Ray has set none
            with suppress(ValueError):
                signal.signal(signal.SIGTERM, before)

    def _own(self) -> dict[str, Any]:
        """Settings of a cluster started here, which nobody else can reach."""
        # below /tmp: a socket's path has to be short
        self._temporary = tempfile.mkdtemp(prefix="synthboot-ray-", dir="/tmp")
        return {
            "num_cpus": pool.jobs(self._cfg.engine.jobs),
            "object_store_memory": _OBJECT_STORE,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": self._temporary,
        }


def _line(error: BaseException) -> str:
    """The last line of what Ray says, which is the reason."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]
