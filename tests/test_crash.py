"""kill -9 at points spread over the stages, and before every rename: the next run finishes, and every artifact has the bytes
of a run that was never disturbed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from synthboot import api, config, pool, recipes
from synthboot.runner import unit
from synthboot.runner.graph import fingerprints
from synthboot.runner.state import states
from tests.conftest import Deaf, by_a_worker, contents, in_a_fork, run_folder, tiny_config

DRIVER = """
import sys, json
from synthboot import api
api.Run(json.loads(sys.argv[1])).run()
"""

POINTS = [
    ("corpus, while reading", "01-corpus/work/ingest/000001"),
    ("corpus, while writing", "01-corpus/pool"),
    ("embed", "02-embed/progress.json"),
    ("pair", "03-pair/related/progress.json"),
    ("base, at its first checkpoint", "04-base/work/checkpoint-*"),
    ("base, at its end", "04-base/last"),
    ("tune", "05-tune/related/work/checkpoint-*"),
    ("synthesize", "06-synthesize/related/chunks/000000"),
    ("pretrain", "07-pretrain/sbp/seed-0/work/checkpoint-*"),
    ("score, between two models", "08-score/*/*/manifest.json"),
]


def start(settings: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, json.dumps(settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_when(settings: dict[str, Any], pattern: str, seconds: float) -> bool:
    """Start a run and kill -9 it as soon as a file appears; False where it ended first."""
    process = start(settings)
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up and process.poll() is None:
        if any(run_folder(settings).glob(pattern)):
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.005)  # to look takes a core from the run
    process.kill()
    assert process.poll() is not None or time.monotonic() < give_up, f"{pattern} never came"
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return False


def nothing_outlives(place: Path) -> None:
    """Wait until no process has anything to do with a folder."""
    give_up = time.monotonic() + 30
    while alive := [p.name for p in Path("/proc").glob("[0-9]*") if str(place) in _command(p)]:
        assert time.monotonic() < give_up, f"still running: {alive}"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_at_ten_points_of_one_run_it_ends_with_the_same_bytes(finished: dict[str, Any], tmp_path: Path) -> None:
    one_at_a_time = {**finished["engine"], "jobs": 1}  # stages follow one another, so that every point is reached
    settings = {**finished, "root": str(tmp_path), "engine": one_at_a_time}
    for name, pattern in POINTS:
        assert kill_when(settings, pattern, 120), name
        nothing_outlives(tmp_path)
    api.Run(settings).run()
    assert contents(settings) == contents(finished)
    assert not list(run_folder(settings).rglob("*.tmp"))


ALIKE = [
    (r"\.[0-9a-f]{8}\.tmp", ".tmp"),
    (r"\d+", "#"),
    ("validation|test|pool", "set"),
    ("(base|tune|pretrain)/.*(work|best|last)", r"model/\2"),
    (r".*/([^/]*)\.tmp(/.*)?$", r"\1.tmp"),  # what goes, goes the same way in every stage
]
"""What a path becomes, so that those of one kind are one."""


def deadly(name: str, seen: Path, every: int) -> Callable[..., Any]:
    """What `os` has of that name, but the process dies where a kind of path comes for the first time."""
    real = getattr(os, name)

    def once_each(*paths: Any, **named: Any) -> Any:
        at = os.readlink(f"/proc/self/fd/{named['dir_fd']}") + "/" if named.get("dir_fd") is not None else ""
        target = at + str(paths[-1])
        if name in ("unlink", "remove") and not os.path.lexists(target):
            return real(*paths, **named)
        for pattern, kind in ALIKE:
            target = re.sub(pattern, kind, target)
        step, known = name + " " + target, seen.read_text().splitlines()
        if step not in known and "passed " + step not in known:
            number = sum(line.removeprefix("passed ").startswith(name + " ") for line in known)
            dies = target.endswith("manifest.json") or number % every == 0
            with open(seen, "a") as file:
                file.write(("" if dies else "passed ") + step + "\n")
            if dies:
                os._exit(9)
        return real(*paths, **named)

    return once_each


def die_at_every_step(settings: dict[str, Any], seen: Path, every: int, connection: object) -> int:
    """In a worker: make all units in a child, and in another one where it died; how the last one ended."""
    cfg = config.Config.model_validate(settings)

    def make_all() -> None:
        for step in ("replace", "rename", "unlink", "remove", "rmdir"):
            setattr(os, step, deadly(step, seen, every))
        plan = recipes.units(cfg)
        standing, marks = states(cfg, plan), fingerprints(plan)
        for name, each in plan.items():
            if standing[name].status == "done":
                unit.tidy(each.folder(cfg.folder))
        for name in plan:
            if standing[name].status != "done":
                unit.make(cfg, plan, name, marks, 1, Deaf())

    status = 9
    while status == 9:
        status = in_a_fork(make_all)
    return status


def listed(settings: dict[str, Any]) -> list[str]:
    """Every file and folder of a run but what is nobody's: locks, hashes of what it reads."""
    place = run_folder(settings)
    return sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if not p.name.startswith("."))


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 6], ids=["every", "some"])
def test_killed_just_before_a_rename_or_removal_it_ends_with_the_same_files(
    tiny: dict[str, Any], tmp_path: Path, every: int
) -> None:
    """Whatever a stage writes appears by a rename, and whatever goes does so by a removal. Here the process dies before each
    kind of them, one after the other, or before every artifact's last and every sixth kind."""
    settings = {**tiny, "root": str(tmp_path)}
    seen = tmp_path / "seen"
    seen.touch()
    assert by_a_worker(die_at_every_step, settings, seen, every) == 0
    deaths = seen.read_text()
    assert deaths.count("manifest.json\n") >= len(api.Run(settings).plan()), deaths
    for step in ("replace", "rename", "unlink", "rmdir"):
        assert f"\n{step} " in deaths
    assert contents(settings) == contents(tiny)
    assert listed(settings) == listed(tiny)


def _command(process: Path) -> str:
    """What a process was started with and the files it holds open."""
    try:
        opened = " ".join(os.readlink(link) for link in (process / "fd").iterdir())
        return (process / "cmdline").read_text("utf-8", "replace") + opened if process.name != str(os.getpid()) else ""
    except OSError:
        return ""


def stop(settings: dict[str, Any], number: int, once: str, temporary: Path) -> None:
    """Run the command line and stop it by a signal once a file is there: it ends with one line and leaves nobody."""
    path = Path(settings["root"]) / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "synthboot", "run", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell starts with it ignored
    )
    while not list(run_folder(settings).glob(once)):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    *told, last = errors.splitlines()
    assert last == "stopped; finished shards are kept, the same command goes on from there"
    assert all(line.startswith("[") for line in told)  # what was done by then
    nothing_outlives(Path(settings["root"]))
    assert not list(temporary.glob("pymp-*"))  # the socket of the fork server


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)],
    ids=["Ctrl-C", "TERM", "HUP"],
)
def test_a_signal_while_the_fork_server_starts_stops_with_one_line(tmp_path: Path, short_folder: Path, number: int) -> None:
    stop(tiny_config(tmp_path), number, ".lock", short_folder)


def run_telling(settings: dict[str, Any], told: Path, connection: object) -> None:
    """In a worker: a run, by a process whose number is told."""
    told.write_text(str(os.getpid()))
    api.Run(settings).run()


def test_stopped_in_training_and_killed_in_sampling_it_ends_with_the_same_bytes(
    tiny: dict[str, Any], tmp_path: Path, short_folder: Path
) -> None:
    one_at_a_time = {**tiny["engine"], "jobs": 1}
    settings = {**tiny, "root": str(tmp_path), "engine": one_at_a_time}
    stop(settings, signal.SIGINT, "04-base/work/checkpoint-*", short_folder)
    # a process that has imported everything goes on, which is quicker; all points are met in the slow test above
    workers = pool.Pool()
    workers.start("run", run_telling, settings, tmp_path / "told")
    chunk = run_folder(settings) / "06-synthesize/related/chunks/000000"
    while not chunk.exists():
        assert len(workers) == 1
        time.sleep(0.005)
    os.kill(int((tmp_path / "told").read_text()), signal.SIGKILL)
    nothing_outlives(tmp_path)
    assert all(kind != "done" for _, kind, _ in workers.wait())
    api.Run(settings).run()
    assert contents(settings) == contents(tiny)
    assert not list(run_folder(settings).rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_killed_at_ten_points_ends_with_the_same_bytes(tmp_path: Path) -> None:
    settings = {
        "model": {"layers": 3, "width": 96, "heads": 3, "kv_heads": 1, "seq_len": 512},
        "budget": {"unique_tokens": 40_000, "train_tokens": 160_000},
        "optim": {"lr": 4e-3, "batch_tokens": 2_048, "evals": 4},
        "engine": {"device": "cpu", "jobs": 1},
        "corpus": {
            "source": str(Path(__file__).parent.parent / "examples/data/arxiv_cs_6000.jsonl.zst"),
            "vocab_size": 2_048,
            "validation_docs": 60,
            "test_docs": 60,
            "shard_docs": 1_024,
        },
        "tune": {"lr": 2e-3, "batch_tokens": 4_096, "max_tokens": 80_000},
        "synthesize": {"keep_unfinished": True, "chunk": 64},
        "arms": {"repetition": {}, "sbp": {"synthetic": "related", "share": 0.5}, "oracle": {"unique_tokens": "all"}},
    }
    whole = {**settings, "name": "whole", "root": str(tmp_path)}
    api.Run(whole).run()
    again = {**settings, "name": "whole", "root": str(tmp_path / "again")}
    for _, pattern in POINTS:
        assert kill_when(again, pattern, 900)
    api.Run(again).run()
    assert contents(again) == contents(whole)
