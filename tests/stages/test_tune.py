"""Tuning goes on from what it has."""

from pathlib import Path
from typing import Any

import pytest

from synthboot import loading
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.model import Model
from synthboot.artifacts.pairs import Pairs
from synthboot.stages import tune
from tests.conftest import run_folder


def test_a_tuning_that_goes_on_does_not_measure_again_what_d1_is_worth_untuned(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tiny)
    corpus = Corpus.open(run / "01-corpus")
    pairs = Pairs.load(run / "03-pair" / "related")
    base = Model.open(run / "04-base").best
    measured = []
    d1_worth = tune._Held.d1_worth

    def counted(*given: Any) -> tuple[float, float]:
        measured.append(d1_worth(*given))
        return measured[-1]

    def tuned() -> tune.Tuned:
        tokens = (corpus.pretrain, corpus.validation, corpus.tokenizer)
        return tune.tune(loading.load(tiny), base, pairs, *tokens, tmp_path)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune._Held, "d1_worth", counted)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(tune, "train", stopped)
        tuned()
    assert tuned().untuned == measured[0]
    assert len(measured) == 1
