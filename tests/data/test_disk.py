"""Arrays are read back as written; a damaged one is named."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from synthboot import comparison, loading
from synthboot.artifacts import store
from synthboot.data import disk, lock, tokenizer
from synthboot.data.disk import end_to_end, load_array, save_array, save_blocks
from synthboot.errors import CorruptArtifact, LockedRun, StorageError, SynthbootError
from synthboot.lm.gguf import convert

read_text = Path.read_text


@pytest.mark.parametrize("mapped", [False, True])
def test_an_array_is_read_back(tmp_path: Path, mapped: bool) -> None:
    save_array(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert np.array_equal(load_array(tmp_path / "a.npy", mapped), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "gone"])
def test_a_damaged_array_is_named_in_one_line(tmp_path: Path, mapped: bool, damage: str) -> None:
    path = tmp_path / "a.npy"
    save_array(path, np.arange(600))
    if damage == "gone":
        path.unlink()
    else:
        size = path.stat().st_size
        path.write_bytes({"cut": path.read_bytes()[:-8], "zeros": bytes(size), "empty": b""}[damage])
    with pytest.raises(CorruptArtifact, match=r"a.npy: .*; delete its artifact and run again") as caught:
        load_array(path, mapped)
    assert "\n" not in str(caught.value)


def test_blocks_are_what_the_whole_array_is(tmp_path: Path) -> None:
    whole = np.arange(60, dtype=np.int64).reshape(20, 3)
    save_array(tmp_path / "whole.npy", whole.astype(np.int32))
    blocks = (whole[start : start + 7] for start in range(0, 20, 7))
    save_blocks(tmp_path / "blocks.npy", blocks, whole.shape, np.int32)
    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    with pytest.raises(ValueError, match="7 rows, and 20 were to come"):
        save_blocks(tmp_path / "short.npy", [whole[:7]], whole.shape, np.int32)


@pytest.mark.parametrize("sizes", [(3,), (3, 0, 4), (0,), (0, 0)])
def test_arrays_end_to_end(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    parts = [np.full((size, 2), i, np.float16) for i, size in enumerate(sizes)]
    paths = [tmp_path / f"{i}.npy" for i in range(len(sizes))]
    for path, part in zip(paths, parts, strict=True):
        save_array(path, part)
    together = tmp_path / "work" / "all.npy"
    joined = end_to_end(paths, together)
    assert np.array_equal(joined, np.concatenate(parts))
    assert isinstance(joined, np.memmap)
    assert together.exists() == (len(sizes) > 1)  # one needs no second copy

    # another process may make it again: who has it mapped keeps what it was
    parts[-1] = np.ones((9, 2), np.float16)
    save_array(paths[-1].with_suffix(".new.npy"), parts[-1])
    end_to_end([*paths, paths[-1].with_suffix(".new.npy")], together)
    assert len(joined) == sum(sizes)
    assert [path.name for path in tmp_path.glob("work/*")] == ["all.npy"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES])
def test_a_disk_that_does_not_answer_is_no_damage(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk.committed_folder(tmp_path / "artifact" / "part") as part:
        save_array(part / "a.npy", np.arange(6))
    store.begin(tmp_path / "artifact", "one")
    with disk.committed_folder(tmp_path / "artifact" / "part") as part:
        save_array(part / "a.npy", np.arange(6))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda path, *args: refuse() if path.name == disk.SEAL else read_text(path, *args))
        with pytest.raises(OSError, match=os.strerror(number)):
            store.begin(tmp_path / "artifact", "one")
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", refuse)
        with pytest.raises(OSError, match=os.strerror(number)):
            load_array(tmp_path / "artifact" / "part" / "a.npy")
    assert store.begin(tmp_path / "artifact", "one") == []
    assert (tmp_path / "artifact" / "part" / "a.npy").exists()


def test_a_file_in_use_that_nfs_keeps_is_no_error_and_goes_with_the_next_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def as_on_nfs(name: str | Path, *, dir_fd: int | None = None) -> None:
        """A file that is mapped here gets another name; its folder cannot go."""
        status = os.stat(name, dir_fd=dir_fd)
        if f" {status.st_ino} " not in Path("/proc/self/maps").read_text():
            unlink(name, dir_fd=dir_fd)
        elif name != ".nfs0001":
            os.rename(name, ".nfs0001", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    folder = tmp_path / "artifact"
    old = folder / "work" / "checkpoint-1"
    (old / "inner").mkdir(parents=True)
    (old / "more").write_text("m")
    save_array(old / "inner" / "weights.npy", np.arange(600))
    mapped = load_array(old / "inner" / "weights.npy", mapped=True)
    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", as_on_nfs)
        disk.remove(old)
        assert not old.exists()
        assert [path.name for path in folder.rglob("*") if path.is_file()] == [".nfs0001"]
    del mapped
    store.finish(folder)  # once nobody has it
    assert not list(folder.iterdir())
    # whatever else cannot go is still an error
    old.mkdir(parents=True)
    (old / "more").write_text("m")
    monkeypatch.setattr("os.rmdir", lambda *_, **__: os.listdir(old.parent / "nothing"))
    with pytest.raises(StorageError, match="cannot be removed"):
        disk.remove(old)


def test_a_name_is_on_the_disk_once_its_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    disk.write_bytes(tmp_path / "a.json", b"{}")
    assert flushed[1:] == [str(tmp_path)]  # after the file, which has its name by then
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_cannot_flush_is_worked_on_and_a_disk_that_fails_is_not(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of FUSE and network file systems some say so of folders, and a few of files."""

    def refused(_: int) -> None:
        raise OSError(number, os.strerror(number))

    def work() -> None:
        disk.write_bytes(tmp_path / "file", b"whole")
        with disk.committed_folder(tmp_path / "part") as folder:
            (folder / "file").write_bytes(b"whole")
        with lock.held(tmp_path), pytest.raises(LockedRun), lock.held(tmp_path):
            pytest.fail("twice")

    monkeypatch.setattr(os, "fsync", refused)
    if number == errno.EIO:
        with pytest.raises(OSError, match="error"):
            work()
        return
    work()
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert disk.damage(tmp_path / "part") is None


def test_two_that_write_one_file_at_once_leave_one_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        disk.write_bytes(target, b"other")  # while the first is about to name its own
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    disk.write_bytes(tmp_path / "a.json", b"first")
    assert (tmp_path / "a.json").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        disk.write_bytes(tmp_path / "a.json", b"{}")
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.yaml", loading.load),
        ("a.csv", lambda path: comparison.read(str(path))),
        ("a.gguf", lambda path: convert(path, path.with_suffix(""))),
        (store.MANIFEST, lambda path: store.read_manifest(path.parent)),
        (store.PROGRESS, lambda path: store.begun_as(path.parent)),
        ("a.npy", load_array),
        ("a.npy", lambda path: load_array(path, mapped=True)),
        ("a.parquet", store.read_table),
        ("a.parquet", lambda path: list(store.read_rows(path, ["id"]))),
        (tokenizer.FILE, lambda path: tokenizer.load(path.parent)),
        ("a.bin", disk.record),
    ],
)
def test_a_pipe_in_the_place_of_a_file_is_named_and_never_waited_for(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(SynthbootError, match=rf"{name}: .*is a pipe, not a file"):
        read(path)


@pytest.mark.timeout(60)
def test_a_lock_that_is_a_pipe_is_held_by_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.lock")
    assert not lock.is_held(tmp_path / "a.lock")
