"""Where work runs: processes side by side, one thread each, on this machine unless `using` names
another place (`runner.cluster`).

One thread a process keeps results the same whatever `engine.jobs` is, and several processes use the
cores better than several threads do at these sizes. Workers come from a fork server that has
imported torch once, and a worker's own workers by forking it, or anew where it has used a GPU. A
worker that dies is an error here, never a hang, and a worker does not outlive its parent, however
that went: the kernel kills it, even one that is stopped or deep in a library. Ctrl-C and the
terminal's end are for the parent alone, which kills its workers as it goes; one that is stopped for
a while is waited for.

`start`/`wait` run whole units side by side; `imap` streams items through workers and yields results
in item order. Both are all that the rest knows of where work runs.
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
"""What workers find in their environment unless the user has set it.

Libraries and libc read it as they start.
"""

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
"""How often work is begun again whose worker was lost with its machine, before that is an error."""

_NO_GPU = {"", "-1", "NoDevFiles"}
"""Names in CUDA_VISIBLE_DEVICES that are none, the last as Slurm writes it: CUDA sees no GPU from
there on."""
_PARENT_ONLY = {signal.SIGINT, signal.SIGHUP}
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
"""What a worker tells: its key, the kind ("ready", "progress", "note", "done", "failed", and on
machines that may be lost "lost"), a value."""


@runtime_checkable
class Sender(Protocol):
    """The end of a connection that what a worker is to do goes into."""

    def send(self, message: Any, /) -> None:
        """Hand it over."""


@runtime_checkable
class Workers(Protocol):
    """Processes that each run one function and tell how they get on, wherever they are."""

    def __len__(self) -> int: ...

    def keys(self) -> set[str]:
        """What still runs."""

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
        """Run `function(*arguments, connection)` in a new process; returns what feeds the other end
        of that connection.

        It takes as many `places` (GPUs, or cores where there are none); with 0 it mostly waits for
        workers of its own, which take theirs. `memory` is what it is expected to take, in bytes.
        """

    def wait(self) -> list[Happened]:
        """What has happened since, at least one event.

        One that is "lost" has a reason as its value; it is no fault of the work, which may be
        begun again.
        """

    def close(self) -> None:
        """Kill what still runs. Afterwards none of it does."""


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
        self._running: dict[Connection, tuple[str, BaseProcess, str | None]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def keys(self) -> set[str]:
        """What still runs."""
        return {key for key, *_ in self._running.values()}

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
        """Run `function(*arguments, connection)` in a new process; returns this end's connection.

        One that takes one of the `places` sees one GPU, and its neighbours others; any other sees
        all. `memory` is left to the kernel.
        """
        if multiprocessing.current_process().daemon:
            raise ConfigError(
                "a worker of multiprocessing.Pool may start no processes, which every run does; "
                "concurrent.futures.ProcessPoolExecutor has workers that may"
            )
        visible = gpus() if places == 1 else []
        gpu = None
        if len(visible) > 1:  # the one that the fewest others use
            in_use = [used for _, _, used in self._running.values()]
            gpu = min(visible, key=in_use.count)

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
        self._running[own_end] = (key, process, gpu)
        return own_end

    def wait(self) -> list[Happened]:
        """What has happened since, at least one event."""
        sentinels = [process.sentinel for _, process, _ in self._running.values()]
        ready = wait([*self._running, *sentinels])
        events = []
        for connection, (key, process, _) in list(self._running.items()):
            if connection not in ready and process.sentinel not in ready:
                continue
            kind, value = _receive(key, process, connection)
            if kind in ("done", "failed"):
                del self._running[connection]
                _release(process, connection)
            events.append((key, kind, value))
        return events

    def close(self) -> None:
        """Kill what still runs."""
        # All at once, then one after the other: each may take its time to end.
        for _, process, _ in self._running.values():
            process.kill()
        for connection, (_, process, _) in self._running.items():
            _release(process, connection)
        self._running.clear()


def _receive(
    key: str,
    process: BaseProcess,
    connection: Connection,
) -> tuple[str, object]:
    """The next message of a process, or that it died without one."""
    with suppress(EOFError, OSError):
        if connection.poll():  # also what a process that is gone by now had still sent
            try:
                kind, value = connection.recv()
                return kind, value
            except (EOFError, OSError):
                raise
            # An object that was taken apart there cannot be put together here.
            except Exception as error:
                problem = f"{key}: what it sent cannot be read ({_words(error)})"
                return "failed", WorkerFailed(problem)
    _end(process)
    code = process.exitcode
    reason = f"exit code {code}"
    if code is not None:
        reason += _REASONS.get(code, "")
    problem = f"{key}: its process died, {reason}; run again to go on from there"
    return "failed", WorkerDied(problem)


def _end(process: BaseProcess) -> None:
    """Wait for a process that has nothing more to do, and no longer than it deserves."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join(PATIENCE)  # not for ever: what waits for a disk cannot be killed


def _release(process: BaseProcess, connection: Connection) -> None:
    """Let go of all that ties a process to this one.

    So it ends even where its fork server is gone.
    """
    connection.close()
    _end(process)
    with suppress(ValueError):  # it still waits for its disk
        process.close()


def _words(error: BaseException) -> str:
    return brief(f"{type(error).__name__}: {error}", 300)


_OPEN: ContextVar[Callable[[], Workers]] = ContextVar("open", default=Pool)


def opened() -> Workers:
    """Workers where this work is to run; close them afterwards."""
    return _OPEN.get()()


@contextmanager
def using(open: Callable[[], Workers]) -> Iterator[None]:
    """Let `opened` give such workers while this is entered."""
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

    Each process calls setup once. Each worker holds one item at a time; closing the generator stops
    the workers. The item of a worker that is lost goes to another one.
    """
    if workers == 1:
        handle = setup(*arguments)
        for item in items:
            yield handle(item)
        return
    source = iter(items)
    first = list(itertools.islice(source, 1))
    if not first:  # nobody has to be started for nothing
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
            elif kind != "note":  # which is of one that waits for room, and comes in time
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
        """Start a worker in the place of one that was lost, whose item goes to whoever is idle.

        Raises WorkerDied where workers are lost over one item again and again, or as they start.
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
    """Let the kernel kill this process as soon as the one that forked it is dead.

    It does so whatever this process is doing then.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # The fork server, whose child a worker is, ends when nobody holds this pipe: that has to be its
    # client alone.
    server: Any = forkserver._forkserver
    if multiprocessing.parent_process() is not None and server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


def _fork_server() -> None:
    """Start the fork server unless it runs, deaf to what is for its parent alone.

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


def _end_fork_server() -> None:
    """End the fork server with this process.

    It sees by itself that its client is gone, but not while it imports, which takes seconds.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        with suppress(OSError):  # it is gone already
            os.kill(server._forkserver_pid, signal.SIGKILL)


# of this process alone: a fork that exits is no client of its parent's server
util.Finalize(None, _end_fork_server, exitpriority=0)


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
    """Let SIGTERM and SIGHUP stop as Ctrl-C does, unless they are ignored (`nohup`).

    They raise a KeyboardInterrupt with the signal's number, which is in the list that this gives
    too: a library may raise one of its own instead. Once is enough: what comes while things are put
    in order does not interrupt that.
    """
    came: list[int] = []
    before = {}
    # Handlers can be set by the main thread alone; who calls from elsewhere sees to it.
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

    Workers run our functions only, and importing the script again would run it again wherever it
    lacks a `__main__` guard.
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
