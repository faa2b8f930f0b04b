"""The comparison of all arms, written and read again: intervals and differences come back as what they were."""

from pathlib import Path
from typing import Any

from synthboot.artifacts import store
from synthboot.artifacts.evaluation import Evaluation
from synthboot.statistics import Difference, Interval


def result() -> dict[str, Any]:
    figure = Interval(2.0, 1.5, 2.5)
    difference = Difference(-0.1, -0.2, 0.0, 0.05)
    arm = {
        "loss": figure,
        "perplexity": figure,
        "bits_per_byte": figure,
        "loss_by_seed": [2.0, 1.9, 2.1],
        "against": {"other": difference},
    }
    ours = {**arm, "difference": figure, "p": 0.05, "difference_by_seed": [0.1, 0.2, 0.3], "oracle_share": None}
    # an arm may be called anything
    groups = {"all": {"repetition": figure, "x_by_seed": figure}}
    scores = {"arms": {"repetition": arm, "x_by_seed": ours}, "groups": groups}
    answers = {"items": 3, "acc": figure, "acc_norm": figure, "nll": figure, "choice_nll": None, "difference": difference}
    return {
        "checkpoint": "best",
        "best": scores,
        "last": scores,
        "questions": {"task": {"groups": {"all": {"repetition": answers}}}},
        "parts": {"all": {"repetition": {"name": figure, "form": figure}}},
        "verdict": "none",
    }


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    row = {"arm": "repetition", "seed": 0, "checkpoint": "best", "doc": 0, "loss": 2.0, "tokens": 1}
    store.begin(tmp_path, "f")
    Evaluation(result(), [row]).save(tmp_path)
    record = store.Manifest(stage="evaluate", version=1, fingerprint="f", reads={}, parents={}, counts={}, cost={})
    store.commit(tmp_path, record)
    read = Evaluation.open(tmp_path).result
    assert read == result()
    assert type(read["best"]["arms"]["x_by_seed"]["loss_by_seed"]) is list
    assert read["best"]["groups"]["all"]["x_by_seed"].low == 1.5
    assert read["questions"]["task"]["groups"]["all"]["repetition"]["difference"].p == 0.05
