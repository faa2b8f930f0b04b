from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthboot.artifacts.scores import Scores
from synthboot.data import tasks
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import CorruptArtifact
from synthboot.lm import model as models
from synthboot.lm import questions
from synthboot.stages.score import Questions, score
from tests.lm.conftest import small_model

TEXTS = ["the cat sat", "the dog and the cat on the mat", "a log"]
ITEMS = [
    ("pets", {"query": "the cat", "choices": ["sat", "on the log"], "gold": 0}),
    ("pets", {"query": "the dog", "choices": ["mat", "and the cat"], "gold": 1}),
    ("ends", {"context": "the cat sat on the", "target": "mat"}),
]


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer) -> tuple[dict[str, Path], dict[str, Any]]:
    """Two checkpoints of a model."""
    both = {name: small_model(seed=seed) for seed, name in enumerate(("best", "last"))}
    folders = {name: tmp_path / name for name in both}
    for name, model in both.items():
        models.save(model, folders[name], tokenizer)
    return folders, both


def asked(checkpoint: str) -> Questions:
    items = [(task, *tasks.of([row], task)) for task, row in ITEMS]
    return Questions(checkpoint, items)


@torch.no_grad()
@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_losses_of_both_checkpoints_and_answers_at_the_chosen_one(
    saved: tuple[dict[str, Path], dict[str, Any]],
    tokenizer: Tokenizer,
    checkpoint: str,
) -> None:
    folders, both = saved
    documents = tokenizer.documents(TEXTS)
    told: list[float] = []
    found = score(folders, Tokens.of(documents), tokenizer, 64, "cpu", asked(checkpoint), lambda done, _: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1
    assert 0.5 in told  # the first of two
    assert found.document.tolist() == [doc for doc, tokens in enumerate(documents) for _ in tokens]
    for name, model in both.items():
        expected: list[float] = []
        for tokens in documents:
            logits = model(torch.tensor([[tokenizer.end, *tokens[:-1]]])).logits[0].log_softmax(-1)
            expected += [-float(logits[place, token]) for place, token in enumerate(tokens)]
        assert found.losses[name] == pytest.approx(expected, rel=1e-4)
    ours = questions.ask(both[checkpoint], tokenizer, [item for _, item in asked(checkpoint).items], 64)
    assert found.answers.task == ("pets", "pets", "ends")
    assert found.answers.figures.tolist() == [pytest.approx(list(map(float, astuple(answer)))) for answer in ours]


def test_a_checkpoint_that_is_best_and_last_is_scored_once(
    saved: tuple[dict[str, Path], dict[str, Any]],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders, _ = saved
    loaded: list[Path] = []
    load = models.load
    monkeypatch.setattr(models, "load", lambda folder, device: loaded.append(folder) or load(folder, device))
    same = dict.fromkeys(folders, folders["last"])
    found = score(same, Tokens.of(tokenizer.documents(TEXTS)), tokenizer, 64, "cpu", asked("best"))
    assert loaded == [folders["last"]]
    assert found.losses["best"] is found.losses["last"]
    assert len(found.answers) == len(ITEMS)


def test_without_questions_there_are_no_answers(saved: tuple[dict[str, Path], dict[str, Any]], tokenizer: Tokenizer) -> None:
    found = score(saved[0], Tokens.of(tokenizer.documents(TEXTS)), tokenizer, 64, "cpu")
    assert found.answers.figures.shape == (0, 4)


def test_a_checkpoint_that_cannot_be_read_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    empty = dict.fromkeys(("best", "last"), tmp_path)
    with pytest.raises(CorruptArtifact, match=f"checkpoint: {tmp_path}"):
        score(empty, Tokens.of([[0]]), tokenizer, 64, "cpu")


def test_scores_are_read_as_they_were_saved(
    saved: tuple[dict[str, Path], dict[str, Any]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    found = score(saved[0], Tokens.of(tokenizer.documents(TEXTS)), tokenizer, 64, "cpu", asked("last"))
    for scores in (found, score(saved[0], Tokens.of(tokenizer.documents(TEXTS)), tokenizer, 64, "cpu")):
        scores.save(tmp_path)
        again = Scores.open(tmp_path)
        assert again.document.tolist() == scores.document.tolist()
        assert all((again.losses[name] == scores.losses[name]).all() for name in scores.losses)
        assert again.answers.figures.tolist() == scores.answers.figures.tolist()
        assert (again.answers.task, again.answers.item) == (scores.answers.task, scores.answers.item)
    losses, sizes = again.by_document("best")
    for doc in range(3):
        own = again.document == doc
        assert (losses[doc], sizes[doc]) == (pytest.approx(again.losses["best"][own].sum(dtype=np.float64)), own.sum())


def test_an_item_is_known_by_what_it_asks_alone() -> None:
    row = ITEMS[0][1]
    (one,), (same,) = tasks.of([row], "here"), tasks.of([{**row, "id": 7, "group": "g"}], "there")
    others = [tasks.of([{**row, **change}], "here")[0] for change in ({"gold": 1}, {"query": "the cat."})]
    assert one.digest == same.digest
    assert len({one.digest, *(other.digest for other in others)}) == 3
