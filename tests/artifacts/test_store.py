import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthboot.artifacts import store
from synthboot.artifacts.store import Manifest, Shards
from synthboot.data import disk
from synthboot.errors import CorruptArtifact, StorageError


def made(folder: Path) -> Manifest:
    store.begin(folder, "mark")
    (folder / "part").mkdir()
    (folder / "part" / "data.bin").write_bytes(b"abc" * 1_000)
    manifest = Manifest("pair", 1, "mark", {"pair": {"min_similarity": 0.75}}, {"corpus": "c1"})
    store.commit(folder, manifest)
    return manifest


def test_fingerprint_depends_on_stage_version_settings_and_parents() -> None:
    base = ("pair", 1, {"a": 1}, {"corpus": "x"})
    others = [
        ("tune", 1, {"a": 1}, {"corpus": "x"}),
        ("pair", 2, {"a": 1}, {"corpus": "x"}),
        ("pair", 1, {"a": 2}, {"corpus": "x"}),
    ]
    marks = {store.fingerprint(*p) for p in [base, *others, ("pair", 1, {"a": 1}, {"corpus": "y"})]}
    assert len(marks) == 5
    assert store.fingerprint("pair", 1, {"a": 1, "b": 2}, {}) == store.fingerprint("pair", 1, {"b": 2, "a": 1}, {})


def test_manifest_comes_back_and_verifies(tmp_path: Path) -> None:
    made(tmp_path / "x")
    found = store.read_manifest(tmp_path / "x")
    assert found is not None
    assert list(found.files) == ["part/data.bin"]
    store.verify(tmp_path / "x", found)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(b"abd" + b"abc" * 999), "does not match its hash"),
        (lambda p: p.write_bytes(b"abc"), "has 3 bytes, not 3000"),
        (lambda p: p.unlink(), "is missing"),
    ],
)
def test_a_changed_file_is_named(tmp_path: Path, spoil: object, message: str) -> None:
    manifest = made(tmp_path / "x")
    spoil(tmp_path / "x" / "part" / "data.bin")  # type: ignore[operator]
    with pytest.raises(CorruptArtifact, match=rf"data\.bin: {message}"):
        store.verify(tmp_path / "x", manifest)


def test_a_spoiled_manifest_is_an_error_not_a_missing_one(tmp_path: Path) -> None:
    made(tmp_path / "x")
    (tmp_path / "x" / "manifest.json").write_text('{"stage": ')
    with pytest.raises(CorruptArtifact, match="unreadable"):
        store.read_manifest(tmp_path / "x")


def test_drift_says_what_changed() -> None:
    manifest = Manifest("pair", 1, "m", {"pair": {"min_similarity": 0.75, "k": 3}}, {"corpus": "c1", "embed": "e1"})
    reasons = store.drift(manifest, 2, {"pair": {"min_similarity": 0.8, "k": 3}}, {"corpus": "c2", "embed": "e1"})
    assert reasons == ["stage version 1 -> 2", "pair.min_similarity 0.75 -> 0.8", "corpus changed"]


def test_of_long_lists_a_reason_names_what_differs() -> None:
    files = [f"folder/{number}.txt 100 abcdef" for number in range(200)]
    manifest = Manifest("corpus", 1, "m", {"files": files, "seeds": [0]}, {})
    other = [*files[:150], "folder/150.txt 101 012345", *files[151:-1]]
    [changed, seeds] = store.drift(manifest, 1, {"files": other, "seeds": [0, 1]}, {})
    assert changed == "files ['folder/150.txt 100 abcdef', 'folder... -> ['folder/150.txt 101 012345']"
    assert seeds == "seeds [0] -> [0, 1]"
    [moved] = store.drift(manifest, 1, {"files": files[::-1], "seeds": [0]}, {})
    assert moved.startswith("files ['folder/0.txt")


def test_begin_keeps_parts_of_the_same_mark_and_wipes_others(tmp_path: Path) -> None:
    store.begin(tmp_path / "x", "one")
    (tmp_path / "x" / "part").write_text("kept")
    store.begin(tmp_path / "x", "one")
    assert (tmp_path / "x" / "part").exists()
    store.begin(tmp_path / "x", "two")
    assert not (tmp_path / "x" / "part").exists()


def test_begin_keeps_parts_of_what_parents_held_and_those_from_before_that_was_recorded(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    disk.write_record(tmp_path / "x" / "progress.json", {"fingerprint": "one"})
    (tmp_path / "x" / "part").write_text("kept")
    for _ in range(2):
        store.begin(tmp_path / "x", "one", {"base": "a"})
        assert (tmp_path / "x" / "part").exists()
    assert store.begun(tmp_path / "x", "one", {"base": "a"})
    assert not store.begun(tmp_path / "x", "one", {"base": "b"})
    store.begin(tmp_path / "x", "one", {"base": "b"})
    assert not (tmp_path / "x" / "part").exists()


def test_a_committed_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), disk.committed_folder(tmp_path / "x") as temporary:
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with disk.committed_folder(tmp_path / "x") as temporary:
        (temporary / "whole").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["part.json", "whole"]


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_while_it_is_written_is_not_committed(tmp_path: Path, again: bool) -> None:
    """As a successor sweeps it away, and begins it again: neither half of it may pass for the whole."""
    shards = Shards(tmp_path)
    theirs = tmp_path / "000000.tmp" / "theirs"

    def writer(folder: Path) -> dict[str, int]:
        with open(folder / "first", "w") as file:
            disk.remove(folder)
            if again:
                folder.mkdir()
                theirs.touch()
            file.write("as if nothing had happened")
        return {"docs": 1}

    with pytest.raises(StorageError, match="000000: was removed while it was written"):
        shards.write(0, writer)
    assert not shards.done(0)
    assert theirs.exists() == again


def test_shards_are_written_once_and_cut(tmp_path: Path) -> None:
    shards, calls = Shards(tmp_path / "s"), []
    for index in (0, 1, 1, 3):
        shards.write(index, lambda out, index=index: calls.append(index) or {"n": index})  # type: ignore[misc]
    assert calls == [0, 1, 3]
    (tmp_path / "s" / "000001 (copy)").mkdir()
    shards.close(2)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["000000", "000001", "shards.json"]
    shards.write(2, lambda _: {})  # one too many, or a copy: no reader sees it
    assert [p.name for p in shards] == ["000000", "000001"]


def test_what_is_missing_is_filled_in_order_told_of_and_closed(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "s")
    for index in (1, 4):
        shards.write(index, lambda out, index=index: {"n": index})  # type: ignore[misc]
    asked: list[list[int]] = []

    def writers(missing: list[int]) -> Iterator[Callable[[Path], dict[str, Any]]]:
        asked.append(missing)
        for index in missing:
            yield lambda _, index=index: {"n": 10 * index}  # type: ignore[misc]

    told = []
    with pytest.raises(KeyboardInterrupt):
        for index, counts in shards.fill(4, writers):
            told.append((index, counts["n"]))
            if index == 2:
                raise KeyboardInterrupt  # what was committed by then is kept
    told += [(index, counts["n"]) for index, counts in shards.fill(4, writers)]
    assert asked == [[0, 2, 3], [3]]
    assert told == [(0, 0), (2, 20), (3, 30)]
    assert [shards.counts(index)["n"] for index in range(len(shards))] == [0, 1, 20, 30]
    assert not shards.done(4)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="the disk is full; free some space and run again"),
        disk.storage_errors(tmp_path),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(StorageError, match="disk is full"), disk.storage_errors(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it
    with pytest.raises(StorageError, match="choose another `root`"), disk.storage_errors(tmp_path):
        raise PermissionError(13, "Permission denied")


def test_an_adopted_artifact_is_whole_and_on_its_own(tmp_path: Path) -> None:
    made(tmp_path / "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "stale").write_text("of other settings")
    store.adopt(tmp_path / "x", tmp_path / "y")
    assert store.read_manifest(tmp_path / "y") == store.read_manifest(tmp_path / "x")
    assert not (tmp_path / "y" / "stale").exists()
    data = [tmp_path / name / "part" / "data.bin" for name in ("x", "y")]
    assert data[0].stat().st_ino == data[1].stat().st_ino  # no second copy on the disk
    disk.write_bytes(data[0], b"another")  # as everything here writes
    assert data[1].read_bytes() == b"abc" * 1_000
    disk.remove(tmp_path / "x")
    found = store.read_manifest(tmp_path / "y")
    assert found is not None
    store.verify(tmp_path / "y", found)


@pytest.mark.parametrize("point", ["remove 1", "remove 2", "remove 3", "verify 1"])
def test_an_artifact_inside_another_is_nobody_elses_file_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    outer, inner, other = (tmp_path / name for name in ("outer", "outer/inner", "other"))
    for folder in (outer, inner, other):
        made(folder)

    class Killed(BaseException):
        pass

    name, _, when = point.partition(" ")
    call = getattr(store, name)
    left = itertools.count(int(when) - 1, -1)

    def die(*arguments: object, **named: object) -> None:
        if not next(left):
            raise Killed
        call(*arguments, **named)

    monkeypatch.setattr(store, name, die)
    with pytest.raises(Killed):
        store.adopt(other, inner)
    monkeypatch.undo()

    manifest = store.read_manifest(outer)
    assert manifest is not None
    store.verify(outer, manifest)
    assert (store.read_manifest(inner) is None) == (point != "remove 1")
    store.adopt(other, inner)  # again, as the next run does
    assert not (inner / "progress.json").exists()
    assert store.read_manifest(inner) == store.read_manifest(other)


def test_a_link_to_what_is_another_runs_is_left_as_it_is(tmp_path: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}

    other = tmp_path / "other"
    made(other)
    before = contents()
    (tmp_path / "link").symlink_to(other)
    for taken in (lambda: store.begin(tmp_path / "link", "of other settings"), lambda: store.adopt(other, tmp_path / "link")):
        with pytest.raises(StorageError, match="is a link to"):
            taken()
        assert contents() == before


def test_an_artifact_is_not_taken_over_from_itself(tmp_path: Path) -> None:
    made(tmp_path / "runs" / "x")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    for source in (tmp_path / "runs" / "x", tmp_path / "link" / "x"):
        with pytest.raises(StorageError, match="itself"):
            store.adopt(source, tmp_path / "runs" / "x")
    found = store.read_manifest(tmp_path / "runs" / "x")
    assert found is not None
    store.verify(tmp_path / "runs" / "x", found)


def test_without_hard_links_it_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "x")

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    store.adopt(tmp_path / "x", tmp_path / "y")
    (tmp_path / "x" / "part" / "data.bin").write_bytes(b"changed in place")
    found = store.read_manifest(tmp_path / "y")
    assert found is not None
    store.verify(tmp_path / "y", found)


@pytest.mark.parametrize("damage", ["flipped", "gone", "unfinished"])
def test_what_is_damaged_is_not_adopted(tmp_path: Path, damage: str) -> None:
    made(tmp_path / "x")
    path = tmp_path / "x" / "part" / "data.bin"
    if damage == "flipped":
        path.write_bytes(b"abd" + b"abc" * 999)
    else:
        (path if damage == "gone" else tmp_path / "x" / "manifest.json").unlink()
    with pytest.raises(CorruptArtifact, match="x: is"):
        store.adopt(tmp_path / "x", tmp_path / "y")
    assert not list((tmp_path / "y").rglob("*.bin"))
    assert not (tmp_path / "y" / "manifest.json").exists()


def test_what_is_damaged_costs_nothing_that_was_begun_or_finished_in_its_place(tmp_path: Path) -> None:
    made(tmp_path / "x")
    (tmp_path / "x" / "part" / "data.bin").write_bytes(b"abd" + b"abc" * 999)
    store.begin(tmp_path / "begun", "f")
    with disk.committed_folder(tmp_path / "begun" / "step-1") as checkpoint:
        (checkpoint / "weights").write_bytes(b"of two days")
    made(tmp_path / "finished")
    for name in ("begun", "finished"):
        with pytest.raises(CorruptArtifact, match="x: is damaged"):
            store.adopt(tmp_path / "x", tmp_path / name)
    assert store.begun(tmp_path / "begun", "f")
    assert disk.damage(tmp_path / "begun" / "step-1") is None
    found = store.read_manifest(tmp_path / "finished")
    assert found is not None
    store.verify(tmp_path / "finished", found)
