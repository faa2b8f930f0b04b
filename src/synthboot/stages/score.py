"""Score one model: the loss of every token of the test set, which nothing else reads, and answers
to questions.

Losses are taken at both checkpoints. Questions take longer, so they are asked at one of them, and
all of them are: which questions the training text of some arm holds depends on other arms, and is
for `evaluate` to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthboot.artifacts.scores import FIGURES, Answers, Scores
from synthboot.artifacts.store import Progress, during, silent, within
from synthboot.data import tasks
from synthboot.data.items import Item
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.lm import model as models
from synthboot.lm import questions as answering
from synthboot.lm import score as likelihood


@dataclass(frozen=True)
class Questions:
    """What a model is asked, and at which checkpoint.

    `items` come with the names of their tasks; `harness` names tasks of lm-eval, and `include` the
    folder of those that lm-eval does not bring.
    """

    checkpoint: str
    items: Sequence[tuple[str, Item]] = ()
    harness: Sequence[str] = ()
    include: str = "."


def score(
    checkpoints: Mapping[str, Path],
    test_set: Tokens,
    tokenizer: Tokenizer,
    seq_len: int,
    device: str,
    questions: Questions | None = None,
    progress: Progress = silent,
) -> Scores:
    """The scores of a model whose `checkpoints` (`best` and `last`) lie in these folders; a folder
    that is both is scored once.

    Raises CorruptArtifact for a checkpoint that cannot be read, ConfigError for a task that lm-eval
    does not know.
    """
    by_folder = {}
    answers = Answers((), (), (), np.empty((0, len(FIGURES))))
    folders = list(dict.fromkeys(checkpoints.values()))
    for number, folder in enumerate(folders):
        own = within(progress, number / len(folders), (number + 1) / len(folders))
        model = models.load(folder, models.device(device))
        by_folder[folder] = likelihood.token_losses(
            model,
            test_set,
            seq_len,
            tokenizer.end,
            own,
        )
        if questions is not None and folder == checkpoints[questions.checkpoint]:
            tell = during(own, 1.0, "asking questions")
            answers = _ask(model, folder, questions, tokenizer, seq_len, tell)
    return Scores(
        document=np.repeat(np.arange(len(test_set)), test_set.lengths),
        losses={name: by_folder[folder] for name, folder in checkpoints.items()},
        answers=answers,
    )


def _ask(
    model: Any,
    folder: Path,
    questions: Questions,
    tokenizer: Tokenizer,
    seq_len: int,
    progress: Progress,
) -> Answers:
    """The answers of a model, which lies in `folder`: to our questions, then to lm-eval's."""
    names = [task for task, _ in questions.items]
    items = [item.digest for _, item in questions.items]
    groups = [item.group for _, item in questions.items]
    figures: list[tuple[float, ...]] = []
    ours = [item for _, item in questions.items]
    for answer in answering.ask(model, tokenizer, ours, seq_len, progress) if ours else ():
        figures.append(tuple(map(float, astuple(answer))))

    if questions.harness:
        where = str(next(model.parameters()).device)
        by_task = answering.harness(folder, questions.harness, questions.include, where)
        for task, rows in by_task.items():
            for number, row in enumerate(rows.tolist()):
                names.append(tasks.LM_EVAL + task)
                items.append(str(number))
                groups.append("")  # lm-eval does not say of an item to which group it belongs
                figures.append(tuple(row))

    table = np.array(figures, np.float64).reshape(-1, len(FIGURES))  # (item, figure)
    return Answers(tuple(names), tuple(items), tuple(groups), table)
