"""What a filter throws away, beside counting by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthboot import config
from synthboot.artifacts.synthetic import ThrownAway
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.stages import filter as stage


def test_novelty_is_the_share_of_runs_that_no_document_holds() -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(1, 9, size=length).tolist() for length in (30, 1, 12, 25)]
    corpus = Tokens.of([[*document, 0] for document in documents])
    samples = [random.integers(1, 9, size=length) for length in (20, 3, 2, 40)]
    samples.append(np.array(documents[0][5:25]))

    runs = {tuple(document[i : i + 3]) for document in documents for i in range(len(document) - 2)}
    expected = []
    for sample in samples:
        own = [tuple(sample[i : i + 3].tolist()) for i in range(len(sample) - 2)]
        expected.append(sum(run not in runs for run in own) / len(own) if own else 1.0)

    found = stage.novelty(samples, corpus, 3)
    assert found.tolist() == pytest.approx(expected)
    assert found[4] == 0
    assert found[2] == 1


def test_a_sample_is_thrown_away_under_the_first_reason_that_holds() -> None:
    chosen = config.Filter(loss=[2, 4], novelty=[0.1, 0.5], judged={"repetition": "rules"})
    loss = [2.0, 4.0, 4.1, 1.9, 3.0, 3.0, 3.0]
    measures = {
        "loss": np.array(loss),
        "novelty": np.array([0.1, 0.5, 0.9, 0.3, 0.0, 0.3, np.nan]),
        "repetition": np.array([0.2, 0.1, 0.9, 0.0, 0.9, 0.3, np.nan]),
    }
    found = stage.verdicts(measures, chosen, {"repetition": 0.2}, len(loss))
    # ends are inside, and what could not be measured is no reason
    assert found == ["kept", "kept", "loss", "loss", "novelty", "repetition", "kept"]

    lengths = np.array([5, 6, 7, 8, 9, 10, 11])
    assert stage.thrown_away(found, lengths) == {"loss": (2, 15), "novelty": (1, 9), "repetition": (1, 10)}


def test_of_near_duplicates_the_first_stays_and_none_that_the_corpus_has() -> None:
    # samples 0 to 5, documents 6 and 7: 0-3-5 are one group, 1 and 4 stand in document 7
    pairs = np.array([[0, 3], [3, 5], [1, 7], [1, 4]])
    assert stage.repeated(pairs, 6, 2) == {
        1: stage.IN_CORPUS,
        3: stage.REPEATED,
        4: stage.IN_CORPUS,
        5: stage.REPEATED,
    }
    assert stage.repeated(np.empty((0, 2), np.int64), 3, 0) == {}


def test_too_little_that_is_left_is_an_error_with_what_to_do() -> None:
    thrown = {"loss": ThrownAway(10, 600), "novelty": ThrownAway(1, 100)}
    stage.check_budget(1_000, 300, thrown, "related,x")
    message = "leaves 300 of 1,000 tokens, 301 are needed, 1 are missing .*loss 600, novelty 100.*`filter.times` to 3.5"
    with pytest.raises(BudgetError, match=message):
        stage.check_budget(1_000, 301, thrown, "related,x")
    with pytest.raises(BudgetError, match="nothing is left: widen the filter"):
        stage.check_budget(700, 301, thrown, "related,x")


def test_a_chunk_keeps_all_rows_with_what_they_were_measured_at(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    rows: list[dict[str, Any]] = []
    for number, verdict in enumerate(["kept", "empty", "kept", "kept"]):
        rows.append({"d1": number, "verdict": verdict, "text": f"text {number}"})
    pq.write_table(pa.Table.from_pylist(rows), source / "synthetic.parquet")
    documents = [np.array([5, 0]), np.array([6, 6, 0]), np.array([7, 0])]

    counts = stage.write_chunk(source, ["kept", "loss", "kept"], {"loss": np.array([1.0, 9.0, 2.0])}, documents, 300, out)
    assert counts == {"kept": 2, "tokens": 4}
    written = pq.read_table(out / "synthetic.parquet").to_pylist()
    assert [row["verdict"] for row in written] == ["kept", "empty", "loss", "kept"]
    assert [row["loss"] for row in written] == [1.0, None, 9.0, 2.0]
    assert [row["text"] for row in written] == [row["text"] for row in rows]
    left = Tokens.open([out])
    assert [left[doc].tolist() for doc in range(len(left))] == [[5, 0], [7, 0]]
