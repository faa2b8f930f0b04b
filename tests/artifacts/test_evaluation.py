"""The comparison of all arms, written and read again: everything comes back as what it was, or not at all."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synthboot import config
from synthboot.artifacts import store
from synthboot.artifacts.evaluation import (
    AnswerResult,
    ArmComparison,
    ArmResult,
    Contamination,
    DataEfficiency,
    DocumentLoss,
    Evaluation,
    LossBounds,
    Power,
    TaskResult,
    read_losses,
)
from synthboot.artifacts.model import Sweep, TokenCounts
from synthboot.errors import CorruptArtifact
from synthboot.statistics import Components, Difference, Estimate, Interval

FIGURE = Interval(2.0, 1.5, 2.5)
GAP = Difference(-0.1, -0.2, 0.0, 0.05)
COUNTS = TokenCounts(
    steps=1, batch_tokens=8, train_tokens=8, real_tokens=8, unique_real_tokens=4, real_epochs=2.0, synthetic_tokens=0,
    synthetic_epochs=0.0, replayed_tokens=0, replayed_epochs=0.0, seed=0, parameters=3, architecture="qwen3",
    vocab_size=9, settings={"lr": 0.1, "eval_steps": [1]}, recipe=config.Arm(), best_step=1, train_flops=1e6, spent_flops=0.0,
)  # fmt: skip
ROW = DocumentLoss("repetition", 0, "best", 0, 2.0, 1)


def evaluation() -> Evaluation:
    repetition = ArmResult(FIGURE, FIGURE, FIGURE, (2.0, 1.9), {"x_by_seed": GAP})
    difference = Estimate(-0.1, -0.2, 0.0, 0.05, 0.04, 2.5, (-0.1, -0.1), 9)
    # the oracle's own gain may be next to nothing
    share = Interval(0.5, 0.25, math.inf)
    # an arm may be called anything
    other = replace(repetition, difference=difference, p_adjusted=0.1, oracle_share=share)
    compared = ArmComparison(
        arms={"repetition": repetition, "x_by_seed": other},
        kinds={"repetition": "repetition", "x_by_seed": "method"},
        subject="x_by_seed",
        oracle=None,
        more_compute="",
        seeds=2,
        looks=(1, 2),
        docs=9,
        tokens=90,
        confidence=0.95,
        groups={"all": {"repetition": FIGURE, "x_by_seed": FIGURE}},
        power=Power("x_by_seed", Components(0.1, 0.2, 0.3), 9, {2: 0.1, 10: 0.05}),
        verdict="none",
    )
    ensemble = replace(COUNTS, best_step=None, members=(COUNTS, replace(COUNTS, seed=7)))
    return Evaluation(
        checkpoint="last",
        token_counts={"repetition": {0: COUNTS, 1: COUNTS}, "x_by_seed": {0: ensemble, 1: ensemble}},
        best=compared,
        last=replace(compared, power=None),
        efficiency=DataEfficiency(((4, 2.0), (8, 1.5)), {"x_by_seed": None}),
        contamination={"task": Contamination(3, 1, 0, 0.25)},
        questions={"task": TaskResult(2, {"all": {"repetition": AnswerResult(2, FIGURE, FIGURE, FIGURE, None, GAP)}})},
        parts={"all": {"repetition": {"name": FIGURE, "form": FIGURE}}},
        world={"all": LossBounds(0.5, 0.75)},
        sweeps={"repetition": Sweep({"lr=0.1": 2.0}, {"lr=0.1": {"lr": 0.1}}, "lr=0.1")},
    )


def written(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """An artifact with what `change` has made of its JSON."""
    store.begin(folder, "f")
    evaluation().save(folder, [ROW], [])
    path = folder / "evaluate.json"
    content = store.read_json(path)
    change(content)
    store.write_json(path, content)
    store.commit(folder, store.Manifest("evaluate", 1, "f", {}, {}))
    return folder


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    read = Evaluation.open(written(tmp_path))
    assert read == evaluation()
    assert read_losses(tmp_path) == [ROW]
    arm = read.arms["x_by_seed"]
    assert (arm.loss.low, arm.against, arm.loss_by_seed) == (1.5, {"x_by_seed": GAP}, (2.0, 1.9))
    assert read.chosen.power is None
    assert read.other.power is not None
    assert read.other.power.detectable[10] == 0.05
    assert read.counts_by_arm["x_by_seed"].members[1].seed == 7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("sweeps"), "sweeps: "),
        (lambda content: content.update(verdict="none"), "verdict: "),
        (lambda content: content["best"]["arms"]["repetition"].pop("loss"), "best.arms.repetition.loss: "),
        (lambda content: content["last"]["arms"]["repetition"].update(p=0.5), "last.arms.repetition.p: "),
        (lambda content: content["last"]["arms"]["repetition"]["loss"].pop(), "last.arms.repetition.loss"),
        (lambda content: content["token_counts"]["repetition"]["1"].update(more=1), "token_counts.repetition.1.more: "),
        (lambda content: content["token_counts"]["x_by_seed"]["0"]["members"][1].pop("seed"), "members.1.seed: "),
    ],
)
def test_another_field_is_an_error_that_names_the_file_and_the_field(tmp_path: Path, change: Any, reason: str) -> None:
    folder = written(tmp_path, change)
    with pytest.raises(CorruptArtifact, match=r"evaluate\.json: not of this version of synthboot") as caught:
        Evaluation.open(folder)
    assert reason in str(caught.value)
    assert "or delete" in str(caught.value)
