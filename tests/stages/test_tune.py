"""Tuning goes on from what it has."""

from pathlib import Path
from typing import Any

import pytest

from synthboot import loading
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.model import Model
from synthboot.artifacts.pairs import Pairs
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError
from synthboot.lm.loss import Loss
from synthboot.stages import tune
from tests.conftest import run_folder


def read(settings: dict[str, Any]) -> tuple[Path, Pairs, tuple[Tokens, Tokens, Tokenizer]]:
    """What tuning starts from and reads: base, pairs, and the tokens of a finished run."""
    run = run_folder(settings)
    corpus = Corpus.open(run / "01-corpus")
    tokens = (corpus.pretrain, corpus.validation, corpus.tokenizer)
    return Model.open(run / "04-base").best, Pairs.load(run / "03-pair" / "related"), tokens


def test_a_tuning_that_goes_on_does_not_measure_again_what_d1_is_worth_untuned(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, pairs, tokens = read(tiny)
    told: list[str] = []

    def tuned() -> tune.Tuned:
        told.clear()
        return tune.tune(loading.load(tiny), base, pairs, *tokens, tmp_path, lambda _, words: told.append(words))

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(tune, "train", stopped)
        tuned()
    assert any("untuned" in words for words in told)

    result = tuned().record
    assert told
    assert not any("untuned" in words for words in told)
    finished = Model.open(run_folder(tiny) / "05-tune" / "related").tuning
    assert result.untuned == finished.untuned
    assert result.conditioning == finished.conditioning


@pytest.mark.parametrize(
    ("seq_len", "conditional", "said"),
    [
        (None, True, []),
        (16, True, ["rows of 16 tokens, d1 and d2 together, have room for"]),
        (16, False, ["rows of 16 tokens have room for"]),
    ],
)
def test_it_is_said_where_rows_have_no_room_for_most_of_d2(
    tiny: dict[str, Any], tmp_path: Path, seq_len: int | None, conditional: bool, said: list[str]
) -> None:
    base, pairs, tokens = read(tiny)
    cfg = loading.load(tiny)
    if seq_len is not None:
        cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"seq_len": seq_len})})
    told: list[str] = []
    tune.tune(cfg, base, pairs, *tokens, tmp_path, conditional=conditional, note=told.append)
    assert [words.partition(" for ")[0] + " for" for words in told if "have room for" in words] == said


def test_no_more_of_a_step_is_in_memory_than_was_asked_for(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, pairs, tokens = read(tiny)
    cfg = loading.load(tiny)
    wanted = cfg.tune_seq_len
    assert cfg.tune.batch_tokens >= 2 * wanted
    cfg = cfg.model_copy(update={"engine": cfg.engine.model_copy(update={"micro_batch_tokens": wanted})})
    seen: list[int] = []
    forward = Loss.forward

    def counted(self: Loss, inputs: Any, *others: Any) -> Any:
        seen.append(inputs.numel())
        return forward(self, inputs, *others)

    monkeypatch.setattr(Loss, "forward", counted)
    tune.tune(cfg, base, pairs, *tokens, tmp_path)
    assert max(seen) == wanted


@pytest.mark.parametrize(("share", "comes_to"), [(0.001, "none"), (0.999, "all of them")])
def test_plain_rows_that_are_none_or_all_of_what_the_pairs_fill(
    share: float, comes_to: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    base, pairs, tokens = read(tiny)
    changes = {"plain_share": share, "max_epochs": 0.1}
    cfg = loading.load(tiny | {"tune": tiny["tune"] | changes})
    with pytest.raises(BudgetError, match=rf"^tune\.plain_share: {share} of the \d+ rows .* comes to {comes_to}"):
        tune.tune(cfg, base, pairs, *tokens, tmp_path)
