"""`auto` precision: measured once, kept by the run, and never a reason for anything to be stale."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from synthboot import config, loading, recipes
from synthboot.errors import CorruptArtifact
from synthboot.lm import model as models
from synthboot.lm import precision
from synthboot.runner.graph import fingerprints
from synthboot.runner.state import states
from tests.conftest import run_folder, small_config
from tests.limits import limit


def left_to_auto(world_file: Path, root: Path) -> config.Config:
    settings = small_config(world_file, root)
    settings["optim"]["precision"] = settings["synthesize"]["dtype"] = "auto"
    return loading.load(settings)


def precisions(cfg: config.Config) -> tuple[str, str]:
    return cfg.optim.precision, cfg.synthesize.dtype


def test_a_run_measures_once_says_so_and_keeps_its_choice(world_file: Path, tmp_path: Path) -> None:
    cfg, told = left_to_auto(world_file, tmp_path), []
    decided = precision.decided(cfg, told.append)
    record = json.loads((cfg.folder / precision.FILE).read_text())
    assert precisions(decided) == (record["training"], record["sampling"])
    [words] = told
    assert f"auto chose {record['training']} for training (bfloat16 is " in words
    assert " times as fast)" in words
    swapped = {k: "float32" if v == "bfloat16" else "bfloat16" for k, v in record.items()}
    (cfg.folder / precision.FILE).write_text(json.dumps(swapped))  # as if decided on another machine
    assert precisions(precision.decided(cfg, lambda _: pytest.fail("measured again"))) == tuple(swapped.values())


@pytest.mark.parametrize(
    ("speed", "device", "chosen"),
    [
        (0.1, "cpu", "float32"),
        (1.2, "cpu", "float32"),
        (1.9, "cpu", "bfloat16"),
        (1.0, "cuda", "bfloat16"),
        (0.5, "cuda", "float32"),
    ],
)
def test_bfloat16_has_to_be_clearly_faster(
    speed: float, device: str, chosen: str, world_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthboot.lm.model.device", lambda _: torch.device(device))
    cfg = left_to_auto(world_file, tmp_path)
    precision.decide(cfg, {"training": speed, "sampling": speed})
    assert precisions(precision.recorded(cfg)) == (chosen, chosen)
    assert f"auto would choose {chosen} for training (bfloat16 is {speed:.2g} times as fast)" in precision.sentence(
        cfg, {"training": speed}, ahead=True
    )


def test_what_is_set_stays_and_only_the_rest_is_measured(world_file: Path, tmp_path: Path) -> None:
    settings = small_config(world_file, tmp_path)
    settings["synthesize"]["dtype"] = "auto"
    settings["optim"]["precision"] = "bfloat16"
    cfg = loading.load(settings)
    assert precision.undecided(cfg) == ["sampling"]
    found = precision.measure(cfg)
    assert set(found) == {"sampling"}
    assert found["sampling"] > 0
    precision.decide(cfg, found)
    assert precision.recorded(cfg).optim.precision == "bfloat16"
    assert precision.undecided(cfg) == []


def test_measuring_takes_a_second_and_goes_by_the_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    def taking(seconds: float) -> Any:
        return lambda: time.sleep(seconds)

    assert 1.7 < precision.speed_ratio(taking(0.02), taking(0.01)) < 2.3
    begun = time.perf_counter()
    assert precision.speed_ratio(taking(0.02), taking(0.2)) < 0.2
    assert time.perf_counter() - begun < limit(1.5)


def test_the_peak_of_a_processor_is_not_less_where_other_work_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that trains beside others reached 106 % of it."""
    # the clock runs on while others have the core
    clock = iter(range(10**6))
    monkeypatch.setattr(models.time, "perf_counter", lambda: float(next(clock)))
    assert models.product_rate(torch.device("cpu"), torch.float32) > 1e9  # by the other clock 2.7e8


def test_a_decision_makes_nothing_stale(finished: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_folder(finished), tmp_path / finished["name"]))
    settings = {**finished, "root": str(tmp_path)}
    settings["optim"] = {**settings["optim"], "precision": "auto"}
    settings["synthesize"] = {**settings["synthesize"], "dtype": "auto"}
    cfg = loading.load(settings)

    def standing() -> set[str]:
        return {s.status for s in states(cfg, recipes.units(cfg)).values()}

    assert precision.undecided(cfg) == []  # its models were made with float32
    assert standing() == {"done"}
    precision.decide(cfg, {"training": 9.0, "sampling": 9.0})  # too late
    assert precisions(precision.recorded(cfg)) == ("float32", "float32")
    assert standing() == {"done"}
    for damaged in ('{"training": "float16"}', "{"):
        (folder / precision.FILE).write_text(damaged)
        with pytest.raises(CorruptArtifact, match=r"precision\.json: not a choice of precision.* or delete it"):
            recipes.units(cfg)


def test_the_choice_is_part_of_what_is_made(world_file: Path, tmp_path: Path) -> None:
    cfg = left_to_auto(world_file, tmp_path)
    before = fingerprints(recipes.units(cfg))
    marks = []
    for speed in (0.1, 5.0):
        (cfg.folder / precision.FILE).unlink(missing_ok=True)
        precision.decide(cfg, {"training": speed, "sampling": speed})
        marks.append(fingerprints(recipes.units(cfg)))
    single, half = marks
    assert single["corpus"] == half["corpus"] == before["corpus"]
    assert single["pair/related"] == half["pair/related"] == before["pair/related"]
    assert single["base"] != half["base"]
    explicit = loading.load(small_config(world_file, tmp_path))
    assert fingerprints(recipes.units(explicit)) == single


def test_shipped_configurations_leave_it_to_auto() -> None:
    for path in (Path(__file__).parents[2] / "configs").glob("*.yaml"):
        assert precisions(loading.load(path)) == ("auto", "auto"), path.name
