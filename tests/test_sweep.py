"""A trial that diverges loses its sweep, and nothing else is lost by it."""

import re
from pathlib import Path
from typing import Any

import pytest

from synthboot import loading, recipes, show
from synthboot.artifacts import model
from synthboot.artifacts.model import Model, Sweep
from synthboot.errors import Diverged, TrainingError
from synthboot.runner import cost, executor
from synthboot.runner.state import states
from tests.conftest import run_folder, tiny_config

WILD = 100.0  # a learning rate that no model stands for long
pytestmark = pytest.mark.timeout(300)


def many_steps(root: Path, **changes: Any) -> dict[str, Any]:
    """A run whose models take steps enough to diverge."""
    settings = tiny_config(root)
    settings["budget"] = {"unique_tokens": 1_500, "train_tokens": 6_000}
    settings["optim"] = {**settings["optim"], "lr": 3e-3, "batch_tokens": 96}
    settings["tune"] = {**settings["tune"], "lr": 3e-3, "batch_tokens": 96, "max_tokens": 6_000}
    return settings | changes


def made_by(settings: dict[str, Any], target: str, *others: Path) -> list[str]:
    """The units that a run made anew."""
    started: list[str] = []

    def tell(name: str, kind: str, value: object) -> None:
        if kind == "start":
            started.append(name)

    executor.run(loading.load(settings), target, tell, others)
    return started


def sweep_of(folder: Path) -> Sweep:
    sweep = Model.open(folder).sweep
    assert sweep is not None
    return sweep


def test_a_trial_that_diverges_loses_the_sweep_and_the_others_go_on(tmp_path: Path) -> None:
    arms = {"repetition": {"sweep": {"lr": [WILD, 3e-3]}}}
    settings = many_steps(tmp_path, arms=arms, pretrain={"seeds": [0, 1]})
    run = run_folder(settings)
    assert f"base/lr={WILD:g}" in made_by(settings, "pretrain")
    assert made_by(settings, "pretrain") == []

    wild = Model.open(run / "04-base" / f"lr={WILD:g}")
    assert re.match(r"loss (nan|inf|\d+\.\d{3}), gradient norm \S+ at step \d+ of 62", wild.diverged)
    assert "documents" not in wild.diverged  # of which a large batch reads thousands
    assert [path.name for path in wild.folder.iterdir()] == ["manifest.json"]
    for chosen in ("04-base/chosen", "07-pretrain/repetition/seed-1"):
        sweep = sweep_of(run / chosen)
        assert sweep.chosen == "lr=0.003"
        assert sweep.losses.keys() == {"lr=0.003"}
        assert sweep.diverged == {f"lr={WILD:g}": wild.diverged}
        assert sweep.settings.keys() == {"lr=0.003", f"lr={WILD:g}"}

    told = {row.unit: row.account for row in show.status(run)}
    assert told[f"04-base/lr={WILD:g}"] == f"diverged: {wild.diverged}"
    cfg = loading.load(settings)
    measured = [row.artifact for row in cost.check(cfg, recipes.units(cfg))]
    assert "base/lr=0.003" in measured
    assert f"base/lr={WILD:g}" not in measured  # it stopped early


def test_a_trial_whose_loss_leapt_is_paid_for_and_tried_again_once_that_is_let_pass(tmp_path: Path) -> None:
    def leaping(max_spike: float) -> dict[str, Any]:
        # at no rate to speak of a loss is noise, above its mean every other step
        settings = many_steps(tmp_path, arms={"repetition": {"sweep": {"lr": [1e-9, 3e-3]}}})
        return {**settings, "optim": {**settings["optim"], "max_spike": max_spike}}

    folder = run_folder(leaping(1)) / "04-base"
    made_by(leaping(1e-6), "base")
    lost = Model.open(folder / "lr=1e-09").manifest
    leap = model.leap(lost)
    assert leap is not None
    assert leap > 1e-6
    step = int(re.findall(r"after a mean of .* at step (\d+) of 62", lost.counts["diverged"])[0])
    assert lost.cost["tokens"] == step * 96
    whole = Model.open(folder / "lr=0.003").manifest.cost
    assert lost.cost["flops"] == pytest.approx(whole["flops"] * step / 62, rel=0.3)  # evaluations are not by the step

    assert made_by(leaping(0.99 * leap), "base") == []  # it would be stopped again
    again = leaping(1.01 * leap)
    why = states(loading.load(again), recipes.units(loading.load(again)))["base/lr=1e-09"]
    assert why.status == "stale"
    assert "its loss leapt, and optim.max_spike is" in why.reasons[0]
    made = made_by(again, "base")
    assert made[0] == "base/lr=1e-09"
    assert "base/lr=0.003" not in made
    further = Model.open(folder / "lr=1e-09").manifest
    assert model.leap(further) is None or further.cost["tokens"] > lost.cost["tokens"]
    made_by(leaping(1e3), "base")
    sweep = sweep_of(folder / "chosen")
    assert sweep.losses.keys() == {"lr=1e-09", "lr=0.003"}
    assert not sweep.diverged
    assert made_by(leaping(1e-6), "base") == []  # what is finished has not leapt


def test_where_no_rate_is_swept_another_setting_is_to_be_lowered(tmp_path: Path) -> None:
    settings = many_steps(tmp_path, arms={"repetition": {"sweep": {"weight_decay": [0.1, 0.2]}}})
    settings["optim"] = {**settings["optim"], "lr": WILD}
    with pytest.raises(TrainingError, match=r"all 2 trials of arms\.repetition\.sweep diverged .*; lower optim\.lr$"):
        made_by(settings, "base")


def test_where_every_trial_diverges_the_run_says_so_at_once_and_whoever_is_no_trial_by_itself(tmp_path: Path) -> None:
    def tuned(name: str, **tune: Any) -> dict[str, Any]:
        settings = many_steps(tmp_path, name=name)
        return {**settings, "tune": settings["tune"] | tune}

    swept = tuned("swept", sweep={"lr": [3e-3, WILD]})
    made_by(swept, "tune")
    run = run_folder(swept)
    assert sweep_of(run / "05-tune" / "related").diverged.keys() == {f"lr={WILD:g}"}

    hopeless = tuned("hopeless", sweep={"lr": [WILD, WILD / 2]})
    for _ in range(2):  # what has diverged is not tried again
        with pytest.raises(TrainingError, match=r"all 2 trials of tune\.sweep diverged \(lr=100: .*; put lower rates"):
            made_by(hopeless, "tune", run)
    assert not Model.open(run_folder(hopeless) / "05-tune" / "related").folder.joinpath("manifest.json").exists()

    # of the same settings as the trial that has no model, and so of the same fingerprint
    with pytest.raises(Diverged, match=r"lower tune\.lr \(100\)"):
        made_by(tuned("plain", lr=WILD), "tune", run)
