"""What `analyze` leaves comes back as it was, and what is not that is an error."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synthboot.artifacts import store
from synthboot.artifacts.analysis import (
    Analysis,
    Changes,
    Copying,
    Duplicates,
    Examples,
    Excess,
    FactShares,
    KindMeasures,
    Leaks,
    PairExample,
    PersonalData,
    Relevance,
    SampledExample,
    SampledText,
    Topics,
    WorldMeasures,
)
from synthboot.artifacts.judged import NOTHING, Rate, Verdict
from synthboot.data.disk import read_json, write_json
from synthboot.errors import CorruptArtifact
from synthboot.statistics import Interval

REAL = KindMeasures(
    docs=2,
    tokens_mean=3.5,
    tokens_quantiles=(3.0, 3.5, 4.0),
    lengths=(2, 0),
    repeated_4grams=0.0,
    looping=0.0,
    duplicates=0.0,
    exact_duplicates=0.0,
    copied_from_corpus=Copying(docs=0.5, tokens=0.25, longest_median=1.0, longest_max=2.0),
    distinct_ngrams={2: 1.0},
    novel_ngrams={2: 0.5},
    duplicates_at=Duplicates(curve=((2, 0.0),), corpus=0.0),
)
SAMPLED = replace(REAL, copied_from_d1=Copying(0.0, 0.0, 0.0, 0.0), entropy=0.0)
VERDICT = Verdict(
    judge="rules",
    question="copying",
    identity={},
    threshold=math.inf,
    specificity=Interval(1.0, 0.5, 1.0),
    clean=1,
    sensitivity=Interval(0.0, 0.0, 0.5),
    faulty=1,
    by_fault={"copied": (0.0, 1)},
    kappa=None,
    refused="1 clean and 1 faulty cases, 20 are needed",
    requests=4,
    rates={"related": Rate(items=2, unanswered=0, judged=0.0, corrected=None)},
    spent=NOTHING,
    unasked=0,
)
ANALYSIS = Analysis(
    kinds={"unseen real": REAL, "related": SAMPLED},
    relevance={"related": Relevance(0.5, 1.0, (0, 2)), "real pairs": Relevance(None, None)},
    copy_tokens=13,
    world=WorldMeasures(
        excess={"related": Excess(((100, 0.5, 0.25),), same_entity=1.0)},
        facts={"related": {"one": FactShares(0.0, *[None] * 9)}},
    ),
    judged=(VERDICT,),
    leaks=Leaks(
        spans={"related": {8: 0.5}},
        personal={"related": {"phone": PersonalData(found=3, different=2, verbatim=1)}},
    ),
    changed=Changes(
        type_token_ratio={"related": None},
        base_loss={"related": Interval(2.0, 1.5, 2.5)},
        topics=Topics(("1: a, b",), {"D_pretrain": (1.0,)}, {"D_pretrain": 2}, {}, {}, {}),
    ),
)
PAIR = PairExample(similarity=0.5, d1="a b", d2=(("a", 1), (" c", 0)))
EXAMPLES = Examples(
    sampled=(SampledExample(0.5, "a b", (("a", 1),), (SampledText((("a", 1), (" d", 2)), -1.5, "end"),)),),
    spread=(PAIR,),
)


def written(folder: Path, name: str = "analyze.json", change: Callable[[Any], object] = lambda content: None) -> Path:
    """The folder of a finished analysis, one of whose files somebody has changed."""
    ANALYSIS.save(folder)
    EXAMPLES.save(folder)
    content = read_json(folder / name)
    change(content)
    write_json(folder / name, content)
    store.commit(folder, store.Manifest("analyze", 1, "f", {}, {}))
    return folder


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    folder = written(tmp_path)
    assert Analysis.open(folder) == ANALYSIS
    assert Examples.open(folder) == EXAMPLES
    # JSON has no infinity
    assert read_json(folder / "analyze.json")["judged"][0]["threshold"] is None


def test_what_a_kind_of_text_does_not_have_is_left_out_and_what_is_zero_is_not(tmp_path: Path) -> None:
    kinds = ANALYSIS.as_json()["kinds"]
    assert kinds["related"].keys() - kinds["unseen real"].keys() == {"copied_from_d1", "entropy"}
    assert kinds["related"]["entropy"] == 0
    # unknown is not the same as not to be had
    assert ANALYSIS.as_json()["relevance"]["real pairs"] == {"mean": None, "above_alpha": None}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("analyze.json", lambda content: content.pop("leaks"), "leaks: "),
        ("analyze.json", lambda content: content.update(more=1), "more: "),
        ("analyze.json", lambda content: content["kinds"]["related"].pop("looping"), "kinds.related.looping: "),
        ("analyze.json", lambda content: content["kinds"]["related"].pop("duplicates_at"), "kinds.related.duplicates_at: "),
        ("analyze.json", lambda content: content["judged"][0].pop("spent"), "judged.0.spent: "),
        ("analyze.json", lambda content: content["judged"][0].update(question="else"), "judged.0.question: "),
        ("analyze.json", lambda content: content["world"]["facts"]["related"]["one"].pop("kept"), "one.kept: "),
        ("examples.json", lambda content: content[0]["sampled"][0].pop("finish"), "0.sampled.0.finish: "),
        ("examples.json", lambda content: content[0].pop("sampled"), "0.sampled: "),
        ("spread.json", lambda content: content[0]["d2"][0].pop(), "0.d2.0"),
        ("spread.json", lambda content: content[0].update(more=1), "0.more: "),
    ],
)
def test_another_field_is_an_error_that_names_the_file_and_the_field(
    tmp_path: Path, name: str, change: Callable[[Any], object], reason: str
) -> None:
    folder = written(tmp_path, name, change)
    with pytest.raises(CorruptArtifact, match=f"{name}: not of this version of synthboot") as caught:
        Analysis.open(folder) if name == "analyze.json" else Examples.open(folder)
    assert reason in str(caught.value)
    assert "or delete" in str(caught.value)
