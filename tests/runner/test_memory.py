"""A unit's memory is that of its workers too."""

import subprocess
import sys
import threading

from synthboot.runner.memory import Memory

HOLDS = "held = b'x' * (150 << 20); print(len(held), flush=True); input()"


def test_processes_that_are_there_at_once_are_added_up() -> None:
    """None of these workers is as large as this process, which is all that the largest of them would show."""
    workers = [subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    with Memory(pause=0.01) as memory:
        before = memory.peak()
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        while memory.peak() < before + (150 << 20):
            threading.Event().wait(0.01)
    for worker in workers:
        worker.communicate(b"\n")
    assert memory.peak() < before + (600 << 20)
