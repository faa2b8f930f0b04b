"""A disk that is full, read-only, or not what it should be: one line that says where and what to do, nothing lost, and the
same bytes once there is space."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthboot import api, config, recipes
from synthboot.artifacts import store
from synthboot.data import disk
from synthboot.errors import StorageError
from synthboot.runner import unit
from synthboot.runner.graph import fingerprints
from synthboot.runner.state import states
from tests.conftest import Deaf, by_a_worker, contents, in_a_fork, tiny_config


def leave(place: Path, kilobytes: int) -> None:
    """Let a file system of its own have that much room left."""
    disk = os.statvfs(place)
    used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024
    subprocess.run(["mount", "-o", f"remount,size={used + kilobytes}k", str(place)], check=True)


def make_until_full(settings: dict[str, Any], place: Path, tried: Path, said: Path, connection: object) -> int:
    """In a worker: make all units in a child, and go on in another one, with more room, where the disk was full."""
    cfg = config.Config.model_validate(settings)

    def make_all() -> None:
        plan = recipes.units(cfg)
        standing, marks = states(cfg, plan), fingerprints(plan)
        for name in plan:
            if standing[name].status == "done":
                continue
            if name not in tried.read_text().splitlines():  # each unit meets a full disk
                tried.write_text(tried.read_text() + name + "\n")
                leave(place, 8)
            try:
                unit.make(cfg, plan, name, marks, 1, Deaf())
            except StorageError as error:
                with said.open("a") as file:
                    print(name, "|", error, file=file)
                os._exit(28)

    room, status = 64, 28
    while status == 28:
        status = in_a_fork(make_all)
        leave(place, room)
        room *= 2
    return status


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_at_every_stage_it_says_so_and_goes_on_to_the_same_bytes(
    tiny: dict[str, Any], small_disk: Path, tmp_path: Path
) -> None:
    tried, told = tmp_path / "tried", tmp_path / "told"
    tried.touch()
    full = {**tiny, "root": str(small_disk)}
    assert by_a_worker(make_until_full, full, small_disk, tried, told) == 0
    said = told.read_text().splitlines()
    assert all(str(small_disk) in line and "the disk is full; free some space" in line for line in said), said
    assert {line.split(" | ")[0] for line in said} == set(api.Run(full).plan())
    assert contents(full) == contents(tiny)


def make_on_a_network_disk(settings: dict[str, Any], connection: object) -> None:
    """In a worker: make all units where a folder stays as long as a file in it is in use, as on NFS."""
    empty = shutil.rmtree

    def rmtree(folder: Path, ignore_errors: bool = False) -> None:
        used = Path("/proc/self/maps").read_text().splitlines()
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                used.append(os.readlink(f"/proc/self/fd/{name}"))
        if any(f"{folder.absolute()}/" in line for line in used):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))
        empty(folder, ignore_errors)

    shutil.rmtree = rmtree  # type: ignore[assignment]
    cfg = config.Config.model_validate(settings)
    plan = recipes.units(cfg)
    for name in plan:
        unit.make(cfg, plan, name, fingerprints(plan), 1, Deaf())


def test_nothing_that_is_removed_is_still_in_use(tiny: dict[str, Any], tmp_path: Path) -> None:
    networked = {**tiny, "root": str(tmp_path)}
    by_a_worker(make_on_a_network_disk, networked)
    assert contents(networked) == contents(tiny)


def test_a_read_only_disk_is_one_line(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"the file system is read-only; mount it for writing"):
        api.Run({**tiny_config(tmp_path), "root": str(small_disk)}).run("corpus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": "{tmp}/file"}, r"/file.*: (a file|something) stands where a folder has to be; move it away"),
        ({"root": "{tmp}/file/below"}, r"/file/below.*: a file stands where a folder has to be; move it away"),
        ({"root": "{tmp}" + 25 * ("/" + "r" * 200)}, r"rrr\.\.\.r+.*: the name is too long; choose a shorter `root`"),
        ({"root": "{tmp}/loop"}, r"/loop.*: symbolic links lead in a circle"),
        ({"root": "/proc/none"}, r"/proc/none: (is gone|.*)"),
    ],
)
def test_a_root_that_cannot_be_is_one_line(tmp_path: Path, change: dict[str, str], message: str) -> None:
    settings = tiny_config(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    settings["root"] = change["root"].replace("{tmp}", str(tmp_path))
    for look in (lambda: api.Run(settings).run("corpus"), lambda: api.Run(settings).plan() and api.Run(settings).run("corpus")):
        with pytest.raises(StorageError, match=message) as raised:
            look()
        assert "\n" not in str(raised.value)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "array": lambda p: disk.save_array(p / "a.npy", np.zeros(100)),
    "large array": lambda p: disk.save_array(p / "a.npy", np.zeros(1 << 16)),
    "blocks": lambda p: disk.save_blocks(p / "a.npy", [np.zeros(50), np.zeros(50)], (100,), np.float64),
    "numpy": lambda p: np.save(p / "a.npy", np.zeros(1 << 16)),
    "json": lambda p: disk.write_json(p / "a.json", list(range(1_000))),
    "parquet": lambda p: _parquet(p / "a.parquet"),
    "safetensors": lambda p: _safetensors(p / "a.safetensors"),
    "tokenizer": lambda p: _tokenizer(p / "tokenizer.json"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_short_write_is_never_silent(tmp_path: Path, writer: str) -> None:
    """A limit on the size of files stops every library in the middle of one, as a full disk does."""
    _parquet(tmp_path / "warm")  # what is imported first must not meet the limit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with (
            pytest.raises(StorageError, match=r"larger than may be; raise|the disk is full; free"),
            disk.storage_errors(tmp_path),
        ):
            WRITERS[writer](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": np.arange(1_000)}), path)


def _safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1_000)}, path)


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"word{i}": i for i in range(100)}, "word0")).save(str(path))


@pytest.mark.parametrize("number", sorted(disk.ADVICE))
def test_every_error_of_a_disk_is_one_line_with_what_to_do(tmp_path: Path, number: int) -> None:
    words = os.strerror(number)
    as_rust, as_arrow = RuntimeError(f"I/O error: {words} (os error {number})"), OSError(f"Detail: [errno {number}] {words}")
    in_worker = RuntimeError(f"Traceback (most recent call last):\n  File x\nOSError: [Errno {number}] {words}\n")
    for error in (OSError(number, words), as_rust, as_arrow, in_worker):
        with pytest.raises(StorageError, match=rf"^{tmp_path}: [^;\n]+; [^\n]+$"), disk.storage_errors(tmp_path):
            raise error
    with pytest.raises(StorageError, match=r"^/there: "), disk.storage_errors(tmp_path):
        raise OSError(number, words, "/there")


def test_what_is_no_storage_error_stays_what_it_is(tmp_path: Path) -> None:
    for error in (
        OSError(errno.ECONNREFUSED, "refused"),
        ValueError("Errno 28 is mentioned\nhere not"),
        BrokenPipeError(errno.EPIPE, ""),
    ):
        with pytest.raises(type(error)), disk.storage_errors(tmp_path):
            raise error


def test_a_link_is_followed_for_reading_and_writing_but_never_for_deleting(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    store.begin(link, "one")  # an empty folder elsewhere is a fine place
    (real / "weights").write_text("old")
    store.begin(link, "one")
    with pytest.raises(StorageError, match=r"link: is a link to .*real, which holds something else; remove the link"):
        store.begin(link, "two")
    assert (real / "weights").read_text() == "old"
    inside = tmp_path / "artifact"
    store.begin(inside, "one")
    (inside / "best").symlink_to(real)
    store.begin(inside, "two")
    assert not (inside / "best").is_symlink()
    assert (real / "weights").read_text() == "old"


def test_what_cannot_be_removed_is_an_error_not_old_weights_under_a_new_manifest(small_disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    store.begin(folder, "one")
    (folder / "best").mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(folder / "best")], check=True)
    try:
        (folder / "best" / "weights").write_text("old")
        with pytest.raises(StorageError, match=r"best: cannot be removed: is in use, perhaps as a mount point; unmount it"):
            store.begin(folder, "two")
        store.write_json(small_disk / store.PROGRESS, {})  # a mount that is an artifact's own folder is emptied
        (small_disk / "weights").write_text("old")
        store.begin(folder / "best", "two")
        assert sorted(p.name for p in small_disk.iterdir()) == [store.PROGRESS]
    finally:
        subprocess.run(["umount", "-l", str(folder / "best")], check=True)
