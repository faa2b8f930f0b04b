"""Artifacts that were damaged, finished or half made: the same bytes in the end, or an error that names the file; never
wrong bytes without a word."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synthboot import api, config, pipeline, recipes
from synthboot.data import artifacts, disk
from synthboot.errors import CorruptArtifact, StorageError, SynthbootError
from tests.conftest import tiny_config


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
        self.marks = pipeline.fingerprints(self.plan)

    def folder(self, name: str) -> Path:
        return self.plan[name].folder(self.cfg.folder)

    def make(self, name: str) -> list[str]:
        heard = Heard()
        pipeline.make(self.cfg, self.plan, name, self.marks, 1, heard)
        return heard.notes


@pytest.fixture(scope="module")
def half_made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run in which every artifact was killed after its last part and before its clearing up."""
    world = World(tiny_config(tmp_path_factory.mktemp("half")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "finish", lambda _: None)
        for name in world.plan:
            world.make(name)
    return world


def whole(folder: Path) -> dict[str, bytes]:
    """The bytes of what belongs to an artifact, without what a clock or a machine put there."""
    found = {name: (folder / name).read_bytes() for name in artifacts._names(folder)}
    if "report.html" in found:
        page = found["report.html"].decode()
        found["report.html"] = re.sub("<!-- cost -->.*<!-- /cost -->", "", page, flags=re.DOTALL).encode()
    return found


def files_of_each_kind(folder: Path) -> Iterator[str]:
    """One file of every kind in a half-made artifact: its parts, and what only the making needs."""
    kinds = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = path.relative_to(folder).as_posix()
        kinds.setdefault(re.sub(r"\d+", "#", name), name)
    kinds.pop(artifacts.MANIFEST)
    yield from kinds.values()


def flipped(data: bytes) -> bytes:
    """One bit changed."""
    place = len(data) * 2 // 3
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] if data else b"x"


DAMAGE = {"flipped": flipped, "cut": lambda data: data[: len(data) // 2], "gone": None}
STAGES = ("corpus", "embed", "pair/related", "base", "tune/related", "synthesize/related", "pretrain/sbp/seed-0")
STAGES += ("evaluate", "analyze", "report")


@pytest.mark.parametrize("name", STAGES)
def test_damage_in_what_is_half_made_is_mended_or_named(half_made: World, tmp_path: Path, name: str) -> None:
    folder = half_made.folder(name)
    wanted = whole(folder)
    shutil.copytree(folder, tmp_path / "kept")
    silent, told = [], []
    for file in files_of_each_kind(folder):
        for kind, change in DAMAGE.items():
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "kept", folder)
            (folder / artifacts.MANIFEST).unlink()
            if change is None:
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(change((folder / file).read_bytes()))
            try:
                told += half_made.make(name)
            except SynthbootError as error:
                told.append(str(error))
                assert "\n" not in str(error)
                continue
            if whole(folder) != wanted:
                silent.append((kind, file))
            assert not (folder / "work").exists()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)
    assert not silent
