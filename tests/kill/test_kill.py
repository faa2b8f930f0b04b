"""The machine that kills, on small things: it sees what is left over, what differs, and who is who."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_folder
from tests.kill import __main__ as kill
from tests.kill import family
from tests.kill.campaign import ALONE, SIGNALS, TOGETHER, Campaign, Kill, aim

PARENT = """
import subprocess, sys
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(below.pid, flush=True)
below.wait()
"""


def test_processes_are_found_by_their_mark_wherever_they_hang(tmp_path: Path) -> None:
    mark = f"test-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env={**os.environ, family.MARK: mark}, stdout=subprocess.PIPE, text=True
    ) as top:
        assert top.stdout is not None
        try:
            below = int(top.stdout.readline())
            # a process that has just become another program has no environment for a moment
            assert family.wait_until(lambda: {p.pid for p in family.marked(mark)} == {top.pid, below}, 10)
            known = {p.pid: p for p in family.marked(mark)}
            assert [family.role(known[pid], known, top.pid) for pid in (top.pid, below)] == ["parent", "fork server"]
            os.kill(top.pid, signal.SIGKILL)  # the one below has no parent now
            top.wait()
            assert [p.pid for p in family.marked(mark)] == [below]
        finally:
            family.end(mark)
    assert family.wait_until(lambda: not family.marked(mark), 10)


def test_a_lock_names_its_holder_while_it_is_held(tmp_path: Path) -> None:
    lock = tmp_path / ".unit.lock"
    assert not family.holder(lock)
    with open(lock, "w") as file:
        file.write(str(os.getpid()))
        file.flush()
        assert family.holder(lock) == os.getpid()
    assert not family.holder(lock)


def test_a_byte_a_file_too_many_and_one_too_few_are_seen(finished: dict[str, Any], tmp_path: Path) -> None:
    runs = []
    for name in ("one", "other"):
        shutil.copytree(run_folder(finished), tmp_path / name / finished["name"])
        runs.append(Campaign(finished, tmp_path / name, 0))
    assert not runs[0].differs_from(runs[1])
    weights = runs[0].folder / "04-base/last/model.safetensors"
    kept, data = weights.read_bytes(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert runs[0].differs_from(runs[1]) == "other bytes: 04-base/last/model.safetensors"
    weights.write_bytes(kept)
    (runs[0].folder / "04-base/checkpoint-8").mkdir()
    assert runs[0].differs_from(runs[1]) == "left over: 04-base/checkpoint-8"
    assert runs[1].differs_from(runs[0]) == "missing: 04-base/checkpoint-8"


@pytest.mark.parametrize(("stage", "together"), [("corpus", False), ("synthesize", False), ("base", True)])
def test_every_target_gets_every_signal(stage: str, together: bool) -> None:
    targets = TOGETHER[stage] if together else ALONE[stage]
    aims = Counter(aim(stage, number, 0, together) for number in range(len(targets) * len(SIGNALS)))
    assert aims == Counter((target, name) for target in targets for name in SIGNALS)


def test_the_table_counts_what_kept_its_promise() -> None:
    kills = [
        Kill(0, "base", "worker", "KILL", False, "stopped", 2, 0.5),
        Kill(0, "base", "worker", "KILL", False, "stopped", 2, 1.5, left=1),
        Kill(0, "base", "worker", "INT", False, "went on"),
        Kill(0, "tune", "parent", "TERM", False, "stopped; other bytes: x"),
    ]
    text = kill.tables(kills)
    assert "4 kills, 2 as promised" in text
    assert "| base | 3 | 2 | 1 | 1 | 1.0, 1.5 |" in text
    assert "| tune | 1 | 0 | 0 | 0 |  |" in text
    assert "| worker, KILL | 2 | 1 |" in text


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_over_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kill", "--kills", "10", "--folder", str(tmp_path), "--seed", str(int(time.time()))])
    assert kill.main() == 0
