"""Scores made elsewhere, read as they are meant and compared by the same figures as arms."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from synthboot import comparison
from synthboot.artifacts.scores import Answers, Scores
from synthboot.cli import main
from synthboot.errors import DataError


def samples(folder: Path, task: str, scores: list[float], time: str = "2026-01-01T00-00-00", **more: Any) -> Path:
    """A sample file as lm-eval 0.4.13 writes it."""
    place = folder / "model"
    place.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "doc_id": i,
            "doc_hash": f"h{i}",
            "filter": "none",
            "metrics": ["acc", "acc_norm"],
            "acc": s,
            "acc_norm": 1 - s,
            **more,
        }
        for i, s in enumerate(scores)
    ]
    path = place / f"samples_{task}_{time}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def answers(share: float, seed: int, count: int = 200) -> list[float]:
    return (np.random.default_rng(seed).random(count) < share).astype(float).tolist()


def test_two_folders_of_samples_are_a_paired_test(tmp_path: Path) -> None:
    ours, theirs = answers(0.6, 1), answers(0.4, 2)
    a, b = samples(tmp_path / "a", "arc_easy", ours), samples(tmp_path / "b", "arc_easy", theirs)
    (row,) = comparison.compare([str(a)], [str(b)])
    known = stats.ttest_rel(ours, theirs)
    assert (row.task, row.items, row.seeds, row.unmatched) == ("arc_easy", 200, 1, 0)
    assert row.difference.p == pytest.approx(known.pvalue, rel=1e-4)
    assert row.first == pytest.approx(np.mean(ours))
    interval = known.confidence_interval(0.95)
    assert (row.difference.low, row.difference.high) == pytest.approx((interval.low, interval.high))


def test_the_metric_the_newest_file_and_the_first_filter(tmp_path: Path) -> None:
    a = samples(tmp_path / "a", "arc_easy", [1, 1, 0, 1])
    b = samples(tmp_path / "b", "arc_easy", [0, 0, 0, 0], time="2025-12-31T00-00-00")
    samples(tmp_path / "b", "arc_easy", [1, 0, 0, 0])
    (row,) = comparison.compare([str(a)], [str(b)])
    assert (row.first, row.second) == (0.75, 0.25)
    (normed,) = comparison.compare([str(a)], [str(b)], metric="acc_norm")
    assert (normed.first, normed.second) == (0.25, 0.75)
    strict = tmp_path / "c" / "samples_gsm8k_2026.jsonl"
    strict.parent.mkdir()
    rows = [
        {"doc_id": i, "filter": f, "metrics": ["exact_match"], "exact_match": float(f == "strict")}
        for i in range(3)
        for f in ("strict", "flexible")
    ]
    strict.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (seed,) = comparison.read(str(strict.parent))
    assert {score for score, _ in seed["gsm8k"].values()} == {1.0}


def test_several_tasks_count_alike_together(tmp_path: Path) -> None:
    a = samples(samples(tmp_path / "a", "long", [1.0] * 900 + [0.0] * 100), "short", [0.0, 0.0, 0.0, 1.0])
    b = samples(samples(tmp_path / "b", "long", [0.0] * 1_000), "short", [0.0, 0.0, 0.0, 0.0])
    rows = {row.task: row for row in comparison.compare([str(a)], [str(b)])}
    assert list(rows) == ["long", "short", comparison.ALL]
    assert rows[comparison.ALL].difference.value == pytest.approx((0.9 + 0.25) / 2)


def test_tasks_are_several_chances_and_adjusted_for(tmp_path: Path) -> None:
    for task, share in (("first", 0.62), ("second", 0.5), ("third", 0.55)):
        samples(tmp_path / "a", task, answers(share, 1))
        samples(tmp_path / "b", task, answers(0.45, 2))
    rows = comparison.compare([str(tmp_path / "a")], [str(tmp_path / "b")])
    ordered = sorted(rows, key=lambda row: row.difference.p)
    assert len(ordered) == 4
    least = 0.0
    for rank, row in enumerate(ordered):
        least = max(least, min(1.0, row.difference.p * (4 - rank)))
        assert row.p_adjusted == pytest.approx(least)
    said = CliRunner().invoke(main, ["compare", str(tmp_path / "a"), str(tmp_path / "b")]).output
    assert f"{ordered[0].difference.p:.2g}  {ordered[0].p_adjusted:.2g}" in said
    for side in "ab":
        (tmp_path / side / "alone.csv").write_text("".join(f"q{i},{(i * ord(side)) % 7}\n" for i in range(20)))
    (alone,) = comparison.compare([str(tmp_path / "a" / "alone.csv")], [str(tmp_path / "b" / "alone.csv")])
    assert alone.p_adjusted == alone.difference.p


def test_seeds_are_paired_and_their_noise_counts(tmp_path: Path) -> None:
    sides: dict[str, list[str]] = {"a": [], "b": []}
    for seed, lead in enumerate((0.0, 0.01, 0.05)):
        for side, plus in (("a", lead), ("b", 0.0)):
            path = tmp_path / f"{side}{seed}.csv"
            path.write_text("item,loss\n" + "".join(f"q{i},{0.5 + plus}\n" for i in range(100)))
            sides[side].append(str(path))
    (row,) = comparison.compare(sides["a"], sides["b"])
    assert row.seeds == 3
    assert row.difference.p == pytest.approx(stats.ttest_1samp([0.0, 0.01, 0.05], 0).pvalue, rel=1e-4)
    assert row.seeds_needed is not None
    assert row.items_needed is None  # no number of items helps where seeds are what differs
    with pytest.raises(DataError, match=r"3 seeds on one side and 2 on the other.* name as many"):
        comparison.compare(sides["a"], sides["b"][:2])


def test_a_run_is_not_compared_with_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "run" / "01-corpus").mkdir(parents=True)
    said = CliRunner().invoke(main, ["compare", str(tmp_path / "run"), str(tmp_path / "typo")]).output
    assert f"compare: {tmp_path / 'typo'}: is no run folder, and others are" in said


def test_the_number_of_items_for_a_wanted_difference(tmp_path: Path) -> None:
    a, b = samples(tmp_path / "a", "t", answers(0.55, 3, 100)), samples(tmp_path / "b", "t", answers(0.5, 4, 100))
    (few,) = comparison.compare([str(a)], [str(b)], wanted=0.2)
    (many,) = comparison.compare([str(a)], [str(b)], wanted=0.02)
    assert few.items_needed is not None
    assert many.items_needed is not None
    assert many.items_needed == pytest.approx(100 * few.items_needed, rel=0.1)  # ten times as fine, a hundred times as many


@pytest.mark.parametrize("wanted", [0.0, -0.01, float("nan"), float("inf")])
def test_a_difference_that_nothing_shows_is_none_to_plan_for(tmp_path: Path, wanted: float) -> None:
    a = str(samples(tmp_path / "a", "arc_easy", answers(0.6, 1)))
    with pytest.raises(DataError, match="above zero"):
        comparison.compare([a], [a], wanted=wanted)


def test_items_of_one_side_are_counted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x\t1\ny\t2\nz\t3\n")
    (tmp_path / "b.jsonl").write_text('{"item": "x", "score": 0}\n{"item": "y", "score": 1}\n{"item": "w", "score": 5}\n')
    (row,) = comparison.compare([str(tmp_path / "a.tsv")], [str(tmp_path / "b.jsonl")])
    assert (row.items, row.unmatched) == (2, 2)
    assert row.difference.value == pytest.approx(1.0)


def test_scores_of_two_models_are_compared_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    sides = []
    for name in ("a", "b"):
        losses = {checkpoint: rng.random(len(document), np.float32) for checkpoint in ("best", "last")}
        answered = Answers(("x",) * 30 + ("y",) * 30, tuple(map(str, range(60))), ("",) * 60, rng.random((60, 4)))
        sides.append(Scores(document, losses, answered))
        (tmp_path / name).mkdir()
        sides[-1].save(tmp_path / name)
    rows = {row.task: row for row in comparison.compare([str(tmp_path / "a")], [str(tmp_path / "b")], metric="nll")}
    assert list(rows) == ["test loss (best)", "test loss (last)", "x", "y", comparison.ALL]
    first, second = (side.losses["last"].mean(dtype=np.float64) for side in sides)
    assert rows["test loss (last)"].difference.value == pytest.approx(first - second)  # per token
    nll = [side.answers.figures[:, 2] for side in sides]
    assert rows["y"].difference.p == pytest.approx(stats.ttest_rel(nll[0][30:], nll[1][30:]).pvalue, rel=1e-4)
    assert rows[comparison.ALL].items == 60
    with pytest.raises(DataError, match="there are acc, acc_norm, nll, choice_nll"):
        comparison.read(str(tmp_path / "a"), "f1")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "x,1\ny,NaN\n", r"a\.csv line 2: the second column is 'NaN', not a number"),
        ("a.csv", "x,nan\ny,1\nz,1\n", r"a\.csv line 1: the second column is 'nan', not a number"),
        ("a.csv", "x,1\n\ny\n", r"a\.csv line 3: no number; a line is an item, a comma"),
        ("a.csv", 'x,1\ny,1\n"z,1\nw,1\n', "no table of items and numbers: unexpected end of data"),
        ("a.csv", "", "no item with a number in it"),
        ("a.jsonl", '{"item": ' + "[" * 100_000, r"a\.jsonl line 1: not JSON"),
        ("a.jsonl", "{\n", r"a\.jsonl line 1: not JSON"),
        ("a.jsonl", '{"item": "x"}\n', "score is None, not a number"),
        ("a.jsonl", '{"score": 1}\n', r"a\.jsonl line 1: no `item`"),
        ("a.jsonl", '{"item": "x", "score": %s}\n' % ("9" * 400), "not a number"),
        ("a.csv", "x,1\nx,0\n", r"a\.csv line 2: 'x' has a number already"),
        ("a.csv", "x" * 200_000 + ",1\n", "no table of items and numbers: field larger"),
        ("a.jsonl", "[1]\n", "not a JSON object"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        comparison.compare([str(path)], [str(path)])


def test_likelihoods_that_no_square_can_hold_are_named(tmp_path: Path) -> None:
    for name, place in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.csv").write_text("".join(f"i{i},{i * place % 7}e-200\n" for i in range(9)))
    with pytest.raises(DataError, match=r"compare: scores: the largest score is .*take logarithms"):
        comparison.compare([str(tmp_path / "a.csv")], [str(tmp_path / "b.csv")])


def test_a_header_and_empty_rows_are_no_items(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("item,score\nx,1\n\n,,\ny,0,why\n")
    assert comparison.read(str(path)) == [{comparison.UNNAMED: {"x": (1.0, 1.0), "y": (0.0, 1.0)}}]


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_bytes("Größe,1\n".encode("latin-1"))
        with pytest.raises(DataError, match=rf"{name}: not UTF-8"):
            comparison.read(str(tmp_path / name))


def test_the_samples_of_two_models_are_not_one(tmp_path: Path) -> None:
    folder = samples(tmp_path / "a", "arc", [1, 0])
    other = folder / "other"
    other.mkdir()
    shutil.copy(folder / "model" / "samples_arc_2026-01-01T00-00-00.jsonl", other / "samples_boolq_2026-01-01T00-00-00.jsonl")
    with pytest.raises(DataError, match=r"several folders, one a model; name one of .*model, .*other"):
        comparison.read(str(folder))
    assert list(comparison.read(str(other))[0]) == ["boolq"]


def test_an_item_that_a_dataset_has_twice_counts_twice(tmp_path: Path) -> None:
    folder = samples(tmp_path / "a", "arc", [1, 0, 1], doc_hash="h")
    assert [score for score, _ in comparison.read(str(folder))[0]["arc"].values()] == [1, 0, 1]
    nameless = samples(tmp_path / "b", "arc", [1, 0], doc_hash=None, doc_id=None)
    with pytest.raises(DataError, match="line 1: neither doc_hash nor doc_id"):
        comparison.read(str(nameless))


def test_documents_of_two_corpora_are_not_the_same_ones(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 4)):
        document = np.repeat(np.arange(20), size)
        losses = {checkpoint: np.ones(len(document), np.float32) for checkpoint in ("best", "last")}
        (tmp_path / name).mkdir()
        Scores(document, losses, Answers((), (), (), np.zeros((0, 4)))).save(tmp_path / name)
    with pytest.raises(DataError, match=r"document 0 has 3 tokens in one and 4 in another; these are other documents"):
        comparison.compare([str(tmp_path / "a")], [str(tmp_path / "b")])


def test_a_task_without_a_name_is_the_one_task_of_the_other_side(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,1\ny,2\n")
    for name, tasks in (("b", ["t"]), ("c", ["t", "u"]), ("d", ["v"])):
        rows = [{"task": task, "item": item, "score": 1} for task in tasks for item in "xy"]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = {name: str(tmp_path / name) for name in ("a.csv", "b.jsonl", "c.jsonl", "d.jsonl")}
    assert [row.task for row in comparison.compare([path["a.csv"]], [path["b.jsonl"]])] == ["scores"]
    assert [row.task for row in comparison.compare([path["b.jsonl"]], [path["c.jsonl"]])] == ["t"]
    with pytest.raises(DataError, match="no task with two items or more in common"):
        comparison.compare([path["b.jsonl"]], [path["d.jsonl"]])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        comparison.read("nowhere:arm")
    with pytest.raises(DataError, match="run lm-eval with --log_samples"):
        comparison.read(str(tmp_path))


def test_it_works_without_torch(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,1\ny,2\nz,4\n")
    path = str(tmp_path / "a.csv")
    script = "import sys; sys.modules['torch'] = None\n"
    script += f"from synthboot import comparison; print(comparison.compare([{path!r}], [{path!r}]))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "p=1.0" in said
