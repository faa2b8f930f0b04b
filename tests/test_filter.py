"""An arm that reads what a filter leaves: what that is, what is told of it, and what too little is."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthboot import api, config, recipes, show
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.model import Model
from synthboot.artifacts.store import read_manifest
from synthboot.artifacts.synthetic import Synthetic
from synthboot.errors import BudgetError, ConfigError
from synthboot.lm import model as models
from synthboot.runner import unit
from synthboot.runner.graph import fingerprints
from tests.conftest import Deaf, by_a_worker, contents, in_a_fork, run_folder


def novelty(sample: np.ndarray, known: set[tuple[int, ...]], n: int) -> float:
    runs = [tuple(sample[i : i + n].tolist()) for i in range(len(sample) - n + 1)]
    return sum(run not in known for run in runs) / len(runs)


def with_filter(tiny: dict[str, Any], tmp_path: Path, chosen: dict[str, Any], share: float = 0.1) -> dict[str, Any]:
    """The tiny run, copied, with an arm that chooses among the samples which are there already."""
    if not (tmp_path / tiny["name"]).exists():
        shutil.copytree(run_folder(tiny), tmp_path / tiny["name"])
    clean = {"synthetic": "related", "share": share, "filter": chosen}
    return {**tiny, "root": str(tmp_path), "arms": {**tiny["arms"], "clean": clean}}


def test_an_arm_reads_what_its_filter_leaves(tiny: dict[str, Any], tmp_path: Path) -> None:
    folder = run_folder(tiny)
    corpus = Corpus.open(folder / "01-corpus").pretrain
    known: set[tuple[int, ...]] = set()
    for doc in range(len(corpus)):
        tokens = corpus[doc].tolist()
        known |= {tuple(tokens[i : i + 2]) for i in range(len(tokens) - 1)}
    samples = list(Synthetic.open(folder / "06-synthesize/related"))
    shares = [novelty(sample.tokens, known, 2) for sample in samples]
    most = float(np.quantile(shares, 0.8))
    expected = [row.text for row, share in zip(samples, shares, strict=True) if share <= most]
    assert 0 < len(expected) < len(samples)

    chosen = {"loss": [0, 100], "similarity": [-1, 1.01], "novelty": [0, most], "novelty_tokens": 2}
    settings = with_filter(tiny, tmp_path, chosen)
    run = api.Run(settings)
    assert run.plan()["synthesize/related"].status == "done"
    run.run("pretrain")

    left = run.synthetic("clean")
    assert [row.text for row in left] == expected
    assert [row.tokens.tolist() for row in left] == [
        row.tokens.tolist() for row, share in zip(samples, shares, strict=True) if share <= most
    ]
    unit = f"06-synthesize/{left.kind}"
    manifest = read_manifest(run_folder(settings) / unit)
    assert manifest is not None
    away = [len(row.tokens) + 1 for row, share in zip(samples, shares, strict=True) if share > most]
    assert manifest.counts["thrown_away"] == {"novelty": [len(away), sum(away)]}
    assert manifest.counts["tokens"] == left.synthetic.tokens.num_tokens
    assert manifest.counts["dropped"]["novelty"] == len(away)
    # base reads every sample, and every sample becomes a vector by an embedder that is fitted already
    read = sum(len(row.tokens) + 1 for row in samples)
    base = models.flops_per_token(models.load(folder / "04-base" / "best"), tiny["model"]["seq_len"])
    assert manifest.cost["flops"] == pytest.approx((base + 2 * tiny["embed"]["dim"]) * read)
    shown = show.examples(run_folder(settings), "synthetic", len(samples), of="clean")
    assert ["".join(part for part, _ in example.texts["sampled d2"]) for example in shown] == expected
    standing = {row.unit: row.account for row in show.status(run_folder(settings))}
    assert f"{len(expected):,} of {len(samples):,} samples left" in standing[unit]

    counts = Model.open(run_folder(settings) / "07-pretrain/clean/seed-0").token_counts
    assert counts.thrown_away == {"novelty": (len(away), sum(away))}
    assert 0 < counts.synthetic_epochs <= 1
    plain = Model.open(run_folder(settings) / "07-pretrain/sbp/seed-0").token_counts
    assert plain.thrown_away == {}
    # what was thrown away had to be sampled: a token that is left costs more
    assert counts.spent_flops == 0 or counts.spent_flops / counts.synthetic_tokens > plain.spent_flops / plain.synthetic_tokens


def test_too_little_text_and_a_judge_without_skill_are_errors_before_training(tiny: dict[str, Any], tmp_path: Path) -> None:
    nothing = with_filter(tiny, tmp_path, {"loss": [0, 0.001]})
    with pytest.raises(BudgetError, match=r"leaves 0 of .* tokens, .* are missing .*nothing is left: widen the filter"):
        api.Run(nothing).run("pretrain")
    for question, judge in (("repetition", "rules"), ("irrelevance", "likelihood")):
        blind = with_filter(tiny, tmp_path, {"judged": {question: judge}})
        message = rf"`filter\.judged\.{question}`: {judge} cannot tell it here .*20 are needed"
        with pytest.raises(ConfigError, match=message):
            api.Run(blind).run("pretrain")
    assert not list((run_folder(blind) / "07-pretrain").glob("clean*"))


def die_after(settings: dict[str, Any], name: str, last: list[str], connection: object) -> list[dict[str, int]]:
    """In a worker: make a unit in a child that dies once a chunk is measured, then in another one that dies after a later
    chunk; the files of what was measured by then, each with its number on the disk."""
    cfg = config.Config.model_validate(settings)
    plan = recipes.units(cfg)
    replace = os.replace
    found = []
    for chunk in last:

        def deadly(source: Any, target: Any, chunk: str = chunk) -> None:
            replace(source, target)
            if str(target).endswith("/work/measured/" + chunk):
                os._exit(9)

        def make(deadly: Any = deadly) -> None:
            os.replace = deadly
            unit.make(cfg, plan, name, fingerprints(plan), 1, Deaf())

        assert in_a_fork(make) == 9
        measured = plan[name].folder(cfg.folder) / "work" / "measured"
        found.append({path.name: path.stat().st_ino for path in sorted(measured.glob("0*"))})
    return found


def test_killed_while_it_measures_a_filter_measures_no_chunk_twice(tiny: dict[str, Any], tmp_path: Path) -> None:
    chosen = {"loss": [0, 100], "similarity": [-1, 0.9], "near_duplicates": ["corpus", "samples"]}
    undisturbed = with_filter(tiny, tmp_path / "once", chosen)
    kind = api.Run(undisturbed).synthetic("clean").kind
    settings = with_filter(tiny, tmp_path / "killed", chosen)
    chunks = len(Synthetic.open(run_folder(tiny) / "06-synthesize/related").chunks)
    assert chunks > 2

    last = f"{chunks - 1:06d}"
    after_first, after_last = by_a_worker(die_after, settings, f"synthesize/{kind}", ["000000", last])
    assert list(after_first) == ["000000"]
    assert after_last["000000"] == after_first["000000"], "measured again"
    assert len(after_last) == chunks

    api.Run(settings).run("synthesize")
    assert contents(settings) == contents(undisturbed)
