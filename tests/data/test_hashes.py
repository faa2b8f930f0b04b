"""What is kept of files between two looks at them, and when it is not to be trusted."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from synthboot.data import disk, files, hashes
from synthboot.data.hashes import Hashes
from synthboot.errors import CorruptArtifact, DataError

HOUR = 3_600


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has lain there for a while by every clock."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n" * 9)
    later = time.time_ns() + HOUR * 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    return path


def is_read(path: Path, run: Path) -> bool:
    """Whether a look at a file from a run's folder reads it, or believes what is kept."""
    kept = run / hashes.FILE
    if kept.exists():
        with suppress(CorruptArtifact):
            entries = disk.read_record(kept)
            disk.write_record(kept, {place: {**entry, "hash": "as kept"} for place, entry in entries.items()})
    known = Hashes(run)
    found = known.of(path)
    known.save()
    assert found in (files.hashed(path), (path.stat().st_size, "as kept"))
    return found[1] != "as kept"


def test_a_file_is_read_once(old: Path, tmp_path: Path) -> None:
    assert is_read(old, tmp_path)
    assert not is_read(old, tmp_path)
    hashes.forget(tmp_path)
    assert is_read(old, tmp_path)


def test_other_bytes_of_the_same_size_and_modification_time_are_seen(old: Path, tmp_path: Path) -> None:
    is_read(old, tmp_path)
    before = old.stat()
    old.write_bytes(b"two\n" * 9)
    os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert old.stat().st_mtime_ns == before.st_mtime_ns
    assert is_read(old, tmp_path)  # the entry's own time cannot be set back


def test_another_file_put_in_its_place_is_seen(old: Path, tmp_path: Path) -> None:
    is_read(old, tmp_path)
    other = tmp_path / "b.jsonl"
    other.write_bytes(b"two\n" * 9)
    os.replace(other, old)
    assert is_read(old, tmp_path)


def test_a_file_written_moments_ago_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\n")
    assert is_read(path, tmp_path)
    assert is_read(path, tmp_path)


@pytest.mark.parametrize("record", [b"", b"{", b'{"a": 1}', b"\xff"])
def test_a_damaged_record_costs_a_reading(old: Path, tmp_path: Path, record: bytes) -> None:
    (tmp_path / hashes.FILE).write_bytes(record)
    assert is_read(old, tmp_path)
    assert not is_read(old, tmp_path)


def test_nothing_is_left_where_there_is_no_run(old: Path, tmp_path: Path) -> None:
    is_read(old, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_gone_is_an_error(old: Path, tmp_path: Path) -> None:
    is_read(old, tmp_path)
    old.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read"):
        Hashes(tmp_path).of(old)
