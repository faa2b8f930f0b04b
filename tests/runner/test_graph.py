"""What a run makes of a plan: everything a target needs, each after what it reads, with sources hashed once."""

from pathlib import Path

import pytest

from synthboot import loading, recipes
from synthboot.errors import ConfigError, DataError, MissingArtifact
from synthboot.runner.graph import fingerprints, needed, ready, startable
from tests.conftest import tiny_config
from tests.test_recipes import world_config


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, recipes.Unit]:
    """All arms on a generated world."""
    return recipes.units(loading.load(world_config(tmp_path)))


def test_a_target_needs_what_it_reads_and_nothing_else(plan: dict[str, recipes.Unit]) -> None:
    def ancestors(name: str) -> set[str]:
        return {name}.union(*(ancestors(parent) for parent in plan[name].parents.values()))

    for target in ("corpus", "tune", "pretrain", "analyze", "report"):
        wanted = set().union(*(ancestors(name) for name, unit in plan.items() if unit.stage == target))
        assert list(needed(plan, target)) == [name for name in plan if name in wanted]
    without = {name: unit for name, unit in plan.items() if unit.stage != "tune"}
    with pytest.raises(MissingArtifact, match="tune: no arm of this configuration needs it"):
        needed(without, "tune")


def test_models_are_asked_for_by_arm_and_seed_though_one_is_base(tmp_path: Path) -> None:
    arms = {"repetition": {"sweep": {"lr": [1e-3, 2e-3]}}, "again": {"sweep": {"lr": [1e-3, 2e-3]}}}
    settings = world_config(tmp_path, arms=arms, pretrain={"seeds": [3]})
    plan = recipes.units(loading.load(settings))
    made = needed(plan, "pretrain")
    assert made == needed(plan, "base")
    assert list(made)[-1] == recipes.model_of(plan, "again", 3) == "base/chosen"

    settings = world_config(tmp_path, arms=arms, pretrain={"seeds": [3, 4]})
    plan = recipes.units(loading.load(settings))
    assert needed(plan, "pretrain", ["*/seed-3"]) == made
    second = needed(plan, "pretrain", ["repetition/seed-4"])
    assert second.keys() - made.keys() == {"pretrain/repetition/seed-4"}
    assert needed(plan, "pretrain", ["pretrain/again/*", "repetition/*"]) == needed(plan, "pretrain")
    with pytest.raises(ConfigError, match=r"no variant of corpus fits 'x'; there are: one artifact without any"):
        needed(plan, "corpus", ["x"])


def test_units_are_ready_once_their_parents_are_done(plan: dict[str, recipes.Unit]) -> None:
    done: set[str] = set()
    while len(done) < len(plan):
        able = ready([plan[name] for name in plan if name not in done], plan.keys() - done)
        assert able == [name for name in plan if name not in done and done.issuperset(plan[name].parents.values())]
        done.add(able[-1])  # whichever is done first


def test_one_unit_that_takes_all_workers_runs_at_a_time_and_others_beside_it() -> None:
    able = ["synthesize/a", "synthesize/b", "pretrain/a", "pretrain/b"]
    for jobs in (1, 2, 3, 4):
        wide = dict.fromkeys(("synthesize/a", "synthesize/b", "embed"), jobs)
        first = ["synthesize/a", "pretrain/a", "pretrain/b"]
        assert startable(able, [], jobs, wide, jobs) == first[:jobs]
        assert startable(able, ["embed"], jobs, wide, jobs) == first[1:jobs]
        assert startable(able, ["pretrain/c"], jobs, wide, jobs) == first[: jobs - 1]
    assert startable([], [], 1, {}, 1) == []
    assert startable(able, [], 4, {}, 4) == able


def test_units_whose_workers_are_fewer_than_jobs_run_side_by_side() -> None:
    able = [f"synthesize/{seed}" for seed in range(5)]
    on_one_gpu, on_two = (dict.fromkeys(able, gpus) | {"pair": 4} for gpus in (1, 2))
    assert startable(able, [], 4, on_one_gpu, 4) == able[:4]
    assert startable(able, [], 4, on_two, 4) == able[:2]
    assert startable(able[1:], able[:1], 4, on_two, 4) == able[1:2]
    assert startable(["pair"], able[:1], 4, on_one_gpu, 4) == []
    assert startable(able, ["pair"], 4, on_one_gpu, 4) == []


def test_what_an_earlier_plan_hashed_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "vectors.npy").write_bytes(b"vectors")
    settings = tiny_config(tmp_path)
    settings["embed"] = {"model": "file", "path": str(tmp_path / "vectors.npy")}
    cfg = loading.load(settings)
    before = recipes.units(cfg)
    (tmp_path / "world.jsonl").unlink()
    again = recipes.units(cfg, recipes.outside(before))
    assert fingerprints(again) == fingerprints(before)
    with pytest.raises(DataError, match=r"world\.jsonl: no such file"):
        recipes.units(cfg)
