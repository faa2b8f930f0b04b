"""One process at a time: the others wait or are told by whom they are kept waiting, and a lock goes with its holder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthboot.data import lock
from synthboot.errors import ConfigError, LockedRun

HOLDS = """
import os, sys, time
from pathlib import Path
from synthboot.data import lock
with lock.held(Path(sys.argv[1])):
    child = os.fork()  # as a worker forks its own: it has what was open then
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder, and has a child."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process
    for pid in (child, process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_folder_that_is_held_names_its_holder_and_is_free_once_that_is_killed(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    node = os.uname().nodename  # several may see the folder
    for _ in range(2):  # who asks in vain changes nothing
        with pytest.raises(LockedRun, match=f"process {holder.pid} on {node} is working on this run"), lock.held(tmp_path):
            pytest.fail("two at a time")
    holder.send_signal(signal.SIGKILL)
    with lock.held(tmp_path, patience=5):  # though its child lives on
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {node}"
    with lock.held(tmp_path):
        pass


def test_patience_waits_for_who_holds_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    threading.Timer(0.2, holder.kill).start()
    before = time.monotonic()
    with lock.held(tmp_path, patience=30):
        assert time.monotonic() - before >= 0.1


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_is_held_however_the_file_system_says_it(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    assert lock.is_held(tmp_path / ".lock")
    with pytest.raises(LockedRun), lock.shared(tmp_path):
        pytest.fail("two at a time")


def test_a_file_system_without_locks_is_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "none")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="none"):
        lock.is_held(tmp_path / ".lock")


def test_a_turn_is_shared_by_those_who_were_told_of_it_until_the_next_begins(tmp_path: Path) -> None:
    turn = lock.next_turn(tmp_path, "guard")
    for _ in range(2):
        with (
            lock.shared(tmp_path, "guard", turn=turn),
            lock.shared(tmp_path, "guard", turn=turn),
            pytest.raises(LockedRun, match=f"process {os.getpid()} on {os.uname().nodename} is working on this run"),
        ):
            lock.next_turn(tmp_path, "guard")  # not while they work
        with lock.held(tmp_path, "guard"):  # who only looks whether it is free begins none
            pass
    following = lock.next_turn(tmp_path, "guard")
    with pytest.raises(LockedRun, match="other processes have taken over"), lock.shared(tmp_path, "guard", turn=turn):
        pytest.fail("in a turn that is over")
    with lock.shared(tmp_path, "guard", turn=following), lock.shared(tmp_path, "guard"):  # who was told of none may
        pass


def test_without_a_turn_there_is_nothing_to_share_in_it(tmp_path: Path) -> None:
    elsewhere = tmp_path / "not" / "mounted"
    with pytest.raises(ConfigError, match=r"not/mounted/\.lock: missing on"), lock.shared(elsewhere, turn="0" * 32):
        pytest.fail("where nobody has begun one")
    assert not elsewhere.parent.exists()
    with lock.held(tmp_path):
        pass
    with pytest.raises(LockedRun, match="have taken over"), lock.shared(tmp_path, turn="0" * 32):
        pytest.fail("in no turn")


def test_a_lock_file_that_holds_something_else_is_taken_all_the_same(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_bytes(b"\xff\xfe\n\xff")
    with lock.held(tmp_path), pytest.raises(LockedRun, match=f"process {os.getpid()} on "), lock.held(tmp_path):
        pytest.fail("held twice")
    (tmp_path / lock.NAME).write_bytes(b"\xff\n\xff")
    with pytest.raises(LockedRun, match="have taken over"), lock.shared(tmp_path, turn="ours"):
        pytest.fail("in a turn that it is not")
