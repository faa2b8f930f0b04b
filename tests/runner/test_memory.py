"""A unit's memory is that of its workers too."""

import subprocess
import sys

from synthboot.runner.memory import Memory

HOLDS = "held = b'x' * (150 << 20); print(len(held), flush=True); input()"


def test_processes_that_are_there_at_once_are_added_up() -> None:
    workers = []
    with Memory(pause=0.01) as memory:
        before = memory.peak()
        for _ in range(6):
            workers.append(subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert workers[-1].stdout is not None
            workers[-1].stdout.readline()
        while memory.peak() == before:  # no process of these is as large as this one, all of them are
            pass
        while memory.peak() < 900 << 20:
            pass
    for worker in workers:
        worker.communicate(b"\n")
    assert 900 << 20 <= memory.peak() < before + (1_400 << 20)


def test_a_process_that_came_and_went_between_two_looks_counts() -> None:
    with Memory(pause=3_600) as memory:
        subprocess.run([sys.executable, "-c", "held = b'x' * (1_500 << 20)"], check=True)
    assert memory.peak() > 1_500 << 20
