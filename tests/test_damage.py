"""Artifacts that were damaged, finished or half made: the same bytes in the end, or an error that names the file; never
wrong bytes without a word."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from synthboot import api, cli, config, recipes
from synthboot.artifacts import parts, store
from synthboot.artifacts.store import Manifest, Shards
from synthboot.data import disk
from synthboot.errors import CorruptArtifact, FinishedWork, SynthbootError
from synthboot.runner import unit
from synthboot.runner.graph import fingerprints
from synthboot.runner.state import ask, states
from tests.conftest import Killed, contents, run_folder, tiny_config


class Heard:
    """What a worker says, kept."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def send(self, message: tuple[str, Any]) -> None:
        if message[0] == "note":
            self.notes.append(message[1])


class World:
    """A small run whose units are made one by one, in this process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.cfg = config.Config.model_validate(settings)
        self.plan = recipes.units(self.cfg)
        self.marks = fingerprints(self.plan)

    def folder(self, name: str) -> Path:
        return self.plan[name].folder(self.cfg.folder)

    def make(self, name: str) -> list[str]:
        heard = Heard()
        unit.make(self.cfg, self.plan, name, self.marks, 1, heard)
        return heard.notes


@pytest.fixture(scope="module")
def half_made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run in which every artifact was killed after its last part and before its clearing up."""
    world = World(tiny_config(tmp_path_factory.mktemp("half")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "finish", lambda _: None)
        for name in world.plan:
            world.make(name)
    return world


def whole(folder: Path) -> dict[str, bytes]:
    """The bytes of what belongs to an artifact, without what a clock or a machine put there."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found = {name: data for name, data in found.items() if not name.startswith((".", "work/"))}
    for record in (store.MANIFEST, store.PROGRESS):
        found.pop(record, None)
    if "report.html" in found:
        page = found["report.html"].decode()
        found["report.html"] = re.sub("<!-- cost -->.*?<!-- /cost -->", "", page, flags=re.DOTALL).encode()
    return found


def files_of_each_kind(folder: Path) -> Iterator[str]:
    """One file of every kind in a half-made artifact: its parts, and what only the making needs."""
    kinds = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = path.relative_to(folder).as_posix()
        kinds.setdefault(re.sub(r"\d+", "#", name), name)
    kinds.pop(store.MANIFEST)
    yield from kinds.values()


def flipped(data: bytes) -> bytes:
    """One bit changed."""
    place = len(data) * 2 // 3
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] if data else b"x"


DAMAGE = {"flipped": flipped, "cut": lambda data: data[: len(data) // 2], "gone": lambda _: None}
QUICK = ("corpus", "pair/related", "base", "synthesize/related")
STAGES = (*QUICK, "embed", "tune/related", "pretrain/sbp/seed-0", "score/sbp/seed-0", "evaluate", "analyze", "report")
CASES = [pytest.param(n, "flipped") for n in QUICK]
CASES += [pytest.param(n, d, marks=pytest.mark.slow) for d in DAMAGE for n in STAGES if d != "flipped" or n not in QUICK]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_damage_in_what_is_half_made_is_mended_or_named(half_made: World, tmp_path: Path, name: str, damage: str) -> None:
    folder = half_made.folder(name)
    wanted = whole(folder)
    shutil.copytree(folder, tmp_path / "kept")
    silent, told = [], 0
    try:
        for file in files_of_each_kind(tmp_path / "kept"):
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "kept", folder)
            (folder / store.MANIFEST).unlink()
            left = DAMAGE[damage]((folder / file).read_bytes())
            (folder / file).unlink()
            if left is not None:
                (folder / file).write_bytes(left)
            try:
                told += len(half_made.make(name))
            except SynthbootError as error:
                told += "\n" not in str(error)
                continue
            if whole(folder) != wanted or (folder / "work").exists():
                silent.append(file)
    finally:  # the other stages go on from this one
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
    assert not silent
    assert told or name in ("score/sbp/seed-0", "evaluate", "analyze", "report")


def made(folder: Path) -> Path:
    """A finished artifact with two shards."""
    store.begin(folder, "mark")
    shards = Shards(folder / "pool")
    for index in range(2):
        shards.write(index, lambda out: {"bytes": (out / "tokens.bin").write_bytes(b"abc" * 100)})
    shards.close(2)
    disk.write_json(folder / "corpus.json", {"docs": 2})
    store.commit(folder, Manifest("corpus", 3, "mark", {"seed": 0}, {}))
    return folder


def checked(folder: Path) -> Manifest:
    found = store.read_manifest(folder)
    assert found is not None
    store.verify(folder, found)
    return found


def test_a_copied_shard_is_named_and_no_reader_sees_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    for copy in ("000002", "000001 (copy)", "000001.bak"):
        shutil.copytree(folder / "pool/000001", folder / "pool" / copy)
        assert [p.name for p in Shards(folder / "pool")] == ["000000", "000001"]
        with pytest.raises(CorruptArtifact, match=r"pool/00000.*: does not belong to this artifact; move it away"):
            checked(folder)
        shutil.rmtree(folder / "pool" / copy)
    (folder / ".DS_Store").write_text("nobody's")
    checked(folder)
    (folder / "pool/000000/adapter_config.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"adapter_config.json: does not belong"):
        checked(folder)


@pytest.mark.parametrize("count", [10**17, -1, 1.0, "2", None, [2], True])
def test_a_number_of_shards_that_are_not_there_is_an_error(tmp_path: Path, count: Any) -> None:
    """Its hash may be right all the same; a loop over 10**17 shards would fill the memory before it says a word."""
    shards = Shards(tmp_path / "s")
    for number in range(2):
        shards.write(number, lambda folder: {"docs": 1})
    shards.close(2)
    assert [path.name for path in shards] == ["000000", "000001"]
    disk.write_record(tmp_path / "s/shards.json", {"shards": count})
    with pytest.raises(CorruptArtifact, match=r"shards.json: says .* shards, which are not there; delete .* and run again"):
        list(shards)


def test_a_shard_lost_with_its_number_is_no_shorter_corpus(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    (folder / "pool/shards.json").unlink()
    with pytest.raises(CorruptArtifact, match=r"shards.json: missing"):
        list(Shards(folder / "pool"))


def test_json_of_another_shape_is_one_line_for_whoever_looks(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Valid, and not what is kept there: of every kind of file one, with its times as they were."""
    run = tmp_path / tiny["name"]
    shutil.copytree(run_folder(tiny), run, symlinks=True)
    kinds = {re.sub(r"\d+", "#", str(path.relative_to(run))): path for path in sorted(run.rglob("*.json"))}
    assert len(kinds) > 20
    verbs = [["status", str(run)], ["show", str(run), "pairs"], ["show", str(run), "quality"]]
    told = set()
    for name, path in kinds.items():
        kept, times = path.read_bytes(), path.stat()
        path.unlink()  # the copy may be a link
        path.write_text("[]")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        for verb in verbs:
            said = CliRunner().invoke(cli.main, verb)
            assert said.exception is None or isinstance(said.exception, SystemExit), (name, verb, said.exception)
            if said.exit_code:
                assert said.exit_code == 2
                assert len(said.output.splitlines()) == 1
                told.add(name)
        path.write_bytes(kept)
    assert {"#-analyze/analyze.json", "#-corpus/tokenizer/tokenizer_config.json"} <= told


EDITS: dict[str, Any] = {
    "a count": lambda m: {**m, "counts": {"docs": 3}},
    "a fingerprint": lambda m: {**m, "fingerprint": "other"},
    "null": lambda m: {**m, "files": None},
    "a newer key": lambda m: signed({**m, "signature": "x"}),
    "a missing key": lambda m: signed({k: v for k, v in m.items() if k != "reads"}),
    "a wrong type": lambda m: signed({**m, "version": "4"}),
    "a null, signed": lambda m: signed({**m, "parents": None}),
    "files without hashes": lambda m: signed({**m, "files": {"corpus.json": {"bytes": 1}}}),
    "files elsewhere": lambda m: signed({**m, "files": {"../x": {"bytes": 1, "hash": "0"}}}),
    "absolute files": lambda m: signed({**m, "files": {"/etc/passwd": {"bytes": 1, "hash": "0"}}}),
    "a list": lambda m: [m],
    "null alone": lambda m: None,
    "a word": lambda m: "manifest",
    "no hash, no keys": lambda m: {},
}


def signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """As a newer synthboot would write it."""
    value = {k: v for k, v in manifest.items() if k != "hash"}
    return {**value, "hash": disk.record_hash(value)}


@pytest.mark.parametrize("edit", EDITS)
def test_a_manifest_that_is_not_what_was_written_is_one_line(tmp_path: Path, edit: str) -> None:
    folder = made(tmp_path / "a")
    path = folder / "manifest.json"
    path.write_text(json.dumps(EDITS[edit](json.loads(path.read_text()))))
    with pytest.raises(CorruptArtifact, match=rf"^{path}: [^\n]*(delete {folder})[^\n]*$") as raised:
        checked(folder)
    assert "pydantic" not in str(raised.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"fingerprint": "x", "hash": 3}'])
def test_a_spoiled_progress_file_is_one_line(tmp_path: Path, text: bytes) -> None:
    store.begin(tmp_path / "a", "mark")
    (tmp_path / "a/progress.json").write_bytes(text)
    with pytest.raises(CorruptArtifact, match=r"^[^\n]*progress.json: [^\n]*delete [^\n]*$"):
        store.begin(tmp_path / "a", "mark")


def test_a_stage_of_a_newer_synthboot_is_not_rebuilt(tmp_path: Path) -> None:
    world = World(tiny_config(tmp_path))
    folder = world.folder("corpus")
    store.begin(folder, "mark")
    store.commit(folder, Manifest("corpus", 99, "mark", {}, {}))
    with pytest.raises(CorruptArtifact, match=r"01-corpus: a newer synthboot made it \(stage version 99"):
        api.Run(world.cfg.model_dump()).run("corpus")


def test_what_a_finished_run_has_lost_is_named(finished: dict[str, Any], tmp_path: Path) -> None:
    settings = {**finished, "root": str(tmp_path)}
    shutil.copytree(run_folder(finished), run_folder(settings))  # a run that was copied to another place goes on
    run = api.Run(settings)
    assert {state.status for state in run.plan().values()} == {"done"}
    run.run()
    result = run_folder(settings) / "09-evaluate/evaluate.json"
    text = result.read_text()
    for spoiled in (None, text[: len(text) // 2], text.replace("0", "1", 1), "{}"):
        if spoiled is None:
            result.unlink()
        else:
            result.write_text(spoiled)
        with pytest.raises(CorruptArtifact, match=r"evaluate.json: (is missing|has \d|does not match).*; delete .* and run"):
            run.evaluate()
    (run_folder(settings) / "09-evaluate/evaluate.json").write_text(text)
    run.evaluate()
    left = run_folder(settings) / "04-base"  # as if killed while it cleared up
    (left / "work.old.tmp").mkdir()
    store.write_record(left / "progress.json", {"fingerprint": "x"})
    (run_folder(settings) / ".together-x").mkdir()
    run.run()
    assert contents(settings) == contents(finished)
    assert not list(run_folder(settings).glob("**/*.tmp")) + list(run_folder(settings).glob(".together-*"))


def test_a_run_under_another_name_makes_its_report_again_and_nothing_else(finished: dict[str, Any], tmp_path: Path) -> None:
    settings = {**finished, "root": str(tmp_path), "name": "renamed"}
    shutil.copytree(run_folder(finished), run_folder(settings))
    states = api.Run(settings).plan()
    assert {name for name, state in states.items() if state.status != "done"} == {"report"}


def test_the_time_that_was_spent_on_what_is_not_finished_is_kept_by_the_work_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a run need not have the times of its files, and a clock may be set back."""
    monkeypatch.setattr(unit, "RECORDED_SECONDS", 0.0)
    world = World(tiny_config(tmp_path))
    folder = world.folder("corpus")

    class Killing(Heard):
        def send(self, message: tuple[str, Any]) -> None:
            if message[0] == "progress":
                raise Killed

    spent = [0.0]
    for _ in range(2):  # what was spent before a kill counts
        with pytest.raises(Killed):
            unit.make(world.cfg, world.plan, "corpus", world.marks, 1, Killing())
        for path in folder.rglob("*"):
            os.utime(path, (0, 0))
        spent.append(store.invested(folder))
    assert spent == sorted(set(spent))

    (folder / store.WORK / "spent.json").unlink()  # as an older synthboot has it
    progress = disk.read_record(folder / store.PROGRESS)
    disk.write_record(folder / store.PROGRESS, {**progress, "seconds": 7_200.0})
    assert store.invested(folder) == 7_200.0
    disk.write_record(folder / store.PROGRESS, progress)

    store.spend(folder, 7_200.0)
    settings = tiny_config(tmp_path)
    other = config.Config.model_validate({**settings, "corpus": {**settings["corpus"], "shard_docs": 7}})
    found = states(other, recipes.units(other))["corpus"]
    assert (found.status, found.seconds) == ("partial", 7_200.0)
    with parts.held(folder, parts.Part(1, 2)) as record:  # parts say themselves what they took
        record.cost = {"seconds": 9_000.0, "peak_memory_bytes": 1}
        record.save()
    assert states(other, recipes.units(other))["corpus"].seconds == 16_200.0
    # the record that all of it hangs on is lost: hours are not given up without a word
    kept = (folder / store.PROGRESS).read_bytes()
    (folder / store.PROGRESS).unlink()
    lost = states(world.cfg, world.plan)
    with pytest.raises(FinishedWork, match=r"which took 4\.5 hours \(corpus: progress\.json is lost\)"):
        ask(world.plan, lost, world.cfg.folder, replace=False)
    (folder / store.PROGRESS).write_bytes(kept)
    world.make("corpus")
    assert not (folder / store.PROGRESS).exists()
    # what was paid for before, and not what was waited between
    made = store.read_manifest(folder)
    assert made is not None
    assert made.cost["earlier_seconds"] == 7_200.0
    assert 16_200 < made.cost["seconds"] < 16_260


def test_a_disk_that_is_full_while_time_is_written_down_ends_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def full(_: Path, seconds: float) -> None:
        tried.append(seconds)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(unit, "RECORDED_SECONDS", 0.0)
    monkeypatch.setattr(store, "spend", full)
    world = World(tiny_config(tmp_path))
    world.make("corpus")
    assert tried
    assert store.read_manifest(world.folder("corpus")) is not None
