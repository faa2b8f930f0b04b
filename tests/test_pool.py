import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from synthboot import loading, pool
from synthboot.artifacts.store import silent
from synthboot.errors import ConfigError
from synthboot.lm import model as models
from synthboot.steps.context import Context
from tests.conftest import double, soon


def failing(_: int) -> Any:
    def run(item: int) -> int:
        if item == 3:
            raise ConfigError("three is too many")
        if item == 5:
            raise ZeroDivisionError("a bug")
        if item == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    return run


@pytest.mark.parametrize("workers", [1, 2])
def test_imap_keeps_the_order_of_its_items(workers: int) -> None:
    results = list(pool.imap(double, (1,), range(30), workers))
    assert [value for value, _ in results] == [2 * i + 1 for i in range(30)]
    assert len({pid for _, pid in results}) == (1 if workers == 1 else 2)


def in_a_pool(_: int) -> str:
    running = pool.opened()
    try:
        running.start("x", double, 1)
    except ConfigError as error:
        return str(error)
    return "started"


def test_a_worker_that_may_start_none_is_told_which_may() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        [said] = workers.map(in_a_pool, [0])
    assert "multiprocessing.Pool may start no processes" in said
    assert "ProcessPoolExecutor" in said


def test_imap_reads_an_endless_source_only_as_far_as_it_must() -> None:
    asked = []

    def source() -> Any:
        number = 0
        while True:
            asked.append(number)
            yield number
            number += 1

    found = pool.imap(double, (0,), source(), 2)
    assert [next(found)[0] for _ in range(4)] == [0, 2, 4, 6]
    found.close()
    assert len(asked) < 12


class AtOnce:
    """Workers that are done with an item as soon as they have it; each item that went out is in `given`."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self._events: list[pool.Happened] = []

    def __len__(self) -> int:
        return 0

    def keys(self) -> set[str]:
        return set()

    def jobs(self, wanted: int, device: str) -> int:
        return wanted

    def start(self, key: str, function: Any, *arguments: object, places: int = 1, memory: float = 0.0) -> pool.Sender:
        self._events.append((key, "ready", None))
        workers = self

        class To:
            def send(self, message: Any, /) -> None:
                number, item = message
                workers.given.append(number)
                workers._events.append((key, "progress", (number, item)))

        return To()

    def wait(self) -> list[pool.Happened]:
        return [self._events.pop(0)]

    def close(self) -> None:
        self._events.clear()


def test_no_worker_is_idle_while_results_are_taken() -> None:
    workers = AtOnce()
    with pool.using(lambda: workers):
        for taken, item in enumerate(pool.imap(double, (0,), range(9), 2)):
            assert item == taken
            assert len(workers.given) == min(9, taken + 3)  # the one that is taken, and one that each works on


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (3, ConfigError, "three is too many"),
        (5, pool.WorkerFailed, "ZeroDivisionError: a bug"),
        (7, pool.WorkerDied, "exit code -9"),
    ],
)
def test_a_worker_that_fails_or_dies_is_an_error_never_a_hang(item: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(pool.imap(failing, (0,), [item, 1, 2], 2))


def test_jobs_default_to_the_cores_this_process_may_use() -> None:
    assert pool.jobs(0) == len(os.sched_getaffinity(0))
    assert pool.jobs(3) == 3
    assert pool.jobs(0, "cuda") == 1  # a GPU is not shared unless the user says so
    assert pool.jobs(2, "cuda") == 2


@pytest.mark.parametrize(("allowed", "number"), [("", 0), ("-1", 0), ("NoDevFiles", 0), ("0", 1), ("2,5,7", 3), ("2,-1,7", 1)])
def test_where_a_job_may_use_no_gpu_it_uses_all_its_cores(monkeypatch: pytest.MonkeyPatch, allowed: str, number: int) -> None:
    """On a machine that has some: its driver's file is there, whatever Slurm gave this job."""
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    cores = len(os.sched_getaffinity(0))
    assert len(pool.gpus()) == number
    assert pool.jobs(0, "auto") == (number or cores)
    assert pool.jobs(0, "cpu") == cores
    assert pool.jobs(0, "cuda") == max(1, number)


def test_workers_that_fill_a_gpu_are_no_more_than_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def workers(**engine: Any) -> int:
        settings = {
            "name": "many",
            "budget": {"unique_tokens": 10_000, "train_tokens": 20_000},
            "corpus": {"source": "text.jsonl"},
            "arms": {"repetition": {}},
            "engine": {"device": "cuda", **engine},
        }
        cfg = loading.load(settings)
        return Context(cfg, tmp_path, {}, 14, silent).gpu_workers

    assert workers() == workers(device="auto") == 2
    assert workers(device="cpu") == 14
    assert workers(executor="ray") == 14  # which places them on nodes of its own
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert workers(device="auto") == 14  # a driver alone is no GPU


def _seen(_: Any) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _setup() -> Any:
    return _seen


def _refilled() -> Any:
    def faults(_: Any) -> tuple[int, int]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(2**24).find(b"x")  # made, read through, and freed
        return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    return faults


def test_a_worker_keeps_the_memory_it_frees() -> None:
    by_worker: dict[int, list[int]] = {}
    for worker, faults in pool.imap(_refilled, (), range(6), 2):  # one that is late may have its first item last
        by_worker.setdefault(worker, []).append(faults)
    pages = 2**24 // os.sysconf("SC_PAGESIZE")
    assert all(first > pages / 2 for first, *_ in by_worker.values())
    assert max(faults for _, *later in by_worker.values() for faults in later) < pages / 8


def test_workers_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert pool.gpus() == ["3", "5"]
    assert pool.jobs(0, "cuda") == 2
    assert set(pool.imap(_setup, (), range(40), 2)) <= {"3", "5"}
    running = pool.Pool()
    try:
        for number in range(4):
            running.start(str(number), _seen, places=1)
        found: list[str] = []
        while len(running):
            found += [value for _, kind, value in running.wait() if kind == "done"]
        assert sorted(found) == ["3", "3", "5", "5"]
    finally:
        running.close()


written_by_parent = False


def _reads_parent() -> Any:
    return lambda _: written_by_parent


def _with_own_workers(uses_gpu: bool) -> Any:
    def run(_: int) -> list[bool]:
        global written_by_parent
        written_by_parent = True
        torch.cuda.is_initialized = lambda: uses_gpu  # in this worker alone
        return list(pool.imap(_reads_parent, (), range(2), 2))

    return run


def _asking_for_a_gpu() -> Any:
    def runtime() -> int:
        raise AssertionError("the runtime was asked, which no fork could use afterwards")

    def run(_: int) -> str:
        # a build of torch with CUDA, and a driver that says how many GPUs there are
        torch.cuda._is_compiled = lambda: True
        torch.cuda._device_count_nvml = lambda: 1
        torch._C._cuda_getDeviceCount = runtime
        return models.device("auto").type

    return run


def test_a_worker_that_has_asked_for_a_gpu_may_still_be_forked() -> None:
    assert list(pool.imap(_asking_for_a_gpu, (), range(2), 2)) == ["cuda"] * 2


@pytest.mark.parametrize("uses_gpu", [False, True])
def test_a_worker_that_has_used_a_gpu_does_not_fork_it(uses_gpu: bool) -> None:
    # a fork has its parent's memory, and its parent's use of the GPU, which breaks there
    (seen,) = list(pool.imap(_with_own_workers, (uses_gpu,), range(1), 2))
    assert seen == [not uses_gpu] * 2


class Unreadable(ConfigError):
    """An error that pickle takes apart and cannot put together."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what + why)


def odd(way: str) -> Any:
    """A worker that goes wrong at its third item in some way."""
    if way == "setup raises":
        raise ConfigError("nothing to work with")

    def run(item: int) -> Any:
        if item != 3:
            return item
        if way == "ends without a word":
            os._exit(0)
        if way == "exits":
            sys.exit(3)
        if way == "hangs up":
            os.closerange(3, 256)
            time.sleep(60)
        if way == "sends what cannot be sent":
            return lambda: None
        if way == "raises what cannot be read":
            raise Unreadable("a", "b")
        if way == "dies between two items":
            threading.Timer(0.1, os._exit, (7,)).start()
        if isinstance(way, int):
            os.kill(os.getpid(), way)
            time.sleep(0.3)
        return bytes(2**25) if way == "sends much" else item

    return run


def some(way: Any) -> Iterator[int]:
    for item in range(8):
        if way == "items raise" and item == 5:
            raise ConfigError("no more of these")
        if way == "dies between two items" and item == 5:
            time.sleep(0.4)
        yield item


DIED = "worker [12]: its process died, exit code {}.*; run again to go on from there"


@pytest.mark.parametrize(
    ("way", "error", "message"),
    [
        ("setup raises", ConfigError, "nothing to work with"),
        ("ends without a word", pool.WorkerDied, DIED.format(0)),
        ("exits", pool.WorkerFailed, "SystemExit: 3"),
        ("hangs up", pool.WorkerDied, DIED.format(-9)),
        ("sends what cannot be sent", pool.WorkerFailed, "lambda"),
        ("raises what cannot be read", pool.WorkerFailed, "worker [12]: what it sent cannot be read .*TypeError"),
        ("dies between two items", pool.WorkerDied, DIED.format(7)),
        ("items raise", ConfigError, "no more of these"),
        (signal.SIGTERM, pool.WorkerDied, DIED.format(-15)),
        (signal.SIGSEGV, pool.WorkerDied, DIED.format(-11)),
    ],
)
def test_whatever_a_worker_does_is_an_error_within_seconds(
    way: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PATIENCE", 0.5)
    with pytest.raises(error, match=message):
        list(pool.imap(odd, (way,), some(way), 2))


@pytest.mark.parametrize("way", ["sends much", signal.SIGINT, signal.SIGHUP])
def test_what_is_no_fault_is_none(way: Any) -> None:
    assert len(list(pool.imap(odd, (way,), some(way), 2))) == 8


def stopped(child_of: int | None = None) -> list[int]:
    """Processes that a SIGSTOP holds."""
    return [pid for pid, state, parent in processes() if state == "T" and child_of in (None, parent)]


def processes() -> list[tuple[int, str, int]]:
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just gone
        found.append((int(place.parent.name), state, int(parent)))
    return found


def below(program: str) -> int:
    """The youngest child of this process that runs a program of multiprocessing, 0 where there is none."""
    found = [0]
    for pid, state, parent in processes():
        if parent != os.getpid() or state == "Z":
            continue
        with suppress(OSError):  # it has just gone
            if program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return max(found)


def alive(pid: int) -> bool:
    return any(pid == found and state != "Z" for found, state, _ in processes())


def itself(_: int) -> int:
    return os.getpid()


def _itself() -> Any:
    return itself


def stops(item: int) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return item


def _stops() -> Any:
    return stops


def test_a_worker_that_is_stopped_for_a_while_goes_on() -> None:
    found = pool.imap(_stops, (), range(6), 2)

    def go_on() -> None:
        for pid in soon(lambda: stopped(below("forkserver"))):
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=go_on)
    thread.start()
    assert list(found) == list(range(6))
    thread.join()


def parent_of_stopped(place: str, connection: Any) -> None:
    """A worker with two workers of its own, the first of which is stopped as soon as it has told its number."""
    found = pool.imap(_itself, (), iter(lambda: 0, 1), 2)
    pids: set[int] = set()
    while len(pids) < 2:  # one that is ready first is given items first
        pids.add(next(found))
    os.kill(min(pids), signal.SIGSTOP)
    Path(place).write_text(" ".join(map(str, [os.getpid(), *pids])))
    time.sleep(60)


def test_a_killed_worker_takes_its_own_workers_along_even_a_stopped_one(tmp_path: Path) -> None:
    running = pool.Pool()
    try:
        running.start("unit", parent_of_stopped, str(tmp_path / "pids"))
        first, *rest = map(int, soon(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text()).split())
        assert len(rest) == 2
        os.kill(first, signal.SIGKILL)
        [(_, kind, error)] = running.wait()
        assert kind == "failed"
        assert isinstance(error, pool.WorkerDied)
        soon(lambda: not any(map(alive, rest)), 5)
    finally:
        running.close()


KILLED_SERVERS = """
from synthboot import pool
from tests.test_pool import kill_fork_servers
pool.PRELOAD[1:] = ["torch"]
if __name__ == "__main__":
    kill_fork_servers()
"""


def test_a_fork_server_that_is_killed_is_an_error_and_then_there_is_another() -> None:
    """In a process of its own, or the tests after it would wait until another has imported everything."""
    subprocess.run([sys.executable, "-c", KILLED_SERVERS], check=True)


def kill_fork_servers() -> None:
    found = pool.imap(_itself, (), iter(lambda: 0, 1), 2)
    worker = next(found)
    [server] = [parent for pid, _, parent in processes() if pid == worker]  # it forked the worker
    os.kill(server, signal.SIGKILL)
    with pytest.raises(pool.WorkerDied, match=r"its process died, exit code 255 \(with the fork server"):
        for _ in range(10**6):
            next(found)
    soon(lambda: not alive(worker), 10)
    os.kill(below("resource_tracker"), signal.SIGKILL)
    soon(lambda: not below("resource_tracker"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tracker that died, where that is noticed in time
        forkserver.ensure_running()  # which is busy for a while, importing
    server = below("forkserver")
    os.kill(server, signal.SIGKILL)
    try:
        met = ""
        try:
            list(pool.imap(_itself, (), range(4), 2))
        except pool.WorkerDied as error:
            met = str(error)
        # either it is met dying, or seen to be dead and started anew
        assert not met or re.search(r"worker 1: its process did not start \(\w+Error: .*\); run again", met)
    finally:
        soon(lambda: not alive(server))
    assert len(list(pool.imap(_itself, (), range(4), 2))) == 4


ALONE = """
import os, signal, sys, tempfile
from pathlib import Path
from synthboot import pool
from tests.test_pool import parent_of_stopped
pool.PRELOAD[1:] = []
if __name__ == "__main__":
    running = pool.Pool()
    running.start("unit", parent_of_stopped, sys.argv[1])
    running.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_nothing_outlives_its_parent(tmp_path: Path, short_folder: Path, number: int) -> None:
    place, folder = tmp_path / "pids", short_folder
    environment = {**os.environ, "TMPDIR": str(folder)}
    process = subprocess.Popen([sys.executable, "-c", ALONE, str(place)], env=environment, start_new_session=True)
    unit = soon(lambda: place.exists() and place.read_text(), 60).split()[0]
    os.kill(int(unit), signal.SIGSTOP)  # it cannot see to its own end
    assert list(folder.iterdir())  # the fork server's socket
    session = os.getsid(process.pid)
    process.send_signal(number)
    process.wait()

    def left() -> list[int]:
        return [pid for pid, state, _ in processes() if state != "Z" and _session(pid) == session]

    soon(lambda: not left())
    assert not list(folder.iterdir())


IMPORTING = """
from synthboot import pool
from tests.test_pool import _itself
pool.PRELOAD[1:] = ["slow"]
if __name__ == "__main__":
    pool.Pool().start("unit", _itself)
"""


def test_processes_that_a_program_has_started_by_the_fork_server_are_waited_for(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing, os, sys\n"
        "import synthboot.pool\n"
        "if __name__ == '__main__':\n"
        "    command = f'sleep 1; touch {sys.argv[1]}'\n"
        "    multiprocessing.get_context('forkserver').Process(target=os.system, args=(command,)).start()\n"
    )
    subprocess.run([sys.executable, str(script), str(tmp_path / "made")], check=True, timeout=120)
    assert (tmp_path / "made").exists()


def test_a_fork_server_that_still_imports_ends_with_its_client(tmp_path: Path, short_folder: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "slow.py").write_text(f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(600)\n")
    paths = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "TMPDIR": str(short_folder), "PYTHONPATH": paths}
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTING],
        env=environment,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background of a shell it is ignored
    )
    session = os.getsid(process.pid)
    try:
        soon(begun.exists, 60)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        soon(lambda: not [pid for pid, state, _ in processes() if state != "Z" and _session(pid) == session], 20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)


def listening(session: int) -> set[str]:
    """The paths of the sockets that a session's processes listen at."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    paths = {f"socket:[{line[6]}]": line[7] for line in lines if len(line) == 8 and line[7].startswith("/")}
    found = set()
    for pid, _, _ in processes():
        try:
            if os.getsid(pid) == session:
                links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
                found |= {paths[link] for link in links & paths.keys()}
        except OSError:
            continue  # it has just gone
    return found


LONG_FOLDER = """
import operator
from synthboot import pool
pool.PRELOAD[1:] = ["torch"]
if __name__ == "__main__":
    print(list(pool.imap(operator.itemgetter, (0,), ["ab", "cd"], 2)))
"""


def test_a_long_folder_for_temporary_files_is_no_obstacle(tmp_path: Path) -> None:
    """A socket's address has room for 107 characters."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", LONG_FOLDER]
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    paths = soon(lambda: listening(process.pid) or (process.poll() is not None and {"none"}), 120)
    found, said = process.communicate(timeout=120)
    assert found == "['a', 'c']\n", said
    [path] = paths
    assert len(path) <= 107
    assert not Path(path).parent.exists()


CLEARED = """
import operator, shutil, tempfile
from pathlib import Path
from synthboot import pool
from tests.test_pool import once_there
pool.PRELOAD[1:] = []

def results(running):
    return [value for _, kind, value in running.wait() if kind in ("done", "failed")]

if __name__ == "__main__":
    temporary = Path(tempfile.gettempdir())
    running = pool.Pool()
    running.start("before", once_there, str(temporary / "go"))
    for folder in list(temporary.glob("pymp-*")):
        shutil.rmtree(folder)
    running.start("after", once_there, str(temporary))
    print(results(running))
    (temporary / "go").touch()
    print(results(running))
    (temporary / "go").unlink()
    for folder in temporary.glob("pymp-*"):
        shutil.rmtree(folder)
"""


def once_there(path: str, _: object) -> str:
    soon(lambda: Path(path).exists())
    return path


def test_a_folder_for_temporary_files_that_is_cleared_ends_no_work(short_folder: Path) -> None:
    """As some systems do with what is ten days old, and a run may take three weeks."""
    environment = {**os.environ, "TMPDIR": str(short_folder)}
    command = [sys.executable, "-c", CLEARED]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert process.stdout.splitlines() == [f"['{short_folder}']", f"['{short_folder}/go']"], process.stderr
    assert not process.stderr
    assert not list(short_folder.iterdir())


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


STOPPED = """
import os, sys, time
from synthboot.pool import stoppable
with stoppable():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt as stop:
        for number in (2, 15, 1):
            os.kill(os.getpid(), number)  # what comes now is not heard
        print(stop.args[0], flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_once(number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # under nohup, or in the background, it is ignored
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{int(number)}\n"
    assert process.returncode == 0


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with pool.stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
