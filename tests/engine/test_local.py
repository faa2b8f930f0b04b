import os
import resource
import signal
import time
from typing import Any

import pytest

from synthboot.engine import local
from synthboot.errors import ConfigError


def double(offset: int) -> Any:
    def run(item: int) -> tuple[int, int]:
        time.sleep(0.02 * (item % 3))  # finish out of order
        return 2 * item + offset, os.getpid()

    return run


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
    results = list(local.imap(double, (1,), range(12), workers))
    assert [value for value, _ in results] == [2 * i + 1 for i in range(12)]
    assert len({pid for _, pid in results}) == (1 if workers == 1 else 2)


def test_imap_reads_an_endless_source_only_as_far_as_it_must() -> None:
    asked = []

    def source() -> Any:
        number = 0
        while True:
            asked.append(number)
            yield number
            number += 1

    found = local.imap(double, (0,), source(), 2)
    assert [next(found)[0] for _ in range(4)] == [0, 2, 4, 6]
    found.close()
    assert len(asked) < 12


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (3, ConfigError, "three is too many"),
        (5, local.WorkerFailed, "ZeroDivisionError: a bug"),
        (7, local.WorkerDied, "exit code -9"),
    ],
)
def test_a_worker_that_fails_or_dies_is_an_error_never_a_hang(item: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(local.imap(failing, (0,), [item, 1, 2], 2))


def test_jobs_default_to_the_cores_this_process_may_use() -> None:
    assert local.jobs(0) == len(os.sched_getaffinity(0))
    assert local.jobs(3) == 3
    assert local.jobs(0, "cuda") == 1  # a GPU is not shared unless the user says so
    assert local.jobs(2, "cuda") == 2


def _seen(_: Any) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _setup() -> Any:
    return _seen


def _refilled() -> Any:
    def faults(_: Any) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(2**24).find(b"x")  # made, read through, and freed
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    return faults


def test_a_worker_keeps_the_memory_it_frees() -> None:
    first, *later = local.imap(_refilled, (), range(4), 2)  # two workers: each has its first
    pages = 2**24 // os.sysconf("SC_PAGESIZE")
    assert first > pages / 2
    assert max(later[1:]) < pages / 8


def test_workers_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert local.gpus() == ["3", "5"]
    assert local.jobs(0, "cuda") == 2
    assert set(local.imap(_setup, (), range(40), 2)) <= {"3", "5"}
    pool = local.Pool()
    try:
        for number in range(4):
            pool.start(number, time.sleep, own_gpu=True)
        assert sorted(str(gpu) for *_, gpu in pool._running.values()) == ["3", "3", "5", "5"]
    finally:
        pool.close()
