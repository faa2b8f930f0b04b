"""One model trained by several processes: the same loss as by one, also sharded; killed, resumed, at another number."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from synthboot import api, recipes
from synthboot.artifacts import store
from synthboot.errors import ConfigError, TrainingError
from synthboot.lm import model as models
from synthboot.lm import parallel
from tests.conftest import run_folder, small_config

ARMS = {"repetition": {}}


def base(settings: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The validation curve and the last weights of base."""
    api.Run(settings).run("base")
    folder = run_folder(settings) / "04-base"
    curve = np.array(store.read_json(folder / "curve.json")["validation"])
    return curve, load_file(folder / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(world_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return base(small_config(world_file, tmp_path_factory.mktemp("alone"), arms=ARMS))


@pytest.mark.parametrize(
    "engine",
    [
        {"processes": 2},
        {"processes": 4},
        {"processes": 2, "shard": True},
        {"processes": 2, "shard": True, "checkpoint_activations": True},
        {"processes": 2, "shard": True, "checkpoint_activations": True, "compile": "on"},
    ],
    ids=["2 copies", "4 copies", "2 shards", "2 shards, activations computed again", "the same, compiled"],
)
def test_the_loss_is_that_of_one_process(
    alone: tuple[np.ndarray, dict[str, np.ndarray]], world_file: Path, tmp_path: Path, engine: dict[str, Any]
) -> None:
    curve, weights = base(small_config(world_file, tmp_path, arms=ARMS, engine=engine))
    assert np.allclose(curve, alone[0], atol=1e-4)
    assert weights.keys() == alone[1].keys()
    for name, value in weights.items():
        assert value.shape == alone[1][name].shape


def job(settings: dict[str, Any], tmp_path: Path, processes: int) -> tuple[subprocess.Popen[bytes], Path]:
    """Base's step under torchrun, as the pipeline starts it, where the corpus is there already."""
    cfg = api.Run({**settings, "engine": {"processes": processes}}).config
    (run_folder(settings) / "04-base").mkdir(parents=True, exist_ok=True)
    place = tmp_path / "job.json"
    known = recipes.outside(recipes.units(cfg))
    place.write_text(json.dumps({"config": cfg.model_dump(mode="json"), "outside": known, "unit": "base"}))
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


def test_a_killed_rank_ends_the_job_and_it_resumes_at_any_number(
    alone: tuple[np.ndarray, dict[str, np.ndarray]], world_file: Path, tmp_path: Path
) -> None:
    settings = small_config(world_file, tmp_path, arms=ARMS, budget__train_tokens=24_576, optim__evals=12)
    whole, _ = base({**settings, "name": "whole"})
    api.Run(settings).run("corpus")
    process, place = job(settings, tmp_path, 2)
    folder, patience = run_folder(settings) / "04-base", time.monotonic() + 120
    while not list(folder.glob("work/checkpoint-*[0-9]")):
        assert time.monotonic() < patience
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(ranks(place)[-1], signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(timeout=30) != 0
    assert time.monotonic() - killed < 30
    assert process.stdin is not None
    process.stdin.close()
    assert not ranks(place)
    assert not (folder / "curve.json").exists()
    process, place = job(settings, tmp_path, 4)
    assert process.wait(timeout=120) == 0
    assert process.stdin is not None
    process.stdin.close()
    curve = np.array(store.read_json(folder / "curve.json")["validation"])
    assert np.allclose(curve, whole, atol=1e-4)


def test_the_ranks_end_with_who_started_them(world_file: Path, tmp_path: Path) -> None:
    settings = small_config(world_file, tmp_path, arms=ARMS, budget__train_tokens=409_600)
    api.Run(settings).run("corpus")
    process, place = job(settings, tmp_path, 2)
    patience = time.monotonic() + 60
    while len(ranks(place)) < 2:
        assert time.monotonic() < patience
        time.sleep(0.05)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) != 0
    assert not ranks(place)


def test_a_killed_agent_ends_the_job_within_seconds(world_file: Path, tmp_path: Path) -> None:
    """Its ranks would train on: they hold the output open that the unit reads."""
    settings = small_config(world_file, tmp_path, arms=ARMS, budget__train_tokens=409_600, engine={"processes": 2})
    code = "import json, sys; from synthboot import api; api.Run(json.loads(sys.argv[1])).run('base')"
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(settings)], stderr=subprocess.PIPE, text=True)
    place, patience = run_folder(settings), time.monotonic() + 120
    while not list((place / "04-base").glob("work/checkpoint-*[0-9]")):
        assert time.monotonic() < patience
        assert process.poll() is None
        time.sleep(0.05)
    [job] = place.glob(".together-*/job.json")
    stopped, *_ = ranks(job)
    os.kill(stopped, signal.SIGSTOP)  # which cannot see to its own end
    [agent] = ranks(job, agents=True)
    os.kill(agent, signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert "one of 2 processes died (exit -9); run again to go on from the last checkpoint" in said
    assert not ranks(job)
    assert not list(place.glob(".together-*"))


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


def test_two_nodes_train_as_one_process(
    alone: tuple[np.ndarray, dict[str, np.ndarray]], world_file: Path, tmp_path: Path
) -> None:
    engine = {"processes": 4, "launch": launcher(tmp_path, 2, 2)}
    curve, _ = base(small_config(world_file, tmp_path, arms=ARMS, engine=engine))
    assert np.allclose(curve, alone[0], atol=1e-4)


def test_a_launch_that_starts_another_number_or_does_not_start_is_an_error(world_file: Path, tmp_path: Path) -> None:
    engine = {"processes": 4, "launch": launcher(tmp_path, 1, 2)}
    settings = small_config(world_file, tmp_path, arms=ARMS, engine=engine)
    with pytest.raises(TrainingError, match=r"engine.processes is 4, but engine.launch started 2"):
        api.Run(settings).run("base")
    settings["engine"]["launch"] = "no-such-launcher --nodes 2"
    with pytest.raises(ConfigError, match=r"engine.launch: no-such-launcher does not start"):
        api.Run(settings).run("base")


def test_a_killed_rank_ends_all_nodes(world_file: Path, tmp_path: Path) -> None:
    settings = small_config(world_file, tmp_path, arms=ARMS, budget__train_tokens=409_600)
    settings["engine"] = {"processes": 2, "launch": launcher(tmp_path, 2, 1)}
    command = [
        sys.executable,
        "-c",
        "import json, sys; from synthboot import api; api.Run(json.loads(sys.argv[1])).run('base')",
    ]
    process = subprocess.Popen([*command, json.dumps(settings)], stderr=subprocess.PIPE, text=True)
    place, patience = run_folder(settings), time.monotonic() + 120
    while not list((place / "04-base").glob("work/checkpoint-*[0-9]")):
        assert time.monotonic() < patience
        assert process.poll() is None
        time.sleep(0.05)
    [job] = place.glob(".together-*/job.json")
    os.kill(ranks(job)[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "one of 2 processes died" in said
    assert not ranks(job) + ranks(job, agents=True)
    assert not list(place.glob(".together-*"))


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


def test_rows_that_cannot_be_shared_are_an_error_in_one_line(world_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a step of 4 rows cannot be shared by 3 processes; make batch_tokens"):
        parallel.share(4, parallel.Group(0, 3))
    settings = small_config(world_file, tmp_path, arms=ARMS, engine={"processes": 3})
    with pytest.raises(TrainingError, match=r"base: engine.processes: a step of \d+ rows cannot be shared by 3"):
        api.Run(settings).run("base")
