"""A grid is checked before anything runs: its points, their names, and everything that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from synthboot.errors import ConfigError, SynthbootError
from synthboot.studies import grid
from synthboot.studies.study import Grid
from tests.conftest import tiny_config


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return tiny_config(tmp_path)


def varied(*items: str) -> dict[str, list[Any]]:
    return grid.parse_vary(items)


def test_values_are_read_as_set_reads_them() -> None:
    found = varied("budget.unique_tokens=400_000,1.5e6,all", "pretrain.seeds=[0, 1],[0]", "model.kv_heads=null,2")
    assert found == {
        "budget.unique_tokens": [400_000, 1.5e6, "all"],
        "pretrain.seeds": [[0, 1], [0]],
        "model.kv_heads": [None, 2],
    }
    assert grid.parse_seeds("0, 3") == [0, 3]
    assert grid.parse_seeds(None) is None


def test_the_points_are_every_combination_each_a_run_under_the_study(settings: dict[str, Any], tmp_path: Path) -> None:
    points = grid.points(settings, varied("tune.lr=1e-3,2e-3", "model.width=32,64"), seeds=[3])
    assert [point.settings for point in points] == [
        {"tune.lr": lr, "model.width": width} for lr in (0.001, 0.002) for width in (32, 64)
    ]
    assert points[1].name == "lr-0.001_width-64"
    assert points[1].config.folder == tmp_path / "tiny-study" / "lr-0.001_width-64"
    assert points[1].config.model.width == 64
    assert points[1].config.tune.lr == 0.001
    assert all(point.config.pretrain.seeds == [3] for point in points)


def test_together_goes_along_both_settings_at_once(settings: dict[str, Any]) -> None:
    points = grid.points(settings, varied("tune.lr=1e-3,2e-3", "optim.lr=3e-3,4e-3"), together=True)
    assert [(p.config.tune.lr, p.config.optim.lr) for p in points] == [(0.001, 0.003), (0.002, 0.004)]
    assert points[0].name == "tune.lr-0.001_optim.lr-0.003"
    with pytest.raises(ConfigError, match=r"tune\.lr has 2, optim\.lr has 1"):
        grid.points(settings, varied("tune.lr=1e-3,2e-3", "optim.lr=3e-3"), together=True)


def test_names_are_those_of_runs_and_tell_values_apart(settings: dict[str, Any]) -> None:
    values = ["x" * 60 + "/a", "x" * 60 + "-a", "a b", "a-b"]
    names = [point.name for point in grid.points(settings, {"corpus.text_field": values})]
    assert len(set(names)) == 4
    assert names[3] == "text_field-a-b"
    assert all(len(name) <= 100 for name in names)
    one_by_one = {f"arms.{'a' * 30}{i}.share": [0.1, 0.2] for i in range(5)}
    arms = {f"{'a' * 30}{i}": {"synthetic": "related", "share": 0.1} for i in range(5)}
    long = grid.points({**settings, "arms": settings["arms"] | arms}, one_by_one)
    assert len({point.name for point in long}) == 32
    assert max(len(point.name) for point in long) <= 100


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["model.wdth=32,64"], r"point model\.wdth=32: .*did you mean width"),
        (["model.width=32,33"], r"point model\.width=33: .*must be a multiple of twice the heads"),
        (["model.width=32,wide"], r"point model\.width=wide: .*it takes a whole number"),
        (["model.width=32"], "one point is a run"),
        ([], "one point is a run"),
        (["tune.lr=0.1,0.1"], r"the point lr-0\.1 is there 2 times"),
        (["tune.lr=0.1,1e-1"], r"the point lr-0\.1 is there 2 times"),
        (["model.width=64,64.0"], r"width-64 and width-64\.0 are the same up to report"),
        (["engine.jobs=1,2"], "changes nothing that is computed"),
        (["name=a,b"], "changes nothing that is computed"),
        (["root=a,b"], "changes nothing that is computed"),
        (["pretrain.seeds=[0],[1]"], r"pretrain\.seeds: is set for all points as well"),
        (["model.width"], "expected section.key=value,value"),
        (["model.width="], "expected section.key=value,value"),
        (["model.width=[32"], "--vary model.width"),
        (["tune.contexts=1,8"], r"point contexts-8: tune\.contexts: 8 documents have"),
        (["tune.lr=" + ",".join(map(str, range(1, 1002)))], "1,001 points, more than 1,000"),
    ],
)
def test_what_cannot_be_is_named_before_anything_runs(
    settings: dict[str, Any], tmp_path: Path, items: list[str], message: str
) -> None:
    before = set(tmp_path.rglob("*"))
    with pytest.raises(SynthbootError, match=message):
        Grid(settings, varied(*items), seeds=[0])
    assert set(tmp_path.rglob("*")) == before


def test_seeds_of_several_points_cannot_have_texts_of_their_own_that_they_would_share(settings: dict[str, Any]) -> None:
    own = {"pretrain.text_per_seed": True}
    vary = varied("pretrain.seeds=[3],[4]")
    with pytest.raises(ConfigError, match=r"text_per_seed: seeds 3 and 4 are the first of .*\(--seeds 3,4\), or vary `seed`"):
        grid.points(settings, vary, set=own)
    assert len(grid.points(settings, vary)) == 2
    assert len(grid.points(settings, {"seed": [3, 4], **vary}, set=own, together=True)) == 2
    assert len(grid.points(settings, varied("tune.lr=1e-3,2e-3"), set=own, seeds=[3, 4])) == 2


def test_a_setting_that_no_stage_reads_on_the_way_is_refused(settings: dict[str, Any]) -> None:
    vary = varied("evaluate.confidence=0.9,0.95")
    Grid(settings, vary)
    with pytest.raises(ConfigError, match=r"are the same up to tune.*--until"):
        Grid(settings, vary, target="tune")
    with pytest.raises(ConfigError, match="given twice"):
        varied("tune.lr=1,2", "tune.lr=3")


def test_a_run_is_no_place_for_a_study(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x" / "01-corpus").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a run; choose another folder"):
        Grid(settings, varied("tune.lr=1e-3,2e-3"), out=tmp_path / "x")
