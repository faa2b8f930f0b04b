"""Parts of a stage, side by side or one after the other: the bytes of a run that knows nothing of them."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import yaml

from synthboot import loading, pool, show
from synthboot.artifacts import parts
from synthboot.artifacts.parts import Part, Standing
from synthboot.data import lock
from synthboot.errors import ConfigError, LockedRun, MissingArtifact
from synthboot.recipes import folder_of, units
from synthboot.runner import executor
from synthboot.runner.graph import fingerprints, needed
from synthboot.runner.unit import has_items, make
from tests.conftest import contents, run_folder, unmake

STAGES = ("corpus", "embed", "pair", "synthesize", "score")


@pytest.fixture
def own(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A finished run of one's own to unmake."""
    shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    return {**tiny, "root": str(tmp_path)}


def parts_of(settings: dict[str, Any], stage: str) -> Sequence[Standing]:
    """How the parts of a stage's first artifact stand."""
    number = folder_of(run_folder(settings), stage).name
    return next(row.parts for row in show.status(run_folder(settings)) if row.unit.startswith(number))


class Told:
    """Who is told how a unit gets on, and does not listen."""

    def send(self, message: tuple[str, Any], /) -> None:
        pass


def test_parts_in_any_order_and_a_last_call_leave_the_bytes_of_a_run(tiny: dict[str, Any], own: dict[str, Any]) -> None:
    cfg = loading.load(own)
    for stage in STAGES:
        unmake(own, stage)
        for number in (2, 1):
            executor.run_part(cfg, stage, Part(number, 2))
        if stage != "score":
            assert [part.state for part in parts_of(own, stage)] == ["finished", "finished"]
            assert not any(part.missing for part in parts_of(own, stage))
        executor.run(cfg, stage)
        assert executor.run_part(cfg, stage, Part(1, 2)) == []  # nothing is left to do
    assert contents(own) == contents(tiny)


def test_what_is_sampled_has_parts_whatever_it_is_called(tiny: dict[str, Any]) -> None:
    arms = {**tiny["arms"], "random": {"synthetic": "random_pairs", "share": 0.2}}
    plan = units(loading.load({**tiny, "arms": arms}))
    assert {"pair/random_pairs", "synthesize/random_pairs"} <= set(plan)
    assert {name for name, unit in plan.items() if has_items(unit)} == {
        "corpus",
        "embed",
        "pair/related",
        "synthesize/related",
        "synthesize/random_pairs",
    }


def test_a_part_makes_its_items_and_no_others(own: dict[str, Any]) -> None:
    cfg = loading.load(own)
    unmake(own, "corpus")
    executor.run_part(cfg, "corpus", Part(2, 3))
    ingest = folder_of(cfg.folder, "corpus") / "work" / "ingest"
    assert sorted(path.name for path in ingest.iterdir()) == ["000001"]
    assert parts_of(own, "corpus") == [
        Standing("1/3", "not begun", {"work/ingest": [0]}),
        Standing("2/3", "finished", {}),
        Standing("3/3", "not begun", {"work/ingest": [2]}),
    ]
    with parts.held(folder_of(cfg.folder, "corpus"), Part(2, 3)) as record:
        record.cost = {"seconds": 1_000.0, "peak_memory_bytes": 1}
        record.save()
    executor.run_part(cfg, "corpus", Part(2, 3))
    [cost] = parts.spent(folder_of(cfg.folder, "corpus"))
    assert cost["seconds"] > 1_000  # of all its starts
    assert cost["peak_memory_bytes"] > 1


def test_whole_artifacts_are_dealt_out(own: dict[str, Any]) -> None:
    cfg = loading.load(own)
    unmake(own, "score")
    assert executor.run_part(cfg, "score", Part(2, 2)) == ["score/sbp/seed-0"]
    assert not folder_of(cfg.folder, "score", "repetition").exists()


def test_what_another_process_has_finished_meanwhile_is_left_to_it(own: dict[str, Any]) -> None:
    """A whole artifact that two processes begin at once, as of a part that was started twice: the second takes the first's."""
    cfg = loading.load(own)
    plan = needed(units(cfg), "score")
    manifest = folder_of(cfg.folder, "score", "sbp/seed-0") / "manifest.json"
    before = manifest.stat().st_ino  # a file that is written anew is another
    (manifest.parent / "progress.json").touch()
    cost = make(cfg, plan, "score/sbp/seed-0", fingerprints(plan), 1, Told())
    assert cost["seconds"] > 0
    assert manifest.stat().st_ino == before
    assert not (manifest.parent / "progress.json").exists()

    manifest.unlink()
    make(cfg, plan, "score/sbp/seed-0", fingerprints(plan), 1, Told())
    assert manifest.exists()


def test_what_has_no_parts_or_lacks_what_it_reads_says_so(own: dict[str, Any]) -> None:
    cfg = loading.load(own)
    with pytest.raises(
        ConfigError, match=r"base: has no parts, --part is for corpus, embed, pair, synthesize, pretrain, score"
    ):
        executor.run_part(cfg, "base", Part(1, 2))
    unmake(own, "embed")
    with pytest.raises(
        MissingArtifact, match=r"pair/related: reads embed, which is missing.*first run `synthboot embed CONFIG`"
    ):
        executor.run_part(cfg, "pair", Part(1, 2))


def test_parts_share_a_run_folder_with_each_other_and_with_nobody_else(own: dict[str, Any]) -> None:
    cfg = loading.load(own)
    unmake(own, "embed")
    with lock.shared(cfg.folder), pytest.raises(LockedRun, match="is working on this run"):
        executor.run(cfg, "embed")
    with lock.held(cfg.folder), pytest.raises(LockedRun, match="is working on this run"):
        executor.run_part(cfg, "embed", Part(1, 2))
    with lock.shared(cfg.folder):
        executor.run_part(cfg, "embed", Part(1, 2))


@pytest.mark.slow
def test_parts_side_by_side_one_of_them_killed(tiny: dict[str, Any], own: dict[str, Any], tmp_path: Path) -> None:
    """Killed at any moment a part loses nothing and doubles nothing; status names it and what it has left."""
    unmake(own, "synthesize")
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(own))
    command = [sys.executable, "-m", "synthboot", "synthesize", str(config)]
    running = [subprocess.Popen([*command, "--part", f"{number}/2"]) for number in (1, 2)]
    record = folder_of(run_folder(own), "synthesize", "related") / "work" / "parts" / "000002-of-000002.json"
    try:
        while not record.exists():
            assert running[1].poll() is None
            threading.Event().wait(0.01)
        running[1].send_signal(signal.SIGKILL)
        assert [process.wait() for process in running] == [0, -signal.SIGKILL]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [part.state for part in parts_of(own, "synthesize")] == ["finished", "died"]
    executor.run(loading.load(own), "synthesize")
    assert contents(own) == contents(tiny)


class Asked(pool.Pool):
    """Workers that start nothing, and keep how many places each was to take."""

    def start(self, key: str, *_: object, places: int = 1, memory: float = 0.0) -> Connection:
        raise Began(key, places)


class Began(Exception):
    pass


@pytest.mark.parametrize(("jobs", "places"), [(1, 1), (2, 0)])
def test_a_text_that_one_worker_samples_takes_a_place_itself(own: dict[str, Any], jobs: int, places: int) -> None:
    """So that where there are several GPUs its process is given one of them."""
    unmake(own, "synthesize")
    own["engine"] = {**own["engine"], "jobs": jobs}
    with pool.using(Asked), pytest.raises(Began) as began:
        executor.run(loading.load(own), "synthesize")
    assert began.value.args == ("synthesize/related", places)
