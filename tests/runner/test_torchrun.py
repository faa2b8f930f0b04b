"""One model trained by several processes: the same loss as by one, also sharded; killed, resumed, at another number."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from synthboot import api, loading, recipes
from synthboot.artifacts import store
from synthboot.data import lock
from synthboot.errors import ConfigError, LockedRun, TrainingError
from synthboot.lm import model as models
from synthboot.lm import parallel
from synthboot.runner import torchrun, turns, unit
from synthboot.runner.graph import fingerprints
from tests.conftest import Deaf, run_folder, small_config

RANKS = ".04-base.ranks.lock"
Trained = tuple[Path, np.ndarray, dict[str, np.ndarray]]


def base(settings: dict[str, Any]) -> Trained:
    """The run's folder, the validation curve and the last weights of base."""
    api.Run(settings).run("base")
    folder = run_folder(settings) / "04-base"
    curve = np.array(store.read_json(folder / "curve.json")["validation"])
    return run_folder(settings), curve, load_file(folder / "last" / "model.safetensors")


def settings_of(world_file: Path, root: Path, **changes: Any) -> dict[str, Any]:
    """48 steps with six checkpoints: time enough to be killed after the first."""
    size: dict[str, Any] = {"budget__train_tokens": 18_432, "optim__evals": 6}
    return small_config(world_file, root, arms={"repetition": {}}, **size | changes)


@pytest.fixture(scope="module")
def alone(world_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return base(settings_of(world_file, tmp_path_factory.mktemp("alone")))


def begun(alone: Trained, world_file: Path, root: Path, **changes: Any) -> dict[str, Any]:
    """The settings of a run whose corpus is there already."""
    settings = settings_of(world_file, root, **changes)
    shutil.copytree(alone[0] / "01-corpus", run_folder(settings) / "01-corpus")
    return settings


def slow(engine: dict[str, Any], name: str) -> Any:
    return pytest.param(engine, marks=pytest.mark.slow, id=name)


@pytest.mark.parametrize(
    "engine",
    [
        # in the fast suite two nodes, below, go the same way
        slow({"processes": 2, "shard": True, "checkpoint_activations": True}, "2 shards, activations again"),
        slow({"processes": 2}, "2 copies"),
        slow({"processes": 4}, "4 copies"),
        slow({"processes": 2, "shard": True}, "2 shards"),
        slow({"processes": 2, "shard": True, "checkpoint_activations": True, "compile": "on"}, "compiled"),
    ],
)
def test_the_loss_is_that_of_one_process(alone: Trained, world_file: Path, tmp_path: Path, engine: dict[str, Any]) -> None:
    _, curve, weights = base(begun(alone, world_file, tmp_path, engine=engine))
    _, expected, of_one = alone
    assert np.allclose(curve, expected, atol=1e-4)
    assert {name: value.shape for name, value in weights.items()} == {name: value.shape for name, value in of_one.items()}


def order(settings: dict[str, Any], tmp_path: Path, processes: int) -> Path:
    """What the pipeline orders for base, where the corpus is there already."""
    cfg = api.Run({**settings, "engine": {"processes": processes}}).config
    (run_folder(settings) / "04-base").mkdir(parents=True, exist_ok=True)
    place = tmp_path / "job.json"
    known = recipes.outside(recipes.units(cfg))
    turn = lock.next_turn(run_folder(settings), RANKS)
    place.write_text(json.dumps({"config": cfg.model_dump(mode="json"), "outside": known, "unit": "base", "turn": turn}))
    return place


def job(settings: dict[str, Any], tmp_path: Path, processes: int) -> tuple[subprocess.Popen[bytes], Path]:
    """Base's step under torchrun, as the pipeline starts it."""
    place = order(settings, tmp_path, processes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "synthboot.runner.torchrun", str(place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ), place


def ranks(of: Path, agents: bool = False) -> list[int]:
    """The processes that train on a job, or the torchrun agents that started them."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(of).encode() in words and b"srun.py" not in b" ".join(words) and agents == (b"torch.distributed.run" in words):
            found.append(int(entry.name))
    return sorted(found)


def checkpoint(folder: Path) -> None:
    """Wait until base has written one."""
    give_up = time.monotonic() + 120
    while not list((folder / "04-base").glob("work/checkpoint-*[0-9]")):
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_what_the_first_rank_notes_is_heard(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = {**tiny, "root": str(tmp_path)}
    shutil.copytree(run_folder(tiny), run_folder(settings))
    cfg = api.Run(settings).config
    plan = recipes.units(cfg)
    tune = plan["tune/related"]
    shutil.rmtree(tune.folder(cfg.folder))
    tune.folder(cfg.folder).mkdir()
    told: list[float] = []
    noted: list[str] = []
    torchrun.run_step_together(cfg, plan, tune, lambda done, _: told.append(done), noted.append)
    [words] = noted
    assert words.startswith("the model that tuning starts from does not read d1")
    assert max(told) > 0


def test_the_ranks_end_with_who_started_them(alone: Trained, world_file: Path, tmp_path: Path) -> None:
    process, place = job(begun(alone, world_file, tmp_path), tmp_path, 1)
    patience = time.monotonic() + 60
    while not ranks(place):
        assert time.monotonic() < patience
        time.sleep(0.05)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) != 0
    assert not ranks(place)


def test_a_rank_that_comes_when_others_have_begun_does_nothing(alone: Trained, world_file: Path, tmp_path: Path) -> None:
    settings = begun(alone, world_file, tmp_path)
    place = order(settings, tmp_path, 1)
    torchrun.end_earlier(run_folder(settings) / "04-base")
    with subprocess.Popen(
        [sys.executable, "-m", "synthboot.runner.torchrun", str(place)],
        stdin=subprocess.PIPE,  # open: it is still wanted, for all it knows
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as rank:
        assert rank.stderr is not None
        assert "other processes have taken over from those of this one" in rank.stderr.read()
    assert rank.returncode == 1
    assert not list((run_folder(settings) / "04-base").iterdir())
    assert not place.with_name("outcome.json").exists()


def test_an_artifact_waits_for_ranks_that_are_left_of_an_earlier_job(
    alone: Trained, world_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = begun(alone, world_file, tmp_path)
    cfg = api.Run(settings).config
    turn = lock.next_turn(cfg.folder, RANKS)
    monkeypatch.setattr(turns, "PATIENCE", 0.0)
    plan = recipes.units(cfg)
    half = cfg.folder / "04-base" / "work" / "checkpoint-000008.tmp"
    half.mkdir(parents=True)
    with (
        lock.shared(cfg.folder, RANKS, turn=turn),  # as one of them that is writing this
        pytest.raises(LockedRun, match=f"process {os.getpid()} on .* is working on this run"),
    ):
        unit.make(cfg, plan, "base", fingerprints(plan), 1, Deaf())
    assert half.exists()


@contextmanager
def meanwhile(settings: dict[str, Any], kill: Callable[[Path], None]) -> Iterator[list[Path]]:
    """While the run trains, its job's file is given to `kill` as soon as there is a checkpoint."""
    jobs: list[Path] = []

    def look() -> None:
        checkpoint(run_folder(settings))
        jobs.extend(run_folder(settings).glob(".together-*/job.json"))
        kill(jobs[0])

    thread = Thread(target=look)
    thread.start()
    yield jobs
    thread.join()


@pytest.mark.slow  # two nodes, below, go the same way
@pytest.mark.parametrize("later", [1, 4])
def test_a_killed_rank_ends_the_job_and_it_resumes_at_any_number(
    alone: Trained, world_file: Path, tmp_path: Path, later: int
) -> None:
    settings = begun(alone, world_file, tmp_path, engine={"processes": 2})
    with (
        meanwhile(settings, lambda job: os.kill(ranks(job)[-1], signal.SIGKILL)) as jobs,
        pytest.raises(TrainingError, match="one of 2 processes died"),
    ):
        api.Run(settings).run("base")
    assert not ranks(jobs[0])
    assert not (run_folder(settings) / "04-base" / "curve.json").exists()
    checkpoint(run_folder(settings))
    _, curve, _ = base({**settings, "engine": {"processes": later}})
    assert np.allclose(curve, alone[1], atol=1e-4)


def test_a_killed_agent_ends_the_job_within_seconds(alone: Trained, world_file: Path, tmp_path: Path) -> None:
    """Its ranks would train on: they hold the output open that the unit reads."""
    settings = begun(alone, world_file, tmp_path, engine={"processes": 2})

    def kill(job: Path) -> None:
        stopped, *_ = ranks(job)
        os.kill(stopped, signal.SIGSTOP)  # which cannot see to its own end
        [agent] = ranks(job, agents=True)
        os.kill(agent, signal.SIGKILL)

    message = r"one of 2 processes died \(exit -9\); run again to go on from the last checkpoint"
    with meanwhile(settings, kill) as jobs, pytest.raises(TrainingError, match=message):
        api.Run(settings).run("base")
    assert not ranks(jobs[0])
    assert not list(run_folder(settings).glob(".together-*"))


SRUN = """
import os, subprocess, sys, threading
nodes = [subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE) for _ in range(int(sys.argv[1]))]
def end():
    while os.read(0, 1):
        pass
    for node in nodes:
        node.stdin.close()
threading.Thread(target=end, daemon=True).start()
sys.exit(max(abs(node.wait()) for node in nodes))
"""
"""What srun does, on one machine: the same command on each node, whose input ends with ours."""


def launcher(tmp_path: Path, nodes: int, each: int) -> str:
    """A command that starts torchrun on `nodes` nodes, which find each other as they would in a cluster."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "srun.py").write_text(SRUN)
    meeting = f"--rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{port} --rdzv-id {port}"
    torchrun = f"{sys.executable} -m torch.distributed.run --nnodes {nodes} --nproc-per-node {each} {meeting}"
    return f"{sys.executable} {tmp_path / 'srun.py'} {nodes} {torchrun}"


@pytest.mark.parametrize(("each", "together"), [(1, False), pytest.param(2, True, marks=pytest.mark.slow)])
def test_two_nodes_train_as_one_process_and_a_killed_rank_ends_both(
    alone: Trained, world_file: Path, tmp_path: Path, each: int, together: bool
) -> None:
    """What they had trained by then, sharded or not, goes on to the same end, by both nodes or by one process."""
    sharded = {"shard": True, "checkpoint_activations": True} if each == 1 else {}
    often = {"checkpoint_minutes": 1e-4}  # after nearly every step
    engine = {"processes": 2 * each, "launch": launcher(tmp_path, 2, each), **often, **sharded}
    settings = begun(alone, world_file, tmp_path, engine=engine)
    with (
        meanwhile(settings, lambda job: os.kill(ranks(job)[-1], signal.SIGKILL)) as jobs,
        pytest.raises(TrainingError, match=f"one of {2 * each} processes died"),
    ):
        api.Run(settings).run("base")
    assert not ranks(jobs[0]) + ranks(jobs[0], agents=True)
    assert not list(run_folder(settings).glob(".together-*"))
    checkpoint(run_folder(settings))
    _, curve, _ = base(settings if together else {**settings, "engine": {"processes": 1}})
    assert np.allclose(curve, alone[1], atol=1e-4)


def test_a_launch_that_starts_another_number_or_does_not_start_is_an_error(
    alone: Trained, world_file: Path, tmp_path: Path
) -> None:
    settings = begun(alone, world_file, tmp_path, engine={"processes": 2, "launch": launcher(tmp_path, 1, 1)})
    with pytest.raises(TrainingError, match=r"engine.processes is 2, but engine.launch started 1"):
        api.Run(settings).run("base")
    settings["engine"]["launch"] = "no-such-launcher --nodes 2"
    with pytest.raises(ConfigError, match=r"engine.launch: no-such-launcher does not start"):
        api.Run(settings).run("base")


BLIND = """
import json, os, subprocess, sys
from pathlib import Path
job = Path(sys.argv[-1])
order = json.loads(job.read_text())
order["config"]["root"] = "/nowhere"
elsewhere = job.with_name("elsewhere.json")
elsewhere.write_text(json.dumps(order))
meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
start = lambda rank, job: subprocess.Popen(
    [sys.executable, "-m", "synthboot.runner.torchrun", str(job)], env={**os.environ, **meet, "RANK": str(rank)}
)
first, second = start(0, job), start(1, elsewhere)
code = second.wait()
first.kill()
first.wait()
sys.exit(code)
"""
"""A launcher whose second node does not see the run folder."""


def test_what_another_rank_than_the_first_finds_to_be_wrong_is_said(alone: Trained, world_file: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "blind.py").write_text(BLIND)
    engine = {"processes": 2, "launch": f"{sys.executable} {tmp_path / 'blind.py'} {port}"}
    with pytest.raises(TrainingError, match=r"one of 2 processes died \(.*/nowhere/.*missing"):
        api.Run(begun(alone, world_file, tmp_path, engine=engine)).run("base")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.update(current=device))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **how: told.update(how, backend=backend))
    for name, value in {"WORLD_SIZE": "16", "RANK": "13", "LOCAL_RANK": "5"}.items():
        monkeypatch.setenv(name, value)
    group = parallel.join(models.device("cuda"), shard=True)
    assert (group.rank, group.size, group.shard) == (13, 16, True)
    assert told["current"] == told["device_id"] == torch.device("cuda", 5)
    assert told["backend"] == "nccl"


def test_rows_that_cannot_be_shared_are_an_error_in_one_line(alone: Trained, world_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a step of 4 rows cannot be shared by 3 processes; make batch_tokens"):
        parallel.share(4, parallel.Group(0, 3))
    settings = begun(alone, world_file, tmp_path, engine={"processes": 2}, optim__batch_tokens=288)
    with pytest.raises(ConfigError, match=r"^engine.processes: a step of 3 rows cannot be shared by 2"):
        api.Run(settings).run("base")  # before anything is trained


@pytest.mark.slow
def test_what_a_rank_finds_to_be_wrong_is_one_line(world_file: Path, tmp_path: Path) -> None:
    arms = {"repetition": {}, "sbp": {"synthetic": "related", "share": 0.5}}
    settings = small_config(world_file, tmp_path, engine={"processes": 2}, arms=arms, tune__batch_tokens=288)
    with pytest.raises(TrainingError, match=r"tune/related: engine.processes: a step of 3 rows cannot be shared by 2"):
        api.Run(settings).run("tune")


def test_what_nfs_keeps_of_a_rank_that_dies_does_not_hide_why(
    world_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\necho 'ValueError: the real one' >&2\nexit 3\n")
    dying.chmod(0o700)
    cfg = loading.load(settings_of(world_file, tmp_path, engine__processes=2, engine__launch=str(dying)))
    cfg.folder.mkdir()
    plan = recipes.units(cfg)
    unlink = os.unlink

    def kept(path: Any, **named: Any) -> None:
        if str(path).endswith("stderr"):
            raise OSError(errno.EBUSY, "in use")
        unlink(path, **named)

    monkeypatch.setattr(os, "unlink", kept)
    with pytest.raises(TrainingError, match="ValueError: the real one"):
        torchrun.run_step_together(cfg, plan, plan["base"], lambda *_: None)
    monkeypatch.undo()
    cfg.folder.joinpath("precision.json.0123abcd.tmp").touch()  # of a killed process
    assert len(torchrun.leftovers(cfg.folder)) == 2  # which the next run removes
