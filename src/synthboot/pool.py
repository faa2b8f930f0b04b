"""Where work runs: processes side by side, one thread each, on this machine unless `using` names
another place (`runner.cluster`).

`start` and `wait` run whole units side by side; `imap` streams items through workers and yields
their results in order. The rest of the code knows no more of where work runs.

- One thread a process: results are the same whatever `engine.jobs` is, and at these sizes several
  processes use the cores better than several threads do.
- Workers come from a fork server that has imported torch once. A worker's own workers are forks of
  it, or new processes where it has used a GPU.
- A worker that dies is an error here, never a hang.
- No worker outlives its parent, however that ended: the kernel kills it, even where it is stopped
  or deep in a library. A parent that is stopped for a while is waited for.
- Ctrl-C and the end of the terminal reach the parent alone, which kills its workers as it goes.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from synthboot.errors import ConfigError, SynthbootError, brief

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "true",
    # Keep freed memory: glibc gives large blocks back and gets them again, page by page, at every
    # step of a loop (docs/speed.md has what that costs). A worker ends with its unit, and its
    # memory with it.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
    # To ask torch whether there is a GPU starts CUDA, which no fork of that process may use: a
    # worker that had asked could have no workers on the GPU. With this it asks the driver.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
"""The environment of workers, where the user has set nothing else: libraries and libc read it as
they start."""

PRELOAD = [
    "synthboot.forked",
    "torch",
    "transformers.models.qwen3.modeling_qwen3",
    "sklearn.feature_extraction.text",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "synthboot.runner.unit",
    "synthboot.steps",
    "synthboot.stages.corpus",
    "synthboot.stages.embed",
    "synthboot.stages.pair",
    "synthboot.stages.tune",
    "synthboot.stages.synthesize",
    "synthboot.stages.pretrain",
    "synthboot.stages.score",
    "synthboot.stages.evaluate",
    "synthboot.stages.analyze",
    "synthboot.report.page",
    "synthboot.lm.conversions",
]
"""Modules that the fork server imports once, so that no worker has to."""

PATIENCE = 5.0
"""Seconds that a process may take to end once it has said its last word; then it is killed."""

LIVES = 3
"""How often work is begun again after its worker was lost with its machine; once more is an
error."""

_NO_GPU = {"", "-1", "NoDevFiles"}
"""What stands in CUDA_VISIBLE_DEVICES for no GPU, the last as Slurm writes it. CUDA sees none of
the GPUs that are named behind it."""
_PARENT_ONLY = {signal.SIGINT, signal.SIGHUP}
"""Signals that workers do not hear."""
_PR_SET_PDEATHSIG = 1
_LONGEST_ADDRESS = 107  # bytes of a socket's path
_REASONS = {
    -9: " (out of memory?)",
    255: " (with the fork server that it came from)",
}
"""What an exit code tells of how a process died."""


class WorkerDied(SynthbootError):
    """A worker process ended without a word: killed, or out of memory."""


class WorkerFailed(Exception):
    """An unexpected exception in a worker, with its traceback."""


def jobs(wanted: int, device: str = "cpu") -> int:
    """How many processes to use: `wanted`, or one per GPU, or one per core this process may use."""
    if wanted:
        return wanted
    if uses_gpus(device):
        return max(1, len(gpus()))
    return len(os.sched_getaffinity(0))


def uses_gpus(device: str) -> bool:
    """Whether models run on GPUs where `engine.device` is `device`."""
    if device != "auto":
        return device == "cuda"
    # The driver's device file tells whether there is a GPU; asking torch would import it.
    return Path("/dev/nvidiactl").exists() and bool(gpus())


def _has_used_gpu() -> bool:
    """Whether torch has set up CUDA in this process; asked without importing it."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def gpus() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return list(itertools.takewhile(lambda name: name not in _NO_GPU, allowed.split(",")))
    return sorted(p.name.removeprefix("nvidia") for p in Path("/dev").glob("nvidia[0-9]*"))


Item = TypeVar("Item")
Output = TypeVar("Output")
Happened = tuple[str, str, Any]
"""An event of a worker: its key, a kind, a value. Kinds are "ready", "progress", "note", "done",
"failed", and "lost" where a machine may be."""


@runtime_checkable
class Sender(Protocol):
    """The end of a connection through which a worker is given work."""

    def send(self, message: Any, /) -> None:
        """Hand a message over."""


@runtime_checkable
class Workers(Protocol):
    """Processes that each run one function and tell how they get on, wherever they are."""

    def __len__(self) -> int: ...

    def keys(self) -> set[str]:
        """The keys of those that still run."""

    def jobs(self, wanted: int, device: str) -> int:
        """How many may run side by side: `wanted`, or as many as there is room for."""

    def start(
        self,
        key: str,
        function: Callable[..., object],
        *arguments: object,
        places: int = 1,
        memory: float = 0.0,
    ) -> Sender:
        """Run `function(*arguments, connection)` in a new process; returns the other end of that
        connection.

        It takes so many `places`: GPUs, or cores where there are none. One that takes 0 mostly
        waits for workers of its own, which take theirs. `memory` is what it is expected to take,
        in bytes.
        """

    def wait(self) -> list[Happened]:
        """The events since the last call; waits for one where there are none.

        The value of "lost" is the reason. The work is not at fault, and may be begun again.
        """

    def close(self) -> None:
        """Kill what still runs. Afterwards none of it does."""


@dataclass(frozen=True)
class _Running:
    """A worker, as the pool that started it knows it; `gpu` is the only one that it sees, None
    where it sees all there are."""

    key: str
    process: BaseProcess
    gpu: str | None


class Pool:
    """Processes of this machine."""

    def __init__(self) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        method = "forkserver"
        if multiprocessing.parent_process():
            # A worker's own workers are forked: it has one thread, and has imported all there is.
            # A GPU that it has used cannot be used by a fork of it.
            method = "spawn" if _has_used_gpu() else "fork"
        self._context: Any = multiprocessing.get_context(method)
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(PRELOAD)
        self._running: dict[Connection, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def keys(self) -> set[str]:
        """The keys of those that still run."""
        return {worker.key for worker in self._running.values()}

    def jobs(self, wanted: int, device: str) -> int:
        """How many may run side by side here (`jobs`)."""
        return jobs(wanted, device)

    def start(
        self,
        key: str,
        function: Callable[..., object],
        *arguments: object,
        places: int = 1,
        memory: float = 0.0,
    ) -> Connection:
        """Run `function(*arguments, connection)` in a new process; returns the other end of that
        connection.

        A process that takes one of the `places` sees one GPU, and its neighbours see others; any
        other process sees all. `memory` is left to the kernel.
        """
        if multiprocessing.current_process().daemon:
            raise ConfigError(
                "a worker of multiprocessing.Pool may start no processes, which every run does; "
                "concurrent.futures.ProcessPoolExecutor has workers that may"
            )
        gpu = self._least_used_gpu() if places == 1 else None
        own_end: Connection
        worker_end: Connection
        own_end, worker_end = self._context.Pipe()
        process = self._context.Process(
            target=_main,
            args=(worker_end, function, arguments, gpu),
            daemon=False,  # a daemon may have no workers of its own
        )
        try:
            with _without_main(), warnings.catch_warnings():
                # a worker's one thread only waits for its parent's end; a resource tracker that
                # died is made again
                warnings.simplefilter("ignore")
                if self._context.get_start_method() == "forkserver":
                    _fork_server()
                process.start()
        # The fork server died, or there is no room for another process.
        except (OSError, EOFError) as error:
            own_end.close()
            raise WorkerDied(
                f"{key}: its process did not start ({_words(error)}); run again"
            ) from None
        except BaseException:  # Ctrl-C: a worker on its way finds nobody at the other end
            own_end.close()
            raise
        finally:
            worker_end.close()
        self._running[own_end] = _Running(key, process, gpu)
        return own_end

    def _least_used_gpu(self) -> str | None:
        """The GPU that the fewest workers use; None where there are not several."""
        visible = gpus()
        if len(visible) < 2:
            return None
        in_use = [worker.gpu for worker in self._running.values()]
        return min(visible, key=in_use.count)

    def wait(self) -> list[Happened]:
        """The events since the last call; waits for one where there are none."""
        sentinels = [worker.process.sentinel for worker in self._running.values()]
        ready = wait([*self._running, *sentinels])
        events = []
        for connection, worker in list(self._running.items()):
            if connection not in ready and worker.process.sentinel not in ready:
                continue
            kind, value = _receive(worker, connection)
            if kind in ("done", "failed"):
                del self._running[connection]
                _release(worker.process, connection)
            events.append((worker.key, kind, value))
        return events

    def close(self) -> None:
        """Kill what still runs."""
        # All are killed before any is waited for: each may take its time to end.
        for worker in self._running.values():
            worker.process.kill()
        for connection, worker in self._running.items():
            _release(worker.process, connection)
        self._running.clear()


def _receive(worker: _Running, connection: Connection) -> tuple[str, object]:
    """The next message of a worker, its kind and value, or that it died without one."""
    with suppress(EOFError, OSError):
        if connection.poll():  # also what a process that is gone by now had still sent
            try:
                kind, value = connection.recv()
                return kind, value
            except (EOFError, OSError):
                raise
            # An object that was taken apart there cannot be put together here.
            except Exception as error:
                problem = f"{worker.key}: what it sent cannot be read ({_words(error)})"
                return "failed", WorkerFailed(problem)
    _end(worker.process)
    code = worker.process.exitcode
    reason = f"exit code {code}"
    if code is not None:
        reason += _REASONS.get(code, "")
    problem = f"{worker.key}: its process died, {reason}; run again to go on from there"
    return "failed", WorkerDied(problem)


def _end(process: BaseProcess) -> None:
    """Wait for a process that has nothing more to do; kill it where that takes too long."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join(PATIENCE)  # not for ever: what waits for a disk cannot be killed


def _release(process: BaseProcess, connection: Connection) -> None:
    """Let go of all that ties a process to this one, so that it ends even where its fork server is
    gone."""
    connection.close()
    _end(process)
    with suppress(ValueError):  # it still waits for its disk
        process.close()


def _words(error: BaseException) -> str:
    return brief(f"{type(error).__name__}: {error}", 300)


_OPEN: ContextVar[Callable[[], Workers]] = ContextVar("open", default=Pool)


def opened() -> Workers:
    """Workers of the place where this work is to run; whoever calls this closes them."""
    return _OPEN.get()()


@contextmanager
def using(open: Callable[[], Workers]) -> Iterator[None]:
    """While this lasts, `opened` gives workers that `open` makes."""
    token = _OPEN.set(open)
    try:
        yield
    finally:
        _OPEN.reset(token)


def imap(
    setup: Callable[..., Callable[[Item], Output]],
    arguments: Sequence[object],
    items: Iterable[Item],
    workers: int,
) -> Iterator[Output]:
    """`setup(*arguments)(item)` for every item, in order, by `workers` processes.

    Each process calls `setup` once, and holds one item at a time. The item of a worker that is lost
    goes to another one. Closing the generator stops the workers.
    """
    if workers == 1:
        handle = setup(*arguments)
        for item in items:
            yield handle(item)
        return
    source = iter(items)
    first = list(itertools.islice(source, 1))
    if not first:  # without items no worker is started
        return
    dealt = _Dealt(opened(), setup, arguments, itertools.chain(first, source), workers)
    try:
        dealt.begin()
        while dealt.give():
            dealt.hear()
            dealt.give()  # before results are taken, which may be long: to write and flush a shard
            yield from dealt.due()
    finally:
        dealt.workers.close()


class _Dealt(Generic[Item, Output]):
    """Items on their way through workers: who holds which, and what has come back."""

    def __init__(
        self,
        workers: Workers,
        setup: Callable[..., Callable[[Item], Output]],
        arguments: Sequence[object],
        items: Iterable[Item],
        count: int,
    ) -> None:
        self.workers = workers
        self._serving = (_serve, setup, tuple(arguments))
        self._source = enumerate(items)
        self._count = count
        self._ends: dict[str, Sender] = {}
        self._idle: list[str] = []
        self._held: dict[str, tuple[int, Item]] = {}
        self._again: list[tuple[int, Item]] = []
        self._lost: Counter[str] = Counter()
        # Items are numbered: `sent` is the next to go out, `due` the next to be yielded.
        self._results: dict[int, Output] = {}
        self._sent = 0
        self._due = 0

    def begin(self) -> None:
        """Start the workers, who say when they are ready: on other machines that may be never."""
        for i in range(self._count):
            self._start(f"worker {i + 1}")

    def give(self) -> bool:
        """Give every idle worker an item; returns whether any are under way."""
        while self._idle and (numbered := self._next()) is not None:
            key = self._idle.pop()
            self._held[key] = numbered
            _send(self._ends[key], numbered)
        return not self._idle or self._due < self._sent

    def hear(self) -> None:
        """Take what workers tell next. Raises what one of them has failed with."""
        for key, kind, value in self.workers.wait():
            if kind == "ready":
                self._idle.append(key)
            elif kind == "progress":
                number, result = value
                self._results[number] = result
                del self._held[key]
                self._idle.append(key)
            elif kind == "lost":
                self._replace(key, value)
            elif kind != "note":  # of a worker that waits for room, which comes in time
                raise value if kind == "failed" else WorkerDied(f"{key}: ended early")

    def due(self) -> Iterator[Output]:
        """The results whose turn it is."""
        while self._due in self._results:
            yield self._results.pop(self._due)
            self._due += 1

    def _start(self, key: str) -> None:
        self._ends[key] = self.workers.start(key, *self._serving)

    def _next(self) -> tuple[int, Item] | None:
        """The next item, unless workers are too far ahead or there are no more."""
        if self._again:
            return self._again.pop()
        # One slow worker must not let the others run ahead without end: their results are kept
        # until its own is there.
        if self._sent - self._due >= 3 * self._count:
            return None
        numbered = next(self._source, None)
        self._sent += numbered is not None
        return numbered

    def _replace(self, key: str, reason: str) -> None:
        """Start a worker in the place of one that was lost; its item goes to whoever is idle.

        Raises WorkerDied where workers are lost over the same item, or as they start, too often.
        """
        numbered = self._held.pop(key, None)
        over = key if numbered is None else f"item {numbered[0]}"
        self._lost[over] += 1
        if self._lost[over] > LIVES:
            raise WorkerDied(f"{over}: {reason}; run again to go on from there")
        if numbered is not None:
            self._again.append(numbered)
        elif key in self._idle:
            self._idle.remove(key)
        self._start(key)


def _send(end: Sender, item: tuple[int, object]) -> None:
    # A worker that is dead is reported by `wait`, with the reason.
    with suppress(BrokenPipeError, ConnectionResetError):
        end.send(item)


def _serve(
    setup: Callable[..., Callable[[object], object]],
    arguments: tuple[object, ...],
    connection: Connection,
) -> None:
    """In a worker of `imap`: one item in, one result out, until it is killed."""
    # Items run side by side, and the threads of a tokenizer that was used before a fork are not
    # there after it: it would wait for them for ever.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    handle = setup(*arguments)
    connection.send(("ready", None))
    while True:
        number, item = connection.recv()
        connection.send(("progress", (number, handle(item))))


def _main(
    connection: Connection,
    function: Callable[..., object],
    arguments: tuple[object, ...],
    gpu: str | None,
) -> None:
    """A worker's life: no thread but ours, no Ctrl-C of its own, no life after its parent's."""
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, _PARENT_ONLY)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    outcome = last_word(function, arguments, connection)
    with suppress(OSError):  # the other end is gone
        try:
            connection.send(outcome)
        except OSError:
            raise
        except Exception:  # what cannot be pickled
            connection.send(("failed", WorkerFailed(traceback.format_exc())))


def last_word(
    function: Callable[..., object],
    arguments: Sequence[object],
    connection: object,
) -> tuple[str, object]:
    """What a worker has to say once it has run its function: "done" with the result, or "failed"
    with the error."""
    try:
        import torch

        torch.set_num_threads(1)
        return "done", function(*arguments, connection)
    except SynthbootError as error:
        return "failed", error
    except BaseException:
        return "failed", WorkerFailed(traceback.format_exc())


def end_with_parent() -> None:
    """Let the kernel kill this process, whatever it is doing, once the one that forked it is
    dead."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # A worker is a child of the fork server, and has inherited its end of a pipe. The fork server
    # ends once nobody holds that: its client alone must.
    server: Any = forkserver._forkserver
    if multiprocessing.parent_process() is not None and server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


def _fork_server() -> None:
    """Start the fork server unless it runs, deaf to the signals that are for its parent alone.

    It is so from its first moment on: a Ctrl-C while it imports torch would be a traceback on the
    terminal. One whose socket was cleared away, as files in /tmp may be in the weeks of a run, gets
    another beside it: it ends with this process, and its workers go on until then.
    """
    resource_tracker.ensure_running()  # which unblocks Ctrl-C as it starts
    server: Any = forkserver._forkserver
    if server._forkserver_address and not os.path.exists(server._forkserver_address):
        server._forkserver_pid = None
    _make_temporary_folder()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENT_ONLY)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _end_with_this_process()


@cache
def _end_with_this_process() -> None:
    """Have the fork server end before children are waited for, which it may not even have made.

    Of this process alone: a fork that exits is no client of its parent's server. Nor does a program
    that imports this and starts no worker lose the processes that it has started by it.
    """
    util.Finalize(None, _end_fork_server, exitpriority=0)


def _end_fork_server() -> None:
    """End the fork server with this process.

    It sees by itself that its client is gone, but not while it imports, which takes seconds.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        with suppress(OSError):  # it is gone already
            os.kill(server._forkserver_pid, signal.SIGKILL)


def _make_temporary_folder() -> None:
    """Make the folder of multiprocessing's sockets, unless it is there: below TMPDIR, or in /tmp
    where paths would be longer than the kernel takes.

    Its own would be looked for there alone, and missed with a traceback as this process ends.
    """
    own: Any = multiprocessing.current_process()
    made = own._config.get("tempdir")
    if made is not None and os.path.isdir(made):
        return
    above = tempfile.gettempdir()
    if len(os.fsencode(above)) + len("/pymp-12345678/listener-12345678") > _LONGEST_ADDRESS:
        above = "/tmp"
    folder = tempfile.mkdtemp(prefix="pymp-", dir=above)
    ignore_errors = True
    util.Finalize(None, shutil.rmtree, args=(folder, ignore_errors), exitpriority=-100)
    own._config["tempdir"] = folder


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP stop the work as Ctrl-C does, unless they are ignored (`nohup`).

    Each raises a KeyboardInterrupt with its number. The list that is yielded holds the number too,
    since a library may raise a KeyboardInterrupt of its own instead. After the first signal the
    others are ignored, so that they do not interrupt the cleaning up.
    """
    came: list[int] = []
    before = {}
    # Only the main thread can set handlers; in another, signals are the caller's affair.
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(each)
            if handler is not signal.SIG_IGN:
                before[each] = handler

    def stop(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        came.append(number)
        raise KeyboardInterrupt(number)

    for each in before:
        signal.signal(each, stop)
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the user's script while a process starts.

    Workers run our functions only. A new process would import the script again, and so run it again
    where it lacks a `__main__` guard.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_with(sentinel: int) -> None:
    """End this process once its parent has, where the kernel does not see to it."""
    wait([sentinel])
    os._exit(1)
