"""A run folder is taken over from the workers of a cluster that a killed run may have left, wherever the next one runs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthboot import loading
from synthboot.artifacts.parts import Part
from synthboot.config import Config
from synthboot.data import lock
from synthboot.errors import LockedRun
from synthboot.runner import executor, turns
from tests.conftest import run_folder, unmake


@pytest.fixture
def own(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run of one's own, finished but for its vectors."""
    shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    settings = {**tiny, "root": str(tmp_path)}
    unmake(settings, "embed")
    return settings


def whole(cfg: Config) -> None:
    executor.run(cfg, "embed")


def part(cfg: Config) -> None:
    executor.run_part(cfg, "embed", Part(1, 2))


@pytest.mark.parametrize("take_over", [whole, part])
@pytest.mark.parametrize("key", ["", "pretrain/sbp/0"])
def test_who_takes_over_a_run_folder_waits_for_earlier_workers_and_keeps_late_ones_out(
    own: dict[str, Any], monkeypatch: pytest.MonkeyPatch, take_over: Callable[[Config], None], key: str
) -> None:
    cfg = loading.load(own)
    turn = turns.begin(cfg.folder, key)
    with lock.shared(cfg.folder, turns.guard(key), turn=turn), monkeypatch.context() as patch:  # one of them is at work
        patch.setattr(turns, "PATIENCE", 0.1)
        with pytest.raises(LockedRun, match=f"process {os.getpid()} on .* is working on this run"):
            take_over(cfg)
    assert not list((cfg.folder / "02-embed").rglob("*"))
    take_over(cfg)
    with pytest.raises(LockedRun, match="have taken over"), lock.shared(cfg.folder, turns.guard(key), turn=turn):
        pytest.fail("late, and in the folder")


def test_locks_of_single_workers_that_a_killed_run_has_left_go_with_its_turn(tmp_path: Path) -> None:
    for key in ("", "pretrain/sbp/0"):
        turn = turns.begin(tmp_path, key)
        for number in (0, 11):
            with lock.shared(tmp_path, turns.guard(key), turn=turn), lock.held(tmp_path, turns.own(key, number)):
                pass
    assert len(list(tmp_path.iterdir())) == 6
    turns.end_all(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {turns.guard(""), turns.guard("pretrain/sbp/0")}


def test_pools_of_other_names_have_other_locks() -> None:
    keys = ["", "pretrain/sbp/seed-0", "tune/related-after-sbp", "tune/related-after-sbp-"]
    assert len({turns.guard(key) for key in keys}) == len(keys)
